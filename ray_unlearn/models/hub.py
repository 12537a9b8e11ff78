"""Repositories of the hub, each read at one commit: what is in them, their files, and why one cannot be had.

A folder laid out like a repository is read by the same calls. Without a network everything comes from the hub's cache:
the commit that a branch had when it was last read, the list of that commit's files, and the files. So a command that
ran once runs again offline on the same data.
"""

from __future__ import annotations

import contextlib
import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ray_unlearn.config import UserError
from ray_unlearn.files import visible
from ray_unlearn.wording import first_line

DATASET, MODEL = "dataset", "model"
PAGES = {DATASET: "https://huggingface.co/datasets/", MODEL: "https://huggingface.co/"}
NAME = re.compile(r"[\w.-]+/[\w.-]+(@[^@\s]+)?")
"""owner/name, or owner/name@revision: a branch, a tag or a commit."""
_pinned: ContextVar[Mapping[str, str] | None] = ContextVar("pinned_revisions", default=None)


def pin_revisions(revisions: Mapping[str, str]) -> None:
    """For what this thread reads from here on: by repository, the revision in the place of its main branch."""
    _pinned.set(dict(revisions))


def parse_pins(option: str, values: Sequence[str]) -> dict[str, str]:
    """From owner/name@revision. Raises UserError."""
    pins = {}
    for value in values:
        if not NAME.fullmatch(value) or "@" not in value:
            raise UserError(f"{option} {value}: is no pinned repository. Write owner/name@revision")
        name, _, revision = value.partition("@")
        pins[name] = revision
    return pins


@dataclass(frozen=True)
class Repository:
    """One repository at one commit, or a folder laid out like one."""

    name: str
    """What messages call it."""
    kind: str
    commit: str
    """Empty for a folder."""
    sizes: Mapping[str, int]
    """Its files' sizes in bytes, by name, in order."""
    is_whole: bool
    """Whether `sizes` names all its files, as opposed to those that lie in the cache."""
    instead: str
    """What to give in its place, as the end of a message."""
    folder: Path | None = None

    def match(self, pattern: str) -> list[str]:
        """The files that a pattern names: * stands for anything but /, ** for folders."""
        from fsspec.utils import glob_translate

        is_wanted = re.compile(glob_translate(pattern)).match
        return [name for name in self.sizes if is_wanted(name)]

    def fetch(self, names: Sequence[str]) -> list[Path]:
        """These files, which are fetched where they are not in the cache; no others are. Raises UserError."""
        if lacking := [name for name in names if self.at_hand(name) is None]:
            from huggingface_hub import snapshot_download

            patterns = [glob.escape(name) for name in lacking]
            with explained(f"{self.name}: {lacking[0]}", self.kind, self.instead):
                snapshot_download(self.name, repo_type=self.kind, revision=self.commit, allow_patterns=patterns)
        paths = [self.at_hand(name) for name in names]
        for name, path in zip(names, paths, strict=True):
            if path is None:
                raise UserError(_not_cached(f"{self.name}: {name}", self.instead))
        return [path for path in paths if path is not None]

    def at_hand(self, name: str) -> Path | None:
        """The file where it is on this disk already."""
        if self.folder is not None:
            return self.folder / name
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.name, name, revision=self.commit, repo_type=self.kind)
        return Path(found) if isinstance(found, str) else None

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """The file to read from at any place: from the disk, else from the hub, of which then only the ranges that are
        read are fetched. Raises UserError."""
        if (place := self.at_hand(name)) is not None:
            with place.open("rb") as file:
                yield file
            return
        from huggingface_hub import HfFileSystem

        prefix = "datasets/" if self.kind == DATASET else ""
        with explained(f"{self.name}: {name}", self.kind, self.instead):
            system = HfFileSystem(skip_instance_cache=True)
            path = f"{prefix}{self.name}@{self.commit}/{name}"
            with system.open(path, "rb", cache_type="none", block_size=2**20) as file:
                yield file


def open_repository(place: str, kind: str = DATASET, instead: str = "a folder laid out like it") -> Repository:
    """A folder, or owner/name or owner/name@revision of the hub. instead: what can be given in its place.

    Raises UserError in one line where it cannot be had: no such repository, no access, no such revision, no network.
    """
    folder = Path(place).expanduser()
    if folder.is_dir():
        files = visible((file for file in folder.rglob("*") if file.is_file()), folder)
        sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
        return Repository(place, kind, "", dict(sorted(sizes.items())), True, instead, folder)
    name, _, revision = place.partition("@")
    revision = revision or (_pinned.get() or {}).get(name, "")
    with explained(f"{name}@{revision}" if revision else name, kind, instead):
        commit, sizes, is_whole = _resolve(name, kind, revision)
    if not sizes:
        raise UserError(_not_cached(f"{name}@{revision}" if revision else name, instead))
    return Repository(name, kind, commit, sizes, is_whole, instead)


def forget_answers() -> None:
    """Ask the hub anew for what it has been asked for already."""
    _resolve.cache_clear()


def commits_of(*repositories: Repository) -> dict[str, str]:
    """By name, the commits that were read; nothing of folders."""
    return {repository.name: repository.commit for repository in repositories if repository.commit}


@lru_cache(maxsize=64)
def _resolve(name: str, kind: str, revision: str) -> tuple[str, dict[str, int], bool]:
    """(commit, its files' sizes by name, whether these are all), asked for once by a process."""
    from huggingface_hub import HfApi

    commit = HfApi().resolve_revision(name, repo_type=kind, revision=revision or None).resolved
    sizes, is_whole = _list_files(name, kind, commit)
    return commit, dict(sorted(sizes.items())), is_whole


def _list_files(name: str, kind: str, commit: str) -> tuple[dict[str, int], bool]:
    """(sizes by name, whether they are all): by the list that the cache keeps of a commit, else by the hub's, else what
    of it lies in the cache."""
    from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

    def listed() -> dict[str, int]:
        return {file.path: file.size for file in get_cached_repo_tree(name, repo_type=kind, revision=commit)}

    with contextlib.suppress(CachedRepoTreeNotFoundError):
        return listed(), True
    try:  # the card comes with the list
        place = Path(snapshot_download(name, repo_type=kind, revision=commit, allow_patterns=["README.md"]))
    except LocalEntryNotFoundError:
        HfApi().repo_info(name, repo_type=kind, revision=commit)  # it says why, unless all is offline
        raise
    with contextlib.suppress(CachedRepoTreeNotFoundError):
        return listed(), True
    files = (file for file in place.rglob("*") if file.is_file())
    return {file.relative_to(place).as_posix(): file.stat().st_size for file in files}, False


def check_access(place: str, kind: str, instead: str = "a folder") -> None:
    """Raise UserError where the files of a repository cannot be had: by the hub's own word on this login, or by what
    lies in the cache where the hub is away. A folder passes."""
    if Path(place).expanduser().is_dir():
        return
    import httpx2
    from huggingface_hub import HfApi, constants

    repository = open_repository(place, kind, instead)
    if constants.HF_HUB_OFFLINE or any(repository.at_hand(name) for name in repository.sizes if name != "README.md"):
        return
    with explained(repository.name, kind, instead), contextlib.suppress(httpx2.TransportError):
        HfApi().auth_check(repository.name, repo_type=kind)


# ---- a folder into a repository


def check_push(name: str, is_public: bool) -> None:
    """Raise UserError where a folder cannot be put into a model repository of that name, as far as the hub tells
    before: nobody is logged in, or the repository is there and is read by others than was asked for."""
    from huggingface_hub import HfApi, constants, errors, get_token

    if constants.HF_HUB_OFFLINE:
        raise UserError(f"--push {name}: HF_HUB_OFFLINE is set. Unset it, or leave --push out")
    if get_token() is None:
        raise UserError(f"--push {name}: nobody is logged in. Run `hf auth login`, or set HF_TOKEN")
    with _push_explained(name):
        HfApi().whoami()
        try:
            is_private = bool(HfApi().model_info(name).private)
        except errors.RepositoryNotFoundError:
            return
    if is_private == is_public:
        fix = "Leave --public out" if is_private else "Give --public, if that is meant"
        who = "private" if is_private else "read by everybody"
        raise UserError(f"--push {name}: is there already, and {who}. {fix}, or another name")


@contextlib.contextmanager
def _push_explained(name: str) -> Iterator[None]:
    """As `explained`, of a hub that is written to."""
    import httpx2

    with explained(f"--push {name}", MODEL):
        try:
            yield
        except httpx2.TransportError as error:
            why = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"--push {name}: the hub cannot be reached ({why}). Check the network") from None


def push_folder(folder: Path, name: str, is_public: bool) -> str:
    """Put a model's folder into a repository, which is made where it is not there, as one commit; its address. Other
    weights that are in it go. Raises UserError."""
    from huggingface_hub import HfApi

    try:
        with _push_explained(name):
            place = HfApi().create_repo(name, private=not is_public, exist_ok=True)
            HfApi().upload_folder(
                repo_id=name,
                folder_path=folder,
                commit_message="Export of ray_unlearn",
                delete_patterns=["*.safetensors", "*.safetensors.index.json"],
            )
    except (UserError, RuntimeError, ValueError) as error:  # of an upload, the client raises these
        what = str(error).removeprefix(f"--push {name}: ").rstrip(".")
        raise UserError(
            f"--push {name}: {first_line(what)}. The export is in {folder}: `hf upload {name} {folder}` sends it"
        ) from None
    return str(place)


# ---- why it cannot be had


@contextlib.contextmanager
def explained(where: str, kind: str = DATASET, instead: str = "") -> Iterator[None]:
    """Raise what the hub's client raises inside as a UserError of one line: where, what, and the ways on."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        is_known = error.response.status_code == 403
        login = "this login has not been granted it" if is_known else "nobody is logged in"
        where = where.partition(": ")[0]
        page = PAGES[kind] + where.partition("@")[0]
        last = "log in as who was granted it" if is_known else "run"
        raise UserError(
            f"{where}: access is granted on request, and {login}. Ask for it at {page}, then {last} (`hf auth login`)"
            f"{_or(instead)}"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{where}: the hub has no such revision. Name a branch, a tag or a commit of it") from None
    except errors.RepositoryNotFoundError:
        what = "data set" if kind == DATASET else "model"
        raise UserError(
            f"{where}: the hub has no such {what}, or it is private. Check the name; where it is private, run "
            f"`hf auth login`{_or(instead)}"
        ) from None
    except errors.RemoteEntryNotFoundError as error:
        raise UserError(f"{where}: a file of it is gone from the hub ({first_line(error)}). Try again") from None
    except (errors.LocalEntryNotFoundError, errors.RevisionResolutionError, errors.OfflineModeIsEnabled) as error:
        raise UserError(_not_cached(where, instead, error)) from None
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        raise UserError(
            f"{where}: the hub answers {code} ({first_line(error)}). Try again later{_or(instead)}"
        ) from None
    except errors.HFValidationError as error:
        raise UserError(f"{where}: is no repository's name ({first_line(error)}). Write owner/name") from None
    except (httpx2.TransportError, OSError) as error:
        raise UserError(f"{where}: {_no_network(error)}{_or(instead)}") from None


def _not_cached(where: str, instead: str, error: BaseException | None = None) -> str:
    from huggingface_hub import constants, errors

    while error is not None and isinstance(error, errors.LocalEntryNotFoundError | errors.RevisionResolutionError):
        error = error.__cause__
    if constants.HF_HUB_OFFLINE or error is None or isinstance(error, errors.OfflineModeIsEnabled):
        return f"{where} is not in the hub's cache, and HF_HUB_OFFLINE is set. Unset it once to fetch it{_or(instead)}"
    return f"{where}: {_no_network(error)}{_or(instead)}"


def _no_network(error: BaseException) -> str:
    why = f"{type(error).__name__}: {first_line(error)}"
    return f"is not in the hub's cache, and the hub cannot be reached ({why}). Check the network"


def _or(instead: str) -> str:
    return f", or give {instead}" if instead else ""

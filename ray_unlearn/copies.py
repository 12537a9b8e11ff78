"""A search's folder kept a second time, in a bucket, for machines whose disks vanish: `tune --copy-to s3://bucket/x`.

The search works in its local folder, which can lock, rename and sync. A thread of the driver looks there every few
seconds and copies what is new to <place>/<search>/: ledger.jsonl first and whole, as far as its last whole line (a
bucket cannot append), then all other files, small ones first, logs at the end. What is lost with the disk are the
events since the last copy: no trial whose row was copied runs again. Files that the copied ledger names and that had
not been copied are written again, or their finalists run again, when the search goes on.

Copying neither holds a search up nor ends it: what fails is tried again after growing pauses, said once, and said at
the end if it is still not there.

One process copies to a place. It writes .writer.json there anew every BEAT_SECONDS, with a random name of its own. Who
finds that of another waits LEASE_SECONDS: where it has changed by then, its writer lives and the place is refused; else
that one has died, and the place is taken over. No two clocks are compared. A process that finds its place taken (it was
cut off for so long) copies no more and says so. A bucket has no locks: of two that begin in the same moment both may
find it free; the one whose name is overwritten stops at its next look.

Places: s3:// (with ?region=, ?scheme=, ?endpoint_override= and ?tls_ca_file_path= for stores that are not Amazon's),
whatever else pyarrow opens (gs://, abfs://, hdfs://, file://), and what fsspec opens. Credentials are found by those
libraries in the environment and its files; a URI with credentials in it is refused, because URIs are written down.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, unquote, urlsplit
from uuid import uuid4

from ray_unlearn.config import UserError
from ray_unlearn.ledger import LEDGER, WRITER, describe_writer

LOOK_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 60.0
"""Between two attempts while copying fails."""
LAST_SECONDS = 30.0
"""For how long the end of a search tries again what fails."""
BEAT_SECONDS, LEASE_SECONDS = 10.0, 30.0
PART_BYTES = 8 * 2**20
UNFINISHED, LOG = ".unfinished", "log.txt"
"""Ends of names: of what nobody reads yet, and of what grows all the time."""
S3_SETTINGS = ("region", "scheme", "endpoint_override", "tls_ca_file_path")
SECRETS = ("key", "secret", "token", "password", "signature", "sas")
OBJECT_STORES = ("s3", "gcs", "abfs")
"""File systems (by pyarrow's names) that need no folders, and where a file appears whole."""


def is_uri(text: str) -> bool:
    return "://" in text


def join(uri: str, name: str) -> str:
    head, mark, query = uri.partition("?")
    return f"{head.rstrip('/')}/{name}{mark}{query}"


def split(uri: str) -> tuple[str, str]:
    """What `join` has joined."""
    head, mark, query = uri.partition("?")
    parent, _, name = head.rstrip("/").rpartition("/")
    return parent + mark + query, name


@dataclass(frozen=True)
class Place:
    """A folder on a file system that is not this machine's. Methods raise whatever the file system does."""

    uri: str
    filesystem: Any
    """pyarrow.fs.FileSystem."""
    path: str

    def listed(self) -> dict[str, tuple[int, int | None]]:
        """By name: size in bytes, time of writing in whole seconds (None where the store does not say)."""
        from pyarrow.fs import FileSelector, FileType

        found = {}
        for info in self.filesystem.get_file_info(FileSelector(self.path, allow_not_found=True, recursive=True)):
            name = str(PurePosixPath(info.path.lstrip("/")).relative_to(self.path.lstrip("/")))
            # Whoever writes into the bucket must not write elsewhere on this machine.
            if info.type == FileType.File and ".." not in name.split("/") and not _is_hidden(name):
                found[name] = info.size, int(info.mtime.timestamp()) if info.mtime else None
        return found

    def read(self, name: str) -> bytes | None:
        """None where it is not there."""
        from pyarrow.fs import FileType

        path = f"{self.path}/{name}"
        if self.filesystem.get_file_info(path).type == FileType.NotFound:
            return None
        with self.filesystem.open_input_stream(path) as source:
            return bytes(source.read())

    def get(self, name: str, target: Path) -> None:
        """Fetch a file. It appears whole, with the time of writing that it has here."""
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        path = f"{self.path}/{name}"
        with self.filesystem.open_input_stream(path) as source, temporary.open("wb") as file:
            while part := source.read(PART_BYTES):
                file.write(part)
        if (mtime := self.filesystem.get_file_info(path).mtime) is not None:
            os.utime(temporary, (mtime.timestamp(), mtime.timestamp()))
        temporary.replace(target)

    def put(self, name: str, source: BinaryIO) -> None:
        """Store a file. It appears whole."""
        target = place = f"{self.path}/{name}"
        has_folders = self.filesystem.type_name not in OBJECT_STORES
        if has_folders:
            parent, _, last = target.rpartition("/")
            self.filesystem.create_dir(parent, recursive=True)
            place = f"{parent}/.{last}.tmp"
        with self.filesystem.open_output_stream(place) as sink:
            while part := source.read(PART_BYTES):
                sink.write(part)
        if has_folders:
            self.filesystem.move(place, target)

    def remove(self, name: str) -> None:
        self.filesystem.delete_file(f"{self.path}/{name}")


def open_place(uri: str) -> Place:
    """Raises UserError where the URI cannot be opened; whether the place can be written is not known yet."""
    if not is_uri(uri):
        raise UserError(f"--copy-to {uri}: is no URI. Give one such as s3://bucket/prefix")
    parts = urlsplit(uri)
    named = [key for key, _ in parse_qsl(parts.query) if any(word in key.lower() for word in SECRETS)]
    if parts.password is not None or named or (parts.scheme == "s3" and parts.username is not None):
        raise UserError(
            f"{parts.scheme}://...: has credentials in it, and it will be written down. Leave them to the environment "
            "or the configuration files"
        )
    with _failures_named(uri, "cannot be opened"):
        filesystem, path = (_open_s3 if parts.scheme == "s3" else _open_other)(uri)
    return Place(uri, filesystem, path.rstrip("/"))


def _open_s3(uri: str) -> tuple[Any, str]:
    from pyarrow.fs import S3FileSystem, resolve_s3_region

    parts = urlsplit(uri)
    settings = dict(parse_qsl(parts.query))
    if unknown := set(settings) - set(S3_SETTINGS):
        raise UserError(f"{uri}: {min(unknown)} is not known. It may have {', '.join(S3_SETTINGS)} behind the ?")
    elsewhere = ("endpoint_override" in settings) or any(name.startswith("AWS_ENDPOINT_URL") for name in os.environ)
    if "region" not in settings and not elsewhere:
        settings["region"] = resolve_s3_region(parts.netloc)
    # In the background a whole model would be held in memory, part by part.
    filesystem = S3FileSystem(
        **settings, background_writes=False, allow_delayed_open=True, connect_timeout=5, request_timeout=30
    )
    return filesystem, parts.netloc + unquote(parts.path)


def _open_other(uri: str) -> tuple[Any, str]:
    import fsspec
    import pyarrow as pa
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    try:
        filesystem, path = FileSystem.from_uri(uri)
        return filesystem, path
    except pa.ArrowInvalid:  # none that pyarrow knows
        filesystem, path = fsspec.core.url_to_fs(uri)
        return PyFileSystem(FSSpecHandler(filesystem)), path


@contextlib.contextmanager
def _failures_named(uri: str, what: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise UserError(
            f"{uri}: {what} ({_first_line(error)}). Check the place, the credentials and the network"
        ) from None


def _first_line(error: Exception) -> str:
    line = str(error).strip().split("\n")[0]
    return re.sub(r" \(Request ID: .*\)", "", line).rstrip(". ") or type(error).__name__


def _is_hidden(name: str) -> bool:
    """Locks, files that are not whole yet, and what is not finished."""
    return any(part.startswith(".") or part.endswith(UNFINISHED) for part in name.split("/"))


class Copies:
    """Keeps what is in a folder at a place. A context: leaving it copies what is left, and says on standard error what
    could not be copied."""

    def __init__(self, folder: Path, place: Place) -> None:
        self._folder, self._place = folder, place
        self._id, self._beats = uuid4().hex, 0
        self._is_taken = False
        self._failure = ""
        self._done: dict[str, tuple[int, int]] = {}
        """By name, time (ns) and size of the file that was copied."""
        self._ledger_size = 0
        self._failed: set[str] = set()
        self._leaves, self._ends = threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=self._keep_copying, daemon=True),
            threading.Thread(target=self._keep_place, daemon=True),
        ]
        self._say: Callable[[str], None] = _say_nothing

    @property
    def uri(self) -> str:
        return self._place.uri

    def claim(self) -> None:
        """Take the place. Raises UserError where it cannot be written, where somebody else copies to it, or where it
        has a search that this folder's is not the continuation of."""
        with _failures_named(self.uri, "cannot be written"):
            found = self._place.read(WRITER)
            if found is not None:
                print(f"{self.uri}: has a writer; waiting {LEASE_SECONDS:g} s to see whether it lives", flush=True)
                time.sleep(LEASE_SECONDS)
                if self._place.read(WRITER) not in (found, None):
                    raise UserError(
                        f"{self.uri}: {describe_writer(found)} is copying to it. Wait for that, stop it, or give "
                        "another --copy-to"
                    )
            ledger = self._place.read(LEDGER) or b""
            if not whole_ledger(self._folder).startswith(ledger):
                raise UserError(
                    f"{self.uri}: this search has gone on elsewhere. Go on with --resume '{self.uri}', or give another "
                    "--copy-to"
                )
            self._write_marker()
            self._ledger_size = len(ledger)
            for name, (size, written) in self._place.listed().items():
                path = self._folder / name
                if path.is_file() and written is not None:
                    here = path.stat()
                    if here.st_size == size and int(here.st_mtime) <= written:
                        self._done[name] = here.st_mtime_ns, size

    def __enter__(self) -> Copies:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        copying, keeping = self._threads
        self._leaves.set()
        copying.join()
        deadline = time.monotonic() + LAST_SECONDS
        is_said = False
        while not self._try(is_last=True) and time.monotonic() < deadline:
            if not is_said:
                print(f"ray_unlearn: {self.uri}: {self._failure}; trying for {LAST_SECONDS:g} s more", file=sys.stderr)
                is_said = True
            time.sleep(LOOK_SECONDS)
        self._ends.set()
        keeping.join()
        if self._is_taken:
            print(f"ray_unlearn: {self.uri} belongs to another process now; all is in {self._folder}", file=sys.stderr)
        elif self._failure:
            left = len(self._left(is_last=True))
            print(
                f"ray_unlearn: {left} file(s) are not at {self.uri} ({self._failure}). All are in {self._folder}; "
                f"`ray_unlearn tune --resume {self._folder}` copies them",
                file=sys.stderr,
            )
        else:
            with contextlib.suppress(Exception):  # then it will be found dead
                self._place.remove(WRITER)

    @contextlib.contextmanager
    def told(self, say: Callable[[str], None]) -> Iterator[None]:
        """Inside, what goes wrong is said to `say` at once."""
        self._say = say
        try:
            yield
        finally:
            self._say = _say_nothing

    def _keep_copying(self) -> None:
        pause = LOOK_SECONDS
        while not self._leaves.wait(pause):
            had_failed = bool(self._failure)
            if self._try(is_last=False):
                pause = LOOK_SECONDS
                if had_failed:
                    self._say(f"{self.uri}: copying goes on")
            else:
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                if not had_failed:
                    self._say(f"{self.uri}: copying fails ({self._failure}) and is tried again; the search goes on")

    def _try(self, is_last: bool) -> bool:
        """Whether all that is there now has been copied; else `_failure` says why not."""
        try:
            self._copy_new(is_last)
        except Exception as error:  # no file system may end a search
            self._failure = _first_line(error)
        else:
            self._failure = ""
        return not self._failure

    def _copy_new(self, is_last: bool) -> None:
        left = self._left(is_last)
        if not left or not self._holds_place():
            return
        for name in left:
            try:
                self._copy(name)
            except Exception:
                self._failed.add(name)  # the next time others come first
                raise
            self._failed.discard(name)

    def _left(self, is_last: bool) -> list[str]:
        """Names of what has not been copied, in the order in which it should be."""
        found = {
            name: here
            for name, here in _files(self._folder)
            if (is_last or not name.endswith(LOG)) and name != LEDGER and self._done.get(name) != here
        }
        names = sorted(found, key=lambda name: (name in self._failed, found[name][1]))
        return [LEDGER, *names] if len(whole_ledger(self._folder)) != self._ledger_size else names

    def _copy(self, name: str) -> None:
        if name == LEDGER:
            ledger = whole_ledger(self._folder)
            self._place.put(name, BytesIO(ledger))
            self._ledger_size = len(ledger)
            return
        try:
            source = (self._folder / name).open("rb")
        except FileNotFoundError:  # it has been replaced since
            return
        with source:
            here = os.fstat(source.fileno())
            try:
                self._place.put(name, source)
            except BaseException:
                with contextlib.suppress(Exception):  # a beginning of it may be there, and would pass for all of it
                    self._place.remove(name)
                raise
        self._done[name] = here.st_mtime_ns, here.st_size

    def _keep_place(self) -> None:
        while not self._ends.wait(BEAT_SECONDS) and not self._is_taken:
            with contextlib.suppress(Exception):  # the other thread says that something is wrong
                if self._holds_place():
                    self._write_marker()

    def _holds_place(self) -> bool:
        found = self._place.read(WRITER)
        if found is not None and self._id.encode() not in found and not self._is_taken:
            self._is_taken = True
            self._say(f"{self.uri}: {describe_writer(found)} has taken it; the search goes on, copying does not")
        return not self._is_taken

    def _write_marker(self) -> None:
        self._beats += 1
        writer = {"id": self._id, "host": socket.gethostname(), "pid": os.getpid(), "beat": self._beats}
        self._place.put(WRITER, BytesIO(json.dumps(writer).encode()))


def copied(folder: Path, to: str | None, is_needed: bool = True) -> AbstractContextManager[Copies | None]:
    """Keeps the folder at `to`, under its own name; nothing where `to` is None.

    Raises UserError where that cannot be begun; where it is not needed, that is only said.
    """
    if to is None:
        return nullcontext()
    try:
        copies = Copies(folder, open_place(join(to, folder.name)))
        copies.claim()
    except UserError as error:
        if is_needed:
            raise
        print(f"ray_unlearn: nothing is copied: {error}", file=sys.stderr)
        return nullcontext()
    return copies


def fetch_search(uri: str, into: Path = Path("results")) -> Path:
    """The local folder of a search that is at a place, with all that the place has of it.

    Where the folder is there and is as far as the place, or farther, only missing files are fetched. Raises UserError
    where the place cannot be read or holds no search, or where the folder's search went on differently.
    """
    place = open_place(uri)
    folder = into / split(uri)[1]
    with _failures_named(uri, "cannot be read"):
        files = place.listed()
        if not files.keys() & {LEDGER, "search.json"}:
            raise UserError(f"{uri}: holds no search. Give the place that `tune` printed")
        there, here = place.read(LEDGER) or b"", whole_ledger(folder)
        if not there.startswith(here) and not here.startswith(there):
            raise UserError(f"{uri}: is not the search in {folder}, or went on differently. Move that folder away")
        is_behind = len(here) < len(there)
        names = [name for name, known in files.items() if _is_missing(folder / name, known if is_behind else None)]
        # With the ledger last, what is interrupted is fetched again.
        for name in sorted(names, key=lambda name: name == LEDGER):
            place.get(name, folder / name)
    print(f"{uri}: {len(names)} of {len(files)} files fetched into {folder}", flush=True)
    return folder


def _is_missing(path: Path, known: tuple[int, int | None] | None) -> bool:
    """Whether it is not there, or (where known: size, time of writing) is another."""
    if not path.is_file():
        return True
    return known is not None and known != (path.stat().st_size, int(path.stat().st_mtime))


def whole_ledger(folder: Path) -> bytes:
    """As far as its last whole line; nothing where there is none."""
    try:
        content = (folder / LEDGER).read_bytes()
    except FileNotFoundError:
        return b""
    return content[: content.rfind(b"\n") + 1]


def _files(folder: str | Path, head: str = "") -> Iterator[tuple[str, tuple[int, int]]]:
    """(name, (time of writing in ns, size)) of what is to be copied."""
    with contextlib.suppress(FileNotFoundError):  # not made yet, or replaced this moment
        for entry in os.scandir(folder):
            if _is_hidden(entry.name):
                continue
            if entry.is_dir():
                yield from _files(entry.path, f"{head}{entry.name}/")
            else:
                here = entry.stat()
                yield head + entry.name, (here.st_mtime_ns, here.st_size)


def _say_nothing(what: str) -> None:
    return None

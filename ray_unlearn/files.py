"""Files that appear whole or not at all, and patience with a disk that is full or away."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import time
import tomllib
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_unlearn.config import UserError

PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOENT, errno.EROFS, errno.ENOTCONN, errno.EAGAIN)
"""Errors that may pass: somebody frees the disk, or the share comes back."""
PATIENCE_SECONDS = 600.0
RETRY_SECONDS = 2.0


def write_file(path: Path, content: bytes) -> None:
    """The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # it would keep a full disk full
        raise


def give_usual_modes(folder: Path) -> None:
    """Let the folder's files have the mode of a new one: libraries write some through temporary files, which their
    owner alone can read."""
    probe = folder / f".mode-{os.getpid()}"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file() and stat.S_IMODE(file.stat().st_mode) != mode:
            file.chmod(mode)


def visible(paths: Iterable[Path], folder: Path) -> list[Path]:
    """Those of the paths, sorted, that are not hidden and lie in no hidden folder of `folder`: systems and tools leave
    files of their own beside others (macOS writes ._NAME for NAME)."""
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def crc32(content: bytes) -> str:
    """CRC-32 in 8 hexadecimal digits."""
    return f"{zlib.crc32(content):08x}"


def checksum(path: Path) -> str:
    """The same of a file."""
    crc = 0
    with path.open("rb") as file:
        while part := file.read(2**20):
            crc = zlib.crc32(part, crc)
    return f"{crc:08x}"


@dataclass
class Patience:
    """Tries again what fails because a disk is full or away, and says so once."""

    say: Callable[[str], None] = lambda what: None
    seconds: float = PATIENCE_SECONDS

    def persist(self, write: Callable[[], None], path: Path) -> None:
        """Run `write` until it succeeds. Raises its OSError where that would not pass, or has not in time."""
        deadline = time.monotonic() + self.seconds
        is_said = False
        while True:
            try:
                write()
            except OSError as error:
                if error.errno not in PASSING or time.monotonic() > deadline:
                    raise
                if not is_said:
                    minutes = f"{self.seconds / 60:g} min"
                    self.say(
                        f"{path}: cannot be written ({error.strerror}); trying again for {minutes}. Free some space"
                    )
                    is_said = True
                time.sleep(RETRY_SECONDS)
            else:
                if is_said:
                    self.say(f"{path}: written, the search goes on")
                return


CACHE_FORMAT = 2
"""Of what builds leave in the cache; another number makes everything anew."""


def cache_folder() -> Path:
    """Where built models are kept: RAY_UNLEARN_CACHE, else the user's cache folder."""
    if "RAY_UNLEARN_CACHE" in os.environ:
        return Path(os.environ["RAY_UNLEARN_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ray_unlearn"


def cached(key_parts: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
    """The cache's folder for these key parts, made once: two processes that want it at once make it once.

    `make` fills an empty folder, which appears under its final name only when it is whole.
    """
    from filelock import FileLock

    key = hashlib.sha256(json.dumps({"format": CACHE_FORMAT, **key_parts}, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / f"{key_parts.get('name', 'build')}-{key}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder


def in_uploaded_folder() -> bool:
    """Whether this is a Ray job in a working directory that was uploaded: it goes with Ray's session."""
    parts = Path.cwd().parts
    return "runtime_resources" in parts and "working_dir_files" in parts


def results_folder() -> Path:
    """Where results go unless something else is said: RAY_UNLEARN_OUT, else results/ here, or, where this folder will
    go with a job, ray_unlearn/results/ in the home folder."""
    if place := os.environ.get("RAY_UNLEARN_OUT"):
        return Path(place)
    return Path.home() / "ray_unlearn" / "results" if in_uploaded_folder() else Path("results")


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Give a search-space TOML file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        paths = " (a Windows path stands in single quotes)" if "escape" in str(error) or "hex" in str(error) else ""
        raise UserError(f"{path}: cannot be read as TOML ({error}). Correct the file{paths}") from None

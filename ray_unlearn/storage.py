"""Files that appear whole or not at all, and patience with a disk that is full or away."""

from __future__ import annotations

import errno
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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

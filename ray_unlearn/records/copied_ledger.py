"""A ledger that grows, at a place where files cannot be appended to: each byte is sent once, and once more at the end.

<search>/ledger.jsonl                   the ledger as it was when it was last sealed
<search>/ledger.parts/<offset>          what was appended since: whole lines, in files named by where they begin

At the end of a search the ledger is written whole and its parts are removed. Parts that a kill left beside a whole
ledger say nothing new.
"""

from __future__ import annotations

import contextlib
from io import BytesIO
from pathlib import Path

from ray_unlearn.records.bucket import Place
from ray_unlearn.records.ledger import LEDGER, parse_line

PARTS = "ledger.parts"
BY_TRIAL = ("trials", "curves")
"""Folders with a file a trial: the ledger names what is in them."""


class LedgerCopy:
    """One search's ledger in a folder and at a place. Methods raise whatever the place's file system does."""

    def __init__(self, folder: Path, place: Place, head: str = "") -> None:
        """head: where the search is within folder and place, with a slash at the end; the copied search itself: ""."""
        self._path, self._place, self._head = folder / head / LEDGER, place, head
        there = read_copied_ledger(place, head)
        self.is_continued = whole_ledger(self._path.parent).startswith(there)
        """Whether what is at the place is how this ledger begins."""
        self._sent = len(there) if self.is_continued else 0
        self._read = 0
        self._is_whole = self.is_continued and not _parts(place, head)

    @property
    def has_news(self) -> bool:
        return bool(self._from(self._sent))

    def is_due(self, is_last: bool) -> bool:
        """Whether `send`, or at the end `seal`, has anything to do."""
        return self.has_news or (is_last and not self._is_whole)

    def new_names(self) -> list[str]:
        """The files, a file a trial, that events name which were written since the last call; within the folder."""
        news = self._from(self._read)
        self._read += len(news)
        events = [event for line in news.splitlines() if (event := parse_line(line)) is not None]
        names = [name for event in events for name in event.get("files", {})]
        return [self._head + name for name in names if name.split("/")[0] in BY_TRIAL]

    def send(self) -> None:
        """Append to the copy what it lacks."""
        if not self._sent:
            self.seal()
        elif news := self._from(self._sent):
            self._place.put(f"{self._head}{PARTS}/{self._sent:015d}", BytesIO(news))
            self._is_whole = False
            self._sent += len(news)

    def seal(self) -> None:
        """Make the copy one whole file."""
        if self._is_whole and not self.has_news:
            return
        whole = self._from(0)
        self._place.put(self._head + LEDGER, BytesIO(whole))
        self._sent = len(whole)
        for name in _parts(self._place, self._head):
            self._place.remove(name)
        self._is_whole = True

    def _from(self, place: int) -> bytes:
        """From there to the end of the last whole line."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(place)
            content = file.read()
            return content[: content.rfind(b"\n") + 1]
        return b""


def read_copied_ledger(place: Place, head: str = "") -> bytes:
    """The whole of it, its parts joined; nothing where there is none."""
    content = place.read(head + LEDGER) or b""
    for name, size in sorted(_parts(place, head).items()):
        begins = int(name.rpartition("/")[2])
        if begins <= len(content) < begins + size:
            content += (place.read(name) or b"")[len(content) - begins :]
    return content


def is_ledger(name: str) -> bool:
    return name == LEDGER or name.endswith(f"/{LEDGER}")


def is_part(name: str) -> bool:
    return PARTS in name.split("/")


def _parts(place: Place, head: str) -> dict[str, int]:
    """Their sizes in bytes, by name."""
    return {f"{head}{PARTS}/{name}": size for name, (size, _) in place.listed(f"{head}{PARTS}").items()}


def whole_ledger(folder: Path) -> bytes:
    """As far as its last whole line; nothing where there is none."""
    try:
        content = (folder / LEDGER).read_bytes()
    except FileNotFoundError:
        return b""
    return content[: content.rfind(b"\n") + 1]

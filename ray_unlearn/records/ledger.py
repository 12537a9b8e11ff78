"""A search's ledger: what became of every trial, in one file that is only ever appended to. It is the truth that a
search goes on from; Tune's and Optuna's state are rebuilt from it, and nothing in it is ever unpickled.

ledger.jsonl has one event a line: the CRC-32 of the JSON text in 8 hexadecimal digits, a space, the JSON text. An event
is on the disk before anything is built on it. Events, in the order in which they happened:

    opened      a process began to write: format, version, at (time)
    suggested   trial (all settings, seed included), number (order of suggestion), settings_hash (SHA-256 of them)
    running     trial_id: Tune has handed it on
    judged      trial_id, rung, scores, goes_on: a verdict of the pruning
    retried     trial_id, failure: it starts anew, for this reason
    ended       trial_id, row (results.py's columns), points (rows of its line), curve, files
    described   meta: what search.json says from here on
    final       trial_id, row, files, has_model: a finalist scored on the held-out split
    written     files: they were missing, and were written again

`files` are the files of the folder that belong to an event, each with its CRC-32.

One process writes, and holds the lock of the folder: a second one is told who does. The system frees the lock when the
process ends, however it ends. A last line that is not whole is the event that a kill or a full disk cut off: it is
removed when the search goes on. A damaged line elsewhere is counted, and what it said is taken from the Parquet files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ray_unlearn import __version__
from ray_unlearn.config import UserError
from ray_unlearn.files import Patience, crc32, write_file

LEDGER = "ledger.jsonl"
LOCK, WRITER = ".lock", ".writer.json"
UNREADABLE = "cannot be read, no line of it is as it was written. Restore it from a copy"
FORMAT = 1
"""Raised when a reader of an older format could not go on with a search."""
Event = dict[str, Any]


@dataclass
class Life:
    """What the ledger knows of one trial."""

    number: int
    trial: dict[str, Any]
    """TrialConfig as plain data."""
    judged: dict[int, tuple[list[float], bool]] = field(default_factory=dict)
    """By rung: scores, and whether it went on."""
    row: dict[str, Any] | None = None
    """Its row of results, once it has ended."""
    points: list[dict[str, Any]] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class History:
    """A ledger, read."""

    events: list[Event]
    """In order."""
    damaged: list[int]
    """Numbers (from 1) of lines that cannot be read, the last one left out if it was cut off."""
    is_cut: bool
    """Whether the last line is not whole."""
    size: int
    """Bytes up to the end of the last whole line."""

    def lives(self) -> dict[str, Life]:
        """By trial_id, in the order of suggestion."""
        found: dict[str, Life] = {}
        for event in self.events:
            kind = event["event"]
            if kind == "suggested":
                found[event["trial"]["trial_id"]] = Life(event["number"], event["trial"])
            elif (life := found.get(event.get("trial_id", ""))) is None:
                continue
            elif kind == "judged":
                life.judged[event["rung"]] = event["scores"], event["goes_on"]
            elif kind == "ended":
                life.row, life.points, life.curve = event["row"], event["points"], event["curve"]
        return found

    @property
    def is_unreadable(self) -> bool:
        """Whether there is a ledger with no event in it that can be read."""
        return not self.events and (self.is_cut or bool(self.damaged))

    @property
    def meta(self) -> dict[str, Any] | None:
        """What search.json was last meant to say."""
        return next((event["meta"] for event in reversed(self.events) if event["event"] == "described"), None)

    def files(self) -> dict[str, str]:
        """CRC-32 of every file that an event names, by name; the latest holds."""
        found: dict[str, str] = {}
        for event in self.events:
            if event.get("has_model"):
                found = {name: crc for name, crc in found.items() if not name.startswith("model/")}
            found |= event.get("files", {})
        return found

    def finals(self) -> dict[str, Event]:
        """By trial_id, the latest `final` event."""
        return {event["trial_id"]: event for event in self.events if event["event"] == "final"}


class Ledger:
    """The one writer of a search's folder. A context: it holds the folder's lock."""

    def __init__(self, folder: Path, patience: Patience) -> None:
        self._path, self._writer, self._patience = folder / LEDGER, folder / WRITER, patience
        self._lock = FileLock(folder / LOCK)
        self._file = -1
        self._end = 0

    def __enter__(self) -> Ledger:
        """Take the lock. Raises UserError naming who has it."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            content = self._writer.read_bytes() if self._writer.exists() else None
            raise UserError(
                f"{self._path.parent}: {describe_writer(content)} is writing to it. Wait for that, or stop it"
            ) from None
        write_file(self._writer, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
        return self

    def __exit__(self, *error: object) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._writer.unlink(missing_ok=True)
        self._lock.release()

    def open(self) -> History:
        """What is there already, with a line that was cut off removed; from here on events can be appended.

        Raises UserError where the ledger is of another format.
        """
        history = read_ledger(self._path.parent)
        if history.damaged and history.is_unreadable:
            raise UserError(f"{self._path}: {UNREADABLE}")
        _check_format(self._path, history.events)
        self._file, self._end = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), history.size
        self.append("opened", format=FORMAT, version=__version__, at=datetime.now(UTC).isoformat(timespec="seconds"))
        return history

    def append(self, event: str, **values: Any) -> None:
        """One event, on the disk when this returns. Raises OSError where the disk stays full or away for long."""
        text = json.dumps({"event": event, **values}, separators=(",", ":"))
        line = f"{crc32(text.encode())} {text}\n".encode()

        def write() -> None:
            self._check_place()
            os.ftruncate(self._file, self._end)  # what an earlier attempt may have left
            os.write(self._file, line)
            os.fsync(self._file)

        self._patience.persist(write, self._path)
        self._end += len(line)

    def _check_place(self) -> None:
        """A share that went away and came back has the file under a new handle. Raises OSError while it is away."""
        here, opened = self._path.stat(), os.fstat(self._file)
        if (here.st_dev, here.st_ino) == (opened.st_dev, opened.st_ino):
            return
        if here.st_size < self._end:
            raise OSError(errno.ESTALE, "another file is in its place")
        os.close(self._file)
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND)


def settings_hash(trial: Mapping[str, Any]) -> str:
    """SHA-256 over all that decides a trial's outcome (its name does not), in hexadecimal."""
    settings = {name: value for name, value in trial.items() if name != "trial_id"}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def read_ledger(folder: Path) -> History:
    """What can be read of the folder's ledger; nothing where there is none.

    Line ends may have become CR LF on the way here (git's autocrlf). Raises UserError where the file cannot be opened.
    """
    path = folder / LEDGER
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Mend that, or restore it from a copy") from None
    events: list[Event] = []
    damaged: list[int] = []
    whole, _, rest = content.rpartition(b"\n")
    lines = whole.split(b"\n") if whole else []
    for number, line in enumerate(lines, 1):
        event = parse_line(line)
        if event is None:
            damaged.append(number)
        else:
            events.append(event)
    size = len(content) - len(rest)
    is_cut = bool(rest)
    if damaged and damaged[-1] == len(lines):  # a disk that was full may have left a last line of nothing
        size -= len(lines[-1]) + 1
        damaged.pop()
        is_cut = True
    return History(events, damaged, is_cut, size)


def parse_line(line: bytes) -> Event | None:
    """None where the line is not what was written."""
    try:
        line = line.removesuffix(b"\r")
        head, text = line[:9], line[9:]
        return dict(json.loads(text)) if head == f"{crc32(text)} ".encode() else None
    except (ValueError, TypeError):
        return None


def _check_format(path: Path, events: Iterable[Event]) -> None:
    for event in events:
        if event["event"] == "opened" and event["format"] != FORMAT:
            raise UserError(
                f"{path}: was written by ray_unlearn {event['version']} in format {event['format']}, and this is "
                f"{__version__} with format {FORMAT}. Go on with that version, or search anew"
            )


def describe_writer(content: bytes | None) -> str:
    """Who wrote a .writer.json with this content."""
    try:
        writer = json.loads(content or b"")
        return f"process {writer['pid']} on {writer['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"

"""A search's folder kept a second time, in a bucket, for machines whose disks vanish: `tune --copy-to s3://bucket/x`.

The search works in its local folder, which can lock, rename and sync. A thread of the driver looks there every few
seconds and copies what is new to <place>/<search>/: first what the ledger has gained, as far as its last whole line
(copied_ledger.py), then all other files, small ones first, logs at the end. A look costs what is new: files of trials
are known from the ledger's new lines and their folders are not listed, and what grows all the time (Optuna's view, the
trackers' files) is sent again when it has doubled. What is lost with the disk are the events since the last copy: no
trial whose row was copied runs again. Files that the copied ledger names and that had not been copied are written
again, or their finalists run again, when the search goes on.

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
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from io import BytesIO
from pathlib import Path
from uuid import uuid4

from ray_unlearn.config import UserError
from ray_unlearn.files import results_folder, write_file
from ray_unlearn.records.bucket import LOG, Place, _failures_named, _is_hidden, join, open_place, reason_of, split
from ray_unlearn.records.copied_ledger import (
    BY_TRIAL,
    LedgerCopy,
    is_ledger,
    is_part,
    read_copied_ledger,
    whole_ledger,
)
from ray_unlearn.records.ledger import LEDGER, WRITER, describe_writer

LOOK_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 60.0
"""Between two attempts while copying fails."""
LAST_SECONDS = 30.0
"""For how long the end of a search tries again what fails."""
BEAT_SECONDS, LEASE_SECONDS = 10.0, 30.0
GROWING = (".log", "log/")
"""How names end or begin of what grows all the time."""


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
        self._ledgers: dict[str, LedgerCopy] = {}
        """By their folder within this one, with a slash at the end: the search's own at "", repeats' elsewhere."""
        self._named: set[str] = set()
        """Files that a ledger has named and that have not been copied."""
        self._waiting: list[str] = []
        """What the last look found to be copied and has not copied."""
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
            self._ledgers[""] = LedgerCopy(self._folder, self._place)
            if not self._ledgers[""].is_continued:
                raise UserError(
                    f"{self.uri}: this search has gone on elsewhere. Go on with --resume '{self.uri}', or give another "
                    "--copy-to"
                )
            self._write_marker()
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
            print(
                f"ray_unlearn: {len(self._waiting)} file(s) are not at {self.uri} ({self._failure}). All are in "
                f"{self._folder}; `ray_unlearn tune --resume {self._folder}` copies them",
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
            self._failure = reason_of(error)
        else:
            self._failure = ""
        return not self._failure

    def _copy_new(self, is_last: bool) -> None:
        self._waiting = self._left(is_last)
        if not self._waiting or not self._holds_place():
            return
        while self._waiting:
            name = self._waiting[0]
            try:
                self._copy(name, is_last)
            except Exception:
                self._failed.add(name)  # the next time others come first
                raise
            self._failed.discard(name)
            del self._waiting[0]

    def _left(self, is_last: bool) -> list[str]:
        """Names of what has not been copied, in the order in which it should be."""
        listed = dict(_files(self._folder, with_trials=is_last))
        ledgers = ["", *sorted(name.removesuffix(LEDGER) for name in listed if is_ledger(name) and name != LEDGER)]
        for head in ledgers:
            self._named.update(self._ledger(head).new_names())
        here = listed | {name: place for name in self._named if (place := _stat(self._folder / name)) is not None}
        files = {name: place for name, place in here.items() if not is_ledger(name)}
        found = {name: place for name, place in files.items() if self._is_due(name, place, is_last)}
        self._named = {name for name in self._named if name in found or name not in here}  # it will be there soon
        names = sorted(found, key=lambda name: (name in self._failed, found[name][1]))
        return [*(head + LEDGER for head in ledgers if self._ledger(head).is_due(is_last)), *names]

    def _ledger(self, head: str) -> LedgerCopy:
        if head not in self._ledgers:
            self._ledgers[head] = LedgerCopy(self._folder, self._place, head)
        return self._ledgers[head]

    def _is_due(self, name: str, here: tuple[int, int], is_last: bool) -> bool:
        """Whether a file with this time of writing and size is to be sent now."""
        if not is_last and name.endswith(LOG):
            return False
        if not is_last and name in self._done and (name.startswith(GROWING) or name.endswith(GROWING)):
            return here[1] >= 2 * self._done[name][1]
        return self._done.get(name) != here

    def _copy(self, name: str, is_last: bool) -> None:
        if is_ledger(name):
            ledger = self._ledger(name.removesuffix(LEDGER))
            ledger.seal() if is_last else ledger.send()
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


def fetch_search(uri: str, into: Path | None = None) -> Path:
    """The local folder of a search that is at a place, with all that the place has of it.

    Where the folder is there and is as far as the place, or farther, only missing files are fetched. Raises UserError
    where the place cannot be read or holds no search, or where the folder's search went on differently.
    """
    place = open_place(uri)
    folder = (into or results_folder()) / split(uri)[1]
    with _failures_named(uri, "cannot be read"):
        files = {name: known for name, known in place.listed().items() if not is_part(name)}
        if not files.keys() & {LEDGER, "search.json"}:
            raise UserError(f"{uri}: holds no search. Give the place that `tune` printed")
        there = {name: read_copied_ledger(place, name.removesuffix(LEDGER)) for name in files if is_ledger(name)}
        whole, here = there.get(LEDGER, b""), whole_ledger(folder)
        if not whole.startswith(here) and not here.startswith(whole):
            raise UserError(f"{uri}: is not the search in {folder}, or went on differently. Move that folder away")
        is_behind = len(here) < len(whole)
        behind = [name for name in there if len(whole_ledger((folder / name).parent)) < len(there[name])]
        names = [
            name for name in files.keys() - there if _is_missing(folder / name, files[name] if is_behind else None)
        ]
        for name in sorted(names):
            place.get(name, folder / name)
        # With the ledger last, what is interrupted is fetched again.
        for name in sorted(behind, key=lambda name: name == LEDGER):
            write_file(folder / name, there[name])
        names += behind
    print(f"{uri}: {len(names)} of {len(files)} files fetched into {folder}", flush=True)
    return folder


def _is_missing(path: Path, known: tuple[int, int | None] | None) -> bool:
    """Whether it is not there, or (where known: size, time of writing) is another."""
    if not path.is_file():
        return True
    return known is not None and known != (path.stat().st_size, int(path.stat().st_mtime))


def _files(folder: str | Path, with_trials: bool, head: str = "") -> Iterator[tuple[str, tuple[int, int]]]:
    """(name, (time of writing in ns, size)) of what is to be copied; with_trials: also in folders of a file a trial."""
    with contextlib.suppress(FileNotFoundError):  # not made yet, or replaced this moment
        for entry in os.scandir(folder):
            if _is_hidden(entry.name):
                continue
            if not entry.is_dir():
                here = entry.stat()
                yield head + entry.name, (here.st_mtime_ns, here.st_size)
            elif with_trials or entry.name not in BY_TRIAL:
                yield from _files(entry.path, with_trials, f"{head}{entry.name}/")


def _stat(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(FileNotFoundError):
        here = path.stat()
        return here.st_mtime_ns, here.st_size
    return None


def _say_nothing(what: str) -> None:
    return None

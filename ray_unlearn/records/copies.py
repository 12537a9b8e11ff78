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
from ray_unlearn.files import results_folder
from ray_unlearn.records.bucket import LOG, Place, _failures_named, _is_hidden, join, open_place, reason_of, split
from ray_unlearn.records.ledger import LEDGER, WRITER, describe_writer

LOOK_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 60.0
"""Between two attempts while copying fails."""
LAST_SECONDS = 30.0
"""For how long the end of a search tries again what fails."""
BEAT_SECONDS, LEASE_SECONDS = 10.0, 30.0


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
            self._failure = reason_of(error)
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


def fetch_search(uri: str, into: Path | None = None) -> Path:
    """The local folder of a search that is at a place, with all that the place has of it.

    Where the folder is there and is as far as the place, or farther, only missing files are fetched. Raises UserError
    where the place cannot be read or holds no search, or where the folder's search went on differently.
    """
    place = open_place(uri)
    folder = (into or results_folder()) / split(uri)[1]
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

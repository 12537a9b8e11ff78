"""How a model gets from the gang that trained it to the folder that the driver named, and the proof that it is there.

The gangs write into that folder, so that every node must see it: rank 0 of every gang looks for a token file beside it
before anything is computed. With `through_driver` they write on a disk of their own, and the files go through Ray's
object store to the driver's node.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from ray_unlearn.files import cache_folder
from ray_unlearn.models.fingerprints import weight_files, weights_digest
from ray_unlearn.training.outcome import Failed, Outcome, Report
from ray_unlearn.training.trial import Job
from ray_unlearn.wording import first_line

SEE_SECONDS = 10.0
"""How long a new file may take to be seen on another node: shares keep lists of files for a while."""
PIECE_BYTES = 64 * 2**20
"""Of a file at a time."""
NOT_SAVED = "not_saved"
"""The kind of failure: the model was trained and is not where it was to be."""


@dataclass(frozen=True)
class Token:
    """A file that the driver has written."""

    path: str
    content: str

    @property
    def folder(self) -> str:
        return str(Path(self.path).parent)


@contextlib.contextmanager
def placed_tokens(folders: Sequence[Path]) -> Iterator[tuple[Token, ...]]:
    """One in each folder, as long as the block lasts."""
    tokens = []
    for folder in folders:
        name = uuid.uuid4().hex
        token = Token(str(folder.absolute() / f".seen-{name}"), name)
        folder.mkdir(parents=True, exist_ok=True)
        Path(token.path).write_text(token.content)
        tokens.append(token)
    try:
        yield tuple(tokens)
    finally:
        for token in tokens:
            with contextlib.suppress(OSError):
                Path(token.path).unlink()


def find_unseen(tokens: Sequence[Token], seconds: float = SEE_SECONDS) -> list[str]:
    """The folders whose token is not seen here within that time."""
    deadline = time.monotonic() + seconds
    while True:
        unseen = [token.folder for token in tokens if not _is_seen(token)]
        if not unseen or time.monotonic() > deadline:
            return unseen
        time.sleep(0.2)


def _is_seen(token: Token) -> bool:
    with contextlib.suppress(OSError):
        os.listdir(token.folder)  # lets a share look again
        return Path(token.path).read_text() == token.content
    return False


def describe_unseen(node: str, folders: Sequence[str]) -> str:
    return (
        f"node {node} does not see {', '.join(folders)}, where the model is to be saved. Give --out on a disk that all "
        "nodes share, or --through-driver, which sends the model to this machine"
    )


# ---- through the driver


@contextlib.contextmanager
def own_disk(job: Job, sends: bool) -> Iterator[Job]:
    """The job; where it sends its model, with a folder of this node's in the driver's place, removed afterwards."""
    if not sends:
        yield job
        return
    cache_folder().mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=cache_folder(), prefix="saved-"))
    try:
        yield replace(job, save_to=str(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def send_folder(folder: Path, send: Callable[[str, int, bytes], None]) -> None:
    """Give every file to `send` in pieces: (name, place of the piece, content)."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            further = iter(partial(file.read, PIECE_BYTES), b"")
            for number, piece in enumerate(chain([file.read(PIECE_BYTES)], further)):  # an empty file is a piece, too
                send(path.relative_to(folder).as_posix(), number * PIECE_BYTES, piece)


def write_piece(folder: Path, name: str, place: int, piece: bytes) -> None:
    """Put a piece where it belongs; the first one begins the file anew. Raises ValueError for a name outside."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{name} lies outside of {folder}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if place else "wb") as file:
        file.seek(place)
        file.write(piece)


# ---- the proof


def why_not_saved(folder: Path, digest: str) -> str:
    """What a saved model lacks, as a sentence; empty where every tensor is there and as the worker wrote it."""
    if not folder.is_dir() or not any(path.is_file() for path in weight_files(folder)):
        return f"{folder} holds no weights, though a worker has saved them: its node writes that path elsewhere"
    try:
        found = weights_digest(folder)
    except Exception as error:  # a shard is missing, or is no safetensors file
        return f"{folder} does not hold all weights ({first_line(error)})"
    return "" if found == digest else f"{folder} holds other weights than the worker has saved"


def checked(job: Job, outcome: Outcome) -> Outcome:
    """The outcome, failed where the model is not where the job was to save it."""
    if job.save_to is None or not isinstance(outcome, Report):
        return outcome
    lack = why_not_saved(Path(job.save_to), outcome.saved)
    if not lack:
        return outcome
    return Failed(f"{lack}. Give --out on a disk that all nodes share, or --through-driver", NOT_SAVED)

"""The starting model's log-probs of answers: computed once, kept in Parquet, found again by content.

They depend on the weights, the token ids, the precision and how the tokens are packed, and on nothing that a
search varies; so all trials, gangs and later searches share one file. One row a sequence: `logprobs`,
list<float>, natural log, one an answer token.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist

from ray_unlearn.config import GangConfig
from ray_unlearn.models.fingerprints import weights_fingerprint
from ray_unlearn.models.sequences import Sequences
from ray_unlearn.training.alternates import build_alternates
from ray_unlearn.training.losses import FORGET, Method
from ray_unlearn.training.rank import Rank

SCHEMA = pa.schema([("logprobs", pa.list_(pa.float32()))])


def reference_key(model: str, sequences: Sequences, gang: GangConfig) -> str:
    """SHA-256 over weights, tokens, precision and packing, in hexadecimal."""
    digest = hashlib.sha256()
    layout = [gang.precision, gang.max_tokens, gang.row_length, gang.num_workers]
    digest.update(json.dumps([weights_fingerprint(model), *layout]).encode())
    for array in (sequences.tokens, sequences.offsets, sequences.answer_starts):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def read_reference(folder: Path, key: str, sequences: Sequences) -> np.ndarray | None:
    """The log-probs, fp32 [sum of answer lengths]; None where there are none, or the file is damaged."""
    try:
        table = pq.ParquetFile(folder / f"{key}.parquet", page_checksum_verification=True).read()
    except (OSError, pa.ArrowException):
        return None
    values = table.column("logprobs").combine_chunks()
    lengths = np.diff(values.offsets.to_numpy())
    if not np.array_equal(lengths, sequences.answer_lengths):
        return None
    return values.flatten().to_numpy().astype(np.float32)


def write_reference(folder: Path, key: str, sequences: Sequences, logprobs: np.ndarray) -> None:
    """Keep them; a file that is there already is replaced by the same content."""
    folder.mkdir(parents=True, exist_ok=True)
    offsets = np.concatenate([[0], np.cumsum(sequences.answer_lengths)]).astype(np.int32)
    rows = pa.ListArray.from_arrays(pa.array(offsets), pa.array(logprobs.astype(np.float32)))
    temporary = folder / f".{key}.{os.getpid()}.tmp"
    pq.write_table(pa.Table.from_arrays([rows], schema=SCHEMA), temporary, write_page_checksum=True)
    temporary.replace(folder / f"{key}.parquet")


class References:
    """The sets that methods learn from, and their log-probs under the starting model: each built once a gang."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._sets: dict[tuple[str, ...], list[Sequences]] = {}
        self._known: dict[tuple[tuple[str, ...], int], np.ndarray] = {}

    def add_set(self, part: str, sequences: Sequences) -> None:
        """A forget set of another name, for `learn`; one that is there already stays."""
        self._sets.setdefault((FORGET, part), [sequences])

    def variants(self, name: str, method: Method, learn: tuple[str, ...]) -> list[Sequences]:
        """The forget set alone, or the alternates to it; built once."""
        key = self._set_key(name, method, learn)
        if key not in self._sets:
            forget = Sequences.concatenate([getattr(self._rank.task, part) for part in learn])
            self._sets[key] = (
                [forget]
                if name == FORGET
                else build_alternates(method.alternates, forget, self._rank.tokenizer, self._rank.task.refusals)
            )
        return self._sets[key]

    def prepare(self, method: Method, learn: tuple[str, ...] = (FORGET,)) -> None:
        """Have the log-probs of the method's sets under the starting model: from memory, from disk, or computed.

        Must be called at the starting weights. No reference model stays in memory.
        """
        for name in method.sets:
            for i, sequences in enumerate(self.variants(name, method, learn)):
                key = self._set_key(name, method, learn), i
                if key not in self._known:
                    self._known[key] = self._find_reference(sequences)

    def _find_reference(self, sequences: Sequences) -> np.ndarray:
        """The first worker reads or writes the file; all of them end with the same array."""
        if not self._rank.gang.reference_folder:
            return self._rank.token_logprobs(sequences)
        folder = Path(self._rank.gang.reference_folder)
        box: list[Any] = [None, None]
        if self._rank.number == 0:
            gang = replace(self._rank.gang, max_tokens=self._rank.max_tokens)  # a halving changes the packing
            key = reference_key(self._rank.task.model, sequences, gang)
            box = [key, read_reference(folder, key, sequences)]
        dist.broadcast_object_list(box, src=0)
        if box[1] is not None:
            return np.array(box[1])
        logprobs = self._rank.token_logprobs(sequences)
        if self._rank.number == 0:
            write_reference(folder, box[0], sequences, logprobs)
        return logprobs

    @staticmethod
    def _set_key(name: str, method: Method, learn: tuple[str, ...]) -> tuple[str, ...]:
        return (name if name == FORGET else method.alternates, *learn)

    def pick(self, method: Method, learn: tuple[str, ...], picked: dict[str, int]) -> dict[str, list[np.ndarray]]:
        """By set name, the reference log-probs of each sequence; empty where the method needs none."""
        if not method.needs_reference:
            return {}
        result = {}
        for name in method.sets:
            key = self._set_key(name, method, learn), picked[name]
            if key not in self._known:
                raise RuntimeError("the reference must be prepared at the starting weights, before the first step")
            sequences = self.variants(name, method, learn)[picked[name]]
            result[name] = np.split(self._known[key], np.cumsum(sequences.answer_lengths)[:-1])
        return result

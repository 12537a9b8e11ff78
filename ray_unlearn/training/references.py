"""The starting model's log-probs of answers: computed once, kept in Parquet, found again by content.

They depend on the weights, the token ids, the precision and how the tokens are packed, and on nothing that a
search varies; so all trials, gangs and later searches share one file. One row a sequence: `logprobs`,
list<float>, natural log, one an answer token.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_unlearn.config import GangConfig
from ray_unlearn.models.fingerprints import weights_fingerprint
from ray_unlearn.models.sequences import Sequences

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

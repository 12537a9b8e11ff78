"""The starting model's log-probs of answers: computed once, kept in Parquet, found again by content.

They depend on the weights, the token ids, the precision and how the tokens are packed, and on nothing that a
search varies; so all trials, gangs and later searches share one file. One row a sequence: `logprobs`,
list<float>, natural log, one an answer token.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_unlearn.config import GangConfig
from ray_unlearn.data import Sequences

SCHEMA = pa.schema([("logprobs", pa.list_(pa.float32()))])


def reference_key(model: str, sequences: Sequences, gang: GangConfig) -> str:
    """SHA-256 over weights, tokens, precision and packing, in hexadecimal."""
    digest = hashlib.sha256()
    layout = [gang.precision, gang.max_tokens, gang.row_length, gang.num_workers]
    digest.update(json.dumps([weights_fingerprint(model), *layout]).encode())
    for array in (sequences.tokens, sequences.offsets, sequences.answer_starts):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@lru_cache(maxsize=4)
def weights_fingerprint(model: str) -> str:
    """Changes with the weights: over the files' content; the hub's cache already names its files by it."""
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(model, allow_patterns=["*.safetensors", "*.json"]))
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        blob = file.resolve().name
        is_digest = len(blob) == 64 and all(c in "0123456789abcdef" for c in blob)
        digest.update((blob if is_digest else _file_digest(file)).encode())
    return digest.hexdigest()


def _file_digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


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

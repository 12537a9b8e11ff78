"""A fingerprint of a task's data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping

import numpy as np

from ray_unlearn.benchmarks.contract import Split, Task
from ray_unlearn.models.sequences import Sequences


def data_fingerprint(task: Task) -> str:
    """SHA-256 over everything that is trained on or scored, as token arrays, in hexadecimal."""
    digest = hashlib.sha256()
    for name, sequences in _sequences(task):
        digest.update(name.encode())
        for array in (sequences.tokens, sequences.offsets, sequences.answer_starts):
            digest.update(np.ascontiguousarray(array).data)
    for split in (task.selection, task.report):
        prompts = {name: [list(map(int, p)) for p in g.prompts] for name, g in sorted(split.generations.items())}
        references = {name: g.references for name, g in split.generations.items()}
        digest.update(json.dumps([prompts, references], sort_keys=True).encode())
    return digest.hexdigest()


def _sequences(task: Task) -> Iterator[tuple[str, Sequences]]:
    yield "forget", task.forget
    yield "retain", task.retain
    splits: Mapping[str, Split] = {"selection": task.selection, "report": task.report}
    for where, split in splits.items():
        for name, probe in sorted({**split.probes, **split.final_probes}.items()):
            yield f"{where}/{name}", probe.sequences

"""What a search leaves behind: the one writer and the one reader.

    results/<search>/
        search.json     the resolved configuration, spaces, versions, starting and retrained model's metrics
        trials/benchmark=<b>/method=<m>/<trial_id>.parquet     one row: settings, scores, seconds
        curves/benchmark=<b>/method=<m>/<trial_id>.parquet     one row an evaluation point
        finals/<trial_id>.parquet    the best trial of each method, run again, on the held-out report split
        examples/<trial_id>.parquet  what a finalist (or "start") answers: set, example, num_tokens, prompt, reference,
                        answer (null where nothing was generated), probability, exact_memorisation
        weights/<trial_id>.parquet   how a finalist spread its forgetting: epoch, example, num_tokens, start_nll (at
                        the starting model, nats a token), weight (share of the epoch's gradient weight)
        comparison.json, compare/    finalists over several seeds, see compare.py
        local.json      where model and data are on this machine, see again.py; no report reads it
        model/          the chosen model, as `transformers` loads it
        comparison.json the finalists over several seeds, with statistics, where they have been compared
        report/         pages and pictures
        optuna.log      the trials as Optuna's studies, see studies.py; nothing reads it back
        log/            what --log-to wrote, see trackers.py
        log.txt         what Ray and DeepSpeed had to say

Trial columns: trial_id, number (order of suggestion), benchmark, method, scale, status (completed, pruned,
failed; interpolated: no trial, but a point on the line from the starting model to that trial's, at `alpha`),
error, every setting and every method parameter under its own name (null where the method has no such
parameter), alpha (1 for a trial's own model), objective, forget, utility, epoch (of the evaluation point that
counts), epochs_run (epochs really trained: fewer than `epochs` for a pruned trial), seed, wall_seconds
(suggestion to result), train_seconds, evaluate_seconds, device_seconds (wall_seconds times workers),
peak_memory_bytes, and one column `<benchmark>/<metric>` a metric. All files of a search have one schema, and
benchmark and method are columns too, so that any Parquet reader opens the folder with no options.
Files are written under a temporary name and renamed; nothing written is ever rewritten.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_unlearn.config import UserError

COMPLETED, PRUNED, FAILED = "completed", "pruned", "failed"
INTERPOLATED = "interpolated"
"""No trial: a point on the line from the starting model to a completed trial's."""
CANDIDATES = (COMPLETED, INTERPOLATED)
"""What can be on the front and be chosen."""

_TEXT, _INTEGER, _NUMBER = pa.string(), pa.int64(), pa.float64()
_HEAD = {
    "trial_id": _TEXT,
    "number": _INTEGER,
    "benchmark": _TEXT,
    "method": _TEXT,
    "scale": _TEXT,
    "status": _TEXT,
    "error": _TEXT,
}
_SETTINGS = {
    "retain_weight": _NUMBER,
    "learning_rate": _NUMBER,
    "epochs": _INTEGER,
    "batch_size": _INTEGER,
    "warmup_fraction": _NUMBER,
    "schedule": _TEXT,
    "weight_decay": _NUMBER,
    "max_grad_norm": _NUMBER,
    "retain_loss": _TEXT,
    "hidden_layer": _INTEGER,
    "train_layers": _INTEGER,
    "evaluations": _INTEGER,
}
_PLACE = {"alpha": _NUMBER}
_SCORES = {"objective": _NUMBER, "forget": _NUMBER, "utility": _NUMBER, "epoch": _NUMBER}
_COSTS = {
    "seed": _INTEGER,
    "epochs_run": _INTEGER,
    "wall_seconds": _NUMBER,
    "train_seconds": _NUMBER,
    "evaluate_seconds": _NUMBER,
    "device_seconds": _NUMBER,
    "peak_memory_bytes": _INTEGER,
}


def trial_schema(benchmark: str, parameters: Iterable[str], metrics: Iterable[str]) -> pa.Schema:
    """One schema for all trials of a search: the union of its methods' parameters, then the metrics."""
    columns = {**_HEAD, **_SETTINGS, **dict.fromkeys(parameters, _NUMBER), **_PLACE, **_SCORES, **_COSTS}
    columns |= {f"{benchmark}/{metric}": _NUMBER for metric in metrics}
    return pa.schema(list(columns.items()))


TRAJECTORY_SCHEMA = pa.schema(
    [
        ("experiment", _TEXT),
        ("method", _TEXT),
        ("seed", _INTEGER),
        ("step", _INTEGER),
        ("metric", _TEXT),
        ("value", _NUMBER),
    ]
)
"""A reproduction's trajectories.parquet: one row a metric and point."""


def curve_schema(benchmark: str, metrics: Iterable[str]) -> pa.Schema:
    columns = {
        "trial_id": _TEXT,
        "benchmark": _TEXT,
        "method": _TEXT,
        "step": _INTEGER,
        **_SCORES,
    }
    columns |= {"forget_loss": _NUMBER, "retain_loss": _NUMBER}
    columns |= {f"{benchmark}/{metric}": _NUMBER for metric in metrics}
    return pa.schema(list(columns.items()))


EXAMPLE_SCHEMA = pa.schema(
    list(
        {
            "trial_id": _TEXT,
            "split": _TEXT,
            "set": _TEXT,
            "example": _INTEGER,
            "num_tokens": _INTEGER,
            "prompt": _TEXT,
            "reference": _TEXT,
            "answer": _TEXT,
            "probability": _NUMBER,
            "exact_memorisation": _NUMBER,
        }.items()
    )
)
WEIGHT_SCHEMA = pa.schema(
    list(
        {
            "trial_id": _TEXT,
            "epoch": _INTEGER,
            "example": _INTEGER,
            "num_tokens": _INTEGER,
            "start_nll": _NUMBER,
            "weight": _NUMBER,
        }.items()
    )
)


class Writer:
    """Writes one search's folder. Every file appears whole or not at all."""

    def __init__(self, folder: Path, trials: pa.Schema, curves: pa.Schema) -> None:
        self.folder = folder
        self._trials, self._curves = trials, curves

    @classmethod
    def create(cls, folder: Path, trials: pa.Schema, curves: pa.Schema) -> Writer:
        """Raises UserError where the folder cannot be made or is taken."""
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise UserError(f"{folder}: is there already. Give another --out, or remove it") from None
        except OSError as error:
            raise UserError(
                f"--out {folder.parent}: cannot be written ({error.strerror}). Give another --out"
            ) from None
        return cls(folder, trials, curves)

    def write_search(self, meta: Mapping[str, Any]) -> None:
        write_json(self.folder / "search.json", meta)

    def write_trial(self, row: Mapping[str, Any], curve: list[Mapping[str, Any]]) -> None:
        place = Path(f"benchmark={row['benchmark']}") / f"method={row['method']}" / f"{row['trial_id']}.parquet"
        if curve:
            write_table(self.folder / "curves" / place, self._curves, curve)
        write_table(self.folder / "trials" / place, self._trials, [row])

    def write_final(self, row: Mapping[str, Any]) -> None:
        write_table(self.folder / "finals" / f"{row['trial_id']}.parquet", self._trials, [row])

    def write_examples(self, trial_id: str, split: str, examples: Sequence[Mapping[str, Any]]) -> None:
        rows = [{"trial_id": trial_id, "split": split, **example} for example in examples]
        write_table(self.folder / "examples" / f"{trial_id}.parquet", EXAMPLE_SCHEMA, rows)

    def write_weights(
        self, trial_id: str, weights: Sequence[Sequence[float]], num_tokens: Sequence[int], start_nll: Sequence[float]
    ) -> None:
        """weights: [epochs][forget sequences], any scale; an epoch in which nothing was learnt is left out."""
        rows = [
            {
                "trial_id": trial_id,
                "epoch": epoch,
                "example": example,
                "num_tokens": num_tokens[example],
                "start_nll": start_nll[example],
                "weight": weight / sum(epoch_weights),
            }
            for epoch, epoch_weights in enumerate(weights, start=1)
            if sum(epoch_weights) > 0
            for example, weight in enumerate(epoch_weights)
        ]
        write_table(self.folder / "weights" / f"{trial_id}.parquet", WEIGHT_SCHEMA, rows)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_file(path, json.dumps(values, indent=2, sort_keys=True).encode())


def write_table(path: Path, schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> None:
    """One checksummed Parquet file, whole or not at all. Raises ValueError on columns outside the schema."""
    unknown = {key for row in rows for key in row} - set(schema.names)
    if unknown:
        raise ValueError(f"{path.name}: columns outside the schema: {sorted(unknown)}")
    table = pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema)
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, write_page_checksum=True)
    write_file(path, buffer.getvalue().to_pybytes())


def write_file(path: Path, content: bytes) -> None:
    """The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_table(path: Path) -> list[dict[str, Any]]:
    """Its rows. Raises ArrowException or OSError where the file is damaged."""
    return pq.ParquetFile(path, page_checksum_verification=True).read().to_pylist()


@dataclass(frozen=True)
class SearchResults:
    """One search's folder, read: plain rows, and the files that could not be read, by name."""

    folder: Path
    meta: dict[str, Any]
    trials: list[dict[str, Any]]
    curves: list[dict[str, Any]]
    finals: list[dict[str, Any]]
    damaged: list[str] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, pa.Table] = field(default_factory=dict)
    """By trial; as tables, because they have a row an example and epoch."""
    comparison: dict[str, Any] | None = None


def read_search(folder: Path) -> SearchResults:
    """Raises UserError where the folder holds no search."""
    try:
        meta = json.loads((folder / "search.json").read_text())
    except FileNotFoundError:
        raise UserError(f"{folder}: holds no search (no search.json). Give the folder that `tune` printed") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{folder / 'search.json'}: cannot be read ({error}). Restore it from a copy") from None
    damaged: list[str] = []

    def tables(name: str, schema: pa.Schema | None = None) -> Iterator[tuple[Path, pa.Table]]:
        for path in sorted((folder / name).rglob("*.parquet")):
            try:
                # One file at a time: a damaged one must not take the others with it. Threads cost these small
                # files half as much again as reading them.
                table = pq.ParquetFile(path, page_checksum_verification=True).read(use_threads=False)
                yield path, table if schema is None else table.select(schema.names).cast(schema)
            except (pa.ArrowException, OSError, KeyError, ValueError):
                damaged.append(str(path.relative_to(folder)))

    def rows(name: str, schema: pa.Schema | None = None) -> list[dict[str, Any]]:
        return [row for _, table in tables(name, schema) for row in table.to_pylist()]

    trials = sorted(rows("trials"), key=lambda row: row["number"])
    curves, finals, examples = rows("curves"), rows("finals"), rows("examples", EXAMPLE_SCHEMA)
    weights = {path.stem: table for path, table in tables("weights", WEIGHT_SCHEMA)}
    comparison = None
    try:
        comparison = dict(json.loads((folder / "comparison.json").read_text()))
    except FileNotFoundError:
        pass
    except (TypeError, ValueError, OSError):
        damaged.append("comparison.json")
    return SearchResults(folder, meta, trials, curves, finals, damaged, examples, weights, comparison)


@dataclass(frozen=True)
class Reproduction:
    """One reproduction's folder, read."""

    folder: Path
    meta: dict[str, Any]
    """reproduce.json: what was run, the verdicts, what they were computed from."""
    rows: list[dict[str, Any]]
    """trajectories.parquet."""


REPRODUCTION = "reproduce.json"


def read_reproduction(folder: Path) -> Reproduction:
    """Raises UserError where the folder holds no whole reproduction."""
    try:
        meta = json.loads((folder / REPRODUCTION).read_text())
        return Reproduction(folder, meta, read_table(folder / "trajectories.parquet"))
    except (ValueError, OSError, pa.ArrowException) as error:
        raise UserError(f"{folder}: holds no whole reproduction ({error}). Run it again") from None

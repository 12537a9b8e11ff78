"""What a search leaves behind: the one writer and the one reader.

    results/<search>/
        ledger.jsonl    every event of every trial's life, checksummed, see ledger.py: the truth; the files below can
                        be made again from it
        search.json     the resolved configuration, spaces, versions, starting and retrained model's metrics
        trials/<benchmark>/<method>/<trial_id>.parquet     one row: settings, scores, seconds
        curves/<benchmark>/<method>/<trial_id>.parquet     one row an evaluation point
        finals/<trial_id>.parquet    the best trial of each method, run again, on the held-out report split
        examples/<trial_id>.parquet  what a finalist (or "start") answers: set, example, num_tokens, prompt, reference,
                        answer (null where nothing was generated), probability, exact_memorisation
        weights/<trial_id>.parquet   how a finalist spread its forgetting: epoch, example, num_tokens, start_nll (at
                        the starting model, nats a token), weight (share of the epoch's gradient weight)
        comparison.json, compare/    finalists over several seeds, see compare.py
        local.json      where model and data are on this machine, see again.py; no report reads it
        model/          the chosen model, as `transformers` loads it
        comparison.json the finalists over several seeds, with statistics, where they have been compared
        report/         pages, pictures, and all trials, curves and finals as one table each, see report/whole.py
        optuna.log      the trials as Optuna's studies, see studies.py; nothing reads it back
        log/            what --log-to wrote, see trackers.py
        log.txt         what Ray and DeepSpeed had to say

Trial columns: trial_id, number (order of suggestion), benchmark, method, scale, status (completed, pruned,
failed; interpolated: no trial, but a point on the line from the starting model to that trial's, at `alpha`),
error, failure (why it failed: a kind of failures.py), retries (how often it was begun anew, for whatever reason),
every setting and every method parameter under its own name (null where the method has no such
parameter), alpha (1 for a trial's own model), objective, forget, utility, epoch (of the evaluation point that
counts), epochs_run (epochs really trained: fewer than `epochs` for a pruned trial), seed, wall_seconds
(suggestion to result), train_seconds, evaluate_seconds, device_seconds (training and evaluation times workers),
peak_memory_bytes, and one column `<benchmark>/<metric>` a metric. All files of a search have one schema, with
benchmark and method as columns, so that any Parquet reader opens the folder with no options; folders named
`benchmark=<b>` would be taken for those columns once more (searches that older versions began have them).
Files are written under a temporary name and renamed; nothing written is ever rewritten.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_unlearn.config import UserError
from ray_unlearn.files import Patience, crc32, visible, write_file
from ray_unlearn.records.ledger import LEDGER, History, read_ledger

CHECKSUM = "checksum"
Row = dict[str, Any]
_TEXT, _INTEGER, _NUMBER = pa.string(), pa.int64(), pa.float64()
# The columns of a row of results but for a method's own parameters and a benchmark's metrics, with their types.
HEAD = {
    "trial_id": _TEXT,
    "number": _INTEGER,
    "benchmark": _TEXT,
    "method": _TEXT,
    "scale": _TEXT,
    "status": _TEXT,
    "error": _TEXT,
    "failure": _TEXT,
    "retries": _INTEGER,
}
SETTINGS = {
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
PLACE = {"alpha": _NUMBER}
SCORES = {"objective": _NUMBER, "forget": _NUMBER, "utility": _NUMBER, "epoch": _NUMBER}
COSTS = {
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
    columns = [*HEAD, *SETTINGS, *parameters, *PLACE, *SCORES, *COSTS]
    return schema_of("trials", [*columns, *(f"{benchmark}/{metric}" for metric in metrics)])


def schema_of(table: str, columns: Iterable[str]) -> pa.Schema:
    """That of "trials" or "curves" with these columns, in their order."""
    known = {**HEAD, **SETTINGS, **PLACE, **SCORES, **COSTS}
    if table == "curves":
        known |= {"step": _INTEGER, "retain_loss": _NUMBER}
    return pa.schema([(name, known.get(name, _NUMBER)) for name in dict.fromkeys(columns)])


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
    columns = ["trial_id", "benchmark", "method", "step", *SCORES, "forget_loss", "retain_loss"]
    return schema_of("curves", [*columns, *(f"{benchmark}/{metric}" for metric in metrics)])


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

    def __init__(self, folder: Path, trials: pa.Schema, curves: pa.Schema, patience: Patience | None = None) -> None:
        self.folder = folder
        self._trials, self._curves, self._patience = trials, curves, patience or Patience()
        self._place = partial(trial_place, is_old=any((folder / "trials").glob("benchmark=*")))

    def write_search(self, meta: Mapping[str, Any]) -> None:
        path = self.folder / "search.json"
        self._patience.persist(lambda: write_json(path, meta), path)

    def as_written(self, row: Mapping[str, Any], curve: Sequence[Mapping[str, Any]] = ()) -> tuple[Row, list[Row]]:
        """A trial's row and its curve as they will be read: every column, in its type. Raises ValueError on columns
        outside the schema."""
        return _table(self._trials, [row]).to_pylist()[0], _table(self._curves, curve).to_pylist()

    def trial_files(self, row: Row, curve: Sequence[Row], points: Sequence[Row]) -> dict[str, bytes]:
        """What is to be written of a trial that has ended and of the points on its line, by name."""
        files = {f"curves/{self._place(row)}": render_table(self._curves, curve)} if curve else {}
        return files | {f"trials/{self._place(each)}": render_table(self._trials, [each]) for each in (row, *points)}

    def has_trial(self, row: Mapping[str, Any]) -> bool:
        return (self.folder / "trials" / self._place(row)).is_file()

    def write_files(self, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            path = self.folder / name
            self._patience.persist(partial(write_file, path, content), path)

    def write_final(self, row: Mapping[str, Any]) -> str:
        return self._write(f"finals/{row['trial_id']}.parquet", self._trials, [row])

    def write_examples(self, trial_id: str, split: str, examples: Sequence[Mapping[str, Any]]) -> str:
        rows = [{"trial_id": trial_id, "split": split, **example} for example in examples]
        return self._write(f"examples/{trial_id}.parquet", EXAMPLE_SCHEMA, rows)

    def write_weights(
        self, trial_id: str, weights: Sequence[Sequence[float]], num_tokens: Sequence[int], start_nll: Sequence[float]
    ) -> str:
        """weights: [epochs][forget sequences], any scale; an epoch in which nothing was learnt is left out."""
        each, tokens, losses = np.arange(len(num_tokens)), np.asarray(num_tokens), np.asarray(start_nll)
        buffer = pa.BufferOutputStream()
        with pq.ParquetWriter(
            buffer, WEIGHT_SCHEMA, use_dictionary=WEIGHT_SCHEMA.names[:4], write_page_checksum=True
        ) as file:
            for epoch, epoch_weights in enumerate(weights, start=1):
                shares = np.asarray(epoch_weights, dtype=np.float64)
                if (total := shares.sum()) > 0:
                    names, epochs = pa.repeat(trial_id, len(each)), np.full(len(each), epoch)
                    columns = [names, epochs, each, tokens, losses, shares / total]
                    file.write_table(pa.table(dict(zip(WEIGHT_SCHEMA.names, columns, strict=True)), WEIGHT_SCHEMA))
        name = f"weights/{trial_id}.parquet"
        self.write_files({name: buffer.getvalue().to_pybytes()})
        return name

    def _write(self, name: str, schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> str:
        """The name of what was written."""
        self.write_files({name: render_table(schema, rows)})
        return name


def trial_place(row: Mapping[str, Any], is_old: bool) -> str:
    """A trial's file under trials/ and curves/. is_old: in a search that an older version began."""
    form = "benchmark={benchmark}/method={method}" if is_old else "{benchmark}/{method}"
    return f"{form.format_map(row)}/{row['trial_id']}.parquet"


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """With a checksum of its own, so that `verify` sees every damage."""
    content = {name: value for name, value in values.items() if name != CHECKSUM}
    write_file(path, json.dumps(content | {CHECKSUM: json_checksum(content)}, indent=2, sort_keys=True).encode())


def json_checksum(values: Mapping[str, Any]) -> str:
    """CRC-32 of the values but for the checksum itself, in hexadecimal."""
    content = {name: value for name, value in values.items() if name != CHECKSUM}
    return crc32(json.dumps(content, sort_keys=True).encode())


def write_table(path: Path, schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> None:
    """One such file, whole or not at all."""
    write_file(path, render_table(schema, rows))


def render_table(schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A Parquet file's content, with page checksums. Raises ValueError on columns outside the schema."""
    buffer = pa.BufferOutputStream()
    pq.write_table(_table(schema, rows), buffer, write_page_checksum=True)
    return buffer.getvalue().to_pybytes()


def _table(schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    unknown = {key for row in rows for key in row} - set(schema.names)
    if unknown:
        raise ValueError(f"columns outside the schema: {sorted(unknown)}")
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema)


def read_table(path: Path) -> list[dict[str, Any]]:
    """Its rows. Raises ArrowException or OSError where the file is damaged."""
    return pq.ParquetFile(path, page_checksum_verification=True).read().to_pylist()


def is_own(path: Path, table: pa.Table) -> bool:
    """Whether a file of a search has the name of the trial in it. Tools that copy folders leave a second file beside
    one that both sides had, under another name; it counts for nobody."""
    return not table.num_rows or table["trial_id"][0].as_py() == path.stem


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
    damaged: list[str] = []
    history = read_ledger(folder)
    meta = _read_meta(folder, history, damaged)

    def tables(name: str, schema: pa.Schema | None = None) -> Iterator[tuple[Path, pa.Table]]:
        for path in visible((folder / name).rglob("*.parquet"), folder):
            try:
                # One file at a time: a damaged one must not take the others with it. Threads cost these small
                # files half as much again as reading them.
                table = pq.ParquetFile(path, page_checksum_verification=True).read(use_threads=False)
                table = table if schema is None else table.select(schema.names).cast(schema)
                if is_own(path, table):
                    yield path, table
            except (pa.ArrowException, OSError, KeyError, ValueError):
                damaged.append(str(path.relative_to(folder)))

    def rows(name: str, schema: pa.Schema | None = None) -> list[dict[str, Any]]:
        return [row for _, table in tables(name, schema) for row in table.to_pylist()]

    trials, curves = _read_trials(history, rows, damaged)
    finals, examples = rows("finals"), rows("examples", EXAMPLE_SCHEMA)
    if (finalists := meta.get("finalists")) is not None:  # a search that went on may have had others before
        finals = [row for row in finals if row["trial_id"] in finalists]
    weights = {path.stem: table for path, table in tables("weights", WEIGHT_SCHEMA)}
    comparison = None
    try:
        comparison = dict(json.loads((folder / "comparison.json").read_text()))
    except FileNotFoundError:
        pass
    except (TypeError, ValueError, OSError):
        damaged.append("comparison.json")
    return SearchResults(folder, meta, trials, curves, finals, damaged, examples, weights, comparison)


def _read_meta(folder: Path, history: History, damaged: list[str]) -> dict[str, Any]:
    """search.json, or where it is damaged what the ledger has of it."""
    try:
        return dict(json.loads((folder / "search.json").read_text()))
    except FileNotFoundError:
        if history.meta is None:
            raise UserError(
                f"{folder}: holds no search (no search.json). Give the folder that `tune` printed"
            ) from None
    except (TypeError, ValueError, OSError) as error:
        if history.meta is None:
            raise UserError(f"{folder / 'search.json'}: cannot be read ({error}). Restore it from a copy") from None
    damaged.append("search.json")
    return history.meta


def _read_trials(history: History, rows: Callable[[str], list[Row]], damaged: list[str]) -> tuple[list[Row], list[Row]]:
    """Rows and curves of all trials that have ended, in the order of suggestion: from the ledger, which is one file
    and the truth, and where it is damaged or not there from the files of the trials."""
    lives = [life for life in history.lives().values() if life.row is not None]
    found = [row for life in lives for row in (life.row, *life.points) if row is not None]
    curves = [point for life in lives for point in life.curve]
    if history.damaged or not history.events:
        damaged += [LEDGER] * bool(history.damaged)
        known = {row["trial_id"] for row in found}
        found += [row for row in rows("trials") if row["trial_id"] not in known]
        curves += [row for row in rows("curves") if row["trial_id"] not in known]
    return sorted(found, key=lambda row: row["number"]), curves


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


LOCAL = "local.json"

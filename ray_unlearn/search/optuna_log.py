"""The search's trials as Optuna keeps them, one study a method, for `optuna-dashboard` and for Optuna's own functions.

    results/<search>/optuna.log     studies <search>/<method>, in the order in which their trials ended

A view: samplers never read it (their studies live in memory, sampling.py) and no result comes from it. It is Optuna's
journal of operations, JSON lines that anybody reads with JournalFileBackend. This process is its only regular writer,
so it takes no lock (Optuna's waits up to 30 s for that of a dead process) and leaves the disk its time (no fsync): a
line a trial, whole or not at all. A trial is added when it has ended. Whatever goes wrong here is said once and costs
the view alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import BaseJournalBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from ray_unlearn.config import COMPLETED, INTERPOLATED, PRUNED
from ray_unlearn.records.tables import SearchResults
from ray_unlearn.search.sampling import build_distributions, quieten
from ray_unlearn.search.space import Space, read_spaces

FILE = "optuna.log"
STATES = {COMPLETED: TrialState.COMPLETE, PRUNED: TrialState.PRUNED}
"""Any other status is a failed trial."""
ATTRIBUTES = ("trial_id", "number", "status", "objective", "forget", "utility", "epoch", "epochs_run", "wall_seconds")
"""What a trial's user attributes tell of its row, beside its metrics and the last line of its error."""


class StudiesView:
    """Adds trials to the file as they end, each once."""

    def __init__(self, folder: Path, name: str, spaces: Mapping[str, Space], pareto: bool, floor: float) -> None:
        self._path, self._name, self._spaces = folder / FILE, name, spaces
        self._pareto, self._floor = pareto, floor
        self._studies: dict[str, optuna.Study] = {}
        self._known: set[str | None] = set()
        self._is_broken = False

    def add(self, row: Mapping[str, Any], curve: Sequence[Mapping[str, Any]]) -> None:
        """A trial's row of results and its evaluation points; points on its line are no trials and are left out."""
        if self._is_broken or row["status"] == INTERPOLATED:
            return
        try:
            if not self._studies:
                self._open()
            if row["trial_id"] not in self._known:
                self._studies[row["method"]].add_trial(self._trial(row, curve))
                self._known.add(row["trial_id"])
        except Exception as error:  # a view must not end what it shows
            self._is_broken = True
            print(f"{self._path}: trials are no longer added to it ({error})", file=sys.stderr)

    def _open(self) -> None:
        """The studies that are in the file, or new ones; a file that was cut off is begun anew."""
        quieten()
        if self._path.exists() and not _is_whole(self._path):
            self._path.unlink()
        storage = JournalStorage(_Journal(self._path))
        names = ["forget", "utility"] if self._pareto else ["objective"]
        for method in self._spaces:
            name = f"{self._name}/{method}"
            if name in optuna.get_all_study_names(storage):
                study = optuna.load_study(study_name=name, storage=storage)
            else:
                study = optuna.create_study(storage=storage, study_name=name, directions=["maximize"] * len(names))
                study.set_metric_names(names)
            self._studies[method] = study
            self._known |= {trial.user_attrs.get("trial_id") for trial in study.trials}

    def _trial(self, row: Mapping[str, Any], curve: Sequence[Mapping[str, Any]]) -> FrozenTrial:
        space, state = self._spaces[row["method"]], STATES.get(row["status"], TrialState.FAIL)
        attributes = {name: value for name, value in row.items() if name in ATTRIBUTES or "/" in name}
        if row["error"]:
            attributes["error"] = row["error"].strip().splitlines()[-1]
        values, constraints = None, None
        if state is TrialState.COMPLETE:
            values = [row["forget"], row["utility"]] if self._pareto else [row["objective"]]
            constraints = {"utility": self._floor - row["utility"]} if self._pareto else None
        trial = optuna.trial.create_trial(
            state=state,
            values=values,
            params={name: (int if r.integer else float)(row[name]) for name, r in space.ranges.items()},
            distributions=build_distributions(space),
            user_attrs={name: value for name, value in attributes.items() if value is not None},
            # Optuna has intermediate values of single objectives alone.
            intermediate_values={} if self._pareto else {int(point["epoch"]): point["objective"] for point in curve},
            constraints=constraints,
        )
        assert trial.datetime_complete is not None
        trial.datetime_start = trial.datetime_complete - timedelta(seconds=row["wall_seconds"] or 0.0)
        return trial


def update_studies(results: SearchResults, out: Path | None = None) -> None:
    """Add what the view in a search's folder, or in `out`, lacks: all of it, where there is none. Such trials end now,
    as far as Optuna can tell; how long they took is right."""
    config = results.meta["config"]
    spaces, is_pareto = read_spaces(results.meta), config["objective"] == "pareto"
    view = StudiesView(out or results.folder, results.meta["name"], spaces, is_pareto, config["utility_floor"])
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for point in results.curves:
        curves.setdefault(point["trial_id"], []).append(point)
    for row in results.trials:
        view.add(row, curves.get(row["trial_id"], []))


def _is_whole(path: Path) -> bool:
    content = path.read_bytes()
    try:
        return content.endswith(b"\n") and all(isinstance(json.loads(line), dict) for line in content.splitlines())
    except ValueError:
        return False


class _Journal(BaseJournalBackend):
    """Optuna's journal in a file, with no lock: each batch of operations is one write at the end of the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._logs: list[dict[str, Any]] = []
        self._offset = 0
        """In bytes: up to where the logs have been read."""

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        with self._path.open("ab+") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):  # somebody else is about to write the rest
                    break
                self._logs.append(json.loads(line))
                self._offset += len(line)
        return iter(self._logs[log_number_from:])

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self._path.open("ab", buffering=0) as file:
            file.write(text.encode())

"""Which trial is next, what becomes of each, and the rows that are left of it. It knows no Ray: search.py tells it.

Everything it decides goes through the ledger first, so that a search that was killed goes on from there: trials that
ended have their rows, trials that were suggested and have not ended come first, with the settings that they had.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from ray_unlearn.config import INTERPOLATED, SearchConfig, TrialConfig
from ray_unlearn.failures import LOST
from ray_unlearn.files import crc32
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.records.ledger import History, Ledger, settings_hash
from ray_unlearn.records.tables import Writer
from ray_unlearn.search.halving import RUNGS, Halving
from ray_unlearn.search.optuna_log import StudiesView
from ray_unlearn.search.order import lag
from ray_unlearn.search.rows import curve_row, device_seconds, point_row, trial_of, trial_row
from ray_unlearn.search.sampling import MethodStudy
from ray_unlearn.search.scored import Scored
from ray_unlearn.search.space import Space, build_trial
from ray_unlearn.training.losses import find_method
from ray_unlearn.training.outcome import Failed
from ray_unlearn.training.trial import rung_epochs


class Watcher(Protocol):
    """Whoever shows the search while it runs."""

    def stage(self, what: str) -> None: ...
    def resumed(self, rows: Sequence[Mapping[str, Any]]) -> None: ...
    def started(self, trial: TrialConfig, number: int) -> None: ...
    def finished(self, row: Mapping[str, Any]) -> None: ...


class _Open:
    """A trial that has been suggested and has not ended."""

    def __init__(self, trial: TrialConfig, number: int, started: float) -> None:
        self.trial, self.number, self.started = trial, number, started
        self.reports: list[Scored | Failed] = []
        self.is_pruned = False
        self.retries = 0


class Recorder:
    """Keeps every report of every trial, writes the row when the trial ends, and tells the study."""

    def __init__(
        self,
        config: SearchConfig,
        studies: Mapping[str, MethodStudy],
        spaces: Mapping[str, Space],
        writer: Writer,
        ledger: Ledger,
        watcher: Watcher,
        view: StudiesView | None = None,
    ) -> None:
        self._config, self._studies, self._spaces = config, studies, spaces
        self.writer, self.ledger, self._watcher, self._view = writer, ledger, watcher, view
        self._open: dict[str, _Open] = {}
        self._waiting: deque[_Open] = deque()
        self._ranking = Ranking.of_search(config)
        self._halving = Halving()
        self._judged: dict[tuple[str, int], bool] = {}
        self._asked: dict[str, set[str]] = {name: set() for name in config.methods}
        self._next_number = 0
        self._lag = lag(config)
        self._untold: dict[int, Mapping[str, Any]] = {}
        """Rows by number of trials that have ended and that no proposal may know yet."""
        self.rows: list[dict[str, Any]] = []

    def attach(self, stop: Callable[[str], Any]) -> None:
        """How to stop a trial's job (by trial_id)."""
        self._stop = stop

    # Going on

    def recall(self, history: History, others: Iterable[Mapping[str, Any]] = ()) -> None:
        """Take up a search where its ledger ends: everything is asked and told once more, in the order of then.

        others: rows of trials that a damaged ledger has lost. Files of trials that are missing are written again.
        """
        waiting: dict[str, _Open] = {}
        for event in history.events:
            if event["event"] == "suggested":
                trial = TrialConfig.from_json(event["trial"])
                waiting[trial.trial_id] = _Open(trial, event["number"], time.perf_counter())
                self._ask_again(trial, event["number"])
            elif event["event"] == "judged":
                trial_id, rung = event["trial_id"], event["rung"]
                if trial_id in waiting:
                    here = waiting[trial_id]
                    self._halving.goes_on(here.trial.method, rung, here.number, event["scores"])
                self._judged[trial_id, rung] = event["goes_on"]
            elif event["event"] == "ended":
                waiting.pop(event["trial_id"], None)
                self._recall_row(event["row"], event["points"], event["curve"])
        known = {row["trial_id"] for row in self.rows}
        for row in others:
            if row["trial_id"] not in known:
                waiting.pop(row["trial_id"], None)
                self.ledger.append("ended", trial_id=row["trial_id"], row=row, points=[], curve=[])
                self._recall_row(row, [], [])
        self._waiting.extend(waiting.values())
        self._watcher.resumed(self.rows)

    def _ask_again(self, trial: TrialConfig, number: int) -> None:
        self._tell_before(number)
        self._studies[trial.method].ask(trial.trial_id, _searched(trial, self._spaces[trial.method]))
        self._asked[trial.method].add(trial.trial_id)
        self._next_number = max(self._next_number, number + 1)

    def _recall_row(self, row: Mapping[str, Any], points: list[dict[str, Any]], curve: list[dict[str, Any]]) -> None:
        if row["status"] != INTERPOLATED:
            if row["trial_id"] not in self._asked[row["method"]]:  # its suggestion is in a damaged line
                self._ask_again(trial_of(row, find_method(row["method"]).parameters), row["number"])
            self._tell(row, curve)
        self.rows += [dict(row), *points]
        if not self.writer.has_trial(row):
            files = self.writer.trial_files(dict(row), curve, points)
            self.writer.write_files(files)
            self.ledger.append("written", files=_checksums(files))

    # What search.py asks and tells

    @property
    def num_left(self) -> int:
        """Trials that have not ended."""
        ended = sum(row["status"] != INTERPOLATED for row in self.rows)
        return self._config.trials * len(self._config.methods) - ended

    def must_wait(self) -> bool:
        """Whether the next trial's proposal needs the outcome of one that still runs."""
        if self._lag is None or self._waiting or not self._open:
            return False
        return min(here.number for here in self._open.values()) <= self._next_number - self._lag

    def suggest(self, tune_id: str) -> TrialConfig | None:
        """The next trial of the method that has had the fewest; None when all have had their number."""
        if self._waiting:
            here = self._waiting.popleft()
            here.started = time.perf_counter()
        else:
            method = min(self._config.methods, key=lambda name: len(self._asked[name]))
            if len(self._asked[method]) >= self._config.trials:
                return None
            started = time.perf_counter()
            here = _Open(self._build_trial(method), self._next_number, started)
            self._next_number += 1
            plain = here.trial.to_json()
            self.ledger.append("suggested", trial=plain, number=here.number, settings_hash=settings_hash(plain))
        self._open[tune_id] = here
        self._watcher.started(here.trial, here.number)
        return here.trial

    def _build_trial(self, method: str) -> TrialConfig:
        """A new trial: its settings from the study, where they are not fixed."""
        self._tell_before(self._next_number)
        taken = self._asked[method]
        trial_id = next(name for i in range(len(taken) + 1) if (name := f"{method}-{i:04d}") not in taken)
        taken.add(trial_id)
        point = self._studies[method].ask(trial_id)
        return build_trial(self._spaces[method], trial_id, self._config.seed, point)

    def running(self, tune_id: str) -> None:
        self.ledger.append("running", trial_id=self._open[tune_id].trial.trial_id)

    def goes_on(self, tune_id: str, report: Scored | Failed) -> bool:
        """The verdict on a trial's report that is not its last; a trial that is stopped gives its gang back at once."""
        here = self._open[tune_id]
        if isinstance(report, Failed):
            return True
        rung = rung_epochs(here.trial.epochs, rungs_of(self._config)).get(report.epoch)
        if rung is None or self._judge(here, rung, report):
            return True
        here.is_pruned = True
        self._stop(here.trial.trial_id)
        return False

    def _judge(self, here: _Open, rung: int, report: Scored) -> bool:
        """Once a trial and rung: who was begun anew is not judged twice."""
        key = here.trial.trial_id, rung
        if key not in self._judged:
            names = ("forget", "utility") if self._config.objective == "pareto" else ("objective",)
            best = self._ranking.best_point([*(r for r in here.reports if isinstance(r, Scored)), report])
            scores = [getattr(best, name) for name in names]
            last = None if self._lag is None else here.number - self._lag
            verdict = self._halving.goes_on(here.trial.method, rung, here.number, scores, last)
            self.ledger.append("judged", trial_id=key[0], rung=rung, scores=scores, goes_on=verdict)
            self._judged[key] = verdict
        return self._judged[key]

    def reported(self, tune_id: str, report: Scored | Failed) -> None:
        self._open[tune_id].reports.append(report)

    def restarted(self, tune_id: str, failure: str) -> None:
        """The trial begins anew, for that kind of failure: what it has reported counts no more."""
        here = self._open[tune_id]
        self._stop(here.trial.trial_id)
        here.reports.clear()
        here.retries += 1
        self.ledger.append("retried", trial_id=here.trial.trial_id, failure=failure)

    def lost(self, tune_id: str) -> None:
        """Nobody can run the trial any more."""
        here = self._open[tune_id]
        self._stop(here.trial.trial_id)
        here.reports.append(Failed("the trial's process ended", LOST))
        self.ended(tune_id)

    def put_back(self, jobs_are_gone: bool = False) -> None:
        """Nobody leads the open trials any more: they are the next to be suggested."""
        for here in self._open.values():
            if not jobs_are_gone:
                self._stop(here.trial.trial_id)
            here.reports.clear()
            here.retries += 1
            self._waiting.append(here)
        self._open.clear()

    def ended(self, tune_id: str) -> None:
        """The trial has ended, as its last report says: its row, its curve, the points on its line."""
        here = self._open.pop(tune_id)
        trial, config = here.trial, self._config
        row = trial_row(trial, here.number, config, here.reports, here.is_pruned)
        row["retries"] += here.retries
        row["wall_seconds"] = time.perf_counter() - here.started
        row["device_seconds"] = device_seconds(row, config.gang.num_workers)
        curve = [curve_row(trial, config, r) for r in here.reports if isinstance(r, Scored)]
        row, curve = self.writer.as_written(row, curve)
        last = here.reports[-1] if here.reports else None
        on_line = last.line if isinstance(last, Scored) else ()
        points = [self.writer.as_written(point_row(row, point, config.benchmark))[0] for point in on_line]
        files = self.writer.trial_files(row, curve, points)
        self.ledger.append(
            "ended", trial_id=trial.trial_id, row=row, points=points, curve=curve, files=_checksums(files)
        )
        self.writer.write_files(files)
        self.rows += [row, *points]
        self._tell(row, curve)
        self._watcher.finished(row)

    def _tell(self, row: Mapping[str, Any], curve: Sequence[Mapping[str, Any]]) -> None:
        if self._lag is None:
            self._studies[row["method"]].tell(row["trial_id"], row)
        else:
            self._untold[row["number"]] = row
        if self._view is not None:
            self._view.add(row, curve)

    def _tell_before(self, number: int) -> None:
        """Tell the studies what the proposal of the trial with this number may know and they do not know yet."""
        if self._lag is None:
            return
        for known in sorted(n for n in self._untold if n <= number - self._lag):
            row = self._untold.pop(known)
            self._studies[row["method"]].tell(row["trial_id"], row)


def _checksums(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: crc32(content) for name, content in files.items()}


def rungs_of(config: SearchConfig) -> tuple[float, ...]:
    return RUNGS if config.prune else ()


def _searched(trial: TrialConfig, space: Space) -> dict[str, float]:
    """The settings that a study suggested."""
    values = {**trial.to_json(), **trial.parameters}
    return {name: int(values[name]) if range_.integer else values[name] for name, range_ in space.ranges.items()}

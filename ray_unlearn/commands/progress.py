"""How a running search looks: a live table on a terminal, one plain line an event elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ray_unlearn.config import TrialConfig
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.training.losses import find_method
from ray_unlearn.wording import duration

SHOWN_TRIALS = 12
"""Rows of the live table; older trials scroll out of it."""


def settings_text(values: Mapping[str, Any], method: str) -> str:
    """The settings that make a trial what it is, on one line."""
    names = [
        *find_method(method).parameters,
        *(["retain_weight"] if find_method(method).uses_retain else []),
        "learning_rate",
    ]
    return " ".join(f"{name}={values[name]:.3g}" for name in names)


class PlainProgress:
    """One line an event, for logs."""

    def __init__(self, console: Console, total: int, ranking: Ranking) -> None:
        self._console, self._total, self._ranking = console, total, ranking
        self._done = self._done_before = 0
        self._best: Mapping[str, Any] | None = None
        self._began = 0.0

    def stage(self, what: str) -> None:
        self._line(what)

    def resumed(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            if row["status"] != "interpolated":
                self._count(row)
        self._done_before = self._done
        self.stage(f"{self._done} of {self._total} trials are there already")

    def started(self, trial: TrialConfig, number: int) -> None:
        self._began = self._began or time.monotonic()

    def finished(self, row: Mapping[str, Any]) -> None:
        self._count(row)
        self._line(
            f"[{self._done}/{self._total}] {row['trial_id']} {settings_text(row, row['method'])}: "
            f"{outcome(row)}; best {self._best_text}; {self._eta()} left"
        )

    def close(self) -> None:
        return None

    @property
    def _best_text(self) -> str:
        return number(None if self._best is None else self._best["objective"])

    def _count(self, row: Mapping[str, Any]) -> None:
        self._done += 1
        if row["status"] == "completed":
            self._best = self._ranking.best([row] if self._best is None else [self._best, row])

    def _eta(self) -> str:
        done = self._done - self._done_before
        if not done:
            return "?"
        seconds = (time.monotonic() - self._began) / done * (self._total - self._done)
        return duration(seconds)

    def _line(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class LiveProgress(PlainProgress):
    """A table that renews itself: running and latest trials, best so far, time left."""

    def __init__(self, console: Console, total: int, ranking: Ranking) -> None:
        super().__init__(console, total, ranking)
        self._rows: dict[str, tuple[str, str, str, Mapping[str, Any] | None]] = {}
        self._stage = ""
        # Not redirecting: what others print goes to the log, and Live would bring it back to the screen.
        self._live = Live(
            console=console,
            refresh_per_second=4,
            get_renderable=self._render,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def stage(self, what: str) -> None:
        self._stage = what

    def started(self, trial: TrialConfig, number: int) -> None:
        super().started(trial, number)
        values = trial.to_json()
        self._rows[trial.trial_id] = (
            trial.trial_id,
            find_method(trial.method).title,
            settings_text(values | values["parameters"], trial.method),
            None,
        )

    def finished(self, row: Mapping[str, Any]) -> None:
        self._count(row)
        self._rows[row["trial_id"]] = (*self._rows[row["trial_id"]][:3], row)

    def close(self) -> None:
        self._live.stop()

    def _render(self) -> Group:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("trial", "method", "parameters"):
            table.add_column(name, no_wrap=name != "parameters", overflow="ellipsis")
        for name in ("forget", "utility", "objective"):
            table.add_column(name, justify="right", no_wrap=True)
        for trial_id, method, settings, row in list(self._rows.values())[-SHOWN_TRIALS:]:
            if row is None:
                cells = [Text("running", style="dim"), Text(""), Text("")]
            elif row["status"] == "completed":
                best = row is self._best
                cells = [Text(number(row[n]), style="bold green" if best else "") for n in ("forget", "utility")]
                cells.append(Text(number(row["objective"]), style="bold green" if best else ""))
            else:
                style = "dim" if row["status"] == "pruned" else "red"
                cells = [Text(row["status"], style=style), Text(""), Text("")]
            table.add_row(Text(trial_id), Text(method), Text(settings), *cells)
        summary = f"{self._done}/{self._total} trials, best {self._best_text}, {self._eta()} left"
        return Group(Text(self._stage, style="bold"), table, Text(summary, style="dim"))


def outcome(row: Mapping[str, Any]) -> str:
    if row["status"] == "failed":
        return f"failed ({row['error']})"
    early = f"pruned after epoch {row['epochs_run']}: " if row["status"] == "pruned" else ""
    scores = f"forget {number(row['forget'])} utility {number(row['utility'])} objective {number(row['objective'])}"
    return early + scores


def number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"

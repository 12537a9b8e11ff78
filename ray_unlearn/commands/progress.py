"""How a running search looks: a live table on a terminal, one plain line an event elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ray_unlearn.config import TrialConfig
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.training.losses import find_method
from ray_unlearn.wording import duration


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
    """Fills a terminal of any size from 60 columns and 20 lines: how far the search is, its best trial and its log stay
    in sight; under them has every trial a line, the latest that have ended and those that run."""

    def __init__(self, console: Console, total: int, ranking: Ranking, log: Path | None = None) -> None:
        super().__init__(console, total, ranking)
        self._log = log
        self._started = time.monotonic()
        self._rows: dict[str, tuple[str, Mapping[str, Any] | None]] = {}
        self._stage = ""
        # Not redirecting: what others print goes to the log, and Live would bring it back to the screen.
        self._live = Live(
            console=console,
            refresh_per_second=4,
            get_renderable=self.render,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def stage(self, what: str) -> None:
        self._stage = what

    def started(self, trial: TrialConfig, number: int) -> None:
        super().started(trial, number)
        values = trial.to_json()
        self._rows[trial.trial_id] = settings_text(values | values["parameters"], trial.method), None

    def finished(self, row: Mapping[str, Any]) -> None:
        self._count(row)
        settings, _ = self._rows.pop(row["trial_id"])  # to the end: in the order in which they ended
        self._rows[row["trial_id"]] = settings, row

    def close(self) -> None:
        self._live.stop()

    def render(self) -> Group:
        head: list[RenderableType] = [
            _one_line(self._stage, "bold"),
            self._bar(),
            _one_line(self._describe_best(), "bold green"),
        ]
        if self._log is not None:
            head.append(_one_line(f"log   {self._log}", "dim"))
        room = max(2, self._console.size.height - len(head) - 2)  # for the table's own head, and the cursor
        return Group(*head, self._table(room))

    def _bar(self) -> Table:
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        times = f"{duration(time.monotonic() - self._started)}, {self._eta()} left"
        bar.add_row(f"{self._done}/{self._total}", ProgressBar(total=self._total, completed=self._done), times)
        return bar

    def _describe_best(self) -> str:
        best = self._best
        return "best  none yet" if best is None else f"best  {best['trial_id']}: {outcome(best)}"

    def _table(self, room: int) -> Table:
        running = [(name, *rest) for name, rest in self._rows.items() if rest[1] is None][-room:]
        ended = [(name, *rest) for name, rest in self._rows.items() if rest[1] is not None]
        table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
        table.add_column("trial", no_wrap=True)
        table.add_column("settings", no_wrap=True, overflow="ellipsis", ratio=1)
        for name in ("forget", "utility", "objective"):
            table.add_column(name, justify="right", no_wrap=True)
        shown = ended[max(0, len(ended) + len(running) - room) :]
        for name, settings, row in [*shown, *running]:
            table.add_row(Text(name), Text(settings), *self._cells(row))
        return table

    def _cells(self, row: Mapping[str, Any] | None) -> list[Text]:
        if row is None:
            return [Text("running", style="dim"), Text(""), Text("")]
        if row["status"] != "completed":
            return [Text(row["status"], style="dim" if row["status"] == "pruned" else "red"), Text(""), Text("")]
        style = "bold green" if row is self._best else ""
        return [Text(number(row[name]), style=style) for name in ("forget", "utility", "objective")]


def _one_line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def outcome(row: Mapping[str, Any]) -> str:
    if row["status"] == "failed":
        return f"failed ({row['error']})"
    early = f"pruned after epoch {row['epochs_run']}: " if row["status"] == "pruned" else ""
    scores = f"forget {number(row['forget'])} utility {number(row['utility'])} objective {number(row['objective'])}"
    return early + scores


def number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"

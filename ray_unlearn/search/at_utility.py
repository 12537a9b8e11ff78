"""Methods at equal utility: `ray_unlearn compare --at-utility 0.95,0.9,0.8`.

Each trial is trained again to its end; on the line from the starting model to there, the farthest point whose utility
holds a level on the selection half is scored on the held-out half (training/line.py). Utility being equal, forgetting
alone is compared.

results/<search>/
    comparison.json     under "at_utility", by unit: see `summarise_lines`
    compare/lines/<trial_id>-seed<k>-at<level>.parquet    one row a level, the columns of a trial and LINE_COLUMNS; what
                        is there is not run again. Of other searches in compare/lines/<search>/
    compare/lines/start-selection.parquet, start-report.parquet    the starting model on both halves
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_unlearn.benchmarks.contract import Task
from ray_unlearn.benchmarks.objective import Judge
from ray_unlearn.config import COMPLETED, GangConfig, SearchConfig
from ray_unlearn.failures import NAN
from ray_unlearn.gangs.gangs import Gangs, gangs_for
from ray_unlearn.metrics.statistics import describe_spread, mean_interval
from ray_unlearn.records.tables import write_table
from ray_unlearn.report.verdicts import (
    SEED,
    describe_difference,
    describe_levels,
    describe_limits,
    describe_lines,
)
from ray_unlearn.search.attacked_goals import with_attacked_goals
from ray_unlearn.search.comparison import (
    check_is_result,
    metrics_of,
    pair_differences,
    read_row,
    scored,
    with_verdicts,
)
from ray_unlearn.search.held_out import (
    build_judge,
    held_out_job,
    metrics_of_profile,
    rerun_job,
    rerun_row,
    row_schema,
    scores_only,
)
from ray_unlearn.training.line import LineSearch
from ray_unlearn.training.outcome import Failed, Outcome, Report, finished
from ray_unlearn.training.trial import Job

Row = Mapping[str, Any]
LINE_COLUMNS = ("level", "selection_forget", "selection_utility", "utility_rise", "forget_fall", "points")
"""level: the utility that was to be held; selection_*: the point's scores on the selection half; utility_rise: the most
by which utility rises again from a scored point of the line to a farther one, 0 where it is monotone; forget_fall: the
most that forget has fallen from a nearer point's; points: of the line that were scored. Costs are the whole line's."""
HALVES = ("selection", "report")
FORGET = "forget"
"""The measure that verdicts are on: utility is equal."""


@dataclass(frozen=True)
class Line:
    """A trial whose line is looked at."""

    unit: int
    """What it stands for: a seed, or the number of a search."""
    row: Row
    seed: int
    gang: GangConfig
    """Its search's: adapters start where that says."""
    folder: Path
    """Where its points are kept."""

    def place(self, level: float) -> Path:
        return self.folder / f"{self.row['trial_id']}-seed{self.seed}-at{level:g}.parquet"


def search_of(config: SearchConfig, task: Task, start: Mapping[str, float], *levels: float) -> LineSearch:
    """For these levels, whose points are scored on the held-out half; start: what the starting model measures on the
    selection half."""
    return LineSearch(levels, judge_of(config, task, "selection", start), ("report",))


def to_the_end(job: Job, search: LineSearch) -> Job:
    """The job that runs a trial again, but to the trial's end, and then looks for the points of its line."""
    assert job.trial is not None
    return replace(job, stop_after=job.trial.epochs, alpha=1.0, evaluate=("selection",), levels=search)


def at_point(job: Job, report: Report) -> tuple[Job, Report]:
    """The job that comes to the one point which this one has found, and its report. Raises RuntimeError where the point
    has no scores."""
    (point,) = report.levels
    if point.error:
        raise RuntimeError(f"{job.job_id}: the model at utility {point.level:g} has no scores: {point.error}")
    found = replace(job, alpha=point.alpha, evaluate=tuple(point.profiles), levels=None)
    return found, replace(report, profiles=point.profiles, line=(), levels=())


def level_rows(
    config: SearchConfig, judges: Mapping[str, Judge], row: Row, job: Job, outcome: Outcome, seconds: float
) -> list[dict[str, Any]]:
    """A row a level; judges: by half. A line that failed, or a point without scores, says why."""
    assert job.levels is not None
    plain = {**row, "epoch": job.stop_after}
    if isinstance(outcome, Failed):
        failed = rerun_row(config, judges["report"], {**plain, "alpha": None}, job, outcome, seconds)
        return [{**failed, "level": level} for level in job.levels.levels]
    scores = {
        point.alpha: judges["selection"].verdict(point.profiles["selection"].metrics, is_last=False)
        for point in outcome.line
    }
    utilities, forgets = ({alpha: getattr(v, name) for alpha, v in scores.items()} for name in ("utility", FORGET))
    utilities, forgets = {0.0: 1.0, **utilities}, {0.0: 0.0, **forgets}
    rows = []
    for point in outcome.levels:
        result: Outcome = replace(outcome, profiles=point.profiles)
        if point.error:
            result = Failed(point.error, NAN)
        rows.append(
            {
                **rerun_row(config, judges["report"], {**plain, "alpha": point.alpha}, job, result, seconds),
                **{"level": point.level, "points": len(scores), "utility_rise": largest_rise(utilities)},
                **{"selection_forget": forgets[point.alpha], "selection_utility": utilities[point.alpha]},
                "forget_fall": max(v for a, v in forgets.items() if a <= point.alpha) - forgets[point.alpha],
            }
        )
    return rows


def largest_rise(values: Mapping[float, float]) -> float:
    """By how much a value exceeds the lowest of those before it, at most; 0 where none does. values: by alpha."""
    ordered = [values[alpha] for alpha in sorted(values)]
    return max(value - lowest for value, lowest in zip(ordered, accumulate(ordered, min), strict=True))


def run_lines(
    folder: Path,
    config: SearchConfig,
    task: Task,
    lines: Sequence[Line],
    levels: Sequence[float],
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Every line's points, but for those that are there already: a row a line and level, with its "unit".

    Raises RuntimeError where a line fails for another reason than its settings (lost workers); what ended is kept.
    """
    found = {(line.place(level), level): read_row(line.place(level)) for line in lines for level in levels}
    left = [(line, [level for level in levels if found[line.place(level), level] is None]) for line in lines]
    left = [(line, missing) for line, missing in left if missing]
    if len(left) < len(lines):
        say(f"{len(lines) - len(left)} of {len(lines)} lines are there already")
    if left:
        task = with_attacked_goals(config, task, say)
    done = len(lines) - len(left)
    # Adapters start with the gang that has them.
    for adapters in dict.fromkeys((line.gang.seed, line.gang.adapter) for line, _ in left):
        mine = [(line, missing) for line, missing in left if (line.gang.seed, line.gang.adapter) == adapters]
        gang = replace(config.gang, seed=adapters[0], adapter=adapters[1])
        with gangs_for(task, gang, config.concurrent, config.address, config.grow_to, say) as gangs:
            starts = _starts(folder, config, gangs)
            judges = {half: judge_of(config, task, half, start) for half, start in starts.items()}
            jobs = {}
            for line, missing in mine:
                search = search_of(config, task, starts["selection"], *missing)
                job = to_the_end(rerun_job(scores_only(config), line.row, line.seed), search)
                job = replace(job, job_id=f"line-{line.unit}-{job.job_id}")
                jobs[job.job_id] = line, job
            for job, outcome, seconds in gangs.run_all(job for _, job in jobs.values()):
                line = jobs[job.job_id][0]
                rows = level_rows(config, judges, line.row, job, outcome, seconds)
                check_is_result(rows[0])
                for row in rows:
                    write_table(line.place(row["level"]), _schema(config), [row])
                    found[line.place(row["level"]), row["level"]] = row
                done += 1
                say(f"[{done}/{len(lines)}] {line.row['trial_id']} seed {line.seed}: {_describe_rows(rows)}")
    pairs = [(line, found[line.place(level), level]) for line in lines for level in levels]
    return [{**row, "unit": line.unit} for line, row in pairs if row is not None]


def _schema(config: SearchConfig) -> pa.Schema:
    return pa.schema([*row_schema(config), *((name, pa.float64()) for name in LINE_COLUMNS)])


def _starts(folder: Path, config: SearchConfig, gangs: Gangs) -> dict[str, dict[str, float]]:
    """What the starting model measures, by half."""
    places = {half: folder / f"start-{half}.parquet" for half in HALVES}
    rows = {half: row for half, place in places.items() if (row := read_row(place)) is not None}
    if len(rows) < len(places):
        job = replace(held_out_job(scores_only(config), config.seed), evaluate=HALVES)
        report = finished(gangs.run(job), "the starting model")
        for half, place in places.items():
            named = {f"{config.benchmark}/{name}": value for name, value in report.metrics(half).items()}
            head = {"trial_id": "start", "method": "start", "benchmark": config.benchmark, "status": COMPLETED}
            rows[half] = {**head, **named}
            write_table(place, row_schema(config), [rows[half]])
    return {half: metrics_of(row, config.benchmark) for half, row in rows.items()}


def judge_of(config: SearchConfig, task: Task, half: str, start: Mapping[str, float]) -> Judge:
    """start: what the starting model measures on that half."""
    return build_judge(config, start, metrics_of_profile(getattr(task, half).retrained))


def _describe_rows(rows: Iterable[Row]) -> str:
    return rows_error(rows) or ", ".join(f"forget {row['forget']:.3f} at utility {row['level']:g}" for row in rows)


def rows_error(rows: Iterable[Row]) -> str:
    return next((str(row["error"]) for row in rows if row["error"]), "")


# ---- what they say


def summarise_lines(rows: Sequence[Row], levels: Sequence[float], unit: str) -> dict[str, Any]:
    """comparison.json's "at_utility" for one kind of unit, as plain data: {
        "levels": [float], "units": [int],
        "points": [{"level", "method", "trial_id" (of seeds; else null), "n", "failed", "at_end": of them at their
            line's end, "forget" | "utility" | "alpha": {"mean", "std", "min", "max"}, "low", "high": of the mean
            forget}],
        "differences": [see `comparison.difference_table`, of forget alone, with "level"],
        "lines": [{"method", "trial_id", "n", "rising": whose utility rises again, "rise": the largest, "falling": whose
            forget has fallen on the way to a point, "fall"}],
        "warnings": [str], "runs": [the rows, without settings and metrics]}.

    rows: with "unit", of every finalist. Verdicts are on each method's first finalist, corrected over all its pairs and
    levels. A line that diverged counts as forget 0, utility 0.
    """
    best: dict[str, str] = {}
    for row in rows:
        best.setdefault(row["method"], row["trial_id"])
    groups = list(dict.fromkeys(_group(row, unit) for row in rows))
    differences = []
    for level in levels:
        units: dict[str, dict[int, Row]] = {}
        for row in rows:
            if row["level"] == level and (unit != SEED or row["trial_id"] == best[row["method"]]):
                units.setdefault(row["method"], {})[row["unit"]] = scored(row)
        differences += [{**item, "level": level} for item in pair_differences(units, unit, (FORGET,), FORGET)]
    lines = [_describe_lines([row for row in rows if _group(row, unit) == group], group) for group in groups]
    points = [
        _describe_point([row for row in rows if _group(row, unit) == group and row["level"] == level], group, level)
        for level in levels
        for group in groups
    ]
    number = len({row["unit"] for row in rows})
    return {
        "levels": list(levels),
        "units": sorted({row["unit"] for row in rows}),
        "points": points,
        "differences": with_verdicts(differences),
        "lines": lines,
        "warnings": describe_limits(number, unit, len(best), len(levels)),
        "runs": [{name: row.get(name) for name in RUN_COLUMNS} for row in rows],
    }


RUN_COLUMNS = (
    *("unit", "method", "trial_id", "seed", "status", "error", "level", "alpha", "forget", "utility", "objective"),
    *LINE_COLUMNS[1:],
)


def _group(row: Row, unit: str) -> tuple[str, str | None]:
    """Whose rows belong together: a finalist's, or of searches a method's."""
    return row["method"], row["trial_id"] if unit == SEED else None


def _describe_point(rows: Sequence[Row], group: tuple[str, str | None], level: float) -> dict[str, Any]:
    good = [row for row in rows if row["status"] == COMPLETED]
    measured = [scored(row) for row in rows]
    interval = mean_interval(np.array([row[FORGET] for row in measured], float))
    return {
        **{"level": level, "method": group[0], "trial_id": group[1], "n": len(rows), "failed": len(rows) - len(good)},
        "at_end": sum(row["alpha"] == 1.0 for row in good),
        **{name: describe_spread(np.array([row[name] for row in measured], float)) for name in (FORGET, "utility")},
        "alpha": describe_spread(np.array([row["alpha"] for row in good], float)) if good else None,
        **{"low": interval.low, "high": interval.high},
    }


def _describe_lines(rows: Sequence[Row], group: tuple[str, str | None]) -> dict[str, Any]:
    def largest(name: str) -> dict[int, float]:
        found: dict[int, float] = {}
        for row in rows:
            found[row["unit"]] = max(found.get(row["unit"], 0.0), row.get(name) or 0.0)
        return found

    rises, falls = largest("utility_rise"), largest("forget_fall")
    return {
        **{"method": group[0], "trial_id": group[1], "n": len(rises)},
        **{"rising": sum(v > 0 for v in rises.values()), "rise": max(rises.values())},
        **{"falling": sum(v > 0 for v in falls.values()), "fall": max(falls.values())},
    }


def describe_equal_utility(summary: Mapping[str, Any], unit: str) -> list[str]:
    """Lines for people."""
    lines = [describe_levels(entry, unit) for entry in summary["points"]]
    lines += [describe_difference(item) for item in summary["differences"]]
    lines += [text for entry in summary["lines"] for text in describe_lines(entry, unit)]
    return lines + [f"Note: {text}" for text in summary["warnings"]]

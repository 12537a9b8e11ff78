"""Finalists of every method over several seeds: `ray_unlearn compare`.

results/<search>/
    comparison.json     means, spreads, intervals, differences, warnings: see `summarise`
    compare/runs/       Parquet, one row a run, <trial_id>-seed<k>.parquet; what is there is not run again
    compare/start.parquet   the starting model on the held-out split
    compare/log.txt

The settings are the search's, chosen on the selection split; the runs have seeds that the search did not have, the
same ones for every method, and are scored on the held-out split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_unlearn.benchmarks.contract import Task
from ray_unlearn.config import CANDIDATES, COMPLETED, INTERPOLATED, MEASURES, SearchConfig
from ray_unlearn.failures import INF, MEMORY, NAN
from ray_unlearn.metrics.fronts import hypervolume, pareto_front
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.metrics.statistics import (
    bootstrap,
    compare_pairs,
    corrected,
    describe_spread,
    verdict,
)
from ray_unlearn.records.tables import write_table
from ray_unlearn.report.parameters import describe_edge
from ray_unlearn.report.text import method_label
from ray_unlearn.report.verdicts import SEED, describe_limits, tabulate_differences, tabulate_spreads
from ray_unlearn.search.space import Space

Row = Mapping[str, Any]
SEED_BASE = 1000
"""The first of a comparison's seeds lies so far above the search's."""
MOST_UNEQUAL = {"trials": 1.0, "epochs": 1.1, "device_seconds": 3.0}
"""How many times the least-served method's budget another one's may be. Seconds differ by what methods compute (GA
reads no retain set) and by what else the machine did; trials are dealt out evenly."""
JUDGED = "objective"
"""The measure that verdicts are on; the others are described."""


def comparison_seeds(config: SearchConfig, count: int) -> list[int]:
    return [config.seed + SEED_BASE + k for k in range(count)]


def pick_finalists(rows: Sequence[Row], ranking: Ranking, top: int, frontier: bool) -> list[Row]:
    """By method, its best `top`, best first; then
    every other point of the front over all methods, if wanted."""
    candidates = [row for row in rows if row["status"] in CANDIDATES]
    picked: list[Row] = []
    for method in dict.fromkeys(row["method"] for row in candidates):
        mine = [row for row in candidates if row["method"] == method]
        picked += ranking.sorted(mine)[:top]
    if frontier and candidates:
        front = pareto_front(np.array([[row["forget"], row["utility"]] for row in candidates]))
        names = {row["trial_id"] for row in picked}
        picked += [row for row, on in zip(candidates, front, strict=True) if on and row["trial_id"] not in names]
    return picked


def count_budgets(trials: Sequence[Row]) -> dict[str, dict[str, float]]:
    """What the search spent on each method."""
    budgets: dict[str, dict[str, float]] = {}
    for row in trials:
        if row["status"] != INTERPOLATED:
            spent = budgets.setdefault(row["method"], {"trials": 0, "epochs": 0, "device_seconds": 0.0})
            spent["trials"] += 1
            spent["epochs"] += row["epochs_run"] or 0
            spent["device_seconds"] += row["device_seconds"] or 0.0
    return budgets


def describe_unequal(budgets: Mapping[str, Mapping[str, float]]) -> str:
    """What the methods did not get in equal measure, with the counts; empty where all is well."""
    parts = []
    for name, most in MOST_UNEQUAL.items():
        values = {method: spent[name] for method, spent in budgets.items()}
        if values and max(values.values()) > most * min(values.values()):
            counts = ", ".join(f"{method_label(method)} {value:.6g}" for method, value in values.items())
            parts.append(f"{name.replace('_', ' ')} ({counts})")
    return "; ".join(parts)


def find_edges(best: Mapping[str, Row], spaces: Mapping[str, Space]) -> list[dict[str, Any]]:
    """Settings of each method's best point that lie at an end of their range."""
    return [
        {"method": method, "parameter": name, "value": row[name], "low": range_.low, "high": range_.high, "end": end}
        for method, row in best.items()
        for name, range_ in spaces[method].ranges.items()
        if (end := range_.near_end(row[name]))
    ]


# ---- the runs


def run_comparison(
    folder: Path,
    config: SearchConfig,
    task: Task,
    finalists: Sequence[Row],
    seeds: Sequence[int],
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Every finalist with every seed, but for the runs that are there already: the rows of all of them.

    A run that diverges or runs out of memory is a result, and kept as a failed one. Raises RuntimeError where one fails
    for another reason (lost workers); the runs that ended by then are kept.
    """
    from ray_unlearn.gangs.gangs import gangs_for
    from ray_unlearn.search.attacked_goals import with_attacked_goals
    from ray_unlearn.search.held_out import (
        held_out_job,
        held_out_judge,
        rerun_job,
        rerun_row,
        row_schema,
    )
    from ray_unlearn.training.outcome import finished

    task = with_attacked_goals(config, task, say)
    schema, start_path = row_schema(config), folder / "compare" / "start.parquet"
    places = {
        (row["trial_id"], seed): folder / "compare" / "runs" / f"{row['trial_id']}-seed{seed}.parquet"
        for row in finalists
        for seed in seeds
    }
    done = {key: row for key, path in places.items() if (row := read_row(path)) is not None}
    # Seed by seed: a comparison that is interrupted has as many whole pairs as can be.
    jobs = {
        job.job_id: (row, job)
        for seed in seeds
        for row in finalists
        if (row["trial_id"], seed) not in done
        for job in [rerun_job(config, row, seed)]
    }
    if done:
        say(f"{len(done)} of {len(places)} runs are there already")
    if not jobs:
        return list(done.values())
    with gangs_for(task, config.gang, config.concurrent, config.address, config.grow_to, say) as gangs:
        start = read_row(start_path)
        if start is None:
            report = finished(gangs.run(held_out_job(config, config.seed)), "the starting model")
            head = {"trial_id": "start", "method": "start", "benchmark": config.benchmark, "status": COMPLETED}
            start = head | {f"{config.benchmark}/{name}": value for name, value in report.metrics("report").items()}
            write_table(start_path, schema, [start])
        judge = held_out_judge(config, task, metrics_of(start, config.benchmark))
        for job, outcome, seconds in gangs.run_all(job for _, job in jobs.values()):
            row = rerun_row(config, judge, jobs[job.job_id][0], job, outcome, seconds)
            key = row["trial_id"], job.seed
            check_is_result(row)
            write_table(places[key], schema, [row])
            done[key] = row
            found = row["error"] or ", ".join(f"{name} {row[name]:.3f}" for name in MEASURES)
            say(f"[{len(done)}/{len(places)}] {row['trial_id']} seed {job.seed}: {found}")
    return list(done.values())


def check_is_result(run: Row) -> None:
    """A run that diverged or ran out of memory is one. Raises RuntimeError where it failed for another reason."""
    if run["error"] and run["failure"] not in (NAN, INF, *MEMORY):
        raise RuntimeError(f"{run['trial_id']} with seed {run['seed']} failed: {run['error']}")


def read_row(path: Path) -> dict[str, Any] | None:
    """The one row of a file; None where it is not there or damaged."""
    try:
        return pq.ParquetFile(path, page_checksum_verification=True).read().to_pylist()[0]
    except (OSError, IndexError, pa.ArrowException):
        return None


def metrics_of(row: Row, benchmark: str) -> dict[str, float]:
    """The metrics that a row has, by their plain names."""
    head = f"{benchmark}/"
    return {key.removeprefix(head): v for key, v in row.items() if key.startswith(head) and v is not None}


# ---- what they say


def summarise(
    config: SearchConfig,
    trials: Sequence[Row],
    spaces: Mapping[str, Space],
    finalists: Sequence[Row],
    runs: Sequence[Row],
    seeds: Sequence[int],
    importances: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """comparison.json as plain data, numbers alone: {
        "seeds": [int],
        "finalists": [{"method", "trial_id", "n": runs, "failed": of them diverged,
            "forget" | "utility" | "objective": {"mean", "std", "min", "max"}, "metrics": {"<benchmark>/<metric>":
            {"mean", "std"}}}], std null where n is 1, metrics of runs that did not diverge;
        "hypervolume": {method: {"value", "low", "high"}},
        "differences": see `difference_table`,
        "warnings": [str], "budget": {method: {"trials", "epochs", "device_seconds"}},
        "importances": {method: {parameter: share}}, "edges": [{"method", "parameter", "value", "low", "high",
        "end": "lower" | "upper"}]}.

    A run that diverged counts as forget 0, utility 0, objective 0. A method's best point, of which `differences`
    speaks, is the first of its finalists: the one that the search would choose. To pick it by these runs would favour
    whoever has more finalists.
    """
    by_seed = {row["trial_id"]: {run["seed"]: scored(run) for run in runs if _is_of(run, row)} for row in finalists}
    ran = [row for row in finalists if by_seed[row["trial_id"]]]
    best: dict[str, Row] = {}
    for row in ran:
        best.setdefault(row["method"], row)
    budgets = count_budgets(trials)
    warnings = describe_limits(len(seeds), SEED, len(best))
    if unequal := describe_unequal(budgets):
        warnings.append(f"The methods had unequal budgets: {unequal}. Who had more had more chances to find something.")
    for method in config.methods:
        if method not in best:
            warnings.append(f"No trial of {method_label(method)} completed; it is not compared.")
    for row in ran:
        failed = [run for run in by_seed[row["trial_id"]].values() if run["status"] != COMPLETED]
        if failed:
            warnings.append(
                f"{row['trial_id']}: {len(failed)} of {len(by_seed[row['trial_id']])} runs failed "
                f"({failed[0]['error']}); they count as forget 0, utility 0"
            )
    units = {
        method: {seed: run for seed, run in by_seed[row["trial_id"]].items() if seed in seeds}
        for method, row in best.items()
    }
    return {
        "seeds": list(seeds),
        "finalists": [
            _describe_finalist(row, list(by_seed[row["trial_id"]].values()), config.benchmark) for row in ran
        ],
        "hypervolume": _hypervolumes(ran, by_seed),
        "differences": difference_table(units, SEED),
        "warnings": warnings,
        "budget": budgets,
        "importances": {method: dict(shares) for method, shares in importances.items()},
        "edges": find_edges(best, spaces),
    }


def scored(run: Row) -> Row:
    """The run; one that diverged, or ran out of memory, with the worst scores there are."""
    return run if run["status"] == COMPLETED else {**run, **dict.fromkeys(MEASURES, 0.0)}


def _is_of(run: Row, finalist: Row) -> bool:
    return bool(run["trial_id"] == finalist["trial_id"])


def _describe_finalist(row: Row, runs: Sequence[Row], benchmark: str) -> dict[str, Any]:
    good = [run for run in runs if run["status"] == COMPLETED]
    names = [n for n in (good[0] if good else {}) if n.startswith(f"{benchmark}/")]
    metrics = {
        name: describe_spread(np.array([run[name] for run in good], float))
        for name in names
        if all(run.get(name) is not None for run in good)
    }
    return {
        **{"method": row["method"], "trial_id": row["trial_id"], "n": len(runs), "failed": len(runs) - len(good)},
        **describe_units(runs),
        "metrics": {name: {part: spread[part] for part in ("mean", "std")} for name, spread in metrics.items()},
    }


def describe_units(units: Sequence[Row]) -> dict[str, Any]:
    """By measure, the spread over the units."""
    return {name: describe_spread(np.array([unit[name] for unit in units], float)) for name in MEASURES}


def _hypervolumes(finalists: Sequence[Row], by_trial: Mapping[str, Mapping[int, Row]]) -> dict[str, dict[str, float]]:
    """By method, the area under its finalists' mean (forget, utility), seeds resampled for all of them together."""
    found = {}
    for method in dict.fromkeys(row["method"] for row in finalists):
        mine = [by_trial[row["trial_id"]] for row in finalists if row["method"] == method]
        seeds = shared_units(mine)
        if seeds:
            points = np.array([[[m[seed]["forget"], m[seed]["utility"]] for m in mine] for seed in seeds])
            interval = bootstrap(len(seeds), lambda draw, points=points: hypervolume(points[draw].mean(axis=0)))  # type: ignore[misc]
            found[method] = {"value": interval.value, "low": interval.low, "high": interval.high}
    return found


def shared_units(runs: Sequence[Mapping[int, Row]]) -> list[int]:
    """Units that all of them have."""
    return sorted(set.intersection(*(set(units) for units in runs))) if runs else []


def difference_table(units: Mapping[str, Mapping[int, Row]], unit: str) -> list[dict[str, Any]]:
    """Every pair of methods: [{"better", "other", "measure", "unit", "value", "low", "high", "n", "p", "corrected_p",
    "verdict"}]; p and what follows are null but for the objective, and corrected over all its pairs.

    units: by method and unit, a row with the measures.
    """
    return with_verdicts(pair_differences(units, unit, MEASURES, JUDGED))


def pair_differences(
    units: Mapping[str, Mapping[int, Row]], unit: str, measures: Sequence[str], judged: str
) -> list[dict[str, Any]]:
    """The same, before p is corrected: without verdicts."""
    found: list[dict[str, Any]] = []
    for first, second in combinations(units, 2):
        places = shared_units([units[first], units[second]])
        for measure in measures if places else ():
            a, b = (np.array([units[name][k][measure] for k in places], float) for name in (first, second))
            names = (first, second)
            if a.mean() < b.mean():
                names, a, b = (second, first), b, a
            difference = compare_pairs(a, b)
            found.append(
                {
                    **{"better": names[0], "other": names[1], "measure": measure, "unit": unit},
                    **asdict(difference.interval),
                    **{"n": difference.n, "p": None, "corrected_p": None, "verdict": None},
                }
            )
            if measure == judged:
                found[-1]["p"] = difference.p
    return found


def with_verdicts(differences: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """p corrected over all that have one, and what it says."""
    judged = [item for item in differences if item["p"] is not None]
    for item, p in zip(judged, corrected([item["p"] for item in judged]), strict=True):
        item |= {"corrected_p": p, "verdict": verdict(item["value"], p)}
    return differences


def describe_comparison(comparison: Mapping[str, Any]) -> list[str]:
    """Lines for people: the finalists, what tells them apart, what to mind."""
    warnings = [*comparison["warnings"], *map(describe_edge, comparison["edges"])]
    return [
        *["", tabulate_spreads(comparison["finalists"], MEASURES, SEED)],
        *["", tabulate_differences(comparison["differences"], SEED)] * bool(comparison["differences"]),
        *["", *(f"Note: {warning}" for warning in warnings)],
    ]

"""The best trial of each method, run again and scored on the held-out split; and what runs a row's trial again.

A restored gang repeats a trial to the bit, so no trial needs a checkpoint.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_unlearn.benchmarks import Profile, Task, load_benchmark
from ray_unlearn.config import ATTACKS, SearchConfig
from ray_unlearn.gang import Gangs
from ray_unlearn.ledger import Event, Ledger
from ray_unlearn.losses import METHODS
from ray_unlearn.objective import Judge
from ray_unlearn.recorder import trial_of
from ray_unlearn.results import CANDIDATES, COMPLETED, FAILED, PRUNED, Writer, trial_schema
from ray_unlearn.robustness import describe_metrics
from ray_unlearn.storage import checksum
from ray_unlearn.trial import Job


def run_finals(
    config: SearchConfig,
    gangs: Gangs,
    task: Task,
    best: Mapping[str, Mapping[str, Any]],
    writer: Writer,
    ledger: Ledger,
    done: Mapping[str, Event],
    keep_model: bool,
) -> list[str]:
    """Run the best trial of each method again to its best point, and score it on the held-out split; the finalists.

    The chosen one's model is kept. done: what a search that goes on has of this already, by trial_id.
    """
    anchors = _anchors(task)
    finalists = [*anchors, *(row["trial_id"] for row in best.values())]
    if finals_are_done(task, best, writer.folder, done, keep_model, config.utility_floor):
        return finalists
    keeps = _kept(best, config.utility_floor, keep_model)
    left = {
        name: row
        for row in best.values()
        if not _is_done(done.get(name := row["trial_id"]), writer.folder, name == keeps)
    }
    report = gangs.run(replace(held_out_job(config, config.seed), weights=True))
    start, start_nll = finished_profile(report, "report", "the starting model"), report["forget_nll"]
    judge = held_out_judge(config, task, start.metrics)

    def record(trial_id: str, row: Mapping[str, Any], names: list[str], has_model: bool = False) -> None:
        files = {name: checksum(writer.folder / name) for name in [writer.write_final(row), *names]}
        ledger.append("final", trial_id=trial_id, row=writer.as_written(row)[0], files=files, has_model=has_model)

    for name, profile in zip(anchors, [start, *filter(None, [task.report.retrained])], strict=True):
        scores = asdict(judge.verdict(profile.metrics, is_last=False))
        examples = [writer.write_examples("start", "report", start.examples)] if profile is start else []
        record(name, _final_row({"trial_id": name, "method": name}, config, scores, profile), examples)
    for name, row in left.items():
        place = writer.folder / "model.unfinished" if name == keeps else None
        job = replace(rerun_job(config, row, config.seed), save_to=str(place) if place else None, weights=True)
        began = time.perf_counter()
        report = gangs.run(job)
        final = rerun_row(config, judge, row, job, report, time.perf_counter() - began)
        names = []
        if "error" not in report:
            profile = finished_profile(report, "report", name)
            lengths = task.forget.answer_lengths.tolist()
            names.append(writer.write_examples(name, "report", profile.examples))
            names.append(writer.write_weights(name, report["weights"], lengths, start_nll))
        has_model = place is not None and place.is_dir()
        if place is not None and has_model:
            names += _keep(place, writer.folder)
        record(name, final, names, has_model)
    return finalists


def finals_are_done(
    task: Task,
    best: Mapping[str, Mapping[str, Any]],
    folder: Path,
    done: Mapping[str, Event],
    keep_model: bool,
    floor: float,
) -> bool:
    """Whether nothing is left to be run of what `run_finals` does."""
    keeps = _kept(best, floor, keep_model)
    names = [row["trial_id"] for row in best.values()]
    return all(_is_done(done.get(name), folder, name == keeps) for name in [*_anchors(task), *names])


def _anchors(task: Task) -> list[str]:
    return ["start"] + (["retrained"] if task.report.retrained else [])


def _kept(best: Mapping[str, Mapping[str, Any]], floor: float, keep_model: bool) -> str | None:
    """The trial whose model is kept."""
    chosen = choose(list(best.values()), floor)
    return chosen["trial_id"] if keep_model and chosen is not None else None


def _is_done(event: Event | None, folder: Path, with_model: bool) -> bool:
    if event is None or event["row"]["status"] != COMPLETED:
        return False
    names = [name for name in event["files"] if with_model or not name.startswith("model/")]
    if not all((folder / name).is_file() for name in names):  # a copy that was fetched may lack some
        return False
    return not with_model or (event["has_model"] and (folder / "model").is_dir())


def _keep(unfinished: Path, folder: Path) -> list[str]:
    """Put the saved model in its place in the folder; its files."""
    place = folder / "model"
    shutil.rmtree(place, ignore_errors=True)
    unfinished.rename(place)
    return [str(path.relative_to(folder)) for path in sorted(place.rglob("*")) if path.is_file()]


def held_out_job(config: SearchConfig, seed: int) -> Job:
    """Score the starting model on the held-out split, as finalists are."""
    attacks = replace(config.robustness, attacks=attacks_of(config))
    return Job("start-report", evaluate=("report",), points=False, complete=True, robustness=attacks, seed=seed)


def rerun_job(config: SearchConfig, row: Mapping[str, Any], seed: int) -> Job:
    """Train a results row's trial again with that seed, to the evaluation point that counted, and score it on the
    held-out split. With the search's own seed it is the same model again."""
    trial = replace(trial_of(row, METHODS[row["method"]].parameters), seed=seed)
    return replace(
        held_out_job(config, seed),
        job_id=f"final-{trial.trial_id}-{seed}",
        trial=trial,
        stop_after=int(row["epoch"]),
        alpha=row["alpha"],
    )


def held_out_judge(config: SearchConfig, task: Task, start: Mapping[str, float]) -> Judge:
    """From what the starting model measures on the held-out split."""
    retrained = metrics_of_profile(task.report.retrained)
    return Judge.build(load_benchmark(config.loaded_from), start, retrained, config.utility_floor, config.under)


def rerun_row(
    config: SearchConfig, judge: Judge, row: Mapping[str, Any], job: Job, report: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """The row of a trial that was run again; one that failed says why and has no scores."""
    plain = {name: value for name, value in row.items() if "/" not in name} | {"seed": job.seed}
    if "error" in report:
        unknown = dict.fromkeys(("forget", "utility", "objective"))
        return {**plain, **unknown, "status": FAILED, "error": report["error"], "failure": report["failure"]}
    profile = finished_profile(report, "report", row["trial_id"])
    costs = {name: report[name] for name in ("train_seconds", "evaluate_seconds", "peak_memory_bytes")}
    costs |= {"wall_seconds": seconds, "device_seconds": seconds * config.gang.num_workers}
    scores = asdict(judge.verdict(profile.metrics))
    return _final_row({**plain, **costs, "epochs_run": job.stop_after}, config, scores, profile)


def _final_row(
    row: Mapping[str, Any], config: SearchConfig, scores: Mapping[str, float], profile: Profile
) -> dict[str, Any]:
    named = {f"{config.benchmark}/{name}": value for name, value in profile.metrics.items()}
    head = {"benchmark": config.benchmark, "scale": config.scale, "status": COMPLETED, "error": None}
    return {**head, **row, **scores, **named}


def choose(rows: list[Any], floor: float) -> Any:
    """The row to hand over: the best objective among those at or above the utility floor, else of all.

    A pruned trial stands in only where none completed.
    """
    completed = [row for row in rows if row["status"] in CANDIDATES]
    able = completed or [row for row in rows if row["status"] == PRUNED]
    above = [row for row in able if row["utility"] >= floor]
    return max(above or able, key=lambda row: row["objective"], default=None)


def best_of_methods(rows: list[dict[str, Any]], floor: float) -> dict[str, dict[str, Any]]:
    methods = dict.fromkeys(row["method"] for row in rows)
    best = {method: choose([row for row in rows if row["method"] == method], floor) for method in methods}
    return {method: row for method, row in best.items() if row is not None}


def finished_profile(report: Mapping[str, Any], split: str, whose: str) -> Profile:
    if "error" in report:
        raise RuntimeError(f"{whose} could not be scored: {report['error']}")
    return Profile(**report["profiles"][split])


def row_schema(config: SearchConfig) -> pa.Schema:
    """Of the search's trials, and of its finalists."""
    benchmark = load_benchmark(config.loaded_from)
    parameters = dict.fromkeys(p for name in config.methods for p in METHODS[name].parameters)
    return trial_schema(
        benchmark.name, parameters, [*benchmark.metrics, *describe_metrics(benchmark, attacks_of(config))]
    )


def attacks_of(config: SearchConfig) -> tuple[str, ...]:
    """Those that finalists go through: the ones asked for, and those that trials were judged under."""
    return tuple(name for name in ATTACKS if name in (*config.robustness.attacks, *config.under))


def metrics_of_profile(profile: Profile | None) -> Mapping[str, float] | None:
    return profile.metrics if profile else None

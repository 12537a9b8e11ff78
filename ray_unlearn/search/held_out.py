"""A trial run again and scored on the held-out split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.attacked import describe_metrics
from ray_unlearn.benchmarks.contract import Profile, Task
from ray_unlearn.benchmarks.objective import Judge
from ray_unlearn.config import ATTACKS, COMPLETED, FAILED, SearchConfig
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.records.tables import trial_schema
from ray_unlearn.search.rows import device_seconds, trial_of
from ray_unlearn.training.losses import find_method
from ray_unlearn.training.outcome import Failed, Outcome
from ray_unlearn.training.trial import Job


def held_out_job(config: SearchConfig, seed: int) -> Job:
    """Score the starting model on the held-out split, as finalists are."""
    attacks, complete = replace(config.robustness, attacks=attacks_of(config)), not config.scores_alone
    return Job("start-report", evaluate=("report",), points=False, complete=complete, robustness=attacks, seed=seed)


def scores_only(config: SearchConfig) -> SearchConfig:
    """The search, whose finalists are measured by what the objective reads alone: no answers, no attacks but those that
    trials are judged under."""
    return replace(config, scores_alone=True, robustness=replace(config.robustness, attacks=()))


def rerun_job(config: SearchConfig, row: Mapping[str, Any], seed: int) -> Job:
    """Train a results row's trial again with that seed, to the evaluation point that counted, and score it on the
    held-out split. With the search's own seed it is the same model again."""
    trial = replace(trial_of(row, find_method(row["method"]).parameters), seed=seed)
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
    return build_judge(config, start, retrained)


def build_judge(config: SearchConfig, start: Mapping[str, float], retrained: Mapping[str, float] | None) -> Judge:
    """By the rule of that search, from what the starting and the retrained model measure on one split."""
    benchmark, ranking = load_benchmark(config.loaded_from), Ranking.of_search(config)
    return Judge.build(benchmark, start, retrained, ranking, config.under, config.left_out)


def rerun_row(
    config: SearchConfig, judge: Judge, row: Mapping[str, Any], job: Job, report: Outcome, seconds: float
) -> dict[str, Any]:
    """The row of a trial that was run again; one that failed says why and has no scores."""
    plain = {name: value for name, value in row.items() if "/" not in name} | {"seed": job.seed}
    if isinstance(report, Failed):
        unknown = dict.fromkeys(("forget", "utility", "objective"))
        return {**plain, **unknown, "status": FAILED, "error": report.error, "failure": report.failure}
    profile = report.profiles["report"]
    costs: dict[str, Any] = {
        name: getattr(report, name) for name in ("train_seconds", "evaluate_seconds", "peak_memory_bytes")
    }
    costs["wall_seconds"] = seconds
    costs["device_seconds"] = device_seconds(costs, config.gang.num_workers)
    scores = asdict(judge.verdict(profile.metrics))
    return _final_row({**plain, **costs, "epochs_run": job.stop_after}, config, scores, profile)


def _final_row(
    row: Mapping[str, Any], config: SearchConfig, scores: Mapping[str, float], profile: Profile
) -> dict[str, Any]:
    named = {f"{config.benchmark}/{name}": value for name, value in profile.metrics.items()}
    head = {"benchmark": config.benchmark, "scale": config.scale, "status": COMPLETED, "error": None}
    return {**head, **row, **scores, **named}


def row_schema(config: SearchConfig) -> pa.Schema:
    """Of the search's trials, and of its finalists."""
    benchmark = load_benchmark(config.loaded_from)
    parameters = dict.fromkeys(p for name in config.methods for p in find_method(name).parameters)
    return trial_schema(
        benchmark.name, parameters, [*benchmark.metrics, *describe_metrics(benchmark, attacks_of(config))]
    )


def attacks_of(config: SearchConfig) -> tuple[str, ...]:
    """Those that finalists go through: the ones asked for, and those that trials were judged under."""
    return tuple(name for name in ATTACKS if name in (*config.robustness.attacks, *config.under))


def metrics_of_profile(profile: Profile | None) -> Mapping[str, float] | None:
    return profile.metrics if profile else None

"""Score a model by itself: `ray_unlearn evaluate`. The same metrics and the same row as a search's finalists.

<out>/evaluate-<benchmark>-<time>/
    evaluation.parquet    one row for the model, and for the starting and the retrained one where known;
                          the columns of a search's trials (see results.py), null where nothing was searched
    evaluation.json       what was asked, versions, why a metric is absent
    log.txt
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ray_unlearn.benchmarks import Benchmark, Profile, Task
from ray_unlearn.config import GangConfig, Robustness
from ray_unlearn.gang import Gangs
from ray_unlearn.objective import Judge, describe_objective
from ray_unlearn.prepare import available_splits, last_profiles, write_profile
from ray_unlearn.results import COMPLETED, trial_schema, write_json, write_table
from ray_unlearn.robustness import describe_metrics, judged_metrics
from ray_unlearn.session import ray_session
from ray_unlearn.trial import Job
from ray_unlearn.versions import git_revision, package_versions

WHOLE = "whole"
MODEL, START, RETRAINED = "model", "start", "retrained"


@dataclass(frozen=True)
class Evaluation:
    """Profiles on the whole benchmark, and the verdict on the model where a starting model was given."""

    profiles: Mapping[str, Profile]
    """Of MODEL, and of START and RETRAINED where they are known."""
    scores: Mapping[str, float]
    """forget, utility and objective of the model; empty without a starting model."""


def run_evaluation(
    benchmark: Benchmark,
    tasks: Mapping[str, Task],
    gang: GangConfig,
    robustness: Robustness,
    utility_floor: float,
    seed: int,
    address: str | None,
    for_profile: bool,
) -> tuple[Evaluation, dict[str, Profile]]:
    """Score the models of `tasks` (MODEL, perhaps START) one after another on a gang each.

    for_profile: MODEL on all splits, and not on the whole alone. Returns the evaluation, and the model's profiles on
    the splits that it was scored on. Raises RuntimeError where one fails.
    """
    measured: dict[str, dict[str, Profile]] = {}
    robustness = replace(robustness, metrics=judged_metrics(benchmark))
    with tempfile.TemporaryDirectory(prefix="ray_unlearn-") as scratch, ray_session(gang, 1, address):
        for who, task in tasks.items():
            splits = available_splits(task) if who == MODEL and for_profile else (WHOLE,)
            with Gangs(task, gang, 1, Path(scratch) / who) as gangs:
                report = gangs.run(Job(who, evaluate=splits, complete=True, robustness=robustness, seed=seed))
            if "error" in report:
                raise RuntimeError(f"{task.model} could not be scored: {report['error']}")
            measured[who] = last_profiles([report])
    profiles = {who: by_split[WHOLE] for who, by_split in measured.items()}
    task = tasks[MODEL]
    if task.whole is not None and task.whole.retrained is not None:
        profiles[RETRAINED] = task.whole.retrained
    scores: dict[str, float] = {}
    if START in profiles:
        retrained = profiles[RETRAINED].metrics if RETRAINED in profiles else None
        judge = Judge.build(benchmark, profiles[START].metrics, retrained, utility_floor)
        scores = asdict(judge.verdict(profiles[MODEL].metrics))
    return Evaluation(profiles, scores), measured[MODEL]


def write_evaluation(
    folder: Path,
    benchmark: Benchmark,
    task: Task,
    asked: Mapping[str, Any],
    evaluation: Evaluation,
    harness: Mapping[str, Mapping[str, float]],
) -> Path:
    """The row of every model, and what it was made with; the row's path."""
    metrics = [*benchmark.metrics, *describe_metrics(benchmark)]
    schema = trial_schema(benchmark.name, [], metrics)
    rows = []
    for who, profile in evaluation.profiles.items():
        head = {"trial_id": who, "method": who, "benchmark": benchmark.name, "scale": task.scale, "status": COMPLETED}
        scores = evaluation.scores if who == MODEL else {}
        named = {f"{benchmark.name}/{name}": value for name, value in profile.metrics.items()}
        rows.append({**head, **scores, **named})
    path = folder / "evaluation.parquet"
    write_table(path, schema, rows)
    about = {
        "asked": dict(asked),
        "benchmark": benchmark.name,
        "objective_text": describe_objective(benchmark, asked["utility_floor"]),
        "split": task.split,
        "lm_evaluation_harness": {name: dict(found) for name, found in harness.items()},
        "absent": {who: dict(profile.absent) for who, profile in evaluation.profiles.items()},
        "versions": package_versions(),
        "git": git_revision(),
    }
    write_json(folder / "evaluation.json", about)
    return path


def write_model_profile(path: Path, benchmark: Benchmark, task: Task, profiles: Mapping[str, Profile]) -> None:
    """Keep the model's profiles as those of a retrained model, for `--retrained`."""
    whole = {name: benchmark.compare_with_itself(profile) for name, profile in profiles.items()}
    write_profile(path, whole, {"benchmark": benchmark.name, "split": task.split})


def describe_evaluation(benchmark: Benchmark, evaluation: Evaluation) -> str:
    """A table for people: one line a metric, one column a model; then why others are absent."""
    models = list(evaluation.profiles)
    texts = {**benchmark.metrics, **describe_metrics(benchmark)}
    lines = ["  ".join([f"{'metric':<40}", *(f"{who:>10}" for who in models)])]
    for name in texts:
        values = [evaluation.profiles[who].metrics.get(name, math.nan) for who in models]
        if not all(math.isnan(value) for value in values):
            cells = [f"{'–' if math.isnan(value) else format(value, '.4g'):>10}" for value in values]
            lines.append("  ".join([f"{name:<40}", *cells, texts[name]]))
    for name, value in evaluation.scores.items():
        lines.append(f"{name:<40}  {value:>10.4g}")
    absent = evaluation.profiles[MODEL].absent
    lines += [f"absent: {name}: {reason}" for name, reason in absent.items()]
    return "\n".join(lines)

"""Rows of results from a trial's reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray_unlearn.config import COMPLETED, FAILED, INTERPOLATED, PRUNED, TRIAL_SETTINGS, SearchConfig, TrialConfig
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.search.scored import Scored, ScoredPoint
from ray_unlearn.training.outcome import Failed


def trial_of(row: Mapping[str, Any], parameters: Mapping[str, float]) -> TrialConfig:
    """The trial that a results row came from."""
    return TrialConfig(
        trial_id=row["trial_id"],
        method=row["method"],
        parameters={name: row[name] for name in parameters},
        seed=row["seed"],
        **{name: row[name] for name in TRIAL_SETTINGS},
    )


def trial_row(
    trial: TrialConfig, number: int, config: SearchConfig, reports: Sequence[Scored | Failed], pruned: bool = False
) -> dict[str, Any]:
    """One row of results from a trial's reports; its best evaluation point counts."""
    settings = trial.to_json()
    parameters = settings.pop("parameters")
    good = [r for r in reports if isinstance(r, Scored)]
    failed = next((r for r in reports if isinstance(r, Failed)), None)
    row = {
        **settings,
        **parameters,
        "number": number,
        "benchmark": config.benchmark,
        "scale": config.scale,
        "status": PRUNED if pruned else COMPLETED if failed is None and good and good[-1].done else FAILED,
        "error": failed and failed.error,
        "failure": failed and failed.failure,
        "retries": reports[-1].retries if reports else 0,
        "epochs_run": good[-1].epoch if good else 0,
        "alpha": 1.0,
    }
    if good:
        # Points on the way have not been through the attacks that the last one has.
        counted = good[-1:] if config.under else good
        best = Ranking.of_search(config).best_point(counted)
        row |= _scores(best, best.epoch, config.benchmark)
        row |= {name: getattr(good[-1], name) for name in ("train_seconds", "evaluate_seconds", "peak_memory_bytes")}
    return row


def device_seconds(row: Mapping[str, Any], workers: int) -> float:
    """What a trial's own training and evaluation took of all its devices. Waiting for a gang is nobody's cost; of a
    trial that failed before it could say, its whole time counts."""
    known = [row[name] for name in ("train_seconds", "evaluate_seconds") if row.get(name) is not None]
    return workers * (sum(known) if known else row["wall_seconds"])


def point_row(row: Mapping[str, Any], point: ScoredPoint, benchmark: str) -> dict[str, Any]:
    """The row of a point on a finished trial's line: its settings, no cost of its own."""
    plain = {name: value for name, value in row.items() if "/" not in name and not name.endswith("_seconds")}
    scores = _scores(point, row["epochs_run"], benchmark)
    name = f"{row['trial_id']}@{point.alpha:g}"
    return {**plain, **scores, "trial_id": name, "status": INTERPOLATED, "alpha": point.alpha}


def curve_row(trial: TrialConfig, config: SearchConfig, report: Scored) -> dict[str, Any]:
    head = {"trial_id": trial.trial_id, "benchmark": config.benchmark, "method": trial.method}
    losses = {name: getattr(report, name) for name in ("step", "forget_loss", "retain_loss")}
    return {**head, **losses, **_scores(report, report.epoch, config.benchmark)}


def _scores(point: Scored | ScoredPoint, epoch: int, benchmark: str) -> dict[str, Any]:
    scores = {"objective": point.objective, "forget": point.forget, "utility": point.utility, "epoch": epoch}
    return scores | {f"{benchmark}/{name}": value for name, value in point.metrics.items()}

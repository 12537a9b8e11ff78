"""A trial's outcomes with the search's scores, as they travel through Ray Tune.

They travel as text, because Tune flattens and copies nested results.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache

from ray_unlearn.benchmarks.objective import Judge
from ray_unlearn.training.outcome import Failed, Outcome


@dataclass(frozen=True)
class ScoredPoint:
    """A point on a finished trial's line."""

    alpha: float
    metrics: Mapping[str, float]
    forget: float
    utility: float
    objective: float


@dataclass(frozen=True)
class Scored:
    """One evaluation point of a trial."""

    epoch: int
    done: bool
    metrics: Mapping[str, float]
    forget: float
    utility: float
    objective: float
    step: int = 0
    forget_loss: float | None = None
    retain_loss: float | None = None
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    peak_memory_bytes: int = 0
    retries: int = 0
    line: tuple[ScoredPoint, ...] = ()


def score(outcome: Outcome, judge: Judge) -> Scored | Failed:
    """Raises KeyError where a metric is missing: a score is never made up."""
    if isinstance(outcome, Failed):
        return outcome
    kept = (
        *("epoch", "done", "step", "forget_loss", "retain_loss"),
        *("train_seconds", "evaluate_seconds", "peak_memory_bytes", "retries"),
    )
    line = tuple(
        ScoredPoint(
            point.alpha,
            point.profiles["selection"].metrics,
            **asdict(judge.verdict(point.profiles["selection"].metrics, is_last=False)),
        )
        for point in outcome.line
    )
    verdict = asdict(judge.verdict(outcome.metrics(), outcome.done))
    return Scored(metrics=outcome.metrics(), line=line, **verdict, **{name: getattr(outcome, name) for name in kept})


def to_text(outcome: Scored | Failed) -> str:
    return json.dumps(asdict(outcome))


@lru_cache(maxsize=64)
def from_text(text: str) -> Scored | Failed:
    """What `to_text` wrote. Tune's callbacks, scheduler and trackers ask for the same one each."""
    values = json.loads(text)
    if "error" in values:
        return Failed(**values)
    return Scored(**{**values, "line": tuple(ScoredPoint(**point) for point in values["line"])})

"""What a job says: a report at each evaluation point, or that it has failed. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ray_unlearn.benchmarks.contract import Profile


@dataclass(frozen=True)
class LinePoint:
    """A point start + alpha (end - start) on the line through the starting model and a trial's."""

    alpha: float
    profiles: Mapping[str, Profile]
    """By split."""


@dataclass(frozen=True)
class LevelPoint:
    """The farthest point of a line whose utility holds a level, scored as its job asks."""

    level: float
    alpha: float
    profiles: Mapping[str, Profile]
    """By split; empty where its scores were not finite."""
    error: str = ""
    """Why there are none."""


@dataclass(frozen=True)
class Report:
    """One evaluation point of a job; `done` at the last."""

    epoch: int
    """Epochs trained; 0 for the starting model."""
    profiles: Mapping[str, Profile]
    """By split."""
    done: bool
    step: int = 0
    """Optimizer steps so far."""
    forget_loss: float | None = None
    """Mean over the epoch's steps; None for the starting model, as the next."""
    retain_loss: float | None = None
    line: tuple[LinePoint, ...] = ()
    """By alpha."""
    levels: tuple[LevelPoint, ...] = ()
    """In the order that the job asks for."""
    gradient_weights: list[list[float]] | None = None
    """By epoch, each forget sequence's gradient weight, where the job asks for them."""
    forget_nll: list[float] | None = None
    """Of the starting model where the job asks for it, nats a token of each forget sequence."""
    notes: tuple[str, ...] = ()
    """What the user should know about how this model is run."""
    adapter: str = ""
    """SHA-256 of where the gang's adapters start; empty where all weights are trained."""
    saved: str = ""
    """SHA-256 over the tensors that the job saved, where it was to (models.fingerprints.weights_digest)."""
    rounded_share: float = 0.0
    """Of the model's weights, what the attack `quantise` rounds."""
    hardware: Mapping[str, object] = field(default_factory=dict)
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    peak_memory_bytes: int = 0
    retries: int = 0
    """How often the job was begun anew."""

    def metrics(self, split: str = "selection") -> Mapping[str, float]:
        return self.profiles[split].metrics


@dataclass(frozen=True)
class Failed:
    """A job that is over without a result."""

    error: str
    """One line."""
    failure: str
    """A kind of failures.py."""
    retries: int = 0
    done: bool = True


Outcome = Report | Failed


def finished(outcome: Outcome, whose: str) -> Report:
    """The report. Raises RuntimeError where there is none."""
    if isinstance(outcome, Failed):
        raise RuntimeError(f"{whose}: {outcome.error}")
    return outcome

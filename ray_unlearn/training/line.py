"""The line between the starting model and a trial's end: how far one can go while utility holds a level.

Model mixing, as in "Unlearning with Control" (arXiv:2406.09179): along the line utility falls and forgetting grows, so
one trial gives a model for every level of utility, and methods can be compared where utility is equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ray_unlearn.benchmarks.objective import Judge

NEAR = 1 / 16
"""How near, as a share of its own distance from the start, the point found is to one that does not hold the level."""
FINEST = 1 / 1024
"""Nor is it looked for nearer than this: where a trial has gone far too far, the point lies near the start."""


@dataclass(frozen=True)
class LineSearch:
    """What a job looks for on its line: plain data."""

    levels: tuple[float, ...]
    """Utilities relative to the starting model, in (0, 1]."""
    judge: Judge
    """Of the selection half: utility is what it says."""
    splits: tuple[str, ...] = ()
    """What the point of each level is scored and attacked on, when it is found."""


def find_points(
    levels: Sequence[float], utility_at: Callable[[float], float], known: dict[float, float]
) -> list[float]:
    """The farthest point scored of each level, see `farthest`. A point that one level needed may be farther for another
    where utility is not monotone, so all are looked at once more."""
    for level in levels:
        farthest(level, utility_at, known)
    return [farthest(level, utility_at, known) for level in levels]


def farthest(level: float, utility_at: Callable[[float], float], known: dict[float, float]) -> float:
    """The farthest point scored whose utility holds the level: 0 is the start, 1 the end.

    By bisection between the farthest point that holds it and the next one that was scored. known: utilities by alpha,
    of which 0 and 1 are there; what is scored is added. Where utility is not monotone, a farther stretch that holds the
    level may lie between points that were not scored.
    """
    while (holds := max(alpha for alpha, utility in known.items() if utility >= level)) < 1.0:
        fails = min(alpha for alpha in known if alpha > holds)
        if fails - holds <= max(NEAR * holds, FINEST):
            break
        middle = (holds + fails) / 2
        known[middle] = utility_at(middle)
    return holds

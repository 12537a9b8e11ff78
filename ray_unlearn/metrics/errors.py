"""How far a metric that is a mean over few questions can be off by the choice of the questions alone."""

from __future__ import annotations

from typing import Any

import numpy as np

KS_OF_CHANCE = 1.63
"""Two samples of one distribution, n and m large, have a Kolmogorov-Smirnov distance above this times
sqrt((n + m) / (n m)) in one of a hundred cases."""


def standard_error(values: Any) -> float:
    """Standard error of the mean of one value a question, [n].

    Never less than half of one question's share of the mean: few questions that happen to agree are no proof.
    """
    found = np.asarray(values, float)
    spread = float(found.std(ddof=1)) / len(found) ** 0.5 if len(found) > 1 else 0.0
    return max(spread, abs(float(found.mean())) / (2 * len(found)))


def accuracy_error(correct: Any, chance: float) -> float:
    """The same of a share of right answers, bool [n]; never less than what a model that guesses with that chance of
    being right has (binomial)."""
    return max(standard_error(correct), (chance * (1.0 - chance) / len(correct)) ** 0.5)


def ks_of_chance(count: int, other: int) -> float:
    """The mean Kolmogorov-Smirnov distance between so many values and so many others of one distribution (of its
    limit for large samples; a little too large for small ones)."""
    from scipy.stats import kstwobign

    return float(kstwobign.mean()) * ((count + other) / (count * other)) ** 0.5


def ks_error(count: int, other: int, num_errors: float) -> float:
    """Of a Kolmogorov-Smirnov distance between so many values and so many others: `num_errors` of these are the
    distance that chance alone exceeds in one of a hundred cases. Above 1 / num_errors no distance could be told."""
    return KS_OF_CHANCE * ((count + other) / (count * other)) ** 0.5 / num_errors

"""How sure a difference is: intervals, an exact test, a correction for many of them. Pure; no words for people.

A unit is what was repeated: a seed of one setting, or a whole search. All that are compared share their units, so
differences are taken unit by unit. A verdict rests on the sign-flip test alone (exact at any number of units, whatever
the distribution), corrected by Holm over all pairs of one comparison, so that the chance of any false verdict in it is
at most 5 %. Intervals are studentised (Student's t), and say how large a difference is, not whether there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
LEVEL = 0.05
"""Chance of a false verdict in a whole comparison, at most."""
BOOTSTRAP_SEED = 0
MOST_FLIPS = 1 << 16
"""Up to 16 units all sign flips are counted; of more, so many are drawn."""
NOTICEABLE = 0.05
"""Scores lie in [0, 1]; a difference under this counts as small."""
RELIABLE, SMALL, UNDECIDED = "reliable", "small", "undecided"


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How much better one of two is, over units that both went through."""

    differences: np.ndarray
    """first - second, [n]."""

    @property
    def interval(self) -> Interval:
        """Of their mean."""
        return mean_interval(self.differences)

    @property
    def p(self) -> float:
        """Two-sided, of the exact sign-flip test, before any correction: computed where it is asked for."""
        return float(sign_flip_p(self.differences))

    @property
    def n(self) -> int:
        return len(self.differences)


def verdict(value: float, corrected_p: float) -> str:
    """On a mean difference: RELIABLE, SMALL (reliable, but under NOTICEABLE) or UNDECIDED."""
    if corrected_p > LEVEL:
        return UNDECIDED
    return RELIABLE if abs(value) >= NOTICEABLE else SMALL


def fewest_units(num_pairs: int) -> int:
    """With fewer, no verdict over so many pairs is possible: n that all agree reach p = 2 / 2 ** n."""
    return math.ceil(1 + math.log2(max(num_pairs, 1) / LEVEL))


def describe_spread(values: np.ndarray) -> dict[str, float | None]:
    """mean, std (n - 1 in the denominator; None of a single value), min and max of values [n], n at least 1."""
    std = float(values.std(ddof=1)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "std": std, "min": float(values.min()), "max": float(values.max())}


@lru_cache(maxsize=8)
def _resamples(count: int) -> tuple[np.ndarray, np.ndarray]:
    """RESAMPLES draws of `count` places with replacement: the distinct ones, int [m, count], and how often each came.

    Their order is nothing to a statistic over seeds, so each distinct draw is computed once: of 5 seeds there are 126.
    """
    chance = np.random.default_rng(BOOTSTRAP_SEED)
    draws = np.sort(chance.integers(0, count, (RESAMPLES, count)), axis=1)
    return np.unique(draws, axis=0, return_counts=True)


def bootstrap(count: int, statistic: Callable[[np.ndarray], float]) -> Interval:
    """The percentile interval of a statistic over `count` seeds; it gets the places of the seeds drawn, int [count]."""
    distinct, repeats = _resamples(count)
    values = np.repeat([statistic(draw) for draw in distinct], repeats)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(statistic(np.arange(count)), float(low), float(high))


def mean_interval(values: np.ndarray) -> Interval:
    """Of the mean of values [n] (Student's t); of one value, or of equal ones, it has no width."""
    from scipy.stats import ttest_1samp

    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    found = ttest_1samp(values, 0.0).confidence_interval(CONFIDENCE)
    return Interval(mean, float(found.low), float(found.high))


def compare_pairs(first: np.ndarray, second: np.ndarray) -> Difference:
    """Of two arrays [n] of which place k belongs to the same unit; n at least 1. Raises ValueError where one is not
    finite: what a failed unit counts is the caller's to say."""
    differences = np.asarray(first, float) - np.asarray(second, float)
    if not np.isfinite(differences).all():
        raise ValueError("a difference is not finite: give failed units a value")
    return Difference(differences)


def sign_flip_p(differences: np.ndarray) -> np.ndarray:
    """Share of all ways to choose the differences' signs that leave a mean at least as far from 0, in (0, 1].

    If neither were better, each pair could as well have come out the other way round (Fisher's randomisation test).
    differences: [..., n]; the result: [...].
    """
    from scipy.stats import permutation_test

    if differences.shape[-1] < 2:
        return np.ones(differences.shape[:-1])
    found = permutation_test(
        (differences,),
        lambda values, axis: np.mean(values, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=MOST_FLIPS,
        batch=max(1, 2**22 // differences.size),
        axis=-1,
        rng=BOOTSTRAP_SEED,
    )
    return np.minimum(found.pvalue, 1.0)


def corrected(p_values: Sequence[float]) -> list[float]:
    """By Holm's method: each at most 5 % only where the chance of any false one among them all is. Raises ValueError
    where one is not finite."""
    from statsmodels.stats.multitest import multipletests

    values = np.asarray(p_values, float)
    if not np.isfinite(values).all():
        raise ValueError("a p value is not finite")
    return [float(p) for p in multipletests(values, LEVEL, method="holm")[1]] if len(values) else []


def miss_rate(rate: float, count: int) -> float:
    """How often `count` runs show none of what happens to one of them at that rate."""
    return float((1.0 - rate) ** count)

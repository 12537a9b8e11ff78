"""How sure a difference is: spreads, bootstrap intervals, an exact sign-flip test, a verdict in words. Pure.

All intervals are 95 % percentile bootstraps (10,000 resamples, fixed seed) over training seeds. Seeds are shared by
all methods, so differences are resampled pair by pair: what a seed does to both falls out. With few seeds such an
interval is too narrow: of 5 Gaussian differences it covers the truth about 83 times in 100 rather than 95 (counted in
the tests). So it does not decide alone; the sign-flip test, which is exact at any number of seeds, must agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
BOOTSTRAP_SEED = 0
MOST_EXACT = 16
"""Pairs up to which all 2 ** n sign flips are counted; of more, RESAMPLES drawn ones."""
LARGEST_P = 0.10
"""Of the sign-flip test, for a difference to count. Five pairs that all agree reach 2 / 32 = 0.06, four only 0.13."""
FEWEST_SEEDS = 5
"""Follows from LARGEST_P: with fewer, no difference can count."""
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
    """How much better one of two is, over `n` pairs of runs with the same seed."""

    interval: Interval
    """Of the mean of first - second."""
    p: float
    """Two-sided, of the exact sign-flip test."""
    n: int

    @property
    def verdict(self) -> str:
        certain = not self.interval.low <= 0.0 <= self.interval.high and self.p <= LARGEST_P
        if not certain:
            return UNDECIDED
        return RELIABLE if abs(self.interval.value) >= NOTICEABLE else SMALL

    def turned(self) -> Difference:
        """The same seen from the other one."""
        value, low, high = self.interval.value, self.interval.low, self.interval.high
        return Difference(Interval(-value, -high, -low), self.p, self.n)


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


def compare_pairs(first: np.ndarray, second: np.ndarray) -> Difference:
    """Of two arrays [n] of which place k was run with the same seed; n at least 1."""
    differences = first - second
    interval = bootstrap(len(differences), lambda draw: float(differences[draw].mean()))
    return Difference(interval, sign_flip_p(differences), len(differences))


def sign_flip_p(differences: np.ndarray) -> float:
    """Share of all ways to choose the differences' signs that leave a mean at least as far from 0, in (0, 1].

    If neither were better, each pair could as well have come out the other way round (Fisher's randomisation test).
    """
    count = len(differences)
    if count <= MOST_EXACT:
        signs = np.array(list(product((1.0, -1.0), repeat=count)))
    else:
        drawn = np.random.default_rng(BOOTSTRAP_SEED).choice((1.0, -1.0), (RESAMPLES, count))
        signs = np.concatenate([np.ones((1, count)), drawn])
    means = np.abs(signs @ differences)
    # Sums of the same numbers in another order differ in the last bits.
    return float(np.mean(means >= means[0] - 1e-12))


def describe_difference(better: str, other: str, measure: str, difference: Difference) -> str:
    """One plain sentence; `difference` is seen from `better`."""
    interval = difference.interval
    scale = "" if measure == "objective" else f" in {measure}"
    values = f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
    if difference.verdict == UNDECIDED:
        why = (
            f"with {difference.n} seeds (a verdict needs {FEWEST_SEEDS})"
            if difference.n < FEWEST_SEEDS
            else "at this budget"
        )
        return f"{better} and {other} cannot be told apart{scale} {why}: {values}"
    size = "small but reliable" if difference.verdict == SMALL else "reliable"
    return f"{better}'s advantage over {other}{scale} is {values}: {size}"


def describe_limits(seeds: int) -> str:
    """What the intervals are, and what they do not say."""
    few = (
        f" With {seeds} seeds they are too narrow, which is why a verdict also asks that an exact sign-flip test has "
        f"p of at most {LARGEST_P:g}."
        if seeds < 20
        else ""
    )
    return (
        f"Intervals are {CONFIDENCE:.0%} percentile bootstraps over {seeds} seeds, paired by seed.{few} A seed decides "
        "the order of the data and what attacks draw, nothing else: another search could have found other settings, "
        "and another model or another split of the data other figures. Under "
        f"{NOTICEABLE:g} a difference counts as small."
    )

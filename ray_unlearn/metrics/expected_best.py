"""The best of n trials, for any n up to how many were run: what a smaller budget would have found.

Mean: the unbiased estimate, over all ways to draw n of the N recorded values without replacement (Tang et al.,
arXiv:2004.13705; the estimate of Dodge et al., arXiv:1909.03004, draws with replacement and is too low). Spread: the
bests of n values drawn with replacement, as another search would draw other trials; without it, the spread of all N
would be none. All values come from one sampler's path, so the spread is a lower bound of the luck of a search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ray_unlearn.metrics.statistics import CONFIDENCE, Interval


def expected_best(values: Sequence[float], count: int) -> Interval:
    """Mean of the best of `count` of the values [N], 1 <= count <= N, and the middle CONFIDENCE of redrawn bests."""
    from scipy.special import gammaln

    ordered = np.sort(np.asarray(values, float))
    total = len(ordered)
    if not 1 <= count <= total:
        raise ValueError(f"the best of {count} cannot be told from {total} values")
    place = np.arange(count, total + 1)  # of the best, counted from the lowest value: it has count - 1 others below it
    ways = gammaln(place) - gammaln(count) - gammaln(place - count + 1)
    all_ways = gammaln(total + 1) - gammaln(count + 1) - gammaln(total - count + 1)
    mean = float(np.exp(ways - all_ways) @ ordered[count - 1 :])
    reached = (np.arange(1, total + 1) / total) ** count
    tail = (1.0 - CONFIDENCE) / 2
    low, high = (ordered[np.searchsorted(reached, share)] for share in (tail, 1.0 - tail))
    return Interval(mean, float(low), float(high))


def share_ahead(first: Sequence[float], second: Sequence[float], count: int) -> float:
    """How often the best of `count` redrawn values of the first lies above that of the second, equal ones by half."""
    ours, theirs = np.sort(np.asarray(first, float)), np.sort(np.asarray(second, float))
    is_best = np.diff((np.arange(len(ours) + 1) / len(ours)) ** count)
    below = (np.searchsorted(theirs, ours, "left") / len(theirs)) ** count
    not_above = (np.searchsorted(theirs, ours, "right") / len(theirs)) ** count
    return float(is_best @ (below + not_above) / 2)


@dataclass(frozen=True)
class Lead:
    """Who is ahead at a budget: of the best expected value over the next one's."""

    count: int
    first: str
    second: str
    value: float
    share: float
    """How often the first is ahead of the second when both are redrawn."""

    @property
    def is_clear(self) -> bool:
        return self.share >= 1.0 - (1.0 - CONFIDENCE) / 2


def budgets(most: int) -> list[int]:
    """1, 2, 4 ... and `most` itself."""
    return sorted({2**k for k in range(most.bit_length())} | {most})


def lead(pools: dict[str, Sequence[float]], count: int) -> Lead | None:
    """Among the pools that have so many values; None of fewer than two."""
    means = {name: expected_best(pool, count).value for name, pool in pools.items() if len(pool) >= count}
    if len(means) < 2:
        return None
    first, second = sorted(means, key=lambda name: -means[name])[:2]
    return Lead(count, first, second, means[first] - means[second], share_ahead(pools[first], pools[second], count))

"""Which trials are worth going on with: asynchronous successive halving, as pure decisions.

A trial is judged at rungs, shares of its epochs. It goes on if it is among the best 1 / REDUCTION of its method's
trials that have reached the rung so far, itself included (n of them: the best ceil(n / REDUCTION)); nobody waits for
others. This is the stopping variant of ASHA (Li et al., arXiv:1810.05934): the first to arrive goes on, there being
nothing to compare it with, the second goes on if it is the better one, and whoever is stopped stays stopped, even if
later trials are worse. In a search that goes in order (search/order.py) a trial is compared with those alone whose
outcomes its proposal could know, so that no verdict hangs on who arrives first. Methods never compete, so that all of
them keep the same budget of trials. In a search of thousands, those of a rung that arrived longest ago are compared
with no more.

With one score the order is that score's. With several it is by fronts: first those that no trial at the rung
dominates, then those that only they dominate, and so on (MO-ASHA, Schmucker et al., arXiv:2106.12639); inside a front
by an epsilon-net (Salinas et al., arXiv:2106.05680), so that those who go on stand far apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ray_unlearn.metrics.fronts import pareto_front

RUNGS = (0.2, 0.5)
"""Shares of a trial's epochs at which it is judged. With these and the reduction tests.perf.pruning finds three times
fewer epochs for at most 2 % less hypervolume, by fronts, on the miniature and on real TOFU data."""
REDUCTION = 4
"""One trial in so many goes on from a rung."""
LOOKS_BACK = 1000
"""So many trials at a rung are compared at most, the latest: a verdict takes longer the more there are."""


class Halving:
    """Is told every trial's scores at every rung, answers whether it goes on."""

    def __init__(self, reduction: int = REDUCTION) -> None:
        self._reduction = reduction
        self._told: dict[tuple[str, int], dict[int, Sequence[float]]] = {}

    def goes_on(self, method: str, rung: int, number: int, scores: Sequence[float], last: int | None = None) -> bool:
        """Whether trial number `number`, the latest to reach the rung, goes on from it.

        Its scores (larger is better) are those of its best evaluation point so far: that one would count if it were
        stopped here, and they say more about the best one at last than the latest do. last: the trials that it is
        compared with have numbers up to this one; None: whatever has arrived.
        """
        told = self._told.setdefault((method, rung), {})
        others = list(told.values()) if last is None else [told[n] for n in sorted(told) if n <= last]
        told[number] = scores
        seen = np.array([*others[1 - LOOKS_BACK :], scores], float)
        return len(seen) - 1 in best(seen, -(-len(seen) // self._reduction))


def best(scores: np.ndarray, count: int) -> list[int]:
    """Places of the best `count` rows of scores [n, k], best first; of equal ones the earlier comes first."""
    if scores.shape[1] == 1:
        return np.argsort(-scores[:, 0], kind="stable")[:count].tolist()
    order: list[int] = []
    left = np.arange(len(scores))
    while len(left) and len(order) < count:
        front = pareto_front(scores[left])
        order += left[front][spread_out(scores[left[front]])].tolist()
        left = left[~front]
    return order[:count]


def spread_out(front: np.ndarray) -> list[int]:
    """An epsilon-net over the m points of a front [m, k], as an order of them.

    First the point with the largest product of scores (with one end of a front, where nothing is forgotten, search
    could do without), then always the one farthest from all that were taken.
    """
    order = [int(np.argmax(front.prod(axis=1)))]
    nearest = np.full(len(front), np.inf)
    while len(order) < len(front):
        nearest = np.minimum(nearest, np.linalg.norm(front - front[order[-1]], axis=1))
        nearest[order[-1]] = -1.0
        order.append(int(np.argmax(nearest)))
    return order

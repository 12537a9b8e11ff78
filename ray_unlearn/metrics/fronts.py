"""Pareto fronts and the area under them."""

from __future__ import annotations

import numpy as np


def pareto_front(points: np.ndarray) -> np.ndarray:
    """Which of n points [n, k] (larger is better) no other one dominates, bool [n]; equal points all stay."""
    if points.shape[1:] == (2,) and not np.isnan(points).any():
        return _plane_front(points)
    front = np.ones(len(points), bool)
    for i, point in enumerate(points):
        front[i] = not np.any(np.all(points >= point, axis=1) & np.any(points > point, axis=1))
    return front


def _plane_front(points: np.ndarray) -> np.ndarray:
    """The same for points [n, 2], in n log n: along falling x, whoever is higher than all with a larger x and as
    high as the highest with the same x."""
    x, y = points[:, 0], points[:, 1]
    order = np.lexsort((-y, -x))
    first = np.r_[True, x[order][1:] != x[order][:-1]][: len(points)]
    group = np.cumsum(first) - 1
    highest = y[order][first]
    before = np.r_[-np.inf, np.maximum.accumulate(highest)][: len(highest)]
    front = np.empty(len(points), bool)
    front[order] = (y[order] == highest[group]) & ((highest > before) | (np.arange(len(highest)) == 0))[group]
    return front


def hypervolume(points: np.ndarray) -> float:
    """Area that points [n, 2] dominate together, down to the reference point (0, 0); what is below 0 adds nothing."""
    area = height = 0.0
    for x, y in sorted(np.maximum(points, 0.0).tolist(), reverse=True):
        area += x * max(0.0, y - height)
        height = max(height, y)
    return area

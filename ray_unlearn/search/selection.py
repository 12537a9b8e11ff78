"""Which trial is best: the one owner of that rule."""

from __future__ import annotations

from typing import Any

from ray_unlearn.records.tables import CANDIDATES, PRUNED


def choose(rows: list[Any], floor: float) -> Any:
    """The row to hand over: the best objective among those at or above the utility floor, else of all.

    A pruned trial stands in only where none completed.
    """
    completed = [row for row in rows if row["status"] in CANDIDATES]
    able = completed or [row for row in rows if row["status"] == PRUNED]
    above = [row for row in able if row["utility"] >= floor]
    return max(above or able, key=lambda row: row["objective"], default=None)


def best_of_methods(rows: list[dict[str, Any]], floor: float) -> dict[str, dict[str, Any]]:
    methods = dict.fromkeys(row["method"] for row in rows)
    best = {method: choose([row for row in rows if row["method"] == method], floor) for method in methods}
    return {method: row for method, row in best.items() if row is not None}

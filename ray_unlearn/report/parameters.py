"""What the settings have to do with the objective: axes to draw, shares of importance, best points at an edge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray_unlearn.config import NEAR, Range
from ray_unlearn.records.tables import SearchResults
from ray_unlearn.report.frontier import runs
from ray_unlearn.report.tables import Column, Table, best_trial, methods
from ray_unlearn.report.text import is_number, method_label, setting

NEEDED_TRIALS = 20
"""Completed trials of a method before shares of importance mean anything."""


def axes(results: SearchResults, method: str) -> dict[str, Range]:
    """One axis a setting that was searched for the method, as long as its range."""
    space = results.meta.get("spaces", {}).get(method)
    ranges = space.get("ranges") if isinstance(space, Mapping) else None
    found = {}
    for name, part in (ranges if isinstance(ranges, Mapping) else {}).items():
        low, high = (part.get("low"), part.get("high")) if isinstance(part, Mapping) else (None, None)
        if is_number(low) and is_number(high) and low < high:
            found[str(name)] = Range(low, high, bool(part.get("log")) and low > 0)
    return found


def lines(results: SearchResults, method: str) -> dict[str, list[float | None]]:
    """By trial with an objective: where it lies on each of the axes, in [0, 1], and its objective."""
    along = axes(results, method)
    return {
        row["trial_id"]: [*(_place(axis, row.get(name)) for name, axis in along.items()), row["objective"]]
        for row in runs(results)
        if row["method"] == method and is_number(row["objective"])
    }


def _place(axis: Range, value: Any) -> float | None:
    return min(1.0, max(0.0, axis.share(value))) if is_number(value) else None


def importance(results: SearchResults) -> Table | None:
    """The share of the objective's variance that each setting explains, largest first; None where nobody has said."""
    known = results.meta.get("importances") or (results.comparison or {}).get("importances")
    columns = [
        Column("method", "method", "text"),
        Column("parameter", "setting", "text"),
        Column("share", "share of importance", "share"),
    ]
    rows: list[tuple[str, list[Any]]] = []
    for method in methods(results):
        shares = known.get(method) if isinstance(known, Mapping) else None
        for name, share in sorted((shares or {}).items(), key=lambda pair: -(pair[1] or 0.0)):
            if is_number(share):
                rows.append((method, [method_label(method), str(name), share]))
    return Table(columns, [row for _, row in rows], [method for method, _ in rows]) if rows else None


def importance_words(results: SearchResults) -> str:
    """What the shares are, which of them are not told from noise, for which methods there are none, and why."""
    table = importance(results)
    said = []
    if table is not None:
        said.append("Shares are fANOVA's, of the variance of the objective's ranks; other measures may rank otherwise.")
        said += _noise_words(results, table)
    missing = [method_label(method) for method in methods(results) if table is None or method not in table.owners]
    if missing:
        whose = "There are none" if table is None else f"There are none for {', '.join(missing)}"
        said.append(f"{whose}: parameter importance needs {NEEDED_TRIALS} completed trials of a method.")
    return " ".join(said)


def _noise_words(results: SearchResults, table: Table) -> list[str]:
    """One sentence for each method whose largest share is what chance gives."""
    known = results.meta.get("importances_of_chance")
    largest: dict[str, float] = {}
    for method, row in zip(table.owners, table.rows, strict=True):
        if method is None:
            continue
        largest[method] = max(row[2], largest.get(method, 0.0))
    return [
        f"{method_label(method)}'s are not told from noise: the largest is {share:.0%}, and with the objectives "
        f"shuffled it is up to {chance:.0%} (95 of 100 times)."
        for method, share in largest.items()
        if isinstance(known, Mapping) and is_number(chance := known.get(method)) and share < chance
    ]


def edges(results: SearchResults) -> list[str]:
    """One sentence for each best point that lies at an end of its range, where better may lie outside."""
    found = []
    for method in methods(results):
        best = best_trial(results, method)
        for name, axis in axes(results, method).items() if best else ():
            value = best.get(name) if best else None
            if is_number(value) and (end := axis.near_end(value)):
                edge = {"method": method, "parameter": name, "value": value, "low": axis.low, "high": axis.high}
                found.append(describe_edge(edge | {"end": end}))
    return found


def describe_edge(edge: Mapping[str, Any]) -> str:
    """edge: the method, its best point's parameter and value, the range's low and high, and which end is near."""
    name = edge["parameter"]
    value, limit = (setting(name, float(edge[key])) for key in ("value", "low" if edge["end"] == "lower" else "high"))
    return (
        f"{method_label(edge['method'])}'s best trial has {name} {value}, within {100 * NEAR:.0f} % of the "
        f"{edge['end']} end of its range ({limit}): better may lie beyond it."
    )


def drawn(results: SearchResults) -> list[list[dict[str, Any]]]:
    """The axes of each method as the page draws them."""
    return [
        [
            {
                "name": name,
                "low": axis.low,
                "high": axis.high,
                "lowText": setting(name, float(axis.low)),
                "highText": setting(name, float(axis.high)),
                "log": axis.log,
            }
            for name, axis in axes(results, method).items()
        ]
        for method in methods(results)
    ]

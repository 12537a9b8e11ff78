"""What each method would have found with fewer trials: the expected best of n, redrawn from one search's trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray_unlearn.metrics.expected_best import budgets, expected_best, lead
from ray_unlearn.records.tables import SearchResults
from ray_unlearn.report.frontier import runs
from ray_unlearn.report.tables import Column, Table, methods
from ray_unlearn.report.text import count, is_number, method_label, score
from ray_unlearn.wording import listing

FEWEST = 2
"""Trials of a method, before anything can be redrawn."""
CAVEAT = (
    "Redrawn from the trials of this one search: the mean by the unbiased estimate, and in brackets the middle 95 % of "
    "redraws. All trials come from one sampler's path, so another search differs by more than this: of methods only "
    "compare --searches speaks."
)


def pools(results: SearchResults) -> dict[str, Sequence[float]]:
    """By method, the objective of every trial; a failed one found nothing, and counts 0."""
    found = {
        method: [
            row["objective"] if is_number(row["objective"]) else 0.0 for row in runs(results) if row["method"] == method
        ]
        for method in methods(results)
    }
    return {method: values for method, values in found.items() if len(values) >= FEWEST}


def best_by_budget(results: SearchResults) -> Table | None:
    """One row a number of trials: each method's expected best, who leads and in what share of redraws."""
    found = pools(results)
    if not found:
        return None
    columns = [
        Column("trials", "trials a method", "count"),
        *(Column(method, method_label(method), "text") for method in found),
    ]
    if len(found) > 1:
        columns += [
            Column("leads", "leads", "text"),
            Column("by", "by", "score"),
            Column("share", "ahead of the next in", "share", "", "Redraws of both in which it is ahead"),
            Column("clear", "is the lead clear?", "text"),
        ]
    rows = []
    for number in budgets(max(map(len, found.values()))):
        row: list[Any] = [number, *(_cell(values, number) for values in found.values())]
        if len(found) > 1:
            ahead = lead(found, number)
            row += (
                [method_label(ahead.first), ahead.value, ahead.share, "yes" if ahead.is_clear else "no"]
                if ahead
                else [None] * 4
            )
        rows.append(row)
    return Table(columns, rows)


def _cell(values: Sequence[float], number: int) -> str | None:
    if number > len(values):
        return None
    found = expected_best(values, number)
    return f"{score(found.value)} [{score(found.low)}, {score(found.high)}]"


def budget_sentence(results: SearchResults) -> str:
    """Who leads at which budgets; empty with fewer than two methods."""
    found = pools(results)
    leads = [ahead for n in budgets(max(map(len, found.values()), default=1)) if (ahead := lead(found, n))]
    if not leads:
        return ""
    stretches: list[tuple[str, bool, list[int]]] = []
    for ahead in leads:
        if not stretches or stretches[-1][:2] != (ahead.first, ahead.is_clear):
            stretches.append((ahead.first, ahead.is_clear, []))
        stretches[-1][2].append(ahead.count)
    said = [
        f"{method_label(name)} with {_span(numbers)} ({'clear' if is_clear else 'within the spread'})"
        for name, is_clear, numbers in stretches
    ]
    return f"Ahead by expected best: {listing(said)}."


def _span(numbers: Sequence[int]) -> str:
    return count(numbers[0], "trial") if len(numbers) == 1 else f"{numbers[0]} to {count(numbers[-1], 'trial')}"


def lines(results: SearchResults, place: Mapping[str, int]) -> list[dict[str, Any]]:
    """By method, [trials, expected best, low, high] for every budget that is drawn. place: a method's number."""
    return [
        {
            "method": place[method],
            "points": [
                [number, found.value, found.low, found.high]
                for number in _drawn(len(values))
                for found in [expected_best(values, number)]
            ],
        }
        for method, values in pools(results).items()
    ]


def _drawn(most: int) -> list[int]:
    """Enough for a smooth line, and no more."""
    further = (round(32 * (most / 32) ** (k / 32)) for k in range(33)) if most > 32 else ()
    return sorted({*range(1, min(most, 32) + 1), *further})

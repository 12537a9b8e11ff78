"""What the chosen model answers now, example by example, against the starting model."""

from __future__ import annotations

from ray_unlearn.benchmarks.definition import FORGET
from ray_unlearn.records.tables import SearchResults
from ray_unlearn.report.tables import Column, Table
from ray_unlearn.report.text import is_number

SHOWN, SHOWN_OF_OTHERS = 50, 10
"""Examples on the page: of the set that was to be forgotten, and of each other one."""


def answers(results: SearchResults) -> tuple[Table, int] | None:
    """The forgotten examples that the chosen model still knows best, then those of every other set that it knows least;
    and how many there are in all."""
    chosen = results.meta.get("chosen")
    start = {_key(row): row for row in results.examples if row["trial_id"] == "start"}
    mine = [row for row in results.examples if chosen is not None and row["trial_id"] == chosen]
    if not mine:
        return None
    mine.sort(key=lambda row: (-row["probability"] if is_number(row["probability"]) else 1.0, *_key(row)))
    shown = [row for row in mine if row["set"] in (None, FORGET)][:SHOWN]
    for name in dict.fromkeys(row["set"] for row in mine if row["set"] not in (None, FORGET)):
        shown += [row for row in mine if row["set"] == name][: -SHOWN_OF_OTHERS - 1 : -1]
    columns = [
        Column("example", "example", "count"),
        Column("set", "set", "text"),
        Column("prompt", "prompt", "long"),
        Column("reference", "reference", "long"),
        Column("before", "starting model answers", "long"),
        Column("now", "chosen model answers", "long"),
        Column("probability_before", "probability at the start", "score"),
        Column("probability", "→ now", "score", "", "Probability of the reference, a token"),
        Column("memorised_before", "memorised at the start", "score"),
        Column("memorised", "→ now", "score", "", "Share of the answer's tokens that are the likeliest ones"),
    ]
    rows = []
    for row in shown:
        before = start.get(_key(row), {})
        rows.append(
            [
                row["example"],
                row["set"],
                row["prompt"],
                row["reference"],
                before.get("answer"),
                row["answer"],
                *(part.get(name) for name in ("probability", "exact_memorisation") for part in (before, row)),
            ]
        )
    empty = {column.key for i, column in enumerate(columns) if all(row[i] is None for row in rows)}
    return Table(columns, rows).without(empty), len(mine)


def _key(row: dict) -> tuple[str, int]:
    return str(row["set"] or ""), row["example"] if row["example"] is not None else -1

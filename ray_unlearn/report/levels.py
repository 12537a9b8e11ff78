"""Methods at equal utility, as `ray_unlearn compare --at-utility` leaves them: tables, words, bands, Parquet rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_unlearn.records.tables import SearchResults, write_table
from ray_unlearn.report.compared import sentences, warnings
from ray_unlearn.report.tables import Column, Table
from ray_unlearn.report.text import is_number, method_label, score
from ray_unlearn.report.verdicts import SEARCH, SEED, counted_units, describe_lines

ABOUT = (
    "Each finalist was trained to its trial's end. On the line between the starting model and that end, the farthest "
    "scored point whose utility holds the level on the selection half is scored on the held-out half; utility being "
    "equal, forgetting alone is compared: mean ± standard deviation, and the interval of the mean."
)
TABLE = "at_utility.parquet"
UNITS = (SEED, SEARCH)
_TEXTS, _NUMBERS = ("unit_kind", "method", "trial_id", "status", "error"), ("unit", "seed", "points")


def found(results: SearchResults) -> dict[str, Mapping[str, Any]]:
    """By kind of unit, what was compared."""
    every = (results.comparison or {}).get("at_utility") or {}
    return {unit: every[unit] for unit in UNITS if isinstance(every.get(unit), Mapping)}


def points(results: SearchResults, unit: str) -> Table | None:
    """One row a level and finalist (of searches, a method): what it forgets there."""
    if unit not in found(results):
        return None
    columns = [
        Column("level", "utility held", "score", "", "On the selection half, relative to the starting model"),
        Column("method", "method", "text"),
        Column("trial_id", "trial", "text"),
        Column("n", "runs" if unit == SEED else "searches", "count"),
        Column("forget", "forget", "spread", "", "On the held-out half"),
        Column("interval", "its mean's interval", "text"),
        Column("utility", "utility", "spread", "", "On the held-out half"),
        Column("alpha", "alpha", "spread", "", "How far on the way to the trial's end"),
    ]
    entries = found(results)[unit]["points"]
    rows = [
        [
            *(entry["level"], method_label(str(entry["method"])), entry["trial_id"], entry["n"], entry["forget"]),
            *(f"{score(entry['low'])} to {score(entry['high'])}", entry["utility"], entry["alpha"]),
        ]
        for entry in entries
    ]
    table = Table(columns, rows, [str(entry["method"]) for entry in entries])
    return table if unit == SEED else table.without({"trial_id"})


def told(results: SearchResults) -> list[dict[str, Any]]:
    """By kind of unit: what it is in words, the differences in words, and what must be known of them."""
    return [
        {
            "unit": unit,
            "what": f"Over {counted_units(len(summary['units']), unit)}.",
            "sentences": sentences(summary["differences"]),
            "notes": [
                *(text for entry in summary["lines"] for text in describe_lines(entry, unit)),
                *warnings(summary),
            ],
        }
        for unit, summary in found(results).items()
    ]


def bands(results: SearchResults, place: Mapping[str, int]) -> list[dict[str, Any]]:
    """By kind of unit, a line a method: [level, mean forget, low, high], by rising level. place: a method's number.

    Of several finalists of one method, the first.
    """
    panels = []
    for unit, summary in found(results).items():
        lines: dict[str, dict[float, list[float]]] = {}
        for entry in summary["points"]:
            values = [entry["level"], entry["forget"]["mean"], entry["low"], entry["high"]]
            if entry["method"] in place and all(map(is_number, values)):
                lines.setdefault(entry["method"], {}).setdefault(entry["level"], values)
        drawn = [{"method": place[name], "points": [line[x] for x in sorted(line)]} for name, line in lines.items()]
        panels.append({"label": "over seeds" if unit == SEED else "over whole searches", "lines": drawn})
    return panels


def write_levels(results: SearchResults, folder: Path) -> list[Path]:
    """Every run's points as one table; nothing where none were looked for."""
    rows = [{"unit_kind": unit, **row} for unit, summary in found(results).items() for row in summary["runs"]]
    if not rows:
        return []
    kinds = {name: pa.string() for name in _TEXTS} | {name: pa.int64() for name in _NUMBERS}
    schema = pa.schema(
        [(name, kinds.get(name, pa.float64())) for name in dict.fromkeys(n for row in rows for n in row)]
    )
    write_table(folder / TABLE, schema, rows)
    return [folder / TABLE]

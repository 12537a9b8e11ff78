"""All trials, all curves and all finals of a search as one Parquet table each, for whoever queries them.

While a search runs, a trial is a file of its own; a folder of such files takes far longer to read than one table.
Columns are plain, their types those of the trials' files. Each file's metadata says, in JSON under "ray_unlearn",
which search it is of, what the objective is, and what each metric measures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_unlearn.provenance import without_addresses
from ray_unlearn.records.tables import SearchResults, schema_of, write_table

TABLES = ("trials.parquet", "curves.parquet", "finals.parquet")


def write_whole(results: SearchResults, place: Path) -> list[Path]:
    """Write TABLES into `place`: trials in the order of suggestion, each one's curve in the order of epochs."""
    order = {row["trial_id"]: row["number"] for row in results.trials}
    curves = sorted(results.curves, key=lambda row: (order.get(row["trial_id"], len(order)), row["epoch"] or 0))
    rows = {"trials": results.trials, "curves": curves, "finals": results.finals}
    for name, found in rows.items():
        write_table(place / f"{name}.parquet", _schema(name, found, results), [_public(row) for row in found])
    return [place / name for name in TABLES]


def _schema(name: str, rows: list[dict[str, Any]], results: SearchResults) -> pa.Schema:
    meta = results.meta
    told = {"search": meta.get("name"), "objective": meta.get("objective_text"), "metrics": meta.get("metrics")}
    columns = dict.fromkeys(column for row in rows for column in row) or {"trial_id": None}
    return schema_of(name, columns).with_metadata({"ray_unlearn": json.dumps(told)})


def _public(row: dict[str, Any]) -> dict[str, Any]:
    """The row without where it ran, as in every file of a report."""
    return row if not row.get("error") else {**row, "error": without_addresses(row["error"])}

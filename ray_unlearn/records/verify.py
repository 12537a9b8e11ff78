"""Every file of a search against what it should be: checksums, hashes, and the ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_unlearn.config import UserError
from ray_unlearn.files import checksum, crc32, visible
from ray_unlearn.records.ledger import LEDGER, History, read_ledger
from ray_unlearn.records.tables import (
    CHECKSUM,
    LOCAL,
    is_own,
    json_checksum,
    schema_of,
    trial_place,
    write_json,
    write_table,
)

DERIVED = ("report", "log.txt")
"""What `ray_unlearn report` writes again, and what nobody reads."""

RECORDED = ("trials", "curves", "finals", "examples", "weights")
"""Folders in which every Parquet file is named by the ledger."""
TEXTS = (".json", ".txt", ".jinja", ".md")
FOREIGN = "the ledger does not know it, a copy of another file perhaps; it counts for nothing. Remove it"


@dataclass(frozen=True)
class Finding:
    """One file that is not as it was written, not there, or not the search's."""

    name: str
    """Within the search's folder."""
    what: str
    is_repaired: bool = False


def verify_search(folder: Path, repair: bool = False) -> list[Finding]:
    """What is damaged or missing. repair: write files of trials again where the ledger has them.

    Raises UserError where the folder holds no search.
    """
    if not (folder / "search.json").exists() and not (folder / LEDGER).exists():
        raise UserError(f"{folder}: holds no search. Give the folder that `tune` printed")
    history = read_ledger(folder)
    found = [*_check_ledger(history), *_check_json(folder), *_check_files(folder, history)]
    return _repaired(folder, history, found) if repair and found else found


def describe_findings(folder: Path, findings: list[Finding]) -> str:
    if not findings:
        return f"{folder}: every file is as it was written"
    lines = [f"{f.name}: {f.what}{', written again' if f.is_repaired else ''}" for f in findings]
    left = sum(not f.is_repaired and f.what != FOREIGN for f in findings)
    foreign = sum(f.what == FOREIGN for f in findings)
    counts = [f"{left} file(s) damaged or missing"] * (left > 0 or not foreign)
    counts += [f"{foreign} file(s) that are not the search's"] * (foreign > 0)
    return "\n".join([*lines, f"{folder}: {', '.join(counts)}; all others can be read"])


def _check_ledger(history: History) -> Iterator[Finding]:
    if history.damaged:
        yield Finding(LEDGER, f"damaged in line(s) {', '.join(map(str, history.damaged))}")
    if history.is_cut:
        yield Finding(LEDGER, "the last line is cut off, as after a kill; --resume removes it")


def _check_json(folder: Path) -> Iterator[Finding]:
    for path in visible([*folder.glob("*.json"), *(folder / "compare").glob("*.json")], folder):
        try:
            values = dict(json.loads(path.read_text()))
            is_right = path.name == LOCAL or values.get(CHECKSUM) in (None, json_checksum(values))
        except (OSError, ValueError, TypeError):
            is_right = False
        if not is_right:
            yield Finding(path.name, "damaged")


def _check_files(folder: Path, history: History) -> Iterator[Finding]:
    """What the ledger has a checksum of, and every Parquet file besides."""
    known = history.files()
    for name, expected in known.items():
        path = folder / name
        if not path.is_file():
            yield Finding(name, "missing")
        elif expected not in (checksum(path), _checksum_of_text(path)):
            yield Finding(name, "damaged")
    for path in visible(folder.rglob("*.parquet"), folder):
        name = str(path.relative_to(folder))
        if name in known or name.split("/")[0] in DERIVED:
            continue
        try:
            table = pq.ParquetFile(path, page_checksum_verification=True).read(use_threads=False)
        except (pa.ArrowException, OSError, ValueError):
            yield Finding(name, "damaged")
            continue
        is_whole = bool(history.events) and not history.damaged
        if name.split("/")[0] in RECORDED and (is_whole or not is_own(path, table)):
            yield Finding(name, FOREIGN)


def _checksum_of_text(path: Path) -> str | None:
    """Of a text file as it was before a tool changed its line ends (git's autocrlf does)."""
    return crc32(path.read_bytes().replace(b"\r\n", b"\n")) if path.suffix in TEXTS else None


def _repaired(folder: Path, history: History, findings: list[Finding]) -> list[Finding]:
    """The findings, with the files written again where the ledger says what was in them."""
    known = _rows_of(history)
    schemas = {}
    for name, rows in known.items():  # the columns are the same in all rows of a kind
        kind = Path(name).parts[0]
        if kind not in schemas and rows:
            schemas[kind] = schema_of(kind, rows[0])

    def repair(finding: Finding) -> Finding:
        schema = schemas.get(Path(finding.name).parts[0])
        if finding.name == "search.json" and history.meta is not None:
            write_json(folder / finding.name, history.meta)
        elif finding.name in known and schema is not None:
            write_table(folder / finding.name, schema, known[finding.name])
        else:
            return finding
        return replace(finding, is_repaired=True)

    with ThreadPoolExecutor() as pool:  # most of it is in pyarrow and in the disk
        return list(pool.map(repair, findings))


def _rows_of(history: History) -> dict[str, list[dict[str, Any]]]:
    """By file, what the ledger has of it."""
    found: dict[str, list[dict[str, Any]]] = {}
    is_old = any("/benchmark=" in name for name in history.files())
    for life in history.lives().values():
        if life.row is not None:
            found[f"curves/{trial_place(life.row, is_old)}"] = life.curve
            for row in (life.row, *life.points):
                found[f"trials/{trial_place(row, is_old)}"] = [row]
    return found

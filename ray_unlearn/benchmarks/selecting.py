"""Which of a table's rows are wanted: unrolled lists, rows by a column's value, rows by number."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from ray_unlearn.benchmarks.readers import Row
from ray_unlearn.config import UserError


@dataclass(frozen=True)
class Selection:
    """explode: a column whose lists become one row an item. where: by column, the values of wanted rows. rows: a file
    of wanted row numbers, from 0."""

    explode: str | None = None
    where: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    rows: Path | None = None

    def apply(self, rows: list[Row], place: str) -> list[Row]:
        """Raises UserError where nothing is left, or a column is not there."""
        if self.rows:
            numbers = _read_numbers(self.rows, len(rows))
            rows = [rows[number] for number in numbers]
        for name, wanted in self.where.items():
            values = [reach(row, name) for row in rows]
            texts = {written(value) for value in wanted}
            kept = [row for row, value in zip(rows, values, strict=True) if _is_wanted(value, texts)]
            if not kept:
                has = sorted({written(value) for value in values})[:5]
                raise UserError(f"{place}: no row has {name} = {', '.join(sorted(texts))}. There is: {', '.join(has)}")
            rows = kept
        return [one for row in rows for one in _unrolled(row, self.explode)] if self.explode else rows


def reach(row: Row, name: str) -> Any:
    """A column's value; a dotted name goes into mappings. Raises UserError where it is not there."""
    value: Any = row.values
    if name in value:
        return value[name]
    for part in name.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            has = ", ".join(map(repr, value if isinstance(value, dict) else row.values)) or "none"
            raise UserError(f"{row.where}: no column {name!r}, only {has}. Name another")
    return value


def written(value: Any) -> str:
    """A value as JSON writes it; texts without their quotes."""
    if isinstance(value, str):
        return value
    if isinstance(value, Decimal):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _is_wanted(value: Any, texts: set[str]) -> bool:
    """The value, or, of a list, one of its items."""
    return written(value) in texts or (isinstance(value, list) and any(written(item) in texts for item in value))


def _unrolled(row: Row, name: str) -> list[Row]:
    value = reach(row, name)
    if not isinstance(value, list):
        raise UserError(f"{row.where}: explode = {name!r}, but it holds no list. Name a column of lists")
    rest = {key: other for key, other in row.values.items() if key != name}
    rows = []
    for number, item in enumerate(value):
        # A list of mappings: each one's own columns, reached with and without the list's name.
        inner = item if isinstance(item, dict) else {}
        rows.append(Row(f"{row.where}, {name} {number}", {**rest, **inner, name: item}))
    return rows


def _read_numbers(file: Path, count: int) -> list[int]:
    """From a JSON list, or a text file with numbers between white space or commas."""
    if not file.is_file():
        raise UserError(f"{file}: no such file. Correct rows, or make the file of row numbers")
    text = file.read_text(encoding="utf-8-sig")
    try:
        numbers = (
            json.loads(text) if text.lstrip().startswith("[") else [int(n) for n in text.replace(",", " ").split()]
        )
    except ValueError as error:
        raise UserError(
            f"{file}: holds something else than row numbers ({error}). Write whole numbers from 0"
        ) from None
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
            raise UserError(f"{file}: row {number!r}, but there are rows 0 to {count - 1}. Correct it")
    return numbers

"""Rows of the user's own files and of hub datasets, each with the place that a complaint about it names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_unlearn.config import UserError
from ray_unlearn.wording import first_line

TEXT_COLUMN = "text"
"""What a plain text file's paragraphs are called."""


@dataclass(frozen=True)
class Row:
    """The values of the wanted columns; `where` names file and line (or row, from 0)."""

    where: str
    values: dict[str, Any]


def read_file(path: Path, columns: Sequence[str]) -> list[Row]:
    """By the name's ending: .jsonl, .json (a list of objects), .parquet, or .txt (paragraphs between blank lines).

    Raises UserError naming file and row where one of the columns, or anything else, is not as it must be.
    """
    if path.suffix not in _READERS:
        raise UserError(f"{path}: files of this kind are not read. Give one that ends in {', '.join(_READERS)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file. Correct the name; it is looked for beside the TOML file")
    try:
        rows = _READERS[path.suffix](path, columns)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}). Mend the file") from None
    if not rows:
        raise UserError(f"{path}: no rows. Give at least two")
    return rows


def read_hub(name: str, config: str | None, split: str, columns: Sequence[str]) -> list[Row]:
    """A hub dataset's split. Raises UserError where it cannot be had or lacks a column."""
    from datasets import load_dataset

    where = f"{name}{f' ({config})' if config else ''}, split {split}"
    try:
        table = load_dataset(name, config, split=split)
    except Exception as error:  # datasets raises a different type for each way that this can fail
        raise UserError(
            f"{where}: cannot be loaded from the hub ({first_line(error)}). Check its name, config and split, "
            "and the network"
        ) from None
    _check_columns(where, columns, table.column_names)
    if not len(table):
        raise UserError(f"{where}: no rows. Give at least two")
    rows = table.select_columns(list(columns))
    return [Row(f"{where}, row {number}", dict(values)) for number, values in enumerate(rows)]


def _read_jsonl(path: Path, columns: Sequence[str]) -> list[Row]:
    lines = enumerate(_read_text(path).split("\n"), 1)
    places = [(f"{path}, line {number}", line) for number, line in lines if line.strip()]
    return [_pick(where, _parse(where, line), columns) for where, line in places]


def _read_json(path: Path, columns: Sequence[str]) -> list[Row]:
    values = _parse(str(path), _read_text(path))
    if not isinstance(values, list):
        raise UserError(f"{path}: holds no list. Give a list of objects, or JSON lines in a file that ends in .jsonl")
    return [_pick(f"{path}, row {number}", value, columns) for number, value in enumerate(values)]


def _read_parquet(path: Path, columns: Sequence[str]) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        _check_columns(str(path), columns, file.schema_arrow.names)
        rows = file.read(list(columns)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({first_line(error)}). Write it anew") from None
    return [Row(f"{path}, row {number}", values) for number, values in enumerate(rows)]


def _read_paragraphs(path: Path, columns: Sequence[str]) -> list[Row]:
    rows, lines = [], []
    for number, line in enumerate([*_read_text(path).split("\n"), ""], 1):
        if line.strip():
            lines.append(line.rstrip("\r"))
        elif lines:
            rows.append(Row(f"{path}, line {number - len(lines)}", {TEXT_COLUMN: "\n".join(lines)}))
            lines = []
    return rows


_READERS: dict[str, Callable[[Path, Sequence[str]], list[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".txt": _read_paragraphs,
}


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: is not UTF-8 text. Save the file as UTF-8") from None


def _parse(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f", line {error.lineno}" if "\n" in text else ""
        raise UserError(f"{where}{place}: is no JSON ({error.msg} at column {error.colno}). Mend it") from None


def _pick(where: str, value: Any, columns: Sequence[str]) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{where}: is no object with columns. Write {{{json.dumps(columns[0])}: ...}}")
    _check_columns(where, columns, list(value))
    return Row(where, {name: value[name] for name in columns})


def _check_columns(where: str, columns: Sequence[str], has: Sequence[str]) -> None:
    missing = [name for name in columns if name not in has]
    if missing:
        raise UserError(f"{where}: no column {missing[0]!r}, only {', '.join(map(repr, has)) or 'none'}. Name another")


def load_table(source: str, part: str | None, split: str) -> Any:
    """`datasets.load_dataset`, but of a folder always the files that are in it now.

    The library's cache knows a folder by its last name and its README alone: of two folders called "tofu", or of
    one whose files have changed, it would give the rows that it read first.
    """
    import datasets

    folder = Path(source)
    if not folder.is_dir():
        return datasets.load_dataset(source, part, split=split)
    files = [(str(file), file.stat()) for file in sorted(folder.resolve().rglob("*")) if file.is_file()]
    key = hashlib.sha256(repr([(name, s.st_size, s.st_mtime_ns) for name, s in files]).encode()).hexdigest()[:16]
    place = Path(datasets.config.HF_DATASETS_CACHE) / f"ray_unlearn-{key}"
    return datasets.load_dataset(source, part, split=split, cache_dir=str(place))

"""Rows of the user's own files, as they stand there: nothing is guessed about types.

    .jsonl .json      by Python's reader, either may hold lines, a list, or an object with lists (`field` names one)
    .csv .tsv         every cell is the text that stands there
    .parquet .arrow   by pyarrow; columns that hold JSON text are read as JSON
    .txt              paragraphs between blank lines
    a folder          as `Dataset.save_to_disk` wrote it

All but folders may be packed as .gz, .zst or .zstd.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from ray_unlearn.config import UserError
from ray_unlearn.wording import first_line

TEXT_COLUMN = "text"
"""What a plain text file's paragraphs, and the texts of a list of texts, are called."""
PACKED = (".gz", ".zst", ".zstd")
LFS = b"version https://git-lfs.github.com/spec/"
FOLDER_FILES = ("dataset_dict.json", "state.json")


@dataclass(frozen=True, slots=True)
class Row:
    """The values of one row; `where` names file and line (or row, from 0)."""

    where: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Content:
    """One file's bytes, unpacked, and what of it is wanted. field: which list, of an object with several."""

    path: Path
    data: bytes
    field: str | None = None

    @property
    def text(self) -> str:
        try:
            return self.data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise UserError(f"{self.path}, line {line}: is not UTF-8 text. Save the file as UTF-8") from None


def read_rows(path: Path, field: str | None = None, split: str | None = None) -> list[Row]:
    """Every row with all its columns. split: of a folder with several.

    Raises UserError naming file and row where anything is not as it must be.
    """
    if path.is_dir():
        rows = _read_folder(path, split)
    else:
        kind = kind_of(path)
        if kind not in _READERS:
            raise UserError(f"{path}: files of this kind are not read. Give one that ends in {', '.join(_READERS)}")
        if not path.is_file():
            raise UserError(f"{path}: no such file. Correct the name; it is looked for beside the TOML file")
        try:
            rows = _READERS[kind](Content(path, _unpacked(path), field))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({first_line(error)}). Mend the file") from None
    if not rows:
        raise UserError(f"{path}: no rows. Give at least two")
    return rows


def kind_of(path: Path) -> str:
    """The ending that says how a file is read, in lower case, without that of its packing."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    if data.startswith(LFS):
        raise UserError(
            f"{path}: is a Git LFS pointer, not the data. Run `git lfs pull` in its repository, or download the file"
        )
    try:
        for suffix in reversed([suffix.lower() for suffix in path.suffixes]):
            if suffix == ".gz":
                data = gzip.decompress(data)
            elif suffix in PACKED:
                import pyarrow as pa

                data = pa.CompressedInputStream(io.BytesIO(data), "zstd").read()
            else:
                break
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be unpacked ({first_line(error)}). Pack it anew") from None
    return data


# ---- JSON


def _read_json(content: Content) -> list[Row]:
    text = content.text
    first = list(itertools.islice(_filled_lines(text), 2))
    if not first:
        return []
    if _are_lines(content, text, [line for _, line in first]):
        found = []
        for number, line in _filled_lines(text):
            where = f"{content.path}, line {number}"
            found.append(_row(where, parse(where, line)))
        return found
    values = _list_of(content, parse(str(content.path), text))
    return [_row(f"{content.path}, row {number}", value) for number, value in enumerate(values)]


def _filled_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank with their numbers, one at a time: a list of them would be another copy of the file."""
    for number, line in enumerate(io.StringIO(text, newline="\n"), 1):
        if line.strip():
            yield number, line.removesuffix("\n")


def _are_lines(content: Content, text: str, lines: Sequence[str]) -> bool:
    """Whether every line is a row, as the first two of them tell; the name's ending counts only where they do not."""
    if content.field is not None:
        return False
    if len(lines) > 1 and _is_whole(lines[0]):
        return True
    if kind_of(content.path) != ".jsonl" or lines[0].lstrip().startswith("["):
        return False
    return not (_lists_in(text) or (len(lines) > 1 and _is_whole(text)))


def _is_whole(text: str) -> bool:
    try:
        json.loads(text, parse_int=str)
    except (ValueError, RecursionError):
        return False
    return True


def _lists_in(text: str) -> bool:
    """Whether an object's values are lists of rows and nothing else."""
    try:
        values = json.loads(text, parse_int=str)
    except (ValueError, RecursionError):
        return False
    return bool(values) and all(isinstance(v, list) and v and isinstance(v[0], dict) for v in values.values())


def _list_of(content: Content, values: Any) -> list[Any]:
    path, field = content.path, content.field
    if field is not None:
        for part in field.split("."):
            if not isinstance(values, dict) or part not in values:
                has = ", ".join(map(repr, values)) if isinstance(values, dict) else "no names at all"
                raise UserError(f"{path}: no list {field!r}, only {has}. Name another with field")
            values = values[part]
    if isinstance(values, dict):
        lists = {name: value for name, value in values.items() if isinstance(value, list)}
        if len(lists) == 1:
            return next(iter(lists.values()))
        if lists:
            names = ", ".join(lists)
            raise UserError(f'{path}: holds several lists: {names}. Say which, such as field = "{next(iter(lists))}"')
    if not isinstance(values, list):
        raise UserError(f"{path}: holds no list. Give a list of objects, or JSON lines")
    return values


def parse(where: str, text: str) -> Any:
    """JSON whose numbers keep their digits: fractions are decimals."""
    try:
        return json.loads(text, parse_float=Decimal, parse_int=_whole_number)
    except json.JSONDecodeError as error:
        place = f", line {error.lineno}" if "\n" in text else ""
        raise UserError(f"{where}{place}: is no JSON ({error.msg} at column {error.colno}). Mend it") from None
    except RecursionError:
        raise UserError(f"{where}: lists or objects lie too deep in each other. Make it flatter") from None
    except _TooLong as error:
        raise UserError(f"{where}: holds a number of {error} digits. Write it as a text, in quotes") from None


class _TooLong(Exception):
    pass


def _whole_number(digits: str) -> int:
    if len(digits) > sys.get_int_max_str_digits() > 0:
        raise _TooLong(len(digits))
    return int(digits)


def _row(where: str, value: Any) -> Row:
    if isinstance(value, str):
        return Row(where, {TEXT_COLUMN: value})
    if not isinstance(value, dict):
        raise UserError(f'{where}: is no object with columns. Write {{"column": ...}}')
    return Row(where, value)


# ---- tables


def _read_cells(content: Content) -> list[Row]:
    csv.field_size_limit(1 << 30)
    text = content.text
    head = text.split("\n", 1)[0]
    separator = "\t" if kind_of(content.path) == ".tsv" else ";" if ";" in head and "," not in head else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[Row] = []
    try:
        names = next(reader, [])
        line = reader.line_num + 1
        for cells in reader:
            where, line = f"{content.path}, line {line}", reader.line_num + 1
            if not cells:
                continue
            if len(cells) != len(names):
                raise UserError(
                    f"{where}: {len(cells)} cells under {len(names)} names. Mend the row; a cell with {separator!r} or "
                    "a line break in it stands in quotes"
                )
            rows.append(Row(where, dict(zip(names, cells, strict=True))))
    except csv.Error as error:
        raise UserError(f"{content.path}, line {reader.line_num}: cannot be read ({error}). Mend it") from None
    return rows


def _read_parquet(content: Content) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(pa.BufferReader(content.data), page_checksum_verification=True).read()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{content.path}: cannot be read as Parquet ({first_line(error)}). Write it anew") from None
    return _table_rows(str(content.path), table)


def _read_arrow(content: Content) -> list[Row]:
    return _table_rows(str(content.path), _arrow_table(content.path, content.data))


def _arrow_table(path: Path, data: bytes) -> Any:
    import pyarrow as pa

    opened = (pa.ipc.open_stream, pa.ipc.open_file)
    for number, open_ in enumerate(opened):
        try:
            return open_(pa.BufferReader(data)).read_all()
        except (pa.ArrowException, OSError) as error:
            if number + 1 == len(opened):
                raise UserError(f"{path}: cannot be read as Arrow ({first_line(error)}). Write it anew") from None
    return None


def _table_rows(where: str, table: Any) -> list[Row]:
    as_json = _json_columns(table.schema)
    rows = table.to_pylist()
    for number, row in enumerate(rows):
        for name in as_json:
            if isinstance(row[name], str):
                row[name] = parse(f"{where}, row {number}", row[name])
    return [Row(f"{where}, row {number}", row) for number, row in enumerate(rows)]


def _json_columns(schema: Any) -> list[str]:
    """Columns whose texts are JSON: by their type, or by what `datasets` noted of them."""
    noted: dict[str, Any] = {}
    about = (schema.metadata or {}).get(b"huggingface")
    if about:
        noted = json.loads(about).get("info", {}).get("features") or {}
    return [
        field.name
        for field in schema
        if "arrow.json" in str(field.type)
        or (isinstance(noted.get(field.name), dict) and noted[field.name].get("_type") == "Json")
    ]


def _read_folder(folder: Path, split: str | None) -> list[Row]:
    """As `Dataset.save_to_disk` and `DatasetDict.save_to_disk` write one: only the files that state.json names."""
    if (folder / "dataset_dict.json").is_file():
        splits = parse(str(folder), (folder / "dataset_dict.json").read_text(encoding="utf-8")).get("splits", [])
        if split is None and len(splits) != 1:
            raise UserError(f'{folder}: has the splits {", ".join(splits)}. Say which, such as split = "{splits[0]}"')
        chosen = split or splits[0]
        if chosen not in splits:
            raise UserError(f"{folder}: has no split {chosen!r}, only {', '.join(splits)}. Name another")
        return _read_folder(folder / chosen, None)
    if not (folder / "state.json").is_file():
        found = sorted(file.name for file in folder.iterdir() if kind_of(file) in _READERS and file.is_file())
        way = f'Name a file in it, such as file = "{folder.name}/{found[0]}"' if found else "Name a file"
        raise UserError(f"{folder}: is a folder, and none that `save_to_disk` wrote. {way}")
    names = [entry["filename"] for entry in json.loads((folder / "state.json").read_text())["_data_files"]]
    values: list[dict[str, Any]] = []
    for name in names:
        file = folder / name
        if not file.is_file():
            raise UserError(f"{file}: no such file, but {folder.name}/state.json names it. Copy the folder anew")
        values += [row.values for row in _table_rows(str(file), _arrow_table(file, _unpacked(file)))]
    return [Row(f"{folder}, row {number}", row) for number, row in enumerate(values)]


def _read_paragraphs(content: Content) -> list[Row]:
    rows, lines = [], []
    for number, line in enumerate([*content.text.split("\n"), ""], 1):
        if line.strip():
            lines.append(line.rstrip("\r"))
        elif lines:
            rows.append(Row(f"{content.path}, line {number - len(lines)}", {TEXT_COLUMN: "\n".join(lines)}))
            lines = []
    return rows


_READERS: dict[str, Callable[[Content], list[Row]]] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_cells,
    ".tsv": _read_cells,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".txt": _read_paragraphs,
}

"""Tables of the hub, and of folders laid out like its repositories.

Which files are a configuration's split says the README's `configs`; where it says nothing, their names do:
<config>/<split>-*, <config>/<split>.*, <config>.*, and without a configuration what has the split's name in it. Only
these are fetched, and of a large corpus only blocks of them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ray_unlearn.benchmarks.readers import TEXT_COLUMN, Row, kind_of, parse, read_rows
from ray_unlearn.config import UserError
from ray_unlearn.files import cached
from ray_unlearn.models.hub import Repository, open_repository
from ray_unlearn.wording import first_line, listing

README = "README.md"
FILE_INSTEAD = "a copy of its files with file = ..."
KINDS = (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".arrow", ".txt")
KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""What the names of a split's files say where no README names them."""
LARGE_BYTES = 64 * 2**20
"""Of larger corpora only blocks are read."""
BLOCK_BYTES = 8 * 2**20
"""Of a file of JSON lines; of Parquet a row group is a block."""
TAIL_BYTES = 2**18
"""Read at a time, for the rest of a block's last line."""
DOCUMENTS_PER_BLOCK = 128
"""Drawn from one block before the next one is read, so that no place of a corpus decides."""


@dataclass(frozen=True)
class Table:
    where: str
    """What messages call it."""
    rows: Sequence[Mapping[str, Any]]

    @property
    def columns(self) -> tuple[str, ...]:
        """Of any of the rows, in the order in which they come."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row))


def read_hub(name: str, config: str | None, split: str) -> list[Row]:
    """A hub dataset's split: owner/name, or owner/name@revision. Raises UserError where it cannot be had."""
    where = table_name(name, config, split)
    if Path(name).exists():
        raise UserError(
            f"{where}: {Path(name).absolute()} is in the way, and a hub name never means a folder. Name a file in it "
            "with file = ..., or start elsewhere"
        )
    rows = read_table(open_table(name), config, split).rows
    return [Row(f"{where}, row {number}", dict(values)) for number, values in enumerate(rows)]


def open_table(name: str) -> Repository:
    """The repository of a table that is named in a TOML file."""
    return open_repository(name, instead=FILE_INSTEAD)


def read_table(repository: Repository, config: str | None, split: str) -> Table:
    """Every row of a configuration's split. Raises UserError where there is none."""
    where = table_name(repository.name, config, split)
    return read_files(repository, find_files(repository, config, split), where)


def table_name(repository: str, config: str | None, split: str) -> str:
    """What messages call it."""
    return f"{repository}{f' ({config})' if config else ''}, split {split}"


def read_files(repository: Repository, names: Sequence[str], where: str) -> Table:
    """The rows of these files, one after the other."""
    rows: list[dict[str, Any]] = []
    for path in repository.fetch(names):
        if path.stat().st_size:
            rows += [row.values for row in _rows_of(path, where)]
    if not rows:
        raise UserError(f"{where} is empty: no rows. Mend the file")
    return Table(where, rows)


def _rows_of(path: Path, where: str) -> list[Row]:
    try:
        if kind_of(path) == ".json" and (row := _single_row(path.read_bytes())):
            return [Row(str(path), row)]
        return read_rows(path)
    except UserError as error:
        raise UserError(f"{where} cannot be read: {error}") from None


def _single_row(content: bytes) -> dict[str, Any] | None:
    """The one line of JSON lines, which an object that holds a table could be, too: that has a list of objects."""
    if not content.startswith(b"{") or content.strip().count(b"\n"):
        return None
    values = parse("row 0", content.decode("utf-8", errors="replace"))
    is_table = any(isinstance(v, list) and v and isinstance(v[0], dict) for v in values.values())
    return None if is_table else values


# ---- which files


@dataclass(frozen=True)
class Configs:
    """What a README says: by configuration and split, the patterns of the files."""

    files: Mapping[str, Mapping[str, Sequence[str]]]
    default: str | None
    """The one that is meant where none is named."""


def find_files(repository: Repository, config: str | None, split: str) -> list[str]:
    """The files of a configuration's split, in order. Raises UserError naming what there is where there is none."""
    where = table_name(repository.name, config, split)
    configs = read_configs(repository)
    name = config or configs.default
    if not configs.files:
        found = _by_name(repository, config) if config else _by_keyword(_data(repository, ["**"]))
    elif name is None:
        raise UserError(f"{where}: there are several: {', '.join(configs.files)}. Say which with config")
    elif name not in configs.files:
        raise _no_such(where, "configuration", [*configs.files])
    else:
        found = {part: _data(repository, patterns) for part, patterns in configs.files[name].items()}
    if found.get(split):
        return found[split]
    if not repository.is_whole:
        raise UserError(
            f"{where}: is not in the hub's cache, which has no list of the repository's files either. Go online "
            f"once, or give {repository.instead}"
        )
    there = [part for part, files in found.items() if files]
    if there or configs.files:
        raise _no_such(where, "split", there)
    raise _no_such(where, "files", [])


def has_config(repository: Repository, config: str) -> bool:
    """Whether there is such a configuration at all. Raises UserError where nobody can tell."""
    configs = read_configs(repository)
    if configs.files:
        return config in configs.files
    if any(_by_name(repository, config).values()):
        return True
    if not repository.is_whole:
        find_files(repository, config, "train")  # raises
    return False


def _no_such(where: str, what: str, there: Sequence[str]) -> UserError:
    has = f"only {listing(there)}" if there else "nor any that a name or the README's configs tell"
    return UserError(
        f"{where} cannot be read: no such {what}, {has}. Correct the name, the files or the README's configs"
    )


def read_configs(repository: Repository) -> Configs:
    """By what the README says; empty where it says nothing of them."""
    if README not in repository.sizes:
        return Configs({}, None)
    from huggingface_hub import metadata_load

    (path,) = repository.fetch([README])
    try:
        said = [c for c in (metadata_load(path) or {}).get("configs") or () if "data_files" in c or "data_dir" in c]
        files = {str(each.get("config_name", "default")): _patterns(each) for each in said}
        defaults = [str(each.get("config_name", "default")) for each in said if each.get("default")]
    except Exception as error:  # YAML's own errors, and a form that is none of those that the hub knows
        raise UserError(
            f"{repository.name}: its README's configs cannot be read ({first_line(error)}). Mend it"
        ) from None
    if not defaults:
        defaults = [name for name in files if name == "default" or len(files) == 1]
    return Configs(files, defaults[0] if defaults else None)


def _patterns(values: Mapping[str, Any]) -> dict[str, list[str]]:
    base = PurePosixPath(values.get("data_dir") or "")
    files = values.get("data_files", "**")

    def listed(paths: Any) -> list[str]:
        return [str(base / path) for path in ([paths] if isinstance(paths, str) else paths)]

    if isinstance(files, str) or (files and all(isinstance(file, str) for file in files) and isinstance(files, list)):
        return {"train": listed(files)}
    if isinstance(files, dict):
        return {str(split): listed(paths) for split, paths in files.items()}
    return {str(entry["split"]): listed(entry["path"]) for entry in files}


def _data(repository: Repository, patterns: Sequence[str]) -> list[str]:
    """The data files that the patterns name; of several kinds the most frequent one."""
    names = [name for pattern in patterns for name in repository.match(pattern)]
    found = [name for name in dict.fromkeys(names) if kind_of(Path(name)) in KINDS]
    kinds = Counter(kind_of(Path(name)) for name in found).most_common(1)
    return [name for name in found if kind_of(Path(name)) == kinds[0][0]]


def _by_name(repository: Repository, config: str) -> dict[str, list[str]]:
    """Of the files in the configuration's folder, or with its name."""
    inside = _data(repository, [f"{config}/**"])
    if not inside:
        return {"train": _data(repository, [f"{config}.*"])}
    found = _by_keyword(inside, f"{config}/")
    for name in inside:
        group = found.setdefault(re.split(r"[-./]", name.removeprefix(f"{config}/"))[0], [])
        if name not in group:
            group.append(name)
    return found


def _by_keyword(names: Sequence[str], under: str = "") -> dict[str, list[str]]:
    """By the split that their names tell; all are for training where none tells."""
    result: dict[str, list[str]] = {}
    for name in names:
        words = set(re.split(r"[-._ /0-9]+", name.removeprefix(under).lower()))
        if splits := [split for split, keywords in KEYWORDS.items() if words & set(keywords)]:
            result.setdefault(splits[0], []).append(name)
    return result or {"train": list(names)}


# ---- large corpora


def documents(
    repository: Repository, names: Sequence[str], where: str, seed: int, whole: bool = False
) -> Iterator[tuple[str, Any]]:
    """(what messages call it, text) of a corpus's column `text`, in a random order that the seed fixes.

    Of a corpus of more than LARGE_BYTES, some documents each of blocks in a random order: of a file on the hub only the
    blocks that come to be read are fetched, and kept in the cache. whole: all is read first, however large. Raises
    UserError where a file has no such column.
    """
    random = np.random.default_rng(seed)
    is_large = sum(repository.sizes[name] for name in names) > LARGE_BYTES
    if whole or not is_large or not all(kind_of(Path(name)) in (".parquet", ".jsonl") for name in names):
        table = read_files(repository, names, where)
        check_column(table.columns, TEXT_COLUMN, where)
        for number in random.permutation(len(table.rows)).tolist():
            yield f"{where}, row {number}", table.rows[number].get(TEXT_COLUMN)
        return
    blocks = [(name, number) for name in names for number in range(_count_blocks(repository, name))]
    later: list[tuple[str, int, list[int]]] = []
    for index in random.permutation(len(blocks)).tolist():
        name, number = blocks[index]
        texts = _texts(repository, name, number, where)
        order = random.permutation(len(texts)).tolist()
        later.append((name, number, order[DOCUMENTS_PER_BLOCK:]))
        yield from (
            (f"{where}, {name}, row {row} of block {number}", texts[row]) for row in order[:DOCUMENTS_PER_BLOCK]
        )
    for name, number, order in later:
        texts = _texts(repository, name, number, where)
        yield from ((f"{where}, {name}, row {row} of block {number}", texts[row]) for row in order)


def check_column(columns: Sequence[str], wanted: str, where: str) -> None:
    if wanted not in columns:
        raise UserError(f"{where}: no column {wanted}; it has {', '.join(columns)}. Rename it")


def _count_blocks(repository: Repository, name: str) -> int:
    if kind_of(Path(name)) == ".jsonl":
        return -(-repository.sizes[name] // BLOCK_BYTES)
    return int(_kept(repository, name, None, lambda: _parquet(repository, name, lambda file: file.num_row_groups)))


def _texts(repository: Repository, name: str, number: int, where: str) -> list[Any]:
    """The texts of a block: of a row group, or of the lines that begin in a range of bytes."""

    def read() -> list[Any]:
        if kind_of(Path(name)) == ".jsonl":
            lines = _lines(repository, name, number * BLOCK_BYTES)
            rows = [parse(f"{where}, {name}, block {number}", line) for line in lines if line.strip()]
            if rows:
                check_column(tuple(dict.fromkeys(key for row in rows for key in row)), TEXT_COLUMN, f"{where}, {name}")
            return [row.get(TEXT_COLUMN) for row in rows]

        def column(file: Any) -> list[Any]:
            check_column(file.schema_arrow.names, TEXT_COLUMN, f"{where}, {name}")
            return list(file.read_row_group(number, columns=[TEXT_COLUMN]).column(0).to_pylist())

        return list(_parquet(repository, name, column))

    return list(_kept(repository, name, number, read))


def _lines(repository: Repository, name: str, start: int) -> list[str]:
    """The lines that begin in the block from `start`."""
    with repository.open(name) as file:
        file.seek(max(0, start - 1))
        content = bytes(file.read(BLOCK_BYTES + min(start, 1)))
        while not content.endswith(b"\n") and (more := bytes(file.read(TAIL_BYTES))):
            head, end, _ = more.partition(b"\n")
            content += head + end
    if start:  # up to here it belongs to the block before
        content = content.partition(b"\n")[2]
    return content.decode("utf-8", errors="replace").split("\n")


def _parquet(repository: Repository, name: str, read: Callable[[Any], Any]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with repository.open(name) as file:
        try:
            return read(pq.ParquetFile(file, pre_buffer=True))
        except pa.ArrowInvalid as error:
            raise UserError(
                f"{repository.name}: {name} cannot be read as Parquet ({first_line(error)}). Write it anew"
            ) from None


def _kept(repository: Repository, name: str, number: int | None, read: Callable[[], Any]) -> Any:
    """What `read` gives; of a file that only the hub has it is kept in the cache by commit, file and block."""
    if repository.at_hand(name) is not None:
        return read()
    key = {"name": "rows", "repository": repository.name, "commit": repository.commit, "file": name, "block": number}
    place = cached(key, lambda folder: _write(folder / "rows.json", read()))
    return json.loads((place / "rows.json").read_text(encoding="utf-8"))


def _write(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")

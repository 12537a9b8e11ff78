"""Tasks made of own data, kept in the cache: a second command reads their arrays in place of the rows.

<cache>/data-<key>/task.json    the task as plain data, with numbers in the place of arrays
                   <n>.npy      its arrays, which are mapped into memory and read where they are needed

The key is over the content of every file that the task is made of (the TOML file, the rows, the tokenizer, the model's
settings) and over the code that makes it; of tables on the hub it is over their commits. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ray_unlearn.benchmarks.contract import Probe, Profile, Prompts, Request, Split, Task
from ray_unlearn.benchmarks.definition import Definition
from ray_unlearn.benchmarks.sources import open_table
from ray_unlearn.files import cached
from ray_unlearn.models.hub import commits_of
from ray_unlearn.models.loading import TOKENIZER_OF
from ray_unlearn.models.sequences import Sequences
from ray_unlearn.models.tokenizers import list_files

KINDS = {kind.__name__: kind for kind in (Task, Split, Probe, Prompts, Profile, Sequences)}
ROOMS = (Path(__file__).parent, Path(__file__).parents[1] / "models", Path(__file__).parents[1] / "metrics")
"""The code that a task depends on."""
SETTINGS = ("config.json", "generation_config.json")
"""A model's files, beside those of its tokenizer, that a task depends on."""


def kept(definition: Definition, request: Request, make: Callable[[], Task]) -> Task:
    """What `make` makes of this definition and request, made once for the same files."""
    key = _key(definition, request)
    if key is None:
        return make()
    task = _read(cached(key, lambda folder: _write(folder, make())))
    return replace(task, model=str(request.model))


def _key(definition: Definition, request: Request) -> dict[str, Any] | None:
    """None where not everything that the task is made of is a file here."""
    sources = [*definition.sets.values(), *definition.questions.values()]
    model = Path(str(request.model))
    tokenizer = list_files(TOKENIZER_OF.get(str(request.model), str(request.model)))
    if not model.is_dir() or not tokenizer:
        return None
    named = [definition.path, definition.refusals, *(source.selection.rows for source in sources)]
    data = [*filter(None, named), *(path for source in sources if source.file for path in _files(source.file))]
    settings = [model / name for name in SETTINGS]
    code = sorted(path for room in ROOMS for path in room.rglob("*.py"))
    if not all(path.is_file() for path in data):
        return None  # `make` says what is missing
    return {
        "name": "data",
        "definition": str(definition.path.absolute()),
        "files": [_digest([path]) for path in data],
        "commits": hub_commits(definition),
        "tokenizer": _digest(tokenizer),
        "model": _digest(path for path in settings if path.is_file()),
        "code": _digest(code),
        "whole": request.whole,
        "scale": request.scale,
    }


def hub_commits(definition: Definition) -> dict[str, str]:
    """By repository, the commit that the tables on the hub are read at. Raises UserError where one cannot be had."""
    return commits_of(*map(open_table, hub_tables(definition)))


def hub_tables(definition: Definition) -> list[str]:
    return [source.hub for source in (*definition.sets.values(), *definition.questions.values()) if source.hub]


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _digest(paths: Iterable[Path]) -> str:
    """SHA-256 over the files' names and contents."""
    found = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        found.update(f"{path.name} {content}\n".encode())
    return found.hexdigest()


# ---- a task as plain data


def _write(folder: Path, task: Task) -> None:
    count = 0

    def encode(value: Any) -> Any:
        nonlocal count
        if isinstance(value, np.ndarray):
            np.save(folder / f"{count}.npy", value, allow_pickle=False)
            count += 1
            return {"array": count - 1}
        if is_dataclass(value) and not isinstance(value, type):
            return {"kind": type(value).__name__, "is": {f.name: encode(getattr(value, f.name)) for f in fields(value)}}
        if isinstance(value, Mapping):
            return {"map": {name: encode(each) for name, each in value.items()}}
        if isinstance(value, tuple):
            return {"tuple": [encode(each) for each in value]}
        return [encode(each) for each in value] if isinstance(value, list) else value

    (folder / "task.json").write_text(json.dumps(encode(task)))


def _read(folder: Path) -> Task:
    def decode(value: Any) -> Any:
        if isinstance(value, list):
            return [decode(each) for each in value] if value and isinstance(value[0], list | dict) else value
        if not isinstance(value, dict):
            return value
        ((kind, inner), *more) = value.items()
        if kind == "array":
            mapped = np.load(folder / f"{inner}.npy", mmap_mode="r", allow_pickle=False)
            return np.asarray(mapped)
        if kind == "kind":
            ((_, values),) = more
            return KINDS[inner](**{name: decode(each) for name, each in values.items()})
        if kind == "map":
            return {name: decode(each) for name, each in inner.items()}
        return tuple(decode(each) for each in inner)

    task = decode(json.loads((folder / "task.json").read_text()))
    assert isinstance(task, Task)
    return task

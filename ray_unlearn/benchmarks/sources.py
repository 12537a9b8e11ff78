"""Tables of the hub, and of folders laid out like its repositories."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ray_unlearn.benchmarks.readers import Row
from ray_unlearn.config import UserError
from ray_unlearn.wording import first_line


def read_hub(name: str, config: str | None, split: str) -> list[Row]:
    """A hub dataset's split. Raises UserError where it cannot be had.

    `datasets` takes a folder of that name in the current directory before the hub: it is refused here.
    """
    from datasets import load_dataset

    where = f"{name}{f' ({config})' if config else ''}, split {split}"
    if Path(name).exists():
        raise UserError(
            f"{where}: {Path(name).absolute()} is in the way, and a hub name never means a folder. Name a file in it "
            "with file = ..., or start elsewhere"
        )
    try:
        table = load_dataset(name, config, split=split)
    except Exception as error:  # datasets raises a different type for each way that this can fail
        raise UserError(
            f"{where}: cannot be loaded from the hub ({first_line(error)}). Check its name, config and split, "
            "and the network"
        ) from None
    if not len(table):
        raise UserError(f"{where}: no rows. Give at least two")
    return [Row(f"{where}, row {number}", dict(values)) for number, values in enumerate(table)]


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

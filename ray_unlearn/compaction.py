"""Many small result files -> few large ones, with the same rows.

A search writes a file a trial and one for its curve, so that nothing is lost when it ends early; a reader then opens
every one of them, which for 100,000 trials takes minutes. `compact` joins BATCH of them at a time, within one folder
(one method of one benchmark), into `joined-<n>.parquet` beside them. What was joined is never joined again, so every
row is copied once however long the search.

The large file is on the disk, whole and under its name, before the first small one is deleted. A crash in between
leaves rows twice and loses none: readers drop the second ones (`unique`), and the next `compact` deletes the small
files that are left over. Checksums stay on. A file that cannot be read, or that has other columns, stays where it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_unlearn.results import write_file

BATCH = 500
"""Small files in one large one. Fewer than that stay as they are."""
KEYS: Mapping[str, tuple[str, ...]] = {"trials": ("trial_id",), "curves": ("trial_id", "step")}
"""The folders of a search that have a file a trial, and the columns that tell their rows apart."""
JOINED = "joined-"


def compact(folder: Path, batch: int = BATCH) -> int:
    """Join the small files of a search's folder where there are `batch` of them; how many are gone.

    Nobody else may write trials there meanwhile. Raises OSError where the folder cannot be written.
    """
    places = [path for name in KEYS for path in sorted((folder / name).glob("*/*")) if path.is_dir()]
    return sum(_compact(place, batch) for place in places)


def unique(rows: Iterable[Mapping[str, Any]], columns: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    """The rows without those whose values in these columns were there before."""
    seen = set()
    for row in rows:
        key = tuple(row[name] for name in columns)
        if key not in seen:
            seen.add(key)
            yield row


def _compact(place: Path, batch: int) -> int:
    """Of one method's folder."""
    files = sorted(place.glob("*.parquet"))
    large = [path for path in files if path.name.startswith(JOINED)]
    small = [path for path in files if not path.name.startswith(JOINED)]
    if len(small) < batch:
        return 0
    gone = _delete_left_over(place, large, small)
    small = [path for path in small if path.exists()]
    number = max((int(path.stem.removeprefix(JOINED)) for path in large), default=-1)
    for start in range(0, len(small) - batch + 1, batch):
        tables = {path: table for path in small[start : start + batch] if (table := _read(path)) is not None}
        schema = next((table.schema for table in tables.values()), None)
        alike = {path: table for path, table in tables.items() if table.schema.equals(schema)}
        if len(alike) < 2:
            continue
        number += 1
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.concat_tables(alike.values()), buffer, write_page_checksum=True)
        write_file(place / f"{JOINED}{number:06d}.parquet", buffer.getvalue().to_pybytes())
        gone += _delete(place, alike)
    return gone


def _delete_left_over(place: Path, large: list[Path], small: list[Path]) -> int:
    """Delete the small files whose rows a crash left in the latest large one too: nothing older was ever left over."""
    joined = _read(large[-1], ["trial_id"]) if large else None
    known = set(joined["trial_id"].to_pylist()) if joined is not None else set()
    return _delete(place, [path for path in small if path.stem in known])


def _delete(place: Path, paths: Iterable[Path]) -> int:
    """Delete files, once the folder with the large one in it is on the disk."""
    paths = list(paths)
    if paths:
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    for path in paths:
        path.unlink()
    return len(paths)


def _read(path: Path, columns: list[str] | None = None) -> pa.Table | None:
    """None where the file is damaged: whoever reads the folder says so."""
    try:
        return pq.ParquetFile(path, page_checksum_verification=True).read(columns, use_threads=False)
    except (pa.ArrowException, OSError):
        return None

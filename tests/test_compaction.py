"""Joined files hold the same rows, whatever happens on the way."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ray_unlearn import compaction
from ray_unlearn.compaction import KEYS, compact, unique
from ray_unlearn.results import SearchResults, Writer, curve_schema, read_search, trial_schema
from tests.report.made_up_search import ATTACKED, METRICS, PARAMETERS, build_meta, simulate

METHODS = ("simnpo", "ga")


@pytest.fixture
def folder(tmp_path) -> Path:
    """12 trials of one method and 11 of another, with their curves."""
    schemas = trial_schema("wmdp", PARAMETERS, METRICS | ATTACKED), curve_schema("wmdp", METRICS)
    writer = Writer.create(tmp_path / "search", *schemas)
    writer.write_search(build_meta())
    for row, curve in simulate(23, METHODS):
        writer.write_trial(row, curve)
    return writer.folder


def files(folder: Path, name: str = "trials") -> dict[str, list[str]]:
    places = (folder / name / "benchmark=wmdp").glob("method=*")
    return {place.name.removeprefix("method="): sorted(path.stem for path in place.iterdir()) for place in places}


def content(results: SearchResults) -> tuple[list, list]:
    """Its rows with no duplicates, the trials in their order and each trial's curve in its own."""
    curves = sorted(unique(results.curves, KEYS["curves"]), key=lambda row: row["trial_id"])
    return list(unique(results.trials, KEYS["trials"])), curves


def test_the_rows_are_the_same_in_fewer_files(folder):
    before = content(read_search(folder))
    assert compact(folder, batch=5) == 20 + 20
    after = read_search(folder)
    assert content(after) == before
    assert (len(after.trials), after.damaged) == (23, [])
    assert files(folder) == {
        "simnpo": ["joined-000000", "joined-000001", "simnpo-0020", "simnpo-0022"],
        "ga": ["ga-0021", "joined-000000", "joined-000001"],
    }
    for path in folder.rglob("joined-*.parquet"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


def test_few_files_are_left_alone_and_what_was_joined_is_not_joined_again(folder):
    assert compact(folder) == 0
    compact(folder, batch=5)
    joined = {path: path.stat().st_mtime_ns for path in folder.rglob("joined-*.parquet")}
    assert compact(folder, batch=2) == 2, "the curves are one short: a failed trial has none"
    assert all(path.stat().st_mtime_ns == when for path, when in joined.items())
    assert "joined-000002" in files(folder)["simnpo"]


def test_a_crash_before_the_small_files_are_gone_neither_doubles_nor_loses_rows(folder, monkeypatch):
    before = content(read_search(folder))

    def crash(place: Path, paths: Iterable[Path]) -> int:
        if list(paths):
            raise KeyboardInterrupt
        return 0

    with monkeypatch.context() as patch:
        patch.setattr(compaction, "_delete", crash)
        with pytest.raises(KeyboardInterrupt):
            compact(folder, batch=5)
    assert "joined-000000" in files(folder)["ga"]
    after = read_search(folder)
    assert len(after.trials) == 23 + 5
    assert content(after) == before
    compact(folder, batch=5)
    after = read_search(folder)
    assert len(after.trials) == 23
    assert content(after) == before


def test_a_crash_while_the_large_file_is_written_leaves_all_as_it_was(folder, monkeypatch):
    before, names = read_search(folder), files(folder)

    def crash(*values: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ray_unlearn.results.os.fsync", crash)
        with pytest.raises(OSError, match="No space"):
            compact(folder, batch=5)
    left = {name for names in files(folder).values() for name in names if name.startswith(".")}
    assert left <= {".joined-000000.parquet"}
    assert content(read_search(folder)) == content(before)
    compact(folder, batch=5)
    assert content(read_search(folder)) == content(before)
    assert names != files(folder)


def test_a_damaged_file_and_one_with_other_columns_stay_where_they_are(folder):
    place = folder / "trials" / "benchmark=wmdp" / "method=ga"
    (place / "ga-0003.parquet").write_bytes(b"no parquet")
    other = pq.read_table(place / "ga-0005.parquet", partitioning=None).drop_columns(["scale"])
    pq.write_table(other, place / "ga-0005.parquet")
    compact(folder, batch=11)
    assert files(folder)["ga"] == ["ga-0003", "ga-0005", "joined-000000"]
    after = read_search(folder)
    assert len(after.trials) == 22
    assert after.damaged == ["trials/benchmark=wmdp/method=ga/ga-0003.parquet"]


def test_any_reader_opens_the_joined_folder(folder):
    compact(folder, batch=5)
    assert pq.read_table(folder / "trials", partitioning=None).num_rows == 23

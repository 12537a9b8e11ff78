from pathlib import Path

import duckdb
import pandas
import polars
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from ray_unlearn.config import TrialConfig, UserError
from ray_unlearn.records.tables import Writer, curve_schema, read_search, read_table, trial_schema

TRIALS = trial_schema("toy", ["beta", "gamma"], ["accuracy"])
CURVES = curve_schema("toy", ["accuracy"])


def row(trial_id: str, method: str, number: int, **values):
    settings = TrialConfig(trial_id, method).to_json()
    settings.pop("parameters")
    head = {"number": number, "benchmark": "toy", "scale": "mini", "status": "completed", "error": None}
    return {**settings, **head, "objective": 0.5, "toy/accuracy": 0.4, **values}


def written(folder: Path) -> Path:
    writer = Writer(folder / "search", TRIALS, CURVES)
    writer.write_search({"name": "search"})
    curve = {"trial_id": "simnpo-0000", "benchmark": "toy", "method": "simnpo", "step": 3, "toy/accuracy": 0.4}
    writer.write_files(writer.trial_files(row("simnpo-0000", "simnpo", 1, beta=2.5, gamma=0.0), [curve], []))
    writer.write_files(writer.trial_files(row("ga-0000", "ga", 0), [], []))
    return writer.folder


def test_what_was_written_is_read_in_order_of_suggestion(tmp_path):
    results = read_search(written(tmp_path))
    assert [r["trial_id"] for r in results.trials] == ["ga-0000", "simnpo-0000"]
    assert results.trials[1]["beta"] == 2.5
    assert results.trials[0]["beta"] is None
    assert results.curves[0]["step"] == 3


@pytest.mark.parametrize("partitioning", [None, "hive"])
def test_plain_pyarrow_reads_the_folder_with_all_columns(tmp_path, partitioning):
    table = ds.dataset(written(tmp_path) / "trials", partitioning=partitioning).to_table()
    assert table.num_rows == 2
    assert set(TRIALS.names) <= set(table.column_names)
    assert sorted(table.column("method").to_pylist()) == ["ga", "simnpo"]


READERS = {
    "pandas": lambda place: pandas.read_parquet(place).to_dict("records"),
    "pyarrow": lambda place: pq.read_table(place).to_pylist(),
    "polars": lambda place: polars.read_parquet(place).to_dicts(),
    "polars, lazily": lambda place: polars.scan_parquet(place).collect().to_dicts(),
    "DuckDB": lambda place: duckdb.sql(f"SELECT * FROM '{place}/**/*.parquet'").fetch_arrow_table().to_pylist(),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
@pytest.mark.parametrize("name", ["trials", "curves", "finals", "examples", "weights"])
def test_every_reader_opens_every_folder_with_no_option(tmp_path, name, read):
    folder = written(tmp_path)
    writer = Writer(folder, TRIALS, CURVES)
    for trial_id, method in (("simnpo-0000", "simnpo"), ("ga-0000", "ga")):
        writer.write_final(row(trial_id, method, 0))
        writer.write_examples(trial_id, "report", [{"set": "forget", "example": 0, "prompt": "?", "answer": None}])
        writer.write_weights(trial_id, [[1.0, 3.0]], [4, 5], [0.5, 0.25])
    files = (folder / name).rglob("*.parquet")
    expected = [each for path in files for each in read_table(path)]
    found = read(str(folder / name))
    assert len(found) == len(expected) > 0
    assert sorted(each["trial_id"] for each in found) == sorted(each["trial_id"] for each in expected)
    assert all(list(each) == list(expected[0]) for each in found)


def test_two_searches_are_read_together(tmp_path):
    first, second = (written(tmp_path / name) for name in "ab")
    places = [str(folder / "trials") for folder in (first, second)]
    assert pandas.concat(map(pandas.read_parquet, places))["method"].value_counts().to_dict() == {"ga": 2, "simnpo": 2}
    assert ds.dataset([ds.dataset(place) for place in places]).to_table().num_rows == 4
    assert duckdb.sql(f"SELECT * FROM '{tmp_path}/*/search/trials/**/*.parquet'").fetch_arrow_table().num_rows == 4
    assert polars.scan_parquet(f"{tmp_path}/*/search/trials/**/*.parquet").collect().height == 4


def test_a_search_that_an_older_version_began_goes_on_in_its_own_form(tmp_path):
    folder = written(tmp_path)
    (folder / "trials" / "toy").rename(folder / "trials" / "benchmark=toy")
    for method in ("ga", "simnpo"):
        (folder / "trials" / "benchmark=toy" / method).rename(folder / "trials" / "benchmark=toy" / f"method={method}")
    writer = Writer(folder, TRIALS, CURVES)
    assert writer.has_trial(row("ga-0000", "ga", 0))
    writer.write_files(writer.trial_files(row("ga-0001", "ga", 2), [], []))
    assert (folder / "trials" / "benchmark=toy" / "method=ga" / "ga-0001.parquet").is_file()
    assert [r["trial_id"] for r in read_search(folder).trials] == ["ga-0000", "simnpo-0000", "ga-0001"]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_file_is_named_and_the_others_are_read(tmp_path, damage):
    folder = written(tmp_path)
    (file,) = (folder / "trials").rglob("simnpo-0000.parquet")
    content = bytearray(file.read_bytes())
    place = content.index(b"simnpo-0000")
    content[place] ^= 1
    file.write_bytes({"cut": bytes(content[:100]), "flip": bytes(content), "empty": b""}[damage])
    results = read_search(folder)
    assert results.damaged == [str(file.relative_to(folder))]
    assert [r["trial_id"] for r in results.trials] == ["ga-0000"]


def test_a_column_outside_the_schema_is_refused(tmp_path):
    writer = Writer(tmp_path / "search", TRIALS, CURVES)
    with pytest.raises(ValueError, match="delta"):
        writer.write_files(writer.trial_files(row("a", "simnpo", 0, delta=1.0), [], []))


def test_a_folder_without_a_search_says_so(tmp_path):
    with pytest.raises(UserError, match="holds no search"):
        read_search(tmp_path)


def test_weights_are_shares_of_an_epoch_and_one_in_which_nothing_was_learnt_is_left_out(tmp_path):
    writer = Writer(tmp_path, TRIALS, CURVES)
    name = writer.write_weights("a", [[1.0, 3.0], [0.0, 0.0], [0.2, 0.2]], [4, 5], [0.5, 0.25])
    rows = read_table(tmp_path / name)
    assert [tuple(row.values()) for row in rows] == [
        ("a", 1, 0, 4, 0.5, 0.25),
        ("a", 1, 1, 5, 0.25, 0.75),
        ("a", 3, 0, 4, 0.5, 0.5),
        ("a", 3, 1, 5, 0.25, 0.5),
    ]
    assert read_table(tmp_path / writer.write_weights("b", [], [4, 5], [0.5, 0.25])) == []

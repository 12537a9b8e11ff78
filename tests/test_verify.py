"""Every kind of damage to every kind of file is found and named; the rest stays readable."""

import json
import zlib

import pytest

from ray_unlearn.config import UserError
from ray_unlearn.files import Patience, checksum
from ray_unlearn.records.ledger import Ledger
from ray_unlearn.records.tables import Writer, curve_schema, read_search, trial_schema, write_json
from ray_unlearn.records.verify import describe_findings, verify_search


@pytest.fixture
def search(tmp_path):
    folder = tmp_path / "search"
    folder.mkdir()
    writer = Writer(folder, trial_schema("toy", ["beta"], ["accuracy"]), curve_schema("toy", ["accuracy"]))
    with Ledger(folder, Patience()) as ledger:
        ledger.open()
        meta = {"name": "toy", "config": {"trials": 3}}
        ledger.append("described", meta=meta)
        writer.write_search(meta)
        for number in range(3):
            name = f"npo-{number:04d}"
            row = {"trial_id": name, "number": number, "benchmark": "toy", "method": "npo", "objective": number / 7}
            point = {"trial_id": name, "benchmark": "toy", "method": "npo", "epoch": 1.0, "objective": number / 7}
            row, curve = writer.as_written(row, [point])
            ledger.append("suggested", trial={"trial_id": name}, number=number, settings_hash="")
            files = writer.trial_files(row, curve, [])
            crcs = {name: f"{zlib.crc32(content):08x}" for name, content in files.items()}
            ledger.append("ended", trial_id=name, row=row, points=[], curve=curve, files=crcs)
            writer.write_files(files)
        (folder / "model").mkdir()
        weights = folder / "model" / "x"
        weights.write_bytes(bytes(range(256)) * 40)
        ledger.append("final", trial_id="npo-0002", row={}, files={"model/x": checksum(weights)}, has_model=True)
    write_json(folder / "comparison.json", {"seeds": [1, 2]})
    return folder


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


DAMAGE = {"truncated": lambda c: c[: len(c) // 2], "flipped": flip, "empty": lambda c: b"", "missing": None}
FILES = ["search.json", "comparison.json", "model/x"]
FILES += [f"{kind}/benchmark=toy/method=npo/npo-0001.parquet" for kind in ("trials", "curves")]


def test_a_whole_search_has_no_findings(search):
    assert verify_search(search) == []
    assert "every file" in describe_findings(search, [])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_nothing_else(search, name, damage):
    path = search / name
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    (finding,) = verify_search(search)
    assert (finding.name, finding.is_repaired) == (name, False)
    results = read_search(search)
    assert [row["objective"] for row in results.trials] == [0 / 7, 1 / 7, 2 / 7]
    assert results.meta["name"] == "toy"


@pytest.mark.parametrize("name", ["search.json", *FILES[3:]])
def test_what_the_ledger_knows_is_written_again(search, name):
    path = search / name
    before = path.read_bytes()
    path.write_bytes(flip(before))
    (finding,) = verify_search(search, repair=True)
    assert finding.is_repaired
    assert verify_search(search) == []
    if name.endswith(".parquet"):
        assert path.read_bytes() == before


def test_all_files_of_trials_are_written_again_where_none_can_be_read(search):
    before = {path: path.read_bytes() for kind in ("trials", "curves") for path in (search / kind).rglob("*.parquet")}
    assert len(before) == 6
    for path in before:
        path.write_bytes(b"")
    assert all(finding.is_repaired for finding in verify_search(search, repair=True))
    assert {path: path.read_bytes() for path in before} == before


def test_a_trial_file_that_is_gone_is_named(search):
    path = search / FILES[3]
    path.unlink()
    (finding,) = verify_search(search)
    assert (finding.name, finding.what) == (FILES[3], "missing")


def test_a_damaged_ledger_is_named_by_line_and_the_rest_is_read(search):
    path = search / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[5] = flip(lines[5])
    path.write_bytes(b"".join(lines))
    (finding,) = verify_search(search)
    assert finding.name == "ledger.jsonl"
    assert "6" in finding.what
    assert len(read_search(search).trials) == 3


def test_an_edited_local_file_is_no_damage(search):
    write_json(search / "local.json", {"request": 1})
    values = json.loads((search / "local.json").read_text())
    (search / "local.json").write_text(json.dumps({**values, "request": 2}))
    assert verify_search(search) == []


def test_a_folder_without_a_search_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no search"):
        verify_search(tmp_path)

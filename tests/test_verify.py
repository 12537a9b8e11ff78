"""Every kind of damage to every kind of file is found and named; the rest stays readable."""

import json
import zlib
from pathlib import Path

import pytest

from ray_unlearn.config import UserError
from ray_unlearn.files import Patience, checksum
from ray_unlearn.records.ledger import Ledger, read_ledger
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
FILES += [f"{kind}/toy/npo/npo-0001.parquet" for kind in ("trials", "curves")]


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


def test_line_ends_that_git_has_changed_are_no_damage(search):
    (search / "model" / "config.json").write_bytes(b'{"a": 1}\n')
    with Ledger(search, Patience()) as ledger:
        ledger.open()
        name = "model/config.json"
        files = {"model/x": checksum(search / "model" / "x"), name: checksum(search / name)}
        ledger.append("final", trial_id="npo-0002", row={}, files=files, has_model=True)
    before = read_search(search)
    for name in ("ledger.jsonl", "search.json", "comparison.json", "model/config.json"):
        path = search / name
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert verify_search(search) == []
    assert read_search(search) == before
    with Ledger(search, Patience()) as ledger:  # and the search goes on from it
        assert len(ledger.open().lives()) == 3
        ledger.append("running", trial_id="npo-0000")
    assert read_ledger(search).events[-1] == {"event": "running", "trial_id": "npo-0000"}
    assert verify_search(search) == []


@pytest.mark.parametrize("name", ["._{}", ".{}.icloud", ".sync/{}"])
def test_hidden_files_of_other_systems_are_nobodys(search, name):
    before = read_search(search)
    for path in [*search.rglob("*.parquet"), *search.rglob("*.json")]:
        hidden = path.parent / name.format(path.name)
        hidden.parent.mkdir(exist_ok=True)
        hidden.write_bytes(b"\0\5\26\7\0\2\0\0")
    assert verify_search(search) == []
    assert read_search(search) == before


COPIES = [
    "npo-0001 (conflicted copy).parquet",
    "npo-0001 2.parquet",
    "npo-0001.sync-conflict-20260101-000000-A2.parquet",
]


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("is_whole", [True, False])
def test_a_second_copy_of_a_file_is_named_and_counts_for_nobody(search, copy, is_whole):
    """Also where the ledger is damaged, and trials are read from their files."""
    if not is_whole:
        ledger = search / "ledger.jsonl"
        lines = ledger.read_bytes().splitlines(keepends=True)
        ledger.write_bytes(b"".join([*lines[:5], flip(lines[5]), *lines[6:]]))
    before, known = read_search(search), verify_search(search)
    for name in FILES[3:]:
        path = search / name
        path.with_name(copy).write_bytes(path.read_bytes())
    found = [finding for finding in verify_search(search) if finding not in known]
    assert [Path(finding.name).name for finding in found] == [copy, copy]
    assert read_search(search) == before
    text = describe_findings(search, found)
    assert "2 file(s) that are not the search's; all others can be read" in text
    assert "it counts for nothing. Remove it" in text

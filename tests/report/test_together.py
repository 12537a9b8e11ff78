"""Several searches in one report: one table and one frontier of what can be compared, and the rest named."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from made_up_search import build_meta, simulate, write_folder

from ray_unlearn import cli
from ray_unlearn.config import UserError
from ray_unlearn.records.tables import read_search
from ray_unlearn.report.frontier import frontier
from ray_unlearn.report.tables import notices
from ray_unlearn.report.together import put_together

START = {"metrics": {"forget_accuracy": 0.7, "retain_accuracy": 0.65}, "forget": 0.0, "utility": 1.0, "objective": 0.0}


def write(place: Path, name: str, method: str, seed: int, trials: int = 20, **changes) -> Path:
    """A search of one method, on a machine of its own."""
    config = {"methods": [method], "seed": seed, "trials": trials} | changes.pop("config", {})
    meta = {"name": name, "start": START, "data_fingerprint": "same", "config": config, **changes}
    return write_folder(place / name, simulate(trials, (method,), seed), **meta)


def test_searches_that_share_start_data_and_rule_become_one(tmp_path):
    folders = [write(tmp_path, method, method, seed) for seed, method in enumerate(("simnpo", "npo", "ga"))]
    found = [read_search(folder) for folder in folders]
    merged = put_together(found, tmp_path / "together")
    assert len(merged.trials) == 60
    assert [row["number"] for row in merged.trials] == list(range(60))
    assert {row["trial_id"].split(":")[0] for row in merged.trials} == {"simnpo", "npo", "ga"}
    assert merged.meta["config"]["methods"] == ["simnpo", "npo", "ga"]
    assert merged.meta["config"]["trials"] == 20
    assert all(row.keys() == merged.trials[0].keys() for row in merged.trials)
    alone = {(row["forget"], row["utility"]) for results in found for row in frontier(results)}
    assert {(row["forget"], row["utility"]) for row in frontier(merged)} <= alone
    best = max((r for results in found for r in results.trials if r["objective"]), key=lambda row: row["objective"])
    assert merged.meta["chosen"].endswith(best["trial_id"])
    assert not merged.meta["not_compared"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"data_fingerprint": "other"}, "data"),
        ({"config": {"utility_floor": 0.5}}, "rule"),
        ({"start": {**START, "metrics": {"forget_accuracy": 0.6, "retain_accuracy": 0.65}}}, "start"),
        ({"config": {"scale": "full"}}, "benchmark"),
    ],
)
def test_a_search_that_cannot_be_compared_is_named_and_left_out(tmp_path, changes, what):
    folders = [write(tmp_path, "first", "simnpo", 0), write(tmp_path, "second", "simnpo", 1, **changes)]
    merged = put_together([read_search(folder) for folder in folders], tmp_path / "together")
    assert len(merged.trials) == 20
    assert ("Not compared", f"second is not compared with first: other {what}.") in notices(merged)


def test_another_machines_rounding_is_the_same_start(tmp_path):
    near = {**START, "metrics": {"forget_accuracy": 0.7004, "retain_accuracy": 0.65}}
    folders = [write(tmp_path, "first", "simnpo", 0), write(tmp_path, "second", "npo", 1, start=near)]
    assert len(put_together([read_search(folder) for folder in folders], tmp_path / "x").trials) == 40


def test_a_search_that_is_given_twice_is_refused(tmp_path):
    results = read_search(write(tmp_path, "first", "simnpo", 0))
    with pytest.raises(UserError, match="given twice"):
        put_together([results, results], tmp_path / "x")


def test_the_command_writes_one_report_with_finals_and_answers_of_all(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path / "a", **{"start": START, "data_fingerprint": "same"})
    write(tmp_path, "b", "simnpo", 5)
    monkeypatch.setattr(sys, "argv", ["ray_unlearn", "report", str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    place = tmp_path / "together" / "report"
    assert str(place / "report.html") in capsys.readouterr().out
    trials = pq.read_table(place / "trials.parquet").to_pylist()
    assert len(trials) == 68
    name = build_meta()["name"]
    finals = {row["trial_id"] for row in pq.read_table(place / "finals.parquet").to_pylist()}
    assert {"start", "retrained"} < finals
    assert {row.split(":")[0] for row in finals - {"start", "retrained"}} == {name}
    page = (place / "report.html").read_text()
    assert "2 searches in one report" in page
    assert "ray_unlearn report results/a results/b" in page

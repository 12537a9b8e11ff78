"""Comparing finalists: who they are, what their runs say, what is refused; made-up rows, no training."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from ray_unlearn.config import GangConfig, SearchConfig
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.records.tables import LOCAL, Writer, curve_schema, trial_schema
from ray_unlearn.search.comparison import (
    comparison_seeds,
    count_budgets,
    describe_comparison,
    describe_unequal,
    difference_table,
    find_edges,
    pick_finalists,
    scored,
    summarise,
)
from ray_unlearn.search.sampling import importances, largest_share_of_chance
from ray_unlearn.search.space import Range, Space
from tests.test_cli import run

SPACE = Space("simnpo", {}, {"beta": Range(0.5, 8.0, log=True), "retain_weight": Range(0.0, 10.0)}, ())
SPACES = {"simnpo": SPACE, "npo": SPACE}
CONFIG = SearchConfig(
    **{"name": "s", "benchmark": "wmdp", "scale": "mini", "methods": ("simnpo", "npo"), "trials": 4, "concurrent": 1},
    **{"objective": "combined", "utility_floor": 0.9, "seed": 7, "gang": GangConfig(), "model": "m"},
)


def row(trial_id: str, objective: float = 0.5, **values) -> dict:
    scores = {"objective": objective, "forget": objective, "utility": 0.95, "status": "completed", "error": None}
    settings = {"method": trial_id.split("-")[0], "trial_id": trial_id, "beta": 2.0, "retain_weight": 5.0, "seed": 7}
    costs = {"epochs_run": 10, "device_seconds": 20.0, "alpha": 1.0, "epoch": 10.0}
    return {**scores, **settings, **costs, "wmdp/forget_accuracy": 0.3, **values}


def runs_of(trial_id: str, *objectives: float, **values) -> list[dict]:
    return [row(trial_id, score, seed=1007 + k, **values) for k, score in enumerate(objectives)]


def summary(runs: list[dict], finalists: list[dict] | None = None, trials: list[dict] | None = None) -> dict:
    finalists = [row("simnpo-0001"), row("npo-0001")] if finalists is None else finalists
    return summarise(CONFIG, trials or finalists, SPACES, finalists, runs, comparison_seeds(CONFIG, 6), {})


def test_finalists_are_the_best_by_the_objective_and_the_front_if_wanted():
    rows = [
        row("simnpo-0000", 0.6),
        row("simnpo-0001", 0.2, utility=0.5, forget=1.0),
        row("simnpo-0002", 0.7),
        row("simnpo-0003", 0.99, status="failed"),
        row("simnpo-0000@0.5", 0.65, status="interpolated"),
        row("npo-0000", 0.3, utility=0.2),
    ]
    names = [r["trial_id"] for r in pick_finalists(rows, Ranking(0.9), 2, frontier=False)]
    assert names == ["simnpo-0002", "simnpo-0000@0.5", "npo-0000"]
    more = [r["trial_id"] for r in pick_finalists(rows, Ranking(0.9), 2, frontier=True)]
    assert more == [*names, "simnpo-0001"]


def test_seeds_are_not_the_searchs_and_the_same_for_all():
    assert comparison_seeds(CONFIG, 3) == [1007, 1008, 1009]


def test_the_file_has_what_its_readers_expect():
    runs = runs_of("simnpo-0001", 0.80, 0.82, 0.78, 0.81, 0.79, 0.80) + runs_of("npo-0001", *[0.70, 0.71, 0.69] * 2)
    found = json.loads(json.dumps(summary(runs)))
    assert found["seeds"] == [1007, 1008, 1009, 1010, 1011, 1012]
    first = found["finalists"][0]
    assert set(first) == {"method", "trial_id", "n", "failed", "forget", "utility", "objective", "metrics"}
    assert (first["method"], first["trial_id"], first["n"], first["failed"]) == ("simnpo", "simnpo-0001", 6, 0)
    assert set(first["objective"]) == {"mean", "std", "min", "max"}
    assert first["objective"]["mean"] == pytest.approx(0.80)
    assert first["metrics"] == {"wmdp/forget_accuracy": {"mean": pytest.approx(0.3), "std": pytest.approx(0.0)}}
    area = found["hypervolume"]["simnpo"]
    assert area["value"] == pytest.approx(0.80 * 0.95)
    assert area["low"] < area["value"] < area["high"]
    assert [d["measure"] for d in found["differences"]] == ["objective", "forget", "utility"]
    best = found["differences"][0]
    assert (best["better"], best["other"], best["verdict"]) == ("simnpo", "npo", "reliable")
    assert 0.05 < best["low"] < best["value"] < best["high"]
    assert (best["unit"], best["p"], best["corrected_p"]) == ("seed", 2 / 64, 2 / 64)
    assert [d["verdict"] for d in found["differences"][1:]] == [None, None], "described, not judged"
    assert "sentence" not in best, "words are made from the numbers"
    assert found["budget"]["npo"] == {"trials": 1, "epochs": 10, "device_seconds": 20.0}
    assert set(found) == {
        *("seeds", "finalists", "hypervolume", "differences", "warnings", "budget", "importances", "edges")
    }
    lines = "\n".join(describe_comparison(found)).splitlines()
    (said,) = (line for line in lines if line.split()[:3] == ["SimNPO", "NPO", "objective"])
    assert said.split()[3] == "0.100"
    assert "  reliable (corrected p 0.031, 6 seeds)" in said
    assert any(line.startswith("setting ahead") for line in lines)
    assert any(line.split()[:2] == ["simnpo-0001", "6"] for line in lines)


def test_the_better_method_is_named_first_whatever_the_order():
    runs = runs_of("simnpo-0001", 0.6, 0.6, 0.6, 0.6, 0.6) + runs_of("npo-0001", 0.7, 0.71, 0.72, 0.71, 0.7)
    best = summary(runs)["differences"][0]
    assert (best["better"], best["other"]) == ("npo", "simnpo")
    assert best["value"] > 0


def test_the_best_point_is_the_searchs_choice_not_the_luckiest_run():
    finalists = [row("simnpo-0001", 0.9), row("simnpo-0002", 0.8), row("npo-0001", 0.7)]
    runs = runs_of("simnpo-0001", *[0.5] * 5) + runs_of("simnpo-0002", *[0.9] * 5) + runs_of("npo-0001", *[0.7] * 5)
    found = summary(runs, finalists)
    assert found["differences"][0]["better"] == "npo"
    assert found["hypervolume"]["simnpo"]["value"] == pytest.approx(0.9 * 0.95), "but the area is of all of them"


def diverged(run: dict) -> dict:
    nothing = dict.fromkeys(("objective", "forget", "utility", "wmdp/forget_accuracy"))
    return {**run, **nothing, "status": "failed", "error": "NonFinite: loss", "failure": "nan"}


def test_a_run_that_diverged_counts_as_nothing_forgotten_and_nothing_kept():
    runs = runs_of("simnpo-0001", 0.9, 0.9, 0.9) + runs_of("npo-0001", 0.7, 0.7, 0.7)
    runs[1] = diverged(runs[1])
    found = summary(runs)
    first = found["finalists"][0]
    assert (first["n"], first["failed"]) == (3, 1)
    assert first["objective"]["mean"] == pytest.approx(0.6)
    assert first["metrics"]["wmdp/forget_accuracy"]["mean"] == pytest.approx(0.3), "of those that have them"
    assert (found["differences"][0]["better"], found["differences"][0]["n"]) == ("npo", 3)
    assert found["hypervolume"]["simnpo"]["value"] == pytest.approx(0.6 * 0.95 * 2 / 3)
    assert any("simnpo-0001: 1 of 3 runs failed (NonFinite: loss)" in warning for warning in found["warnings"])


def test_a_method_that_diverges_in_three_seeds_of_ten_is_not_found_better():
    chance = np.random.default_rng(0)
    wins = 0
    for _ in range(20):
        steady = runs_of("npo-0001", *(0.80 + chance.normal(0, 0.01, 10)))
        wild = runs_of("simnpo-0001", *(0.87 + chance.normal(0, 0.01, 10)))
        wild = [diverged(run) if chance.random() < 0.3 else run for run in wild]
        units = {m: {k: scored(r) for k, r in enumerate(runs)} for m, runs in (("simnpo", wild), ("npo", steady))}
        best = difference_table(units, "seed")[0]
        wins += best["better"] == "simnpo" and best["verdict"] != "undecided"
    assert wins <= 3, "a tenth of the samples show no collapse"


def test_a_finalist_whose_runs_all_diverged_stays_with_nothing():
    runs = runs_of("simnpo-0001", 0.8, 0.8) + [diverged(run) for run in runs_of("npo-0001", 0.0, 0.0)]
    found = summary(runs)
    assert [entry["method"] for entry in found["finalists"]] == ["simnpo", "npo"]
    assert found["finalists"][1]["objective"]["mean"] == 0.0
    assert found["finalists"][1]["metrics"] == {}


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"beta": 0.5}, ["beta"]),
        ({"beta": 0.5 * 16**0.04}, ["beta"]),
        ({"beta": 0.5 * 16**0.06}, []),
        ({"beta": 8.0, "retain_weight": 0.4}, ["beta", "retain_weight"]),
        ({"retain_weight": 9.4}, []),
    ],
)
def test_a_best_setting_within_a_twentieth_of_its_range_is_at_the_edge(settings, found):
    edges = find_edges({"simnpo": row("simnpo-0000", **settings)}, SPACES)
    assert [edge["parameter"] for edge in edges] == found


def test_an_edge_is_said_once_and_as_the_report_says_it():
    found = summary(runs_of("simnpo-0001", 0.8, 0.8), [row("simnpo-0001", beta=8.0)])
    said = "SimNPO's best trial has beta 8, within 5 % of the upper end of its range"
    assert sum(said in line for line in describe_comparison(found)) == 1
    assert not any("range" in warning for warning in found["warnings"]), "the report has it with the settings"


def test_budgets_count_trials_epochs_and_seconds_but_no_points_of_a_line():
    rows = [row("ga-0000"), row("ga-0001", status="failed", epochs_run=2), row("ga-0000@0.5", status="interpolated")]
    assert count_budgets(rows) == {"ga": {"trials": 2, "epochs": 12, "device_seconds": 40.0}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, ""),
        ({"epochs": 10.5, "device_seconds": 55.0}, ""),
        ({"trials": 2}, "trials (SimNPO 2, NPO 1)"),
        ({"epochs": 12}, "epochs (SimNPO 12, NPO 10)"),
        ({"device_seconds": 70.0}, "device seconds (SimNPO 70, NPO 20)"),
    ],
)
def test_unequal_budgets_are_named_with_their_counts(changes, says):
    equal = {"trials": 1, "epochs": 10, "device_seconds": 20.0}
    assert describe_unequal({"simnpo": equal | changes, "npo": equal}) == says


def test_importances_find_the_parameter_that_matters_and_say_nothing_of_few_trials():
    rows = [row(f"simnpo-{i:04d}", beta=0.5 + i / 4, retain_weight=i * 7 % 10, objective=i / 24) for i in range(24)]
    shares = importances(rows, SPACE)
    assert list(shares) == ["beta", "retain_weight"]
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["beta"] > 0.7
    assert importances(rows[:19], SPACE) == {}
    assert importances([r | {"objective": 0.5} for r in rows], SPACE) == {}
    chance = largest_share_of_chance(rows, SPACE)
    assert chance is not None
    assert shares["beta"] > chance > 0.5
    assert largest_share_of_chance(rows, SPACE) == chance
    assert largest_share_of_chance(rows[:19], SPACE) is None


def test_shares_of_shuffled_objectives_are_mostly_under_what_chance_gives():
    draw = np.random.default_rng(1)
    rows = [row(f"simnpo-{i:04d}", beta=0.5 + i / 4, retain_weight=i * 7 % 10, objective=0.0) for i in range(30)]
    noise = [[r | {"objective": x} for r, x in zip(rows, draw.random(30), strict=True)] for _ in range(5)]
    chance = largest_share_of_chance(noise[0], SPACE)
    assert sum(max(importances(of, SPACE).values()) > chance for of in noise) <= 1


def test_importances_of_a_long_search_come_from_trials_spread_over_it(monkeypatch):
    rows = [row(f"simnpo-{i:04d}", beta=0.5 + i / 6, retain_weight=i * 7 % 10, objective=i / 39) for i in range(39)]
    monkeypatch.setattr("ray_unlearn.search.sampling.MOST_FOR_IMPORTANCES", 20)
    assert importances(rows, SPACE) == importances(rows[::2], SPACE)


@pytest.fixture
def folder(tmp_path):
    """A search of two methods with unequal budgets."""
    schema = trial_schema("wmdp", ["beta"], ["forget_accuracy"])
    writer = Writer(tmp_path / "search", schema, curve_schema("wmdp", []))
    writer.write_search({"chosen": "simnpo-0001", "spaces": {n: asdict(s) for n, s in SPACES.items()}})
    failed = {"status": "failed", "error": "lost"}
    for number, trial in enumerate([row("simnpo-0001"), row("simnpo-0002", **failed), row("npo-0001")]):
        writer.write_files(writer.trial_files({**trial, "number": number, "benchmark": "wmdp"}, [], []))
    return writer.folder


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["compare", "{folder}"], ["trials (SimNPO 2, NPO 1)", "--allow-unequal"]),
        (["compare", "{folder}", "--allow-unequal"], [LOCAL, "where the search ran"]),
        (["compare", "{folder}", "--seeds", "1"], ["--seeds 1", "no spread"]),
        (["compare", "{folder}", "--top", "0"], ["--top 0"]),
        (["compare", "{folder}", "--searches", "1"], ["--searches 1", "no spread"]),
        (["compare", "{folder}", "--with", "{folder}"], ["is not complete"]),
        (["compare", "{folder}/nowhere"], ["holds no search"]),
        (["export", "{folder}", "--trial", "simnpo-0009"], ["--trial simnpo-0009", "no such trial", "trials.csv"]),
        (["export", "{folder}", "--trial", "simnpo-0002"], ["--trial simnpo-0002", "failed"]),
        (["export", "{folder}", "--out", "{folder}"], ["is there already"]),
        (["export", "{folder}"], [LOCAL]),
        (["reproduce", "{folder}/nothing.json"], ["no such file"]),
        (["reproduce", "{folder}/search.json"], ["is no reproduce.json"]),
    ],
)
def test_what_cannot_be_compared_exported_or_repeated_is_one_line(capfd, folder, options, says):
    code, _, errors = run(capfd, *[option.replace("{folder}", str(folder)) for option in options])
    assert code == 2
    (line,) = errors.strip().splitlines()
    for words in says:
        assert words in line

"""Methods compared over whole searches: what a unit is, what may be compared, and a real repeat."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ray_unlearn.config import UserError
from ray_unlearn.records.tables import SearchResults, read_search
from ray_unlearn.report import write_report
from ray_unlearn.search.held_out import held_out_job
from ray_unlearn.search.repeats import SEED_STEP, check_alike, describe_searches, repeats_of, summarise_searches
from tests.test_compare import CONFIG, row

METHODS = ("simnpo", "npo")


def search(seed: int, finals: dict[str, float | None], **changes) -> SearchResults:
    """One in which each method's best trial has this held-out objective; None: it failed there."""
    config = {
        **{"benchmark": "wmdp", "scale": "mini", "model": "m", "methods": list(METHODS), "trials": 4, "seed": seed},
        **{"utility_floor": 0.9, "objective": "combined"},
    }
    meta = {"name": f"s{seed}", "status": "complete", "config": config | changes, "data_fingerprint": "d"}
    trials = [row(f"{method}-{n:04d}", 0.5 + n / 10, number=n) for method in METHODS for n in range(2)]
    failed = {"status": "failed", "error": "NonFinite: loss", "objective": None, "forget": None, "utility": None}
    held_out = [
        row(f"{method}-0001") | failed if score is None else row(f"{method}-0001", score)
        for method, score in finals.items()
    ]
    return SearchResults(Path(f"s{seed}"), meta, trials, [], [row("simnpo-0000", 0.99), *held_out])


def test_a_search_gives_the_held_out_score_of_each_method_s_best_trial():
    found = summarise_searches([search(seed, {"simnpo": 0.8, "npo": 0.7}) for seed in range(8)])
    assert found["searches"] == [f"s{seed}" for seed in range(8)]
    assert [(entry["method"], entry["n"], entry["failed"]) for entry in found["methods"]] == [
        ("simnpo", 8, 0),
        ("npo", 8, 0),
    ]
    best = found["differences"][0]
    assert (best["better"], best["unit"], best["n"], best["verdict"]) == ("simnpo", "search", 8, "reliable")
    lines = "\n".join(describe_searches(found)).splitlines()
    assert any(line.split()[:4] == ["SimNPO", "NPO", "objective", "0.100"] and "reliable" in line for line in lines)
    assert any(line.startswith("method ahead") for line in lines)


def test_a_finalist_that_failed_on_the_held_out_split_counts_as_nothing():
    found = summarise_searches([search(0, {"simnpo": None, "npo": 0.7}), search(1, {"simnpo": 0.9, "npo": 0.7})])
    assert found["methods"][0]["failed"] == 1
    assert found["methods"][0]["objective"]["mean"] == pytest.approx(0.45)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (search(1, {}, trials=5), "trials 5"),
        (search(1, {}, utility_floor=0.5), "utility_floor 0.5"),
        (search(0, {}), "a second search with seed 0"),
    ],
    ids=["budget", "floor", "seed"],
)
def test_searches_that_differ_in_more_than_their_seeds_are_refused(other, says):
    with pytest.raises(UserError, match=says):
        check_alike([search(0, {}), other])


def test_an_unfinished_search_and_other_data_are_refused():
    unfinished, elsewhere = search(1, {}), search(1, {})
    unfinished.meta["status"] = "partial"
    elsewhere.meta["data_fingerprint"] = "e"
    for other, says in ((unfinished, "is not complete"), (elsewhere, "has other data")):
        with pytest.raises(UserError, match=says):
            check_alike([search(0, {}), other])


def test_searches_from_other_weights_under_the_same_name_are_refused():
    """But those of a miniature's own models, which differ in last bits from machine to machine."""
    for scale in ("full", "mini"):
        one, other = search(0, {}, scale=scale), search(1, {}, scale=scale)
        for results, digest in ((one, "a"), (other, "b")):
            results.meta["identity"] = {"starting weights": digest, "tokenizer": "t"}
        if scale == "mini":
            check_alike([one, other])
        else:
            with pytest.raises(UserError, match="s1: the starting model's weights have changed"):
                check_alike([one, other])


def test_repeats_are_the_same_search_with_seeds_far_apart():
    places, configs = zip(*repeats_of(CONFIG, Path("s"), 4), strict=True)
    assert [config.seed - CONFIG.seed for config in configs] == [SEED_STEP, 2 * SEED_STEP, 3 * SEED_STEP]
    assert len({config.name for config in configs}) == len(set(places)) == 3
    assert {config.trials for config in configs} == {CONFIG.trials}
    jobs = [held_out_job(config, config.seed) for config in configs]
    assert not any(job.complete or job.robustness.attacks for job in jobs), "nobody reads more than the scores"
    (under,) = repeats_of(replace(CONFIG, under=("quantise",)), Path("s"), 2)
    assert held_out_job(under[1], 0).robustness.attacks == ("quantise",)


def test_one_method_searched_again_and_again_is_not_found_better_than_itself():
    """Two arms of the same method, eight searches each, at the spread between searches that was seen."""
    chance, wrong = np.random.default_rng(1), 0
    for _ in range(40):
        scores = chance.normal(0.75, 0.073, (2, 8))
        arms = [search(k, dict(zip(METHODS, scores[:, k], strict=True))) for k in range(8)]
        wrong += summarise_searches(arms)["differences"][0]["verdict"] != "undecided"
    assert wrong <= 2 + 3 * 1.4


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_searches_are_repeated_on_the_same_gangs_and_not_again(tmp_path):
    def command(*words: str) -> str:
        run = [sys.executable, "-m", "ray_unlearn.cli", *words]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout

    options = ("--scale", "mini", "--methods", "simnpo,npo", "--trials", "2", "--robustness", "none")
    first = command("tune", "--benchmark", "synthetic", *options, "--searches", "2", "--out", str(tmp_path))
    folder = next(path.parent for path in tmp_path.glob("*/search.json"))
    assert first.count("gang(s) of") == 1
    assert "No verdict over 1 pair is possible with 2 searches" in first
    repeats = sorted((folder / "compare" / "searches").iterdir())
    assert [read_search(path).meta["status"] for path in repeats] == ["complete"]
    kept = json.loads((folder / "comparison.json").read_text())["searches"]
    again = command("compare", str(folder), "--searches", "2")
    assert "1 of 1 repeats are there already" in again
    assert json.loads((folder / "comparison.json").read_text())["searches"] == kept
    given = command("compare", str(folder), *(word for path in repeats for word in ("--with", str(path))))
    assert given.splitlines()[:5] == again.splitlines()[-len(given.splitlines()) :][:5]
    write_report(folder)
    assert "Methods over whole searches" in (folder / "report" / "report.html").read_text()
    assert "Methods over whole searches" in (folder / "report" / "report.md").read_text()

"""Methods at equal utility: which point of a line holds a level, what is compared there, what the report says."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ray_unlearn.report.verdicts import SEARCH, SEED
from ray_unlearn.search.at_utility import describe_equal_utility, largest_rise, summarise_lines
from ray_unlearn.training.line import FINEST, NEAR, find_points
from tests.test_cli import run
from tests.test_compare import row

LEVELS = (0.95, 0.8)


def points(utility, levels=LEVELS) -> tuple[list[float], dict[float, float]]:
    known = {0.0: 1.0, 1.0: utility(1.0)}
    return find_points(levels, utility, known), known


@pytest.mark.parametrize("edge", [0.9, 0.35, 0.06, 0.011])
def test_the_point_found_is_the_last_that_holds_up_to_a_share_of_its_distance(edge):
    (found,), known = points(lambda alpha: 1.0 - 0.05 * alpha / edge, (0.95,))
    assert edge / (1 + NEAR) - FINEST <= found <= edge
    assert len(known) - 2 <= 10, "halvings to FINEST"


def test_an_end_that_holds_the_level_is_the_point_and_a_line_that_falls_at_once_stays_at_the_start():
    assert points(lambda alpha: 1.0 - 0.02 * alpha) == ([1.0, 1.0], {0.0: 1.0, 1.0: 0.98})
    found, known = points(lambda alpha: 0.1)
    assert found == [0.0, 0.0]
    assert len(known) == 10 + 2, "shared by both levels"


def test_a_level_takes_what_another_level_has_shown_to_hold_farther_away():
    def dips(alpha: float) -> float:
        return 0.9 if 0.4 < alpha < 0.6 else 1.0 if alpha < 0.78 else 0.85 if alpha < 0.9 else 0.2

    (alone,), _ = points(dips, LEVELS[:1])
    assert alone < 0.4
    (high, low), known = points(dips)
    assert (dips(high), dips(low)) == (1.0, 0.85)
    assert high > 0.6, "beyond the dip, for the lower level was looked for there"
    assert largest_rise(known) == pytest.approx(0.1)


def test_what_rises_again_is_told_by_its_size():
    assert largest_rise({0.0: 1.0, 0.5: 0.9, 1.0: 0.2}) == 0.0
    assert largest_rise({0.0: 1.0, 0.25: 0.7, 0.5: 0.9, 0.75: 0.8, 1.0: 0.75}) == pytest.approx(0.2)


def line(method: str, unit: int, *forgets: float, **values) -> list[dict]:
    """One trial's points at LEVELS."""
    extra = {"selection_forget": 0.5, "selection_utility": 0.95, "utility_rise": 0.0, "forget_fall": 0.0, "points": 7}
    return [
        row(f"{method}-0001", forget, seed=unit, unit=unit, level=level, utility=level, **{**extra, **values})
        for level, forget in zip(LEVELS, forgets, strict=True)
    ]


def test_forgetting_alone_is_judged_at_each_level_and_corrected_over_all_of_them():
    rows = [r for k in range(8) for r in line("simnpo", k, 0.8, 0.9) + line("npo", k, 0.6, 0.9, utility_rise=0.01 * k)]
    summary = json.loads(json.dumps(summarise_lines(rows, LEVELS, SEED)))
    high, low = summary["differences"]
    assert (high["measure"], high["level"], high["better"], high["verdict"]) == ("forget", 0.95, "simnpo", "reliable")
    assert high["corrected_p"] == pytest.approx(2 * high["p"])
    assert (low["level"], low["verdict"]) == (0.8, "undecided")
    said = describe_equal_utility(summary, SEED)
    assert any(
        "has the advantage over the NPO setting of this search in forget at utility 0.95, by 0.200" in s for s in said
    )
    assert any("npo-0001: of 8 lines, 7 are not monotone: utility rises again by up to 0.070" in s for s in said)
    assert not any("simnpo-0001: of 8 lines" in s for s in said)
    few = summarise_lines([r for r in rows if r["unit"] < 3], LEVELS, SEED)
    assert "No verdict over 2 pairs is possible with 3 seeds" in few["warnings"][0]


def test_a_line_that_diverged_counts_as_nothing_forgotten():
    rows = [r for k in range(3) for r in line("simnpo", k, 0.8, 0.9)]
    broken = {"status": "failed", "error": "NonFinite: loss", "forget": None, "utility": None, "objective": None}
    rows[0] = {**rows[0], **broken, "alpha": None}
    high, _ = summarise_lines(rows, LEVELS, SEARCH)["points"]
    assert (high["n"], high["failed"], high["forget"]["mean"]) == (3, 1, pytest.approx(1.6 / 3))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("compare", "x", "--at-utility", "0.9,1.2"), "--at-utility 1.2: must be above 0 and under 1"),
        (("compare", "x", "--at-utility", "high"), "--at-utility high: not numbers"),
    ],
)
def test_levels_that_are_none_are_refused_in_one_line(capfd, words, says):
    code, _, errors = run(capfd, *words)
    assert code == 2
    assert says in errors


@pytest.mark.slowest
@pytest.mark.timeout(500)
def test_lines_are_compared_exported_and_repeated_to_the_bit(tmp_path):
    def command(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "ray_unlearn.cli", *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    options = ("--scale", "mini", "--methods", "simnpo,npo", "--trials", "2", "--robustness", "none")
    command("tune", "--benchmark", "wmdp", *options, "--under", "quantise", "--out", str(tmp_path))
    folder = next(path.parent for path in tmp_path.glob("*/search.json"))
    compare = ("compare", str(folder), "--at-utility", "0.9,0.95", "--allow-unequal")
    first = command(*compare, "--seeds", "2")
    assert "at utility 0.95" in first
    rows = [pq.read_table(path).to_pylist()[0] for path in sorted((folder / "compare" / "lines").glob("*-at*.parquet"))]
    assert len(rows) == 8
    assert all(row["selection_utility"] >= row["level"] and row["wmdp/quantised_forget_accuracy"] for row in rows)
    assert "4 of 4 lines are there already" in command(*compare, "--seeds", "2")
    searches = command(*compare, "--searches", "2")
    assert "No verdict over 2 pairs is possible with 2 searches" in searches
    assert set(json.loads((folder / "comparison.json").read_text())["at_utility"]) == {SEED, SEARCH}
    assert "At equal utility" in (folder / "report" / "report.html").read_text()

    said = command("export", str(folder), "--at-utility", "0.9")
    out = Path(next(line.split()[1] for line in said.splitlines() if line.startswith("Model:")))
    exported = json.loads((out / "reproduce.json").read_text())
    assert (exported["at_utility"], 0 < exported["job"]["alpha"] <= 1) == (0.9, True)
    assert "utility is at least 0.9" in (out / "README.md").read_text()
    assert command("reproduce", str(out / "reproduce.json")).rstrip().endswith("verdict: bit-identical")

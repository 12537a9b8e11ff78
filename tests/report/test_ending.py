"""The last lines of a search: a line a candidate, other floors, what to type next."""

from __future__ import annotations

import shlex

from made_up_search import build_row
from test_report import points

from ray_unlearn.records.tables import read_search
from ray_unlearn.report.ending import MOST_LINES, describe_candidates, describe_floors, describe_next

TRIALS = points(
    ("simnpo", 0.90, 0.97, 0.934),
    ("npo", 0.95, 0.80, 0.11),
    ("ga", 0.30, 0.995, 0.46),
    ("npo", 0.60, 0.98, 0.744),
    ("ga", 0.20, 0.50, 0.0),
)


def test_every_candidate_has_a_line_and_the_chosen_one_comes_first(build_search):
    final = build_row(0, "simnpo", forget=0.88, utility=0.96, objective=0.918)
    failed = build_row(3, "npo", status="failed", forget=None, utility=None, objective=None, error="nan")
    results = read_search(build_search(TRIALS, [final, failed], chosen="simnpo-0000"))
    head, *lines = describe_candidates(results)
    assert head.split() == ["trial", "forget", "utility", "held", "out"]
    assert [line.split()[0] for line in lines] == ["simnpo-0000", "npo-0001", "ga-0002", "npo-0003"]
    assert lines[0].endswith("0.880 / 0.960  chosen")
    assert lines[1].endswith("–  forgets most, under the floor")
    assert lines[2].endswith("keeps most utility")
    assert lines[3].split()[1:4] == ["0.600", "0.980", "–"], "a run that failed has no held-out scores"
    assert max(map(len, lines)) <= 80


def test_a_methods_best_is_shown_off_the_frontier(build_search):
    dominated = points(("simnpo", 0.90, 0.97, 0.934), ("ga", 0.5, 0.96, 0.65), ("ga", 0.4, 0.96, 0.56))
    lines = describe_candidates(read_search(build_search(dominated, chosen="simnpo-0000")))
    assert [line.split()[0] for line in lines[1:]] == ["simnpo-0000", "ga-0001"]
    assert lines[2].endswith("the best of its method")


def test_many_candidates_are_counted(build_search):
    many = points(*(("npo", i / 20, 1.0 - i / 100, i / 20) for i in range(1, 13)))
    lines = describe_candidates(read_search(build_search(many, chosen="npo-0004")))
    assert len(lines) == 1 + MOST_LINES + 1
    assert lines[-1] == "4 more candidates: see the report"


def test_what_other_floors_would_choose_is_one_sentence(build_search):
    trials = points(("simnpo", 0.7, 0.99, 0.82), ("npo", 0.9, 0.93, 0.7), ("ga", 0.99, 0.86, 0.28))
    results = read_search(build_search(trials, chosen="simnpo-0000"))
    assert describe_floors(results) == (
        "At a utility floor of 0.99 and 0.95, simnpo-0000 would be chosen; of 0.90, npo-0001; of 0.80, ga-0002."
    )


def test_a_trial_that_every_floor_would_choose_is_said_once(build_search):
    results = read_search(build_search(TRIALS, chosen="simnpo-0000"))
    assert describe_floors(results) == "At any utility floor from 0.80 to 0.99, simnpo-0000 would be chosen."


def test_the_next_commands_are_ready_to_be_typed(build_search):
    folder = build_search(TRIALS, chosen="simnpo-0000")
    folder = folder.rename(folder.with_name("my search"))
    results = read_search(folder)
    commands = [shlex.split(line.removeprefix("Next:")) for line in describe_next(folder, results)]
    assert commands == [
        ["ray_unlearn", "compare", str(folder), "--seeds", "8"],
        ["ray_unlearn", "export", str(folder)],
    ]
    (folder / "model").mkdir()
    assert describe_next(folder, results)[-1].split() == ["ray_unlearn", "chat", f"'{folder.parent}/my", "search'"]


def test_a_search_without_a_result_has_no_table_and_no_next_step(build_search):
    failed = [(build_row(0, "npo", status="failed", forget=None, utility=None, objective=None, error="nan"), [])]
    folder = build_search(failed, chosen=None)
    results = read_search(folder)
    assert describe_candidates(results) == describe_next(folder, results) == []
    assert describe_floors(results) == ""

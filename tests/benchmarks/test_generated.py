"""Answers that do not end, and answers that repeat themselves."""

import pytest

from ray_unlearn.benchmarks.contract import Answers, Prompts
from ray_unlearn.benchmarks.generated import describe_answers, measure_answers, repeats
from ray_unlearn.metrics.rouge import SCRIPT


@pytest.mark.parametrize(
    ("text", "does"),
    [
        ("Her So So So", True),
        ("yes it is yes it is yes it is", True),
        ("The capital of Japan is Tokyo, and that of France is Paris.", False),
        ("Paris", False),
        ("", False),
        ("no no", False),
    ],
)
def test_an_answer_repeats_itself_where_a_fifth_of_its_word_pairs_came_before(text, does):
    assert repeats(text) == does


def test_scripts_without_spaces_are_counted_by_character():
    assert repeats("东京东京东京", SCRIPT)
    assert not repeats("日本的首都是东京", SCRIPT)


def test_shares_are_over_the_answers_and_ends_only_where_there_are_end_marks():
    answers = Answers(["So So So So", "a plain answer", "another one here", "and one more"], [False, True, True, True])
    marked = Prompts([[1]] * 4, [""] * 4, 8, stop=(0,))
    found = measure_answers({"retain": answers}, {"retain": marked})
    assert found == {"retain_repeating": 0.25, "retain_unended": 0.25}
    assert set(found) == set(describe_answers(["retain"]))
    unmarked = Prompts([[1]] * 4, [""] * 4, 8)
    assert measure_answers({"retain": answers}, {"retain": unmarked}) == {"retain_repeating": 0.25}

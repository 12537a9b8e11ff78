"""Statistics on numbers that one can check by hand."""

import math

import numpy as np
import pytest

from ray_unlearn.metrics.statistics import (
    Difference,
    Interval,
    bootstrap,
    compare_pairs,
    describe_difference,
    describe_limits,
    describe_spread,
    sign_flip_p,
)

SEEDS = np.array([0.80, 0.82, 0.78, 0.81, 0.79])


def test_spread_is_the_mean_the_sample_deviation_and_the_range():
    spread = describe_spread(np.array([1.0, 2.0, 3.0]))
    assert spread == {"mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0}
    assert describe_spread(np.array([1.0]))["std"] is None, "one value has no known spread"


def test_a_bootstrap_interval_of_a_mean_is_that_of_the_binomial():
    """Of eight 0s and eight 1s a resample's mean is binomial: 2.5 % of it lie at or under 4 / 16."""
    values = np.array([0.0] * 8 + [1.0] * 8)
    interval = bootstrap(16, lambda draw: float(values[draw].mean()))
    assert interval == Interval(0.5, 0.25, 0.75)
    assert interval == bootstrap(16, lambda draw: float(values[draw].mean())), "the same on every call"


def test_a_constant_difference_has_no_width_and_counts():
    difference = compare_pairs(SEEDS + 0.06, SEEDS)
    assert difference.interval.value == pytest.approx(0.06)
    assert difference.interval.low == pytest.approx(0.06)
    assert difference.verdict == "reliable"
    assert compare_pairs(SEEDS + 0.04, SEEDS).verdict == "small"
    assert compare_pairs(SEEDS, SEEDS).verdict == "undecided"


def test_it_is_the_same_from_the_other_side():
    other = np.array([0.70, 0.77, 0.79, 0.71, 0.73])
    there, back = compare_pairs(SEEDS, other), compare_pairs(other, SEEDS)
    turned = there.turned()
    assert turned.interval.value == pytest.approx(back.interval.value)
    assert (turned.interval.low, turned.interval.high) == pytest.approx((back.interval.low, back.interval.high))
    assert turned.p == back.p
    assert turned.verdict == back.verdict


def test_what_overlaps_is_undecided():
    assert compare_pairs(SEEDS, SEEDS[[2, 0, 1, 4, 3]]).verdict == "undecided"


def test_pairing_matters():
    """The advantage of 0.02 drowns in what seeds do, unless each seed is compared with itself."""
    swings = np.array([0.0, 0.3, -0.2, 0.1, -0.3])
    assert compare_pairs(0.5 + swings + 0.02, 0.5 + swings).verdict == "small"
    assert compare_pairs(0.5 + swings + 0.02, 0.5 + swings[::-1]).verdict == "undecided"


def test_the_sign_flip_test_counts_all_flips():
    assert sign_flip_p(np.array([0.1, 0.1, 0.1, 0.1, 0.1])) == 2 / 32
    assert sign_flip_p(np.array([3.0, 1.0])) == 2 / 4
    # |sum| is 5, 1 or 3 (twice each way): at least as far as 1 are all, as far as 5 only both ends
    assert sign_flip_p(np.array([1.0, 2.0, 2.0])) == 2 / 8
    assert sign_flip_p(np.array([-1.0, 2.0, 0.0])) == 1.0
    assert sign_flip_p(np.zeros(4)) == 1.0
    assert sign_flip_p(np.ones(40)) == pytest.approx(1 / 10_001), "drawn, not counted"


@pytest.mark.parametrize("count", [2, 3, 4])
def test_fewer_than_five_seeds_decide_nothing(count):
    difference = compare_pairs(SEEDS[:count] + 0.5, SEEDS[:count])
    assert difference.interval.low > 0
    assert difference.verdict == "undecided"
    assert f"with {count} seeds (a verdict needs 5)" in describe_difference("A", "B", "objective", difference)


def test_one_seed_that_disagrees_leaves_five_undecided():
    difference = compare_pairs(SEEDS + np.array([0.2, 0.2, 0.2, 0.2, -0.01]), SEEDS)
    assert difference.interval.low > 0, "the bootstrap alone would call it certain"
    assert difference.verdict == "undecided"


def test_five_seeds_cover_as_often_as_the_docstring_says_and_decide_wrongly_less_often():
    chance = np.random.default_rng(1)
    samples = chance.normal(0.0, 0.1, (400, 5))
    found = [compare_pairs(sample, np.zeros(5)) for sample in samples]
    covered = np.mean([d.interval.low <= 0.0 <= d.interval.high for d in found])
    wrong = np.mean([d.verdict != "undecided" for d in found])
    sigma = math.sqrt(0.83 * 0.17 / 400)
    assert covered == pytest.approx(0.83, abs=3 * sigma)
    assert wrong < 0.11


def test_sentences_say_who_by_how_much_and_how_sure():
    small = Difference(Interval(0.04, 0.01, 0.07), 2 / 32, 5)
    sentence = "SimNPO's advantage over NPO is 0.040 [0.010, 0.070]: small but reliable"
    assert describe_difference("SimNPO", "NPO", "objective", small) == sentence
    large = Difference(Interval(0.2, 0.1, 0.3), 2 / 32, 5)
    assert (
        describe_difference("A", "B", "utility", large)
        == "A's advantage over B in utility is 0.200 [0.100, 0.300]: reliable"
    )
    unsure = Difference(Interval(0.01, -0.02, 0.05), 0.5, 5)
    assert describe_difference("A", "B", "objective", unsure).startswith("A and B cannot be told apart at this budget")


def test_the_limits_are_said():
    assert "too narrow" in describe_limits(5)
    assert "too narrow" not in describe_limits(30)
    for words in ("95% percentile", "paired by seed", "another search"):
        assert words in describe_limits(5)

"""Statistics on numbers that one can check by hand, and how often verdicts are wrong, counted."""

from itertools import product

import numpy as np
import pytest

from ray_unlearn.metrics.statistics import (
    LEVEL,
    RELIABLE,
    SMALL,
    UNDECIDED,
    Interval,
    bootstrap,
    compare_pairs,
    corrected,
    describe_spread,
    fewest_units,
    mean_interval,
    miss_rate,
    sign_flip_p,
    verdict,
)
from ray_unlearn.report.verdicts import (
    SEARCH,
    SEED,
    describe_difference,
    describe_limits,
    tabulate_differences,
    tabulate_spreads,
)
from tests.public_pools import POOLS

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


def test_a_constant_difference_has_no_width():
    difference = compare_pairs(SEEDS + 0.06, SEEDS)
    assert (difference.interval.value, difference.p) == (pytest.approx(0.06), 2 / 32)
    same = compare_pairs(SEEDS, SEEDS)
    assert (same.interval, same.p) == (Interval(0.0, 0.0, 0.0), 1.0)


def test_an_interval_is_student_s_t():
    interval = mean_interval(SEEDS)
    width = 2.7764 * SEEDS.std(ddof=1) / np.sqrt(5)
    assert (interval.low, interval.high) == (pytest.approx(0.8 - width, abs=1e-6), pytest.approx(0.8 + width, abs=1e-6))
    assert mean_interval(np.array([0.5])) == Interval(0.5, 0.5, 0.5)


def test_it_is_the_same_from_the_other_side():
    other = np.array([0.70, 0.77, 0.79, 0.71, 0.73])
    there, back = compare_pairs(SEEDS, other), compare_pairs(other, SEEDS)
    assert there.interval.value == pytest.approx(-back.interval.value)
    assert (there.interval.low, there.interval.high) == pytest.approx((-back.interval.high, -back.interval.low))
    assert there.p == back.p


def test_what_is_not_finite_is_refused_before_any_correction():
    with pytest.raises(ValueError, match="not finite"):
        compare_pairs(np.array([0.1, np.nan]), np.zeros(2))
    with pytest.raises(ValueError, match="not finite"):
        corrected([0.01, float("nan")])
    assert corrected([]) == []


def test_pairing_matters():
    """The advantage of 0.02 drowns in what units do, unless each is compared with itself."""
    swings = np.array([0.0, 0.3, -0.2, 0.1, -0.3, 0.2])
    assert compare_pairs(0.5 + swings + 0.02, 0.5 + swings).p == 2 / 64
    assert compare_pairs(0.5 + swings + 0.02, 0.5 + swings[::-1]).p > 0.5


def test_verdicts_need_a_corrected_p_and_call_little_differences_small():
    assert verdict(0.2, 0.05) == RELIABLE
    assert verdict(-0.04, 0.01) == SMALL
    assert verdict(0.2, 0.051) == UNDECIDED


def test_holm_multiplies_the_smallest_most():
    assert corrected([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@pytest.mark.parametrize(("pairs", "units"), [(1, 6), (3, 7), (6, 8), (105, 13)])
def test_so_many_units_are_the_fewest_with_which_a_verdict_is_possible(pairs, units):
    assert fewest_units(pairs) == units
    for count, can in ((units, True), (units - 1, False)):
        p_values = [compare_pairs(np.full(count, 0.3), np.zeros(count)).p] * pairs
        assert (corrected(p_values)[0] <= LEVEL) == can


def test_the_sign_flip_test_counts_all_flips():
    assert sign_flip_p(np.array([0.1, 0.1, 0.1, 0.1, 0.1])) == 2 / 32
    assert sign_flip_p(np.array([3.0, 1.0])) == 2 / 4
    # |sum| is 5, 1 or 3 (twice each way): at least as far as 1 are all, as far as 5 only both ends
    assert sign_flip_p(np.array([1.0, 2.0, 2.0])) == 2 / 8
    assert sign_flip_p(np.array([-1.0, 2.0, 0.0])) == 1.0
    assert sign_flip_p(np.zeros(4)) == 1.0
    assert sign_flip_p(np.ones(40)) == pytest.approx(2 / 65_537), "drawn, not counted"


def test_a_rare_collapse_is_missed_as_often_as_is_said():
    chance = np.random.default_rng(0)
    seen = (chance.random((20_000, 5)) < 0.2).any(axis=1)
    assert miss_rate(0.2, 5) == pytest.approx(1 - seen.mean(), abs=0.01)


KINDS = {
    "Gaussian": lambda chance, shape: chance.normal(0.0, 0.07, shape),
    "skewed": lambda chance, shape: 0.1 * (chance.gamma(4.0, 0.5, shape) - 2.0),
    "collapsing": lambda chance, shape: np.where(chance.random(shape) < 0.2, -0.6, chance.normal(0.0, 0.05, shape)),
}


def exact_p(differences: np.ndarray) -> np.ndarray:
    """What `sign_flip_p` counts, for many rows at once: [rows, n] -> [rows]."""
    signs = np.array(list(product((1.0, -1.0), repeat=differences.shape[-1])))
    means = np.abs(differences @ signs.T)
    return (means >= means[:, :1] - 1e-12).mean(axis=1)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Whether the smallest p of each row passes Holm's correction."""
    return p_values.min(axis=1) * p_values.shape[1] <= LEVEL


def judged(scores: np.ndarray) -> np.ndarray:
    """Whether any verdict was given; scores: [simulations, methods, units]."""
    first, second = np.triu_indices(scores.shape[1], 1)
    differences = scores[:, first] - scores[:, second]
    return holm(exact_p(differences.reshape(-1, scores.shape[2])).reshape(differences.shape[:2]))


def test_the_simulations_count_what_the_product_counts():
    differences = np.random.default_rng(5).normal(0.02, 0.05, (6, 8))
    p_values = sign_flip_p(differences)
    assert exact_p(differences) == pytest.approx(p_values)
    assert holm(p_values[None])[0] == (min(corrected(p_values)) <= LEVEL)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("methods", "units", "times"), [(2, 6, 4000), (2, 12, 1000), (4, 8, 4000), (4, 5, 300)])
def test_identical_methods_are_told_apart_in_at_most_one_comparison_in_twenty(kind, methods, units, times):
    chance = np.random.default_rng([methods, units])
    scores = 0.7 + KINDS[kind](chance, (times, methods, units))
    wrong = judged(scores).mean()
    assert wrong <= LEVEL + 3 * np.sqrt(LEVEL * (1 - LEVEL) / times)


def test_fifteen_identical_methods_are_not_told_apart_either():
    scores = np.random.default_rng(3).normal(0.7, 0.07, (40, 15, 13))
    assert judged(scores).mean() <= LEVEL + 3 * np.sqrt(LEVEL * (1 - LEVEL) / 40)


@pytest.mark.parametrize(("units", "power"), [(8, 0.6), (12, 0.85)])
def test_a_true_difference_of_a_tenth_is_found(units, power):
    """At a spread of 0.05 between searches, among three methods of which one is better."""
    chance = np.random.default_rng(units)
    scores = chance.normal(0.0, 0.05, (1000, 3, units)) + np.array([0.8, 0.7, 0.7])[:, None]
    assert judged(scores[:, :2]).mean() >= power
    assert (exact_p(scores[:, 0] - scores[:, 1]) * 3 <= LEVEL).mean() >= power


def searches_of(pool, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Searches of 12 trials drawn from a recorded pool: the best of each."""
    return np.random.default_rng(seed).choice(np.array(pool), (*shape, 12)).max(axis=-1)


@pytest.mark.parametrize("method", POOLS)
@pytest.mark.parametrize("units", [8, 12])
def test_searches_drawn_from_one_recorded_pool_are_told_apart_in_at_most_one_comparison_in_twenty(method, units):
    times = 3000 if units == 8 else 1000
    wrong = judged(searches_of(POOLS[method], (times, 2, units), units)).mean()
    assert wrong <= LEVEL + 3 * np.sqrt(LEVEL * (1 - LEVEL) / times)


@pytest.mark.parametrize("method", POOLS)
@pytest.mark.parametrize(("units", "spreads"), [(8, 3.0), (12, 2.0)])
def test_a_difference_of_a_few_spreads_between_searches_is_found_in_four_of_five(method, units, spreads):
    """Of one pair among three. The spread is that of the best of 12 trials, .013 to .041 in these pools."""
    found = searches_of(POOLS[method], (600, 2, units), 1)
    differences = found[:, 0] - found[:, 1] + spreads * found.std()
    assert (exact_p(differences) * 3 <= LEVEL).mean() >= 0.8


@pytest.mark.parametrize(("kind", "least"), [("Gaussian", 0.94), ("skewed", 0.92)])
def test_intervals_of_five_cover(kind, least):
    """Of Gaussian and mildly skewed (gamma, skewness 1) values, with mean 0."""
    samples = KINDS[kind](np.random.default_rng(1), (4000, 5))
    mean, width = samples.mean(axis=1), 2.7764 * samples.std(axis=1, ddof=1) / np.sqrt(5)
    first = mean_interval(samples[0])
    assert (first.low, first.high) == (
        pytest.approx(mean[0] - width[0], abs=1e-5),
        pytest.approx(mean[0] + width[0], abs=1e-5),
    )
    assert np.mean(np.abs(mean) <= width) >= least - 3 * np.sqrt(least * (1 - least) / 4000)


def entry(**changes) -> dict:
    values = {"better": "simnpo", "other": "npo", "measure": "objective", "unit": SEARCH, "value": 0.04, "low": 0.01}
    return {**values, "high": 0.07, "n": 8, "p": 0.01, "corrected_p": 0.03, "verdict": SMALL, **changes}


def test_sentences_say_who_by_how_much_and_how_sure():
    said = (
        "SimNPO has the advantage over NPO, by 0.040 [0.010, 0.070]: small but reliable (corrected p 0.030, 8 searches)"
    )
    assert describe_difference(entry()) == said
    unsure = describe_difference(entry(verdict=UNDECIDED, corrected_p=0.3))
    assert unsure.startswith("SimNPO and NPO cannot be told apart at this budget")
    assert "not judged" in describe_difference(entry(verdict=None, corrected_p=None, measure="forget"))


def test_a_table_says_the_same_in_a_line_a_pair():
    judged, open_, described = (
        entry(),
        entry(verdict=UNDECIDED, corrected_p=0.3),
        entry(verdict=None, corrected_p=None, measure="forget"),
    )
    head, *lines = tabulate_differences([judged, open_, described], SEARCH).splitlines()
    assert head.startswith("method ahead  of")
    assert lines[0].endswith("0.040 [0.010, 0.070]  small but reliable (corrected p 0.030, 8 searches)")
    assert lines[1].endswith("undecided (corrected p 0.300, 8 searches)")
    assert lines[2].split()[2] == "forget"
    assert lines[2].endswith("described, not judged")
    assert tabulate_differences([], SEED) == ""


def test_a_table_of_spreads_counts_what_diverged():
    spread = {"mean": 0.5, "min": 0.25, "max": 0.75}
    entries = [{"method": "npo", "n": 8, "failed": 2, "objective": spread}]
    head, line = tabulate_spreads(entries, ["objective"], SEARCH).splitlines()
    assert head.split() == ["over", "searches", "n", "objective"]
    assert line.split() == ["NPO", "8", "0.500", "(0.250", "to", "0.750)", "2", "diverged"]


def test_seeds_speak_of_settings_and_searches_of_methods():
    assert "the SimNPO setting of this search" in describe_difference(entry(unit=SEED))
    assert any("compare --searches" in line for line in describe_limits(8, SEED, 3))
    assert not any("compare --searches" in line for line in describe_limits(8, SEARCH, 3))


def test_too_few_units_are_said_with_the_number_that_would_do():
    assert (
        "No verdict over 3 pairs is possible with 5 seeds: 7 are the fewest, 8 or more"
        in describe_limits(5, SEED, 3)[0]
    )
    assert "No verdict" not in describe_limits(8, SEED, 3)[0]

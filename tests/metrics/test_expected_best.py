"""The best of n trials, counted out over every draw."""

from itertools import combinations, product

import numpy as np
import pytest

from ray_unlearn.metrics.expected_best import budgets, expected_best, lead, share_ahead

VALUES = [0.1, 0.7, 0.4, 0.4, 0.9, 0.2]
OTHERS = [0.3, 0.4, 0.8, 0.5]


@pytest.mark.parametrize("count", range(1, len(VALUES) + 1))
def test_the_mean_is_that_of_every_choice_of_so_many(count):
    bests = [max(chosen) for chosen in combinations(VALUES, count)]
    assert expected_best(VALUES, count).value == pytest.approx(np.mean(bests))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_spread_is_that_of_every_draw_with_replacement(count):
    bests = np.sort([max(drawn) for drawn in product(VALUES, repeat=count)])
    found = expected_best(VALUES, count)
    for bound, share in ((found.low, 0.025), (found.high, 0.975)):
        assert (bests <= bound).mean() >= share
        assert (bests < bound).mean() < share


@pytest.mark.parametrize("count", [1, 2, 3])
def test_how_often_one_is_ahead_is_that_of_all_pairs_of_draws(count):
    ours = np.array([max(drawn) for drawn in product(VALUES, repeat=count)])
    theirs = np.array([max(drawn) for drawn in product(OTHERS, repeat=count)])
    difference = np.sign(ours[:, None] - theirs[None])
    assert share_ahead(VALUES, OTHERS, count) == pytest.approx((difference.mean() + 1) / 2)


def test_the_best_of_thousands_is_finite_and_rises():
    values = np.random.default_rng(0).random(3000)
    found = [expected_best(values, count).value for count in budgets(3000)]
    assert found == sorted(found)
    assert found[0] == pytest.approx(values.mean())
    assert found[-1] == pytest.approx(values.max())


def test_more_than_were_run_cannot_be_told():
    with pytest.raises(ValueError, match="7 cannot be told from 6"):
        expected_best(VALUES, 7)


def test_a_lead_is_clear_where_nearly_every_redraw_has_it():
    near, far = {"a": VALUES, "b": OTHERS}, {"a": [0.8, 0.81, 0.82], "b": [0.1, 0.11, 0.12]}
    found = lead(near, 2)
    assert found is not None
    assert not found.is_clear
    assert found.value >= 0.0
    found = lead(far, 2)
    assert found is not None
    assert (found.first, found.second, found.share, found.is_clear) == ("a", "b", 1.0, True)
    assert lead({"a": VALUES, "b": OTHERS}, 6) is None, "only one has so many trials"

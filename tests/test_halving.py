import itertools

import numpy as np

from ray_unlearn.search.halving import Halving, best, spread_out
from ray_unlearn.training.trial import rung_epochs

NUMBERS = itertools.count()


def verdicts(halving: Halving, scores: list, method: str = "simnpo", rung: int = 0) -> list[bool]:
    """The answers to trials that reach a rung one after another."""
    return [halving.goes_on(method, rung, next(NUMBERS), np.atleast_1d(score).tolist()) for score in scores]


def test_rungs_fall_on_shares_of_the_epochs_and_never_on_the_last():
    assert rung_epochs(10, (0.2, 0.5)) == {2: 0, 5: 1}
    assert rung_epochs(6, (0.2, 0.5)) == {1: 0, 3: 1}
    assert rung_epochs(2, (0.2, 0.5)) == {1: 1}, "two rungs on one epoch are one, the later"
    assert rung_epochs(1, (0.2, 0.5)) == {}
    assert rung_epochs(10, ()) == {}


def test_the_first_to_arrive_goes_on_however_bad_it_is():
    assert verdicts(Halving(3), [0.0]) == [True]


def test_who_arrives_in_falling_order_is_stopped_until_there_is_room_for_more():
    # Of 4 the best ceil(4 / 3) = 2 go on, but the fourth is the worst of them; of 7 the best 3.
    assert verdicts(Halving(3), [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]) == [True] + 6 * [False]
    assert verdicts(Halving(3), [0.9, 0.8, 0.7, 0.85, 0.5, 0.4, 0.84]) == [True, False, False, True, False, False, True]


def test_whoever_is_the_best_so_far_always_goes_on():
    assert verdicts(Halving(3), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == 6 * [True]


def test_no_more_than_the_first_and_one_in_three_go_on_in_random_order():
    scores = np.random.default_rng(0).random(300)
    kept = verdicts(Halving(3), scores.tolist())
    assert 80 <= sum(kept) <= 120
    assert scores[kept].mean() > scores[np.logical_not(kept)].mean() + 0.3


def test_of_equal_scores_the_earlier_ones_go_on():
    assert verdicts(Halving(3), [0.5, 0.5, 0.5, 0.5]) == [True, False, False, False]
    assert best(np.array([[0.2], [0.9], [0.2], [0.5]]), 3) == [1, 3, 0]


def test_in_order_a_trial_is_compared_with_those_that_its_place_may_know():
    halving = Halving(3)
    assert halving.goes_on("npo", 0, 5, [0.9], last=2)
    assert halving.goes_on("npo", 0, 3, [0.1], last=0), "5 arrived first, and comes later"
    assert not halving.goes_on("npo", 0, 7, [0.5], last=5)
    assert halving.goes_on("npo", 0, 6, [0.5], last=4)


def test_methods_and_rungs_do_not_mix():
    halving = Halving(3)
    assert verdicts(halving, [0.9, 0.8], "simnpo") == [True, False]
    assert verdicts(halving, [0.1], "ga") == [True]
    assert verdicts(halving, [0.1], "simnpo", rung=1) == [True]
    assert verdicts(halving, [0.2], "ga") == [True]


def test_a_dominated_trial_is_stopped_and_one_on_the_front_is_not_while_there_is_room():
    chain = [(0.5, 0.5), (0.4, 0.4), (0.3, 0.3), (0.2, 0.2), (0.1, 0.1)]
    assert verdicts(Halving(3), chain) == [True] + 4 * [False]
    # Seven trials, room for three, and three that nobody dominates: the one in front comes last.
    front_comes_last = [(0.5, 0.5), (0.9, 0.1), *4 * [(0.05, 0.05)], (0.1, 0.9)]
    assert verdicts(Halving(3), front_comes_last)[-1]


def test_dominated_trials_go_on_where_there_is_more_room_than_front():
    # Room for two, one on the front: of the second front the one that is better for all.
    assert verdicts(Halving(3), [(0.9, 0.9), (0.1, 0.1), (0.2, 0.1), (0.8, 0.8)])[-1]


def test_the_order_is_by_fronts():
    scores = np.array([[0.1, 0.1], [0.9, 0.2], [0.2, 0.9], [0.8, 0.1]])
    assert set(best(scores, 2)) == {1, 2}
    assert best(scores, 4)[2:] == [3, 0]
    assert len(best(scores, 1)) == 1


def test_inside_a_front_those_come_first_that_stand_far_apart():
    front = np.array([[0.5, 0.5], [0.51, 0.49], [0.49, 0.51], [0.9, 0.1], [0.1, 0.9]])
    assert spread_out(front)[0] == 0, "the largest product"
    assert set(spread_out(front)[1:3]) == {3, 4}
    assert sorted(spread_out(front)) == [0, 1, 2, 3, 4]


def test_equal_points_of_a_front_are_all_ordered_once():
    assert spread_out(np.full((4, 2), 0.5)) == [0, 1, 2, 3]


def test_only_the_latest_trials_at_a_rung_are_compared(monkeypatch):
    monkeypatch.setattr("ray_unlearn.search.halving.LOOKS_BACK", 4)
    assert verdicts(Halving(2), [0.9, 0.8, 0.7, 0.1, 0.2, 0.3]) == [True, *[False] * 4, True], "second of 0.7 to 0.3"

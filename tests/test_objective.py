from dataclasses import replace

import numpy as np
import pytest

from ray_unlearn.benchmarks.contract import Aim, Benchmark, Keep
from ray_unlearn.benchmarks.objective import Judge, relative, two_sided
from ray_unlearn.config import PARTS
from ray_unlearn.metrics.fronts import hypervolume, pareto_front
from ray_unlearn.metrics.ranking import Ranking

START = {"forget_accuracy": 0.95, "general_accuracy": 0.9}


def judge(retrained=None, under=(), **start: float) -> Judge:
    aims = (Aim("forget_accuracy", never_knew=0.25),)
    keeps = (Keep("general_accuracy", useless=0.25),)
    benchmark = Benchmark("toy", "", "", {}, aims, keeps, load=None, measure=None, leaks={"forget": "forget_rouge"})
    return Judge.build(benchmark, {**START, **start}, retrained, Ranking(0.95), under)


def test_forgetting_is_two_sided():
    assert two_sided(0.25, start=0.95, goal=0.25) == 1.0
    assert two_sided(0.95, start=0.95, goal=0.25) == 0.0
    assert two_sided(0.20, start=0.95, goal=0.25) < 1.0
    assert two_sided(0.20, 0.95, 0.25) == pytest.approx(two_sided(0.30, 0.95, 0.25))


def test_utility_is_relative_to_the_starting_model_and_to_chance():
    assert relative(0.9, start=0.9, useless=0.25) == 1.0
    assert relative(0.25, start=0.9, useless=0.25) == 0.0
    assert relative(0.1, start=0.9, useless=0.25) == 0.0
    assert relative(1.9, start=1.0, useless=2.0, lower_is_better=True) == pytest.approx(0.1)


def test_the_starting_model_has_forgotten_nothing_and_kept_everything():
    verdict = judge().verdict(START)
    assert (verdict.forget, verdict.utility, verdict.objective) == (0.0, 1.0, 0.0)


def test_a_gibberish_model_never_ranks_above_a_good_one():
    gibberish = judge().verdict({"forget_accuracy": 0.25, "general_accuracy": 0.25})
    good = judge().verdict({"forget_accuracy": 0.6, "general_accuracy": 0.88})
    assert gibberish.forget == 1.0
    assert gibberish.objective == 0.0
    assert good.objective > gibberish.objective


def test_the_retrained_models_value_is_the_goal_where_there_is_one():
    assert judge({"forget_accuracy": 0.40}).verdict({**START, "forget_accuracy": 0.40}).forget == 1.0


def test_an_aim_for_want_of_better_is_left_out_where_there_is_better():
    aims = (Aim("distance"), Aim("chance", never_knew=0.0, only_if_alone=True))
    benchmark = Benchmark("toy", "", "", {}, aims, (), load=None, measure=None)
    assert [a.metric for a in Judge.build(benchmark, {}, {"distance": 0.0}, Ranking(0.9)).aims] == ["distance"]
    assert [a.metric for a in Judge.build(benchmark, {}, None, Ranking(0.9)).aims] == ["chance"]


def test_a_missing_metric_is_an_error_and_never_made_up():
    with pytest.raises(KeyError):
        judge().verdict({"forget_accuracy": 0.3})


def test_under_attacks_the_forget_score_is_the_worst_of_all_at_a_trials_last_point():
    metrics = {**START, "forget_accuracy": 0.25, "relearned_forget_accuracy": 0.6, "quantised_forget_accuracy": 0.25}
    held = judge(under=("relearn", "quantise"))
    assert held.verdict(metrics).forget == pytest.approx(two_sided(0.6, 0.95, 0.25))
    assert held.verdict(metrics, is_last=False).forget == 1.0
    assert judge(under=("quantise",)).verdict(metrics).forget == 1.0
    with pytest.raises(KeyError):
        held.verdict({**START, "forget_accuracy": 0.25})


def test_sampled_answers_are_judged_from_the_starting_models_to_the_retrained_models():
    retrained = {"forget_accuracy": 0.25, "forget_rouge": 0.1, "sampled_forget_rouge": 0.2}
    held = judge(retrained, ("sample",), sampled_forget_rouge=0.8)
    metrics = {**START, "forget_accuracy": 0.25, "sampled_forget_rouge": 0.5}
    assert held.verdict(metrics).forget == pytest.approx(0.5)
    with pytest.raises(RuntimeError, match="retrained"):
        judge(None, ("sample",))


ATTACKED = {"forget_accuracy": 0.3, "relearned_forget_accuracy": 0.6, "quantised_forget_accuracy": 0.35}


def test_under_attack_the_goal_is_the_retrained_model_under_the_same_attack():
    held = judge(ATTACKED, ("relearn", "quantise"))
    whole = {**START, **ATTACKED}
    assert held.verdict(whole).forget == 1.0, "the retrained model is what a model that never knew is"
    assert held.verdict({**whole, "relearned_forget_accuracy": 0.775}).forget == pytest.approx(0.5)
    assert held.verdict({**whole, "relearned_forget_accuracy": 0.25}).forget == 0.0, "too far beyond is too far"


def test_a_search_from_before_keeps_the_goals_that_it_had():
    held = replace(judge({"forget_accuracy": 0.3}, ("relearn",)), ranking=Ranking(0.95, PARTS))
    attacked = {**START, "forget_accuracy": 0.3, "relearned_forget_accuracy": 0.3}
    assert held.verdict(attacked).forget == 1.0


def test_no_distance_nearer_than_chance_is_a_better_one():
    aim = Aim("distance", of_chance="distance_of_chance", most=1.0)
    benchmark = Benchmark("toy", "", "", {}, (aim,), (Keep("kept", 0.0),), load=None, measure=None)
    start = {"distance": 0.9, "distance_of_chance": 0.1, "kept": 1.0}
    held = Judge.build(benchmark, start, {"distance": 0.0}, Ranking(0.95))
    forget = [held.verdict({**start, "distance": distance}).forget for distance in (0.0, 0.06, 0.1, 0.5, 0.9)]
    assert forget == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.0])
    before = Judge.build(benchmark, start, {"distance": 0.0}, Ranking(0.95, PARTS))
    assert before.verdict({**start, "distance": 0.1}).forget == pytest.approx(8 / 9)


def test_a_hold_out_says_what_a_model_that_never_knew_would_have():
    aims = (Aim("forget_probability", hold_out="hold_out_probability", never_knew=0.0),)
    benchmark = Benchmark("toy", "", "", {}, aims, (), load=None, measure=None)
    start = {"forget_probability": 0.9, "hold_out_probability": 0.3}
    assert Judge.build(benchmark, start, None, Ranking(0.95)).goal(aims[0]) == 0.3
    assert Judge.build(benchmark, start, {"forget_probability": 0.4}, Ranking(0.95)).goal(aims[0]) == 0.4
    assert Judge.build(benchmark, {"forget_probability": 0.9}, None, Ranking(0.95)).goal(aims[0]) == 0.0


def test_the_objective_is_continuous_at_the_floor_and_lower_below_it():
    assert Ranking(0.95).objective(0.9, 0.95) == pytest.approx(Ranking(0.95).objective(0.9, 0.95 - 1e-9), abs=1e-6)
    assert Ranking(0.95).objective(0.9, 0.5) < Ranking(0.5).objective(0.9, 0.5)


def test_the_front_holds_what_nothing_dominates():
    points = np.array([[1.0, 0.0], [0.5, 0.5], [0.4, 0.4], [0.0, 1.0], [0.5, 0.5]])
    assert pareto_front(points).tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("steps", [1, 3, 10, 1000])
def test_the_quick_front_of_points_in_the_plane_is_the_slow_one(steps):
    points = np.random.default_rng(steps).integers(0, steps, (300, 2)).astype(float)
    points[:3] = -np.inf, np.inf
    # A third score that is the same for all decides nothing, and takes the slow way.
    slow = pareto_front(np.column_stack([points, np.zeros(len(points))]))
    assert pareto_front(points).tolist() == slow.tolist()


def test_no_points_have_no_front():
    assert pareto_front(np.zeros((0, 2))).tolist() == []


def test_the_hypervolume_is_the_area_that_the_points_cover_together():
    assert hypervolume(np.zeros((0, 2))) == 0.0
    assert hypervolume(np.array([[0.5, 0.4]])) == pytest.approx(0.2)
    steps = np.array([[0.2, 0.8], [0.5, 0.5], [1.0, 0.1], [0.4, 0.4], [0.5, 0.5], [0.9, -1.0]])
    assert hypervolume(steps) == pytest.approx(0.2 * 0.3 + 0.5 * 0.4 + 1.0 * 0.1)
    grid = (np.indices((1000, 1000)).reshape(2, -1).T + 0.5) / 1000
    points = np.random.default_rng(0).random((20, 2))
    counted = np.any(np.all(grid[:, None] <= points[None], axis=2), axis=1).mean()
    assert hypervolume(points) == pytest.approx(counted, abs=2e-3)

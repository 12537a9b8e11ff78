"""One ordering: what a search maximises is what it chooses."""

import itertools

import numpy as np
import pytest

from ray_unlearn.config import COMPLETED, FAILED, INTERPOLATED, PRUNED, SCALED
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.search.scored import Scored


def row(number: int, forget: float, utility: float, ranking: Ranking, **more) -> dict:
    scores = {"forget": forget, "utility": utility, "objective": ranking.objective(forget, utility)}
    return {"trial_id": f"ga-{number}", "method": "ga", "number": number, "status": COMPLETED, **scores, **more}


def drawn(ranking: Ranking, seed: int, count: int = 40) -> list[dict]:
    scores = np.random.default_rng(seed).random((count, 2)).round(2)
    return [row(i, *pair, ranking, method=f"m{i % 3}") for i, pair in enumerate(scores.tolist())]


@pytest.mark.parametrize("floor", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(20))
def test_no_candidate_has_a_higher_objective_than_the_chosen_one(floor, seed):
    ranking = Ranking(floor)
    rows = drawn(ranking, seed)
    chosen = ranking.best(rows)
    assert chosen["objective"] == max(r["objective"] for r in rows)
    assert ranking.best(ranking.best_of_methods(rows).values()) is chosen
    assert ranking.sorted(rows)[0] is chosen


def test_the_order_of_arrival_decides_nothing():
    ranking = Ranking()
    equal = [row(2, 0.9, 0.97, ranking), row(1, 0.9, 0.97, ranking), row(3, 0.97, 0.9701, ranking)]
    for order in itertools.permutations(equal):
        assert [r["number"] for r in ranking.sorted(order)] == [3, 1, 2]


def test_of_equal_objectives_the_larger_utility_comes_first():
    ranking = Ranking(0.0)
    rows = [row(1, 0.9, 0.6, ranking), row(2, 0.6, 0.9, ranking)]
    assert ranking.best(rows)["number"] == 2


def test_under_the_floor_the_objective_falls_steeply_and_without_a_jump():
    ranking = Ranking(0.95)
    assert ranking.objective(1.0, 0.90) / ranking.objective(1.0, 0.95) == pytest.approx(0.5, abs=0.02)
    assert ranking.objective(0.9, 0.95 - 1e-9) == pytest.approx(ranking.objective(0.9, 0.95), abs=1e-6)
    assert ranking.objective(0.98, 0.94) > ranking.objective(0.60, 0.96), "one question under the floor is no cliff"
    assert ranking.objective(1.0, 0.0) == 0.0


def test_without_a_floor_nothing_falls():
    assert Ranking(0.0).objective(0.5, 0.1) == pytest.approx(2 * 0.05 / 0.6)
    assert "floor" not in Ranking(0.0).describe()


def test_a_pruned_trial_stands_in_only_where_none_completed_and_a_failed_one_never():
    ranking = Ranking()
    pruned = row(1, 0.9, 0.99, ranking, status=PRUNED)
    failed = row(2, 0.9, 0.99, ranking, status=FAILED)
    point = row(3, 0.1, 0.99, ranking, status=INTERPOLATED, alpha=0.5)
    assert ranking.best([pruned, failed, point]) is point
    assert ranking.best([pruned, failed]) is pruned
    assert ranking.best([failed]) is None


def test_of_a_trials_points_the_earlier_of_equal_ones_counts():
    def point(epoch: int, utility: float) -> Scored:
        return Scored(epoch, epoch == 7, {}, forget=0.5, utility=utility, objective=0.5)

    points = [point(2, 0.9), point(5, 0.9)]
    assert Ranking().best_point(points) is points[0]
    points.append(point(7, 0.95))
    assert Ranking().best_point(points) is points[2]


def test_a_search_of_before_keeps_its_rule():
    old = Ranking.of({"utility_floor": 0.9})
    assert old.rule == SCALED
    under, above = row(1, 0.99, 0.89, old), row(2, 0.5, 0.91, old)
    assert old.objective(0.99, 0.89) > old.objective(0.5, 0.91)
    assert old.best([under, above]) is above
    assert Ranking.of({"utility_floor": 0.9, "ranking": "floored"}).best([under, above]) is under

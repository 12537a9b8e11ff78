import numpy as np
import pytest
from optuna.trial import TrialState

from ray_unlearn.config import GP, NSGA2, RANDOM, SAMPLERS, TPE
from ray_unlearn.search import sampling
from ray_unlearn.search.sampling import MethodStudy, first_points
from ray_unlearn.search.space import Range, Space

SPACE = Space(
    "simnpo",
    {},
    {
        "learning_rate": Range(1e-6, 1e-2, log=True),
        "beta": Range(0.5, 5.0),
        "epochs": Range(2, 9, integer=True),
        "batch_size": Range(4, 64, log=True, integer=True),
    },
    ({"learning_rate": 1e-4, "beta": 2.5, "epochs": 5, "batch_size": 16},),
)
TRIALS = 16
GP_TRIALS = 6
"""Fewer, as a proposal takes it a fraction of a second."""


def outcome(point: dict[str, float], status: str = "completed") -> dict:
    """A made-up row: learning more forgets more and keeps less."""
    push = (point["learning_rate"] / 1e-2) ** 0.25
    forget, utility = push * (1 - 0.05 * abs(point["beta"] - 2)), 1 - 0.5 * push**2
    scores = {"objective": forget * utility, "forget": forget, "utility": utility}
    return {"status": status, "epochs": point["epochs"], "epochs_run": 1, **scores}


def search(sampler: str, pareto: bool, seed: int = 0, trials: int = TRIALS) -> list[dict[str, float]]:
    """What is asked for in a search in which trials fail and are pruned, one at a time waiting for its result."""
    study = MethodStudy(SPACE, trials, pareto, seed, sampler, utility_floor=0.8)
    points: list[dict[str, float]] = []
    for number in range(trials):
        points.append(study.ask(str(number)))
        if number:
            status = {1: "failed", 4: "pruned"}.get(number % 6, "completed")
            study.tell(str(number - 1), outcome(points[-2], status))
    return points


def told(study: MethodStudy, number: int):
    return study._study.trials[number]


@pytest.mark.parametrize("pareto", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_keeps_to_the_ranges_and_to_its_seed(sampler, pareto):
    trials = GP_TRIALS if sampler == GP else TRIALS
    points = search(sampler, pareto, trials=trials)
    for point in points:
        assert point.keys() == SPACE.ranges.keys()
        for name, range_ in SPACE.ranges.items():
            assert range_.low <= point[name] <= range_.high
            assert not range_.integer or point[name] == int(point[name])
    assert points == search(sampler, pareto, trials=trials)
    assert points[1:] != search(sampler, pareto, seed=1, trials=trials)[1:]
    # A tenth of the range: three quarters of its logarithm.
    assert sum(point["learning_rate"] < 1e-3 for point in points) >= trials // 5


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s != RANDOM])
def test_every_sampler_but_random_begins_with_the_same_points(sampler):
    study = MethodStudy(SPACE, TRIALS, False, 0, sampler)
    first = [study.ask(str(number)) for number in range(TRIALS // 2)]
    assert first == [pytest.approx(point) for point in first_points(SPACE, TRIALS // 2, seed=0)]
    assert first[0] == SPACE.warm_starts[0]


def test_random_leaves_the_published_settings_out():
    points = search(RANDOM, pareto=False)
    assert dict(SPACE.warm_starts[0]) not in points
    assert points == search(RANDOM, pareto=True), "it does not look at the outcomes"


def test_qmc_goes_on_with_the_sequence_that_it_began():
    assert search("qmc", pareto=True) == [pytest.approx(point) for point in first_points(SPACE, TRIALS, seed=0)]


@pytest.mark.parametrize("sampler", [TPE, GP, NSGA2])
def test_with_two_objectives_a_trial_under_the_floor_is_infeasible(sampler):
    study = MethodStudy(SPACE, TRIALS, True, 0, sampler, utility_floor=0.8)
    for number, utility in enumerate((0.5, 0.8, 1.0)):
        study.ask(str(number))
        study.tell(str(number), {"status": "completed", "forget": 0.9 - utility / 2, "utility": utility})
    assert [max(told(study, n).constraints.values()) > 0 for n in range(3)] == [True, False, False]
    assert [trial.number for trial in study._study.best_trials] == [1, 2]


def test_one_objective_has_the_floor_inside():
    study = MethodStudy(SPACE, TRIALS, False, 0, TPE, utility_floor=0.8)
    study.ask("0")
    study.tell("0", {"status": "completed", "objective": 0.1, "forget": 0.9, "utility": 0.5})
    assert told(study, 0).constraints == {}


@pytest.mark.parametrize("sampler", [TPE, GP, NSGA2])
@pytest.mark.parametrize("pareto", [False, True])
def test_a_pruned_trials_scores_never_pass_for_a_whole_trials(sampler, pareto):
    study = MethodStudy(SPACE, TRIALS, pareto, 0, sampler, utility_floor=0.8)
    points = [study.ask(str(number)) for number in range(3)]
    study.tell("0", outcome(points[0]))
    study.tell("1", outcome(points[1], "pruned") | {"objective": 1.0, "forget": 1.0, "utility": 1.0})
    study.tell("2", outcome(points[2], "failed"))
    assert told(study, 0).state == TrialState.COMPLETE
    assert told(study, 1).state == (TrialState.RUNNING if sampler == GP else TrialState.PRUNED)
    assert told(study, 2).state == TrialState.FAIL
    assert [trial.number for trial in study._study.best_trials] == [0]


@pytest.mark.parametrize("pareto", [False, True])
def test_tpe_learns_where_trials_were_pruned(pareto):
    """Whatever has a high beta is pruned; later points have one less often than if that had been forgotten."""

    def high(tells_pruned: bool) -> int:
        count = 0
        for seed in range(4):
            study = MethodStudy(SPACE, 40, pareto, seed, TPE)
            for number in range(40):
                point = study.ask(str(number))
                bad = point["beta"] > 2.75
                count += bad and number >= 20
                status = ("pruned" if tells_pruned else "failed") if bad else "completed"
                study.tell(str(number), outcome(point | {"beta": 2.0}, status))
        return count

    assert high(True) < high(False)


def test_gp_does_not_come_back_to_where_a_trial_was_pruned():
    def closest(status: str) -> float:
        """Least distance between the first proposal and the later ones, if all end that way."""
        study = MethodStudy(SPACE, 8, False, 0, GP)
        points = []
        for number in range(8):
            points.append(study.ask(str(number)))
            study.tell(str(number), outcome(points[-1], "completed" if number < 4 else status))
        first, *later = (np.array([p["beta"] / 5, p["epochs"] / 9, np.log(p["batch_size"]) / 4]) for p in points[4:])
        return min(float(np.linalg.norm(first - point)) for point in later)

    assert closest("failed") < 0.05, "with nothing told, it proposes the same again"
    assert closest("pruned") > 0.2


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "qmc", "random"])
def test_the_order_in_which_a_file_names_the_ranges_changes_nothing(sampler):
    ranges = {"beta": Range(0.1, 10.0, log=True), "alpha": Range(0.0, 1.0), "gamma": Range(0.0, 2.0)}
    spaces = [Space("npo", {}, dict(order), ()) for order in (ranges.items(), reversed(ranges.items()))]
    asked = []
    for space in spaces:
        study = MethodStudy(space, 12, False, 3, sampler)
        values = []
        for i in range(12):
            values.append(study.ask(str(i)))
            study.tell(str(i), {"status": "completed", "objective": values[-1]["alpha"]})
        asked.append(values)
    assert asked[0] == asked[1]


@pytest.mark.parametrize("pareto", [False, True])
def test_a_long_search_goes_on_with_its_best_and_its_newest_trials(monkeypatch, pareto):
    def propose(trials: int) -> tuple[MethodStudy, list[dict[str, float]]]:
        study = MethodStudy(SPACE, trials, pareto, 0, TPE, utility_floor=0.0)
        points = [study.ask("open")]
        for number in range(trials - 1):
            points.append(study.ask(str(number)))
            study.tell(str(number), outcome(points[-1], {1: "failed", 4: "pruned"}.get(number % 6, "completed")))
        return study, points

    endless = propose(100)[1]
    monkeypatch.setitem(sampling.LOOKS_BACK, TPE, 40)
    study, points = propose(100)
    assert points[:41] == endless[:41], "up to its limit nothing is different"
    assert len({tuple(point.values()) for point in points[-20:]}) == 20, "it does not draw the same again"
    trials = study._study.trials
    assert len(trials) < 41
    assert [t.params for t in trials if t.state == TrialState.RUNNING] == [points[0]], "open trials stay open"
    study.tell("open", outcome(points[0]))
    ended = [outcome(p, "") for n, p in enumerate(points[1:-20]) if n % 6 not in (1, 4)]
    values = [[row["forget"], row["utility"]] if pareto else [row["objective"]] for row in ended]
    kept = [t.values for t in trials if t.state == TrialState.COMPLETE]
    if pareto:
        assert max(f * u for f, u in values) in [f * u for f, u in kept]
    else:
        assert sorted(values)[-1] in kept


@pytest.mark.parametrize("pareto", [False, True])
def test_nsga2_breeds_on_from_what_a_long_search_has_kept(monkeypatch, pareto):
    monkeypatch.setattr(sampling, "LARGEST_POPULATION", 8)

    def propose(limit: int) -> tuple[MethodStudy, list[dict[str, float]]]:
        monkeypatch.setitem(sampling.LOOKS_BACK, NSGA2, limit)
        study = MethodStudy(SPACE, 100, pareto, 0, NSGA2)
        points = [study.ask("open")]
        for number in range(99):
            points.append(study.ask(str(number)))
            study.tell(str(number), outcome(points[-1]))
        study.tell("open", outcome(points[0]))
        return study, points

    endless, points = propose(1000)[1], propose(40)[1]
    assert points[:41] == endless[:41], "up to its limit nothing is different"
    study = propose(40)[0]
    assert len(study._study.trials) < 41
    generations = [trial.system_attrs.get("NSGAIISampler:generation", 0) for trial in study._study.trials]
    assert max(generations) >= 10, "generations are counted on"
    objectives = [outcome(point)["objective"] for point in points]
    assert np.mean(objectives[-30:]) > np.mean(objectives[:30])

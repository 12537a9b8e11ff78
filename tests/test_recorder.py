"""The recorder without Ray: reports go in, verdicts and rows come out."""

import json
from types import SimpleNamespace

import pytest

from ray_unlearn.config import GangConfig, SearchConfig
from ray_unlearn.sampling import MethodStudy
from ray_unlearn.search import Recorder, _Verdicts, choose
from ray_unlearn.space import Range, Space

SPACE = Space("ga", {"epochs": 10, "evaluations": 1}, {"learning_rate": Range(1e-5, 1e-3, log=True)}, ())


class Told:
    """Remembers what it was called with, under whatever name."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __getattr__(self, name: str):
        return lambda *values: self.calls.append((name, *values))


@pytest.fixture
def recorder():
    def build(**choices) -> Recorder:
        config = SearchConfig(
            **{
                **{"name": "s", "benchmark": "toy", "scale": "mini", "methods": ("ga", "graddiff"), "trials": 8},
                **{"concurrent": 2, "objective": "combined", "utility_floor": 0.9, "seed": 0},
                **{"gang": GangConfig(), "model": "m", "prune": True, **choices},
            }
        )
        pareto = config.objective == "pareto"
        studies = {name: MethodStudy(SPACE, 8, pareto, 0) for name in config.methods}
        recorder = Recorder(config, studies, dict.fromkeys(config.methods, SPACE), Told())
        recorder.stopped = []
        recorder.attach(Told(), recorder.stopped.append)
        return recorder

    return build


def report(epoch: int, objective: float, **values) -> dict:
    scores = {"objective": objective, "forget": objective, "utility": 0.95, "metrics": {"accuracy": objective}}
    losses = {"step": epoch, "forget_loss": 0.0, "retain_loss": 0.0}
    costs = {"train_seconds": 1.0, "evaluate_seconds": 1.0, "peak_memory_bytes": 1}
    return {"epoch": epoch, **scores, **losses, **costs, "done": epoch == 10, **values}


def live(recorder: Recorder, tune_id: str, reports: list[dict]) -> dict:
    """One trial as Tune leads it: a verdict on every report but the last; its row."""
    recorder.suggest(tune_id)
    for values in reports:
        result, trial = {"report": json.dumps(values)}, SimpleNamespace(trial_id=tune_id)
        goes_on = values["done"] or _Verdicts(recorder).on_trial_result(None, trial, result) == "CONTINUE"
        recorder.on_trial_result(0, [], trial, result)
        if not goes_on:
            break
    recorder.on_trial_complete(0, [], trial)
    return recorder.rows[-1]


def curve(*scores: float) -> list[dict]:
    """Reports after 2, 4 and 10 epochs."""
    return [report(epoch, score) for epoch, score in zip((2, 4, 10), scores, strict=True)]


def test_a_trial_that_lags_behind_is_stopped_at_its_rung_and_keeps_its_row(recorder):
    search = recorder()
    good = live(search, "a", curve(0.3, 0.6, 0.5))  # ga
    live(search, "b", curve(0.1, 0.1, 0.1))  # graddiff
    early = live(search, "c", curve(0.2, 0.9, 0.9))  # ga
    live(search, "d", curve(0.2, 0.2, 0.2))  # graddiff, better than its own method's first
    late = live(search, "e", curve(0.4, 0.2, 0.9))  # ga
    assert (good["status"], good["epochs_run"], good["epoch"], good["objective"]) == ("completed", 10, 4, 0.6)
    assert (early["status"], early["epochs_run"], early["epoch"], early["objective"]) == ("pruned", 2, 2, 0.2)
    assert (late["status"], late["epochs_run"], late["epoch"], late["objective"]) == ("pruned", 4, 2, 0.4)
    assert early["error"] is None
    assert search.stopped == ["ga-0001", "ga-0002"], "their gangs are free at once"
    assert [row["status"] for row in search.rows if row["method"] == "graddiff"] == ["completed", "completed"]


def test_two_objectives_are_judged_side_by_side(recorder):
    search = recorder(objective="pareto", methods=("ga",))
    live(search, "a", [report(2, 0.5, utility=0.9), report(10, 0.5)])
    keeps_more = live(search, "b", [report(2, 0.1, utility=0.99), report(10, 0.1)])
    assert keeps_more["status"] == "pruned", "two on the front and room for one: the larger product"
    dominated = live(search, "c", [report(2, 0.4, utility=0.8), report(10, 0.4)])
    assert dominated["status"] == "pruned"
    assert live(search, "e", [report(2, 0.3, utility=0.7), report(10, 0.4)])["status"] == "pruned"
    other_end = live(search, "d", [report(2, 0.05, utility=1.0), report(10, 0.1)])
    assert other_end["status"] == "completed", "room for two: the one that is farthest from the first"


def test_without_pruning_nobody_is_judged(recorder):
    search = recorder(prune=False, methods=("ga",))
    rows = [live(search, name, curve(score, score, score)) for name, score in zip("abc", (0.9, 0.5, 0.1), strict=True)]
    assert {row["status"] for row in rows} == {"completed"}


def test_a_report_between_the_rungs_is_no_verdict(recorder):
    search = recorder(methods=("ga",))
    live(search, "a", curve(0.5, 0.5, 0.5))
    between = [report(2, 0.6), report(3, 0.0), *curve(0.6, 0.6, 0.6)[1:]]
    assert live(search, "b", between)["status"] == "completed"


def test_a_trial_is_judged_by_its_best_point_so_far(recorder):
    search = recorder(methods=("ga",))
    live(search, "a", curve(0.5, 0.5, 0.5))
    assert live(search, "b", curve(0.6, 0.1, 0.1))["status"] == "completed"


def test_a_failed_trial_says_how_far_it_came(recorder):
    search = recorder(methods=("ga",))
    failed = live(search, "a", [report(2, 0.5), {"error": "NonFinite", "done": True}])
    assert (failed["status"], failed["epochs_run"]) == ("failed", 2)
    nothing = live(search, "b", [{"error": "NonFinite", "done": True}])
    assert (nothing["status"], nothing["epochs_run"]) == ("failed", 0)


def test_a_pruned_trial_is_chosen_only_where_none_completed():
    completed = {"status": "completed", "utility": 0.5, "objective": 0.2}
    pruned = {"status": "pruned", "utility": 0.99, "objective": 0.9}
    failed = {"status": "failed", "utility": None, "objective": None}
    assert choose([failed, pruned, completed], 0.9) is completed
    assert choose([failed, pruned], 0.9) is pruned
    assert choose([failed], 0.9) is None


def test_tune_is_not_made_to_look_through_all_trials_at_every_step(recorder):
    class Controller:
        def get_trials(self) -> None:
            raise AssertionError("a step that costs more the more trials there are")

    assert _Verdicts(recorder()).choose_trial_to_run(Controller()) is None

"""The recorder without Ray: reports go in, verdicts and rows come out."""

import contextlib
import heapq
import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ray_unlearn.config import GangConfig, SearchConfig
from ray_unlearn.files import Patience
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.records.ledger import Ledger, read_ledger
from ray_unlearn.records.tables import Writer, curve_schema, read_search, read_table, trial_schema
from ray_unlearn.search.ray_tune import _Events, _Verdicts
from ray_unlearn.search.recorder import Recorder
from ray_unlearn.search.rows import device_seconds
from ray_unlearn.search.sampling import MethodStudy
from ray_unlearn.search.scored import Scored, to_text
from ray_unlearn.search.space import Range, Space
from ray_unlearn.training.outcome import Failed

SPACE = Space("ga", {"epochs": 10, "evaluations": 1}, {"learning_rate": Range(1e-5, 1e-3, log=True)}, ())


class Told:
    """Remembers what it was called with, under whatever name."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __getattr__(self, name: str):
        return lambda *values: self.calls.append((name, *values))


@pytest.fixture
def recorder(tmp_path):
    """Builds a recorder on a folder; again on the same one, it goes on there."""
    stack = contextlib.ExitStack()

    def build(folder=tmp_path, **choices) -> Recorder:
        stack.close()  # the last one's process is gone
        config = SearchConfig(
            **{
                **{"name": "s", "benchmark": "toy", "scale": "mini", "methods": ("ga", "graddiff"), "trials": 8},
                **{"concurrent": 2, "objective": "combined", "utility_floor": 0.9, "seed": 0},
                **{"gang": GangConfig(), "model": "m", "prune": True, **choices},
            }
        )
        pareto = config.objective == "pareto"
        studies = {name: MethodStudy(SPACE, config.trials, pareto, 0, config.sampler) for name in config.methods}
        schemas = trial_schema("toy", [], ["accuracy"]), curve_schema("toy", ["accuracy"])
        ledger = stack.enter_context(Ledger(folder, Patience()))
        history = ledger.open()
        spaces, watcher = {name: replace(SPACE, method=name) for name in config.methods}, Told()
        recorder = Recorder(config, studies, spaces, Writer(folder, *schemas), ledger, watcher)
        recorder.stopped = []
        recorder.attach(recorder.stopped.append)
        recorder.recall(history)
        ledger.append("described", meta={"name": "s"})
        return recorder

    with stack:
        yield build


def report(epoch: int, objective: float, **values) -> Scored:
    scores = {"objective": objective, "forget": objective, "utility": 0.95, "metrics": {"accuracy": objective}}
    losses = {"step": epoch, "forget_loss": 0.0, "retain_loss": 0.0}
    costs = {"train_seconds": 1.0, "evaluate_seconds": 1.0, "peak_memory_bytes": 1}
    return Scored(epoch=epoch, done=epoch == 10, **{**scores, **losses, **costs, **values})


def live(recorder: Recorder, tune_id: str, reports: list[Scored | Failed]) -> dict:
    """One trial as Tune leads it: a verdict on every report but the last; its row."""
    recorder.suggest(tune_id)
    trial = SimpleNamespace(trial_id=tune_id)
    _Events(recorder).on_trial_start(0, [], trial)
    for values in reports:
        result = {"report": to_text(values)}
        goes_on = values.done or _Verdicts(recorder).on_trial_result(None, trial, result) == "CONTINUE"
        _Events(recorder).on_trial_result(0, [], trial, result)
        if not goes_on:
            break
    _Events(recorder).on_trial_complete(0, [], trial)
    return recorder.rows[-1]


DIVERGED = Failed("NonFinite: the loss", "nan")


def curve(*scores: float) -> list[dict]:
    """Reports after 2, 5 and 10 epochs."""
    return [report(epoch, score) for epoch, score in zip((2, 5, 10), scores, strict=True)]


def test_a_trial_that_lags_behind_is_stopped_at_its_rung_and_keeps_its_row(recorder):
    search = recorder()
    good = live(search, "a", curve(0.3, 0.6, 0.5))  # ga
    live(search, "b", curve(0.1, 0.1, 0.1))  # graddiff
    early = live(search, "c", curve(0.2, 0.9, 0.9))  # ga
    live(search, "d", curve(0.2, 0.2, 0.2))  # graddiff, better than its own method's first
    late = live(search, "e", curve(0.4, 0.2, 0.9))  # ga
    assert (good["status"], good["epochs_run"], good["epoch"], good["objective"]) == ("completed", 10, 5, 0.6)
    assert (early["status"], early["epochs_run"], early["epoch"], early["objective"]) == ("pruned", 2, 2, 0.2)
    assert (late["status"], late["epochs_run"], late["epoch"], late["objective"]) == ("pruned", 5, 2, 0.4)
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
    failed = live(search, "a", [report(2, 0.5), DIVERGED])
    assert (failed["status"], failed["epochs_run"]) == ("failed", 2)
    nothing = live(search, "b", [DIVERGED])
    assert (nothing["status"], nothing["epochs_run"]) == ("failed", 0)


def test_a_pruned_trial_is_chosen_only_where_none_completed():
    completed = {"status": "completed", "utility": 0.5, "objective": 0.2}
    pruned = {"status": "pruned", "utility": 0.99, "objective": 0.9}
    failed = {"status": "failed", "utility": None, "objective": None}
    assert Ranking(0.9).best([failed, pruned, completed]) is completed
    assert Ranking(0.9).best([failed, pruned]) is pruned
    assert Ranking(0.9).best([failed]) is None


def suggestions(recorder: Recorder, count: int) -> list:
    return [recorder.suggest(f"t{i}") for i in range(count)]


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "qmc", "random"])
def test_a_search_that_was_killed_goes_on_as_if_nothing_had_been(recorder, sampler, tmp_path_factory):
    """Killed over the seventh trial: what comes after is what would have come without it."""
    trials = 5 if sampler == "gp" else 8  # it takes its time

    def run(search: Recorder, first: int, last: int) -> list[dict]:
        return [live(search, f"t{i}", curve(0.2, 0.3, score_of(i))) for i in range(first, last)]

    def score_of(i: int) -> float:
        return (7 * i % 10) / 10

    choices = {"sampler": sampler, "prune": False, "methods": ("ga", "graddiff"), "trials": trials}
    search = recorder(**choices)
    before = run(search, 0, 6)
    lost = search.suggest("in flight")
    search = recorder(**choices)
    assert [row["trial_id"] for row in search.rows] == [row["trial_id"] for row in before]
    again = search.suggest("again")
    assert again == lost, "what was in flight comes first, with its settings"
    assert search.num_left == 2 * trials - 6
    search = recorder(**choices)
    rest = run(search, 6, 2 * trials)
    assert search.suggest("one more") is None
    assert search.num_left == 0
    rows = read_search(search.writer.folder).trials
    assert [row["number"] for row in rows] == list(range(2 * trials))
    assert len({row["trial_id"] for row in rows}) == 2 * trials
    seen = [row["learning_rate"] for row in [*before, *rest]]

    undisturbed = []
    fresh = MethodStudy(SPACE, trials, False, 0, sampler), MethodStudy(SPACE, trials, False, 0, sampler)
    for i in range(2 * trials):
        study = fresh[i % 2]
        undisturbed.append(study.ask(str(i))["learning_rate"])
        study.tell(str(i), rows[i])
    assert seen == undisturbed


def run_in_time(search: Recorder, draw: np.random.Generator, until: float = math.inf) -> None:
    """Trials on as many gangs as the search has, each of a length of its own, up to a moment. A trial's scores follow
    from its settings."""
    running: list[tuple[float, int, str, list[Scored]]] = []
    gangs, now, number = search._config.concurrent, 0.0, itertools.count()
    while True:
        while len(running) < gangs and not search.must_wait() and (trial := search.suggest(name := f"t{next(number)}")):
            search.running(name)
            scores = np.sin(np.array([3, 5, 7]) * math.log(trial.learning_rate)) / 2 + 0.5
            heapq.heappush(running, (now + draw.exponential(), trial.seed, name, curve(*scores)))
        if not running or running[0][0] > until:
            return
        now, _, name, (report, *rest) = heapq.heappop(running)
        goes_on = report.done or search.goes_on(name, report)
        search.reported(name, report)
        if goes_on and rest:
            heapq.heappush(running, (now + draw.exponential(), 0, name, rest))
        else:
            search.ended(name)


@pytest.mark.parametrize(
    "choices", [{}, {"prune": True}, {"sampler": "nsga2", "objective": "pareto"}, {"concurrent": 4}]
)
def test_in_order_the_table_is_the_same_whichever_trial_ends_first(recorder, choices, tmp_path):
    """Also where the search is killed twice."""
    choices = {"prune": False, "trials": 8, "in_order": True, **choices}

    found = []
    for seed, moments in enumerate([(math.inf,), (2.0, 3.0, math.inf)]):
        draw = np.random.default_rng(seed)
        for until in moments:
            search = recorder(tmp_path / str(seed), **choices)
            run_in_time(search, draw, until)
        assert search.num_left == 0
        rows = sorted(search.rows, key=lambda row: row["number"])
        found.append([(row["trial_id"], row["learning_rate"], row["objective"], row["status"]) for row in rows])
    assert found[0] == found[1]


def test_out_of_order_the_table_hangs_on_which_trial_ends_first(recorder, tmp_path):
    found = set()
    for seed in range(4):
        search = recorder(tmp_path / str(seed), prune=False, concurrent=4)
        run_in_time(search, np.random.default_rng(seed))
        found.add(tuple(sorted((row["trial_id"], row["learning_rate"]) for row in search.rows)))
    assert len(found) > 1


def test_one_trial_at_a_time_is_the_same_in_order_and_not(recorder, tmp_path):
    found = []
    for name, in_order in (("one", True), ("two", False)):
        search = recorder(tmp_path / name, prune=False, concurrent=1, in_order=in_order)
        run_in_time(search, np.random.default_rng(0))
        found.append([row["learning_rate"] for row in search.rows])
    assert found[0] == found[1]


def test_files_of_trials_that_a_kill_kept_back_are_written_when_the_search_goes_on(recorder, tmp_path):
    search = recorder(methods=("ga",))
    row = live(search, "a", curve(0.3, 0.6, 0.5))
    for path in tmp_path.rglob("*.parquet"):
        path.unlink()
    recorder(methods=("ga",))
    (path,) = (tmp_path / "trials").rglob("*.parquet")
    assert read_table(path) == [row]
    (path,) = (tmp_path / "curves").rglob("*.parquet")
    assert [point["objective"] for point in read_table(path)] == [0.3, 0.6, 0.5]


def test_a_trial_that_begins_anew_is_judged_once_and_reports_anew(recorder, tmp_path):
    search = recorder(methods=("ga",))
    live(search, "a", curve(0.5, 0.5, 0.5))
    search.suggest("b")
    early = report(2, 0.6)
    assert search.goes_on("b", early)
    search.reported("b", early)
    search.restarted("b", "lost")
    assert search.stopped == ["ga-0001"]
    assert search.goes_on("b", report(2, 0.6)), "the verdict of then"
    for values in curve(0.6, 0.6, 0.6):
        search.reported("b", values)
    search.ended("b")
    assert search.rows[-1]["retries"] == 1
    kinds = [event["event"] for event in read_ledger(tmp_path).events if event.get("trial_id") == "ga-0001"]
    assert kinds == ["judged", "retried", "ended"]
    assert len([c for c in read_search(tmp_path).curves if c["trial_id"] == "ga-0001"]) == 3


def test_verdicts_of_then_hold_when_the_search_goes_on(recorder):
    search = recorder(methods=("ga",))
    live(search, "a", curve(0.5, 0.5, 0.5))
    live(search, "b", curve(0.4, 0.6, 0.6))
    search = recorder(methods=("ga",))
    assert live(search, "c", curve(0.45, 0.9, 0.9))["status"] == "pruned", "the best of three is told 0.5"
    assert live(search, "d", curve(0.9, 0.9, 0.9))["status"] == "completed"


def test_a_trial_whose_process_dies_too_often_is_lost_and_its_job_stopped(recorder):
    search = recorder(methods=("ga",))
    search.suggest("a")
    _Events(search).on_trial_recover(0, [], SimpleNamespace(trial_id="a"))
    _Events(search).on_trial_error(0, [], SimpleNamespace(trial_id="a"))
    assert (search.rows[0]["status"], search.rows[0]["failure"], search.rows[0]["retries"]) == ("failed", "lost", 1)
    assert search.stopped == ["ga-0000", "ga-0000"]


def test_what_a_damaged_line_said_is_taken_from_the_files(recorder, tmp_path):
    search = recorder(methods=("ga",))
    rows = [live(search, name, curve(0.1, 0.2, 0.3)) for name in "abc"]
    ledger = tmp_path / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    number = next(i for i, line in enumerate(lines) if b'"ended"' in line)
    lines[number] = lines[number].replace(b'"completed"', b'"complEted"')
    ledger.write_bytes(b"".join(lines))
    results = read_search(tmp_path)
    assert results.trials == rows
    assert "ledger.jsonl" in results.damaged


def test_tune_is_not_made_to_look_through_all_trials_at_every_step(recorder):
    class Controller:
        def get_trials(self) -> None:
            raise AssertionError("a step that costs more the more trials there are")

    assert _Verdicts(recorder()).choose_trial_to_run(Controller()) is None


def test_waiting_for_a_gang_is_nobody_s_cost():
    assert device_seconds({"train_seconds": 2.0, "evaluate_seconds": 1.0, "wall_seconds": 60.0}, 4) == 12.0
    assert device_seconds({"train_seconds": None, "wall_seconds": 5.0}, 2) == 10.0, "it failed before it could say"

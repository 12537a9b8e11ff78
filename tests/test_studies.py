"""The search's trials as Optuna shows them: read back with Optuna's own functions, and never in the search's way."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState

from ray_unlearn.config import GangConfig, SearchConfig
from ray_unlearn.files import Patience
from ray_unlearn.records.ledger import Ledger
from ray_unlearn.records.tables import SearchResults, Writer, curve_schema, read_search, trial_schema, write_json
from ray_unlearn.search.optuna_log import FILE, StudiesView, update_studies
from ray_unlearn.search.recorder import Recorder
from ray_unlearn.search.sampling import MethodStudy
from ray_unlearn.search.scored import Scored
from ray_unlearn.search.space import Range, Space
from ray_unlearn.training.outcome import Failed

RANGES = {"learning_rate": Range(1e-6, 1e-2, log=True), "batch_size": Range(4, 64, log=True, integer=True)}
SPACES = {name: Space(name, {"epochs": 4, "evaluations": 2}, RANGES, ()) for name in ("simnpo", "npo")}
METRICS = ("forget_accuracy", "general_accuracy")
TRIALS = 4


class Watcher:
    def resumed(self, rows):
        return None

    def started(self, trial, number):
        return None

    def finished(self, row):
        return None


@contextlib.contextmanager
def open_recorder(folder: Path, objective: str, view: bool = True) -> Iterator[Recorder]:
    """Of a search in `folder` that has just begun, or goes on."""
    folder.mkdir(exist_ok=True)
    config = SearchConfig(
        **{"name": folder.name, "benchmark": "wmdp", "scale": "mini", "methods": tuple(SPACES), "trials": TRIALS},
        **{"concurrent": 1, "objective": objective, "utility_floor": 0.9, "seed": 3, "gang": GangConfig()},
        model="m",
    )
    schemas = trial_schema("wmdp", ("beta", "gamma"), METRICS), curve_schema("wmdp", METRICS)
    pareto = objective == "pareto"
    shown = StudiesView(folder, config.name, SPACES, pareto, 0.9) if view else None
    studies = {name: MethodStudy(space, TRIALS, pareto, 3, utility_floor=0.9) for name, space in SPACES.items()}
    with Ledger(folder, Patience()) as ledger:
        history = ledger.open()
        recorder = Recorder(config, studies, SPACES, Writer(folder, *schemas), ledger, Watcher(), shown)
        recorder.attach(lambda trial_id: None)
        recorder.recall(history)
        ledger.append("described", meta=meta(folder.name, objective))
        yield recorder


def report(epoch: int, score: float) -> Scored:
    scores = {"objective": score, "forget": score, "utility": 1 - score / 4, "epoch": epoch, "step": 10 * epoch}
    costs = {"train_seconds": 1.0, "evaluate_seconds": 1.0, "peak_memory_bytes": 1}
    losses = {"forget_loss": 1.0, "retain_loss": 2.0}
    metrics = dict(zip(METRICS, (1 - score, 0.5 + score / 2), strict=True))
    return Scored(**scores, **costs, **losses, metrics=metrics, done=epoch == 4)


def run_trials(recorder: Recorder, numbers: Iterable[int] = range(2 * TRIALS)) -> list[dict]:
    """Those of that number, of which the fifth is pruned and the sixth fails; what was suggested."""
    suggested = []
    for number in numbers:
        tune_id = f"t{number}"
        suggested.append(recorder.suggest(tune_id).to_json())
        score = suggested[-1]["learning_rate"] ** 0.1
        reports = [report(2, score / 2), report(4, score)]
        if number == 4:
            recorder._open[tune_id].is_pruned = True
            reports.pop()
        if number == 5:
            error = "Traceback\n  somewhere\nNonFinite: the loss is nan"
            reports[1] = Failed(error, "nan", 0)
        for values in reports:
            recorder.reported(tune_id, values)
        recorder.ended(tune_id)
    return suggested


@pytest.fixture(params=["combined", "pareto"])
def search(request, tmp_path) -> SearchResults:
    with open_recorder(tmp_path / "s1", request.param) as recorder:
        run_trials(recorder)
    write_json(tmp_path / "s1" / "search.json", meta("s1", request.param))
    return read_search(tmp_path / "s1")


def meta(name: str, objective: str) -> dict:
    """Of search.json, what the view is made from."""
    spaces = {method: asdict(space) for method, space in SPACES.items()}
    return {"name": name, "config": {"objective": objective, "utility_floor": 0.9}, "spaces": spaces}


def load(folder: Path, method: str) -> optuna.Study:
    """As anybody would."""
    return optuna.load_study(
        study_name=f"{folder.name}/{method}", storage=JournalStorage(JournalFileBackend(str(folder / FILE)))
    )


def check(results: SearchResults) -> None:
    """Every row is a trial of its method's study, with its settings, outcome and scores."""
    pareto = results.meta["config"]["objective"] == "pareto"
    for method in SPACES:
        study = load(results.folder, method)
        rows = {row["trial_id"]: row for row in results.trials if row["method"] == method}
        trials = {trial.user_attrs["trial_id"]: trial for trial in study.trials}
        assert len(study.trials) == len(rows) == TRIALS
        assert trials.keys() == rows.keys()
        assert study.metric_names == (["forget", "utility"] if pareto else ["objective"])
        for name, row in rows.items():
            trial = trials[name]
            assert trial.params == {"learning_rate": row["learning_rate"], "batch_size": row["batch_size"]}
            assert trial.user_attrs["status"] == row["status"]
            assert trial.user_attrs["number"] == row["number"]
            wanted = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
            assert trial.state is wanted[row["status"]]
            assert trial.duration.total_seconds() == pytest.approx(row["wall_seconds"], abs=1e-3)
            if row["status"] == "completed":
                assert trial.values == ([row["forget"], row["utility"]] if pareto else [row["objective"]])
                assert trial.user_attrs["wmdp/forget_accuracy"] == row["wmdp/forget_accuracy"]
                assert (trial.constraints == {"utility": 0.9 - row["utility"]}) == pareto
            points = {int(p["epoch"]): p["objective"] for p in results.curves if p["trial_id"] == name}
            assert trial.intermediate_values == ({} if pareto else points)
    states = {row["trial_id"]: row["status"] for row in results.trials}
    assert states["simnpo-0002"] == "pruned"
    assert states["npo-0002"] == "failed"
    failed = next(t for t in load(results.folder, "npo").trials if t.user_attrs["trial_id"] == "npo-0002")
    assert failed.user_attrs["error"] == "NonFinite: the loss is nan"


def test_optuna_reads_what_the_parquet_rows_say(search):
    check(search)
    study = load(search.folder, "simnpo")
    completed = [r for r in search.trials if r["method"] == "simnpo" and r["status"] == "completed"]
    if search.meta["config"]["objective"] == "combined":
        assert study.best_value == max(row["objective"] for row in completed)
    else:
        # In these made-up rows who forgets more keeps less: whoever is above the floor is on the front.
        able = {row["trial_id"] for row in completed if row["utility"] >= 0.9}
        assert 0 < len(able) < len(completed)
        assert {trial.user_attrs["trial_id"] for trial in study.best_trials} == able


def test_a_view_that_is_lost_or_behind_is_completed_from_the_results(search):
    whole = (search.folder / FILE).read_bytes()
    update_studies(search)
    assert (search.folder / FILE).read_bytes() == whole, "nothing was missing"
    (search.folder / FILE).write_bytes(b"".join(whole.splitlines(keepends=True)[:-3]))
    update_studies(search)
    check(search)
    (search.folder / FILE).write_bytes(whole[:-30])  # cut off in the middle of a line
    update_studies(search)
    check(search)
    (search.folder / FILE).unlink()
    update_studies(search)
    check(search)


def test_a_search_that_goes_on_goes_on_in_its_view_too(tmp_path):
    for lost in (False, True):
        folder = tmp_path / f"s{lost}"
        with open_recorder(folder, "combined") as recorder:
            run_trials(recorder, range(5))
        if lost:
            (folder / FILE).unlink()
        with open_recorder(folder, "combined") as recorder:
            run_trials(recorder, range(5, 2 * TRIALS))
        write_json(folder / "search.json", meta(folder.name, "combined"))
        check(read_search(folder))


def test_points_on_a_trial_s_line_are_no_trials_of_a_study(search):
    point = {**search.trials[0], "trial_id": "simnpo-0000@0.5", "status": "interpolated"}
    search.trials.append(point)
    update_studies(search)
    assert len(load(search.folder, "simnpo").trials) == TRIALS


def test_a_search_asks_for_the_same_settings_with_and_without_the_view(tmp_path):
    for objective in ("combined", "pareto"):
        with open_recorder(tmp_path / f"{objective}-a", objective) as recorder:
            with_view = run_trials(recorder)
        with open_recorder(tmp_path / f"{objective}-b", objective, view=False) as recorder:
            without = run_trials(recorder)
        assert with_view == without
        assert not (tmp_path / f"{objective}-b" / FILE).exists()


def test_a_view_that_cannot_be_written_is_said_once_and_ends_nothing(tmp_path, capsys):
    (tmp_path / "s" / FILE).mkdir(parents=True)
    with open_recorder(tmp_path / "s", "combined") as recorder:
        run_trials(recorder)
    assert len(recorder.rows) == 2 * TRIALS
    assert capsys.readouterr().err.count("no longer added") == 1


def test_a_dead_process_s_lock_holds_nobody_up_and_a_trial_costs_milliseconds(tmp_path):
    with open_recorder(tmp_path / "s", "combined") as recorder:
        (tmp_path / "s" / f"{FILE}.lock").symlink_to(FILE)  # Optuna's own writers would wait 30 s for it
        run_trials(recorder)
    view = StudiesView(tmp_path / "s", "s", SPACES, False, 0.9)
    seconds = []
    for number in range(200):
        row = {**recorder.rows[0], "trial_id": f"simnpo-1{number:03d}"}
        began = time.perf_counter()
        view.add(row, [])
        seconds.append(time.perf_counter() - began)
    assert sorted(seconds)[100] < 0.005
    assert len(load(tmp_path / "s", "simnpo").trials) == TRIALS + 200


def test_somebody_else_may_write_to_the_file_meanwhile(tmp_path):
    with open_recorder(tmp_path / "s", "combined") as recorder:
        run_trials(recorder)
    study = load(tmp_path / "s", "simnpo")
    study.set_user_attr("note", "from the dashboard")
    update_studies(SimpleNamespace(folder=tmp_path / "s", curves=[], trials=recorder.rows, meta=meta("s", "combined")))
    view = StudiesView(tmp_path / "s", "s", SPACES, False, 0.9)
    view.add({**recorder.rows[0], "trial_id": "simnpo-0099"}, [])
    again = load(tmp_path / "s", "simnpo")
    assert len(again.trials) == TRIALS + 1
    assert again.user_attrs == {"note": "from the dashboard"}

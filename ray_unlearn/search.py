"""Ray Tune over gangs: ask, run, record.

Tune schedules; the settings come from Optuna through a searcher of our own that serves all methods in turn,
each from its own study, so that every method gets the same number of trials in one run.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune import Callback, CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.error import TuneError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from ray_unlearn.again import LOCAL, data_fingerprint
from ray_unlearn.benchmarks import Benchmark, Task, load_benchmark
from ray_unlearn.config import SearchConfig, UserError
from ray_unlearn.failures import LOST, RETRIES
from ray_unlearn.finals import (
    attacks_of,
    best_of_methods,
    choose,
    finals_are_done,
    finished_profile,
    metrics_of_profile,
    row_schema,
    run_finals,
)
from ray_unlearn.gang import Gangs
from ray_unlearn.interruption import end_soon, signals_as_interrupts
from ray_unlearn.ledger import Event, History, Ledger
from ray_unlearn.objective import Judge, describe_objective
from ray_unlearn.recorder import Recorder, Watcher, rungs_of
from ray_unlearn.results import Writer, curve_schema, read_search, write_json
from ray_unlearn.robustness import describe_metrics
from ray_unlearn.sampling import MethodStudy, importances
from ray_unlearn.session import SLIVER, ray_session, rest_seconds
from ray_unlearn.sharing import public_command
from ray_unlearn.space import Space
from ray_unlearn.storage import Patience
from ray_unlearn.studies import StudiesView
from ray_unlearn.trackers import StaysHere, build_trackers
from ray_unlearn.trainable import GangTrial
from ray_unlearn.trial import Job
from ray_unlearn.versions import git_revision, package_versions


class _Events(StaysHere, Callback):
    """Tune's view of the recorder: what became of each trial."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._recorder.running(trial.trial_id)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        self._recorder.reported(trial.trial_id, json.loads(result["report"]))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._recorder.ended(trial.trial_id)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """The trial's Tune actor died (the trial itself reports its failures), and starts anew."""
        self._recorder.restarted(trial.trial_id, LOST)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """It died once too often: its gang must not wait for it."""
        self._recorder.lost(trial.trial_id)


class _Suggestions(StaysHere, Searcher):
    """Tune's view of the recorder: what to try next. Outcomes reach the studies through the recorder."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def suggest(self, trial_id: str) -> Any:
        trial = self._recorder.suggest(trial_id)
        return Searcher.FINISHED if trial is None else {"trial": json.dumps(trial.to_json())}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        return None

    def save(self, checkpoint_path: str) -> None:
        return None

    def restore(self, checkpoint_path: str) -> None:
        return None


def trial_job(config: SearchConfig) -> Job:
    """The job of every trial, but for the trial itself."""
    attacks = replace(config.robustness, attacks=config.under)
    return Job("", rungs=rungs_of(config), line=config.line, robustness=attacks)


class _Verdicts(StaysHere, FIFOScheduler):
    """Tune's view of the recorder: which trials go on. They start in the order in which they were suggested."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        goes_on = self._recorder.goes_on(trial.trial_id, json.loads(result["report"]))
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Nobody in particular: the controller starts what waits, in its order. FIFOScheduler's would look through
        every trial of the search at each of Tune's steps to say the same."""
        return None


def run_search(
    config: SearchConfig,
    task: Task,
    spaces: Mapping[str, Space],
    folder: Path,
    command: list[str],
    watcher: Watcher,
    keep_model: bool = True,
    local: Mapping[str, Any] | None = None,
) -> str:
    """Run the whole search into `folder`, or what is left of it there; returns its status, "complete" or "partial".

    local: what a later command on this machine needs to go on (see again.py).

    Raises UserError where the folder cannot be written or somebody else writes to it, RuntimeError where nothing can
    run. Ctrl-C and SIGTERM raise KeyboardInterrupt outside the trials; what had ended by then is on the disk.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder.parent}: cannot be written ({error.strerror}). Give another --out") from None
    benchmark = load_benchmark(config.loaded_from)
    patience = Patience(watcher.stage)
    curves = curve_schema(benchmark.name, [*benchmark.metrics, *describe_metrics(benchmark, config.under)])
    writer = Writer(folder, row_schema(config), curves, patience)
    with Ledger(folder, patience) as ledger:
        history = ledger.open()
        if local is not None:
            write_json(folder / LOCAL, local)
        meta = describe_search(config, benchmark, spaces, command, task, history.meta)

        def describe(**now: Any) -> None:
            meta.update(now)
            ledger.append("described", meta=meta)
            writer.write_search(meta)

        describe(status="running")
        view = StudiesView(folder, config.name, spaces, config.objective == "pareto", config.utility_floor)
        recorder = Recorder(config, build_studies(config, spaces), spaces, writer, ledger, watcher, view)
        if history.events:
            recorder.recall(history, _unknown_rows(folder, history))
        try:
            status = "complete"
            best = best_of_methods(recorder.rows, config.utility_floor)
            done = history.finals()
            if recorder.num_left or not finals_are_done(task, best, folder, done, keep_model, config.utility_floor):
                status = _through_losses(
                    recorder,
                    watcher,
                    lambda: _run_gangs(config, task, recorder, done, keep_model, watcher, describe),
                )
        except KeyboardInterrupt:
            end_soon()
            describe(status="partial", finished=_now())
            raise
        best = best_of_methods(recorder.rows, config.utility_floor)
        chosen = choose(list(best.values()), config.utility_floor)
        describe(
            status=status,
            finished=_now(),
            chosen=chosen["trial_id"] if chosen else None,
            importances=describe_importances(recorder.rows, spaces),
        )
    return status


def _through_losses(recorder: Recorder, watcher: Watcher, run: Callable[[], str]) -> str:
    """What `run` returns. Where the cluster or the broker is lost on the way it is begun anew, as long as that brings
    trials to their end."""
    while True:
        left = recorder.num_left
        try:
            return run()
        except RayError as error:
            recorder.put_back(jobs_are_gone=True)
            if recorder.num_left == left:
                raise
            watcher.stage(f"lost the search's place on the cluster ({str(error).splitlines()[0]}); starting anew")


def _run_gangs(
    config: SearchConfig,
    task: Task,
    recorder: Recorder,
    done: Mapping[str, Event],
    keep_model: bool,
    watcher: Watcher,
    describe: Callable[..., None],
) -> str:
    """What is left of a search, on a Ray cluster; "complete" or "partial"."""
    benchmark = load_benchmark(config.loaded_from)
    rest = rest_seconds(config.address)
    way_on = f"stopped, and its cluster too. Go on with: ray_unlearn tune --resume {recorder.writer.folder}"
    watcher.stage(f"starting {config.concurrent} gang(s) of {config.gang.num_workers} worker(s)")
    with (
        signals_as_interrupts(give_up=lambda: watcher.stage(way_on)),
        tempfile.TemporaryDirectory(prefix="ray_unlearn-") as scratch,
        ray_session(config.gang, config.concurrent, config.address, config.grow_to),
        Gangs(task, config.gang, config.concurrent, Path(scratch), watcher.stage, config.trial_timeout, rest) as gangs,
    ):
        # Sampled answers are judged against the starting model's.
        sampling = replace(config.robustness, attacks=tuple(a for a in config.under if a == "sample"))
        report = gangs.run(Job("start", robustness=sampling, seed=config.seed))
        start = finished_profile(report, "selection", "the starting model")
        retrained = metrics_of_profile(task.selection.retrained)
        judge = Judge.build(benchmark, start.metrics, retrained, config.utility_floor, config.under)
        benchmark.check_start(judge)
        for note in report["notes"]:
            watcher.stage(note)
        describe(**describe_anchors(judge), notes=[*task.notes, *report["notes"]], hardware=report["hardware"])
        recorder.attach(lambda trial_id: ray.get(gangs.broker.stop_trial.remote(trial_id)))
        watcher.stage(f"searching: {config.trials} trials each of {', '.join(config.methods)}")
        trackers = build_trackers(config, recorder.writer.folder, watcher.stage)
        if tune_trials(config, gangs, judge, recorder, Path(scratch), trackers) != "complete":
            end_soon()  # whoever interrupted it wants the results now
            return "partial"
        best = best_of_methods(recorder.rows, config.utility_floor)
        watcher.stage(f"scoring the best of each method on the held-out split: {', '.join(best)}")
        finalists = run_finals(config, gangs, task, best, recorder.writer, recorder.ledger, done, keep_model)
        describe(finalists=finalists)
    return "complete"


def build_studies(config: SearchConfig, spaces: Mapping[str, Space]) -> dict[str, MethodStudy]:
    is_pareto = config.objective == "pareto"
    return {
        name: MethodStudy(spaces[name], config.trials, is_pareto, config.seed, config.sampler, config.utility_floor)
        for name in config.methods
    }


def _unknown_rows(folder: Path, history: History) -> list[dict[str, Any]]:
    """Rows of ended trials that stand in Parquet files alone, the ledger being damaged."""
    return read_search(folder).trials if history.damaged else []


def describe_importances(rows: list[dict[str, Any]], spaces: Mapping[str, Space]) -> dict[str, dict[str, float]]:
    """By method, its parameters' shares; methods with too few trials are left out."""
    found = {name: importances([r for r in rows if r["method"] == name], space) for name, space in spaces.items()}
    return {name: shares for name, shares in found.items() if shares}


def tune_trials(
    config: SearchConfig,
    gangs: Gangs,
    judge: Judge,
    recorder: Recorder,
    scratch: Path,
    trackers: Sequence[Callback] = (),
) -> str:
    """Let Tune run all trials over the gangs; the recorder has their rows afterwards.

    Where Tune itself gives up (the system killed one of its actors for memory, say) it is begun anew with the trials
    that are left. Raises RuntimeError where that brings nothing. Returns "complete", or "partial" after Ctrl-C, at
    which Tune ends the trials and returns as if nothing were.
    """
    trainable = tune.with_parameters(GangTrial, broker=gangs.broker, judge=judge, job=trial_job(config))
    for start in count():
        left = recorder.num_left
        if not left:
            return "complete"
        tuner = Tuner(
            tune.with_resources(trainable, {"CPU": SLIVER}),
            tune_config=TuneConfig(
                search_alg=_Suggestions(recorder),
                scheduler=_Verdicts(recorder),
                num_samples=left,
                max_concurrent_trials=config.concurrent,
                reuse_actors=True,
            ),
            run_config=RunConfig(
                name=f"tune-{start}",
                storage_path=str(scratch),
                callbacks=[_Events(recorder), *trackers],
                failure_config=FailureConfig(max_failures=RETRIES[LOST]),
                checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except TuneError as error:
            recorder.put_back()
            if recorder.num_left == left:
                raise RuntimeError(f"Ray Tune ended the search: {error}") from error
        else:
            return "partial" if recorder.num_left else "complete"
    raise AssertionError("unreachable")


def describe_search(
    config: SearchConfig,
    benchmark: Benchmark,
    spaces: Mapping[str, Space],
    command: list[str],
    task: Task,
    before: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What search.json says before anything has run; before: what it said when the search was broken off."""
    words = public_command(command)
    if before is not None:
        now = {"command": words, "started": _now(), "versions": package_versions(), "git": git_revision()}
        return {**before, "config": public_config(config), "resumed": [*before.get("resumed", []), now]}
    return {
        "name": config.name,
        "status": "running",
        "created": _now(),
        "finished": None,
        "command": words,
        "config": public_config(config),
        "git": git_revision(),
        "objective_text": describe_objective(benchmark, config.utility_floor, config.under),
        "metrics": {**benchmark.metrics, **describe_metrics(benchmark, attacks_of(config))},
        "data_fingerprint": data_fingerprint(task),
        "start": None,
        "retrained": None,
        "spaces": {name: asdict(space) for name, space in spaces.items()},
        "versions": package_versions(),
        "chosen": None,
    }


def public_config(config: SearchConfig) -> dict[str, Any]:
    """The configuration as it may be passed on: folders and files by their names, no addresses."""
    values = asdict(config)
    values.pop("address")
    values.pop("copy_to")
    values["gang"].pop("reference_folder")
    for name in ("model", "data", "definition"):
        if values[name] and Path(values[name]).exists():
            values[name] = Path(values[name]).name
    return values


def describe_anchors(judge: Judge) -> dict[str, Any]:
    start = {"metrics": dict(judge.start), **asdict(judge.verdict(judge.start, is_last=False))}
    retrained = None
    if judge.retrained is not None:
        retrained = {"metrics": dict(judge.retrained), **asdict(judge.verdict(judge.retrained, is_last=False))}
    return {"start": start, "retrained": retrained}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

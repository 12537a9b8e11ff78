"""Ray Tune over gangs: ask, run, record.

Tune schedules; the settings come from Optuna through a searcher of our own that serves all methods in turn,
each from its own study, so that every method gets the same number of trials in one run.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.attacked import describe_metrics, describe_rounding
from ray_unlearn.benchmarks.contract import Benchmark, Task
from ray_unlearn.benchmarks.identity import describe_identity
from ray_unlearn.benchmarks.objective import Judge, describe_objective
from ray_unlearn.benchmarks.starts import check_start
from ray_unlearn.config import SearchConfig, UserError
from ray_unlearn.files import Patience
from ray_unlearn.gangs.gangs import Gangs
from ray_unlearn.gangs.session import park_seconds, ray_session
from ray_unlearn.interruption import end_soon, signals_as_interrupts
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.provenance import git_revision, package_versions, public_command, public_config
from ray_unlearn.records.ledger import Event, History, Ledger
from ray_unlearn.records.tables import LOCAL, Writer, curve_schema, read_search, write_json
from ray_unlearn.search.attacked_goals import with_attacked_goals
from ray_unlearn.search.finals import finals_are_done, run_finals
from ray_unlearn.search.held_out import attacks_of, build_judge, metrics_of_profile, row_schema
from ray_unlearn.search.optuna_log import StudiesView
from ray_unlearn.search.ray_tune import tune_trials
from ray_unlearn.search.recorder import Recorder, Watcher
from ray_unlearn.search.sampling import MethodStudy, importances, largest_share_of_chance
from ray_unlearn.search.space import Space
from ray_unlearn.search.trackers import build_trackers
from ray_unlearn.training.outcome import finished
from ray_unlearn.training.trial import Job
from ray_unlearn.wording import first_line


def run_search(
    config: SearchConfig,
    task: Task,
    spaces: Mapping[str, Space],
    folder: Path,
    command: list[str],
    watcher: Watcher,
    keep_model: bool = True,
    local: Mapping[str, Any] | None = None,
    gangs: Gangs | None = None,
) -> str:
    """Run the whole search into `folder`, or what is left of it there; returns its status, "complete" or "partial".

    local: what a later command on this machine needs to go on (see commands/reopen.py). gangs: of a search with the
    same gang and task, to be used before any are started.

    Raises UserError where the folder cannot be written or somebody else writes to it, RuntimeError where nothing can
    run. Ctrl-C and SIGTERM raise KeyboardInterrupt outside the trials; what had ended by then is on the disk.
    """
    _make(folder)
    benchmark = load_benchmark(config.loaded_from)
    patience, ranking = Patience(watcher.stage), Ranking.of_search(config)
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
            status, done = "complete", history.finals()
            best = ranking.best_of_methods(recorder.rows)
            if recorder.num_left or not finals_are_done(task, best, folder, done, keep_model, ranking):
                shared = [gangs] if gangs else []  # once: after a loss the search starts its own
                status = _through_losses(
                    recorder,
                    watcher,
                    lambda: _run_gangs(
                        config, task, recorder, done, keep_model, watcher, describe, shared.pop() if shared else None
                    ),
                )
        except KeyboardInterrupt:
            end_soon()
            describe(status="partial", finished=_now())
            raise
        except UserError:
            describe(status="refused", finished=_now())
            raise
        chosen = ranking.best(recorder.rows)
        describe(
            status=status,
            finished=_now(),
            chosen=chosen["trial_id"] if chosen else None,
            importances=describe_importances(recorder.rows, spaces),
            importances_of_chance=describe_chance(recorder.rows, spaces),
        )
    return status


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder.parent}: cannot be written ({error.strerror}). Give another --out") from None


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
            watcher.stage(f"lost the search's place on the cluster ({first_line(error)}); starting anew")


def _run_gangs(
    config: SearchConfig,
    task: Task,
    recorder: Recorder,
    done: Mapping[str, Event],
    keep_model: bool,
    watcher: Watcher,
    describe: Callable[..., None],
    shared: Gangs | None,
) -> str:
    """What is left of a search, on a Ray cluster; "complete" or "partial"."""
    task = with_attacked_goals(config, task, watcher.stage)
    way_on = f"ray_unlearn tune --resume {recorder.writer.folder}"
    saves_to = [recorder.writer.folder.parent] if keep_model else []
    own = nullcontext(shared) if shared else open_gangs(config, task, watcher.stage, f"Go on with: {way_on}", saves_to)
    with own as gangs, tempfile.TemporaryDirectory(prefix="ray_unlearn-") as scratch:
        # Sampled answers are judged against the starting model's.
        sampling = replace(config.robustness, attacks=tuple(a for a in config.under if a == "sample"))
        report = finished(gangs.run(Job("start", robustness=sampling, seed=config.seed)), "the starting model")
        start = report.profiles["selection"]
        retrained = metrics_of_profile(task.selection.retrained)
        folder, notes = recorder.writer.folder, list(report.notes)
        if recorder.rows:  # the search goes on by the rule that it began with
            config = replace(config, left_out=_recorded_left_out(folder))
        else:
            whole = build_judge(replace(config, left_out=()), start.metrics, retrained)
            checked = check_start(config.loaded_from, whole, start, task.selection.retrained)
            config = replace(config, left_out=checked.left_out, gang=replace(config.gang, adapter=report.adapter))
            _record_start(folder, config)
            notes = [*checked.notes, *notes]
        if "quantise" in attacks_of(config):
            notes.append(describe_rounding(report.rounded_share))
        judge = build_judge(config, start.metrics, retrained)
        for note in notes:
            watcher.stage(note)
        describe(
            **describe_anchors(judge),
            config=public_config(config),
            notes=[*task.notes, *notes],
            hardware=report.hardware,
        )
        recorder.attach(lambda trial_id: ray.get(gangs.broker.stop_trial.remote(trial_id)))
        watcher.stage(f"searching: {config.trials} trials each of {', '.join(config.methods)}")
        trackers = build_trackers(config, recorder.writer.folder, watcher.stage)
        if tune_trials(config, gangs, judge, recorder, Path(scratch), trackers) != "complete":
            end_soon()  # whoever interrupted it wants the results now
            return "partial"
        best = Ranking.of_search(config).best_of_methods(recorder.rows)
        watcher.stage(f"scoring the best of each method on the held-out split: {', '.join(best)}")
        finalists = run_finals(config, gangs, task, best, recorder.writer, recorder.ledger, done, keep_model)
        describe(finalists=finalists)
    return "complete"


def _recorded_left_out(folder: Path) -> tuple[str, ...]:
    """What trials of the search that have ended were judged without."""
    return tuple(json.loads((folder / "search.json").read_text())["config"].get("left_out", ()))


def _record_start(folder: Path, config: SearchConfig) -> None:
    """For later commands on the folder, which judge by the same rule and train from the same adapters."""
    if (folder / LOCAL).is_file():
        local = json.loads((folder / LOCAL).read_text())
        known = {"left_out": config.left_out, "gang": {**local["config"]["gang"], "adapter": config.gang.adapter}}
        write_json(folder / LOCAL, {**local, "config": {**local["config"], **known}})


@contextmanager
def open_gangs(
    config: SearchConfig, task: Task, say: Callable[[str], None], way_on: str, saves_to: Sequence[Path] = ()
) -> Iterator[Gangs]:
    """The search's gangs on a Ray cluster. Inside, Ctrl-C and SIGTERM interrupt; way_on: what is said where that takes
    the cluster down. saves_to: the folders that its model is saved beside, which all its nodes must see."""
    say(f"starting {config.concurrent} gang(s) of {config.gang.num_workers} worker(s)")
    parks = park_seconds(config.address)
    with (
        signals_as_interrupts(give_up=lambda: say(f"stopped, and its cluster too. {way_on}")),
        tempfile.TemporaryDirectory(prefix="ray_unlearn-") as storage,
        ray_session(config.gang, config.concurrent, config.address, config.grow_to, say),
        Gangs(task, config.gang, config.concurrent, Path(storage), say, config.trial_timeout, parks, saves_to) as gangs,
    ):
        yield gangs


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


def describe_chance(rows: list[dict[str, Any]], spaces: Mapping[str, Space]) -> dict[str, float]:
    """By method that has importances, what the largest would stay under if nothing mattered."""
    found = {
        name: largest_share_of_chance([r for r in rows if r["method"] == name], space) for name, space in spaces.items()
    }
    return {name: share for name, share in found.items() if share is not None}


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
    identity = describe_identity(task)
    return {
        "name": config.name,
        "status": "running",
        "created": _now(),
        "finished": None,
        "command": words,
        "config": public_config(config),
        "git": git_revision(),
        "objective_text": describe_objective(benchmark, Ranking.of_search(config), config.under),
        "metrics": {**benchmark.metrics, **describe_metrics(benchmark, attacks_of(config))},
        "data_fingerprint": identity["data"],
        "identity": identity,
        "plugins": [asdict(plugin) for plugin in task.plugins],
        "start": None,
        "retrained": None,
        "spaces": {name: asdict(space) for name, space in spaces.items()},
        "versions": package_versions(),
        "chosen": None,
    }


def describe_anchors(judge: Judge) -> dict[str, Any]:
    start = {"metrics": dict(judge.start), **asdict(judge.verdict(judge.start, is_last=False))}
    retrained = None
    if judge.retrained is not None:
        verdict = judge.verdict(judge.retrained, is_last=judge.ranking.is_reachable)
        retrained = {"metrics": dict(judge.retrained), **asdict(verdict)}
    return {"start": start, "retrained": retrained}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

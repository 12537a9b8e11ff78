"""Ray Tune over gangs: ask, run, record.

Tune schedules; the settings come from Optuna through a searcher of our own that serves all methods in turn,
each from its own study, so that every method gets the same number of trials in one run. A trial's Tune actor
is a thin client of the broker and is reused for the next trial.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import ray
from ray import tune
from ray.tune import Callback, CheckpointConfig, RunConfig, TuneConfig, Tuner
from ray.tune.error import TuneError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from ray_unlearn.again import LOCAL, data_fingerprint
from ray_unlearn.benchmarks import Benchmark, Profile, Task, load_benchmark
from ray_unlearn.config import ATTACKS, TRIAL_SETTINGS, SearchConfig, TrialConfig
from ray_unlearn.gang import Gangs
from ray_unlearn.halving import RUNGS, Halving, rung_epochs
from ray_unlearn.losses import METHODS
from ray_unlearn.objective import Judge, describe_objective
from ray_unlearn.results import (
    CANDIDATES,
    COMPLETED,
    FAILED,
    INTERPOLATED,
    PRUNED,
    Writer,
    curve_schema,
    trial_schema,
    write_json,
)
from ray_unlearn.robustness import describe_metrics
from ray_unlearn.sampling import MethodStudy, importances
from ray_unlearn.session import SLIVER, ray_session
from ray_unlearn.space import Space
from ray_unlearn.studies import StudiesView
from ray_unlearn.trackers import StaysHere, build_trackers
from ray_unlearn.trial import Job
from ray_unlearn.versions import git_revision, package_versions


class Watcher(Protocol):
    """Whoever shows the search while it runs."""

    def stage(self, what: str) -> None: ...
    def started(self, trial: TrialConfig, number: int) -> None: ...
    def finished(self, row: Mapping[str, Any]) -> None: ...


class GangTrial(tune.Trainable):
    """One Tune trial: submits its job, hands on the reports with the verdict on them."""

    def setup(self, config: dict[str, Any], broker: Any = None, judge: Judge | None = None, job: Any = None) -> None:
        """job: what is the same for all trials."""
        assert judge is not None
        self._broker, self._judge, self._plain = broker, judge, job
        self._submit(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        ray.get(self._broker.stop.remote(self._job.job_id))
        self._submit(new_config)
        return True

    def _submit(self, config: dict[str, Any]) -> None:
        trial = TrialConfig.from_json(json.loads(config["trial"]))
        self._job = replace(self._plain, job_id=trial.trial_id, trial=trial, seed=trial.seed)
        ray.get(self._broker.submit.remote(self._job))

    def step(self) -> dict[str, Any]:
        report = ray.get(self._broker.next.remote(self._job.job_id))
        result = {"done": report["done"]}
        if "error" not in report:
            self._judge_point(report, report["done"])
            for point in report["line"]:
                self._judge_point(point, is_last=False)
            result |= {name: report[name] for name in ("forget", "utility", "objective")}
        # As text, because Tune flattens and copies nested results.
        return {**result, "report": json.dumps(report)}

    def _judge_point(self, point: dict[str, Any], is_last: bool) -> None:
        """Put metrics and scores in the place of the profiles."""
        point["metrics"] = point.pop("profiles")["selection"]["metrics"]
        point |= asdict(self._judge.verdict(point["metrics"], is_last))

    def cleanup(self) -> None:
        ray.get(self._broker.stop.remote(self._job.job_id))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        return None

    def load_checkpoint(self, checkpoint: Any) -> None:
        return None


class Recorder(StaysHere, Callback):
    """Keeps every report of every trial, writes the row when the trial ends, and tells the study."""

    def __init__(
        self,
        config: SearchConfig,
        studies: Mapping[str, MethodStudy],
        spaces: Mapping[str, Space],
        writer: Writer,
        view: StudiesView | None = None,
    ) -> None:
        self._config, self._studies, self._spaces, self._writer = config, studies, spaces, writer
        self._view = view
        self._reports: dict[str, list[dict[str, Any]]] = {}
        self._open: dict[str, tuple[TrialConfig, int, float]] = {}
        self._halving = Halving()
        self._pruned: set[str] = set()
        self._asked = dict.fromkeys(config.methods, 0)
        self.rows: list[dict[str, Any]] = []

    def attach(self, watcher: Watcher, stop: Callable[[str], Any]) -> None:
        """Whom to show the trials to, and how to stop a trial's job (by its id)."""
        self._watcher, self._stop = watcher, stop

    def suggest(self, tune_id: str) -> dict[str, Any] | None:
        """The next trial of the method that has had the fewest; None when all have had their number."""
        method = min(self._config.methods, key=lambda name: self._asked[name])
        if self._asked[method] >= self._config.trials:
            return None
        number = sum(self._asked.values())
        started = time.perf_counter()
        values = self._studies[method].ask(tune_id) | dict(self._spaces[method].fixed)
        parameters = METHODS[method].parameters
        settings: dict[str, Any] = {name: values[name] for name in TRIAL_SETTINGS if name in values}
        if not METHODS[method].uses_retain:
            settings["retain_weight"] = 0.0
        trial = TrialConfig(
            trial_id=f"{method}-{self._asked[method]:04d}",
            method=method,
            parameters={name: float(values.get(name, default)) for name, default in parameters.items()},
            seed=self._config.seed,
            **settings,
        )
        self._asked[method] += 1
        self._open[tune_id] = (trial, number, started)
        self._reports[tune_id] = []
        self._watcher.started(trial, number)
        return {"trial": json.dumps(trial.to_json())}

    def goes_on(self, tune_id: str, report: Mapping[str, Any]) -> bool:
        """The verdict on a trial's report that is not its last; a trial that is stopped gives its gang back at once."""
        trial = self._open[tune_id][0]
        rung = rung_epochs(trial.epochs, rungs_of(self._config)).get(report["epoch"])
        names = ("forget", "utility") if self._config.objective == "pareto" else ("objective",)
        best = max([*self._reports[tune_id], report], key=lambda r: r["objective"])
        if rung is None or self._halving.goes_on(trial.method, rung, [best[name] for name in names]):
            return True
        self._pruned.add(tune_id)
        self._stop(trial.trial_id)
        return False

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        self._reports[trial.trial_id].append(json.loads(result["report"]))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._close(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """The trial's Tune actor died (the trial itself reports its failures): its gang must not wait for it."""
        self._stop(self._open[trial.trial_id][0].trial_id)
        self._reports[trial.trial_id].append({"error": "lost: the trial's process ended", "done": True})
        self._close(trial.trial_id)

    def _close(self, tune_id: str) -> None:
        trial, number, started = self._open.pop(tune_id)
        reports = self._reports.pop(tune_id)
        row = trial_row(trial, number, self._config, reports, tune_id in self._pruned)
        row["wall_seconds"] = time.perf_counter() - started
        row["device_seconds"] = row["wall_seconds"] * self._config.gang.num_workers
        curve = [curve_row(trial, self._config, r) for r in reports if "error" not in r]
        self._writer.write_trial(row, curve)
        self.rows.append(row)
        for point in reports[-1].get("line", []):
            self.rows.append(point_row(row, point, self._config.benchmark))
            self._writer.write_trial(self.rows[-1], [])
        self._studies[trial.method].tell(tune_id, row)
        if self._view is not None:
            self._view.add(row, curve)
        self._watcher.finished(row)


class _Suggestions(StaysHere, Searcher):
    """Tune's view of the recorder: what to try next. Outcomes reach the studies through the recorder."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def suggest(self, trial_id: str) -> Any:
        return self._recorder.suggest(trial_id) or Searcher.FINISHED

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


def attacks_of(config: SearchConfig) -> tuple[str, ...]:
    """Those that finalists go through: the ones asked for, and those that trials were judged under."""
    return tuple(name for name in ATTACKS if name in (*config.robustness.attacks, *config.under))


def rungs_of(config: SearchConfig) -> tuple[float, ...]:
    return RUNGS if config.prune else ()


class _Verdicts(StaysHere, FIFOScheduler):
    """Tune's view of the recorder: which trials go on. They start in the order in which they were suggested."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        goes_on = self._recorder.goes_on(trial.trial_id, json.loads(result["report"]))
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP


def trial_row(
    trial: TrialConfig, number: int, config: SearchConfig, reports: list[dict[str, Any]], pruned: bool = False
) -> dict[str, Any]:
    """One row of results from a trial's reports; its best evaluation point counts."""
    settings = trial.to_json()
    parameters = settings.pop("parameters")
    good = [r for r in reports if "error" not in r]
    error = next((r["error"] for r in reports if "error" in r), None)
    row = {
        **settings,
        **parameters,
        "number": number,
        "benchmark": config.benchmark,
        "scale": config.scale,
        "status": PRUNED if pruned else COMPLETED if error is None and good and good[-1]["done"] else FAILED,
        "error": error,
        "epochs_run": good[-1]["epoch"] if good else 0,
        "alpha": 1.0,
    }
    if good:
        # Points on the way have not been through the attacks that the last one has.
        counted = good[-1:] if config.under else good
        best = max(counted, key=lambda r: r["objective"])
        row |= _scores(best, config.benchmark)
        row |= {name: good[-1][name] for name in ("train_seconds", "evaluate_seconds", "peak_memory_bytes")}
    return row


def point_row(row: Mapping[str, Any], point: Mapping[str, Any], benchmark: str) -> dict[str, Any]:
    """The row of a point on a finished trial's line: its settings, no cost of its own."""
    plain = {name: value for name, value in row.items() if "/" not in name and not name.endswith("_seconds")}
    scores = _scores({**point, "epoch": row["epochs_run"]}, benchmark)
    name = f"{row['trial_id']}@{point['alpha']:g}"
    return {**plain, **scores, "trial_id": name, "status": INTERPOLATED, "alpha": point["alpha"]}


def curve_row(trial: TrialConfig, config: SearchConfig, report: Mapping[str, Any]) -> dict[str, Any]:
    head = {"trial_id": trial.trial_id, "benchmark": config.benchmark, "method": trial.method}
    losses = {name: report[name] for name in ("step", "forget_loss", "retain_loss")}
    return {**head, **losses, **_scores(report, config.benchmark)}


def _scores(report: Mapping[str, Any], benchmark: str) -> dict[str, Any]:
    scores = {name: report[name] for name in ("objective", "forget", "utility", "epoch")}
    return scores | {f"{benchmark}/{name}": value for name, value in report["metrics"].items()}


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
    """Run the whole search into `folder`; returns its status, "complete" or "partial".

    local: what a later command on this machine needs to go on (see again.py).

    Raises UserError where the folder cannot be written, RuntimeError where nothing can run.
    """
    benchmark = load_benchmark(config.loaded_from)
    metrics = {**benchmark.metrics, **describe_metrics(benchmark, attacks_of(config))}
    writer = Writer.create(
        folder,
        row_schema(config),
        curve_schema(benchmark.name, [*benchmark.metrics, *describe_metrics(benchmark, config.under)]),
    )
    if local is not None:
        write_json(folder / LOCAL, local)
    meta = describe_search(config, benchmark, spaces, command) | {"metrics": metrics}
    meta |= {"data_fingerprint": data_fingerprint(task)}
    studies = {
        name: MethodStudy(
            spaces[name], config.trials, config.objective == "pareto", config.seed, config.sampler, config.utility_floor
        )
        for name in config.methods
    }
    view = StudiesView(folder, config.name, spaces, config.objective == "pareto", config.utility_floor)
    recorder = Recorder(config, studies, spaces, writer, view)
    writer.write_search(meta)
    watcher.stage(f"starting {config.concurrent} gang(s) of {config.gang.num_workers} worker(s)")
    with (
        tempfile.TemporaryDirectory(prefix="ray_unlearn-") as scratch,
        ray_session(config.gang, config.concurrent, config.address),
        Gangs(task, config.gang, config.concurrent, Path(scratch)) as gangs,
    ):
        # Sampled answers are judged against the starting model's.
        sampling = replace(config.robustness, attacks=tuple(a for a in config.under if a == "sample"))
        report = gangs.run(Job("start", robustness=sampling, seed=config.seed))
        start = finished_profile(report, "selection", "the starting model")
        retrained = _metrics(task.selection.retrained)
        judge = Judge.build(benchmark, start.metrics, retrained, config.utility_floor, config.under)
        benchmark.check_start(judge)
        meta |= describe_anchors(judge) | {"notes": [*task.notes, *report["notes"]], "hardware": report["hardware"]}
        for note in report["notes"]:
            watcher.stage(note)
        writer.write_search(meta)
        recorder.attach(watcher, lambda job_id: ray.get(gangs.broker.stop.remote(job_id)))
        watcher.stage(f"searching: {config.trials} trials each of {', '.join(config.methods)}")
        trackers = build_trackers(config, folder, watcher.stage)
        status = tune_trials(config, gangs, judge, recorder, Path(scratch), trackers)
        best = best_of_methods(recorder.rows, config.utility_floor)
        if status == "complete":  # whoever interrupted it wants the results now
            watcher.stage(f"scoring the best of each method on the held-out split: {', '.join(best)}")
            run_finals(config, gangs, task, best, writer, folder if keep_model else None)
    chosen = choose(list(best.values()), config.utility_floor)
    meta |= {
        "status": status,
        "finished": _now(),
        "chosen": chosen["trial_id"] if chosen else None,
        "importances": describe_importances(recorder.rows, spaces),
    }
    writer.write_search(meta)
    return status


def row_schema(config: SearchConfig) -> pa.Schema:
    """Of the search's trials, and of its finalists."""
    benchmark = load_benchmark(config.loaded_from)
    parameters = dict.fromkeys(p for name in config.methods for p in METHODS[name].parameters)
    return trial_schema(
        benchmark.name, parameters, [*benchmark.metrics, *describe_metrics(benchmark, attacks_of(config))]
    )


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

    Raises RuntimeError where Tune gives up (a disk that is full, say). Returns "complete", or "partial" after
    Ctrl-C, at which Tune ends the trials and returns as if nothing were.
    """
    trainable = tune.with_parameters(GangTrial, broker=gangs.broker, judge=judge, job=trial_job(config))
    total = config.trials * len(config.methods)
    tuner = Tuner(
        tune.with_resources(trainable, {"CPU": SLIVER}),
        tune_config=TuneConfig(
            search_alg=_Suggestions(recorder),
            scheduler=_Verdicts(recorder),
            num_samples=total,
            max_concurrent_trials=config.concurrent,
            reuse_actors=True,
        ),
        run_config=RunConfig(
            name="tune",
            storage_path=str(scratch),
            callbacks=[recorder, *trackers],
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except TuneError as error:
        raise RuntimeError(f"Ray Tune ended the search: {error}") from error
    ended = sum(row["status"] != INTERPOLATED for row in recorder.rows)
    return "complete" if ended == total else "partial"


def run_finals(
    config: SearchConfig,
    gangs: Gangs,
    task: Task,
    best: Mapping[str, Mapping[str, Any]],
    writer: Writer,
    folder: Path | None,
) -> None:
    """Run the best trial of each method again to its best point, and score it on the held-out split.

    The chosen one's model is kept. A restored gang repeats a trial exactly, so no checkpoint was needed.
    """
    final = held_out_job(config, config.seed)
    report = gangs.run(replace(final, weights=True))
    start, start_nll = finished_profile(report, "report", "the starting model"), report["forget_nll"]
    writer.write_examples("start", "report", start.examples)
    judge = held_out_judge(config, task, start.metrics)
    retrained = task.report.retrained
    anchors = [("start", start)] + ([("retrained", retrained)] if retrained else [])
    for name, profile in anchors:
        scores = asdict(judge.verdict(profile.metrics, is_last=False))
        writer.write_final(_final_row({"trial_id": name, "method": name}, config, scores, profile))
    chosen = choose(list(best.values()), config.utility_floor)
    for row in best.values():
        keep = folder is not None and chosen is not None and row["trial_id"] == chosen["trial_id"]
        job = rerun_job(config, row, config.seed)
        job = replace(job, save_to=str(folder / "model") if keep and folder else None, weights=True)
        began = time.perf_counter()
        report = gangs.run(job)
        writer.write_final(rerun_row(config, judge, row, job, report, time.perf_counter() - began))
        if "error" not in report:
            profile = finished_profile(report, "report", row["trial_id"])
            writer.write_examples(row["trial_id"], "report", profile.examples)
            writer.write_weights(row["trial_id"], report["weights"], task.forget.answer_lengths.tolist(), start_nll)


def held_out_job(config: SearchConfig, seed: int) -> Job:
    """Score the starting model on the held-out split, as finalists are."""
    attacks = replace(config.robustness, attacks=attacks_of(config))
    return Job("start-report", evaluate=("report",), points=False, complete=True, robustness=attacks, seed=seed)


def rerun_job(config: SearchConfig, row: Mapping[str, Any], seed: int) -> Job:
    """Train a results row's trial again with that seed, to the evaluation point that counted, and score it on the
    held-out split. With the search's own seed it is the same model again."""
    trial = replace(trial_of(row, METHODS[row["method"]].parameters), seed=seed)
    return replace(
        held_out_job(config, seed),
        job_id=f"final-{trial.trial_id}-{seed}",
        trial=trial,
        stop_after=int(row["epoch"]),
        alpha=row["alpha"],
    )


def held_out_judge(config: SearchConfig, task: Task, start: Mapping[str, float]) -> Judge:
    """From what the starting model measures on the held-out split."""
    retrained = _metrics(task.report.retrained)
    return Judge.build(load_benchmark(config.loaded_from), start, retrained, config.utility_floor, config.under)


def rerun_row(
    config: SearchConfig, judge: Judge, row: Mapping[str, Any], job: Job, report: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """The row of a trial that was run again; one that failed says why and has no scores."""
    plain = {name: value for name, value in row.items() if "/" not in name} | {"seed": job.seed}
    if "error" in report:
        unknown = dict.fromkeys(("forget", "utility", "objective"))
        return {**plain, **unknown, "status": FAILED, "error": report["error"]}
    profile = finished_profile(report, "report", row["trial_id"])
    costs = {name: report[name] for name in ("train_seconds", "evaluate_seconds", "peak_memory_bytes")}
    costs |= {"wall_seconds": seconds, "device_seconds": seconds * config.gang.num_workers}
    scores = asdict(judge.verdict(profile.metrics))
    return _final_row({**plain, **costs, "epochs_run": job.stop_after}, config, scores, profile)


def _final_row(
    row: Mapping[str, Any], config: SearchConfig, scores: Mapping[str, float], profile: Profile
) -> dict[str, Any]:
    named = {f"{config.benchmark}/{name}": value for name, value in profile.metrics.items()}
    head = {"benchmark": config.benchmark, "scale": config.scale, "status": COMPLETED, "error": None}
    return {**head, **row, **scores, **named}


def trial_of(row: Mapping[str, Any], parameters: Mapping[str, float]) -> TrialConfig:
    """The trial that a results row came from."""
    return TrialConfig(
        trial_id=row["trial_id"],
        method=row["method"],
        parameters={name: row[name] for name in parameters},
        seed=row["seed"],
        **{name: row[name] for name in TRIAL_SETTINGS},
    )


def choose(rows: list[Any], floor: float) -> Any:
    """The row to hand over: the best objective among those at or above the utility floor, else of all.

    A pruned trial stands in only where none completed.
    """
    completed = [row for row in rows if row["status"] in CANDIDATES]
    able = completed or [row for row in rows if row["status"] == PRUNED]
    above = [row for row in able if row["utility"] >= floor]
    return max(above or able, key=lambda row: row["objective"], default=None)


def best_of_methods(rows: list[dict[str, Any]], floor: float) -> dict[str, dict[str, Any]]:
    methods = dict.fromkeys(row["method"] for row in rows)
    best = {method: choose([row for row in rows if row["method"] == method], floor) for method in methods}
    return {method: row for method, row in best.items() if row is not None}


def finished_profile(report: Mapping[str, Any], split: str, whose: str) -> Profile:
    if "error" in report:
        raise RuntimeError(f"{whose} could not be scored: {report['error']}")
    return Profile(**report["profiles"][split])


def describe_search(
    config: SearchConfig, benchmark: Benchmark, spaces: Mapping[str, Space], command: list[str]
) -> dict[str, Any]:
    """What search.json says before anything has run."""
    return {
        "name": config.name,
        "status": "running",
        "created": _now(),
        "finished": None,
        "command": command,
        "config": public_config(config),
        "git": git_revision(),
        "objective_text": describe_objective(benchmark, config.utility_floor, config.under),
        "metrics": dict(benchmark.metrics),
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


def _metrics(profile: Profile | None) -> Mapping[str, float] | None:
    return profile.metrics if profile else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

"""Ray Tune's view of a search: adapters between Tune's controller and the recorder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback, CheckpointConfig, FailureConfig, ProgressReporter, RunConfig, TuneConfig, Tuner
from ray.tune.error import TuneError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from ray_unlearn.benchmarks.objective import Judge
from ray_unlearn.config import SearchConfig
from ray_unlearn.failures import LOST, RETRIES
from ray_unlearn.gangs.gangs import Gangs
from ray_unlearn.gangs.session import SLIVER
from ray_unlearn.search.recorder import Recorder, rungs_of
from ray_unlearn.search.scored import from_text
from ray_unlearn.search.trackers import StaysHere
from ray_unlearn.search.trainable import GangTrial, job_of
from ray_unlearn.training.trial import Job


class _Events(StaysHere, Callback):
    """Tune's view of the recorder: what became of each trial."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._recorder.running(trial.trial_id)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        self._recorder.reported(trial.trial_id, from_text(result["report"]))

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

    def __init__(self, recorder: Recorder, broker: Any, job: Job) -> None:
        """job: every trial's, but for the trial itself."""
        super().__init__()
        self._recorder, self._broker, self._job = recorder, broker, job

    def suggest(self, trial_id: str) -> Any:
        if self._recorder.must_wait():
            return None  # Tune asks again
        trial = self._recorder.suggest(trial_id)
        if trial is None:
            return Searcher.FINISHED
        # At once: a gang is at work before Tune has the trial's actor, which takes seconds where it must start.
        job = job_of(self._job, trial)
        ray.get(self._broker.submit.remote(job, is_led=False))
        return {"trial": json.dumps(trial.to_json()), "job": job.job_id}

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
        goes_on = self._recorder.goes_on(trial.trial_id, from_text(result["report"]))
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Nobody in particular: the controller starts what waits, in its order. FIFOScheduler's would look through
        every trial of the search at each of Tune's steps to say the same."""
        return None


class _Silent(ProgressReporter):
    """The recorder's watcher says how far the search is. In a notebook, Tune's own reporter would clear its cell."""

    def should_report(self, trials: Any, done: bool = False) -> bool:
        return False

    def report(self, trials: Any, done: bool, *sys_info: str) -> None:
        return None


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
    job = trial_job(config)
    trainable = tune.with_parameters(GangTrial, broker=gangs.broker, judge=judge, job=job)
    for start in count():
        left = recorder.num_left
        if not left:
            return "complete"
        tuner = Tuner(
            tune.with_resources(trainable, {"CPU": SLIVER}),
            tune_config=TuneConfig(
                search_alg=_Suggestions(recorder, gangs.broker, job),
                scheduler=_Verdicts(recorder),
                num_samples=left,
                max_concurrent_trials=config.concurrent,
                reuse_actors=True,
            ),
            run_config=RunConfig(
                name=f"tune-{start}",
                storage_path=str(scratch),
                callbacks=[_Events(recorder), *trackers],
                progress_reporter=_Silent(),
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

"""What one trial is, with no search in it: start over, train, evaluate, report, stop when told."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_unlearn.benchmarks.contract import Profile
from ray_unlearn.config import Robustness, TrialConfig
from ray_unlearn.failures import NonFinite
from ray_unlearn.training.line import LineSearch, find_points
from ray_unlearn.training.outcome import LevelPoint, LinePoint, Report

if TYPE_CHECKING:
    from ray_unlearn.training.worker import Worker


Reporter = Callable[[Report], bool]
"""Takes one evaluation point, answers whether to go on. Collective: all workers call it and agree."""


@dataclass(frozen=True)
class Job:
    """One piece of work for a gang: plain data."""

    job_id: str
    trial: TrialConfig | None = None
    """None: the starting model as it is."""
    learn: tuple[str, ...] = ("forget",)
    """The task's sets that the forget loss (or fine-tuning) runs over."""
    evaluate: tuple[str, ...] = ("selection",)
    """Splits to score at the end. On the way "selection" alone is scored, if it is among them."""
    points: bool = True
    """Whether to report on the way, at the trial's evaluation points."""
    rungs: tuple[float, ...] = ()
    """Shares of the trial's epochs after which it may be stopped: evaluation points like the others."""
    complete: bool = False
    """Whether the last evaluation is a finalist's: all probes, and generated answers."""
    stop_after: int | None = None
    """Epochs after which to stop, with the learning-rate schedule of the whole trial."""
    epoch_size: int = 0
    """Sequences in one epoch, so that it can be as short as one step; the passes over the set go on from epoch
    to epoch. 0: the whole set."""
    save_to: str | None = None
    """Folder for the model as it is at the end."""
    adapter: bool = False
    """Whether `save_to` gets the LoRA adapter by itself rather than the model with the adapter merged in."""
    precision: str = ""
    """What `save_to` gets the weights in; empty: in the starting model's own."""
    alpha: float = 1.0
    """What is scored and saved at the end: the point start + alpha (end - start) on the line through both models."""
    line: tuple[float, ...] = ()
    """More such points to score after the end, each on the splits asked for."""
    levels: LineSearch | None = None
    """Levels of utility whose points on the line take the place of the end: they are scored, saved and attacked, and of
    the end is told what "selection" says. `evaluate` is then "selection" alone."""
    robustness: Robustness = field(default_factory=Robustness)
    """Attacks on the model as it is at the end."""
    seed: int = 0
    """Of the attacks."""
    max_tokens: int = 0
    """Tokens in one worker's forward pass; 0: the gang's."""
    weights: bool = False
    """Whether the last report has each forget sequence's gradient weight by epoch (of a trial), or its NLL a token
    (of the starting model)."""


def evaluation_epochs(epochs: int, evaluations: int, rungs: Sequence[float] = ()) -> list[int]:
    """The epochs (1-based) after which a trial is evaluated: evenly spread, the last one and the rungs included."""
    spread = {max(1, round(epochs * (i + 1) / evaluations)) for i in range(evaluations)}
    return sorted(spread | set(rung_epochs(epochs, rungs)))


def _score(worker: Worker, splits: tuple[str, ...], complete: bool = False) -> dict[str, Profile]:
    """The profiles of the model as it is, by split."""
    return {s: worker.scorer.evaluate(getattr(worker.task, s), complete) for s in splits}


def _at(worker: Worker, alpha: float, splits: tuple[str, ...]) -> LinePoint:
    with worker.rank.on_the_line(alpha):
        return LinePoint(alpha, _score(worker, splits))


def _score_last(worker: Worker, job: Job, splits: tuple[str, ...]) -> dict[str, Any]:
    """profiles, line and levels of a job's last report."""
    if job.levels is not None:
        profiles = _score(worker, splits)
        line, levels = _find_levels(worker, job, job.levels, profiles["selection"])
        return {"profiles": profiles, "line": line, "levels": levels}
    profiles = _end(worker, job, splits, job.alpha)
    return {"profiles": profiles, "line": tuple(_at(worker, alpha, splits) for alpha in job.line)}


def _find_levels(
    worker: Worker, job: Job, search: LineSearch, end: Profile
) -> tuple[tuple[LinePoint, ...], tuple[LevelPoint, ...]]:
    """All points of the line that were scored, by alpha, and each level's point."""
    profiles = {1.0: end}

    def utility_at(alpha: float) -> float:
        try:
            profiles[alpha] = _at(worker, alpha, ("selection",)).profiles["selection"]
        except NonFinite:  # every worker has the same scores, and leaves here with the others
            return 0.0
        return search.judge.verdict(profiles[alpha].metrics, is_last=False).utility

    known = {0.0: 1.0, 1.0: search.judge.verdict(end.metrics, is_last=False).utility}
    levels = []
    for level, alpha in zip(search.levels, find_points(search.levels, utility_at, known), strict=True):
        try:
            levels.append(LevelPoint(level, alpha, _end(worker, job, search.splits, alpha)))
        except NonFinite as error:
            levels.append(LevelPoint(level, alpha, {}, str(error)))
    return tuple(LinePoint(alpha, {"selection": profiles[alpha]}) for alpha in sorted(profiles)), tuple(levels)


def _end(worker: Worker, job: Job, splits: tuple[str, ...], alpha: float) -> dict[str, Profile]:
    """What is done with the model at the end of a job: it is kept, scored and attacked."""
    with worker.rank.on_the_line(alpha) if alpha != 1.0 else contextlib.nullcontext():
        if job.save_to is not None:
            worker.rank.save(Path(job.save_to), job.adapter, job.precision)
        profiles = _score(worker, splits, job.complete)
        for name in splits if job.robustness.attacks else ():
            plain, attacked = profiles[name], worker.attacker.run(job.robustness, getattr(worker.task, name), job.seed)
            profiles[name] = replace(
                plain, metrics={**plain.metrics, **attacked.metrics}, absent={**plain.absent, **attacked.absent}
            )
    return profiles


def run_trial(worker: Worker, job: Job, report: Reporter) -> None:
    """Run one job from the starting model on; every worker of the gang calls it with its own `worker`.

    The last report has `done` true and a profile for every split asked for. Raises NonFinite, or what the
    model or the data raise; the caller turns that into a failed trial.
    """
    trial = job.trial
    worker.rank.max_tokens = job.max_tokens or worker.gang.max_tokens
    worker.restore()
    seconds: dict[str, Any] = {"train_seconds": 0.0, "evaluate_seconds": 0.0}
    mark = worker.rank.clock()

    def spend(on: str) -> None:
        nonlocal mark
        now = worker.rank.clock()
        seconds[on] += now - mark
        mark = now

    def point(epoch: int, losses: Mapping[str, Any], splits: tuple[str, ...], done: bool) -> bool:
        nonlocal mark
        scored = _score_last(worker, job, splits) if done else {"profiles": _score(worker, splits)}
        spend("evaluate_seconds")
        is_asked = done and job.weights
        values = Report(
            epoch=epoch,
            done=done,
            gradient_weights=worker.step.gradient_weights if is_asked else None,
            forget_nll=worker.scorer.forget_nll() if is_asked and trial is None else None,
            notes=tuple(worker.notes),
            adapter=worker.rank.adapter,
            saved=worker.rank.saved if done and job.save_to is not None else "",
            rounded_share=worker.rank.rounded_share,
            hardware=worker.rank.hardware,
            peak_memory_bytes=worker.rank.peak_memory_bytes(),
            **scored,
            **losses,
            **seconds,
        )
        go_on = report(values)
        mark = worker.rank.clock()
        return go_on

    if trial is None:
        point(0, {}, job.evaluate, True)
        return
    from ray_unlearn.training.losses import find_method

    method = find_method(trial.method)
    if method.needs_reference:
        worker.references.prepare(method, job.learn)
        mark = worker.rank.clock()  # once a search, so it is no trial's training
    last = job.stop_after or trial.epochs
    points = evaluation_epochs(trial.epochs, trial.evaluations, job.rungs) if job.points else []
    for epoch in range(1, last + 1):
        steps, trial = worker.step.train(trial, epoch - 1, job.learn, job.epoch_size, job.weights)
        spend("train_seconds")
        if epoch == last or epoch in points:
            losses = {
                "step": epoch * len(steps),
                "forget_loss": sum(s.forget for s in steps) / len(steps),
                "retain_loss": sum(s.retain for s in steps) / len(steps),
            }
            splits = job.evaluate if epoch == last else tuple(s for s in job.evaluate if s == "selection")
            if not point(epoch, losses, splits, epoch == last):
                return


def rung_epochs(epochs: int, rungs: Sequence[float]) -> dict[int, int]:
    """Epoch (1-based) -> number of the rung that is judged after it, for a trial of so many epochs.

    A short trial has fewer rungs: none falls on its last epoch, and of two on one epoch the later one counts.
    """
    places = {max(1, round(epochs * share)): rung for rung, share in enumerate(rungs)}
    return {epoch: rung for epoch, rung in places.items() if epoch < epochs}

"""The best trial of each method, run again and scored on the held-out split; and what runs a row's trial again.

A restored gang repeats a trial to the bit, so no trial needs a checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ray_unlearn.benchmarks.contract import Task
from ray_unlearn.config import COMPLETED, SearchConfig
from ray_unlearn.files import checksum
from ray_unlearn.gangs.gangs import Gangs
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.records.ledger import Event, Ledger
from ray_unlearn.records.tables import Writer
from ray_unlearn.search.held_out import (
    _final_row,
    held_out_job,
    held_out_judge,
    rerun_job,
    rerun_row,
)
from ray_unlearn.training.outcome import Report, finished


def run_finals(
    config: SearchConfig,
    gangs: Gangs,
    task: Task,
    best: Mapping[str, Mapping[str, Any]],
    writer: Writer,
    ledger: Ledger,
    done: Mapping[str, Event],
    keep_model: bool,
) -> list[str]:
    """Run the best trial of each method again to its best point, and score it on the held-out split; the finalists.

    The chosen one's model is kept. done: what a search that goes on has of this already, by trial_id.
    """
    anchors = _anchors(task)
    finalists = [*anchors, *(row["trial_id"] for row in best.values())]
    if finals_are_done(task, best, writer.folder, done, keep_model, Ranking.of_search(config)):
        return finalists
    keeps = _kept(best, Ranking.of_search(config), keep_model)
    left = {
        name: row
        for row in best.values()
        if not _is_done(done.get(name := row["trial_id"]), writer.folder, name == keeps)
    }
    is_whole = not config.scores_alone
    report = finished(gangs.run(replace(held_out_job(config, config.seed), weights=is_whole)), "the starting model")
    start, start_nll = report.profiles["report"], report.forget_nll or []
    judge = held_out_judge(config, task, start.metrics)

    def record(trial_id: str, row: Mapping[str, Any], names: list[str], has_model: bool = False) -> None:
        files = {name: checksum(writer.folder / name) for name in [writer.write_final(row), *names]}
        ledger.append("final", trial_id=trial_id, row=writer.as_written(row)[0], files=files, has_model=has_model)

    for name, profile in zip(anchors, [start, *filter(None, [task.report.retrained])], strict=True):
        is_attacked = profile is not start and judge.ranking.is_reachable
        scores = asdict(judge.verdict(profile.metrics, is_attacked))
        examples = [writer.write_examples("start", "report", start.examples)] if profile is start and is_whole else []
        record(name, _final_row({"trial_id": name, "method": name}, config, scores, profile), examples)
    place = writer.folder / "model.unfinished"
    shutil.rmtree(place, ignore_errors=True)
    jobs = [
        replace(rerun_job(config, row, config.seed), weights=is_whole, save_to=str(place) if name == keeps else None)
        for name, row in left.items()
    ]
    names_of = {job.job_id: name for job, name in zip(jobs, left, strict=True)}
    for job, outcome, seconds in gangs.run_all(jobs):
        name = names_of[job.job_id]
        row = left[name]
        final = rerun_row(config, judge, row, job, outcome, seconds)
        names = []
        if isinstance(outcome, Report) and is_whole:
            lengths = task.forget.answer_lengths.tolist()
            names.append(writer.write_examples(name, "report", outcome.profiles["report"].examples))
            names.append(writer.write_weights(name, outcome.gradient_weights or [], lengths, start_nll))
        has_model = name == keeps and place.is_dir()
        if has_model:
            names += _keep(place, writer.folder)
        record(name, final, names, has_model)
        if name == keeps and not has_model:
            raise RuntimeError(f"the chosen model could not be kept: {final['error']}")
    return finalists


def finals_are_done(
    task: Task,
    best: Mapping[str, Mapping[str, Any]],
    folder: Path,
    done: Mapping[str, Event],
    keep_model: bool,
    ranking: Ranking,
) -> bool:
    """Whether nothing is left to be run of what `run_finals` does."""
    keeps = _kept(best, ranking, keep_model)
    names = [row["trial_id"] for row in best.values()]
    return all(_is_done(done.get(name), folder, name == keeps) for name in [*_anchors(task), *names])


def _anchors(task: Task) -> list[str]:
    return ["start"] + (["retrained"] if task.report.retrained else [])


def _kept(best: Mapping[str, Mapping[str, Any]], ranking: Ranking, keep_model: bool) -> str | None:
    """The trial whose model is kept."""
    chosen = ranking.best(best.values())
    return chosen["trial_id"] if keep_model and chosen is not None else None


def _is_done(event: Event | None, folder: Path, with_model: bool) -> bool:
    if event is None or event["row"]["status"] != COMPLETED:
        return False
    names = [name for name in event["files"] if with_model or not name.startswith("model/")]
    if not all((folder / name).is_file() for name in names):  # a copy that was fetched may lack some
        return False
    return not with_model or (event["has_model"] and (folder / "model").is_dir())


def _keep(unfinished: Path, folder: Path) -> list[str]:
    """Put the saved model in its place in the folder; its files."""
    place = folder / "model"
    shutil.rmtree(place, ignore_errors=True)
    unfinished.rename(place)
    return [str(path.relative_to(folder)) for path in sorted(place.rglob("*")) if path.is_file()]

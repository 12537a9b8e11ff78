"""What --retrained names, or what is known without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ray_unlearn.benchmarks.contract import Benchmark, Request, Task
from ray_unlearn.benchmarks.profiles import attach_retrained
from ray_unlearn.commands.checks import absolute
from ray_unlearn.config import GangConfig, UserError
from ray_unlearn.models.hub import MODEL, check_access
from ray_unlearn.search.retrained import measured_retrained, names_model


def model_of(given: str | None) -> str | None:
    """The model that --retrained names; None where it names a profile, or nothing."""
    return absolute(given) if given is not None and names_model(given) else None


def take_retrained(
    given: str | None,
    benchmark: Benchmark,
    request: Request,
    task: Task,
    gang: GangConfig,
    address: str | None,
    say: Callable[[str], None],
    grow_to: Mapping[str, float] | None = None,
    dry_run: bool = False,
) -> tuple[Task, Path | None]:
    """The task with what the retrained model measures, and where that is kept; None where it lies beside the model or
    there is none.

    given: what --retrained says. That model is the one named; else the one in retrained/ beside the starting model;
    else the published one that belongs to it, if it can be had. A model that nobody has measured yet is measured on a
    gang, except in a dry run.
    """
    model = model_of(given)
    if given is not None and model is None:
        return attach_retrained(task, Path(given)), Path(given)
    if model is None:
        task = attach_retrained(task, None)
        if task.selection.retrained is not None or (model := benchmark.retrained_of(request, task.model)) is None:
            return task, None
        try:
            check_access(model, MODEL)
        except UserError as error:
            say(f"the retrained model that belongs to it is not used: {error}")
            return task, None
    if dry_run:
        say(f"the retrained model {model} would be measured first, unless the cache knows what it measures")
        return task, None
    return measured_retrained(benchmark, task, model, gang, address, grow_to, say)

"""lm-evaluation-harness itself on a finished model, for figures that others can compare with. An optional extra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_unlearn.config import UserError


def run_harness(model: str, tasks: Sequence[str], folder: Path | None, device: str) -> dict[str, dict[str, float]]:
    """By task, its metrics as the harness names them ("acc,none" without the filter's name), with their
    standard errors ("acc_stderr") where a formula gives them.

    folder: task files of one's own; then the harness's own tasks, which take seconds to list, are left out.
    Weights are read in fp32, as `evaluate` scores them on a CPU. No tasks give no results.
    """
    if not tasks:
        return {}
    results = _evaluate(model, tasks, folder, device)["results"]
    return {
        task: {
            name.removesuffix(",none"): value
            for name, value in found.items()
            if isinstance(value, float) and math.isfinite(value)
        }
        for task, found in results.items()
    }


def _evaluate(model: str, tasks: Sequence[str], folder: Path | None, device: str, **options: Any) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    return simple_evaluate(
        model="hf",
        model_args={"pretrained": model, "dtype": "float32"},
        tasks=list(tasks),
        task_manager=_task_manager(folder),
        device=device,
        bootstrap_iters=1,  # none leaves the standard errors out that have a formula, too
        log_samples=bool(options),
        **options,
    )


def check_harness(tasks: Sequence[str], folder: Path | None) -> None:
    """Raise UserError where the harness is not installed, or knows no such task."""
    if not tasks:
        return
    if folder is not None and not folder.is_dir():
        raise UserError(f"--harness-tasks {folder}: no such folder. Give the one that holds your task files")
    try:
        manager = _task_manager(folder)
    except ImportError:
        raise UserError("--harness: needs lm-evaluation-harness. Install ray_unlearn[harness]") from None
    for task in tasks:
        if not manager.match_tasks([task]):
            raise UserError(f"--harness {task}: no such task. Give one that lm-evaluation-harness has")


def _task_manager(folder: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder) if folder else None, include_defaults=folder is None)

"""lm-evaluation-harness itself on a finished model, for figures that others can compare with. An optional extra."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_unlearn.config import GangConfig, UserError

CPU_BATCH = 8
"""Questions that a CPU scores at a time; a GPU takes as many as it holds."""


def run_harness(model: str, tasks: Sequence[str], folder: Path | None, gang: GangConfig) -> dict[str, dict[str, float]]:
    """By task, its metrics as the harness names them ("acc,none" without the filter's name), with their
    standard errors ("acc_stderr") where a formula gives them.

    folder: task files of one's own; then the harness's own tasks, which take seconds to list, are left out. It runs on
    one node of the cluster, which Ray must be connected to, on the gang's devices and in its precision. Raises whatever
    the harness raises.
    """
    import ray

    most = max(node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"])
    if most < _num_gpus(gang):
        raise RuntimeError(f"it takes a model's {_num_gpus(gang):g} GPUs on one node, and none has more than {most:g}")
    cpus = gang.num_workers * gang.cpus_per_worker
    score = ray.remote(num_cpus=cpus, num_gpus=_num_gpus(gang), max_retries=0)(_score_in_its_process)
    found: dict[str, dict[str, float]] = ray.get(score.remote(model, list(tasks), folder, gang))
    return found


def _score_in_its_process(
    model: str, tasks: Sequence[str], folder: Path | None, gang: GangConfig
) -> dict[str, dict[str, float]]:
    import torch

    torch.set_num_threads(gang.threads_per_worker * gang.num_workers)
    # The driver's, if it made a miniature: with it accelerate would wait for other ranks.
    os.environ.pop("LOCAL_RANK", None)
    return _score(model, tasks, folder, gang)


def _score(model: str, tasks: Sequence[str], folder: Path | None, gang: GangConfig) -> dict[str, dict[str, float]]:
    results = _evaluate(model, tasks, folder, gang)["results"]
    return {
        task: {
            name.removesuffix(",none"): value
            for name, value in found.items()
            if isinstance(value, float) and math.isfinite(value)
        }
        for task, found in results.items()
    }


def _num_gpus(gang: GangConfig) -> float:
    return gang.num_workers * gang.gpus_per_worker


def _evaluate(
    model: str, tasks: Sequence[str], folder: Path | None, gang: GangConfig, **options: Any
) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    on_gpus = _num_gpus(gang) > 0
    return simple_evaluate(
        model="hf",
        model_args={
            "pretrained": model,
            "dtype": "bfloat16" if gang.precision == "bf16" else "float32",
            "parallelize": _num_gpus(gang) > 1,
            "trust_remote_code": gang.trust_remote_code,
        },
        tasks=list(tasks),
        task_manager=_task_manager(folder),
        device="cuda" if on_gpus else "cpu",
        batch_size="auto" if on_gpus else CPU_BATCH,
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

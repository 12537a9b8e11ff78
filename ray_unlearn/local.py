"""A worker in this very process, a gang of one: no Ray. Small builds and tests use it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ray_unlearn.benchmarks import Task
from ray_unlearn.config import GangConfig
from ray_unlearn.trial import Job, run_trial

if TYPE_CHECKING:
    from ray_unlearn.worker import Worker


def local_worker(task: Task, gang: GangConfig) -> Worker:
    """A CPU worker that is alone in its process group.

    The group stays for the life of the process: DeepSpeed remembers groups and cannot take a second one.
    """
    import torch
    import torch.distributed as dist

    from ray_unlearn.worker import Worker

    if not dist.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return Worker(task, gang, torch.device("cpu"))


def run_local(worker: Worker, job: Job) -> list[dict[str, Any]]:
    """Run one job to its end and return all its reports."""
    reports: list[dict[str, Any]] = []

    def report(values: Any) -> bool:
        reports.append(dict(values))
        return True

    run_trial(worker, job, report)
    return reports

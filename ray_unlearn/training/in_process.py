"""A worker in this very process, a gang of one: no Ray. Small builds and tests use it."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from ray_unlearn.benchmarks.contract import Profile, Split, Task
from ray_unlearn.config import GangConfig
from ray_unlearn.hardware import granted_cpus
from ray_unlearn.models.sequences import Sequences
from ray_unlearn.training.outcome import Report
from ray_unlearn.training.trial import Job, run_trial

if TYPE_CHECKING:
    from ray_unlearn.training.worker import Worker
from ray_unlearn.benchmarks.contract import Build

SINGLE = GangConfig(num_workers=1, zero_stage=0, threads_per_worker=1)
NOTHING = Sequences.build([])


def build_models(builds: list[Build], log: Callable[[str], None]) -> list[dict[str, Profile]]:
    """Train them side by side, one single-threaded process each; the same bits on every run.

    Returns each one's profiles by split name. `log` gets one line before and one after.
    """
    names = ", ".join(build.output.name for build in builds)
    log(f"training {names} ({sum(build.sequences.lengths.sum() for build in builds)} tokens an epoch)")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=min(len(builds), granted_cpus()), mp_context=context) as pool:
        profiles = list(pool.map(_build, builds))
    log(f"trained {names}")
    return profiles


def _build(build: Build) -> dict[str, Profile]:
    empty = Split(probes={})
    task = Task(
        benchmark=build.benchmark,
        scale="mini",
        model=str(build.start),
        forget=build.sequences,
        retain=NOTHING,
        selection=build.splits.get("selection", empty),
        report=build.splits.get("report", empty),
        whole=build.splits.get("whole"),
    )
    job = Job(
        "build", build.trial, evaluate=tuple(build.splits), points=False, complete=True, save_to=str(build.output)
    )
    return dict(run_local(local_worker(task, SINGLE), job)[-1].profiles)


def local_worker(task: Task, gang: GangConfig) -> Worker:
    """A CPU worker that is alone in its process group.

    The group stays for the life of the process: DeepSpeed remembers groups and cannot take a second one.
    """
    import torch
    import torch.distributed as dist

    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before DeepSpeed is imported: the machine may have a GPU
    from ray_unlearn.training.worker import Worker

    if not dist.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return Worker(task, gang, torch.device("cpu"))


def run_local(worker: Worker, job: Job) -> list[Report]:
    """Run one job to its end and return all its reports."""
    reports: list[Report] = []

    def report(values: Report) -> bool:
        reports.append(values)
        return True

    run_trial(worker, job, report)
    return reports

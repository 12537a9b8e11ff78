"""Gangs: groups of Ray Train workers that live as long as the search and serve one trial after another.

The only file that imports ray.train. Each gang is one `TorchTrainer.fit()` in a thread of the driver; its
workers take jobs from a broker actor. Reports are credit-based: a worker waits after each for the verdict,
so that a trial stopped at a report has done no step more. A worker that dies restarts its gang, and the
job in flight is delivered again; what was already reported is not reported twice.
"""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ray_unlearn.allocation import WORKER_MALLOC
from ray_unlearn.benchmarks import Task
from ray_unlearn.config import GangConfig
from ray_unlearn.trial import Job, run_trial

IDLE_SECONDS = 5.0
"""An idle gang's poll: short enough that no collective times out and that it ends soon when told."""
CLOSE_SECONDS = 30.0
"""How long the end of a search waits for its gangs; then it goes without them, and Ray ends them."""
MAX_DELIVERIES = 3
"""A job whose workers died this often has failed."""
MAX_STARTS = 3
"""Starts of a gang without one finished job in between, after which it is given up."""


@dataclass
class _Mail:
    """A job at the broker: reports on their way out, verdicts on their way in."""

    job: Job
    reports: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    credit: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    stopped: bool = False
    reported: int = 0
    deliveries: int = 0
    done: bool = False


class _Broker:
    """Between those who want jobs done and the gangs that do them. One asyncio actor a search."""

    def __init__(self, task: list[Any], num_gangs: int) -> None:
        self._task = task
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._mail: dict[str, _Mail] = {}
        self._in_flight: dict[int, str] = {}
        self._starts = dict.fromkeys(range(num_gangs), 0)
        self._num_done = dict.fromkeys(range(num_gangs), 0)
        self._alive = set(range(num_gangs))
        self._lost = ""
        self._closed = False

    async def task(self) -> list[Any]:
        return self._task

    # For those who want a job done

    async def submit(self, job: Job) -> None:
        self._mail[job.job_id] = _Mail(job)
        if self._alive:
            await self._queue.put(job.job_id)
        else:
            self._fail(job.job_id, self._lost)

    async def next(self, job_id: str) -> dict[str, Any]:
        """The job's next report; asking for it is the verdict "go on" on the one before."""
        mail = self._mail[job_id]
        mail.credit.release()
        report = await mail.reports.get()
        if report["done"]:
            del self._mail[job_id]
        return report

    async def stop(self, job_id: str) -> None:
        if mail := self._mail.get(job_id):
            mail.stopped = True
            mail.credit.release()

    async def close(self) -> None:
        self._closed = True

    async def gang_ended(self, gang: int, reason: str) -> None:
        """A gang is gone for good: its job goes to another one, or fails with all others if it was the last."""
        self._alive.discard(gang)
        job_id = self._in_flight.pop(gang, None)
        if job_id in self._mail:
            await self._queue.put(job_id)
        if not self._alive:
            self._lost = reason
            while not self._queue.empty():
                self._fail(self._queue.get_nowait(), reason)

    # For rank 0 of a gang

    async def hello(self, gang: int) -> bool:
        """A gang's workers have started; false when they have started too often for nothing."""
        self._starts[gang] += 1
        return gang in self._alive and self._starts[gang] <= MAX_STARTS and not self._closed

    async def take(self, gang: int) -> Job | str:
        """The next job; "idle" after a while without one; "exit" at the end."""
        job_id = self._in_flight.get(gang)
        if job_id is None:
            if self._closed:
                return "exit"
            try:
                job_id = await asyncio.wait_for(self._queue.get(), IDLE_SECONDS)
            except TimeoutError:
                return "idle"
        mail = self._mail.get(job_id)
        if mail is None or mail.stopped or mail.done:
            self._in_flight.pop(gang, None)
            return "idle"
        self._in_flight[gang] = job_id
        mail.deliveries += 1
        if mail.deliveries > MAX_DELIVERIES:
            self._in_flight.pop(gang)
            self._fail(job_id, f"lost: its workers died {MAX_DELIVERIES} times")
            return "idle"
        return mail.job

    async def report(self, gang: int, job_id: str, number: int, values: dict[str, Any]) -> bool:
        """Hand over the job's report of that number (from 1); answers whether to go on."""
        mail = self._mail.get(job_id)
        if mail is None or mail.stopped or self._closed:
            self._in_flight.pop(gang, None)
            return False
        if number > mail.reported:
            mail.reported = number
            if number == 1:
                await mail.credit.acquire()
            await mail.reports.put(values)
            if values["done"]:
                mail.done = True
                self._job_ended(gang)
                return False
            await mail.credit.acquire()
        if mail.stopped:
            self._mail.pop(job_id, None)
            self._job_ended(gang)
            return False
        return True

    async def fail(self, gang: int, job_id: str, error: str) -> None:
        """The job raised; it is over."""
        self._job_ended(gang)
        self._fail(job_id, error)

    async def num_done(self, gang: int) -> int:
        """Jobs that this gang has brought to an end."""
        return self._num_done[gang]

    def _job_ended(self, gang: int) -> None:
        self._in_flight.pop(gang, None)
        self._starts[gang] = 0
        self._num_done[gang] += 1

    def _fail(self, job_id: str, error: str) -> None:
        mail = self._mail.get(job_id)
        if mail is not None and not mail.done:
            mail.done = True
            mail.reports.put_nowait({"error": error, "done": True})


def gang_loop(settings: Mapping[str, Any]) -> None:
    """What every worker of a gang runs, for the whole search. It ends with the broker."""
    import ray

    try:
        _serve(settings)
    except ray.exceptions.RayActorError:
        return  # the broker is gone, and the search with it


def _serve(settings: Mapping[str, Any]) -> None:
    import ray
    import torch.distributed as dist
    from ray import train
    from ray.train.torch import get_device

    from ray_unlearn.worker import NonFinite, Worker

    broker, gang = settings["broker"], settings["gang"]
    rank, num_workers = train.get_context().get_world_rank(), train.get_context().get_world_size()

    def from_first(value: Any) -> Any:
        box = [value]
        if num_workers > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    if not from_first(ray.get(broker.hello.remote(gang)) if rank == 0 else None):
        return
    try:
        worker = Worker(ray.get(ray.get(broker.task.remote())[0]), settings["config"], get_device())
    except Exception as error:
        # What a restart would meet again (no such model, out of memory): say it and end.
        ray.get(broker.gang_ended.remote(gang, f"a worker could not start: {describe(error)}"))
        raise
    while True:
        command = from_first(ray.get(broker.take.remote(gang)) if rank == 0 else None)
        if command == "exit":
            return
        if command == "idle":
            continue
        job: Job = command
        number = 0

        def report(values: Mapping[str, Any], job_id: str = job.job_id) -> bool:
            nonlocal number
            number += 1
            answer = ray.get(broker.report.remote(gang, job_id, number, dict(values))) if rank == 0 else None
            return bool(from_first(answer))

        try:
            run_trial(worker, job, report)
        except Exception as error:
            if isinstance(error, NonFinite) or (num_workers == 1 and not may_break_the_process(error)):
                # All workers raised it together: the trial is over, the gang goes on.
                if rank == 0:
                    ray.get(broker.fail.remote(gang, job.job_id, describe(error)))
                continue
            # The others wait for this one in a collective, or the device is lost: a new start is the way out.
            ray.get(broker.fail.remote(gang, job.job_id, describe(error)))
            raise


def may_break_the_process(error: Exception) -> bool:
    """Whether nothing can be computed after it: CUDA's errors, but not its lack of memory."""
    import torch

    is_cuda = torch.cuda.is_available() and isinstance(error, RuntimeError)
    return is_cuda and not isinstance(error, torch.OutOfMemoryError)


def describe(error: BaseException) -> str:
    """Kind and message on one line, and where it was raised."""
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({Path(place[0].filename).name}:{place[0].lineno})" if place else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}{where}"


class Gangs:
    """All gangs of one search and their broker, seen from the driver. Ray must be initialised."""

    def __init__(self, task: Task, config: GangConfig, count: int, storage: Path) -> None:
        import ray

        self.count = count
        self._config, self._storage = config, storage
        self._threads: list[threading.Thread] = []
        self._closed = False
        options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 1000}
        self.broker: Any = ray.remote(**options)(_Broker).remote([ray.put(task)], count)

    def __enter__(self) -> Gangs:
        for gang in range(self.count):
            thread = threading.Thread(target=self._run, args=(gang,), daemon=True, name=f"gang-{gang}")
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *error: object) -> None:
        """Let the gangs finish and free their places; a trial in flight ends at its next report."""
        import ray

        self._closed = True
        ray.get(self.broker.close.remote())
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        ray.kill(self.broker)

    def _run(self, gang: int) -> None:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        resources: dict[str, float] = {"CPU": self._config.cpus_per_worker}
        if self._config.gpus_per_worker:
            resources["GPU"] = self._config.gpus_per_worker
        # Not by name: type checkers see the RunConfig of Ray Train V1.
        environment: dict[str, Any] = {}
        if not self._config.gpus_per_worker:
            environment["worker_runtime_env"] = {"env_vars": WORKER_MALLOC}
        trainer = TorchTrainer(
            gang_loop,
            train_loop_config={"broker": self.broker, "gang": gang, "config": self._config},
            scaling_config=ScalingConfig(
                num_workers=self._config.num_workers,
                use_gpu=self._config.gpus_per_worker > 0,
                resources_per_worker=resources,
            ),
            run_config=RunConfig(
                name=f"gang-{gang}",
                storage_path=str(self._storage),
                failure_config=FailureConfig(max_failures=MAX_STARTS),
                **environment,
            ),
        )
        done_before = -1
        reason = f"the workers died {MAX_STARTS} times in a row"
        try:
            # Each round has its own budget of failures; a round in which no job ended is the last.
            while (done := ray.get(self.broker.num_done.remote(gang))) > done_before:
                done_before = done
                try:
                    trainer.fit()
                    break
                except Exception as error:
                    reason = describe(error)
                    if self._closed:
                        return  # a call to Ray would start it anew
            if not self._closed:
                ray.get(self.broker.gang_ended.remote(gang, reason))
        except ray.exceptions.RayError:
            return  # the broker is gone: the search is over

    def run(self, job: Job, on_report: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        """Do one job outside the search and return its last report, which has "error" if it failed.

        `on_report` gets the reports before the last.
        """
        import ray

        ray.get(self.broker.submit.remote(job))
        while not (report := ray.get(self.broker.next.remote(job.job_id)))["done"]:
            if on_report:
                on_report(report)
        return report

    def run_all(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, dict[str, Any], float]]:
        """Do jobs outside the search, one a gang at a time; each as it ends: its last report and its wall seconds.

        The next job starts while the caller looks at the last one's report, so no gang waits for another.
        """
        import ray

        left = iter(jobs)
        running: dict[Any, tuple[Job, float]] = {}

        def start(count: int) -> None:
            for job in islice(left, count):
                ray.get(self.broker.submit.remote(job))
                running[self.broker.next.remote(job.job_id)] = job, time.perf_counter()

        start(self.count)
        while running:
            (ready, *_), _ = ray.wait(list(running))
            job, began = running.pop(ready)
            report = ray.get(ready)
            if report["done"]:
                start(1)
                yield job, report, time.perf_counter() - began
            else:
                running[self.broker.next.remote(job.job_id)] = job, began

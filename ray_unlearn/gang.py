"""Gangs: groups of Ray Train workers that live as long as the search and serve one trial after another.

The only file that imports ray.train. Each gang is one `TorchTrainer.fit()` in a thread of the driver; its
workers take jobs from a broker actor. Reports are credit-based: a worker waits after each for the verdict,
so that a trial stopped at a report has done no step more. A worker that dies restarts its gang, and the
job in flight is delivered again; what was already reported is not reported twice. A job that fails is done
again as often as failures.py allows for that kind, after a lack of memory with half the tokens in a pass.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ray_unlearn.benchmarks import Task
from ray_unlearn.config import GangConfig
from ray_unlearn.failures import LOST, MEMORY, RETRIES, TIMEOUT, Failure, NonFinite, kind_of, kind_of_death
from ray_unlearn.interruption import end_soon, is_ending
from ray_unlearn.trial import Job, run_trial
from ray_unlearn.worker_environment import WORKER_ENVIRONMENT

IDLE_SECONDS = 5.0
"""An idle gang's poll: short enough that no collective times out and that it ends soon when told."""
HURRY_SECONDS = 2.0
"""The same after an interruption."""
CLOSE_SECONDS = 30.0
"""How long the end of a search waits for its gangs; then it goes without them, and Ray ends them."""
WAIT_SECONDS = 60.0
"""Without any gang that works for so long, the user is told what they wait for."""
FEWEST_TOKENS = 32
"""Halving the tokens of a pass ends here."""
MAX_STARTS = 3
"""Starts of a gang without one job begun in between, after which it is given up. Jobs that kill their workers have
budgets of their own."""


@dataclass
class _Mail:
    """A job at the broker: reports on their way out, verdicts on their way in."""

    job: Job
    reports: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    credit: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    stopped: bool = False
    reported: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """How often it has failed so far, by kind."""
    done: bool = False


class _Broker:
    """Between those who want jobs done and the gangs that do them. One asyncio actor a search."""

    def __init__(self, task: list[Any], num_gangs: int, max_tokens: int, rest: float = 0.0) -> None:
        """rest: seconds without a job after which a gang may end for the time being; 0: it never does."""
        self._task = task
        self._rest = rest
        self._last_job: dict[int, float] = {}
        self._resting: set[int] = set()
        self._max_tokens = max_tokens
        self._notes: list[str] = []
        self._deaths: dict[int, Failure] = {}
        self._started: set[int] = set()
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._mail: dict[str, _Mail] = {}
        self._in_flight: dict[int, str] = {}
        self._starts = dict.fromkeys(range(num_gangs), 0)
        self._num_taken = dict.fromkeys(range(num_gangs), 0)
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

    async def stop_trial(self, trial_id: str) -> None:
        """Stop every job of that trial."""
        for job_id, mail in list(self._mail.items()):
            if mail.job.trial is not None and mail.job.trial.trial_id == trial_id:
                await self.stop(job_id)

    async def news(self) -> tuple[list[str], int]:
        """(what the user should be told since the last call, gangs whose workers are at work)."""
        notes, self._notes = self._notes, []
        return notes, len(self._started)

    async def close(self) -> None:
        self._closed = True
        for _ in self._alive:  # no job's name: wakes a gang that waits for one
            self._queue.put_nowait("")

    async def gang_ended(self, gang: int, reason: str) -> None:
        """A gang is gone for good: its job goes to another one, or fails with all others if it was the last."""
        self._alive.discard(gang)
        self._started.discard(gang)
        self._resting.discard(gang)
        job_id = self._in_flight.pop(gang, None)
        if job_id in self._mail:
            await self._queue.put(job_id)
        if not self._alive:
            self._lost = reason
            while not self._queue.empty():
                self._fail(self._queue.get_nowait(), reason)

    async def rests(self, gang: int) -> bool:
        """Whether that gang has ended for the time being."""
        return gang in self._resting

    async def jobs_wait(self) -> bool:
        return not self._queue.empty()

    # For rank 0 of a gang

    async def hello(self, gang: int) -> bool:
        """A gang's workers have started; false when they have started too often for nothing."""
        self._starts[gang] += 1
        self._resting.discard(gang)
        if job_id := self._in_flight.pop(gang, None):  # the ones before them died over it
            await self._retry(job_id, self._deaths.pop(gang, Failure(LOST, "its workers' process ended")))
        self._started.add(gang)
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
                return "exit" if self._lies_down(gang) else "idle"
        mail = self._mail.get(job_id)
        if mail is None or mail.stopped or mail.done:
            self._in_flight.pop(gang, None)
            return "idle"
        self._in_flight[gang] = job_id
        self._starts[gang] = 0
        self._num_taken[gang] += 1
        self._last_job[gang] = time.monotonic()
        return replace(mail.job, max_tokens=self._max_tokens)

    def _lies_down(self, gang: int) -> bool:
        """Whether a gang without a job may end for now: it has had one, long ago, and others stay."""
        idle = time.monotonic() - self._last_job.get(gang, math.inf)
        if not self._rest or idle < self._rest or len(self._started) < 2:
            return False
        self._started.discard(gang)
        self._resting.add(gang)
        return True

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
            if values["done"]:
                values = {**values, "retries": mail.failures.total()}
            await mail.reports.put(values)
            if values["done"]:
                mail.done = True
                self._in_flight.pop(gang, None)
                self._last_job[gang] = time.monotonic()
                return False
            await mail.credit.acquire()
        if mail.stopped:
            self._mail.pop(job_id, None)
            self._in_flight.pop(gang, None)
            return False
        return True

    async def fail(self, gang: int, job_id: str, failure: Failure) -> None:
        """The job has failed here: it is over, or begins anew."""
        if self._in_flight.get(gang) == job_id:
            self._in_flight.pop(gang, None)
            await self._retry(job_id, failure)

    async def workers_died(self, gang: int, failure: Failure) -> None:
        """Why, as the gang's controller sees it; its workers start anew."""
        self._started.discard(gang)
        self._deaths[gang] = failure

    async def num_taken(self, gang: int) -> int:
        """Jobs that this gang has begun."""
        return self._num_taken[gang]

    async def _retry(self, job_id: str, failure: Failure) -> None:
        """Do the job once more, if its kind of failure has a retry left."""
        mail = self._mail.get(job_id)
        if mail is None or mail.stopped or mail.done:
            return
        mail.failures[failure.kind] += 1
        is_over = mail.failures[failure.kind] > RETRIES[failure.kind]
        if failure.kind in MEMORY and not is_over:
            is_over = self._max_tokens <= FEWEST_TOKENS
            self._max_tokens = max(FEWEST_TOKENS, self._max_tokens // 2)
            what = f"out of memory: from now on {self._max_tokens} tokens in one pass, with no effect on the loss"
            self._notes += [] if is_over else [what]
        if is_over:
            times = mail.failures[failure.kind]
            self._fail(job_id, f"{failure.error}{f' ({times} times)' if times > 1 else ''}", failure.kind)
        else:
            await self._queue.put(job_id)

    def _fail(self, job_id: str, error: str, kind: str = LOST) -> None:
        mail = self._mail.get(job_id)
        if mail is not None and not mail.done:
            mail.done = True
            retries = mail.failures.total() - (mail.failures[kind] > 0)
            mail.reports.put_nowait({"error": error, "failure": kind, "retries": retries, "done": True})


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

    # Nothing of what is imported is ever freed, and looking for it would take a good part of the start.
    gc.disable()
    from ray.train.torch import get_device

    from ray_unlearn.worker import Worker

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
    gc.freeze()
    gc.enable()
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

        def give_up(failure: Failure, job_id: str = job.job_id) -> None:
            ray.get(broker.fail.remote(gang, job_id, failure))

        failure = None
        try:
            with _Watchdog(settings["timeout"] if rank == 0 else 0.0, give_up):
                run_trial(worker, job, report)
        except Exception as error:
            failure = Failure(kind_of(error), describe(error))
            is_shared = isinstance(error, NonFinite)
            if not is_shared and (num_workers > 1 or may_break_the_process(error)):
                # The others wait for this one in a collective, or the device is lost: a new start is the way out.
                give_up(failure)
                raise
            # All workers raised it together: the trial is over, the gang goes on.
            if rank == 0:
                give_up(failure)
        if failure is not None and failure.kind in MEMORY:
            worker.free_memory()


class _Watchdog:
    """Ends this process when a job takes longer than so many seconds (0: never): its gang starts anew."""

    def __init__(self, seconds: float, give_up: Callable[[Failure], None]) -> None:
        def fire() -> None:
            give_up(Failure(TIMEOUT, f"took longer than {seconds:g} s"))
            os._exit(1)

        self._timer = threading.Timer(seconds, fire) if seconds else None

    def __enter__(self) -> None:
        if self._timer:
            self._timer.daemon = True
            self._timer.start()

    def __exit__(self, *error: object) -> None:
        if self._timer:
            self._timer.cancel()


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

    def __init__(
        self,
        task: Task,
        config: GangConfig,
        count: int,
        storage: Path,
        say: Callable[[str], None] = lambda what: None,
        timeout: float = 0.0,
        rest: float = 0.0,
    ) -> None:
        """say: gets what the user should know while it runs. timeout: seconds that one job may take; 0: any.
        rest: seconds without a job after which a gang gives its place back until jobs wait again; 0: it keeps it."""
        import ray

        self.count = count
        self._config, self._storage, self._say, self._timeout = config, storage, say, timeout
        self._threads: list[threading.Thread] = []
        self._closed = threading.Event()
        # On the driver's node: who loses that one has lost the search anyway.
        here = ray.get_runtime_context().get_node_id()
        place = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 1000, "scheduling_strategy": place}
        self.broker: Any = ray.remote(**options)(_Broker).remote([ray.put(task)], count, config.max_tokens, rest)

    def __enter__(self) -> Gangs:
        for gang in range(self.count):
            thread = threading.Thread(target=self._run, args=(gang,), daemon=True, name=f"gang-{gang}")
            self._threads.append(thread)
        self._threads.append(threading.Thread(target=self._tell, daemon=True, name="news"))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Let the gangs finish and free their places; a trial in flight ends at its next report."""
        import ray

        self._closed.set()
        ray.get(self.broker.close.remote())
        if kind is not None and not issubclass(kind, Exception):
            end_soon()
        deadline = time.monotonic() + (HURRY_SECONDS if is_ending() else CLOSE_SECONDS)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        ray.kill(self.broker)

    def _tell(self) -> None:
        """Pass on the broker's notes, and say what is missing where no gang gets to work."""
        import ray

        idle_since, is_said = time.monotonic(), False
        while not self._closed.wait(1.0):
            try:
                notes, at_work = ray.get(self.broker.news.remote(), timeout=10)
            except (ray.exceptions.RayError, TimeoutError):
                continue
            if self._closed.is_set():
                return
            for note in notes:
                self._say(note)
            if at_work:
                idle_since, is_said = time.monotonic(), False
            elif not is_said and time.monotonic() - idle_since > WAIT_SECONDS:
                self._say(self._describe_wait())
                is_said = True

    def _describe_wait(self) -> str:
        import ray

        needs = {"CPU": self._config.cpus_per_worker, "GPU": self._config.gpus_per_worker}
        free, have = ray.available_resources(), ray.cluster_resources()
        wanted = ", ".join(
            f"{amount * self._config.num_workers:g} {name} ({free.get(name, 0.0):g} of {have.get(name, 0.0):g} free)"
            for name, amount in needs.items()
            if amount
        )
        return f"waiting: no gang could start for {WAIT_SECONDS:g} s. One needs {wanted}"

    def _run(self, gang: int) -> None:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
        from ray.train.torch import TorchTrainer

        resources: dict[str, float] = {"CPU": self._config.cpus_per_worker}
        if self._config.gpus_per_worker:
            resources["GPU"] = self._config.gpus_per_worker
        broker = self.broker

        class Deaths(UserCallback):
            """Runs in the gang's controller."""

            def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
                error = next(iter(worker_exceptions.values()))
                failure = Failure(kind_of_death(error), f"its workers died: {describe(error)}")
                broker.workers_died.remote(gang, failure)

        trainer = TorchTrainer(
            gang_loop,
            train_loop_config={
                "broker": broker,
                "gang": gang,
                "config": self._config,
                "timeout": self._timeout,
            },
            scaling_config=ScalingConfig(
                num_workers=self._config.num_workers,
                use_gpu=self._config.gpus_per_worker > 0,
                resources_per_worker=resources,
                accelerator_type=self._config.accelerator or None,
            ),
            run_config=RunConfig(  # type: ignore[call-arg]  # mypy takes it for Tune's
                name=f"gang-{gang}",
                storage_path=str(self._storage),
                failure_config=FailureConfig(max_failures=MAX_STARTS),
                callbacks=[Deaths()],  # type: ignore[list-item]
                worker_runtime_env={} if self._config.gpus_per_worker else {"env_vars": WORKER_ENVIRONMENT},
            ),
        )
        taken_before = -1
        reason = f"the workers died {MAX_STARTS} times in a row"
        try:
            # Each round has its own budget of failures; a round in which no job was begun is the last.
            while (taken := ray.get(self.broker.num_taken.remote(gang))) > taken_before:
                taken_before = taken
                try:
                    trainer.fit()
                    if not self._wakes(gang):
                        break
                    taken_before = -1
                except Exception as error:
                    reason = describe(error)
                    if self._closed.is_set():
                        return  # a call to Ray would start it anew
            if not self._closed.is_set():
                ray.get(self.broker.gang_ended.remote(gang, reason))
        except ray.exceptions.RayError:
            return  # the broker is gone: the search is over

    def _wakes(self, gang: int) -> bool:
        """Whether a gang whose workers have ended shall start again: it rests, and now jobs wait for it."""
        import ray

        if self._closed.is_set() or not ray.get(self.broker.rests.remote(gang)):
            return False
        while not self._closed.wait(1.0):
            if ray.get(self.broker.jobs_wait.remote()):
                return True
        return False

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

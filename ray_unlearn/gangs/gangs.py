"""Gangs: groups of Ray Train workers that live as long as the search and serve one trial after another.

The only file that imports ray.train. Each gang is one `TorchTrainer.fit()` in a thread of the driver; its
workers take jobs from a broker actor. Reports are credit-based: a worker waits after each for the verdict,
so that a trial stopped at a report has done no step more. A worker that dies restarts its gang, and the
job in flight is delivered again; what was already reported is not reported twice. A job that fails is done
again as often as failures.py allows for that kind, after a lack of memory with half the tokens in a pass.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from ray_unlearn.benchmarks.contract import Task
from ray_unlearn.config import GangConfig
from ray_unlearn.failures import Failure, kind_of_death
from ray_unlearn.gangs.broker import MAX_STARTS, Broker
from ray_unlearn.gangs.environment import WORKER_ENVIRONMENT
from ray_unlearn.gangs.saving import Token, checked, placed_tokens
from ray_unlearn.gangs.serve import describe, gang_loop
from ray_unlearn.interruption import end_soon, is_ending
from ray_unlearn.training.outcome import Outcome
from ray_unlearn.training.trial import Job

HURRY_SECONDS = 2.0
"""The same after an interruption."""
CLOSE_SECONDS = 30.0
"""How long the end of a search waits for its gangs; then it goes without them, and Ray ends them."""
LEFT_OUT = ("DatasetsCallback", "PlacementGroupCleanerCallback")
"""Of Ray Train's own callbacks."""
WAIT_SECONDS = 60.0
"""Without any gang that works for so long, the user is told what they wait for."""


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
        park_seconds: float = 0.0,
        shared: Sequence[Path] = (),
    ) -> None:
        """say: gets what the user should know while it runs. timeout: seconds that one job may take; 0: any.
        park_seconds: without a job for so long, a gang gives its place back until jobs wait again; 0: it keeps it.
        shared: folders that models are saved beside: a gang whose node does not see them is not used, unless the models
        go through the driver."""
        import ray

        self.count = count
        self._config, self._storage, self._say, self._timeout = config, storage, say, timeout
        self._threads: list[threading.Thread] = []
        self._closed = threading.Event()
        self._places_before: set[str] = set()
        self._shared = [] if config.through_driver else shared
        self._placed = contextlib.ExitStack()
        self._tokens: tuple[Token, ...] = ()
        # On the driver's node: who loses that one has lost the search anyway.
        here = ray.get_runtime_context().get_node_id()
        place = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 1000, "scheduling_strategy": place}
        self.broker: Any = ray.remote(**options)(Broker).remote([ray.put(task)], count, config.max_tokens, park_seconds)

    def __enter__(self) -> Gangs:
        self._tokens = self._placed.enter_context(placed_tokens(self._shared))
        self._places_before = set(find_places())
        for gang in range(self.count):
            thread = threading.Thread(target=self._run, args=(gang,), daemon=True, name=f"gang-{gang}")
            self._threads.append(thread)
        self._threads.append(threading.Thread(target=self._tell, daemon=True, name="notes"))
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
        self._placed.close()

    def _tell(self) -> None:
        """Pass on the broker's notes, and say what is missing where no gang gets to work."""
        import ray

        idle_since, is_said = time.monotonic(), False
        while not self._closed.wait(1.0):
            try:
                notes, at_work = ray.get(self.broker.drain_notes.remote(), timeout=10)
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
        asked = {place: state for place, state in find_places().items() if place not in self._places_before}
        return describe_wait(list(asked.values()), self.count, wanted)

    def _build_trainer(self, gang: int) -> Any:
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

        class Trainer(TorchTrainer):
            """Without two processes a gang of 130 MiB each: there are no datasets to manage, and the place of a
            controller that has died is given back by the broker (in Ray, by an actor that watches the controller).

            Where a later Ray calls its callbacks otherwise, the processes are there again and nothing else changes.
            """

            def _create_default_callbacks(self) -> list[Any]:
                found = super()._create_default_callbacks()  # type: ignore[misc]
                return [callback for callback in found if type(callback).__name__ not in LEFT_OUT]

        return Trainer(
            gang_loop,
            train_loop_config={
                "broker": broker,
                "gang": gang,
                "config": self._config,
                "timeout": self._timeout,
                "tokens": self._tokens,
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

    def _run(self, gang: int) -> None:
        import ray

        trainer, taken_before = self._build_trainer(gang), -1
        reason = f"the workers died {MAX_STARTS} times in a row"
        try:
            # Each round has its own budget of failures; a round in which no job was begun is the last.
            while (taken := ray.get(self.broker.num_taken.remote(gang))) > taken_before:
                taken_before = taken
                try:
                    trainer.fit()
                    if not self._is_wanted_again(gang):
                        break
                    taken_before = -1
                except Exception as error:
                    reason = describe(error)
                    if self._closed.is_set():
                        return  # a call to Ray would start it anew
                    ray.get(self.broker.free_place.remote(gang))
            if not self._closed.is_set():
                ray.get(self.broker.gang_ended.remote(gang, reason))
        except ray.exceptions.RayError:
            return  # the broker is gone: the search is over

    def _is_wanted_again(self, gang: int) -> bool:
        """Whether a gang whose workers have ended shall start again: it was parked, and now jobs wait for it."""
        import ray

        if self._closed.is_set() or not ray.get(self.broker.is_parked.remote(gang)):
            return False
        while not self._closed.wait(1.0):
            if ray.get(self.broker.has_jobs_waiting.remote()):
                return True
        return False

    def run(self, job: Job, on_report: Callable[[Any], None] | None = None) -> Outcome:
        """Do one job outside the search and return its last report, or that it failed.

        `on_report` gets the reports before the last.
        """
        import ray

        ray.get(self.broker.submit.remote(job))
        while not (report := ray.get(self.broker.next.remote(job.job_id))).done:
            if on_report:
                on_report(report)
        return checked(job, report)

    def run_all(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Outcome, float]]:
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
            if report.done:
                start(1)
                yield job, checked(job, report), time.perf_counter() - began
            else:
                running[self.broker.next.remote(job.job_id)] = job, began


@contextmanager
def gangs_for(
    task: Task,
    gang: GangConfig,
    count: int,
    address: str | None,
    grow_to: Mapping[str, float] | None = None,
    say: Callable[[str], None] = lambda what: None,
    shared: Sequence[Path] = (),
) -> Iterator[Gangs]:
    """So many gangs for work outside a search, and the Ray cluster for as long. shared: see Gangs."""
    from ray_unlearn.gangs.session import park_seconds, ray_session

    with (
        tempfile.TemporaryDirectory(prefix="ray_unlearn-") as scratch,
        ray_session(gang, count, address, grow_to, say),
        Gangs(task, gang, count, Path(scratch), say, park_seconds=park_seconds(address), shared=shared) as gangs,
    ):
        yield gangs


def find_places() -> dict[str, str]:
    """The state of every place (Ray's placement group) that is asked for or taken on the cluster, by its id."""
    from ray.util import placement_group_table

    places = {place: info["state"] for place, info in placement_group_table().items()}
    return {place: state for place, state in places.items() if state != "REMOVED"}


def describe_wait(places: Sequence[str], count: int, wanted: str) -> str:
    """What is being waited for. places: states of those that `count` gangs have asked for; wanted: what one needs."""
    held = places.count("CREATED")
    waiting = len(places) - held
    since = f"waiting for {WAIT_SECONDS:g} s:"
    if held:
        others = f"; {waiting} more wait for {wanted} each" if waiting else ""
        return f"{since} {held} of {count} gang(s) have their places, and their workers are starting{others}"
    if waiting:
        return f"{since} no gang has a place yet. One needs {wanted}"
    return f"{since} the processes that lead the gangs are starting"

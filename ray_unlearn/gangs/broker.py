"""The broker between those who want jobs done and the gangs that do them."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from ray_unlearn.failures import LOST, MEMORY, RETRIES, Failure
from ray_unlearn.training.trial import Job

IDLE_SECONDS = 5.0
"""An idle gang's poll: short enough that no collective times out and that it ends soon when told."""
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

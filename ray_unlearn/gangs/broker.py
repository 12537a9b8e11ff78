"""The broker between those who want jobs done and the gangs that do them: one asyncio actor a search.

Reports are credit-based: a worker waits after each for the decision whether to go on. A job lives through the states of
JobState, a gang through those of GangState; every change goes through `move_to`, which knows which ones there are.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from pathlib import Path
from typing import Any

from ray_unlearn.failures import LOST, MEMORY, RETRIES, Failure
from ray_unlearn.gangs.saving import write_piece
from ray_unlearn.training.outcome import Failed, Outcome
from ray_unlearn.training.trial import Job

IDLE_SECONDS = 5.0
"""An idle gang's poll: short enough that no collective times out and that it ends soon when told."""
FEWEST_TOKENS = 32
"""Halving the tokens of a pass ends here."""
MAX_STARTS = 3
"""Starts of a gang without one job begun in between, after which it is given up. Jobs that kill their workers have
budgets of their own."""


class Order(Enum):
    """What a gang that asks for a job is told where there is none."""

    WAIT = auto()
    """Ask again."""
    EXIT = auto()


class JobState(Enum):
    QUEUED = auto()
    RUNNING = auto()
    """On a gang."""
    STOPPED = auto()
    """Nobody wants it any more; its gang learns that at its next report."""
    DONE = auto()
    """Its last report is there, or it has failed."""


class GangState(Enum):
    STARTING = auto()
    WORKING = auto()
    """Its workers are up, with or without a job."""
    PARKED = auto()
    """It has given its place back until jobs wait for it."""
    ENDED = auto()


JOB_MOVES: Mapping[JobState, set[JobState]] = {
    JobState.QUEUED: {JobState.RUNNING, JobState.STOPPED, JobState.DONE},
    JobState.RUNNING: {JobState.QUEUED, JobState.STOPPED, JobState.DONE},
    JobState.STOPPED: set(),
    JobState.DONE: set(),
}
GANG_MOVES: Mapping[GangState, set[GangState]] = {
    GangState.STARTING: {GangState.WORKING, GangState.ENDED},
    GangState.WORKING: {GangState.STARTING, GangState.PARKED, GangState.ENDED},
    GangState.PARKED: {GangState.WORKING, GangState.STARTING, GangState.ENDED},
    GangState.ENDED: set(),
}


@dataclass
class _Entry:
    """A job at the broker: reports on their way out, decisions on their way in."""

    job: Job
    state: JobState = JobState.QUEUED
    reports: asyncio.Queue[Outcome] = field(default_factory=asyncio.Queue)
    credit: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    num_reports: int = 0
    is_led: bool = True
    """Whether somebody asks for its reports."""
    max_tokens: int = 0
    """Tokens in a pass that it runs with."""
    failures: Counter[str] = field(default_factory=Counter)
    """How often it has failed so far, by kind."""

    @property
    def is_over(self) -> bool:
        return not JOB_MOVES[self.state]

    def move_to(self, state: JobState) -> None:
        """Raises ValueError for a move that there is not; to where it is already is none."""
        if state not in JOB_MOVES[self.state] | {self.state}:
            raise ValueError(f"job {self.job.job_id}: {self.state.name} cannot become {state.name}")
        self.state = state


@dataclass
class _Gang:
    """What the broker knows of one gang."""

    state: GangState = GangState.STARTING
    job_id: str | None = None
    """The job on it."""
    num_starts: int = 0
    """Since it last began a job."""
    num_taken: int = 0
    """Jobs that it has begun."""
    last_job: float = math.inf
    """When it last had one (monotonic seconds)."""
    death: Failure | None = None
    """Why its last workers died."""
    place: Any = None
    """Where its workers are: Ray's placement group."""

    def move_to(self, state: GangState) -> None:
        if state not in GANG_MOVES[self.state] | {self.state}:
            raise ValueError(f"a gang that is {self.state.name} cannot become {state.name}")
        self.state = state


class Broker:
    """Hands jobs to gangs and reports to whoever asked for the job."""

    def __init__(self, task: list[Any], num_gangs: int, max_tokens: int, park_seconds: float = 0.0) -> None:
        """park_seconds: without a job for so long, a gang may end for the time being; 0: it never does."""
        self._task, self._park_seconds, self._max_tokens = task, park_seconds, max_tokens
        self._notes: list[str] = []
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._entries: dict[str, _Entry] = {}
        self._gangs = [_Gang() for _ in range(num_gangs)]
        self._lost = ""
        self._is_closed = False

    async def task(self) -> list[Any]:
        return self._task

    # For those who want a job done

    async def submit(self, job: Job, is_led: bool = True) -> None:
        """is_led: whether the caller will ask for its reports; else it waits before its first for who adopts it."""
        self._entries[job.job_id] = _Entry(job, is_led=is_led)
        if self._has_gangs:
            await self._queue.put(job.job_id)
        else:
            self._fail(job.job_id, self._lost)

    async def adopt(self, job_id: str) -> bool:
        """Whether that job is here and nobody has led it: the caller does from now on."""
        entry = self._entries.get(job_id)
        if entry is None or entry.is_led or entry.state is JobState.STOPPED:
            return False
        entry.is_led = True
        return True

    async def next(self, job_id: str) -> Outcome:
        """The job's next report; asking for it is the decision to go on after the one before."""
        entry = self._entries[job_id]
        entry.credit.release()
        report = await entry.reports.get()
        if report.done:
            del self._entries[job_id]
        return report

    async def stop(self, job_id: str) -> None:
        entry = self._entries.get(job_id)
        if entry is not None and not entry.is_over:
            entry.move_to(JobState.STOPPED)
        if entry is not None:
            entry.credit.release()

    async def stop_trial(self, trial_id: str) -> None:
        """Stop every job of that trial."""
        for job_id, entry in list(self._entries.items()):
            if entry.job.trial is not None and entry.job.trial.trial_id == trial_id:
                await self.stop(job_id)

    async def drain_notes(self) -> tuple[list[str], int]:
        """(what the user should know since the last call, gangs whose workers are up)."""
        notes, self._notes = self._notes, []
        return notes, self._num_working

    async def close(self) -> None:
        self._is_closed = True
        for job_id in [job_id for job_id, entry in self._entries.items() if not entry.is_led]:
            await self.stop(job_id)
        for _ in self._gangs:  # no job's name: wakes a gang that waits for one
            self._queue.put_nowait("")

    # For the driver's threads, one a gang

    async def gang_ended(self, number: int, reason: str) -> None:
        """A gang is gone for good: its job goes to another one, or fails with all others if it was the last."""
        gang = self._gangs[number]
        if gang.state is GangState.ENDED:
            return  # its own workers have said why
        gang.move_to(GangState.ENDED)
        if self._has_gangs:
            self._notes.append(f"one gang less: {reason}")
        job_id, gang.job_id = gang.job_id, None
        if job_id in self._entries:
            self._put_back(self._entries[job_id])
        if not self._has_gangs:
            self._lost = reason
            while not self._queue.empty():
                self._fail(self._queue.get_nowait(), reason)

    async def is_parked(self, number: int) -> bool:
        """Whether that gang has ended for the time being."""
        return self._gangs[number].state is GangState.PARKED

    async def has_jobs_waiting(self) -> bool:
        return not self._queue.empty()

    async def workers_died(self, number: int, failure: Failure) -> None:
        """Why, as the gang's controller sees it; its workers start anew."""
        gang = self._gangs[number]
        if gang.state is not GangState.ENDED:
            gang.move_to(GangState.STARTING)
        gang.death = failure

    async def num_taken(self, number: int) -> int:
        """Jobs that this gang has begun."""
        return self._gangs[number].num_taken

    async def free_place(self, number: int) -> None:
        """The gang's controller has ended without a word, and nobody else would give back where its workers were."""
        from ray.util import remove_placement_group

        gang = self._gangs[number]
        if gang.place is not None:
            remove_placement_group(gang.place)
            gang.place = None

    # For rank 0 of a gang

    async def register(self, number: int, place: Any = None) -> bool:
        """A gang's workers have started, at that place; false when they have started too often for nothing."""
        gang = self._gangs[number]
        gang.place = place
        gang.num_starts += 1
        if gang.job_id is not None:  # the ones before them died over it
            job_id, gang.job_id = gang.job_id, None
            death, gang.death = gang.death, None
            await self._retry(job_id, death or Failure(LOST, "its workers' process ended"))
        if gang.state is GangState.ENDED:
            return False
        gang.move_to(GangState.WORKING)
        return gang.num_starts <= MAX_STARTS and not self._is_closed

    async def take(self, number: int) -> Job | Order:
        """The next job."""
        gang = self._gangs[number]
        job_id = gang.job_id
        if job_id is None:
            if self._is_closed:
                return Order.EXIT
            try:
                job_id = await asyncio.wait_for(self._queue.get(), IDLE_SECONDS)
            except TimeoutError:
                return Order.EXIT if self._parks(gang) else Order.WAIT
        entry = self._entries.get(job_id)
        if entry is None or entry.is_over:
            gang.job_id = None
            return Order.WAIT
        entry.move_to(JobState.RUNNING)
        entry.max_tokens = self._max_tokens
        gang.job_id, gang.num_starts, gang.last_job = job_id, 0, time.monotonic()
        gang.num_taken += 1
        return replace(entry.job, max_tokens=self._max_tokens)

    def _parks(self, gang: _Gang) -> bool:
        """Whether a gang without a job ends for now: it has had one, long ago, and others stay."""
        idle = time.monotonic() - gang.last_job
        if not self._park_seconds or idle < self._park_seconds or self._num_working < 2:
            return False
        gang.move_to(GangState.PARKED)
        return True

    async def report(self, number: int, job_id: str, place: int, report: Any) -> bool:
        """Hand over the job's report of that place (from 1); answers whether to go on."""
        gang, entry = self._gangs[number], self._entries.get(job_id)
        if entry is None or entry.state is JobState.STOPPED or self._is_closed:
            gang.job_id = None
            return False
        if place > entry.num_reports:
            entry.num_reports = place
            if place == 1:
                await entry.credit.acquire()
                if not entry.is_led:  # stopped before anybody was there to lead it
                    return self._leave(gang, job_id)
            if report.done:
                report = replace(report, retries=entry.failures.total())
            await entry.reports.put(report)
            if report.done:
                if not entry.is_over:
                    entry.move_to(JobState.DONE)
                gang.job_id, gang.last_job = None, time.monotonic()
                return False
            await entry.credit.acquire()
        return self._leave(gang, job_id) if entry.state is JobState.STOPPED else True

    async def receive(self, job_id: str, name: str, place: int, piece: bytes) -> None:
        """A piece of the model that the job was to save, from a node that does not see this one's disk."""
        entry = self._entries.get(job_id)
        if entry is not None and entry.job.save_to is not None:
            await asyncio.to_thread(write_piece, Path(entry.job.save_to), name, place, piece)

    async def fail(self, number: int, job_id: str, failure: Failure) -> None:
        """The job has failed here: it is over, or begins anew."""
        gang = self._gangs[number]
        if gang.job_id == job_id:
            gang.job_id = None
            await self._retry(job_id, failure)

    # Within

    @property
    def _has_gangs(self) -> bool:
        return any(gang.state is not GangState.ENDED for gang in self._gangs)

    @property
    def _num_working(self) -> int:
        return sum(gang.state is GangState.WORKING for gang in self._gangs)

    def _leave(self, gang: _Gang, job_id: str) -> bool:
        """The gang goes no further with a job that nobody wants any more."""
        self._entries.pop(job_id, None)
        gang.job_id = None
        return False

    def _put_back(self, entry: _Entry) -> None:
        if not entry.is_over:
            entry.move_to(JobState.QUEUED)
            self._queue.put_nowait(entry.job.job_id)

    async def _retry(self, job_id: str, failure: Failure) -> None:
        """Do the job once more, if its kind of failure has a retry left."""
        entry = self._entries.get(job_id)
        if entry is None or entry.is_over:
            return
        entry.failures[failure.kind] += 1
        is_over = entry.failures[failure.kind] > RETRIES[failure.kind]
        if failure.kind in MEMORY and not is_over:
            is_over = not self._halve(entry.max_tokens)
        if is_over:
            times = entry.failures[failure.kind]
            self._fail(job_id, f"{failure.error}{f' ({times} times)' if times > 1 else ''}", failure.kind)
        else:
            self._put_back(entry)

    def _halve(self, limit: int) -> bool:
        """Half the tokens in a pass for all, after a job has run out of memory with that limit; whether a smaller one
        is left. A limit that others have halved meanwhile is not halved again."""
        if self._max_tokens < limit:
            return True
        if self._max_tokens <= FEWEST_TOKENS:
            return False
        self._max_tokens = max(FEWEST_TOKENS, self._max_tokens // 2)
        self._notes.append(
            f"out of memory: from now on {self._max_tokens} tokens in one pass, with no effect on the loss"
        )
        return True

    def _fail(self, job_id: str, error: str, kind: str = LOST) -> None:
        entry = self._entries.get(job_id)
        if entry is not None and entry.state is not JobState.DONE:
            if not entry.is_over:
                entry.move_to(JobState.DONE)
            retries = entry.failures.total() - (entry.failures[kind] > 0)
            entry.reports.put_nowait(Failed(error, kind, retries))

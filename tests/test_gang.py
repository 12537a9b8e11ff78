"""The broker's protocol without Ray, and a real gang of two workers through its life."""

import asyncio
import dataclasses
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from ray_unlearn.config import GangConfig, TrialConfig
from ray_unlearn.failures import (
    DEVICE_MEMORY,
    HOST_MEMORY,
    INF,
    LOST,
    NAN,
    PREEMPTED,
    RAISED,
    RETRIES,
    TIMEOUT,
    Failure,
    NonFinite,
    kind_of,
    kind_of_death,
)
from ray_unlearn.gangs.broker import (
    FEWEST_TOKENS,
    GANG_MOVES,
    JOB_MOVES,
    MAX_STARTS,
    Broker,
    GangState,
    JobState,
    Order,
    _Entry,
)
from ray_unlearn.gangs.gangs import Gangs, describe_wait
from ray_unlearn.gangs.serve import describe
from ray_unlearn.training.outcome import Report, finished
from ray_unlearn.training.trial import Job
from tests.tiny import tiny_task


def point(done: bool = False) -> dict:
    return Report(1, {}, done)


async def taken(broker: Broker, gang: int = 0) -> Job:
    job = await broker.take(gang)
    assert isinstance(job, Job)
    return job


async def soon(awaitable):
    return await asyncio.wait_for(awaitable, 2)


def test_a_worker_waits_for_the_verdict_after_every_report():
    async def life():
        broker = Broker([], 1, 64)
        await broker.submit(Job("a"))
        await taken(broker)
        first = asyncio.create_task(broker.report(0, "a", 1, point()))
        await asyncio.sleep(0.05)
        assert not first.done()
        assert await soon(broker.next("a")) == point()
        await asyncio.sleep(0.05)
        assert not first.done(), "the report was read, but there is no verdict yet"
        second = asyncio.create_task(broker.next("a"))
        assert await soon(first) is True
        assert await soon(broker.report(0, "a", 2, point(done=True))) is False
        assert (await soon(second)).done

    asyncio.run(life())


def test_many_jobs_keep_every_gang_busy_and_come_back_as_they_end(monkeypatch):
    """Two gangs, five jobs; a stand-in for Ray hands out the latest job's report first."""
    submitted: list[str] = []
    most, open_jobs = 0, set()

    class Remote:
        def __init__(self, call):
            self.remote = call

    def submit(job):
        nonlocal most
        submitted.append(job.job_id)
        open_jobs.add(job.job_id)
        most = max(most, len(open_jobs))

    ray = SimpleNamespace(
        get=lambda value: value and Report(1, {}, True, notes=(value[1],)), wait=lambda refs: (refs[-1:], refs[:-1])
    )
    ask = Remote(lambda job_id: ("of", job_id))
    monkeypatch.setitem(sys.modules, "ray", ray)
    gangs = object.__new__(Gangs)
    gangs.count, gangs.broker = 2, SimpleNamespace(submit=Remote(submit), next=ask)
    ended = []
    for job, report, seconds in gangs.run_all(Job(name) for name in "abcde"):
        open_jobs.discard(job.job_id)
        assert report.notes == (job.job_id,)
        assert seconds >= 0
        ended.append(job.job_id)
    assert submitted == list("abcde")
    assert ended == list("bcdea")
    assert most == 3, "two, and the next one while the caller looks at the first that ended"


def test_a_stopped_job_ends_at_its_report_and_the_next_one_is_taken():
    async def life():
        broker = Broker([], 1, 64)
        for name in "ab":
            await broker.submit(Job(name))
        await taken(broker)
        report = asyncio.create_task(broker.report(0, "a", 1, point()))
        await soon(broker.next("a"))
        await broker.stop("a")
        assert await soon(report) is False
        assert (await soon(taken(broker))).job_id == "b"

    asyncio.run(life())


def test_a_job_in_flight_is_delivered_again_and_reported_once():
    async def life():
        broker = Broker([], 1, 64)
        await broker.submit(Job("a"))
        assert await broker.register(0)
        await taken(broker)
        reading = asyncio.create_task(broker.next("a"))
        waiting = asyncio.create_task(broker.report(0, "a", 1, point()))
        await soon(reading)
        waiting.cancel()  # its worker dies
        assert await broker.register(0)
        assert (await soon(taken(broker))).job_id == "a"
        assert await soon(broker.report(0, "a", 1, point())) is True, "told before, so there is nothing to wait for"
        reading = asyncio.create_task(broker.next("a"))
        await soon(broker.report(0, "a", 2, point(done=True)))
        assert (await soon(reading)).done

    asyncio.run(life())


def test_a_job_that_keeps_killing_its_workers_fails_and_the_gang_goes_on():
    async def life():
        broker = Broker([], 1, 64)
        await broker.submit(Job("a"))
        reading = asyncio.create_task(broker.next("a"))
        for _ in range(RETRIES[LOST] + 1):
            assert await broker.register(0)
            await taken(broker)
        assert await broker.register(0)
        report = await soon(reading)
        assert (report.failure, report.retries) == (LOST, RETRIES[LOST])
        await broker.submit(Job("b"))
        assert (await soon(taken(broker))).job_id == "b"

    asyncio.run(life())


@pytest.mark.parametrize(("kind", "tries"), [(kind, RETRIES[kind] + 1) for kind in (NAN, RAISED, TIMEOUT)])
def test_a_job_is_tried_again_as_often_as_its_kind_of_failure_allows(kind, tries):
    async def life():
        broker = Broker([], 1, 64)
        await broker.submit(Job("a"))
        for _ in range(tries):
            await taken(broker)
            await broker.fail(0, "a", Failure(kind, "what happened"))
        report = await soon(broker.next("a"))
        assert report.failure == kind
        assert report.retries == tries - 1
        assert report.error.startswith("what happened")

    asyncio.run(life())


def test_out_of_memory_halves_the_tokens_of_a_pass_for_all_and_says_it():
    async def life():
        broker = Broker([], 1, 100)
        await broker.submit(Job("a"))
        assert (await taken(broker)).max_tokens == 100
        await broker.fail(0, "a", Failure(DEVICE_MEMORY, "CUDA out of memory"))
        assert (await taken(broker)).max_tokens == 50
        notes, _ = await broker.drain_notes()
        assert len(notes) == 1
        assert "50 tokens" in notes[0]
        await broker.fail(0, "a", Failure(DEVICE_MEMORY, "CUDA out of memory"))
        assert (await taken(broker)).max_tokens == FEWEST_TOKENS
        await broker.fail(0, "a", Failure(DEVICE_MEMORY, "CUDA out of memory"))
        report = await soon(broker.next("a"))
        assert report.failure == DEVICE_MEMORY, "no smaller pass is left"

    asyncio.run(life())


def test_a_preempted_node_costs_a_job_none_of_its_other_retries():
    async def life():
        broker = Broker([], 1, 64)
        await broker.submit(Job("a"))
        for _ in range(5):
            assert await broker.register(0)
            await taken(broker)
            await broker.workers_died(0, Failure(PREEMPTED, "the node was preempted"))
        await broker.register(0)
        assert (await soon(taken(broker))).job_id == "a"

    asyncio.run(life())


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NonFinite("loss", is_nan=True), NAN),
        (NonFinite("loss", is_nan=False), INF),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), HOST_MEMORY),
        (MemoryError(), HOST_MEMORY),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), DEVICE_MEMORY),
        (ValueError("bad"), RAISED),
    ],
)
def test_a_failure_is_told_by_what_was_raised(error, kind):
    assert kind_of(error) == kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("The node was preempted"), PREEMPTED),
        (RuntimeError("Task was killed due to the node running low on memory"), HOST_MEMORY),
        (RuntimeError("The actor died unexpectedly"), LOST),
    ],
)
def test_a_death_is_told_by_what_ray_says(error, kind):
    assert kind_of_death(error) == kind


def test_a_gang_that_starts_for_nothing_is_given_up():
    async def life():
        broker = Broker([], 1, 64)
        answers = [await broker.register(0) for _ in range(MAX_STARTS + 1)]
        assert answers == [True] * MAX_STARTS + [False]

    asyncio.run(life())


def test_a_gang_whose_jobs_are_stopped_has_not_started_for_nothing():
    async def life():
        broker = Broker([], 1, 64)
        for start in range(2 * MAX_STARTS):
            assert await broker.register(0)
            name = str(start)
            await broker.submit(Job(name))
            await taken(broker)
            report = asyncio.create_task(broker.report(0, name, 1, point()))
            await soon(broker.next(name))
            await broker.stop(name)
            assert await soon(report) is False
        assert await broker.num_taken(0) == 2 * MAX_STARTS

    asyncio.run(life())


def test_when_the_last_gang_is_gone_every_job_fails_with_the_reason():
    async def life():
        broker = Broker([], 2, 64)
        for name in "ab":
            await broker.submit(Job(name))
        await taken(broker, gang=0)
        await broker.gang_ended(0, "no memory")
        await broker.gang_ended(1, "no memory")
        await broker.submit(Job("c"))
        for name in "abc":
            assert (await soon(broker.next(name))).error == "no memory"

    asyncio.run(life())


def test_a_client_that_vanished_does_not_keep_the_gang_once_its_job_is_stopped():
    async def life():
        broker = Broker([], 1, 64)
        for name in "ab":
            await broker.submit(Job(name))
        await taken(broker)
        waiting = asyncio.create_task(broker.report(0, "a", 1, point()))
        reader = asyncio.create_task(broker.next("a"))
        await asyncio.sleep(0.05)
        reader.cancel()
        await broker.stop("a")
        assert await soon(waiting) is False
        assert (await soon(taken(broker))).job_id == "b"

    asyncio.run(life())


def test_a_job_that_runs_before_anybody_leads_it_waits_at_its_first_report_for_the_one_who_adopts_it():
    async def life():
        broker = Broker([], 1, 64)
        await broker.submit(Job("a"), is_led=False)
        await taken(broker)
        report = asyncio.create_task(broker.report(0, "a", 1, point()))
        await asyncio.sleep(0.05)
        assert not report.done()
        assert await broker.adopt("a")
        assert not await broker.adopt("a"), "by whoever begins the trial anew"
        assert await soon(broker.next("a")) == point()
        last = asyncio.create_task(broker.next("a"))
        assert await soon(report) is True
        assert await soon(broker.report(0, "a", 2, point(done=True))) is False
        assert (await soon(last)).done
        assert not await broker.adopt("a")

    asyncio.run(life())


@pytest.mark.parametrize("end", ["stop_trial", "close"])
@pytest.mark.parametrize("done", [False, True])
def test_a_job_that_nobody_came_to_lead_does_not_keep_its_gang(end, done):
    async def life():
        broker = Broker([], 1, 64)
        trial = TrialConfig("simnpo-0000", "simnpo")
        await broker.submit(Job("a", trial=trial), is_led=False)
        await broker.submit(Job("b"))
        await taken(broker)
        report = asyncio.create_task(broker.report(0, "a", 1, point(done)))
        await asyncio.sleep(0.05)
        await (broker.close() if end == "close" else broker.stop_trial(trial.trial_id))
        assert not await broker.adopt("a")
        assert await soon(report) is False
        assert await soon(broker.take(0)) == (Order.EXIT if end == "close" else Job("b", max_tokens=64))

    asyncio.run(life())


def test_a_closed_broker_ends_the_trial_in_flight_and_the_gang():
    async def life():
        broker = Broker([], 1, 64)
        await broker.submit(Job("a"))
        await taken(broker)
        await broker.close()
        assert await soon(broker.report(0, "a", 1, point())) is False
        assert await soon(broker.take(0)) == Order.EXIT

    asyncio.run(life())


def test_a_gang_without_work_rests_beside_others_and_comes_back_for_waiting_jobs(monkeypatch):
    monkeypatch.setattr("ray_unlearn.gangs.broker.IDLE_SECONDS", 0.02)

    async def life():
        broker = Broker([], 2, 64, park_seconds=0.05)
        for gang in (0, 1):
            assert await broker.register(gang)
        await asyncio.sleep(0.1)
        assert await broker.take(1) == Order.WAIT, "it has not had its first job yet"
        for gang, name in enumerate("ab"):
            await broker.submit(Job(name))
            await taken(broker, gang)
            report = asyncio.create_task(broker.report(gang, name, 1, point(done=True)))
            await soon(broker.next(name))
            await soon(report)
        assert await broker.take(0) == Order.WAIT, "it has just had a job"
        await asyncio.sleep(0.1)
        assert await broker.take(0) == Order.EXIT
        assert await broker.is_parked(0)
        assert await broker.take(1) == Order.WAIT, "the last one stays"
        assert not await broker.has_jobs_waiting()
        await broker.submit(Job("c"))
        assert await broker.has_jobs_waiting()
        assert await broker.register(0)
        assert not await broker.is_parked(0)
        assert (await soon(taken(broker))).job_id == "c"

    asyncio.run(life())


@pytest.mark.parametrize(
    ("places", "says"),
    [
        ([], "waiting for 60 s: the processes that lead the gangs are starting"),
        (["PENDING"], "waiting for 60 s: no gang has a place yet. One needs 1 CPU (0 of 4 free)"),
        (["CREATED"] * 3, "waiting for 60 s: 3 of 3 gang(s) have their places, and their workers are starting"),
        (["CREATED", "PENDING"], "starting; 1 more wait for 1 CPU (0 of 4 free) each"),
    ],
)
def test_what_is_waited_for_is_said_as_it_is(places, says):
    assert describe_wait(places, 3, "1 CPU (0 of 4 free)").endswith(says)


def test_an_error_is_described_on_one_line():
    with pytest.raises(ValueError, match="two") as raised:
        raise ValueError("two\nlines")
    assert describe(raised.value).startswith("ValueError: two lines (test_gang.py:")


TRIAL = TrialConfig("a", "npo", {"beta": 0.1}, 1.0, 3e-3, epochs=3, batch_size=8, evaluations=3)


BESIDE = ("ray::TrainContr", "ray::DatasetMan", "ray::PlacementG")
"""As the system cuts their names."""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_real_gang_serves_prunes_fails_survives_and_repeats_a_trial_exactly(tiny_model, monkeypatch):
    import psutil
    import ray

    from ray_unlearn.gangs import gangs as gangs_module
    from ray_unlearn.gangs.gangs import find_places
    from ray_unlearn.gangs.session import ray_session

    config = GangConfig(num_workers=2, zero_stage=3, max_tokens=100)
    said: list[str] = []
    monkeypatch.setattr(gangs_module, "WAIT_SECONDS", 1.0)
    with (
        tempfile.TemporaryDirectory() as scratch,
        ray_session(config, 1, None),
        Gangs(tiny_task(tiny_model), config, 1, Path(scratch), said.append) as gangs,
    ):

        def scores(name: str, trial: TrialConfig = TRIAL) -> tuple:
            report = finished(gangs.run(Job(name, trial)), name)
            return report.forget_loss, report.retain_loss, report.profiles

        first = scores("first")
        assert said[0].startswith("waiting for 1 s: ")
        assert said[0].endswith("starting"), "nothing was missing"

        ray.get(gangs.broker.submit.remote(Job("pruned", dataclasses.replace(TRIAL, learning_rate=1e-2))))
        assert not ray.get(gangs.broker.next.remote("pruned")).done
        ray.get(gangs.broker.stop.remote("pruned"))
        assert scores("after a pruned trial") == first

        wild = dataclasses.replace(TRIAL, method="ga", parameters={}, learning_rate=1e8, max_grad_norm=0.0)
        assert "NonFinite" in gangs.run(Job("wild", wild)).error
        assert scores("after a diverged trial") == first

        broken = gangs.run(Job("broken", dataclasses.replace(TRIAL, parameters={"temperature": 1.0})))
        assert "TypeError" in broken.error
        assert scores("after a restart of the gang") == first

        beside = {name: [p for p in psutil.Process().children(recursive=True) if name in p.name()] for name in BESIDE}
        assert [len(found) for found in beside.values()] == [1, 0, 0]
        beside["ray::TrainContr"][0].kill()
        assert scores("after its controller's death") == first
        assert len(find_places()) == 1, "the place of those who died is free"


@pytest.mark.parametrize(("kinds", "moves"), [(JobState, JOB_MOVES), (GangState, GANG_MOVES)])
def test_every_state_has_its_moves_and_an_end_can_be_reached_from_each(kinds, moves):
    assert set(moves) == set(kinds)
    ends = {state for state, after in moves.items() if not after}
    assert ends
    for state in kinds:
        seen, left = set(), [state]
        while left:
            here = left.pop()
            seen.add(here)
            left += moves[here] - seen
        assert seen & ends, state


@pytest.mark.parametrize("state", JobState)
@pytest.mark.parametrize("after", JobState)
def test_a_job_makes_the_moves_in_the_table_and_no_others(state, after):
    entry = _Entry(Job("a"), state)
    if after in JOB_MOVES[state] | {state}:
        entry.move_to(after)
        assert entry.state is after
    else:
        with pytest.raises(ValueError, match=f"{state.name} cannot become {after.name}"):
            entry.move_to(after)


def test_out_of_memory_on_many_gangs_at_once_halves_the_tokens_once_and_loses_no_job():
    """All of them ran with the same limit: only the first failure lowers it."""

    async def life():
        broker = Broker([], 16, 16_384)
        names = [f"job-{i}" for i in range(16)]
        for name in names:
            await broker.submit(Job(name))
        for gang in range(16):
            assert (await broker.take(gang)).max_tokens == 16_384
        for gang, name in enumerate(names):
            await broker.fail(gang, name, Failure(DEVICE_MEMORY, "CUDA out of memory"))
        again = [await broker.take(gang) for gang in range(16)]
        assert {job.max_tokens for job in again} == {8192}
        assert sorted(job.job_id for job in again) == sorted(names)
        notes, _ = await broker.drain_notes()
        assert len(notes) == 1

    asyncio.run(life())

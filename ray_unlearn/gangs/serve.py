"""What every worker of a gang runs: take a job from the broker, run it, report."""

from __future__ import annotations

import gc
import os
import threading
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_unlearn.failures import MEMORY, TIMEOUT, Failure, NonFinite, kind_of
from ray_unlearn.gangs.broker import Order
from ray_unlearn.gangs.saving import describe_unseen, find_unseen, own_disk, send_folder
from ray_unlearn.training.outcome import Report
from ray_unlearn.training.trial import Job, run_trial

if TYPE_CHECKING:
    from ray_unlearn.training.worker import Worker


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

    # Before DeepSpeed is imported: a CPU's worker may see GPUs, which Ray does not hide from it.
    os.environ["DS_ACCELERATOR"] = get_device().type
    from ray_unlearn.training.worker import Worker

    broker, gang = settings["broker"], settings["gang"]
    rank, num_workers = train.get_context().get_world_rank(), train.get_context().get_world_size()

    def from_first(value: Any) -> Any:
        box = [value]
        if num_workers > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    place = ray.util.get_current_placement_group()
    if not from_first(ray.get(broker.register.remote(gang, place)) if rank == 0 else None):
        return
    if not from_first(_sees_folders(settings) if rank == 0 else None):
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
        if command is Order.EXIT:
            return
        if command is Order.WAIT:
            continue
        _do(worker, command, settings, from_first)


def _do(worker: Worker, job: Job, settings: Mapping[str, Any], from_first: Callable[[Any], Any]) -> None:
    """Run one job, and tell the broker how it goes. Raises what the gang cannot go on after. from_first: gives every
    worker what the first one has."""
    import ray

    broker, gang, rank = settings["broker"], settings["gang"], worker.rank
    is_first, number = rank.number == 0, 0
    sends = settings["config"].through_driver and job.save_to is not None

    def report(place: str | None, values: Report) -> bool:
        nonlocal number
        number += 1
        if is_first and values.done and sends and place is not None:
            send_folder(Path(place), lambda *piece: ray.get(broker.receive.remote(job.job_id, *piece)))
        return bool(from_first(ray.get(broker.report.remote(gang, job.job_id, number, values)) if is_first else None))

    def give_up(failure: Failure) -> None:
        ray.get(broker.fail.remote(gang, job.job_id, failure))

    failure = None
    try:
        with _Watchdog(settings["timeout"] if is_first else 0.0, give_up), own_disk(job, sends) as local:
            run_trial(worker, local, partial(report, local.save_to))
    except Exception as error:
        failure = Failure(kind_of(error), describe(error))
        is_shared = isinstance(error, NonFinite)
        if not is_shared and (rank.num_workers > 1 or may_break_the_process(error)):
            # The others wait for this one in a collective, or the device is lost: a new start is the way out.
            give_up(failure)
            raise
        # All workers raised it together: the trial is over, the gang goes on.
        if is_first:
            give_up(failure)
    if failure is not None and failure.kind in MEMORY:
        rank.free_memory()


def _sees_folders(settings: Mapping[str, Any]) -> bool:
    """Whether this node sees the folders that models go to. The gang is over where it does not: it would save them
    where nobody looks for them."""
    import ray

    unseen = find_unseen(settings["tokens"])
    if unseen:
        reason = describe_unseen(ray.util.get_node_ip_address(), unseen)
        ray.get(settings["broker"].gang_ended.remote(settings["gang"], reason))
    return not unseen


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

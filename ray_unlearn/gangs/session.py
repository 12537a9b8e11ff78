"""The connection to Ray: a cluster that is there, or one of our own that ends with us."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import ray

from ray_unlearn.byte_code import AGENT_LIMIT, agent_seconds, end_load
from ray_unlearn.config import GangConfig
from ray_unlearn.hardware import granted_cpus
from ray_unlearn.interruption import is_ending, signals_end_at_once

ENVIRONMENT = {
    # train.report blocks until the controller's next poll, and a gang ends only at one: 2 s by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Every result reaches us through our own callback, at once.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    # Tune's own state of all trials, which nobody reads: written once, at the end, and not again and again.
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # What trials print goes to our log once a worker; deprecations of torch by DeepSpeed are not the user's.
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
}
PARK_SECONDS = 120.0
"""On a cluster that others may use, a gang without a job for so long gives its place back until jobs wait again."""
ACCELERATOR = "accelerator_type:"
"""What the resource begins with by which Ray says that a node has GPUs of a kind."""
SLIVER = 0.01
"""CPUs of one Tune actor, which only waits for reports."""
_started_ahead = contextlib.ExitStack()
"""Closed, it puts the signals' own handlers back, and waits until the start is over."""
_failed_ahead: list[Exception] = []
"""What the start ahead raised."""


@contextlib.contextmanager
def ray_session(
    gang: GangConfig,
    count: int,
    address: str | None,
    grow_to: Mapping[str, float] | None = None,
    say: Callable[[str], None] = lambda what: None,
) -> Iterator[None]:
    """Connect to the cluster at `address`, or start one on this machine, with room for `count` gangs.

    grow_to: what an autoscaler may bring the cluster to, by resource. say: gets what the user should know of a slow
    start. Raises RuntimeError naming what is missing where the cluster has too little, or does not start.
    """
    _started_ahead.close()
    failed = _failed_ahead.pop() if _failed_ahead else None
    on_terminate = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    if not ray.is_initialized():
        if address is None:
            _start_own(gang, count, say, failed)
        else:
            _start(gang, count, address)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray's own would exit with 15, or abort after 3 s
    try:
        check_room(gang, count, find_nodes(gang.accelerator), grow_to or {})
        _start_coordinator()
        yield
    finally:
        if not is_ending():
            ray.shutdown()


def start_ahead(gang: GangConfig, count: int) -> None:
    """Begin to start the cluster of our own that the next `ray_session` wants, beside what this process does until
    then: half a dozen processes take seconds to come up. Until then Ctrl-C and SIGTERM end this process at once."""
    is_over = threading.Event()

    def start() -> None:
        try:
            _start(gang, count, None)
        except Exception as error:  # ray_session tries once more
            _failed_ahead[:] = [error]
        is_over.set()
        threading.Event().wait()  # Ray has its processes killed with the thread that started them

    _failed_ahead.clear()
    _started_ahead.callback(is_over.wait)
    _started_ahead.enter_context(signals_end_at_once())
    threading.Thread(target=start, daemon=True, name="start Ray").start()


def _start_own(gang: GangConfig, count: int, say: Callable[[str], None], failed: Exception | None) -> None:
    """Start a cluster on this machine, in two attempts, of which the first may have failed already. Raises
    RuntimeError, with what was slow and what helps, where Ray is not up in its own time at the second."""
    if failed is None:
        try:
            _start(gang, count, None)
            return
        except Exception as error:
            failed = error
            if not was_slow(error):
                raise
    if was_slow(failed):
        say(f"Ray was not up in its own time ({_describe_slowness()}). Starting it once more")
    try:
        _start(gang, count, None)
    except Exception as error:
        if not was_slow(error):
            raise
        raise RuntimeError(
            f"Ray was not up in its own time, twice ({_describe_slowness()}). Have the Python environment on a local "
            "disk and with byte code, and fewer jobs beside this one; `ray_unlearn doctor` measures it"
        ) from error


def was_slow(error: Exception) -> bool:
    """Whether that is what Ray raises where one of its processes was not up in time: an Exception of no kind."""
    return type(error) is Exception or "timed out" in str(error).lower()


def _describe_slowness() -> str:
    """What the start depends on, as it is now. Measuring it brings the agent's files into memory for the next."""
    seconds = agent_seconds()
    load = "fails" if seconds is None else f"takes {seconds:.0f} s" if seconds >= 10 else f"takes {seconds:.1f} s"
    busy = f", {os.getloadavg()[0]:.0f} processes want {os.cpu_count()} CPUs" if hasattr(os, "getloadavg") else ""
    return f"it allows {AGENT_LIMIT} s for loading its agent, which now {load}{busy}"


def _start(gang: GangConfig, count: int, address: str | None) -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address is not None:
        ray.init(address=address, logging_level=logging.WARNING)
    else:
        end_load()
        cpus = gang.num_workers * count * gang.cpus_per_worker
        ray.init(
            address="local",
            # Beside the workers: a sliver of a CPU for each of Tune's actors and the trainers' controllers.
            num_cpus=int(max(granted_cpus(), cpus)) + 1 + count,
            include_dashboard=False,
            logging_level=logging.WARNING,
            _temp_dir=os.environ.get("RAY_TMPDIR"),
        )


def _start_coordinator() -> None:
    """Start the actor that every trainer's controller first waits for, beside the controller and not after it."""
    with contextlib.suppress(ImportError):  # a place inside Ray, which may move: then it starts when it is asked for
        from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator

        default_autoscaling_coordinator.get_or_create_autoscaling_coordinator()


def park_seconds(address: str | None) -> float:
    """After how long without a job a gang gives its place back; 0, never, where the cluster is our own."""
    return PARK_SECONDS if address else 0.0


def find_nodes(accelerator: str = "") -> list[Mapping[str, float]]:
    """The resources of each living node of the cluster that is connected to; with an accelerator, of those with it."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [resources for resources in alive if not accelerator or f"{ACCELERATOR}{accelerator}" in resources]


def find_accelerators() -> list[str]:
    """What kinds of GPUs the cluster's nodes have."""
    return sorted({n.removeprefix(ACCELERATOR) for node in find_nodes() for n in node if n.startswith(ACCELERATOR)})


def capacity(nodes: Sequence[Mapping[str, float]], grow_to: Mapping[str, float], name: str) -> float:
    """How much of that resource the nodes have together, or will have when the cluster has grown."""
    return max(sum(node.get(name, 0.0) for node in nodes), grow_to.get(name, 0.0))


def check_room(
    gang: GangConfig, count: int, nodes: Sequence[Mapping[str, float]], grow_to: Mapping[str, float]
) -> None:
    """Raise RuntimeError where so many gangs would wait for ever: they ask for more than there is or will be, or one
    worker asks for more than any node has. (Which nodes an autoscaler may bring cannot be known.)

    A gang is packed on one node where it fits and spread over several where it must be; a worker is never split.
    """
    where = f" on nodes with {gang.accelerator}" if gang.accelerator else ""
    each = {"CPU": gang.cpus_per_worker, "GPU": gang.gpus_per_worker}
    for name, amount in each.items():
        most = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if amount > most and name not in grow_to:
            raise RuntimeError(
                f"one worker needs {amount:g} {name}, and no node of the Ray cluster has more than {most:g}{where}. "
                "Lower --gpus-per-worker, or add such a node"
            )
        needed = gang.num_workers * count * amount
        if name == "CPU" and not gang.accelerator:
            # Tune's own actors need a sliver beside the workers: at the last CPU they would wait for ever.
            needed += SLIVER * count
        have = capacity(nodes, grow_to, name)
        if needed > have:
            raise RuntimeError(
                f"the Ray cluster has {have:g} {name}{where}, and {count} gang(s) of {gang.num_workers} worker(s) need "
                f"{needed:g}. Lower --concurrent or the number of workers, or say with --grow-to what may come"
            )

"""The connection to Ray: a cluster that is there, or one of our own that ends with us."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import ray

from ray_unlearn.config import GangConfig

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

REST_SECONDS = 120.0
"""On a cluster that others may use, a gang without a job for so long gives its place back until jobs wait again."""
SLIVER = 0.01
"""CPUs of one Tune actor, which only waits for reports."""


@contextlib.contextmanager
def ray_session(gang: GangConfig, count: int, address: str | None) -> Iterator[None]:
    """Connect to the cluster at `address`, or start one on this machine, with room for `count` gangs.

    Raises RuntimeError naming what is missing where the cluster has too little.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    cpus = gang.num_workers * count * gang.cpus_per_worker
    if address is None:
        # Beside the workers: a sliver of a CPU for each of Tune's actors and the trainers' controllers.
        ray.init(
            address="local",
            num_cpus=int(max(os.cpu_count() or 1, cpus)) + 1 + count,
            include_dashboard=False,
            logging_level=logging.WARNING,
            _temp_dir=os.environ.get("RAY_TMPDIR"),
        )
    else:
        ray.init(address=address, logging_level=logging.WARNING)
    try:
        capacity = find_capacity()
        # Tune's own actors need a sliver beside the workers: at the last CPU they would wait for ever.
        needs = {"CPU": cpus + SLIVER * count, "GPU": gang.num_workers * count * gang.gpus_per_worker}
        for name, amount in needs.items():
            if amount > capacity.total.get(name, 0.0):
                raise RuntimeError(
                    f"the Ray cluster has {capacity.total.get(name, 0.0):g} {name}, and {count} gang(s) of "
                    f"{gang.num_workers} worker(s) need {amount:g}. Lower --concurrent or the number of workers"
                )
        check_nodes(gang, capacity.nodes)
        _start_coordinator()
        yield
    finally:
        ray.shutdown()


def _start_coordinator() -> None:
    """Start the actor that every trainer's controller first waits for, beside the controller and not after it."""
    with contextlib.suppress(ImportError):  # a place inside Ray, which may move: then it starts when it is asked for
        from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator

        default_autoscaling_coordinator.get_or_create_autoscaling_coordinator()


def rest_seconds(address: str | None) -> float:
    """After how long without a job a gang gives its place back; 0, never, where the cluster is our own."""
    return REST_SECONDS if address else 0.0


@dataclass(frozen=True)
class Capacity:
    """What a cluster has, or may grow to where it scales by itself."""

    total: Mapping[str, float]
    nodes: Sequence[Mapping[str, float]]
    """Of every node that is there, and one of each kind that may come."""


def find_capacity() -> Capacity:
    """Of the cluster that is connected to."""
    # Ray Train asks the same way what an autoscaler may bring; there is no public one.
    config = ray._private.state.state.get_cluster_config()
    kinds = [(group.max_count, dict(group.resources)) for group in config.node_group_configs] if config else []
    return grown([node["Resources"] for node in ray.nodes() if node["Alive"]], kinds)


def grown(nodes: Sequence[Mapping[str, float]], kinds: Sequence[tuple[int, Mapping[str, float]]]) -> Capacity:
    """Of nodes that are there and kinds of nodes that an autoscaler may bring, each with its most (below 0: any)."""
    kinds = [(sys.maxsize if most < 0 else most, resources) for most, resources in kinds if most]
    total: dict[str, float] = {}
    for name in {name for node in [*nodes, *(resources for _, resources in kinds)] for name in node}:
        now = sum(node.get(name, 0.0) for node in nodes)
        # The head is there in any case, and is none of those that come.
        head = sum(node.get(name, 0.0) for node in nodes if "node:__internal_head__" in node)
        total[name] = max(now, head + sum(most * resources.get(name, 0.0) for most, resources in kinds))
    return Capacity(total, [*nodes, *(resources for _, resources in kinds)])


def check_nodes(gang: GangConfig, nodes: Sequence[Mapping[str, float]]) -> None:
    """Raise RuntimeError where one worker asks for more than any node (by resource) has: it would wait for ever.

    A gang is packed on one node where it fits and spread over several where it must be; a worker is never split.
    """
    for name, amount in {"CPU": gang.cpus_per_worker, "GPU": gang.gpus_per_worker}.items():
        most = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if amount > most:
            raise RuntimeError(
                f"one worker needs {amount:g} {name}, and no node of the Ray cluster has more than {most:g}. Lower "
                "--gpus-per-worker, or add such a node"
            )

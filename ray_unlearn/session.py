"""The connection to Ray: a cluster that is there, or one of our own that ends with us."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence

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
        have = ray.cluster_resources()
        # Tune's own actors need a sliver beside the workers: at the last CPU they would wait for ever.
        needs = {"CPU": cpus + SLIVER * count, "GPU": gang.num_workers * count * gang.gpus_per_worker}
        for name, amount in needs.items():
            if amount > have.get(name, 0.0):
                raise RuntimeError(
                    f"the Ray cluster has {have.get(name, 0.0):g} {name}, and {count} gang(s) of {gang.num_workers} "
                    f"worker(s) need {amount:g}. Lower --concurrent or the number of workers"
                )
        check_nodes(gang, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        yield
    finally:
        ray.shutdown()


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

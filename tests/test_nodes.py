"""Searches on a cluster of several nodes: real raylets on this machine, each with its own CPUs."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_unlearn.results import read_search

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]
OPTIONS = (
    "--benchmark",
    "synthetic",
    "--scale",
    "mini",
    "--methods",
    "npo",
    "--sampler",
    "qmc",
    "--robustness",
    "none",
)


@pytest.fixture
def start_cluster() -> Iterator:
    """Start a head and nodes with so many CPUs each; the cluster."""
    from ray.cluster_utils import Cluster

    started = []
    folder = tempfile.mkdtemp(prefix="n")  # short: Ray's sockets lie in it

    def start(head: float, *nodes: float) -> Cluster:
        # The first node's arguments make the session; its folder holds every node's sockets.
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": head,
                "include_dashboard": False,
                "temp_dir": folder,
                "object_store_memory": 80 * 2**20,
            },
        )
        started.append(cluster)
        for cpus in nodes:
            cluster.add_node(num_cpus=cpus, object_store_memory=80 * 2**20)
        return cluster

    yield start
    for cluster in started:
        cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def tune(out: Path, *options: str, expect: int = 0) -> tuple[str, Path | None]:
    """(everything that it printed, the search's folder)."""
    command = [sys.executable, "-m", "ray_unlearn.cli", "tune", *OPTIONS, *options, "--out", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
    assert run.returncode == expect, run.stdout + run.stderr
    return run.stdout + run.stderr, next((path.parent for path in out.glob("*/search.json")), None)


def scores(folder: Path | None) -> list[dict]:
    assert folder is not None
    varying = ("seconds", "memory", "retries")
    return [
        {k: v for k, v in row.items() if not any(part in k for part in varying)} for row in read_search(folder).trials
    ]


def test_gangs_that_must_be_spread_over_nodes_compute_what_they_compute_on_one(tmp_path, start_cluster):
    options = ("--trials", "2", "--workers-per-trial", "2", "--zero", "2", "--concurrent", "1")
    _, alone = tune(tmp_path / "alone", *options)
    cluster = start_cluster(1, 1, 1)
    _, spread = tune(tmp_path / "spread", *options, "--address", cluster.address)
    assert scores(spread) == scores(alone)
    assert len(scores(spread)) == 2
    assert cluster.address not in json.dumps(json.loads((spread / "search.json").read_text())["config"])


@pytest.mark.slowest
def test_more_gangs_than_places_are_refused_at_once(tmp_path, start_cluster):
    cluster = start_cluster(1, 1)
    said, _ = tune(tmp_path, "--trials", "2", "--concurrent", "9", "--address", cluster.address, expect=1)
    assert "Lower --concurrent" in said


@pytest.mark.slowest
def test_more_trials_than_places_wait_for_their_turn_and_all_come_to_their_end(tmp_path, start_cluster):
    cluster = start_cluster(1, 1)
    _, folder = tune(tmp_path, "--trials", "5", "--concurrent", "1", "--address", cluster.address)
    assert [row["status"] for row in read_search(folder).trials] == ["completed"] * 5

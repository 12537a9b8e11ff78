"""Searches on a cluster of several nodes: real raylets on this machine, each with its own CPUs."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ray_unlearn.records.tables import read_search
from tests.heads import Head, free_ports, running_head

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


def tune(out: Path, *options: str, expect: int = 0, **environment: str) -> tuple[str, Path | None]:
    """(everything that it printed, the search's folder)."""
    command = [sys.executable, "-m", "ray_unlearn.cli", "tune", *OPTIONS, *options, "--out", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert run.returncode == expect, run.stdout + run.stderr
    return run.stdout + run.stderr, next((path.parent for path in out.glob("*/search.json")), None)


def scores(folder: Path | None) -> list[dict]:
    assert folder is not None
    varying = ("seconds", "memory", "retries")
    return [
        {k: v for k, v in row.items() if not any(part in k for part in varying)} for row in read_search(folder).trials
    ]


@pytest.mark.slowest
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


@pytest.mark.slowest
def test_gangs_lie_on_nodes_with_the_accelerator_that_was_asked_for(tmp_path, start_cluster):
    cluster = start_cluster(1, 1)
    cluster.add_node(num_cpus=1, resources={"accelerator_type:K9": 1}, object_store_memory=80 * 2**20)
    options = ("--trials", "1", "--concurrent", "1", "--address", cluster.address, "--accelerator")
    _, folder = tune(tmp_path, *options, "K9")
    assert [row["status"] for row in read_search(folder).trials] == ["completed"]
    said, _ = tune(tmp_path, *options, "K8", expect=2)
    assert "--accelerator K8: no node of the cluster has it. There is: K9" in said


@pytest.mark.slowest
def test_two_searches_share_a_cluster_and_the_second_waits_for_its_turn(tmp_path, start_cluster):
    cluster = start_cluster(1, 1, 1)  # room for one gang of two, and the actors that wait
    options = ("--trials", "2", "--concurrent", "1", "--workers-per-trial", "2", "--address", cluster.address)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(tune, tmp_path / name, *options) for name in "ab"]
        folders = [run.result()[1] for run in runs]
    assert [row["status"] for folder in folders for row in read_search(folder).trials] == ["completed"] * 4
    assert scores(folders[0]) == scores(folders[1])


@pytest.mark.slowest
def test_a_cluster_that_scales_by_itself_grows_for_a_search_and_shrinks_after_it(tmp_path):
    """Ray's autoscaler with its provider of nodes on one machine."""
    (port,) = free_ports(1)
    worker = {"resources": {"CPU": 1, "object_store_memory": 80 * 2**20}, "node_config": {}, "max_workers": 2}
    head = {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0}
    empty_lists = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    empty_lists += ("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files")
    config = {
        "cluster_name": "scaling",
        "max_workers": 2,
        "idle_timeout_minutes": 0.2,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": f"127.0.0.1:{port}",
        },
        "available_node_types": {"ray.head.default": head, "one_cpu": worker},
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        **{name: [] for name in empty_lists},
    }
    (tmp_path / "scaling.yaml").write_text(json.dumps(config))
    words = (f"--autoscaling-config={tmp_path / 'scaling.yaml'}", "--num-cpus=1", "--include-dashboard=false")
    environment = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with running_head(words, "a-token-for-this-test-0123456789abcdef", port, **environment) as cluster:
        options = ("--trials", "1", "--workers-per-trial", "2", "--concurrent", "1", "--address", cluster.address)
        said, _ = tune(tmp_path / "small", *options, expect=1, **cluster.client_environment)
        assert "or say with --grow-to what may come" in said
        _, folder = tune(tmp_path / "out", *options, "--grow-to", "CPU=3", **cluster.client_environment)
        assert [row["status"] for row in read_search(folder).trials] == ["completed"]
        assert num_nodes(cluster) == 2, "it had to grow"
        cluster.wait_until(lambda: num_nodes(cluster) == 1)


def num_nodes(cluster: Head) -> int:
    code = "import ray, sys; ray.init(sys.argv[1]); sys.exit(sum(node['Alive'] for node in ray.nodes()))"
    command = [sys.executable, "-c", code, cluster.address]
    environment = {**os.environ, **cluster.client_environment}
    return subprocess.run(command, capture_output=True, check=False, env=environment).returncode

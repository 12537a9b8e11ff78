import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# What a script starts in the background ignores Ctrl-C, and so does all that it starts; some tests interrupt that.
signal.signal(signal.SIGINT, signal.default_int_handler)

TOFU = Path(os.environ.get("RAY_UNLEARN_TOFU", Path(__file__).parents[2] / "shared" / "tofu"))


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slowest"):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tofu_data() -> Path:
    if not TOFU.is_dir():
        pytest.skip("the TOFU data are not here; RAY_UNLEARN_TOFU can name their folder")
    return TOFU


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

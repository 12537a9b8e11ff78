import pytest

from ray_unlearn.config import GangConfig
from ray_unlearn.session import check_nodes

NODES = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 16.0}]


def test_a_worker_that_fits_on_some_node_is_fine_wherever_its_gang_must_lie():
    check_nodes(GangConfig(num_workers=16, gpus_per_worker=1.0), NODES)
    check_nodes(GangConfig(gpus_per_worker=0.25), NODES)


@pytest.mark.parametrize(
    ("gang", "says"),
    [
        (GangConfig(gpus_per_worker=4.0), "one worker needs 4 GPU, and no node of the Ray cluster has more than 2"),
        (GangConfig(cpus_per_worker=32.0), "one worker needs 32 CPU, and no node of the Ray cluster has more than 16"),
    ],
)
def test_a_worker_that_no_node_can_hold_is_refused(gang, says):
    with pytest.raises(RuntimeError, match=says):
        check_nodes(gang, NODES)

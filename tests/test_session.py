import pytest

from ray_unlearn.config import GangConfig
from ray_unlearn.session import check_nodes, grown

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


def test_a_cluster_that_scales_by_itself_counts_with_what_it_may_grow_to():
    head = {"CPU": 4.0, "node:__internal_head__": 1.0}
    capacity = grown([head, {"CPU": 8.0, "GPU": 2.0}], [(0, {"CPU": 4}), (3, {"CPU": 8, "GPU": 2})])
    assert (capacity.total["CPU"], capacity.total["GPU"]) == (4 + 3 * 8, 6)
    check_nodes(GangConfig(num_workers=6, gpus_per_worker=1.0), capacity.nodes)
    assert grown([head], [(-1, {"GPU": 1})]).total["GPU"] > 1000, "any number of them"


def test_a_cluster_that_does_not_scale_has_what_is_there():
    assert grown(NODES, []).total == {"CPU": 24.0, "GPU": 2.0}
    assert grown([{"CPU": 64.0}], [(1, {"CPU": 8})]).total == {"CPU": 64.0}, "more than its file says"

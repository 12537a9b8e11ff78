import time

import pytest

from ray_unlearn.config import GangConfig
from ray_unlearn.gangs import session
from ray_unlearn.gangs.session import capacity, check_room, ray_session, start_ahead

NODES = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 16.0}]


def test_a_worker_that_fits_on_some_node_is_fine_wherever_its_gang_must_lie():
    check_room(GangConfig(num_workers=2, gpus_per_worker=1.0), 1, NODES, {})
    check_room(GangConfig(gpus_per_worker=0.25), 8, NODES, {})


@pytest.mark.parametrize(
    ("gang", "says"),
    [
        (GangConfig(gpus_per_worker=4.0), "one worker needs 4 GPU, and no node of the Ray cluster has more than 2"),
        (GangConfig(cpus_per_worker=32.0), "one worker needs 32 CPU, and no node of the Ray cluster has more than 16"),
    ],
)
def test_a_worker_that_no_node_can_hold_is_refused(gang, says):
    with pytest.raises(RuntimeError, match=says):
        check_room(gang, 1, NODES, {})


@pytest.mark.parametrize(
    ("gang", "count", "says"),
    [
        (GangConfig(num_workers=3, gpus_per_worker=1.0), 1, r"has 2 GPU, and 1 gang\(s\) of 3 worker\(s\) need 3"),
        (GangConfig(num_workers=8), 3, r"has 24 CPU, and 3 gang\(s\) of 8 worker\(s\) need 24.03"),
        (GangConfig(accelerator="K9", num_workers=32), 1, "24 CPU on nodes with K9"),
    ],
)
def test_more_than_there_is_is_refused_and_a_cluster_that_may_grow_waits_for_it(gang, count, says):
    with pytest.raises(RuntimeError, match=says):
        check_room(gang, count, NODES, {})
    check_room(gang, count, NODES, {"CPU": 64.0, "GPU": 4.0})


def test_what_may_come_counts_where_it_is_more_than_there_is():
    assert capacity(NODES, {}, "GPU") == 2
    assert capacity(NODES, {"GPU": 16.0, "CPU": 4.0}, "GPU") == 16
    assert capacity(NODES, {"GPU": 16.0, "CPU": 4.0}, "CPU") == 24


@pytest.mark.parametrize("works", [True, False])
def test_a_start_ahead_is_waited_for_and_made_up_for_where_it_failed(monkeypatch, works):
    starts = []

    def start(gang, count, address):
        time.sleep(0.2)
        starts.append(address)
        if len(starts) == 1 and not works:
            raise RuntimeError("no room")

    monkeypatch.setattr(session, "_start", start)
    monkeypatch.setattr(session, "_start_coordinator", lambda: None)
    monkeypatch.setattr(session, "find_nodes", lambda accelerator: NODES)
    monkeypatch.setattr(session.ray, "is_initialized", lambda: len(starts) == (1 if works else 2))
    monkeypatch.setattr(session.ray, "shutdown", starts.clear)
    start_ahead(GangConfig(), 1)
    with ray_session(GangConfig(), 1, None):
        assert len(starts) == (1 if works else 2)

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ray_unlearn.config import GangConfig
from ray_unlearn.gangs import session
from ray_unlearn.gangs.session import capacity, check_room, ray_session, start_ahead
from ray_unlearn.records.tables import read_search

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


TIMED_OUT = (
    "The current node timed out during startup. This could happen because some of the raylet failed to startup or the "
    "GCS has become overloaded."
)
"""What Ray 2.60 raises, as an Exception of no kind, where its agent was not up in time."""


@pytest.fixture
def failing_starts(monkeypatch):
    """Let so many starts of Ray fail with that error; the list of all starts."""
    starts = []

    def fail(count, error=Exception(TIMED_OUT)):  # noqa: B008
        def start(gang, num_gangs, address):
            starts.append(address)
            if len(starts) <= count:
                raise error

        monkeypatch.setattr(session, "_start", start)
        return starts

    monkeypatch.setattr(session, "agent_seconds", lambda: 9.2)
    monkeypatch.setattr(session, "_start_coordinator", lambda: None)
    monkeypatch.setattr(session, "find_nodes", lambda accelerator: NODES)
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)
    return fail


@pytest.mark.parametrize("is_ahead", [False, True])
def test_a_start_that_failed_for_slowness_is_tried_once_more_and_said(failing_starts, is_ahead):
    starts, said = failing_starts(1), []
    if is_ahead:
        start_ahead(GangConfig(), 1)
    with ray_session(GangConfig(), 1, None, say=said.append):
        assert len(starts) == 2
    (line,) = said
    assert "it allows 15 s for loading its agent, which now takes 9.2 s" in line
    assert line.endswith("Starting it once more")


@pytest.mark.parametrize("is_ahead", [False, True])
def test_after_the_second_failure_one_line_says_what_was_slow_and_what_helps(failing_starts, is_ahead):
    starts = failing_starts(9)
    if is_ahead:
        start_ahead(GangConfig(), 1)
    with pytest.raises(RuntimeError, match=r"twice .*takes 9.2 s.* local disk and with byte code.*fewer") as raised:
        ray_session(GangConfig(), 1, None).__enter__()
    assert len(starts) == 2
    assert "\n" not in str(raised.value)


def test_what_has_another_reason_is_not_tried_again(failing_starts):
    starts = failing_starts(9, ValueError("RAY_TMPDIR is no folder"))
    with pytest.raises(ValueError, match="no folder"):
        ray_session(GangConfig(), 1, None).__enter__()
    assert len(starts) == 1


def run_with_failing_starts(count: int, *words: str) -> subprocess.CompletedProcess:
    """The command line, in a process in which Ray's first `count` starts fail as on a slow machine."""
    program = f"""
import ray, sys
from ray_unlearn import cli
start, starts = ray.init, []
def init(*words, **options):
    starts.append(1)
    if len(starts) <= {count}:
        raise Exception({TIMED_OUT!r})
    return start(*words, **options)
ray.init = init
sys.argv[1:] = {list(words)!r}
cli.run()
"""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment, timeout=300
    )


SEARCH = (
    "--benchmark",
    "synthetic",
    "--methods",
    "ga",
    "--trials",
    "1",
    "--concurrent",
    "1",
    "--robustness",
    "none",
    "--no-keep-model",
)


@pytest.mark.slowest
@pytest.mark.timeout(300)
def test_a_search_whose_ray_never_starts_ends_with_one_line_and_can_be_resumed(tmp_path):
    run = run_with_failing_starts(9, "tune", *SEARCH, "--out", str(tmp_path))
    assert run.returncode == 1, run.stdout + run.stderr
    assert "Starting it once more" in run.stdout
    (line,) = run.stderr.strip().splitlines()
    assert line.startswith("ray_unlearn: Ray was not up in its own time, twice")
    place = Path(line.rpartition("ray_unlearn tune --resume ")[2])
    assert (place / "search.json").is_file()
    run = run_with_failing_starts(9, "tune", "--resume", str(place))
    assert run.returncode == 1
    assert f"ray_unlearn tune --resume {place}" in run.stderr
    run = run_with_failing_starts(1, "tune", "--resume", str(place), "--no-keep-model")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Starting it once more" in run.stdout
    trial = read_search(place).trials[0]["trial_id"]
    for words in (("compare", str(place), "--seeds", "2"), ("export", str(place), "--trial", trial)):
        assert_ends_with_one_line(run_with_failing_starts(9, *words))


@pytest.mark.slowest
@pytest.mark.timeout(300)
def test_every_other_command_on_ray_ends_with_one_line_where_ray_never_starts(tmp_path, tiny_model, tofu_data):
    out, model = str(tmp_path / "out"), str(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    for words in (
        ("prepare", "--benchmark", "tofu", "--model", model, "--data", str(tofu_data), "--out", out),
        ("evaluate", "--benchmark", "synthetic", "--model", model, "--scale", "mini", "--out", out),
        ("reproduce", "synthetic", "--scale", "mini", "--out", out),
    ):
        assert_ends_with_one_line(run_with_failing_starts(9, *words))


def assert_ends_with_one_line(run: subprocess.CompletedProcess) -> None:
    assert run.returncode == 1, run.stdout + run.stderr
    assert run.stderr.count("\n") == 1, run.stderr
    assert "Ray was not up in its own time, twice" in run.stderr
    assert "Starting it once more" in run.stdout

"""What the machine grants, and GPUs that cannot be used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ray_unlearn import hardware
from ray_unlearn.commands.resources import check_gpus, find_machine, machine_of, most_gangs, on_cpus
from ray_unlearn.config import GangConfig, UserError
from ray_unlearn.provenance import driver_version
from ray_unlearn.training.placement import GIB


def test_affinity_decides_how_many_cpus_and_gangs_there_are():
    code = (
        "from ray_unlearn.commands.resources import *;"
        "m = find_machine(None); print(m.cpus, most_gangs(GangConfig(), m, 60))"
    )
    one = min(os.sched_getaffinity(0))
    command = ["taskset", "-c", str(one), sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["1", "1"]


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"job/cpu.max": "150000 100000"}, 1),
        ({"job/cpu.max": "max 100000", "cpu.max": "300000 100000"}, 3),
        ({"job/cpu.max": "50000 100000"}, 1),
        ({"cpu/job/cpu.cfs_quota_us": "200000", "cpu/job/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, 8),
        ({}, 8),
    ],
    ids=["own group", "a group above", "less than one", "version 1", "version 1 without a limit", "no limit"],
)
def test_a_control_group_s_quota_decides_how_many_cpus_there_are(tmp_path, monkeypatch, files, cpus):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    member = tmp_path / "member"
    member.write_text("4:cpu,cpuacct:/job\n0::/job\n")
    monkeypatch.setattr(hardware, "GROUPS", tmp_path)
    monkeypatch.setattr(hardware, "MEMBERSHIP", member)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert hardware.granted_cpus() == cpus


def test_a_control_group_s_limit_decides_how_much_memory_there_is(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("3000000")
    (tmp_path / "memory.current").write_text("1000000")
    monkeypatch.setattr(hardware, "GROUPS", tmp_path)
    monkeypatch.setattr(hardware, "MEMBERSHIP", tmp_path / "none")
    assert hardware.free_memory() == 2_000_000


@pytest.fixture
def driver(tmp_path, monkeypatch) -> Path:
    """A machine whose driver knows two GPUs, none of which torch can use."""
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(hardware, "DRIVER", tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def test_gpus_that_torch_cannot_use_are_an_error_unless_the_cpu_is_asked_for(driver, monkeypatch):
    for scale in ("auto", "full"):
        with pytest.raises(UserError, match=r"2 GPU\(s\)"):
            check_gpus(scale, None)
    check_gpus("mini", None)
    check_gpus("full", 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=7"):
        check_gpus("auto", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check_gpus("mini", None)


def test_the_doctor_names_gpus_that_torch_cannot_use(driver):
    from ray_unlearn.commands.machine import PROBLEM, find_gpus

    assert find_gpus().state == PROBLEM


def test_the_smallest_gpu_decides_and_its_memory_can_be_said():
    mixed = machine_of([[80 * GIB, 80 * GIB], [40 * GIB]], 32, 100 * GIB, None)
    assert (mixed.gpus_by_node, mixed.memory_bytes) == ((2, 1), 40 * GIB)
    assert machine_of([[0]], 32, 100 * GIB, 24.0).memory_bytes == 24 * GIB
    alone = on_cpus(mixed)
    assert (alone.gpus, alone.memory_bytes, alone.cpus) == (0, 100 * GIB, 32)
    assert most_gangs(GangConfig(num_workers=2), mixed, 60) == 16, "CPU gangs beside GPUs count CPUs"


def test_this_machine_is_found():
    machine = find_machine(None)
    assert machine.cpus >= 1
    assert machine.memory_bytes > 0


BELIEVES = """
import torch
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
from tests.tiny import tiny_task
from ray_unlearn.config import GangConfig, TrialConfig
from ray_unlearn.training.in_process import local_worker, run_local
from ray_unlearn.training.trial import Job
import sys, pathlib
worker = local_worker(tiny_task(pathlib.Path(sys.argv[1])), GangConfig())
reports = run_local(worker, Job("job", TrialConfig("a", "ga", epochs=1)))
from deepspeed.accelerator import get_accelerator
print(reports[-1].done, next(worker.engine.module.parameters()).device, get_accelerator().device_name())
"""


def test_a_cpu_s_worker_trains_on_the_cpu_though_the_machine_has_a_gpu(tiny_model):
    environment = {k: v for k, v in os.environ.items() if k != "DS_ACCELERATOR"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", BELIEVES, str(tiny_model)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.stdout.split()[-3:] == ["True", "cpu", "cpu"], run.stderr[-2000:]


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n", "570.86.15"),
        ("something else", ""),
    ],
)
def test_the_driver_s_version_is_read_from_what_it_says(said, version):
    assert driver_version(said) == version

"""Freed memory is used again without the system's help."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from ray_unlearn.gangs.environment import WORKER_MALLOC

FAULTS = """
import resource, threading
import torch

def allocate():
    for _ in range(3):
        torch.ones(30 * 2**20)

def measure():
    allocate()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    allocate()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=measure)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries")
def test_a_workers_thread_allocates_what_it_freed_without_page_faults():
    def faults(more: dict[str, str]) -> int:
        run = subprocess.run([sys.executable, "-c", FAULTS], env=os.environ | more, capture_output=True, check=True)
        return int(run.stdout)

    assert faults(WORKER_MALLOC) < 100 < faults({})


LEFT_BEHIND = {
    **{"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "3"},
    **{"PMI_RANK": "3", "PMI_SIZE": "8", "PMIX_RANK": "3", "MV2_COMM_WORLD_LOCAL_RANK": "3", "MPI_LOCALRANKID": "3"},
    "AZUREML_EXPERIMENT_ID": "a",
    **{"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": "8"},
    **{"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "3", "SLURM_JOB_ID": "1"},
    **{"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_MIXED_PRECISION": "bf16"},
}
"""What launchers leave in a shell, of a run of 8 in which this would be the fourth."""
TRAIN = """
import os, pathlib, sys
from ray_unlearn.config import GangConfig, TrialConfig
from ray_unlearn.training.in_process import local_worker, run_local
from ray_unlearn.training.trial import Job
from tests.tiny import tiny_task

worker = local_worker(tiny_task(pathlib.Path(sys.argv[1])), GangConfig(zero_stage=2, max_tokens=100))
run_local(worker, Job("a", TrialConfig("a", "ga", {}, 0.0, 3e-3, epochs=1, batch_size=8)))
print(worker.rank.number, worker.rank.num_workers, [n for n in os.environ if n.startswith(("OMPI_", "PMI"))])
"""


def test_what_launchers_left_in_the_shell_is_not_the_workers(tiny_model):
    place = Path(__file__).parents[1]
    command = [sys.executable, "-c", TRAIN, str(tiny_model)]
    run = subprocess.run(command, env=os.environ | LEFT_BEHIND, cwd=place, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "0 1 []"


@pytest.mark.slowest
@pytest.mark.timeout(300)
def test_a_search_runs_in_a_shell_that_launchers_have_left_variables_in(tmp_path):
    words = ["tune", "--benchmark", "synthetic", "--methods", "ga", "--trials", "1", "--workers-per-trial", "2"]
    words += ["--concurrent", "1", "--robustness", "none", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "ray_unlearn.cli", *words]
    run = subprocess.run(command, env=os.environ | LEFT_BEHIND, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr + run.stdout
    assert "Chosen" in run.stdout

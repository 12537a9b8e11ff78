"""Freed memory is used again without the system's help."""

import os
import platform
import subprocess
import sys

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

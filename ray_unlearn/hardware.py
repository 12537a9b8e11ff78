"""What a machine grants to this process: CPUs, memory, and GPUs as torch can use them; and the same of a cluster."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
DRIVER = Path("/proc/driver/nvidia/gpus")
"""One folder a GPU, from the driver, whatever CUDA or a container hides."""
ANSWER_SECONDS = 120.0
"""For a node to say what GPUs it has: its process imports torch first."""


def granted_cpus() -> int:
    """CPUs that this process may run on: by its affinity, and by the quota of its control groups; at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cpus, *(int(quota) for quota in _quotas())]))


def free_memory() -> int:
    """Bytes that this process may use: of the machine, or of its control groups."""
    import psutil

    free = [psutil.virtual_memory().available]
    for group in _groups(""):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limit = int((group / "memory.max").read_text())
            free.append(limit - int((group / "memory.current").read_text()))
    return max(min(free), 0)


def _quotas() -> Iterator[float]:
    """CPUs that each control group round this process grants; of version 2, and of version 1."""
    for group in _groups(""):
        with contextlib.suppress(OSError, ValueError):
            quota, period = map(int, (group / "cpu.max").read_text().split())
            yield quota / period
    for group in _groups("cpu"):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            if quota > 0:
                yield quota / period


def _groups(controller: str) -> Iterator[Path]:
    """Folders of this process's control group and of all above it; controller: of version 1, empty for version 2."""
    root = GROUPS / controller
    yield root
    with contextlib.suppress(OSError):
        for line in MEMBERSHIP.read_text().splitlines():
            _, names, path = line.split(":", 2)
            if controller in names.split(","):
                inside = root / path.lstrip("/")
                yield from (group for group in (inside, *inside.parents) if group.is_relative_to(root))


def gpu_bytes() -> list[int]:
    """Memory of each GPU that torch can use."""
    import torch

    return [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]


def unusable_gpus() -> str | None:
    """Why torch uses none of the GPUs that the machine has; None where it uses some, or there are none."""
    import torch

    count = len(list(DRIVER.iterdir())) if DRIVER.is_dir() else 0
    if not count or torch.cuda.device_count():
        return None
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return f"the machine has {count} GPU(s), and CUDA_VISIBLE_DEVICES={named} shows none of them"
    if torch.version.cuda is None:
        return f"the machine has {count} GPU(s), and this torch is built for CPUs alone"
    return f"the machine has {count} GPU(s), and torch, built for CUDA {torch.version.cuda}, finds the driver too old"


def ask_nodes(nodes: Sequence[Mapping[str, object]]) -> dict[str, list[int]]:
    """By node, the memory of each GPU there, asked in a process of that node; nodes that do not answer are missing.

    nodes: as `ray.nodes()` gives them. Must be connected to the cluster.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for node in nodes:
        place = NodeAffinitySchedulingStrategy(str(node["NodeID"]), soft=False)
        # Each in a process of its own that ends with the answer: torch takes some of a GPU that it is asked about.
        options: dict[str, Any] = {"num_cpus": 0, "max_calls": 1, "scheduling_strategy": place}
        asked[ray.remote(**options)(gpu_bytes).remote()] = str(node["NodeID"])
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS) if asked else ([], [])
    found = {}
    for answer in ready:
        with contextlib.suppress(ray.exceptions.RayError):
            found[asked[answer]] = ray.get(answer)
    return found

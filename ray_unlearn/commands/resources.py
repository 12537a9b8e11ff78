"""What there is to run on, and how a gang is shaped for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from ray_unlearn.benchmarks.contract import Task
from ray_unlearn.commands.options import Prepare, Tune
from ray_unlearn.commands.shared_options import DEFAULT_ZERO
from ray_unlearn.config import GangConfig, UserError
from ray_unlearn.hardware import ask_nodes, free_memory, gpu_bytes, granted_cpus, unusable_gpus
from ray_unlearn.models.loading import load_config, trusts_remote_code
from ray_unlearn.models.sizes import check_trained, count_parameters
from ray_unlearn.training.engine_config import load_settings
from ray_unlearn.training.memory import PROCESS_BYTES
from ray_unlearn.training.placement import GIB, Asked, Machine, Model, Placement, nodes_of, place
from ray_unlearn.wording import first_line

GPU_FLOPS = {"bf16": 312e12, "fp32": 19.5e12}
"""Of an A100 (its data sheet), where nothing else is known. Layouts are compared by it, and all GPUs alike."""
GPU_BANDWIDTH = 2.0e12
"""Bytes a second of an A100's memory."""
CPU_FLOPS, CPU_BANDWIDTH = 100e9, 10e9
"""Of a laptop, where nothing is measured: one CPU worker is the only layout there."""
NODE_GPUS = 8
"""Of a node that an autoscaler is yet to bring, where none is there to look at."""


def find_machine(
    address: str | None,
    accelerator: str = "",
    grow_to: Mapping[str, float] | None = None,
    gpu_memory: float | None = None,
) -> Machine:
    """What there is to run on, or may come: of the cluster at the given address, else of this machine.

    accelerator: only of nodes with GPUs of this kind. grow_to: what an autoscaler may bring the cluster to.
    gpu_memory: GiB of one GPU, where it cannot be asked.
    """
    if address is None:
        for option, value in (("--accelerator", accelerator), ("--grow-to", grow_to)):
            if value:
                raise UserError(f"{option}: is for a Ray cluster of several nodes. Give its --address as well")
        return machine_of([gpu_bytes()], granted_cpus(), free_memory(), gpu_memory)
    import ray

    from ray_unlearn.gangs.session import ACCELERATOR, capacity, find_accelerators, find_nodes

    try:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
        nodes = find_nodes(accelerator)
        if accelerator and not nodes and not grow_to:
            kinds = ", ".join(find_accelerators()) or "none that says what it is"
            raise UserError(f"--accelerator {accelerator}: no node of the cluster has it. There is: {kinds}")
        alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
        if accelerator:
            alive = [node for node in alive if f"{ACCELERATOR}{accelerator}" in node["Resources"]]
        found = ask_nodes(alive) if gpu_memory is None else {}
        gpus = []
        for node in alive:
            count = int(node["Resources"]["GPU"])
            sizes = found.get(node["NodeID"]) or [int((gpu_memory or 0.0) * GIB)]
            gpus.append([min(sizes)] * count)
        missing = int((grow_to or {}).get("GPU", 0)) - sum(map(len, gpus))
        if missing > 0:
            size = max(map(len, gpus), default=min(NODE_GPUS, missing))
            known = min((memory for node in gpus for memory in node), default=int((gpu_memory or 0.0) * GIB))
            gpus += [[known] * count for count in nodes_of(missing, size)]
        # Less a little: Tune's and Train's own actors have to fit beside the workers.
        cpus = capacity(nodes, grow_to or {}, "CPU") - 0.5
        memory = sum(node.get("memory", 0.0) for node in nodes)
        if any(gpus):
            memory = min((node["Resources"].get("memory", 0.0) for node in alive), default=0.0)
        return machine_of(gpus, cpus, memory, None)
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = first_line(error)
        raise UserError(
            f"--address {address}: no Ray cluster answers ({first}). Start it, or, where it asks for a token, set "
            "RAY_AUTH_MODE=token"
        ) from None
    finally:
        ray.shutdown()


def machine_of(gpus: Sequence[Sequence[int]], cpus: float, memory: float, gpu_memory: float | None) -> Machine:
    """gpus: bytes of each, by node; the smallest decides. memory: of the host."""
    every = [size for node in gpus for size in node]
    if not every:
        return Machine((), cpus, memory, CPU_FLOPS, CPU_BANDWIDTH)
    smallest = gpu_memory * GIB if gpu_memory else float(min(every))
    return Machine(
        tuple(len(node) for node in gpus if node), cpus, smallest, GPU_FLOPS["bf16"], GPU_BANDWIDTH, host_bytes=memory
    )


def on_cpus(machine: Machine) -> Machine:
    """The same without its GPUs, for a search that trains on CPUs."""
    if not machine.gpus:
        return machine
    return Machine((), machine.cpus, machine.host_bytes, CPU_FLOPS, CPU_BANDWIDTH)


def check_gpus(scale: str, gpus_per_worker: float | None) -> None:
    """Raise UserError where this machine's GPUs cannot be used, unless a CPU is what was asked for."""
    if scale != "mini" and gpus_per_worker != 0 and (why := unusable_gpus()):
        raise UserError(f"{why}. Mend that, or give --scale mini or --gpus-per-worker 0 to train on the CPU")


def resolve_scale(scale: str, gpus: int, model: str | None) -> str:
    if scale == "full" and not gpus:
        raise UserError(
            "--scale full: there is no GPU for it. Take --scale mini, or --address of a cluster with GPUs, or leave "
            "--scale out and name a small model with --model to run the full benchmark on it with the CPU"
        )
    if scale == "auto":
        return "full" if gpus or model is not None else "mini"
    return scale


def read_deepspeed(options: Tune | Prepare) -> dict[str, Any]:
    """The checked sections of the user's DeepSpeed file; empty without one."""
    if options.deepspeed is None:
        return {}
    settings = load_settings(options.deepspeed)
    stage = settings["zero_optimization"]["stage"]
    if options.zero not in (None, stage):
        raise UserError(f"--zero {options.zero}: --deepspeed {options.deepspeed} names stage {stage}. Leave one out")
    from ray_unlearn.training.engine import check_settings

    check_settings(settings, f"--deepspeed {options.deepspeed}")
    return settings


def gang_config(
    gpus_per_worker: float | None,
    zero: int | None,
    machine: Machine,
    settings: Mapping[str, Any] | None = None,
    workers: int | None = None,
) -> GangConfig:
    """What of a gang is never chosen: its device and precision. ZeRO stage and precision are the DeepSpeed file's
    where it names them."""
    per_worker = (1.0 if machine.gpus else 0.0) if gpus_per_worker is None else gpus_per_worker
    if 0 < per_worker < 1 and (workers or 1) > 1:
        raise UserError(
            f"--gpus-per-worker {per_worker:g}: several workers of a gang cannot share one GPU. Give 1, or one worker"
        )
    if per_worker > 1:
        raise UserError(f"--gpus-per-worker {per_worker:g}: a worker computes on one GPU. Give 1, and more workers")
    if per_worker and not machine.gpus:
        raise UserError(f"--gpus-per-worker {per_worker:g}: there is no GPU. Leave it out, or give --address")
    settings = settings or {}
    if zero is None:
        zero = settings.get("zero_optimization", {}).get("stage")
    if zero is None:
        zero = 0 if (workers or 1) == 1 and not per_worker else DEFAULT_ZERO
    return GangConfig(
        num_workers=workers or 1,
        zero_stage=zero,
        precision="bf16" if settings.get("bf16", {}).get("enabled", per_worker > 0) else "fp32",
        deepspeed=settings,
        gpus_per_worker=per_worker,
        trust_remote_code=trusts_remote_code(),
    )


def describe_model(name: str, gang: GangConfig, has_gradients: bool = False) -> Model:
    """For the arithmetic, from the model's configuration alone. Raises UserError where it cannot be loaded.

    has_gradients: a gang that only scores needs gradients all the same.
    """

    @lru_cache
    def num_trained(rank: int) -> int:
        return count_parameters(name, rank, gang.train)[1] if gang.trains or has_gradients else 0

    return Model(name, load_config(name), check_trained(name, 0, gang.train), num_trained)


def place_gang(asked: Asked, model: str, machine: Machine, longest: int = 0, has_gradients: bool = False) -> Placement:
    """The layout for the model on whichever part of the machine the gang's workers run. Raises UserError."""
    machine = machine if asked.gang.gpus_per_worker else on_cpus(machine)
    if machine.gpus and not machine.memory_bytes:
        raise UserError("the memory of the cluster's GPUs is not known. Give --gpu-memory GiB, such as 80")
    asked = replace(asked, longest=max(longest, asked.longest))
    return place(describe_model(model, asked.gang, has_gradients), asked, machine)


def longest_of(task: Task) -> int:
    """Tokens of the longest sequence that is trained on."""
    return max((int(s.lengths.max()) for s in (task.forget, task.retain) if len(s)), default=0)


def most_gangs(gang: GangConfig, machine: Machine, trials: int) -> int:
    """Gangs of that shape side by side, by devices; on CPUs also by memory for each worker's process."""
    machine = machine if gang.gpus_per_worker else on_cpus(machine)
    count = machine.gangs(gang)
    if not gang.gpus_per_worker and machine.memory_bytes:
        count = min(count, int(machine.memory_bytes // (gang.num_workers * PROCESS_BYTES)))
    return max(1, min(count, trials))

"""What there is to run on, and how a gang is shaped for it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_unlearn.commands.options import DEFAULT_ZERO, Tune
from ray_unlearn.config import GangConfig, UserError
from ray_unlearn.models.loading import load_config, trusts_remote_code
from ray_unlearn.models.sizes import count_parameters
from ray_unlearn.training.engine_config import load_settings
from ray_unlearn.training.memory import fitted
from ray_unlearn.wording import first_line


@dataclass(frozen=True)
class Resources:
    """What there is to run on, or may come: of the cluster at the given address, else of this machine."""

    cpus: float
    gpus: int


def find_resources(address: str | None, accelerator: str = "", grow_to: Mapping[str, float] | None = None) -> Resources:
    """accelerator: only of nodes with GPUs of this kind. grow_to: what an autoscaler may bring the cluster to."""
    if address is None:
        import torch

        for option, value in (("--accelerator", accelerator), ("--grow-to", grow_to)):
            if value:
                raise UserError(f"{option}: is for a Ray cluster of several nodes. Give its --address as well")

        return Resources(os.cpu_count() or 1, torch.cuda.device_count())
    import ray

    from ray_unlearn.gangs.session import capacity, find_accelerators, find_nodes

    try:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
        nodes = find_nodes(accelerator)
        if accelerator and not nodes and not grow_to:
            kinds = ", ".join(find_accelerators()) or "none that says what it is"
            raise UserError(f"--accelerator {accelerator}: no node of the cluster has it. There is: {kinds}")
        # Less a little: Tune's and Train's own actors have to fit beside the workers.
        cpus, gpus = (capacity(nodes, grow_to or {}, name) for name in ("CPU", "GPU"))
        return Resources(cpus - 0.5, int(gpus))
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = first_line(error)
        raise UserError(
            f"--address {address}: no Ray cluster answers ({first}). Start it, or, where it asks for a token, set "
            "RAY_AUTH_MODE=token"
        ) from None
    finally:
        ray.shutdown()


def resolve_scale(scale: str, gpus: int, model: str | None) -> str:
    if scale == "full" and not gpus:
        raise UserError(
            "--scale full: there is no GPU for it. Take --scale mini, or --address of a cluster with GPUs, or leave "
            "--scale out and name a small model with --model to run the full benchmark on it with the CPU"
        )
    if scale == "auto":
        return "full" if gpus or model is not None else "mini"
    return scale


def read_deepspeed(options: Tune) -> dict[str, Any]:
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
    workers: int, gpus_per_worker: float | None, zero: int | None, gpus: int, settings: Mapping[str, Any] | None = None
) -> GangConfig:
    """The gang asked for; ZeRO stage and precision are the DeepSpeed file's where it names them."""
    per_worker = (1.0 if gpus else 0.0) if gpus_per_worker is None else gpus_per_worker
    if 0 < per_worker < 1 and workers > 1:
        raise UserError(
            f"--gpus-per-worker {per_worker:g}: several workers of a gang cannot share one GPU. Give 1, or one worker"
        )
    if per_worker and not gpus:
        raise UserError(f"--gpus-per-worker {per_worker:g}: there is no GPU. Leave it out, or give --address")
    settings = settings or {}
    if zero is None:
        zero = settings.get("zero_optimization", {}).get("stage", DEFAULT_ZERO)
    return GangConfig(
        num_workers=workers,
        zero_stage=zero,
        precision="bf16" if settings.get("bf16", {}).get("enabled", per_worker > 0) else "fp32",
        deepspeed=settings,
        gpus_per_worker=per_worker,
        trust_remote_code=trusts_remote_code(),
    )


def fit_gang(gang: GangConfig, model: str, num_parameters: int, resources: Resources, concurrent: int) -> GangConfig:
    """The gang with as many tokens and threads a worker as so many gangs of this model can take."""
    import torch

    has_gpu = gang.gpus_per_worker and torch.cuda.is_available()
    gpu_bytes = torch.cuda.get_device_properties(0).total_memory if has_gpu else None
    threads = threads_for(gang, resources, concurrent)
    _, num_trained = count_parameters(model, gang.lora_rank, gang.train)
    return fitted(gang, load_config(model), num_parameters, gpu_bytes, threads, num_trained)


def threads_for(gang: GangConfig, resources: Resources, concurrent: int) -> int:
    """Of one worker, where so many gangs share the CPUs."""
    return max(1, int(resources.cpus) // (gang.num_workers * concurrent))


def default_concurrency(gang: GangConfig, resources: Resources, trials: int) -> int:
    """As many gangs as fit: by GPUs where they are used, else one CPU a worker."""
    if gang.gpus_per_worker:
        fit = resources.gpus / (gang.gpus_per_worker * gang.num_workers)
    else:
        fit = resources.cpus / gang.num_workers
    return max(1, min(int(fit), trials))

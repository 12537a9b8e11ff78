"""How a trial is laid out on the machines there are: pure arithmetic, by which every command sizes its gangs.

Candidates are workers a trial x ZeRO stage x recomputation. All weights are trained where that fits; where nobody
chose, low-rank adapters otherwise, then an optimizer in host memory. Among what fits, the layout with the shortest
search wins, and of equal ones that with the fewest workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray_unlearn.config import GangConfig, UserError
from ray_unlearn.training.memory import (
    FEWEST_TOKENS,
    PROCESS_BYTES,
    WIDTH,
    Memory,
    fitted,
    gpu_budget,
    host_bytes,
    offloads,
    training_memory,
)
from ray_unlearn.wording import counted

GIB = 2**30
STAGES = (2, 1, 0, 3)
"""In the order in which they are preferred at equal speed."""
ADAPTER_RANK = 16
"""Of the adapters that are taken where all weights do not fit and nobody chose a rank."""
OFFLOAD = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}}}
EFFICIENCY = 0.4
"""Share of the device's arithmetic that training reaches."""
LINK, NETWORK = 100e9, 10e9
"""Bytes a second between two GPUs of a node, and between two nodes: assumed, between PCIe and NVLink."""
HOST_BANDWIDTH = 100e9
"""Bytes a second of a node's memory, which the workers there share: assumed."""
STEP_TOKENS = 2 * 32 * 512
"""Trained on in one optimizer step, by which layouts are compared: 32 sequences to forget and 32 to retain."""
PASS_OVERHEAD = 256
"""Tokens in whose time the device starts a pass, whatever its size."""
MOST_GPUS = 64
"""Up to how many a refusal looks for a number that would do."""


@dataclass(frozen=True)
class Machine:
    """What gangs are laid out on: this machine, or the nodes of a cluster."""

    gpus_by_node: tuple[int, ...]
    cpus: float
    memory_bytes: float
    """Of the smallest GPU; without GPUs, of the host."""
    flops: float
    """A second, of one GPU, or of all CPUs."""
    bandwidth: float
    """Bytes a second of that memory."""
    host_bytes: float = 0.0
    """Free memory of the smallest node with GPUs; 0: not known."""
    says: str = ""

    @property
    def gpus(self) -> int:
        return sum(self.gpus_by_node)

    def gangs(self, gang: GangConfig) -> int:
        """That run side by side, by devices: a gang is packed on one node where it fits on one."""
        if not gang.gpus_per_worker:
            return int(self.cpus / (gang.num_workers * gang.cpus_per_worker))
        wanted = gang.num_workers * gang.gpus_per_worker
        packed = sum(int(gpus / wanted) for gpus in self.gpus_by_node)
        return packed or int(self.gpus / wanted)

    def describe(self) -> str:
        if not self.gpus:
            return f"{counted(round(self.cpus), 'CPU')} with {self.memory_bytes / GIB:.0f} GiB"
        nodes = f" on {len(self.gpus_by_node)} nodes" if len(self.gpus_by_node) > 1 else ""
        return f"{counted(self.gpus, 'GPU')} of {self.memory_bytes / GIB:.0f} GiB{nodes}"


def nodes_of(gpus: int, size: int) -> tuple[int, ...]:
    """So many GPUs by node, on nodes that have `size` each."""
    return (size,) * (gpus // size) + (gpus % size,) * (gpus % size > 0)


@dataclass(frozen=True)
class Model:
    """What of a model the arithmetic needs."""

    name: str
    config: Any
    num_parameters: int
    num_trained: Callable[[int], int]
    """By the rank of its adapters, 0: none."""


@dataclass(frozen=True)
class Asked:
    """What the user wants; None: free to choose."""

    gang: GangConfig
    """Device, precision and whatever is never chosen."""
    workers: int | None = None
    zero: int | None = None
    lora: int | None = None
    concurrent: int | None = None
    trials: int = 1
    """Of all methods together."""
    longest: int = FEWEST_TOKENS
    """Tokens of the longest sequence: a pass holds at least one."""
    answer_share: float = 1.0
    """Of the tokens that are trained on, those that are answers."""


@dataclass(frozen=True)
class Fit:
    """One candidate: the gang with its tokens a pass, what it takes, and how long the search is with it."""

    gang: GangConfig
    memory: Memory
    fits: bool
    gangs: int
    """Side by side."""
    seconds: float
    """Of one optimizer step, times the rounds that the search's trials take."""


@dataclass(frozen=True)
class Placement:
    """The layout that was chosen."""

    gang: GangConfig
    concurrent: int
    memory: Memory
    says: str
    """In one line, with the reason."""


def place(model: Model, asked: Asked, machine: Machine) -> Placement:
    """The best layout. Raises UserError where nothing fits, with the nearest that would."""
    best = best_of(candidates(model, asked, machine))
    if best is None:
        raise UserError(refusal(model, asked, machine))
    return described(best, model, asked, machine)


def described(best: tuple[int, Fit], model: Model, asked: Asked, machine: Machine) -> Placement:
    """What `best_of` found, with what is said of it."""
    mode, fit = best
    return Placement(fit.gang, fit.gangs, fit.memory, _describe(fit, mode, model, machine, asked))


def candidates(model: Model, asked: Asked, machine: Machine) -> list[list[Fit]]:
    """By way of training in the order of preference: all candidates, the shortest search first."""
    return [
        sorted(_fits(model, replace(asked, gang=gang), machine), key=lambda f: (f.seconds, f.gang.num_workers))
        for gang in _modes(asked)
    ]


def _modes(asked: Asked) -> Iterator[GangConfig]:
    yield replace(asked.gang, lora_rank=asked.lora or 0)
    if asked.lora is None and asked.gang.trains and not asked.gang.train:
        yield replace(asked.gang, lora_rank=ADAPTER_RANK)
    is_free = asked.gang.gpus_per_worker and not asked.gang.deepspeed and asked.zero in (None, 2)
    if asked.gang.trains and is_free and not asked.lora:
        yield replace(asked.gang, lora_rank=0, deepspeed=OFFLOAD)


def best_of(ways: Sequence[Sequence[Fit]]) -> tuple[int, Fit] | None:
    """Of all candidates, the number of the first way that fits, and its best."""
    for mode, fits in enumerate(ways):
        if found := next((fit for fit in fits if fit.fits), None):
            return mode, found
    return None


def _worker_counts(asked: Asked, machine: Machine) -> Sequence[int]:
    if asked.workers:
        return (asked.workers,)
    if not machine.gpus:
        return (1,)  # a second process on the same cores makes nothing faster, and holds the weights again
    if asked.gang.gpus_per_worker < 1:
        return (1,)
    powers = (2**k for k in range(machine.gpus.bit_length()))
    return sorted({*powers, *machine.gpus_by_node, machine.gpus} - {0})


def stages(gang: GangConfig, asked: Asked) -> Sequence[int]:
    """ZeRO stages to try. One CPU worker has nothing to shard: stages above 0 only cost it memory."""
    if named := gang.deepspeed.get("zero_optimization", {}).get("stage"):
        return (named,)
    if asked.zero is not None:
        return (asked.zero,)
    if not gang.trains:  # only stage 3 shards what scoring needs
        return (0, 3) if gang.num_workers > 1 else (0,)
    return (0,) if gang.num_workers == 1 and not gang.gpus_per_worker else STAGES


def _fits(model: Model, asked: Asked, machine: Machine) -> Iterator[Fit]:
    trained = model.num_trained(asked.gang.lora_rank)
    for workers in _worker_counts(asked, machine):
        shaped = replace(asked.gang, num_workers=workers)
        if machine.gpus:
            shaped = replace(shaped, cpus_per_worker=_cpus_per_worker(shaped, machine))
        most = asked.concurrent or min(machine.gangs(shaped), asked.trials)
        for checkpointing in (True,) if shaped.checkpointing else (False, True)[: 1 + shaped.trains]:
            for stage in stages(shaped, asked):
                gang = replace(shaped, zero_stage=stage, checkpointing=checkpointing)
                yield _fit(model, trained, gang, most, asked, machine)


def _cpus_per_worker(gang: GangConfig, machine: Machine) -> float:
    """One, less where the machine has fewer than GPUs; where the optimizer steps on the host, an equal share."""
    share = machine.cpus * gang.gpus_per_worker / machine.gpus
    wanted = max(1.0, math.floor(share)) if offloads(gang) else 1.0
    return min(wanted, math.floor(100 * share) / 100)


def _fit(model: Model, trained: int, gang: GangConfig, most: int, asked: Asked, machine: Machine) -> Fit:
    """The gang sized to its device. On a CPU, fewer gangs where memory is short."""
    size = int(machine.memory_bytes) if machine.gpus else None
    rows = replace(gang, row_length=gang.row_length or asked.longest) if machine.gpus else gang
    sized = fitted(rows, model.config, model.num_parameters, size, 1, trained)
    recomputes = sized.checkpointing == gang.checkpointing  # it does by itself where it must: then nothing fits without
    sized = replace(sized, checkpointing=gang.checkpointing)
    at_most = replace(sized, max_tokens=max(sized.max_tokens, asked.longest))
    memory = training_memory(model.config, at_most, model.num_parameters, trained, asked.answer_share)
    sized = replace(sized, row_length=gang.row_length)
    if machine.gpus:
        fits = recomputes and memory.peak <= gpu_budget(gang, machine.memory_bytes)
        fits = fits and 0 < most <= machine.gangs(gang)
        fits = fits and _host_holds(model, trained, sized, most, machine)
    else:
        by_memory = int(machine.memory_bytes // (gang.num_workers * (memory.peak + PROCESS_BYTES)))
        most = asked.concurrent or min(most, by_memory)
        fits = most > 0
    most = max(most, 1)
    sized = replace(sized, threads_per_worker=threads(sized, machine, most))
    seconds = _step_seconds(model, trained, sized, memory, machine) * max(1.0, asked.trials / most)
    return Fit(sized, memory, fits, most, seconds)


def threads(gang: GangConfig, machine: Machine, concurrent: int) -> int:
    """Of one worker, where so many gangs share the CPUs; of one whose optimizer steps on the host, its share."""
    if gang.gpus_per_worker:
        return max(1, int(gang.cpus_per_worker))
    return max(1, int(machine.cpus) // (gang.num_workers * concurrent))


def _host_holds(model: Model, trained: int, gang: GangConfig, gangs: int, machine: Machine) -> bool:
    """Whether a node's memory is enough for its workers while they load, and for what they keep there."""
    if not machine.host_bytes:
        return True
    workers = min(max(machine.gpus_by_node) / gang.gpus_per_worker, gangs * gang.num_workers)
    return host_bytes(gang, model.num_parameters, trained, int(workers)) <= machine.host_bytes


def _step_seconds(model: Model, trained: int, gang: GangConfig, memory: Memory, machine: Machine) -> float:
    """Of one optimizer step: arithmetic, what the workers send each other, and the optimizer."""
    workers = gang.num_workers
    tokens = STEP_TOKENS / workers
    passes = math.ceil(tokens / gang.max_tokens)
    flop = (6 if trained > model.num_parameters / 2 else 4) + 2 * gang.checkpointing
    devices = workers if machine.gpus else 1
    arithmetic = flop * model.num_parameters * STEP_TOKENS / (EFFICIENCY * machine.flops * devices)
    arithmetic *= 1 + passes * PASS_OVERHEAD / tokens
    width = WIDTH[gang.precision]
    gradients, weights = width * trained, width * model.num_parameters
    # Sent by one worker: each pass reduces gradients under ZeRO-2 and 3, and gathers weights twice under ZeRO-3.
    sent = {
        0: 2 * gradients,
        1: 2 * gradients,
        2: passes * gradients + gradients,
        3: passes * (2 * weights + gradients),
    }[gang.zero_stage]
    is_inside = workers * gang.gpus_per_worker <= max(machine.gpus_by_node, default=workers)
    moved = 2 * (memory.gradients + memory.optimizer) + memory.weights
    stepping = moved / machine.bandwidth
    if offloads(gang):
        # Gradients and weights cross over, and AdamW reads and writes 16 bytes a parameter on the host.
        stepping = (2 * gradients + 28 * trained) / (HOST_BANDWIDTH * workers / max(machine.gpus, 1))
    return arithmetic + (workers > 1) * sent / (LINK if is_inside else NETWORK) + stepping


# ---- saying it


def _describe(fit: Fit, mode: int, model: Model, machine: Machine, asked: Asked) -> str:
    gang = fit.gang
    if not gang.trains:
        what = "weights alone, because nothing is trained"
    elif gang.lora_rank and asked.lora is None:
        what = f"low-rank adapters of rank {gang.lora_rank}, because all weights do not fit"
    elif gang.lora_rank:
        what = f"low-rank adapters of rank {gang.lora_rank}"
    elif offloads(gang) and mode:
        what = "all weights, the optimizer in host memory, because it does not fit beside them"
    else:
        what = "all weights"
    parts = [
        f"{what}; {counted(gang.num_workers, 'GPU' if gang.gpus_per_worker else 'CPU worker')} a trial",
        f"ZeRO-{gang.zero_stage}",
        *["activations recomputed"] * gang.checkpointing,
        f"{gang.max_tokens:,} tokens a pass",
        f"{counted(fit.gangs, 'trial')} at a time on {machine.describe()}",
    ]
    if machine.gpus:
        room = f"{fit.memory.peak / GIB:.1f} of {gpu_budget(gang, machine.memory_bytes) / GIB:.1f} GiB of each GPU"
    else:
        room = f"{(fit.memory.peak + PROCESS_BYTES) / GIB:.1f} GiB a worker"
    return f"{', '.join(parts)}; about {room}"


def refusal(model: Model, asked: Asked, machine: Machine) -> str:
    """What is missing, and the nearest that would do."""
    everything = [fit for fits in candidates(model, asked, machine) for fit in fits]
    least = min(everything, key=lambda fit: fit.memory.peak)
    if machine.gpus:
        budget = gpu_budget(asked.gang, machine.memory_bytes)
        needs = f"at least {least.memory.peak / GIB:.1f} GiB of each GPU, {budget / GIB:.1f} can be used"
        if least.memory.peak <= budget:
            needs = "more host memory than there is, or longer passes than a GPU can hold"
    else:
        needs = f"at least {(least.memory.peak + PROCESS_BYTES) / GIB:.1f} GiB a worker"
    start = f"{model.name} ({model.num_parameters / 1e9:.3g} B parameters) does not fit on {machine.describe()}"
    return f"{start}: a trial needs {needs}. {_way_on(model, asked, machine)}"


def _way_on(model: Model, asked: Asked, machine: Machine) -> str:
    free = ("lora", "zero", "workers")
    named = {key for key in free if getattr(asked, key) is not None}
    for keys in (["zero"], ["workers"], ["zero", "workers"], ["lora"], [*free]):
        if set(keys) <= named:
            tried = replace(asked, **dict.fromkeys(keys))  # type: ignore[arg-type]
            if found := best_of(candidates(model, tried, machine)):
                gang = found[1].gang
                rank = f" --lora {gang.lora_rank}" if gang.lora_rank != (asked.lora or 0) else ""
                shape = f"--workers-per-trial {gang.num_workers} --zero {gang.zero_stage}"
                return f"Give {shape}{rank}"
    count = max(machine.gpus, 1)
    while machine.gpus and (count := 2 * count) <= MOST_GPUS:
        per_node = max(8, *machine.gpus_by_node)
        larger = replace(machine, gpus_by_node=nodes_of(count, per_node), cpus=max(machine.cpus, count), host_bytes=0.0)
        if found := best_of(candidates(model, replace(asked, workers=None, zero=None), larger)):
            with_lora = f" with --lora {found[1].gang.lora_rank}" if found[1].gang.lora_rank else ""
            return f"It would fit on {count} such GPUs{with_lora}: give more of them, larger ones, or a smaller model"
    return f"Give {'more or larger GPUs' if machine.gpus else 'a machine with more memory'}, or a smaller model"

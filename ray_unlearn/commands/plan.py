"""`ray_unlearn plan`: what a search would take, by arithmetic from the model's configuration alone.

Memory is `fit.training_memory`, by which a search sizes itself. Time is compute: the model's arithmetic at a share of
what the device could do, and the optimizer at the speed of its memory.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import Benchmark, Probe, Request, Split
from ray_unlearn.commands import options as options_of
from ray_unlearn.commands.access import find_obstacles, list_repositories
from ray_unlearn.commands.checks import check_data
from ray_unlearn.commands.exit_codes import FAILED
from ray_unlearn.commands.machine import quiet
from ray_unlearn.commands.resources import GPU_BANDWIDTH, GPU_FLOPS, NODE_GPUS, describe_model
from ray_unlearn.config import GangConfig, TrialConfig, UserError
from ray_unlearn.hardware import free_memory, granted_cpus
from ray_unlearn.models.gguf import converted
from ray_unlearn.models.hub import parse_pins, pin_revisions
from ray_unlearn.models.loading import TOKENIZER_OF, check_model
from ray_unlearn.models.logprobs import DISTRIBUTION, LOGPROBS
from ray_unlearn.models.tokenizers import list_files
from ray_unlearn.search.space import load_space
from ray_unlearn.training.losses import RETAIN_LOSSES, Method, find_method
from ray_unlearn.training.memory import FEWEST_TOKENS, PROCESS_BYTES, WIDTH, gpu_budget, host_bytes, reference_bytes
from ray_unlearn.training.placement import (
    EFFICIENCY,
    GIB,
    Asked,
    Fit,
    Machine,
    Model,
    best_of,
    candidates,
    described,
    nodes_of,
    refusal,
)
from ray_unlearn.wording import counted

if TYPE_CHECKING:
    from rich.console import Console


STATED_SEQUENCES, STATED_LENGTH = 400, 512
"""Sequences to forget (and as many to retain) and their tokens, where the data cannot be read."""
PROBE_SIDE, PROBE_SECONDS = 1024, 0.2
"""Of the matrix product by which a CPU is measured."""


@dataclass(frozen=True)
class Amount:
    """How much there is to compute: sequences and tokens of each set, and those scored at an evaluation point."""

    num_forget: int
    forget_tokens: int
    num_retain: int
    retain_tokens: int
    scored_tokens: int
    longest: int
    answer_share: float
    """Of the tokens that are trained on, those that are answers."""
    says: str


@dataclass(frozen=True)
class Cost:
    """One trial of a method."""

    method: str
    tokens: int
    """Trained on, over all epochs."""
    steps: int
    seconds: float
    reference_bytes: float
    """On one worker, beside the plan's memory: what the method reads of the starting model."""


@dataclass(frozen=True)
class Plan:
    benchmark: str
    model: str
    num_parameters: int
    num_trained: int
    machine: Machine
    amount: Amount
    stages: tuple[Fit, ...]
    chosen: Fit | None
    concurrent: int
    costs: tuple[Cost, ...]
    hours: float
    """Of the search's wall clock."""
    device_hours: float
    command: str
    notes: tuple[str, ...]
    refusal: str
    """Why nothing fits, and what would; empty where something does."""


def run(options: options_of.Plan) -> int:
    from rich.console import Console

    plan = make_plan(options)
    if options.as_json:
        print(to_json(plan))
    else:
        show(plan, Console())
    return 0 if plan.chosen else FAILED


def make_plan(options: options_of.Plan) -> Plan:
    """Check the options, read what can be read, and choose. Raises UserError."""
    check_plan(options)
    options = replace(options, model=converted(options.model))
    benchmark = load_benchmark(options.benchmark)
    precision = options.precision or ("bf16" if options.gpus else "fp32")
    machine = find_machine(options, precision)
    amount = count_data(options, benchmark)
    gang = GangConfig(
        precision=precision, gpus_per_worker=1.0 if options.gpus else 0.0, train=options.train, num_workers=1
    )
    asked = Asked(
        gang,
        options.workers_per_trial,
        options.zero,
        options.lora,
        trials=options.trials * len(options.methods),
        longest=max(amount.longest, FEWEST_TOKENS),
        answer_share=amount.answer_share,
    )
    model = describe_model(options.model, gang)
    ways = candidates(model, asked, machine)
    best = best_of(ways)
    way, chosen = (ways[best[0]], best[1]) if best else (ways[0], None)
    placement = described(best, model, asked, machine) if best else None
    workers = (chosen or way[-1]).gang.num_workers
    shown = [fit for fit in way if fit.gang.num_workers == workers]
    shown.sort(key=lambda fit: (fit.gang.zero_stage, fit.gang.checkpointing))
    concurrent = chosen.gangs if chosen else 0
    trained = model.num_trained(way[0].gang.lora_rank)
    costs: list[Cost] = []
    notes = [placement.says if placement else "", amount.says, machine.says]
    if chosen:
        costs = [cost(find_method(m), benchmark, chosen, model, trained, amount, machine) for m in options.methods]
        room = worker_room(chosen.gang, machine, concurrent)
        for each in costs:
            if each.reference_bytes and each.reference_bytes + chosen.memory.peak > room:
                more = f"{each.reference_bytes / GIB:.1f} GiB"
                title = find_method(each.method).title
                notes.append(f"{title} reads whole distributions or hidden states: {more} more may not fit")
        notes += needs(options.model, chosen, model, trained, machine)
    seconds = sum(each.seconds for each in costs) * options.trials
    if options.gpus and precision != "bf16":
        notes.append("on GPUs `tune` takes bf16; fp32 is had with a --deepspeed file that switches bf16 off")
    return Plan(
        benchmark.name,
        options.model,
        model.num_parameters,
        trained,
        machine,
        amount,
        tuple(shown),
        chosen,
        concurrent,
        tuple(costs),
        seconds / max(concurrent, 1) / 3600,
        seconds * (workers if options.gpus else 1 / max(concurrent, 1)) / 3600,
        write_command(options, chosen, concurrent, machine) if chosen else "",
        tuple(filter(None, notes)),
        "" if chosen else refusal(model, asked, machine),
    )


def needs(name: str, fit: Fit, model: Model, trained: int, machine: Machine) -> Iterator[str]:
    """What a search takes beside the devices: the host's memory, disk, and access to the hub."""
    weights = WIDTH[fit.gang.precision] * model.num_parameters / GIB
    if machine.gpus:
        workers = min(max(machine.gpus_by_node), fit.gangs * fit.gang.num_workers)
        host = host_bytes(fit.gang, model.num_parameters, trained, workers) / GIB
        loading = counted(workers, "worker")
        yield f"host: up to {host:.0f} GiB of each node's memory while {loading} there load the model"
    yield f"disk: {weights:.1f} GiB in the results for the chosen model, and as much in the hub's cache if it is there"
    if not Path(name).expanduser().is_dir():
        yield (
            f"hub: where {name} or the data are gated, log in first (hf auth login); on a cluster set HF_TOKEN for the "
            "job, or HF_HOME to a cache that all nodes share"
        )


def check_plan(options: options_of.Plan) -> None:
    check_model(options.model)
    check_data(options.data)
    pin_revisions(parse_pins("--revision", options.revision))
    for name, value, least in (
        ("--gpus", options.gpus, 0),
        ("--gpu-memory", options.gpu_memory, 1),
        ("--workers-per-trial", options.workers_per_trial, 1),
        ("--lora", options.lora, 0),
        ("--length", options.length, 2),
        ("--trials", options.trials, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"{name} {value:g}: must be at least {least}. Give a larger number")
    if options.gpus and (options.workers_per_trial or 1) > options.gpus:
        raise UserError(
            f"--workers-per-trial {options.workers_per_trial}: each takes a GPU, and --gpus {options.gpus} are too "
            "few. Lower it"
        )
    if options.tflops is not None and options.tflops <= 0:
        raise UserError(f"--tflops {options.tflops:g}: must be above 0. Give what the data sheet says")
    if not options.methods:
        raise UserError("--methods: names no method. Give one or more, such as simnpo,npo,ga")
    for name in options.methods:
        find_method(name)


# ---- what there is


def find_machine(options: options_of.Plan, precision: str) -> Machine:
    """The GPUs that were named, or this machine's CPU, measured for a moment."""
    if options.gpus:
        flops = options.tflops * 1e12 if options.tflops else GPU_FLOPS[precision]
        says = (
            f"time: {EFFICIENCY:.0%} of {flops / 1e12:g} TFLOP/s a GPU{'' if options.tflops else ' (an A100)'}, the "
            f"optimizer at {GPU_BANDWIDTH / 1e12:g} TB/s; sending gradients, generating answers, attacks and finalists "
            "are not counted"
        )
        return Machine(
            nodes_of(options.gpus, NODE_GPUS),
            16.0 * options.gpus,
            options.gpu_memory * GIB,
            flops,
            GPU_BANDWIDTH,
            says=says,
        )
    flops, bandwidth = measure_cpu()
    flops = options.tflops * 1e12 if options.tflops else flops
    says = (
        f"time: {EFFICIENCY:.0%} of {flops / 1e9:.0f} GFLOP/s{'' if options.tflops else ' (measured just now)'}, the "
        f"optimizer at {bandwidth / 1e9:.0f} GB/s; generating answers, attacks and finalists are not counted"
    )
    return Machine((), granted_cpus(), free_memory(), flops, bandwidth, says=says)


def measure_cpu() -> tuple[float, float]:
    """FLOP/s of an fp32 matrix product on all cores, and bytes a second that a copy reads and writes."""
    import torch

    matrix = torch.rand(PROBE_SIDE, PROBE_SIDE)
    large = torch.rand(16 * PROBE_SIDE * PROBE_SIDE)

    def rate(work: Any, amount: float) -> float:
        work()
        count, began = 0, time.perf_counter()
        while (seconds := time.perf_counter() - began) < PROBE_SECONDS:
            work()
            count += 1
        return count * amount / seconds

    target = torch.empty_like(large)
    return rate(lambda: matrix @ matrix, 2.0 * PROBE_SIDE**3), rate(lambda: target.copy_(large), 8.0 * large.numel())


def count_data(options: options_of.Plan, benchmark: Benchmark) -> Amount:
    """Of the data that `tune` would read, where model or hub let them be read; else stated amounts, and that they are.

    Raises UserError where the split or the folder is none, or the folder holds data that cannot be read.
    """
    model = Path(options.model).expanduser()
    name = str(model.absolute()) if model.is_dir() else options.model
    request = Request("full", name, options.data and options.data.absolute(), options.split)
    needed = list_repositories(benchmark, request, {})
    try:
        if options.data is None and not needed and benchmark.build_task is None:
            raise UserError("it makes its own data")
        if obstacles := find_obstacles(needed):
            raise UserError("; ".join(obstacles))
        with quiet():
            task = benchmark.load(request)
    except UserError as error:
        if options.data is not None and list_files(TOKENIZER_OF.get(name, name)):
            raise
        length = options.length or STATED_LENGTH
        tokens = STATED_SEQUENCES * length
        says = (
            f"data: not read ({str(error).rpartition('. ')[0] or error}); assumed are {STATED_SEQUENCES} sequences of "
            f"{length} tokens to forget and as many to retain, and as many scored"
        )
        return Amount(STATED_SEQUENCES, tokens, STATED_SEQUENCES, tokens, 2 * tokens, length, 1.0, says)
    sets = (task.forget, task.retain)
    longest = max(options.length or 0, *(int(s.lengths.max()) for s in sets if len(s)))
    says = (
        f"data: {len(task.forget)} sequences of {task.forget.lengths.mean():.0f} tokens to forget, "
        f"{len(task.retain)} of {task.retain.lengths.mean() if len(task.retain) else 0:.0f} to retain"
    )
    return Amount(
        len(task.forget),
        int(task.forget.lengths.sum()),
        len(task.retain),
        int(task.retain.lengths.sum()),
        scored_tokens(task.selection),
        longest,
        sum(int(s.answer_lengths.sum()) for s in sets) / sum(int(s.lengths.sum()) for s in sets),
        says,
    )


def scored_tokens(split: Split) -> int:
    """Of one evaluation point; a prompt is computed once for all its answers."""

    def tokens(probe: Probe) -> int:
        sequences = probe.sequences
        prompts = [tree[0] for tree in sequences.trees()]
        return int(sequences.answer_lengths.sum() + sequences.answer_starts[np.array(prompts, int)].sum())

    return sum(tokens(probe) for probe in split.probes.values())


# ---- memory


def worker_room(gang: GangConfig, machine: Machine, concurrent: int) -> float:
    """Bytes that one worker's training may take, with so many gangs side by side."""
    if machine.gpus:
        return gpu_budget(gang, machine.memory_bytes)
    return machine.memory_bytes / (gang.num_workers * concurrent) - PROCESS_BYTES


# ---- time


def cost(
    method: Method,
    benchmark: Benchmark,
    fit: Fit,
    model: Model,
    trained: int,
    amount: Amount,
    machine: Machine,
) -> Cost:
    """6 N FLOP for a trained token (4 N where the weights themselves stand still, 2 N more with recomputation, and 2 N
    for the starting model's pass where the method reads one), 2 N for a scored one."""
    total = model.num_parameters
    fixed = load_space(method, benchmark, "full", total).fixed
    standard = TrialConfig("plan", method.name)
    epochs, batch = (int(fixed.get(key, getattr(standard, key))) for key in ("epochs", "batch_size"))
    evaluations = int(fixed.get("evaluations", standard.evaluations))
    steps = epochs * -(-amount.num_forget // batch)
    retained = amount.retain_tokens / max(amount.num_retain, 1) * amount.num_forget if method.uses_retain else 0.0
    # Alternates are about as long as what they stand for.
    tokens = epochs * (len(method.sets) * amount.forget_tokens + retained)
    whats = reads_of_start(method, str(fixed.get("retain_loss", "")))
    per_token = (6 if trained > total / 2 else 4) + 2 * fit.gang.checkpointing + 2 * bool(whats)
    flop = total * (per_token * tokens + 2.0 * amount.scored_tokens * evaluations)
    num_devices = fit.gang.num_workers if machine.gpus else 1 / fit.gangs
    # Gradients, moments and masters are read and written, weights written.
    moved = 2 * (fit.memory.gradients + fit.memory.optimizer) + fit.memory.weights
    share = 1 if machine.gpus else fit.gang.num_workers
    seconds = flop / (EFFICIENCY * machine.flops * num_devices) + steps * moved * share / machine.bandwidth
    extra = reference_bytes(model.config, fit.gang, trained, DISTRIBUTION in whats) if whats else 0.0
    return Cost(method.name, int(tokens), steps, seconds, extra)


def reads_of_start(method: Method, retain_loss: str) -> set[str]:
    """What a pass of the starting model is needed for in every step; nothing for cached log-probs."""
    whats = {method.reads} if method.reads_reference else set()
    if method.uses_retain:
        reads = RETAIN_LOSSES[retain_loss or method.retain_losses[0]].reads
        whats |= {reads} - {LOGPROBS}
    return whats


# ---- saying it


def write_command(options: options_of.Plan, fit: Fit, concurrent: int, machine: Machine) -> str:
    """The `tune` command line that the plan is of."""
    gang = fit.gang
    words = ["ray_unlearn", "tune", "--benchmark", options.benchmark, "--model", options.model]
    for name, value in (("--data", options.data), ("--split", options.split)):
        words += [name, str(value)] if value else []
    words += ["--methods", ",".join(options.methods), "--trials", str(options.trials)]
    words += ["--workers-per-trial", str(gang.num_workers), "--zero", str(gang.zero_stage)]
    words += ["--lora", str(gang.lora_rank)] * (gang.lora_rank > 0 or options.lora == 0)
    words += ["--train", options.train] * bool(options.train)
    words += ["--checkpointing"] * gang.checkpointing
    if not machine.gpus and concurrent < min(int(machine.cpus), options.trials * len(options.methods)):
        words += ["--concurrent", str(concurrent)]
    return shlex.join(words)


def to_json(plan: Plan) -> str:
    values = asdict(plan)
    for fit, entry in zip(plan.stages, values["stages"], strict=True):
        entry["memory"] |= {"states": fit.memory.states, "peak": fit.memory.peak}
    return json.dumps(values, indent=1)


def show(plan: Plan, console: Console) -> None:
    """Tables and sentences."""
    from rich.table import Table

    def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        made = Table(box=None, pad_edge=False, header_style="bold")
        for i, name in enumerate(columns):
            made.add_column(name, justify="right" if i else "left", no_wrap=True)
        for row in rows:
            made.add_row(*row)
        console.print(made)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    machine, workers = plan.machine, plan.stages[0].gang.num_workers
    where = machine.describe() if machine.gpus else "this machine's CPU"
    trained = "" if plan.num_trained == plan.num_parameters else f", {plan.num_trained:,} of them trained"
    say(f"{plan.model}: {plan.num_parameters:,} parameters{trained}, {plan.stages[0].gang.precision}, on {where}\n")
    say(f"GiB on one of {workers} worker(s) that train a trial together, by ZeRO stage (rec: activations recomputed):")
    parts = (
        "weights",
        "gradients",
        "optimizer",
        "snapshot",
        "buffers",
        "step",
        "activations",
        "logits",
        "heap",
        "peak",
    )
    rows = [(part, *(f"{getattr(fit.memory, part) / GIB:.2f}" for fit in plan.stages)) for part in parts]
    rows.append(("tokens", *(str(fit.gang.max_tokens) if fit.fits else "no fit" for fit in plan.stages)))
    names = [f"{fit.gang.zero_stage}{' rec' * fit.gang.checkpointing}" for fit in plan.stages]
    table(("ZeRO", *names), rows)
    say("")
    if plan.costs:
        table(
            ("method", "tokens a trial", "steps", "minutes a trial"),
            [(find_method(c.method).title, f"{c.tokens:,}", str(c.steps), f"{c.seconds / 60:.1f}") for c in plan.costs],
        )
        hours = (
            f"{plan.device_hours:.2g} GPU-hours" if machine.gpus else f"{plan.device_hours:.2g} hours of this machine"
        )
        say(f"\nThe search: about {plan.hours:.2g} hours with {counted(plan.concurrent, 'trial')} at a time, {hours}.")
    for note in plan.notes:
        say(note[0].upper() + note[1:])
    say(f"\n{plan.command}" if plan.command else f"\nNothing fits: {plan.refusal}")

"""The command line: parse, check everything that can be known, then import and call one function.

torch and Ray take seconds to import, so nothing here imports them before the options have been checked.
"""

from __future__ import annotations

import atexit
import gc
import math
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ray_unlearn import __version__
from ray_unlearn.config import SAMPLERS, UTILITY_FLOOR, Robustness, SearchFailed, UserError
from ray_unlearn.interruption import is_ending

FAILED, USAGE = 1, 2
"""Exit codes of a search that could not run and of wrong use; 0 complete, 3 partial, 130 and 143 interrupted."""
RESUMABLE = {"resume", "trials", "concurrent", "address", "keep_model", "trial_timeout", "copy_to", "trust_remote_code"}
"""Options of `tune` that a search which goes on may change."""
DEFAULT_TRIALS = 20

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Make a language model forget, and keep everything else: search the settings of unlearning methods.",
)


class Scale(StrEnum):
    auto = "auto"
    mini = "mini"
    full = "full"


class FixedScale(StrEnum):
    mini = "mini"
    full = "full"


class Objective(StrEnum):
    combined = "combined"
    pareto = "pareto"


class RelearnOrder(StrEnum):
    random = "random"
    shortest = "shortest"


class Sampler(StrEnum):
    tpe, gp, nsga2, qmc, random = SAMPLERS


class Precision(StrEnum):
    bf16 = "bf16"
    fp32 = "fp32"


class Zero(StrEnum):
    stage0, stage1, stage2, stage3 = "0", "1", "2", "3"


def _version(value: bool) -> None:
    if value:
        print(f"ray_unlearn {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    return None


BenchmarkOption = Annotated[
    str, typer.Option("--benchmark", "-b", help="wmdp, muse, tofu, synthetic, or the .toml file of your own data.")
]
ModelOption = Annotated[
    str | None, typer.Option(help="Starting model: a folder or a hub name. (default: the benchmark's own)")
]
DataOption = Annotated[
    Path | None, typer.Option(help="Local folder with the benchmark's data, laid out as on the hub.")
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        help="Which part to forget: forget01|05|10 (tofu), bio|cyber (wmdp), news|books|news-scal-1..4|news-sust-1..4 "
        "(muse)."
    ),
]
RetrainedOption = Annotated[
    Path | None,
    typer.Option(
        help="What the retrained model measures: a profile.json or its folder. (default: retrained/ beside the model)"
    ),
]
RobustnessOption = Annotated[
    str,
    typer.Option(
        help="Attacks on what is scored, comma-separated: relearn (fine-tune on a part of the forget set), quantise "
        "(4-bit weights), sample (worst of several answers); or none."
    ),
]
RelearnShareOption = Annotated[float, typer.Option(help="Share of the forget set that relearning has.")]
RelearnEpochsOption = Annotated[int, typer.Option(help="Epochs of relearning.")]
RelearnOrderOption = Annotated[RelearnOrder, typer.Option(help="Which part relearning has.")]
SamplesOption = Annotated[int, typer.Option(help="Answers sampled for each prompt.")]
UtilityFloorOption = Annotated[float, typer.Option(help="Least utility, relative to the starting model.")]
ScaleOption = Annotated[
    Scale,
    typer.Option(
        help="full: the real benchmark. mini: the same code on generated data and a tiny model. "
        "auto: full where a GPU is or where --model names a model, else mini."
    ),
]
WorkersOption = Annotated[int, typer.Option(help="Workers that train one trial together.")]
GpusOption = Annotated[float | None, typer.Option(help="GPUs of one worker. (default: 1 where there are GPUs, else 0)")]
ZeroOption = Annotated[Zero, typer.Option(help="DeepSpeed ZeRO stage.")]
ZeroOrFileOption = Annotated[
    Zero | None, typer.Option(help="DeepSpeed ZeRO stage. (default: 2, or that of the --deepspeed file)")
]
DeepspeedOption = Annotated[
    Path | None,
    typer.Option(
        help="DeepSpeed JSON file (see cluster/deepspeed) whose zero_optimization and bf16 are laid over ours."
    ),
]
LoraOption = Annotated[
    int, typer.Option(help="Train low-rank adapters of this rank in place of all weights; 0: do not.")
]
TrainOption = Annotated[
    str, typer.Option(help="Train only parameters in whose name this regular expression is found. (default: all)")
]
CheckpointingOption = Annotated[
    bool, typer.Option("--checkpointing", help="Recompute activations: less memory, a third more arithmetic.")
]


def _trust(value: bool) -> bool:
    from ray_unlearn.model import trust_remote_code

    trust_remote_code(value)
    return value


TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", callback=_trust, help="Run code that lies beside the model's weights. Read it first."
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(envvar="RAY_ADDRESS", help="Ray cluster to use. (default: one of its own on this machine)"),
]


@app.command()
def tune(
    context: typer.Context,
    benchmark: Annotated[
        str | None,
        typer.Option("--benchmark", "-b", help="wmdp, muse, tofu, synthetic, or the .toml file of your own data."),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="PATH_OR_URI",
            help="Go on with the search in this folder, or at this copy, after anything; --trials may ask for more.",
        ),
    ] = None,
    methods: Annotated[str, typer.Option(help="Methods to search, comma-separated.")] = "simnpo,npo,ga",
    space: Annotated[
        list[Path] | None,
        typer.Option(help="Search-space TOML file for the method that it names; repeatable."),
    ] = None,
    model: ModelOption = None,
    data: DataOption = None,
    split: SplitOption = None,
    retrained: RetrainedOption = None,
    scale: ScaleOption = Scale.auto,
    trials: Annotated[int | None, typer.Option(help=f"Trials of each method. (default: {DEFAULT_TRIALS})")] = None,
    concurrent: Annotated[int | None, typer.Option(help="Trials at a time. (default: what the machine holds)")] = None,
    trial_timeout: Annotated[float | None, typer.Option(help="Seconds that one trial may take. (default: any)")] = None,
    workers_per_trial: WorkersOption = 1,
    gpus_per_worker: GpusOption = None,
    accelerator: Annotated[
        str,
        typer.Option(metavar="TYPE", help="Kind of GPU for every worker, as Ray names it: A100, say. (default: any)"),
    ] = "",
    grow_to: Annotated[
        str,
        typer.Option(
            metavar="RESOURCES", help="What the cluster's autoscaler may bring it to: GPU=16 or GPU=16,CPU=64, say."
        ),
    ] = "",
    zero: ZeroOrFileOption = None,
    deepspeed: DeepspeedOption = None,
    lora: LoraOption = 0,
    train: TrainOption = "",
    checkpointing: CheckpointingOption = False,
    objective: Annotated[
        Objective, typer.Option(help="combined: one number. pareto: forget and utility side by side.")
    ] = Objective.combined,
    utility_floor: UtilityFloorOption = UTILITY_FLOOR,
    sampler: Annotated[
        Sampler,
        typer.Option(
            help="Where settings come from. tpe, gp, nsga2: published ones, spread ones, then learnt. "
            "qmc: published, then spread. random: random."
        ),
    ] = Sampler.tpe,
    prune: Annotated[bool, typer.Option(help="Stop trials early that lag behind their method's others.")] = False,
    harvest: Annotated[
        bool, typer.Option(help="Also score models between the starting one and each trial's, as candidates.")
    ] = False,
    robustness: RobustnessOption = "relearn,quantise",
    under: Annotated[
        str, typer.Option(help="Attacks on every trial; its forget score is then the worst. Names as in --robustness.")
    ] = "none",
    relearn_share: RelearnShareOption = 0.2,
    relearn_epochs: RelearnEpochsOption = 3,
    relearn_order: RelearnOrderOption = RelearnOrder.random,
    samples: SamplesOption = 8,
    log_to: Annotated[
        str,
        typer.Option(help="Show trials while they run in any of tensorboard, wandb, mlflow, comma-separated; or none."),
    ] = "none",
    seed: Annotated[int, typer.Option(help="Seed of the search and of every trial.")] = 0,
    trust_remote_code: TrustOption = False,
    address: AddressOption = None,
    out: Annotated[Path, typer.Option(help="Folder that gets the search's own folder.")] = Path("results"),
    keep_model: Annotated[bool, typer.Option(help="Keep the chosen model's weights.")] = True,
    copy_to: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="Copy the search's folder into this one while it runs: s3://bucket/prefix, gs://..., or what fsspec "
            "opens; or none. (default: nowhere, or with --resume as before)",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would run, run nothing.")
    ] = False,
) -> None:
    """Search the settings of unlearning methods, each with the same number of trials."""
    from ray_unlearn import commands

    if resume is not None:
        given = {name for name in context.params if _is_given(context, name)}
        if others := sorted(given - RESUMABLE):
            raise UserError(
                f"--{others[0].replace('_', '-')}: a search goes on with its own settings. Leave it out, or leave out "
                "--resume to search anew"
            )
        copy_to = copy_to or _copied_to(resume)
        again = commands.ResumeOptions(_local(resume), trials, concurrent, trial_timeout, address, keep_model, copy_to)
        raise typer.Exit(commands.resume(again))
    if benchmark is None:
        raise UserError("tune: what to forget? Give --benchmark NAME, or --resume FOLDER to go on with a search")
    options = commands.TuneOptions(
        benchmark=benchmark,
        methods=tuple(m.strip() for m in methods.split(",") if m.strip()),
        spaces=tuple(space or ()),
        model=model,
        data=data,
        split=split,
        retrained=retrained,
        scale=scale.value,
        trials=DEFAULT_TRIALS if trials is None else trials,
        concurrent=concurrent,
        trial_timeout=trial_timeout or 0.0,
        workers_per_trial=workers_per_trial,
        gpus_per_worker=gpus_per_worker,
        accelerator=accelerator,
        grow_to=_amounts(grow_to, "--grow-to"),
        zero=int(zero.value) if zero else None,
        deepspeed=deepspeed,
        lora=lora,
        train=train,
        checkpointing=checkpointing,
        objective=objective.value,
        utility_floor=utility_floor,
        sampler=sampler.value,
        prune=prune,
        harvest=harvest,
        robustness=_robustness(robustness, relearn_share, relearn_epochs, relearn_order, samples),
        under=_names(under),
        log_to=_names(log_to),
        seed=seed,
        address=address,
        out=out,
        keep_model=keep_model,
        copy_to=None if copy_to == "none" else copy_to,
    )
    raise typer.Exit(commands.tune(options, dry_run))


def _local(named: str) -> Path:
    """The folder that a command is to read; a copy elsewhere is fetched first."""
    from ray_unlearn.copies import fetch_search, is_uri

    return fetch_search(named) if is_uri(named) else Path(named)


def _copied_to(named: str) -> str | None:
    """Where a search that is named by its copy goes on being copied to."""
    from ray_unlearn.copies import is_uri, split

    return split(named)[0] if is_uri(named) else None


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


@app.command()
def prepare(
    benchmark: BenchmarkOption,
    out: Annotated[Path, typer.Option(help="Folder that gets target/ and retrained/.")],
    model: Annotated[str | None, typer.Option(help="Base model to fine-tune: a folder or a hub name.")] = None,
    data: DataOption = None,
    split: SplitOption = None,
    epochs: Annotated[int, typer.Option(help="Epochs of fine-tuning.")] = 5,
    batch_size: Annotated[int, typer.Option(help="Sequences in one optimizer step, over all workers.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-5,
    workers: WorkersOption = 1,
    gpus_per_worker: GpusOption = None,
    zero: ZeroOption = Zero.stage2,
    seed: Annotated[int, typer.Option(help="Seed of the order of the data.")] = 0,
    trust_remote_code: TrustOption = False,
    address: AddressOption = None,
) -> None:
    """Make the target model (fine-tuned on everything) and the retrained one (without the forget split)."""
    from ray_unlearn import commands

    options = commands.PrepareOptions(
        benchmark=benchmark,
        out=out,
        model=model,
        data=data,
        split=split,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        zero=int(zero.value),
        seed=seed,
        address=address,
    )
    raise typer.Exit(commands.prepare(options))


@app.command()
def evaluate(
    benchmark: BenchmarkOption,
    model: Annotated[str, typer.Option(help="The model to score: a folder or a hub name.")],
    start: Annotated[
        str | None, typer.Option(help="The model that unlearning started from; then forget and utility are told, too.")
    ] = None,
    data: DataOption = None,
    split: SplitOption = None,
    retrained: RetrainedOption = None,
    profile: Annotated[
        Path | None, typer.Option(help="Write the scores here as a retrained model's, for --retrained.")
    ] = None,
    scale: ScaleOption = Scale.auto,
    harness: Annotated[
        str, typer.Option(help="Tasks for lm-evaluation-harness itself, such as wmdp_bio,mmlu; needs [harness].")
    ] = "none",
    harness_tasks: Annotated[Path | None, typer.Option(help="Folder with task files of your own for it.")] = None,
    robustness: RobustnessOption = "none",
    relearn_share: RelearnShareOption = 0.2,
    relearn_epochs: RelearnEpochsOption = 3,
    relearn_order: RelearnOrderOption = RelearnOrder.random,
    samples: SamplesOption = 8,
    workers: WorkersOption = 1,
    gpus_per_worker: GpusOption = None,
    zero: ZeroOption = Zero.stage2,
    utility_floor: UtilityFloorOption = UTILITY_FLOOR,
    seed: Annotated[int, typer.Option(help="Seed of the attacks.")] = 0,
    trust_remote_code: TrustOption = False,
    address: AddressOption = None,
    out: Annotated[Path, typer.Option(help="Folder that gets the evaluation's own folder.")] = Path("results"),
) -> None:
    """Score any model on the whole of a benchmark with every metric, as the literature does."""
    from ray_unlearn import commands

    options = commands.EvaluateOptions(
        benchmark=benchmark,
        model=model,
        start=start,
        data=data,
        split=split,
        retrained=retrained,
        profile=profile,
        scale=scale.value,
        harness=_names(harness),
        harness_tasks=harness_tasks,
        robustness=_robustness(robustness, relearn_share, relearn_epochs, relearn_order, samples),
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        zero=int(zero.value),
        utility_floor=utility_floor,
        seed=seed,
        address=address,
        out=out,
    )
    raise typer.Exit(commands.evaluate(options))


def _robustness(attacks: str, share: float, epochs: int, order: RelearnOrder, samples: int) -> Robustness:
    return Robustness(
        _names(attacks),
        relearn_share=share,
        relearn_epochs=epochs,
        relearn_order=order.value,
        samples=samples,
    )


def _amounts(listed: str, option: str) -> dict[str, float]:
    """Resources as one writes them, GPU=16,CPU=64."""
    try:
        pairs = [part.split("=") for part in listed.split(",") if part.strip()]
        amounts = {name.strip(): float(amount) for name, amount in pairs}
        if not amounts.keys() <= {"CPU", "GPU"} or any(not 0 < amount < math.inf for amount in amounts.values()):
            raise ValueError
    except ValueError:
        raise UserError(f"{option} {listed}: not amounts of CPU and GPU. Write GPU=16 or GPU=16,CPU=64") from None
    return amounts


def _names(listed: str) -> tuple[str, ...]:
    """What a comma-separated option names, each once; nothing for "none"."""
    return tuple(dict.fromkeys(name for part in listed.split(",") if (name := part.strip()) not in ("", "none")))


FolderArgument = Annotated[
    str, typer.Argument(metavar="FOLDER_OR_URI", help="The search's folder, as `tune` printed it, or its copy.")
]
SameAddressOption = Annotated[str | None, typer.Option(help="Ray cluster to use. (default: the search's)")]


@app.command()
def compare(
    folder: FolderArgument,
    seeds: Annotated[int, typer.Option(help="Runs of every finalist, each with a seed of its own.")] = 5,
    top: Annotated[int, typer.Option(help="Finalists of each method.")] = 1,
    frontier: Annotated[bool, typer.Option(help="Also every other point of the frontier.")] = False,
    concurrent: Annotated[int | None, typer.Option(help="Runs at a time. (default: what the machine holds)")] = None,
    allow_unequal: Annotated[
        bool, typer.Option("--allow-unequal", help="Compare methods that had unequal budgets, and say so.")
    ] = False,
    trust_remote_code: TrustOption = False,
    address: SameAddressOption = None,
) -> None:
    """Train each method's best again with new seeds, and say which differences hold."""
    from ray_unlearn import commands

    options = commands.CompareOptions(_local(folder), seeds, top, frontier, concurrent, allow_unequal, address)
    raise typer.Exit(commands.compare(options))


@app.command()
def export(
    folder: FolderArgument,
    trial: Annotated[str, typer.Option(help="Which trial: its name, or best.")] = "best",
    out: Annotated[
        Path | None, typer.Option(help="Folder to make. (default: export/ and the trial's name, in the search's)")
    ] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="The LoRA adapter by itself, for peft. (default: merged)")
    ] = False,
    trust_remote_code: TrustOption = False,
    address: SameAddressOption = None,
) -> None:
    """Write a trial's model as a folder to pass on, with a model card and what it takes to make it again."""
    from ray_unlearn import commands

    raise typer.Exit(commands.export(commands.ExportOptions(_local(folder), trial, out, adapter, address)))


@app.command()
def reproduce(
    what: Annotated[
        str, typer.Argument(help="The reproduce.json of an exported model; or synthetic (SimNPO, section 5).")
    ],
    benchmark: Annotated[
        Path | None, typer.Option(help="Of an export that was searched on your own data: their .toml file.")
    ] = None,
    model: ModelOption = None,
    data: DataOption = None,
    retrained: RetrainedOption = None,
    scale: Annotated[
        FixedScale,
        typer.Option(help="Of synthetic. full: the paper's models and data. mini: smaller ones, for a first look."),
    ] = FixedScale.full,
    seeds: Annotated[int, typer.Option(help="Of synthetic: seeds of every method; from 5 on there is a verdict.")] = 5,
    concurrent: Annotated[
        int | None, typer.Option(help="Of synthetic: runs at a time. (default: what the machine holds)")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Workers of a gang. (default: as many as then; 1)")] = None,
    gpus_per_worker: GpusOption = None,
    zero: Annotated[Zero | None, typer.Option(help="DeepSpeed ZeRO stage. (default: as then; 2)")] = None,
    trust_remote_code: TrustOption = False,
    address: AddressOption = None,
    out: Annotated[Path, typer.Option(help="Of synthetic: folder that gets the reproduction's own folder.")] = Path(
        "results"
    ),
) -> None:
    """Run an exported trial again and compare figures and weights; or a paper's experiment, and say what holds."""
    from ray_unlearn import commands

    stage = int(zero.value) if zero is not None else None
    if what.endswith(".json"):
        again = commands.RepeatOptions(Path(what), benchmark, model, data, retrained, workers, stage, address)
        raise typer.Exit(commands.repeat(again))
    options = commands.ReproduceOptions(
        what=what,
        scale=scale.value,
        seeds=seeds,
        concurrent=concurrent,
        workers=1 if workers is None else workers,
        gpus_per_worker=gpus_per_worker,
        zero=commands.DEFAULT_ZERO if stage is None else stage,
        address=address,
        out=out,
    )
    raise typer.Exit(commands.reproduce(options))


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One method. (default: all of them)")] = None,
) -> None:
    """Print every method: formula, paper, parameters, what it needs, and its names in other code bases."""
    from ray_unlearn.methods_page import describe_methods

    print(describe_methods(name))


@app.command()
def benchmarks(
    name: Annotated[
        str | None, typer.Argument(help="One benchmark, or the .toml file of your own data. (default: all of them)")
    ] = None,
) -> None:
    """Print every benchmark: what is forgotten, where its data come from, its scales, its exact objective."""
    from ray_unlearn.benchmarks_page import describe_benchmarks

    print(describe_benchmarks(name))


@app.command()
def report(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER_OR_URI", help="The folder that `tune` or `reproduce` printed, or the copy of a search."
        ),
    ],
) -> None:
    """Write a search's or a reproduction's report again: HTML page, pictures, tables."""
    from ray_unlearn.commands import report_again

    for path in report_again(_local(folder)):
        print(path)


@app.command()
def verify(
    folder: FolderArgument,
    repair: Annotated[
        bool, typer.Option("--repair", help="Write damaged or missing files of trials again, from the ledger.")
    ] = False,
) -> None:
    """Check every file of a search against its checksum, and name what is damaged or missing."""
    from ray_unlearn.verify import describe_findings, verify_search

    here = _local(folder)
    findings = verify_search(here, repair)
    print(describe_findings(here, findings))
    raise typer.Exit(FAILED if any(not finding.is_repaired for finding in findings) else 0)


@app.command()
def doctor(
    benchmark: Annotated[str | None, typer.Option("--benchmark", "-b", help="Check this benchmark too.")] = None,
    model: Annotated[str | None, typer.Option(help="Check this model too: a folder or a hub name.")] = None,
    data: DataOption = None,
    split: SplitOption = None,
    address: AddressOption = None,
    start_ray: Annotated[bool, typer.Option("--start-ray", help="Start a local Ray cluster and end it.")] = False,
    out: Annotated[Path, typer.Option(help="Folder that results will go to.")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine, or a cluster, before a search: versions, GPUs, disk, hub, authentication, ports."""
    from ray_unlearn.doctor import examine, has_problem, show

    checks = examine(benchmark, model, data, split, address, start_ray, out)
    print(show(checks, as_json))
    raise typer.Exit(FAILED if has_problem(checks) else 0)


@app.command()
def plan(
    benchmark: BenchmarkOption,
    model: Annotated[str, typer.Option(help="Starting model: a folder (its config.json is enough) or a hub name.")],
    data: DataOption = None,
    split: SplitOption = None,
    gpus: Annotated[int, typer.Option(help="GPUs that there are. (default: none, this machine's CPU)")] = 0,
    gpu_memory: Annotated[float, typer.Option(help="GiB of one GPU.")] = 80.0,
    tflops: Annotated[
        float | None, typer.Option(help="Peak TFLOP/s of one GPU, or of the CPU. (default: an A100's; measured)")
    ] = None,
    workers_per_trial: Annotated[
        int | None, typer.Option(help="Workers that train one trial together. (default: the fewest that fit)")
    ] = None,
    zero: Annotated[Zero | None, typer.Option(help="DeepSpeed ZeRO stage. (default: each is tried)")] = None,
    lora: LoraOption = 0,
    train: TrainOption = "",
    precision: Annotated[Precision | None, typer.Option(help="(default: bf16 on GPUs, fp32 on a CPU)")] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens of a sequence, where the data cannot be read. (default: 512)")
    ] = None,
    trials: Annotated[int, typer.Option(help="Trials of each method.")] = 20,
    methods: Annotated[str, typer.Option(help="Methods to search, comma-separated.")] = "simnpo,npo,ga",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a search would take before it is started: memory by ZeRO stage, time, and the command to run."""
    from rich.console import Console

    from ray_unlearn import plan as plans

    options = plans.PlanOptions(
        benchmark=benchmark,
        model=model,
        data=data,
        split=split,
        gpus=gpus,
        gpu_memory=gpu_memory,
        tflops=tflops,
        workers=workers_per_trial,
        zero=int(zero.value) if zero else None,
        lora=lora,
        train=train,
        precision=precision.value if precision else None,
        length=length,
        trials=trials,
        methods=_names(methods),
    )
    made = plans.make_plan(options)
    if as_json:
        print(plans.to_json(made))
    else:
        plans.show(made, Console())
    raise typer.Exit(0 if made.chosen else FAILED)


@app.command(
    epilog="Example: ray_unlearn submit --address http://HEAD:8265 -- tune --benchmark wmdp --out /shared/results"
)
def submit(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="-- COMMAND [OPTIONS]", help="What to run there, after a --.")
    ] = None,
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard.")
    ] = "http://127.0.0.1:8265",
    working_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder to upload, at most 100 MiB; what .gitignore and .rayignore name stays here. "
            "(default: this one if it is a checkout, else nothing)"
        ),
    ] = None,
    no_follow: Annotated[bool, typer.Option("--no-follow", help="Do not show the log until the job ends.")] = False,
    follow: Annotated[str | None, typer.Option(metavar="JOB", help="Show the log of that job instead.")] = None,
    stop: Annotated[str | None, typer.Option(metavar="JOB", help="Stop that job instead.")] = None,
    write_rayjob: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the command as a KubeRay RayJob instead.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; the log goes to standard error.")] = False,
) -> None:
    """Run another command as a job of a Ray cluster; its exit code is the job's. Ctrl-C leaves the job running."""
    from ray_unlearn import submit as jobs

    asked = {"a command": words, "--follow": follow, "--stop": stop}
    if sum(map(bool, asked.values())) != 1:
        given = ", ".join(name for name, value in asked.items() if value) or "nothing"
        raise UserError(f"submit: {given} given. Give one of: -- COMMAND, --follow JOB, --stop JOB")
    if follow:
        raise typer.Exit(jobs.follow_job(follow, address, as_json))
    if stop:
        raise typer.Exit(jobs.stop_job(stop, address, as_json))
    if write_rayjob is not None:
        jobs.write_rayjob(write_rayjob, words or [])
        print(write_rayjob)
        return
    options = jobs.SubmitOptions(tuple(words or ()), address, working_dir, not no_follow, as_json)
    raise typer.Exit(jobs.submit(options))


def main() -> None:
    """One clear line and exit code 2 for whatever the user can fix."""
    try:
        app()
    except UserError as error:
        print(f"ray_unlearn: {error}", file=sys.stderr)
        sys.exit(USAGE)
    except SearchFailed as error:
        print(f"ray_unlearn: {error}", file=sys.stderr)
        sys.exit(FAILED)


def run() -> None:
    """The process's entry point."""
    atexit.register(gc.freeze)  # its end takes two seconds if it looks through all of torch for what can be freed
    try:
        main()
    except SystemExit as end:
        if is_ending():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else FAILED)
        raise


if __name__ == "__main__":
    run()

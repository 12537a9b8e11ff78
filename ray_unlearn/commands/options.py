"""The options of every command, each written once: a frozen dataclass a command.

The command line (parser.py) and the help are made from these and from shared_options.py. A field is an option: its
name, type, default and help text stand there and nowhere else. Imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from ray_unlearn.benchmarks import NAMED
from ray_unlearn.commands.shared_options import (
    BENCHMARK,
    DEFAULT_TRIALS,
    FOLDER,
    JSON,
    Amounts,
    Attacks,
    Configured,
    Connects,
    DeepSpeed,
    GpusPerWorker,
    Levels,
    Loads,
    Lora,
    Names,
    Reopens,
    Retrained,
    Scale,
    ThroughDriver,
    TrustModel,
    Zero,
    in_advanced,
    in_budget,
    in_hardware,
    in_what,
)
from ray_unlearn.config import RECOMMENDED_UNITS, SAMPLERS, UTILITY_FLOOR
from ray_unlearn.files import results_folder


@dataclass(frozen=True, kw_only=True)
class Tune(Configured, Loads, Attacks, Connects):
    """Search the settings of unlearning methods, each with the same number of trials."""

    benchmark: Annotated[str | None, BENCHMARK] = None
    methods: Annotated[Names, in_what("Methods to search, comma-separated.")] = ("simnpo", "npo", "ga")
    space: Annotated[tuple[Path, ...], in_what("Search-space TOML file for the method that it names; repeatable.")] = ()
    retrained: Retrained = None
    scale: Scale = "auto"
    resume: Annotated[
        str | None,
        in_what(
            "Go on with the search in this folder, or at this copy, after anything; --trials may ask for more.",
            metavar="PATH_OR_URI",
        ),
    ] = None
    dry_run: Annotated[bool, in_what("Check everything, say what would run, run nothing.", "--dry-run")] = False
    trials: Annotated[int | None, in_budget(f"Trials of each method. (default: {DEFAULT_TRIALS})")] = None
    searches: Annotated[
        int, in_budget("Search so many times, each with a seed of its own, and compare methods over all of them.")
    ] = 1
    trial_timeout: Annotated[float | None, in_budget("Seconds that one trial may take. (default: any)")] = None
    prune: Annotated[bool, in_budget("Stop trials early that lag behind their method's others.")] = False
    sampler: Annotated[
        Literal[SAMPLERS],  # type: ignore[valid-type]
        in_budget(
            "Where settings come from. tpe, gp, nsga2: published ones, spread ones, then learnt. "
            "qmc: published, then spread. random: random."
        ),
    ] = "tpe"
    seed: Annotated[int, in_budget("Seed of the search and of every trial.")] = 0
    in_order: Annotated[
        bool | None,
        in_budget(
            "Propose the same whichever trial ends first: one command, one table. (default: where that is cheap)"
        ),
    ] = None
    concurrent: Annotated[int | None, in_hardware("Trials at a time. (default: what the machine holds)")] = None
    workers_per_trial: Annotated[
        int | None, in_hardware("Workers that train one trial together. (default: as many as the model needs)")
    ] = None
    gpus_per_worker: GpusPerWorker = None
    accelerator: Annotated[
        str, in_hardware("Kind of GPU, as Ray names it: A100, say. (default: any)", metavar="TYPE")
    ] = ""
    grow_to: Annotated[
        Amounts,
        in_hardware(
            "What the cluster's autoscaler may bring it to: GPU=16 or GPU=16,CPU=64, say.", metavar="RESOURCES"
        ),
    ] = field(default_factory=dict)
    zero: Zero = None
    deepspeed: DeepSpeed = None
    lora: Lora = None
    gpu_memory: Annotated[
        float | None, in_hardware("GiB of one GPU, where it cannot be asked: of a cluster that is yet to grow, say.")
    ] = None
    train: Annotated[
        str, in_hardware("Train only parameters in whose name this regular expression is found. (default: all)")
    ] = ""
    checkpointing: Annotated[
        bool,
        in_hardware("Recompute activations: less memory, a third more arithmetic.", "--checkpointing"),
    ] = False
    objective: Annotated[
        Literal["combined", "pareto"],
        in_advanced("combined: one number. pareto: forget and utility side by side."),
    ] = "combined"
    utility_floor: Annotated[float, in_advanced("Least utility, relative to the starting model.")] = UTILITY_FLOOR
    harvest: Annotated[
        bool, in_advanced("Also score models between the starting one and each trial's, as candidates.")
    ] = False
    under: Annotated[
        Names,
        in_advanced("Attacks on every trial; its forget score is then the worst. Names as in --robustness."),
    ] = ()
    robustness: Annotated[
        Names,
        in_advanced(
            "Attacks on the finalists, comma-separated: relearn (fine-tune on a part of the forget set), quantise "
            "(4-bit weights), sample (worst of several answers); or none."
        ),
    ] = ("relearn", "quantise")
    log_to: Annotated[
        Names,
        in_advanced("Show trials while they run in any of tensorboard, wandb, mlflow, comma-separated; or none."),
    ] = ()
    out: Annotated[Path, in_advanced("Folder that gets the search's own folder.")] = field(
        default_factory=results_folder
    )
    keep_model: Annotated[bool, in_advanced("Keep the chosen model's weights.")] = True
    through_driver: ThroughDriver = False
    copy_to: Annotated[
        str | None,
        in_advanced(
            "Copy the search's folder into this one while it runs: s3://bucket/prefix, gs://..., or what fsspec "
            "opens; or none. (default: nowhere, or with --resume as before)",
            metavar="URI",
        ),
    ] = None


RESUMABLE = {
    *("resume", "trials", "searches", "concurrent", "address", "keep_model", "trial_timeout", "copy_to"),
    *("through_driver", "trust_remote_code", "trust_code"),
}
"""Options of `tune` that a search which goes on may change."""


@dataclass(frozen=True, kw_only=True)
class Prepare(Configured, Loads, Connects):
    """Make the target model (fine-tuned on everything) and the retrained one (without the forget split)."""

    benchmark: Annotated[str, BENCHMARK]
    out: Annotated[Path, in_what("Folder that gets target/ and retrained/.")]
    model: Annotated[str | None, in_what("Base model to fine-tune: a folder or a hub name.")] = None
    epochs: Annotated[int, in_budget("Epochs of fine-tuning.")] = 5
    batch_size: Annotated[int, in_budget("Sequences in one optimizer step, over all workers.")] = 32
    learning_rate: Annotated[
        float | None,
        in_budget("Peak learning rate. (default: by the model's size: 1e-5 at 7B, 3e-5 at 1B, 1e-4 at 135M)"),
    ] = None
    schedule: Annotated[
        Literal["linear", "constant"], in_budget("What follows the warm-up: linear to 0, or constant.")
    ] = "linear"
    weight_decay: Annotated[float, in_budget("AdamW's weight decay.")] = 0.01
    seed: Annotated[int, in_budget("Seed of the order of the data.")] = 0
    workers: Annotated[int | None, in_hardware("Workers that train together. (default: what the model needs)")] = None
    gpus_per_worker: GpusPerWorker = None
    zero: Zero = None
    deepspeed: DeepSpeed = None
    lora: Lora = None
    through_driver: ThroughDriver = False


@dataclass(frozen=True, kw_only=True)
class Evaluate(Configured, Loads, Attacks, Connects):
    """Score any model on the whole of a benchmark with every metric, as the literature does."""

    model: Annotated[str, in_what("The model to score: a folder or a hub name.")] = field()
    benchmark: Annotated[str | None, BENCHMARK] = None
    start: Annotated[
        str | None,
        in_what("The model that unlearning started from; then forget and utility are told, too."),
    ] = None
    retrained: Retrained = None
    profile: Annotated[Path | None, in_what("Write the scores here as a retrained model's, for --retrained.")] = None
    scale: Scale = "auto"
    harness: Annotated[
        Names,
        in_advanced("Tasks for lm-evaluation-harness itself, such as wmdp_bio,mmlu; needs [harness]."),
    ] = ()
    harness_tasks: Annotated[Path | None, in_advanced("Folder with task files of your own for it.")] = None
    workers: Annotated[int | None, in_hardware("Workers that score together. (default: what the model needs)")] = None
    gpus_per_worker: GpusPerWorker = None
    zero: Zero = None
    utility_floor: Annotated[float, in_advanced("Least utility, relative to the starting model.")] = UTILITY_FLOOR
    seed: Annotated[int, in_advanced("Seed of the attacks.")] = 0
    out: Annotated[Path, in_advanced("Folder that gets the evaluation's own folder.")] = field(
        default_factory=results_folder
    )


@dataclass(frozen=True, kw_only=True)
class Compare(Reopens):
    """Train each method's best again with new seeds, or search again, and say which differences hold."""

    seeds: Annotated[int, in_budget("Runs of every finalist, each with a seed of its own.")] = RECOMMENDED_UNITS
    searches: Annotated[
        int | None,
        in_budget(
            "Compare methods, and not only settings: search again until there are so many searches, this included."
        ),
    ] = None
    against: Annotated[
        tuple[Path, ...],
        in_what("With further searches that differ in their seeds alone: compare methods over all of them.", "--with"),
    ] = ()
    at_utility: Annotated[
        Levels,
        in_what("Compare forgetting alone where utility is equal: at 0.95,0.9,0.8, say.", metavar="LEVELS"),
    ] = ()
    top: Annotated[int, in_budget("Finalists of each method.")] = 1
    frontier: Annotated[bool, in_budget("Also every other point of the frontier.")] = False
    concurrent: Annotated[int | None, in_hardware("Runs at a time. (default: what the machine holds)")] = None
    allow_unequal: Annotated[bool, in_advanced("Compare methods that had unequal budgets.", "--allow-unequal")] = False


@dataclass(frozen=True, kw_only=True)
class Export(Reopens):
    """Write a trial's model as a folder to pass on, with a model card and what it takes to make it again."""

    trial: Annotated[str, in_what("Which trial: its name, or best.")] = "best"
    out: Annotated[Path | None, in_what("Folder to make. (default: export/TRIAL in the search's)")] = None
    at_utility: Annotated[
        float | None,
        in_what("Of the line from the starting model to the trial's end, the farthest point of at least this utility."),
    ] = None
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"] | None,
        in_what("What the weights are written in. (default: as the starting model's)"),
    ] = None
    adapter: Annotated[bool, in_what("The LoRA adapter by itself, for peft. (default: merged)", "--adapter")] = False
    max_shard_size: Annotated[
        str | None, in_what("Most of a file of weights: 2GB, say. (default: what transformers takes)", metavar="SIZE")
    ] = None
    push: Annotated[
        str | None, in_what("Put it on the hub, too, in a repository of this name.", metavar="OWNER/NAME")
    ] = None
    public: Annotated[bool, in_what("That everybody may read. (default: a private one)", "--public")] = False
    through_driver: ThroughDriver = False


@dataclass(frozen=True, kw_only=True)
class Reproduce(Connects):
    """Run an exported trial again and compare figures and weights; or a paper's experiment, and say what holds."""

    what: Annotated[str, Argument(help="The reproduce.json of an exported model; or synthetic (SimNPO, section 5).")]
    benchmark: Annotated[Path | None, in_what("Of an export searched on your own data: their .toml file.")] = None
    model: Annotated[str | None, in_what("Starting model: a folder or a hub name. (default: the benchmark's own)")] = (
        None
    )
    data: Annotated[Path | None, in_what("Local folder with the benchmark's data, laid out as on the hub.")] = None
    retrained: Retrained = None
    scale: Annotated[
        Literal["mini", "full"],
        in_what("Of synthetic. full: the paper's models and data. mini: smaller ones, for a first look."),
    ] = "full"
    seeds: Annotated[int, in_budget("Of synthetic: seeds of every method; from 5 on there is a verdict.")] = 5
    concurrent: Annotated[int | None, in_hardware("Of synthetic: runs at a time. (default: all that fit)")] = None
    workers: Annotated[int | None, in_hardware("Workers of a gang. (default: as many as then; 1)")] = None
    gpus_per_worker: GpusPerWorker = None
    zero: Annotated[int | None, in_hardware("DeepSpeed ZeRO stage. (default: as then; 2)", min=0, max=3)] = None
    out: Annotated[Path, in_advanced("Of synthetic: folder that gets the reproduction's own folder.")] = field(
        default_factory=results_folder
    )


@dataclass(frozen=True, kw_only=True)
class Data(Loads):
    """Show what will be trained on: rows as their exact tokens, what of them the loss counts, amounts and warnings."""

    benchmark: Annotated[
        str, Argument(metavar="BENCHMARK", help=f"{', '.join(NAMED)}, or the .toml file of your own data.")
    ]
    scale: Scale = "auto"
    rows: Annotated[int, in_what("Rows of each set to show.")] = 3
    as_json: Annotated[bool, JSON] = False
    trust_remote_code: TrustModel = False


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Ask a model from the terminal, by itself or beside the one that it was made from; an empty line ends."""

    model: Annotated[
        str, Argument(metavar="MODEL", help="An exported folder, a search's folder (its chosen model), or a hub name.")
    ]
    beside: Annotated[
        str | None,
        in_what("Ask this model, too: a folder or a hub name. (default: a search's starting model)", metavar="START"),
    ] = None
    max_new_tokens: Annotated[int, in_what("The most tokens of an answer.")] = 256
    temperature: Annotated[float, in_what("0: the likeliest token each time; above: tokens are drawn at it.")] = 0.0
    seed: Annotated[int, in_what("Of what is drawn, set anew for every answer.")] = 0
    trust_remote_code: TrustModel = False


@dataclass(frozen=True, kw_only=True)
class Methods:
    """Print every method: formula, paper, parameters, what it needs, and its names in other code bases."""

    name: Annotated[str | None, Argument(help="One method. (default: all of them)")] = None


@dataclass(frozen=True, kw_only=True)
class Benchmarks:
    """Print every benchmark: what is forgotten, where its data come from, its scales, its exact objective."""

    name: Annotated[
        str | None,
        Argument(help="One benchmark, or the .toml file of your own data. (default: all of them)"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write a search's or a reproduction's report again, or one of several searches: HTML page, pictures, tables."""

    folders: Annotated[
        Names,
        Argument(
            metavar="FOLDER_OR_URI...",
            help="The folder that `tune` or `reproduce` printed, or the copy of a search; several: one report of all.",
        ),
    ]
    out: Annotated[
        Path | None,
        Option(help="Folder for the report's files. (default: report/ in the search's folder; together/report beside)"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check every file of a search against its checksum, and name what is damaged or missing."""

    folder: Annotated[str, FOLDER]
    repair: Annotated[
        bool, Option("--repair", help="Write damaged or missing files of trials again, from the ledger.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class Doctor(Loads):
    """Check this machine, or a cluster, before a search: versions, GPUs, disk, hub, authentication, ports."""

    benchmark: Annotated[str | None, in_what("Check this benchmark too.", "--benchmark", "-b")] = None
    model: Annotated[str | None, in_what("Check this model too: a folder or a hub name.")] = None
    address: Annotated[
        str | None, in_hardware("Ray cluster to use. (default: one of its own on this machine)", envvar="RAY_ADDRESS")
    ] = None
    start_ray: Annotated[bool, Option("--start-ray", help="Start a local Ray cluster and end it.")] = False
    out: Annotated[Path, Option(help="Folder that results will go to.")] = field(default_factory=results_folder)
    as_json: Annotated[bool, JSON] = False


@dataclass(frozen=True, kw_only=True)
class Plan(Configured, Loads):
    """Say what a search would take before it is started: memory by ZeRO stage, time, and the command to run."""

    benchmark: Annotated[str, BENCHMARK]
    model: Annotated[str, in_what("Starting model: a folder (its config.json is enough) or a hub name.")] = field()
    gpus: Annotated[int, in_hardware("GPUs that there are. (default: none, this machine's CPU)")] = 0
    gpu_memory: Annotated[float, in_hardware("GiB of one GPU.")] = 80.0
    tflops: Annotated[
        float | None,
        in_hardware("Peak TFLOP/s of one GPU, or of the CPU. (default: an A100's; measured)"),
    ] = None
    workers_per_trial: Annotated[
        int | None, in_hardware("Workers that train one trial together. (default: the fewest that fit)")
    ] = None
    zero: Annotated[int | None, in_hardware("DeepSpeed ZeRO stage. (default: each is tried)", min=0, max=3)] = None
    lora: Lora = None
    train: Annotated[
        str, in_hardware("Train only parameters in whose name this regular expression is found. (default: all)")
    ] = ""
    precision: Annotated[Literal["bf16", "fp32"] | None, in_hardware("(default: bf16 on GPUs, fp32 on a CPU)")] = None
    length: Annotated[int | None, in_budget("Tokens of a sequence, where the data cannot be read. (default: 512)")] = (
        None
    )
    trials: Annotated[int, in_budget("Trials of each method.")] = DEFAULT_TRIALS
    methods: Annotated[Names, in_what("Methods to search, comma-separated.")] = ("simnpo", "npo", "ga")
    details: Annotated[bool, in_what("Also memory by ZeRO stage, and what each method costs.", "--details")] = False
    as_json: Annotated[bool, JSON] = False


@dataclass(frozen=True, kw_only=True)
class Submit:
    """Run another command as a job of a Ray cluster; its exit code is the job's. Ctrl-C leaves the job running."""

    words: Annotated[
        tuple[str, ...], Argument(metavar="-- COMMAND [OPTIONS]", help="What to run there, after a --.")
    ] = ()
    address: Annotated[str, Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard.")] = (
        "http://127.0.0.1:8265"
    )
    working_dir: Annotated[
        Path | None,
        Option(
            help="Folder to upload, at most 100 MiB; what .gitignore and .rayignore name stays here. "
            "(default: this one if it is a checkout, else nothing)"
        ),
    ] = None
    no_follow: Annotated[bool, Option("--no-follow", help="Do not show the log until the job ends.")] = False
    follow: Annotated[str | None, Option(metavar="JOB", help="Show the log of that job instead.")] = None
    stop: Annotated[str | None, Option(metavar="JOB", help="Stop that job instead.")] = None
    write_rayjob: Annotated[
        Path | None, Option(metavar="FILE", help="Write the command as a KubeRay RayJob instead.")
    ] = None
    as_json: Annotated[bool, Option("--json", help="Print JSON; the log goes to standard error.")] = False

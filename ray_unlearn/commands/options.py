"""The options of every command, each written once: a frozen dataclass a command.

The command line (parser.py) and the help are made from these. A field is an option: its name, type, default and help
text stand here and nowhere else. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from ray_unlearn.benchmarks import NAMED
from ray_unlearn.config import RECOMMENDED_UNITS, SAMPLERS, UTILITY_FLOOR, Robustness
from ray_unlearn.files import results_folder

DEFAULT_TRIALS = 20
DEFAULT_ZERO = 2
WHAT, BUDGET, HARDWARE, ADVANCED = "What", "Budget", "Hardware", "Advanced"
PANELS = (WHAT, BUDGET, HARDWARE, ADVANCED)
"""The help's, in order."""
Names = tuple[str, ...]
"""On the command line: comma-separated; "none" for nothing."""
Amounts = Mapping[str, float]
"""On the command line: GPU=16,CPU=64."""
Levels = tuple[float, ...]
"""On the command line: 0.95,0.9,0.8."""
Zero = Annotated[
    int | None,
    Option(min=0, max=3, help="DeepSpeed ZeRO stage. (default: what fits and is fastest)", rich_help_panel=HARDWARE),
]
Lora = Annotated[
    int | None,
    Option(
        help="Train low-rank adapters of this rank in place of all weights; 0: never. (default: where all weights do "
        "not fit)",
        rich_help_panel=HARDWARE,
    ),
]

_BENCHMARK = Option(
    "--benchmark", "-b", help=f"{', '.join(NAMED)}, or the .toml file of your own data.", rich_help_panel=WHAT
)
_FOLDER = Argument(metavar="FOLDER_OR_URI", help="The search's folder, as `tune` printed it, or its copy.")
_JSON = Option("--json", help="Print JSON.")


def _what(text: str, *names: str, **more: Any) -> Any:
    return Option(*names, help=text, rich_help_panel=WHAT, **more)


def _budget(text: str, *names: str, **more: Any) -> Any:
    return Option(*names, help=text, rich_help_panel=BUDGET, **more)


def _hardware(text: str, *names: str, **more: Any) -> Any:
    return Option(*names, help=text, rich_help_panel=HARDWARE, **more)


def _advanced(text: str, *names: str, **more: Any) -> Any:
    return Option(*names, help=text, rich_help_panel=ADVANCED, **more)


Retrained = Annotated[
    Path | None,
    _what("What the retrained model measures: a profile.json or its folder. (default: retrained/ beside the model)"),
]
Scale = Annotated[
    Literal["auto", "mini", "full"],
    _what(
        "full: the real benchmark. mini: the same code on generated data and a tiny model. "
        "auto: full where a GPU is or where --model names a model, else mini."
    ),
]
GpusPerWorker = Annotated[float | None, _hardware("GPUs of one worker. (default: 1 where there are GPUs, else 0)")]
TrustModel = Annotated[
    bool, _advanced("Run code that lies beside the model's weights. Read it first.", "--trust-remote-code")
]
TrustCode = Annotated[
    bool, _advanced("Run the scorers that the .toml file of own data names. Read them first.", "--trust-code")
]


ThroughDriver = Annotated[bool, _advanced("Send saved models here: nodes need no shared --out.", "--through-driver")]


def once(names: Names) -> Names:
    """Each of them once."""
    return tuple(dict.fromkeys(names))


def default_of(option: Field[Any]) -> Any:
    """An option's default; MISSING where it must be given."""
    return option.default if option.default_factory is MISSING else option.default_factory()


def changed(options: Any) -> set[str]:
    """The names of the options that are not at their defaults."""
    return {option.name for option in fields(options) if getattr(options, option.name) != default_of(option)}


@dataclass(frozen=True, kw_only=True)
class Configured:
    """Shared by the commands whose options may stand in a run file."""

    config: Annotated[
        tuple[Path, ...],
        _what(
            "Run file in TOML with any of these options; what stands here wins. Repeatable: later files win.",
            is_eager=True,
        ),
    ] = ()


@dataclass(frozen=True, kw_only=True)
class Loads:
    """Shared by the commands that load a benchmark for a model."""

    model: Annotated[str | None, _what("Starting model: a folder or a hub name. (default: the benchmark's own)")] = None
    data: Annotated[Path | None, _what("Local folder with the benchmark's data, laid out as on the hub.")] = None
    split: Annotated[
        str | None, _what("Which part to forget; `ray_unlearn benchmarks NAME` lists a benchmark's parts.")
    ] = None
    revision: Annotated[Names, _advanced("Data at a commit, tag or branch: owner/name@revision, comma-separated.")] = ()


@dataclass(frozen=True, kw_only=True)
class Connects:
    """Shared by the commands that use Ray and may load a model's own code."""

    address: Annotated[
        str | None, _hardware("Ray cluster to use. (default: one of its own on this machine)", envvar="RAY_ADDRESS")
    ] = None
    trust_remote_code: TrustModel = False
    trust_code: TrustCode = False


@dataclass(frozen=True, kw_only=True)
class Reopens:
    """Shared by the commands that go on from a search's folder."""

    folder: Annotated[str, _FOLDER]
    address: Annotated[str | None, _hardware("Ray cluster to use. (default: the search's)")] = None
    trust_remote_code: TrustModel = False
    trust_code: TrustCode = False


@dataclass(frozen=True, kw_only=True)
class Attacks:
    """Shared by the commands that attack models."""

    robustness: Annotated[
        Names,
        _advanced(
            "Attacks on what is scored, comma-separated: relearn (fine-tune on a part of the forget set), quantise "
            "(4-bit weights), sample (worst of several answers); or none."
        ),
    ] = ()
    relearn_share: Annotated[float, _advanced("Share of the forget set that relearning has.")] = 0.2
    relearn_epochs: Annotated[int, _advanced("Epochs of relearning.")] = 3
    relearn_order: Annotated[Literal["random", "shortest"], _advanced("Which part relearning has.")] = "random"
    samples: Annotated[int, _advanced("Answers sampled for each prompt.")] = 8

    @property
    def attacks(self) -> Robustness:
        return Robustness(
            once(self.robustness),
            relearn_share=self.relearn_share,
            relearn_epochs=self.relearn_epochs,
            relearn_order=self.relearn_order,
            samples=self.samples,
        )


@dataclass(frozen=True, kw_only=True)
class Tune(Configured, Loads, Attacks, Connects):
    """Search the settings of unlearning methods, each with the same number of trials."""

    benchmark: Annotated[str | None, _BENCHMARK] = None
    methods: Annotated[Names, _what("Methods to search, comma-separated.")] = ("simnpo", "npo", "ga")
    space: Annotated[tuple[Path, ...], _what("Search-space TOML file for the method that it names; repeatable.")] = ()
    retrained: Retrained = None
    scale: Scale = "auto"
    resume: Annotated[
        str | None,
        _what(
            "Go on with the search in this folder, or at this copy, after anything; --trials may ask for more.",
            metavar="PATH_OR_URI",
        ),
    ] = None
    dry_run: Annotated[bool, _what("Check everything, say what would run, run nothing.", "--dry-run")] = False
    trials: Annotated[int | None, _budget(f"Trials of each method. (default: {DEFAULT_TRIALS})")] = None
    searches: Annotated[
        int, _budget("Search so many times, each with a seed of its own, and compare methods over all of them.")
    ] = 1
    trial_timeout: Annotated[float | None, _budget("Seconds that one trial may take. (default: any)")] = None
    prune: Annotated[bool, _budget("Stop trials early that lag behind their method's others.")] = False
    sampler: Annotated[
        Literal[SAMPLERS],  # type: ignore[valid-type]
        _budget(
            "Where settings come from. tpe, gp, nsga2: published ones, spread ones, then learnt. "
            "qmc: published, then spread. random: random."
        ),
    ] = "tpe"
    seed: Annotated[int, _budget("Seed of the search and of every trial.")] = 0
    in_order: Annotated[
        bool | None,
        _budget("Propose the same whichever trial ends first: one command, one table. (default: where that is cheap)"),
    ] = None
    concurrent: Annotated[int | None, _hardware("Trials at a time. (default: what the machine holds)")] = None
    workers_per_trial: Annotated[
        int | None, _hardware("Workers that train one trial together. (default: as many as the model needs)")
    ] = None
    gpus_per_worker: GpusPerWorker = None
    accelerator: Annotated[
        str, _hardware("Kind of GPU, as Ray names it: A100, say. (default: any)", metavar="TYPE")
    ] = ""
    grow_to: Annotated[
        Amounts,
        _hardware("What the cluster's autoscaler may bring it to: GPU=16 or GPU=16,CPU=64, say.", metavar="RESOURCES"),
    ] = field(default_factory=dict)
    zero: Zero = None
    deepspeed: Annotated[
        Path | None,
        _hardware("DeepSpeed JSON file (see cluster/deepspeed) whose zero_optimization and bf16 are laid over ours."),
    ] = None
    lora: Lora = None
    gpu_memory: Annotated[
        float | None, _hardware("GiB of one GPU, where it cannot be asked: of a cluster that is yet to grow, say.")
    ] = None
    train: Annotated[
        str, _hardware("Train only parameters in whose name this regular expression is found. (default: all)")
    ] = ""
    checkpointing: Annotated[
        bool,
        _hardware("Recompute activations: less memory, a third more arithmetic.", "--checkpointing"),
    ] = False
    objective: Annotated[
        Literal["combined", "pareto"],
        _advanced("combined: one number. pareto: forget and utility side by side."),
    ] = "combined"
    utility_floor: Annotated[float, _advanced("Least utility, relative to the starting model.")] = UTILITY_FLOOR
    harvest: Annotated[
        bool, _advanced("Also score models between the starting one and each trial's, as candidates.")
    ] = False
    under: Annotated[
        Names,
        _advanced("Attacks on every trial; its forget score is then the worst. Names as in --robustness."),
    ] = ()
    robustness: Annotated[
        Names,
        _advanced(
            "Attacks on the finalists, comma-separated: relearn (fine-tune on a part of the forget set), quantise "
            "(4-bit weights), sample (worst of several answers); or none."
        ),
    ] = ("relearn", "quantise")
    log_to: Annotated[
        Names,
        _advanced("Show trials while they run in any of tensorboard, wandb, mlflow, comma-separated; or none."),
    ] = ()
    out: Annotated[Path, _advanced("Folder that gets the search's own folder.")] = field(default_factory=results_folder)
    keep_model: Annotated[bool, _advanced("Keep the chosen model's weights.")] = True
    through_driver: ThroughDriver = False
    copy_to: Annotated[
        str | None,
        _advanced(
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

    benchmark: Annotated[str, _BENCHMARK]
    out: Annotated[Path, _what("Folder that gets target/ and retrained/.")]
    model: Annotated[str | None, _what("Base model to fine-tune: a folder or a hub name.")] = None
    epochs: Annotated[int, _budget("Epochs of fine-tuning.")] = 5
    batch_size: Annotated[int, _budget("Sequences in one optimizer step, over all workers.")] = 32
    learning_rate: Annotated[float, _budget("Peak learning rate.")] = 1e-5
    seed: Annotated[int, _budget("Seed of the order of the data.")] = 0
    workers: Annotated[int | None, _hardware("Workers that train together. (default: what the model needs)")] = None
    gpus_per_worker: GpusPerWorker = None
    zero: Zero = None
    through_driver: ThroughDriver = False


@dataclass(frozen=True, kw_only=True)
class Evaluate(Configured, Loads, Attacks, Connects):
    """Score any model on the whole of a benchmark with every metric, as the literature does."""

    benchmark: Annotated[str, _BENCHMARK]
    model: Annotated[str, _what("The model to score: a folder or a hub name.")] = field()
    start: Annotated[
        str | None,
        _what("The model that unlearning started from; then forget and utility are told, too."),
    ] = None
    retrained: Retrained = None
    profile: Annotated[Path | None, _what("Write the scores here as a retrained model's, for --retrained.")] = None
    scale: Scale = "auto"
    harness: Annotated[
        Names,
        _advanced("Tasks for lm-evaluation-harness itself, such as wmdp_bio,mmlu; needs [harness]."),
    ] = ()
    harness_tasks: Annotated[Path | None, _advanced("Folder with task files of your own for it.")] = None
    workers: Annotated[int | None, _hardware("Workers that score together. (default: what the model needs)")] = None
    gpus_per_worker: GpusPerWorker = None
    zero: Zero = None
    utility_floor: Annotated[float, _advanced("Least utility, relative to the starting model.")] = UTILITY_FLOOR
    seed: Annotated[int, _advanced("Seed of the attacks.")] = 0
    out: Annotated[Path, _advanced("Folder that gets the evaluation's own folder.")] = field(
        default_factory=results_folder
    )


@dataclass(frozen=True, kw_only=True)
class Compare(Reopens):
    """Train each method's best again with new seeds, or search again, and say which differences hold."""

    seeds: Annotated[int, _budget("Runs of every finalist, each with a seed of its own.")] = RECOMMENDED_UNITS
    searches: Annotated[
        int | None,
        _budget(
            "Compare methods, and not only settings: search again until there are so many searches, this included."
        ),
    ] = None
    against: Annotated[
        tuple[Path, ...],
        _what("With further searches that differ in their seeds alone: compare methods over all of them.", "--with"),
    ] = ()
    at_utility: Annotated[
        Levels,
        _what("Compare forgetting alone where utility is equal: at 0.95,0.9,0.8, say.", metavar="LEVELS"),
    ] = ()
    top: Annotated[int, _budget("Finalists of each method.")] = 1
    frontier: Annotated[bool, _budget("Also every other point of the frontier.")] = False
    concurrent: Annotated[int | None, _hardware("Runs at a time. (default: what the machine holds)")] = None
    allow_unequal: Annotated[bool, _advanced("Compare methods that had unequal budgets.", "--allow-unequal")] = False


@dataclass(frozen=True, kw_only=True)
class Export(Reopens):
    """Write a trial's model as a folder to pass on, with a model card and what it takes to make it again."""

    trial: Annotated[str, _what("Which trial: its name, or best.")] = "best"
    out: Annotated[Path | None, _what("Folder to make. (default: export/TRIAL in the search's)")] = None
    at_utility: Annotated[
        float | None,
        _what("Of the line from the starting model to the trial's end, the farthest point of at least this utility."),
    ] = None
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"] | None,
        _what("What the weights are written in. (default: as the starting model's)"),
    ] = None
    adapter: Annotated[bool, _what("The LoRA adapter by itself, for peft. (default: merged)", "--adapter")] = False
    through_driver: ThroughDriver = False


@dataclass(frozen=True, kw_only=True)
class Reproduce(Connects):
    """Run an exported trial again and compare figures and weights; or a paper's experiment, and say what holds."""

    what: Annotated[str, Argument(help="The reproduce.json of an exported model; or synthetic (SimNPO, section 5).")]
    benchmark: Annotated[Path | None, _what("Of an export searched on your own data: their .toml file.")] = None
    model: Annotated[str | None, _what("Starting model: a folder or a hub name. (default: the benchmark's own)")] = None
    data: Annotated[Path | None, _what("Local folder with the benchmark's data, laid out as on the hub.")] = None
    retrained: Retrained = None
    scale: Annotated[
        Literal["mini", "full"],
        _what("Of synthetic. full: the paper's models and data. mini: smaller ones, for a first look."),
    ] = "full"
    seeds: Annotated[int, _budget("Of synthetic: seeds of every method; from 5 on there is a verdict.")] = 5
    concurrent: Annotated[int | None, _hardware("Of synthetic: runs at a time. (default: all that fit)")] = None
    workers: Annotated[int | None, _hardware("Workers of a gang. (default: as many as then; 1)")] = None
    gpus_per_worker: GpusPerWorker = None
    zero: Annotated[int | None, _hardware("DeepSpeed ZeRO stage. (default: as then; 2)", min=0, max=3)] = None
    out: Annotated[Path, _advanced("Of synthetic: folder that gets the reproduction's own folder.")] = field(
        default_factory=results_folder
    )


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

    folder: Annotated[str, _FOLDER]
    repair: Annotated[
        bool, Option("--repair", help="Write damaged or missing files of trials again, from the ledger.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class Doctor(Loads):
    """Check this machine, or a cluster, before a search: versions, GPUs, disk, hub, authentication, ports."""

    benchmark: Annotated[str | None, _what("Check this benchmark too.", "--benchmark", "-b")] = None
    model: Annotated[str | None, _what("Check this model too: a folder or a hub name.")] = None
    address: Annotated[
        str | None, _hardware("Ray cluster to use. (default: one of its own on this machine)", envvar="RAY_ADDRESS")
    ] = None
    start_ray: Annotated[bool, Option("--start-ray", help="Start a local Ray cluster and end it.")] = False
    out: Annotated[Path, Option(help="Folder that results will go to.")] = field(default_factory=results_folder)
    as_json: Annotated[bool, _JSON] = False


@dataclass(frozen=True, kw_only=True)
class Plan(Configured, Loads):
    """Say what a search would take before it is started: memory by ZeRO stage, time, and the command to run."""

    benchmark: Annotated[str, _BENCHMARK]
    model: Annotated[str, _what("Starting model: a folder (its config.json is enough) or a hub name.")] = field()
    gpus: Annotated[int, _hardware("GPUs that there are. (default: none, this machine's CPU)")] = 0
    gpu_memory: Annotated[float, _hardware("GiB of one GPU.")] = 80.0
    tflops: Annotated[
        float | None,
        _hardware("Peak TFLOP/s of one GPU, or of the CPU. (default: an A100's; measured)"),
    ] = None
    workers_per_trial: Annotated[
        int | None, _hardware("Workers that train one trial together. (default: the fewest that fit)")
    ] = None
    zero: Annotated[int | None, _hardware("DeepSpeed ZeRO stage. (default: each is tried)", min=0, max=3)] = None
    lora: Lora = None
    train: Annotated[
        str, _hardware("Train only parameters in whose name this regular expression is found. (default: all)")
    ] = ""
    precision: Annotated[Literal["bf16", "fp32"] | None, _hardware("(default: bf16 on GPUs, fp32 on a CPU)")] = None
    length: Annotated[int | None, _budget("Tokens of a sequence, where the data cannot be read. (default: 512)")] = None
    trials: Annotated[int, _budget("Trials of each method.")] = DEFAULT_TRIALS
    methods: Annotated[Names, _what("Methods to search, comma-separated.")] = ("simnpo", "npo", "ga")
    as_json: Annotated[bool, _JSON] = False


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

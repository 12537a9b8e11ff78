"""Options that several commands share, and how one is written (see options.py). Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from ray_unlearn.benchmarks import NAMED
from ray_unlearn.config import Robustness

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

BENCHMARK = Option(
    "--benchmark", "-b", help=f"{', '.join(NAMED)}, or the .toml file of your own data.", rich_help_panel=WHAT
)
FOLDER = Argument(metavar="FOLDER_OR_URI", help="The search's folder, as `tune` printed it, or its copy.")
JSON = Option("--json", help="Print JSON.")


def in_what(text: str, *names: str, **more: Any) -> Any:
    return Option(*names, help=text, rich_help_panel=WHAT, **more)


def in_budget(text: str, *names: str, **more: Any) -> Any:
    return Option(*names, help=text, rich_help_panel=BUDGET, **more)


def in_hardware(text: str, *names: str, **more: Any) -> Any:
    return Option(*names, help=text, rich_help_panel=HARDWARE, **more)


def in_advanced(text: str, *names: str, **more: Any) -> Any:
    return Option(*names, help=text, rich_help_panel=ADVANCED, **more)


Retrained = Annotated[
    str | None,
    in_what("Retrained model: folder, hub name, or a profile.json of it. (default: retrained/ beside the model)"),
]
Scale = Annotated[
    Literal["auto", "mini", "full"],
    in_what(
        "full: the real benchmark. mini: the same code on generated data and a tiny model. "
        "auto: full where a GPU is or where --model names a model, else mini."
    ),
]
GpusPerWorker = Annotated[float | None, in_hardware("GPUs of one worker. (default: 1 where there are GPUs, else 0)")]
DeepSpeed = Annotated[
    Path | None,
    in_hardware("DeepSpeed JSON file (see cluster/deepspeed) whose zero_optimization and bf16 are laid over ours."),
]
TrustModel = Annotated[
    bool, in_advanced("Run code that lies beside the model's weights. Read it first.", "--trust-remote-code")
]
TrustCode = Annotated[
    bool, in_advanced("Run code of files: scorers that own data name, losses. Read it first.", "--trust-code")
]


ThroughDriver = Annotated[bool, in_advanced("Send saved models here: nodes need no shared --out.", "--through-driver")]


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
        in_what(
            "Run file in TOML with any of these options; what stands here wins. Repeatable: later files win.",
            is_eager=True,
        ),
    ] = ()


@dataclass(frozen=True, kw_only=True)
class Loads:
    """Shared by the commands that load a benchmark for a model."""

    model: Annotated[str | None, in_what("Starting model: a folder or a hub name. (default: the benchmark's own)")] = (
        None
    )
    data: Annotated[Path | None, in_what("Local folder with the benchmark's data, laid out as on the hub.")] = None
    split: Annotated[
        str | None, in_what("Which part to forget; `ray_unlearn benchmarks NAME` lists a benchmark's parts.")
    ] = None
    revision: Annotated[
        Names, in_advanced("Data at a commit, tag or branch: owner/name@revision, comma-separated.")
    ] = ()


@dataclass(frozen=True, kw_only=True)
class Connects:
    """Shared by the commands that use Ray and may load a model's own code."""

    address: Annotated[
        str | None, in_hardware("Ray cluster to use. (default: one of its own on this machine)", envvar="RAY_ADDRESS")
    ] = None
    trust_remote_code: TrustModel = False
    trust_code: TrustCode = False


@dataclass(frozen=True, kw_only=True)
class Reopens:
    """Shared by the commands that go on from a search's folder."""

    folder: Annotated[str, FOLDER]
    address: Annotated[str | None, in_hardware("Ray cluster to use. (default: the search's)")] = None
    trust_remote_code: TrustModel = False
    trust_code: TrustCode = False


@dataclass(frozen=True, kw_only=True)
class Attacks:
    """Shared by the commands that attack models."""

    robustness: Annotated[
        Names,
        in_advanced(
            "Attacks on what is scored, comma-separated: relearn (fine-tune on a part of the forget set), quantise "
            "(4-bit weights), sample (worst of several answers); or none."
        ),
    ] = ()
    relearn_share: Annotated[float, in_advanced("Share of the forget set that relearning has.")] = 0.2
    relearn_epochs: Annotated[int, in_advanced("Epochs of relearning.")] = 3
    relearn_order: Annotated[Literal["random", "shortest"], in_advanced("Which part relearning has.")] = "random"
    samples: Annotated[int, in_advanced("Answers sampled for each prompt.")] = 8

    @property
    def attacks(self) -> Robustness:
        return Robustness(
            once(self.robustness),
            relearn_share=self.relearn_share,
            relearn_epochs=self.relearn_epochs,
            relearn_order=self.relearn_order,
            samples=self.samples,
        )

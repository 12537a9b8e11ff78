"""The settings of a search, of a gang and of a trial: frozen plain data, safe to send between processes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

SCHEDULES = ("linear", "constant")
TPE, GP, NSGA2, QMC, RANDOM = "tpe", "gp", "nsga2", "qmc", "random"
RECOMMENDED_UNITS = 8
"""Seeds, or searches, over which things are compared: so many can decide between six pairs."""
SAMPLERS = (TPE, GP, NSGA2, QMC, RANDOM)
"""Where a search's settings come from: Optuna's samplers, points spread evenly, points drawn at random."""
METHOD_TITLES = {
    "simnpo": "SimNPO",
    "npo": "NPO",
    "ga": "GA",
    "graddiff": "GradDiff",
    "idknll": "IdkNLL",
    "dpo": "IdkDPO",
    "altpo": "AltPO",
    "rmu": "RMU",
    "wga": "WGA",
    "satimp": "SatImp",
    "undial": "UNDIAL",
    "ceu": "CE-U",
    "pdu": "PDU",
    "simnpo_token": "SimNPO (token)",
    "npo_token": "TNPO",
}
"""Methods as papers print them, for whoever shows results without importing the losses."""


ATTACKS = {
    "relearn": "relearned",
    "quantise": "quantised",
    "sample": "sampled",
}
"""By attack, the first word of its metrics' names."""
ATTACK_PREFIXES = tuple(f"{word}_" for word in ATTACKS.values())


MEASURES = ("objective", "forget", "utility")
"""What a trial is scored by, the one that is searched first."""

COMPLETED, PRUNED, FAILED = "completed", "pruned", "failed"
INTERPOLATED = "interpolated"
"""No trial: a point on the line from the starting model to a completed trial's."""
CANDIDATES = (COMPLETED, INTERPOLATED)
"""What can be on the front and be chosen."""

REACHABLE, PARTS, FLOORED, SCALED = "reachable", "parts", "floored", "scaled"
"""How candidates are ranked, see metrics/ranking.py; all but the first are those of older searches."""
UTILITY_FLOOR = 0.95
"""Least utility, relative to the starting model, unless another is asked for."""


class UserError(Exception):
    """Something that the user can fix, said in one line: what is wrong, where, and the way out."""


class SearchFailed(Exception):
    """Nothing that the user did, and nothing that can go on: said in one line with the log's place."""


NEAR = 0.05
"""A best point nearer to an end than this share of its range is worth a warning."""


@dataclass(frozen=True)
class Range:
    low: float
    high: float
    log: bool = False
    integer: bool = False

    def at(self, share: float) -> float:
        """The value at a share in [0, 1] of the range (of its logarithm, where it is logarithmic)."""
        value = self.low * (self.high / self.low) ** share if self.log else self.low + share * (self.high - self.low)
        return round(value) if self.integer else min(max(value, self.low), self.high)

    def share(self, value: float) -> float:
        """Where a value lies in the range: 0 at its low end, 1 at its high end; what `at` takes."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def near_end(self, value: float) -> str:
        """ "lower" or "upper" where the value lies within NEAR of that end of the range, else empty."""
        share = self.share(value)
        return "lower" if share <= NEAR else "upper" if share >= 1 - NEAR else ""


@dataclass(frozen=True)
class TrialConfig:
    """One configuration of one method: all that decides a trial's outcome besides the task and the gang."""

    trial_id: str
    method: str
    parameters: Mapping[str, float] = field(default_factory=dict)
    """The method's own keyword arguments (beta, gamma ...)."""
    retain_weight: float = 1.0
    """Weight of the retain loss; the forget loss always has weight 1 (field convention, never "lambda")."""
    learning_rate: float = 1e-5
    """Peak learning rate of AdamW."""
    seed: int = 0
    epochs: int = 10
    """Passes over the forget set."""
    batch_size: int = 32
    """Forget sequences in one optimizer step, over all workers; as many retain sequences go with them."""
    warmup_fraction: float = 0.1
    """Share of all steps over which the learning rate rises linearly from 0."""
    schedule: str = "linear"
    """What follows the warm-up: "linear" to 0, or "constant"."""
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    retain_loss: str = ""
    """"nll", "kl" or "hidden"; empty: the method's own."""
    hidden_layer: int = -1
    """Layer (0-based) whose output hidden-state losses read; -1: at 22 % of the depth, as RMU's 7 of 32."""
    train_layers: int = 0
    """0: everything trainable is trained. k: only the MLP output projections of the k layers up to hidden_layer."""
    evaluations: int = 2
    """Evaluation points, spread evenly over the epochs; the last is after the last step."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrialConfig:
        return cls(**values)


SETTING_LIMITS: Mapping[str, tuple[type, float, float]] = {
    "retain_weight": (float, 0.0, math.inf),
    "learning_rate": (float, 0.0, math.inf),
    "epochs": (int, 1, math.inf),
    "batch_size": (int, 1, math.inf),
    "warmup_fraction": (float, 0.0, 1.0),
    "weight_decay": (float, 0.0, math.inf),
    "max_grad_norm": (float, 0.0, math.inf),
    "hidden_layer": (int, -1, math.inf),
    "train_layers": (int, 0, math.inf),
    "evaluations": (int, 1, math.inf),
}
"""Type and limits of every trial setting that is a number."""

TRIAL_SETTINGS = tuple(
    f.name for f in fields(TrialConfig) if f.name not in {"trial_id", "method", "parameters", "seed"}
)
"""The trial settings that a search space may fix or search, besides the method's own parameters."""


@dataclass(frozen=True)
class Robustness:
    """Which attacks, and how hard."""

    attacks: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    """What is measured again under relearning and quantising."""
    relearn_share: float = 0.2
    """Share of the forget set that the attacker has."""
    relearn_epochs: int = 3
    relearn_order: str = "random"
    """"random" sequences of the forget set, or its "shortest"."""
    samples: int = 8
    """Answers sampled for each prompt, at temperature 1 from the whole distribution."""


@dataclass(frozen=True)
class GangConfig:
    """The shape of one gang: the workers that train one trial together."""

    num_workers: int = 1
    zero_stage: int = 2
    precision: str = "fp32"
    """"fp32" or "bf16" (weights and activations; master weights, optimizer and log-softmax stay fp32)."""
    gpus_per_worker: float = 0.0
    cpus_per_worker: float = 1.0
    accelerator: str = ""
    """Kind of GPU, as Ray names it, that every worker must have; empty: any."""
    threads_per_worker: int = 1
    """Threads of one CPU worker's matrix products; the smallest models get one."""
    lora_rank: int = 0
    """0: all weights are trained; above: low-rank adapters of this rank on all linear layers instead."""
    seed: int = 0
    """Of the adapters' start: the search's, so that every gang and every later command trains from the same."""
    adapter: str = ""
    """SHA-256 of that start, where it is known: a gang that starts elsewhere ends with an error."""
    train: str = ""
    """Regular expression; only parameters whose name it is found in are trained. Empty: all."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more arithmetic."""
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    """A user's sections of DeepSpeed's configuration (zero_optimization, bf16), laid over ours."""
    trust_remote_code: bool = False
    """Whether the model's own code may run."""
    reference_folder: str = ""
    """Where the starting model's log-probs are kept for other gangs and searches; empty: nowhere."""
    trains: bool = True
    """Whether there is an optimizer; without one the gang only scores."""
    through_driver: bool = False
    """Whether saved models are sent to the driver, for nodes that do not see its disk."""
    max_tokens: int = 4096
    """Tokens in one worker's forward pass; a batch with more is cut, with no effect on the loss."""
    row_length: int = 0
    """Length of one packed row; 0 takes the longest sequence (short rows keep CPU attention cheap)."""


@dataclass(frozen=True)
class SearchConfig:
    """What `ray_unlearn tune` was asked to do, every choice resolved."""

    name: str
    benchmark: str
    """Its name: what the results' columns begin with."""
    scale: str
    methods: tuple[str, ...]
    trials: int
    """Trials of each method: every method gets the same number."""
    concurrent: int
    objective: str
    utility_floor: float
    seed: int
    gang: GangConfig
    model: str
    sampler: str = TPE
    """One of SAMPLERS."""
    ranking: str = REACHABLE
    """How candidates are ranked, see metrics/ranking.py."""
    left_out: tuple[str, ...] = ()
    """Metrics that the objective goes without, because the starting model has nothing of them (benchmarks/starts.py);
    known once it has been measured."""
    prune: bool = False
    """Whether trials that lag behind their method's others are stopped early."""
    line: tuple[float, ...] = ()
    """Points start + alpha (end - start) on the line through the starting model and a finished trial's, scored
    after the trial as candidates of their own."""
    robustness: Robustness = field(default_factory=Robustness)
    """Attacks on the finalists."""
    scores_alone: bool = False
    """Whether finalists are measured by what the objective reads alone: of a repeat nobody reads more."""
    under: tuple[str, ...] = ()
    """Attacks on every trial: its forget score is then the worst over itself and these."""
    definition: str | None = None
    """The TOML file that describes the benchmark, where it is the user's own."""
    data: str | None = None
    split: str | None = None
    log_to: tuple[str, ...] = ()
    """Trackers that are told of every trial while the search runs, see trackers.py."""
    spaces: tuple[str, ...] = ()
    """Search-space files given in place of the shipped ones, by name."""
    address: str | None = None
    grow_to: Mapping[str, float] = field(default_factory=dict)
    """What an autoscaler may bring the cluster at that address to, by resource (CPU, GPU)."""
    trial_timeout: float = 0.0
    """Seconds that one trial may take; 0: any."""
    copy_to: str | None = None
    """URI of the place that the search's folder is copied to, see copies.py."""
    placement: str = ""
    """How the gang was chosen, in one line."""
    in_order: bool = False
    """Whether proposals hang on places and never on timing, see search/order.py."""

    @property
    def loaded_from(self) -> str:
        """What `load_benchmark` takes."""
        return self.definition or self.benchmark

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SearchConfig:
        """From `asdict` gone through JSON: lists are tuples again, tables are settings again."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        robustness: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values["robustness"].items()
        }
        return cls(
            **{"ranking": SCALED, **plain, "gang": GangConfig(**values["gang"]), "robustness": Robustness(**robustness)}
        )

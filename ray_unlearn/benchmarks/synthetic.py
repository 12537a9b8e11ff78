"""A mixture of Markov chains with known transitions (SimNPO, arXiv:2410.07163, section 5).

Ten states. Each chain has three home states. From a home state it steps home with probability 0.8, evenly over
the three, and out with 0.2, evenly over the seven others; from a state outside its home, where leakage alone
leads (the tenth state is nobody's home), it steps anywhere with equal chances. It starts at home with probability
0.8. These are the matrices of the paper's public code, in whose figure the retrained model is at 0.42 to 0.44 nats
from the truth of a chain to forget. The truth is known, so a model is measured by its divergence from it, not by a
test set.

The benchmark is the paper's first experiment, with sequences of 20, 20 and 5 states: short answers are where a
reference model misleads NPO. The second one, with a chain to forget that the model has never learnt, is here for
`ray_unlearn reproduce synthetic`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ray_unlearn.benchmarks.contract import (
    Aim,
    Benchmark,
    Build,
    Keep,
    Probe,
    Profile,
    Request,
    SpaceChange,
    Split,
    Task,
    Trainer,
    log_range,
    needed,
)
from ray_unlearn.benchmarks.profiles import read_profile, with_retrained, write_profile
from ray_unlearn.config import TrialConfig, UserError
from ray_unlearn.files import cached
from ray_unlearn.metrics import Scores
from ray_unlearn.metrics.errors import standard_error
from ray_unlearn.models.loading import load_config
from ray_unlearn.models.sequences import Sequences
from ray_unlearn.models.sizes import context_length

NUM_STATES = 10
HOMES = {"retain": (0, 1, 2), "forget1": (3, 4, 5), "forget2": (6, 7, 8)}
LEAKAGE = 0.2
DATA_SEED = 2410_07163


SPACES = SpaceChange(
    fixed={"epochs": 2, "batch_size": 4},
    methods={
        "ga": {
            "space": {"learning_rate": log_range(1e-05, 0.01)},
            "warm_start": [{"learning_rate": 0.0005}],
        },
        "graddiff": {
            "space": {"learning_rate": log_range(1e-05, 0.01)},
            "warm_start": [{"learning_rate": 0.0005, "retain_weight": 1.0}],
        },
        "npo": {
            "space": {"learning_rate": log_range(0.0001, 0.01)},
            "warm_start": [{"learning_rate": 0.0005, "beta": 0.2, "retain_weight": 1.0}],
        },
        "simnpo": {
            "space": {"learning_rate": log_range(0.0001, 0.01)},
            "warm_start": [{"learning_rate": 0.0005, "beta": 4.0, "gamma": 0.0, "retain_weight": 1.0}],
        },
    },
)
"""50 steps of 4, as in the paper's section 5."""


@dataclass(frozen=True)
class Experiment:
    """What the two experiments of the paper differ in."""

    lengths: Mapping[str, int]
    """States of each chain's sequences."""
    learnt: tuple[str, ...]
    """Chains that the starting model is trained on."""


EXPERIMENTS = {
    "length": Experiment({"retain": 20, "forget1": 20, "forget2": 5}, ("retain", "forget1", "forget2")),
    "memorised": Experiment({"retain": 20, "forget1": 20, "forget2": 20}, ("retain", "forget1")),
}
LENGTHS = EXPERIMENTS["length"].lengths


@dataclass(frozen=True)
class Sizes:
    """How much data and how large a model; "full" is the paper's."""

    retain: int
    forget: int
    """Sequences of each forget chain to train on. The paper draws a quarter more, and measures on those."""
    layers: int
    heads: int
    width: int
    epochs: int
    batch_size: int
    learning_rate: float
    unlearn: int = 100
    """Forget sequences (half of each chain) that a trial goes through; two epochs in batches of 4 are 50 steps."""
    scored: int = 256
    """Sequences of each chain in each split."""

    @property
    def training(self) -> TrialConfig:
        """How the starting and the retrained model are trained: AdamW at a constant rate and no more."""
        return TrialConfig(
            "build",
            "finetune",
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            batch_size=self.batch_size,
            warmup_fraction=0.0,
            schedule="constant",
            weight_decay=0.0,
            max_grad_norm=0.0,
        )


SIZES = {
    "mini": Sizes(3000, 1500, layers=2, heads=4, width=64, epochs=8, batch_size=128, learning_rate=3e-3),
    "full": Sizes(8_000, 4_000, layers=4, heads=4, width=128, epochs=5, batch_size=128, learning_rate=5e-4),
}


def transition_matrix(chain: str) -> np.ndarray:
    """P(next state | state) of one chain, [states, states], rows sum to 1, every entry above 0."""
    matrix = np.full((NUM_STATES, NUM_STATES), 1.0 / NUM_STATES)
    matrix[list(HOMES[chain])] = first_state(chain)
    return matrix


def first_state(chain: str) -> np.ndarray:
    """Distribution of a sequence's first state, [states]; also that of the step from any home state."""
    home = list(HOMES[chain])
    chances = np.full(NUM_STATES, LEAKAGE / (NUM_STATES - len(home)))
    chances[home] = (1.0 - LEAKAGE) / len(home)
    return chances


def draw(chain: str, count: int, rng: np.random.Generator, lengths: Mapping[str, int] = LENGTHS) -> Sequences:
    """Sequences of the chain."""
    cumulative = transition_matrix(chain).cumsum(axis=1)
    states = np.empty((count, lengths[chain]), np.int32)
    states[:, 0] = rng.choice(NUM_STATES, count, p=first_state(chain))
    for step in range(1, lengths[chain]):
        chances = rng.random((count, 1))
        states[:, step] = (chances > cumulative[states[:, step - 1]]).sum(axis=1).clip(max=NUM_STATES - 1)
    return Sequences.build((row, 1) for row in states)


def expected_divergence(chain: str, model: np.ndarray, length: int) -> float:
    """Mean over a sequence's steps of KL(truth || model), in nats, for a model that is a transition matrix."""
    truth = transition_matrix(chain)
    of_state = (truth * np.log(truth / model)).sum(axis=1)
    states, total = first_state(chain), 0.0
    for _ in range(length - 1):
        total += float(states @ of_state)
        states = states @ truth
    return total / (length - 1)


def uniform_divergence(chain: str) -> float:
    """What a model that knows nothing has, in nats a state."""
    return expected_divergence(chain, np.full((NUM_STATES, NUM_STATES), 1.0 / NUM_STATES), LENGTHS[chain])


def load(request: Request, train: Trainer | None = None) -> Task:
    for option, value in {"--data": request.data, "--split": request.split}.items():
        if value is not None:
            raise UserError(f"{option} {value}: synthetic makes its own data. Leave {option} out")
    task = load_experiment("length", request.scale, SIZES[request.scale].unlearn // 2, train)
    if request.model is not None:
        if context_length(load_config(request.model)) < max(task.retain.lengths):
            raise UserError(f"--model {request.model}: reads less than a chain's length. Give one that a search made")
        task = replace(task, model=request.model)
    return task if request.whole else replace(task, whole=None)


def load_experiment(name: str, scale: str, unlearn: int | None = None, train: Trainer | None = None) -> Task:
    """The task of one of EXPERIMENTS; its forget set has `unlearn` sequences of each chain, or all there are.

    The starting and the retrained model are trained once, then kept.
    """
    experiment, sizes = EXPERIMENTS[name], SIZES[scale]
    rng = np.random.default_rng(DATA_SEED)

    def sequences(chain: str, count: int) -> Sequences:
        return draw(chain, count, rng, experiment.lengths)

    drawn = {c: sequences(c, sizes.retain if c == "retain" else sizes.forget) for c in HOMES}
    splits = {
        part: Split({c: Probe(sequences(c, sizes.scored), truth=transition_matrix(c)) for c in HOMES})
        for part in ("selection", "report")
    }
    splits["whole"] = Split(
        {
            c: replace(probe, sequences=Sequences.concatenate([s.probes[c].sequences for s in splits.values()]))
            for c, probe in splits["selection"].probes.items()
        }
    )
    key = {"name": f"synthetic-{scale}", "version": 5, "seed": DATA_SEED, "sizes": asdict(sizes), "experiment": name}
    learnt = Sequences.concatenate([drawn[c] for c in experiment.learnt])
    models = cached(
        key, lambda folder: _make_models(folder, sizes, learnt, drawn["retain"], splits, needed(train, "synthetic"))
    )
    task = Task(
        benchmark="synthetic",
        scale=scale,
        model=str(models / "target"),
        forget=Sequences.concatenate([drawn[c].select(range(unlearn or sizes.forget)) for c in ("forget1", "forget2")]),
        retain=drawn["retain"],
        selection=splits["selection"],
        report=splits["report"],
        whole=splits["whole"],
    )
    return with_retrained(task, read_profile(models / "retrained"), models / "retrained")


def _make_models(
    folder: Path, sizes: Sizes, learnt: Sequences, retain: Sequences, splits: Mapping[str, Split], train: Trainer
) -> None:
    _write_untrained(folder / "start", sizes)
    target = Build(folder / "start", folder / "target", learnt, sizes.training)
    retrained = Build(folder / "start", folder / "retrained", retain, sizes.training, "synthetic", splits)
    _, profiles = train([target, retrained], print)
    write_profile(folder / "retrained", profiles)


def _write_untrained(folder: Path, sizes: Sizes) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(DATA_SEED)
    config = GPT2Config(
        vocab_size=NUM_STATES,
        n_positions=max(LENGTHS.values()),
        n_embd=sizes.width,
        n_layer=sizes.layers,
        n_head=sizes.heads,
        bos_token_id=None,
        eos_token_id=None,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({str(s + 1): s for s in range(NUM_STATES)}, unk_token=str(NUM_STATES)))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)


def measure(scores: Mapping[str, Scores], answers: Mapping[str, list[str]], split: Split) -> Profile:
    divergences: dict[str, float] = {}
    errors: dict[str, float] = {}
    for chain, scored in scores.items():
        assert scored.divergence is not None
        divergences[f"{chain}_divergence"] = float(scored.divergence.mean())
        errors[f"{chain}_divergence"] = standard_error(scored.divergence)
    return Profile(divergences, errors=errors)


USELESS = uniform_divergence("retain")
UNTRAINED = 0.3
"""Share of the way from uniform to the truth that a model must have gone. An untrained one whose input and output
weights are tied expects each state again, and has gone a sixth of it."""

BENCHMARK = Benchmark(
    name="synthetic",
    title="mixture of Markov chains with known truth (SimNPO, section 5)",
    source="generated: sequences of three Markov chains, two to forget and one to retain",
    scales="mini and full (the paper's sizes); both make and train their own small models",
    metrics={
        "forget1_divergence": "KL(truth || model) on the first forget chain (length 20), nats a state",
        "forget2_divergence": "KL(truth || model) on the second forget chain (length 5), nats a state",
        "retain_divergence": "KL(truth || model) on the retain chain, nats a state; lower is better",
    },
    aims=(Aim("forget1_divergence", rises=True), Aim("forget2_divergence", rises=True)),
    keeps=(Keep("retain_divergence", useless=USELESS, lower_is_better=True, least=UNTRAINED * USELESS),),
    load=load,
    measure=measure,
    spaces={"": SPACES},
)

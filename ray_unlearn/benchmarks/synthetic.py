"""A mixture of Markov chains with known transitions (SimNPO, arXiv:2410.07163, section 5, experiment 1).

Ten states. Each chain has three home states, from which it steps home with probability 0.8 and anywhere else
with 0.2; the tenth state is reached by such leakage alone. Retain sequences and those of the first forget
chain are 20 states long, those of the second are 5: short answers are where a reference model misleads NPO.
The truth is known, so a model is measured by its divergence from the true transitions, not by a test set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ray_unlearn.benchmarks import Aim, Benchmark, Keep, Probe, Profile, Request, Split, Task
from ray_unlearn.config import TrialConfig, UserError
from ray_unlearn.data import Sequences
from ray_unlearn.metrics import Scores
from ray_unlearn.prepare import Build, build_models, cached, read_profile, write_profile

NUM_STATES = 10
HOMES = {"retain": (0, 1, 2), "forget1": (3, 4, 5), "forget2": (6, 7, 8)}
LENGTHS = {"retain": 20, "forget1": 20, "forget2": 5}
LEAKAGE = 0.2
DATA_SEED = 2410_07163


@dataclass(frozen=True)
class Sizes:
    """How much data and how large a model; "full" is the paper's."""

    retain: int
    forget: int
    """Sequences of each forget chain."""
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


SIZES = {
    "mini": Sizes(3000, 1500, layers=2, heads=4, width=64, epochs=8, batch_size=128, learning_rate=3e-3),
    "full": Sizes(10_000, 5_000, layers=4, heads=4, width=128, epochs=5, batch_size=128, learning_rate=5e-4),
}


def transition_matrix(chain: str) -> np.ndarray:
    """P(next state | state) of one chain, [states, states], rows sum to 1, every entry above 0."""
    home = HOMES[chain]
    rng = np.random.default_rng([DATA_SEED, home[0]])
    matrix = np.full((NUM_STATES, NUM_STATES), LEAKAGE / (NUM_STATES - len(home)))
    for row in matrix:
        row[list(home)] = (1.0 - LEAKAGE) * rng.dirichlet(np.ones(len(home)))
    return matrix


def draw(chain: str, count: int, rng: np.random.Generator) -> Sequences:
    """Sequences that start in a home state of the chain and follow its transitions."""
    cumulative = transition_matrix(chain).cumsum(axis=1)
    states = np.empty((count, LENGTHS[chain]), np.int32)
    states[:, 0] = rng.choice(HOMES[chain], count)
    for step in range(1, LENGTHS[chain]):
        chances = rng.random((count, 1))
        states[:, step] = (chances > cumulative[states[:, step - 1]]).sum(axis=1).clip(max=NUM_STATES - 1)
    return Sequences.build((row, 1) for row in states)


def uniform_divergence(chain: str) -> float:
    """KL(uniform || truth) averaged over home states: what a model that knows nothing has, in nats."""
    truth = transition_matrix(chain)[list(HOMES[chain])]
    return float((np.log(1.0 / NUM_STATES) - np.log(truth)).mean())


def load(request: Request) -> Task:
    given = {"--model": request.model, "--data": request.data, "--split": request.split}
    for option, value in given.items():
        if value is not None:
            raise UserError(f"{option} {value}: synthetic makes its own data and models. Leave {option} out")
    sizes = SIZES[request.scale]
    rng = np.random.default_rng(DATA_SEED)
    train = {c: draw(c, sizes.retain if c == "retain" else sizes.forget, rng) for c in HOMES}
    splits = {
        name: Split({c: Probe(draw(c, sizes.scored, rng), truth=transition_matrix(c)) for c in HOMES})
        for name in ("selection", "report")
    }
    key = {"name": f"synthetic-{request.scale}", "version": 3, "seed": DATA_SEED, "sizes": asdict(sizes)}
    models = cached(key, lambda folder: _make_models(folder, sizes, train, splits))
    profiles = read_profile(models / "retrained")
    forget = [train[c].select(range(sizes.unlearn // 2)) for c in ("forget1", "forget2")]
    return Task(
        benchmark="synthetic",
        scale=request.scale,
        model=str(models / "target"),
        forget=Sequences.concatenate(forget),
        retain=train["retain"],
        selection=Split(splits["selection"].probes, retrained=profiles["selection"]),
        report=Split(splits["report"].probes, retrained=profiles["report"]),
    )


def _make_models(folder: Path, sizes: Sizes, train: Mapping[str, Sequences], splits: Mapping[str, Split]) -> None:
    _write_untrained(folder / "start", sizes)
    trial = TrialConfig(
        "build",
        "finetune",
        learning_rate=sizes.learning_rate,
        epochs=sizes.epochs,
        batch_size=sizes.batch_size,
    )
    everything = Sequences.concatenate(list(train.values()))
    target = Build(folder / "start", folder / "target", everything, trial)
    retrained = Build(folder / "start", folder / "retrained", train["retain"], trial, "synthetic", splits)
    _, profiles = build_models([target, retrained], print)
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
    for chain, scored in scores.items():
        assert scored.divergence is not None
        divergences[f"{chain}_divergence"] = float(scored.divergence.mean())
    return Profile(divergences)


BENCHMARK = Benchmark(
    name="synthetic",
    objective=(
        "Forget: how close the model's divergence from the true transitions is to the retrained model's, on both "
        "forget chains (harmonic mean); 1 at the retrained model's value, 0 at the starting model's and as far "
        "beyond it. Utility: the divergence on the retain chain, 1 at the starting model's value, 0 at that of "
        "uniform guessing."
    ),
    metrics={
        "forget1_divergence": "KL(model || truth) on the first forget chain (length 20), nats a state",
        "forget2_divergence": "KL(model || truth) on the second forget chain (length 5), nats a state",
        "retain_divergence": "KL(model || truth) on the retain chain, nats a state; lower is better",
    },
    aims=(Aim("forget1_divergence"), Aim("forget2_divergence")),
    keeps=(Keep("retain_divergence", useless=uniform_divergence("retain")),),
    load=load,
    measure=measure,
)

"""Attacks on a finished model: what comes back when somebody tries.

relearn: fine-tune on a part of the forget set and measure again (SimNPO, arXiv:2410.07163, section 6: 20 %,
3 epochs, random or shortest). quantise: round the linear layers to 4 bits and measure again
(arXiv:2410.16454 found most of the forgotten knowledge back). sample: the worst of k sampled answers, because
greedy decoding hides what is left (arXiv:2511.04934).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ray_unlearn.benchmarks.attacked import attacked
from ray_unlearn.benchmarks.contract import Profile, Split
from ray_unlearn.config import ATTACKS, Robustness, TrialConfig
from ray_unlearn.failures import NonFinite
from ray_unlearn.models.sequences import Sequences
from ray_unlearn.models.sizes import scaled
from ray_unlearn.training import engine as engines
from ray_unlearn.training.rank import Rank
from ray_unlearn.training.references import References
from ray_unlearn.training.scoring import Scorer
from ray_unlearn.training.step import Step

RELEARN_RATE, RELEARN_AT = 1e-5, 7e9
"""The attacker's learning rate, and the model size that it is meant for; other sizes see `space.scaled`."""
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The 16 levels of 4-bit NormalFloat (QLoRA, arXiv:2305.14314, appendix E)."""
BLOCK = 64
"""Weights that share one scale, as bitsandbytes has it."""


def pick_relearned(forget: Sequences, share: float, order: str, seed: int) -> Sequences:
    """The part of the forget set that the attacker has: at least one sequence."""
    count = max(1, round(share * len(forget)))
    if order == "shortest":
        return forget.select(np.sort(np.argsort(forget.answer_lengths, kind="stable")[:count]))
    return forget.select(np.sort(np.random.default_rng([seed, 3]).permutation(len(forget))[:count]))


def relearn_trial(settings: Robustness, num_parameters: int, seed: int) -> TrialConfig:
    """The attacker's fine-tuning: the same for every method."""
    return TrialConfig(
        "relearn",
        "finetune",
        learning_rate=scaled(RELEARN_RATE, RELEARN_AT, num_parameters),
        epochs=settings.relearn_epochs,
        seed=seed,
    )


def round_to_nf4(weight: Tensor) -> Tensor:
    """The matrix as 4-bit NormalFloat holds it, in its own type: blocks of 64 along its flat order, each scaled
    by its largest absolute value to [-1, 1] and rounded to the nearest of 16 levels.

    An emulation: the values are those of bitsandbytes' NF4 without double quantisation, the memory is not.
    """
    flat = weight.detach().float().flatten()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scale = padded.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    levels = torch.tensor(NF4, device=weight.device)
    # Between two levels the nearer one: the bounds are the midpoints.
    index = torch.bucketize(padded / scale, (levels[1:] + levels[:-1]) / 2)
    return (levels[index] * scale).flatten()[: len(flat)].view_as(weight).to(weight.dtype)


def worst_of(similarities: np.ndarray) -> float:
    """Mean over prompts of the largest over samples; similarities: [samples, prompts] in [0, 1]."""
    return float(similarities.max(axis=0).mean())


class Attacker:
    """Tries to bring back what a finished model forgot; afterwards the weights are what they were."""

    def __init__(self, rank: Rank, references: References, step: Step, scorer: Scorer) -> None:
        self._rank, self._references, self._step, self._scorer = rank, references, step, scorer

    def run(self, settings: Robustness, split: Split, seed: int) -> Profile:
        """The metrics of the model under each attack; afterwards the weights are what they were.

        A metric that an attack makes infinite is absent.
        """
        metrics: dict[str, float] = {}
        absent: dict[str, str] = {}
        for name in settings.attacks:
            try:
                if name == "sample":
                    metrics |= self._sample(settings, split, seed)
                else:
                    under = self._relearned(settings, seed) if name == "relearn" else self._quantised()
                    with under:
                        metrics |= attacked(name, self._scorer.evaluate(split).metrics, settings.metrics)
            except NonFinite as error:
                absent |= {f"{ATTACKS[name]}_{metric}": str(error) for metric in settings.metrics}
        return Profile(metrics, absent=absent)

    def _sample(self, settings: Robustness, split: Split, seed: int) -> dict[str, float]:
        benchmark = self._scorer.benchmark
        result: dict[str, float] = {}
        for name, metric in benchmark.leaks.items():
            if name in split.generations:
                prompts = split.generations[name]
                answers = [self._scorer.generate(prompts, (seed + 1) * 1000 + k).texts for k in range(settings.samples)]
                similarities = np.array([prompts.compare(a, benchmark.similarity) for a in answers])
                result |= attacked("sample", {metric: worst_of(similarities)}, [metric])
        return result

    def _quantised(self) -> contextlib.AbstractContextManager[None]:
        return engines.changed_linear_weights(self._rank.engine, self._rank.number, round_to_nf4)

    @contextlib.contextmanager
    def _relearned(self, settings: Robustness, seed: int) -> Iterator[None]:
        kept = self._rank.snapshot.kept(self._rank.engine)
        self._rank.snapshot.start_from(self._rank.engine, kept)
        part = f"{settings.relearn_order} {settings.relearn_share} of forget, {seed}"
        known = pick_relearned(self._rank.task.forget, settings.relearn_share, settings.relearn_order, seed)
        self._references.add_set(part, known)
        trial = relearn_trial(settings, self._rank.num_parameters, seed)
        try:
            for epoch in range(trial.epochs):
                self._step.train(trial, epoch, (part,))
            yield
        finally:
            self._rank.snapshot.put_back(self._rank.engine, kept)

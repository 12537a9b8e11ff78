"""Attacks on a finished model: what comes back when somebody tries.

relearn: fine-tune on a part of the forget set and measure again (SimNPO, arXiv:2410.07163, section 6: 20 %,
3 epochs, random or shortest). quantise: round the linear layers to 4 bits and measure again
(arXiv:2410.16454 found most of the forgotten knowledge back). sample: the worst of k sampled answers, because
greedy decoding hides what is left (arXiv:2511.04934).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ray_unlearn.config import ATTACKS, Robustness, TrialConfig
from ray_unlearn.models.sizes import scaled

if TYPE_CHECKING:
    from torch import Tensor

    from ray_unlearn.benchmarks.contract import Benchmark
    from ray_unlearn.models.sequences import Sequences


TITLES = {
    "relearn": "after fine-tuning on a part of the forget set",
    "quantise": "with linear weights in 4 bits",
    "sample": "worst of the sampled answers",
}
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


def judged_metrics(benchmark: Benchmark) -> tuple[str, ...]:
    """What the objective reads."""
    return tuple(dict.fromkeys([a.metric for a in benchmark.aims] + [k.metric for k in benchmark.keeps]))


def describe_metrics(benchmark: Benchmark, attacks: Iterable[str] = tuple(ATTACKS)) -> dict[str, str]:
    """Every metric that these attacks add to a benchmark's own, with one line on what it is."""
    result = {}
    for attack in attacks:
        for name in dict.fromkeys(benchmark.leaks.values() if attack == "sample" else judged_metrics(benchmark)):
            result[f"{ATTACKS[attack]}_{name}"] = f"{TITLES[attack]}: {benchmark.metrics[name]}"
    return result


def attacked(attack: str, metrics: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    """Those of the metrics that are named, under the attack's names."""
    return {f"{ATTACKS[attack]}_{name}": metrics[name] for name in names if name in metrics}


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
    import torch

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

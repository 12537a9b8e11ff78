"""The metrics that attacks add to a benchmark's own: which are measured again, and what they are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ray_unlearn.benchmarks.contract import Benchmark
from ray_unlearn.config import ATTACKS

TITLES = {
    "relearn": "after fine-tuning on a part of the forget set",
    "quantise": "with linear weights in 4 bits",
    "sample": "worst of the sampled answers",
}


def describe_rounding(share: float) -> str:
    """How much of a model the attack `quantise` rounds."""
    return (
        f"quantise rounds {share:.0%} of the weights to 4 bits: linear layers but the head, as bitsandbytes and "
        "torchao do; embeddings, and experts that lie fused in one parameter, stay as they are."
    )


def judged_metrics(benchmark: Benchmark) -> tuple[str, ...]:
    """What the objective reads."""
    names = [aim.metric for aim in benchmark.aims]
    names += [keep.metric for keep in (*benchmark.keeps, *benchmark.keeps_before)]
    return tuple(dict.fromkeys(names))


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

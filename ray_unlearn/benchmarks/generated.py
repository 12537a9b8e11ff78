"""What greedy answers look like, whatever they say: whether they end, and whether they repeat themselves.

Nothing that the objective reads sees either: recall is high where the right words come first and never stop.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import numpy as np

from ray_unlearn.benchmarks.contract import Answers, Prompts
from ray_unlearn.metrics.rouge import ENGLISH, SCRIPT, split_words

UNENDED, REPEATING = "unended", "repeating"
REPEATED_SHARE = 0.2
"""Of an answer's pairs of neighbouring words, those that came before in it, from which on it repeats itself."""


def describe_answers(sets: Iterable[str], have_ends: bool = True) -> dict[str, str]:
    """The metrics of these prompt sets, each with one line on what it is. have_ends: whether answers have end marks."""
    metrics = {}
    for name in sets:
        on = name.replace("_", " ")
        if have_ends:
            metrics[f"{name}_{UNENDED}"] = f"share of greedy answers without an end mark, {on} (finalists)"
        metrics[f"{name}_{REPEATING}"] = (
            f"share of greedy answers of which {REPEATED_SHARE:.0%} of all word pairs came before, {on} (finalists)"
        )
    return metrics


def measure_answers(answers: Mapping[str, Answers], asked: Mapping[str, Prompts]) -> dict[str, float]:
    """Whether answers end is said of prompts that have end marks alone."""
    metrics = {}
    for name, given in answers.items():
        metrics[f"{name}_{REPEATING}"] = float(np.mean([repeats(text, asked[name].words) for text in given.texts]))
        if asked[name].stop:
            metrics[f"{name}_{UNENDED}"] = 1.0 - float(np.mean(given.ended))
    return metrics


def repeats(text: str, words: str = ENGLISH) -> bool:
    """Whether a text repeats itself: 1 - distinct / all word pairs (rep-2 of Welleck et al., arXiv:1908.04319)."""
    found = split_words(text, SCRIPT if words == ENGLISH else words)
    pairs = list(itertools.pairwise(found))
    return len(pairs) > 1 and 1.0 - len(set(pairs)) / len(pairs) >= REPEATED_SHARE

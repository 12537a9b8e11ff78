"""Alternate answers to forget items: refusals, and answers that belong to other items."""

from __future__ import annotations

from typing import Any

import numpy as np

from ray_unlearn.benchmarks.refusals import REFUSALS
from ray_unlearn.models.sequences import Sequences
from ray_unlearn.models.templates import Template

NUM_VARIANTS = 5
"""Alternates of each item (AltPO's number); epochs go through them in turn."""
SEED = 0


def build_alternates(
    kind: str, forget: Sequences, tokenizer: Any, refusals: Sequences | None = None
) -> list[Sequences]:
    """NUM_VARIANTS sets of alternates, each with one sequence for every forget sequence, in order.

    "refusal": the item's prompt and an "I don't know"-like answer, ended as the tokenizer's answers are;
    "other": the item's prompt and the answer of another item, cut to the item's own length. A plain text's
    prompt is its first quarter. refusals: the task's own, in place of ours.
    """
    rng = np.random.default_rng(SEED)
    prompts = [tokens[: start if start > 1 else max(1, len(tokens) // 4)] for tokens, start in forget]
    if kind == "refusal":
        template = Template(tokenizer)
        pairs = refusals or [template.encode_pair("?", text, "refusals") for text in REFUSALS]
        texts = [np.array(tokens[start:], np.int32) for tokens, start in pairs]
        picks = [[texts[i] for i in rng.integers(0, len(texts), len(forget))] for _ in range(NUM_VARIANTS)]
    elif kind == "other":
        answers = [tokens[len(prompt) :] for (tokens, _), prompt in zip(forget, prompts, strict=True)]
        room = [max(1, len(answer)) for answer in answers]
        picks = [
            [answers[i][:most] for i, most in zip(_others(len(forget), rng), room, strict=True)]
            for _ in range(NUM_VARIANTS)
        ]
    else:
        raise ValueError(f"no such kind of alternates: {kind}")
    return [
        Sequences.build((np.concatenate([p, a]), len(p)) for p, a in zip(prompts, pick, strict=True)) for pick in picks
    ]


def _others(count: int, rng: np.random.Generator) -> np.ndarray:
    """For each of `count` items another one, int [count] (itself only where it is alone)."""
    return (np.arange(count) + rng.integers(1, max(count, 2), count)) % count

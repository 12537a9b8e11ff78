"""Per-token log-probs of answer tokens from packed rows: no logits are computed that nobody reads.

Shapes: R rows, L tokens of a row, T answer tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from ray_unlearn.data import Pack


@dataclass(frozen=True)
class Answers:
    """logprobs: [T], fp32 (float64 for a float64 model); correct: bool [T], argmax is the token;
    log_distribution: [T, V], fp32. What was not asked for is None."""

    logprobs: Tensor
    correct: Tensor | None = None
    log_distribution: Tensor | None = None


class AnswerScorer(nn.Module):
    """A causal language model that answers with log-probs of the kept positions' next tokens.

    The model's own forward does the projection (`logits_to_keep`), so tied and untied heads, scaled and
    soft-capped logits are as the model defines them, and ZeRO-3 gathers the head's shard where it is used.
    Sequences in a row are kept apart by their restarting positions (no attention mask, no cache).
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, positions: Tensor, keep: Tensor, targets: Tensor, detail: str = "logprobs"
    ) -> tuple[Tensor, ...]:
        """`detail`: "logprobs" -> (logprobs,); "correct" -> (logprobs, correct); "distribution" ->
        (logprobs, correct, log_distribution)."""
        logits = self.model(
            input_ids=tokens, position_ids=positions, use_cache=False, logits_to_keep=keep
        ).logits  # [T, V]
        if logits.dtype != torch.float64:
            logits = logits.float()
        if detail == "distribution":
            log_distribution = log_softmax(logits, dim=-1)
            logprobs = log_distribution.gather(-1, targets[:, None])[:, 0]
            return logprobs, logits.argmax(-1) == targets, log_distribution
        logprobs = -cross_entropy(logits, targets, reduction="none")
        if detail == "correct":
            return logprobs, logits.argmax(-1) == targets
        return (logprobs,)


def score_answers(scorer: Any, pack: Pack, detail: str = "logprobs") -> Answers:
    """Run the scorer (or the engine around it) on one pack; the results are in the pack's `targets` order."""
    return Answers(*scorer(pack.tokens, pack.positions, pack.keep, pack.targets, detail))

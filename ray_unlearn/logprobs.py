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
from ray_unlearn.losses import DISTRIBUTION, HIDDEN, LOGPROBS

CORRECT = "correct"
"""How much a scorer answers: what losses read (LOGPROBS, DISTRIBUTION, HIDDEN), or this, for metrics."""


@dataclass(frozen=True)
class Answers:
    """logprobs: [T], fp32 (float64 for a float64 model); correct: bool [T], argmax is the token;
    log_distribution: [T, V]; hidden: [T, H], one layer's output. What was not asked for is None."""

    logprobs: Tensor | None = None
    correct: Tensor | None = None
    log_distribution: Tensor | None = None
    hidden: Tensor | None = None


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
        self, tokens: Tensor, positions: Tensor, keep: Tensor, targets: Tensor, detail: str, layer: int
    ) -> tuple[Tensor | None, ...]:
        """The fields of Answers, in order; `layer` is read for "hidden" alone, and then no logits are computed."""
        inputs = {"input_ids": tokens, "position_ids": positions, "use_cache": False}
        if detail == HIDDEN:
            return None, None, None, self._hidden(inputs, keep, layer)
        logits = self.model(**inputs, logits_to_keep=keep).logits  # [T, V]
        if logits.dtype != torch.float64:
            logits = logits.float()
        if detail == DISTRIBUTION:
            log_distribution = log_softmax(logits, dim=-1)
            logprobs = log_distribution.gather(-1, targets[:, None])[:, 0]
            return logprobs, logits.argmax(-1) == targets, log_distribution, None
        logprobs = -cross_entropy(logits, targets, reduction="none")
        return logprobs, logits.argmax(-1) == targets if detail == CORRECT else None, None, None

    def _hidden(self, inputs: dict[str, Any], keep: Tensor, layer: int) -> Tensor:
        """Output of one decoder layer at the kept positions, [T, H]."""
        seen: list[Tensor] = []

        def take(module: nn.Module, positional: Any, output: Any) -> None:
            seen.append((output[0] if isinstance(output, tuple) else output)[keep])

        handle = decoder_layers(self.model)[layer].register_forward_hook(take)
        try:
            self.model(**inputs, logits_to_keep=torch.zeros_like(keep))
        finally:
            handle.remove()
        return seen[0]


def decoder_layers(model: Any) -> Any:
    """The model's list of decoder layers, with or without adapters around it."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = base.get_decoder()
    return decoder.layers if hasattr(decoder, "layers") else decoder.h


def score_answers(scorer: Any, pack: Pack, detail: str = LOGPROBS, layer: int = 0) -> Answers:
    """Run the scorer (or the engine around it) on one pack; the results are in the pack's `targets` order."""
    return Answers(*scorer(pack.tokens, pack.positions, pack.keep, pack.targets, detail, layer))

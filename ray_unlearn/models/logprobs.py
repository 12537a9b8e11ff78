"""Per-token log-probs of answer tokens from packed rows: no logits are computed that nobody reads.

Shapes: R rows, L tokens of a row, T answer tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import log_softmax
from torch.utils.checkpoint import checkpoint

from ray_unlearn.models.packing import Pack

LOGPROBS, DISTRIBUTION, HIDDEN = "logprobs", "distribution", "hidden"
CORRECT, MOMENTS = "correct", "moments"
"""How much a scorer answers: what losses read (LOGPROBS, DISTRIBUTION, HIDDEN), or these two, for metrics."""
HEAD_BYTES = {"cpu": 64 * 2**20, "cuda": 512 * 2**20}
"""Bytes of fp32 logits that may exist at one time, by device; with more answer tokens the head goes over them in
chunks, and computes each chunk again in the backward pass."""


@dataclass(frozen=True)
class Answers:
    """logprobs: [T], fp32 (float64 for a float64 model); correct: bool [T], argmax is the token; moments:
    [T, 2], mean and variance of log p over the whole distribution; log_distribution: [T, V]; hidden: [T, H],
    one layer's output. What was not asked for is None."""

    logprobs: Tensor | None = None
    correct: Tensor | None = None
    moments: Tensor | None = None
    log_distribution: Tensor | None = None
    hidden: Tensor | None = None


class AnswerScorer(nn.Module):
    """A causal language model that answers with log-probs of the kept positions' next tokens.

    The decoder runs once over the rows; only the kept positions' states go on to the head, by the model's own
    forward (its decoder stands aside), so that tied and untied heads, scaled and soft-capped logits are as the
    model defines them, and ZeRO-3 gathers the head's shard where it is used. Sequences in a row are kept apart
    by their restarting positions (no attention mask, no cache).
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        keep: Tensor,
        targets: Tensor,
        mask: Tensor | None,
        detail: str,
        layer: int,
    ) -> tuple[Tensor | None, ...]:
        """The fields of Answers, in order; `layer` is read for "hidden" alone, and then no logits are computed."""
        inputs = {"input_ids": tokens, "position_ids": positions, "attention_mask": mask, "use_cache": False}
        if detail == HIDDEN:
            return None, None, None, None, self._hidden(inputs, keep, layer)
        output = causal_model(self.model).get_decoder()(**inputs)
        states = output.last_hidden_state.flatten(0, 1)[keep]  # [T, H]
        self._output_type = type(output)
        rows = max(1, HEAD_BYTES[states.device.type] // (4 * self._vocabulary))
        if detail == DISTRIBUTION or len(states) <= rows:
            return *self._head(states, targets, detail), None
        chunks = []
        for part, part_targets in zip(states.split(rows), targets.split(rows), strict=True):
            if torch.is_grad_enabled():
                chunks.append(checkpoint(self._head, part, part_targets, detail, use_reentrant=False))
            else:
                chunks.append(self._head(part, part_targets, detail))
        whole = [None if field[0] is None else torch.cat(field) for field in zip(*chunks, strict=True)]
        return *whole, None

    @property
    def _vocabulary(self) -> int:
        return int(causal_model(self.model).config.get_text_config().vocab_size)

    def _head(self, states: Tensor, targets: Tensor, detail: str) -> tuple[Tensor | None, ...]:
        """From the decoder's output [T, H] to the fields of Answers but the last."""
        logits = self._logits(states)  # [T, V]
        if logits.dtype != torch.float64:
            logits = logits.float()
        if detail in (DISTRIBUTION, MOMENTS):
            log_distribution = log_softmax(logits, dim=-1)
            logprobs = log_distribution.gather(-1, targets[:, None])[:, 0]
            correct = logits.argmax(-1) == targets
            if detail == DISTRIBUTION:
                return logprobs, correct, None, log_distribution
            chances = log_distribution.exp()
            # A token of probability 0 has log p = -inf, and weighs nothing.
            finite = log_distribution.masked_fill(chances == 0, 0.0)
            mean = (chances * finite).sum(-1)
            return logprobs, correct, torch.stack([mean, (chances * finite**2).sum(-1) - mean**2], dim=-1), None
        is_best = logits.argmax(-1) == targets if detail == CORRECT else None
        return _TokenLogprobs.apply(logits, targets), is_best, None, None

    def _logits(self, states: Tensor) -> Tensor:
        """The model's own way from its decoder's output [T, H] to logits [T, V]."""
        model = causal_model(self.model)
        decoder = model.get_decoder()
        output = self._output_type(last_hidden_state=states[None])
        decoder.forward = lambda *arguments, **named: output
        try:
            return model(input_ids=None, use_cache=False).logits.flatten(0, 1)
        finally:
            del decoder.forward

    def _hidden(self, inputs: dict[str, Any], keep: Tensor, layer: int) -> Tensor:
        """Output of one decoder layer at the kept positions, [T, H]."""
        seen: list[Tensor] = []

        def take(module: nn.Module, positional: Any, output: Any) -> None:
            seen.append((output[0] if isinstance(output, tuple) else output).flatten(0, 1)[keep])

        handle = decoder_layers(self.model)[layer].register_forward_hook(take)
        try:
            causal_model(self.model).get_decoder()(**inputs)
        finally:
            handle.remove()
        return seen[0]


class _TokenLogprobs(torch.autograd.Function):
    """log p of one token a row, from logits [T, V] that nobody else reads: they are overwritten, first with the
    log-probs and in the backward pass (of which there can be one) with their own gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        torch.log_softmax(logits, -1, out=logits)
        ctx.save_for_backward(logits, targets)
        return logits.gather(-1, targets[:, None])[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        """d log p_t / d logit_v = [v = t] - p_v."""
        log_distribution, targets = ctx.saved_tensors
        gradient = log_distribution.exp_().mul_(-upstream[:, None])
        return gradient.scatter_add_(-1, targets[:, None], upstream[:, None]), None


def decoder_layers(model: Any) -> Any:
    """The model's list of decoder layers, with or without adapters around it."""
    decoder = causal_model(model).get_decoder()
    return decoder.layers if hasattr(decoder, "layers") else decoder.h


def causal_model(model: Any) -> Any:
    """The causal language model itself, where adapters are around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def score_answers(scorer: Any, pack: Pack, detail: str = LOGPROBS, layer: int = 0) -> Answers:
    """Run the scorer (or the engine around it) on one pack; the results are in the pack's `targets` order."""
    return Answers(*scorer(pack.tokens, pack.positions, pack.keep, pack.targets, pack.mask, detail, layer))

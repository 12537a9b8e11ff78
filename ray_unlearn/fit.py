"""How much a worker should take at a time, by arithmetic: tokens of a forward pass, recomputation, threads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ray_unlearn.config import GangConfig

CPU_BUDGET = 160 * 2**20
"""Bytes of activations on a CPU: more would cost memory and save no time, because a small part of a batch keeps all
of a CPU's cores busy."""
GPU_SHARE = 0.8
"""Of a GPU's memory, what is planned for; the rest is for fragments, buffers and kernels."""
FEWEST_TOKENS, MOST_TOKENS = 512, 16_384
STATE_BYTES = {"fp32": (4, 4, 12), "bf16": (2, 2, 12)}
"""Of one trained parameter: weight, gradient, and optimizer (two moments, and the fp32 copy that ZeRO steps on)."""
VALUES_PER_TOKEN = 17
"""Values that one layer keeps for the backward pass, by token and hidden unit (Korthikanti et al.,
arXiv:2205.05198, equation 2 with fused attention: 34 bytes in 16 bits)."""


def activation_bytes(config: Any, precision: str, checkpointing: bool) -> float:
    """Bytes that the backward pass needs of one token, for a transformer of this configuration (without logits,
    which `logprobs` bounds by itself)."""
    text = config.get_text_config()
    width = 2 if precision == "bf16" else 4
    layer = VALUES_PER_TOKEN * text.hidden_size * width
    # With recomputation: each layer's input, and one layer at a time.
    return (
        text.num_hidden_layers * text.hidden_size * width + layer if checkpointing else text.num_hidden_layers * layer
    )


def state_bytes(num_parameters: int, gang: GangConfig) -> float:
    """Bytes of weights, gradients and optimizer on one worker (ZeRO, arXiv:1910.02054, figure 1); with adapters
    or some weights alone trained it is an upper bound."""
    parts = STATE_BYTES[gang.precision]
    num_sharded = gang.zero_stage  # the optimizer; gradients too; weights too
    whole, sharded = parts[: 3 - num_sharded], parts[3 - num_sharded :]
    return num_parameters * (sum(whole) + sum(sharded) / gang.num_workers)


def fitted(gang: GangConfig, config: Any, num_parameters: int, gpu_bytes: int | None, threads: int) -> GangConfig:
    """The gang with its tokens a pass, recomputation (where nobody chose) and threads.

    gpu_bytes: of one GPU, None where there is none or it cannot be asked from here. Recomputation goes on only where
    the fewest tokens would not fit without it.
    """
    if gang.gpus_per_worker and gpu_bytes is None:
        return replace(gang, max_tokens=MOST_TOKENS)
    budget: float = CPU_BUDGET
    if gang.gpus_per_worker and gpu_bytes is not None:
        budget = GPU_SHARE * gpu_bytes * min(1.0, gang.gpus_per_worker) - state_bytes(num_parameters, gang)
    needs = FEWEST_TOKENS * activation_bytes(config, gang.precision, checkpointing=False)
    checkpointing = gang.checkpointing or bool(gang.gpus_per_worker and needs > budget)
    tokens = int(budget / activation_bytes(config, gang.precision, checkpointing))
    return replace(
        gang,
        checkpointing=checkpointing,
        max_tokens=min(max(tokens, FEWEST_TOKENS), MOST_TOKENS),
        threads_per_worker=threads,
    )

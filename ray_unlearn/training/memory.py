"""How much a worker should take at a time, by arithmetic: memory, tokens of a forward pass, recomputation, threads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ray_unlearn.config import GangConfig

CPU_BUDGET = 200 * 2**20
"""Bytes of activations on a CPU: more would cost memory and save no time, because a small part of a batch keeps all
of a CPU's cores busy."""
GPU_SHARE = 0.8
"""Of a GPU's memory, what is planned for; the rest is for fragments, buffers and kernels."""
FEWEST_TOKENS, MOST_TOKENS = 512, 16_384
WIDTH = {"fp32": 4, "bf16": 2}
"""Bytes of a weight, of a gradient and of an activation."""
MOMENTS, MASTER = 8, 4
"""Bytes of AdamW's two moments, and of the fp32 copy that the optimizer steps on where one is kept apart."""
BUCKET = 500_000_000
"""Gradients that ZeRO copies into one buffer on their way to the other workers (DeepSpeed's reduce_bucket_size)."""
SUB_GROUP = 1_000_000_000
"""Weights of its shard that ZeRO-3 steps on at a time (DeepSpeed's sub_group_size)."""
LIVE = 1_000_000_000
"""Weights that ZeRO-3 keeps gathered between their uses (DeepSpeed's stage3_max_live_parameters)."""
HEAD_COPIES = 3
"""Of a chunk's fp32 logits: themselves, their log-softmax, and the gradient."""
PADDING = 1.2
"""Tokens of packed rows for each real one."""
HEAP, HEAP_WITH_ADAPTERS = 0.5, 1.0
"""On a CPU, what the C library's heap holds beside each byte of activations and gradients: it is left in pieces by
tensors of many sizes (measured by tests/perf/plan_accuracy.py, as is the next)."""
LIBRARIES = 28 * 2**20
"""On a CPU, what gloo, oneDNN and DeepSpeed take for themselves once they run."""
PROCESS_BYTES = 0.75 * 2**30
"""A CPU worker's process with its libraries before the model."""
GPU_PROCESS_BYTES = 3 * 2**30
"""Of the host, a GPU worker's process with CUDA's libraries."""
SHARDED_LOADING = 1.3
"""Copies of the model that the workers of a node hold together while it is sharded as it is read."""
DISTRIBUTION_COPIES = 4
"""Of whole fp32 distributions: the trained model's logits and log-softmax, the starting one's, and a gradient."""


@dataclass(frozen=True)
class Memory:
    """Bytes that training takes on one worker, above the process itself."""

    weights: float
    gradients: float
    """Of a whole batch, while it is run in several passes."""
    optimizer: float
    """Moments and fp32 masters."""
    snapshot: float
    """The first state, kept beside the trained one on the same device (`snapshot.Snapshot`)."""
    buffers: float
    """DeepSpeed's: gradients on their way, and weights that ZeRO-3 has gathered; a CPU's libraries."""
    step: float
    """What the optimizer's step needs beside the states, when activations are gone."""
    activations: float
    logits: float
    """And the gradient of the LM head, before it is added to the others."""
    heap: float
    """Of a CPU: what activations and gradients leave in pieces."""

    @property
    def states(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.snapshot + self.buffers

    @property
    def peak(self) -> float:
        """At the fullest moment: in the last backward pass of a batch, or in the optimizer's step."""
        return self.states + self.heap + max(self.step, self.activations + self.logits)


def activation_bytes(config: Any, precision: str, checkpointing: bool, row_length: int = 0) -> float:
    """Bytes that the backward pass needs of one token, for a transformer of this configuration (without logits,
    which `logprobs` bounds by itself).

    One layer keeps: the input of each norm, its normalised form and its output (6 hidden units; the inputs in fp32),
    queries, keys, values and the attention's output, and four of the MLP's width (both products, the activation and
    the input of the last). row_length: of packed rows, whose mask every layer keeps as numbers.
    """
    text = config.get_text_config()
    width, hidden = WIDTH[precision], text.hidden_size
    heads = text.num_attention_heads
    head = getattr(text, "head_dim", None) or hidden // heads
    attention = 2 * head * (heads + (getattr(text, "num_key_value_heads", None) or heads))
    layer = width * (4 * hidden + attention + 4 * _mlp_width(text) + row_length) + 4 * 2 * hidden
    # With recomputation: each layer's input, and one layer at a time.
    inputs = text.num_hidden_layers * hidden * width
    return inputs + layer if checkpointing else text.num_hidden_layers * layer


def _mlp_width(text: Any) -> int:
    """Units of the MLP that one token goes through."""
    experts = getattr(text, "num_experts_per_tok", None)
    if experts:
        return int(experts) * int(getattr(text, "moe_intermediate_size", None) or text.intermediate_size)
    names = ("intermediate_size", "n_inner", "ffn_dim")
    return next((int(v) for name in names if (v := getattr(text, name, None))), 4 * int(text.hidden_size))


def logit_bytes(config: Any, device: str, tokens: float) -> float:
    """Bytes of the LM head's answers to so many tokens, in the chunks that `logprobs` goes over them in."""
    from ray_unlearn.models.logprobs import HEAD_BYTES

    return HEAD_COPIES * min(4.0 * tokens * config.get_text_config().vocab_size, HEAD_BYTES[device])


def state_bytes(num_parameters: int, gang: GangConfig, num_trained: int | None = None) -> float:
    """Bytes of weights, gradients and optimizer on one worker (ZeRO, arXiv:1910.02054, figure 1).

    num_trained: of the parameters, those that are trained; None: all.
    """
    return sum(_states(num_parameters, gang, num_parameters if num_trained is None else num_trained))


def _states(num_parameters: int, gang: GangConfig, num_trained: int) -> tuple[float, float, float]:
    """Bytes of weights, of gradients and of the optimizer on one worker; a gang that only scores may still need
    gradients, for their norms."""
    width, num_workers = WIDTH[gang.precision], gang.num_workers
    # The optimizer is sharded from stage 1 on, gradients from 2 on, weights in 3.
    shards = [num_workers if gang.zero_stage >= stage else 1 for stage in (3, 2, 1)]
    optimizer = (MOMENTS + (MASTER if _has_masters(gang) else 0)) * gang.trains
    if offloads(gang):  # gradients leave for the host bucket by bucket
        optimizer, num_gradients = 0, min(BUCKET, num_trained) * shards[1]
    else:
        num_gradients = num_trained
    parts = (width * num_parameters, width * num_gradients, optimizer * num_trained)
    return tuple(part / shard for part, shard in zip(parts, shards, strict=True))  # type: ignore[return-value]


def offloads(gang: GangConfig) -> bool:
    """Whether the optimizer lies in host memory."""
    section = gang.deepspeed.get("zero_optimization", {}).get("offload_optimizer") or {}
    return bool(section.get("device") == "cpu" and gang.gpus_per_worker)


def _has_masters(gang: GangConfig) -> bool:
    """Whether the optimizer steps on a copy: in bf16, and under ZeRO, which cuts flat weights up, in fp32 too."""
    return gang.precision != "fp32" or gang.zero_stage > 0


def snapshot_bytes(gang: GangConfig, num_trained: int) -> float:
    """Bytes of the first state that a worker keeps on its device, so that every trial starts from it: its own part."""
    return gang.trains * WIDTH[gang.precision] * num_trained / (gang.num_workers if gang.zero_stage else 1)


def host_bytes(gang: GangConfig, num_parameters: int, num_trained: int, num_workers: int) -> float:
    """Bytes of a node's memory that its so many GPU workers take at the fullest moment: while the model is read, and,
    where the optimizer lies there, after."""
    copies = SHARDED_LOADING if gang.zero_stage == 3 else num_workers
    loading = copies * WIDTH[gang.precision] * num_parameters
    # Moments, masters and the gradients that meet them there, in fp32.
    kept = (MOMENTS + 2 * MASTER) * num_trained * num_workers / gang.num_workers if offloads(gang) else 0.0
    return num_workers * GPU_PROCESS_BYTES + max(loading, kept)


def training_memory(
    config: Any, gang: GangConfig, num_parameters: int, num_trained: int | None = None, answer_share: float = 1.0
) -> Memory:
    """What training with `gang.max_tokens` tokens a pass takes on one worker.

    answer_share: of these tokens, those that are answers and meet the LM head.
    """
    trained = num_parameters if num_trained is None else num_trained
    weights, gradients, optimizer = _states(num_parameters, gang, trained)
    activations = gang.max_tokens * _pass_bytes(config, gang, gang.checkpointing)
    if not gang.trains and trained:  # gradient norms, one sequence at a time
        activations = max(activations, FEWEST_TOKENS * activation_bytes(config, gang.precision, False))
    left = 0.0 if gang.gpus_per_worker else HEAP_WITH_ADAPTERS if gang.lora_rank else HEAP
    return Memory(
        weights,
        gradients,
        optimizer,
        snapshot_bytes(gang, trained),
        _buffer_bytes(gang, num_parameters, trained),
        _step_bytes(config, gang, trained),
        activations,
        _answer_bytes(config, gang, trained, answer_share * gang.max_tokens),
        left * (activations + gradients),
    )


def _pass_bytes(config: Any, gang: GangConfig, checkpointing: bool) -> float:
    """Bytes of activations for one real token of a pass."""
    return PADDING * activation_bytes(config, gang.precision, checkpointing or not gang.trains, gang.row_length)


def _answer_bytes(config: Any, gang: GangConfig, num_trained: int, tokens: float) -> float:
    head = _head_size(config)
    gradient = WIDTH[gang.precision] * head if num_trained >= head else 0
    return logit_bytes(config, "cuda" if gang.gpus_per_worker else "cpu", tokens) + gradient


def _head_size(config: Any) -> int:
    text = config.get_text_config()
    return int(text.vocab_size) * int(text.hidden_size)


def _buffer_bytes(gang: GangConfig, num_parameters: int, num_trained: int) -> float:
    # A GPU's buffer has its full size; of a CPU's, only the pages that are written exist.
    bucket = BUCKET if gang.gpus_per_worker else min(BUCKET, num_trained)
    bucket *= gang.trains
    gathered = min(LIVE, num_parameters) if gang.zero_stage == 3 else 0
    sent = WIDTH[gang.precision] * (bucket + gathered) if gang.zero_stage else 0
    return sent + (0 if gang.gpus_per_worker else LIBRARIES)


def _step_bytes(config: Any, gang: GangConfig, num_trained: int) -> float:
    """AdamW's root of the second moments and what it divides by, in fp32; of ZeRO, the gradients laid end to end."""
    if offloads(gang) or not gang.trains:
        return 0.0
    if gang.zero_stage:
        shard = num_trained / gang.num_workers
        return (MOMENTS + MASTER) * (min(SUB_GROUP, shard) if gang.zero_stage == 3 else shard)
    fp32_gradients = 0 if gang.precision == "fp32" else MASTER * num_trained
    if gang.gpus_per_worker:
        return fp32_gradients + MASTER * num_trained
    # On a CPU one weight matrix after the other, of which the embeddings are the largest.
    return fp32_gradients + MOMENTS * min(num_trained, _head_size(config))


def reference_bytes(config: Any, gang: GangConfig, num_trained: int, distributions: bool) -> float:
    """Bytes more where a method reads of the starting model what is not cached: the trained weights, set aside while
    the starting ones compute where no masters hold them (`Snapshot.starting_weights`), and both models' distributions
    over every token of a pass, which are not cut into chunks."""
    aside = 0 if _has_masters(gang) else WIDTH[gang.precision] * num_trained
    values = DISTRIBUTION_COPIES * config.get_text_config().vocab_size if distributions else 0
    return aside + 4.0 * gang.max_tokens * values


def fitted(
    gang: GangConfig,
    config: Any,
    num_parameters: int,
    gpu_bytes: int | None,
    threads: int,
    num_trained: int | None = None,
) -> GangConfig:
    """The gang with its tokens a pass, recomputation (where nobody chose) and threads.

    gpu_bytes: of one GPU, None where there is none or it cannot be asked from here. Recomputation goes on only where
    the fewest tokens would not fit without it.
    """
    if gang.gpus_per_worker and gpu_bytes is None:
        return replace(gang, max_tokens=MOST_TOKENS)
    trained = num_parameters if num_trained is None else num_trained
    checkpointing = gang.checkpointing
    if gpu_bytes is not None and gang.gpus_per_worker:
        kept = training_memory(config, replace(gang, max_tokens=0), num_parameters, trained).states
        budget = gpu_budget(gang, gpu_bytes) - kept - _answer_bytes(config, gang, trained, MOST_TOKENS)
        needs_less = gang.trains and FEWEST_TOKENS * _pass_bytes(config, gang, False) > budget
        checkpointing = checkpointing or needs_less
        tokens = int(budget / _pass_bytes(config, gang, checkpointing))
    else:
        tokens = int(CPU_BUDGET / activation_bytes(config, gang.precision, checkpointing, gang.row_length))
    return replace(
        gang,
        checkpointing=checkpointing,
        max_tokens=min(max(tokens, FEWEST_TOKENS), MOST_TOKENS),
        threads_per_worker=threads,
    )


def gpu_budget(gang: GangConfig, gpu_bytes: float) -> float:
    """Bytes of its GPU that a worker's training may take."""
    return GPU_SHARE * gpu_bytes * min(1.0, gang.gpus_per_worker)

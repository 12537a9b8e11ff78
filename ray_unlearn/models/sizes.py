"""Numbers that follow from a model's configuration alone: parameters, context, layers, learning rates."""

from __future__ import annotations

from typing import Any

from ray_unlearn.config import UserError
from ray_unlearn.models.loading import _settings, choose_trained, load_config


def context_length(config: Any) -> int:
    """Tokens that the model can read, a large number where it has no limit of its own."""
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1 << 30)


def check_trained(name: str, lora_rank: int, pattern: str) -> int:
    """The number of the model's parameters, from its configuration alone (no weights are read).

    Raises UserError where there would be nothing to train.
    """
    return count_parameters(name, lora_rank, pattern)[0]


def count_parameters(name: str, lora_rank: int, pattern: str) -> tuple[int, int]:
    """The model's parameters (without adapters), and those that would be trained; as `check_trained`."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(name), **_settings())
        size = sum(p.numel() for p in model.parameters())
        model = choose_trained(model, lora_rank, pattern, checkpointing=False)
    return size, sum(p.numel() for p in model.parameters() if p.requires_grad)


def hidden_layer(setting: int, num_layers: int) -> int:
    """The layer meant by TrialConfig.hidden_layer: itself, or 22 % of the depth (RMU: 7 of 32) for -1.

    Raises UserError where the model has no such layer.
    """
    if setting >= num_layers:
        raise UserError(f"hidden_layer = {setting}: the model has layers 0 to {num_layers - 1}. Give one of these")
    return setting if setting >= 0 else min(max(1, round(7 / 32 * num_layers)), num_layers - 1)


SIZE_EXPONENT = 0.6
"""How learning rates fall with model size: (N0 / N) ** 0.6 meets the ranges that worked from 1 M to 7 B."""


def scaled(value: float, at_parameters: float | None, num_parameters: int) -> float:
    """A learning rate stated for one model size, for another: times (N0 / N) ** 0.6.

    Steps that suit a large model are far too small for a small one. The exponent is a fit to the ranges
    that worked for 1e6 (2e-3), 1.2e9 (2.5e-5) and 7e9 (1e-5) parameters; it only has to put the range in
    the right place.
    """
    return value if at_parameters is None else value * (at_parameters / num_parameters) ** SIZE_EXPONENT

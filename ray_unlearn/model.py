"""Load a model and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray_unlearn.config import UserError

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp64": "float64"}


def check_model(name: str) -> None:
    """Raise UserError where a path was given that is no model folder. Hub names pass unless they look like paths."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"--model {name}: this folder holds no model (no config.json). Give the folder that holds it"
            )
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"--model {name}: no such folder. Give a model folder or a hub name such as owner/name")


def load_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--model {name}: its tokenizer cannot be loaded ({_first_line(error)}). Check the name"
        ) from None


def load_config(name: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--model {name}: cannot be loaded ({_first_line(error)}). Check the name or the folder"
        ) from None


def load_model(name: str, precision: str) -> Any:
    """The causal language model in that precision, with every dropout off.

    Dropout would make the loss depend on how a batch is cut over workers, and NPO's ratio at the start
    differ from 1.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(name)
    for key, value in config.to_dict().items():
        if ("dropout" in key or key.endswith(("_pdrop", "_drop"))) and isinstance(value, float):
            setattr(config, key, 0.0)
    dtype = getattr(torch, DTYPES[precision])
    try:
        return AutoModelForCausalLM.from_pretrained(name, config=config, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--model {name}: cannot be loaded ({_first_line(error)}). Check the name or the folder"
        ) from None


def context_length(config: Any) -> int:
    """Tokens that the model can read, a large number where it has no limit of its own."""
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1 << 30)


def count_parameters(name: str) -> int:
    """Parameters of a model, from its configuration alone (no weights are read)."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(name))
    return sum(p.numel() for p in model.parameters())


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__

"""Load a model and its tokenizer."""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ray_unlearn.config import UserError
from ray_unlearn.files import give_usual_modes
from ray_unlearn.models.fingerprints import INDEX, stored_precision, weight_files, weights_digest
from ray_unlearn.models.gguf import check_gguf, find_gguf
from ray_unlearn.models.older_readers import write_both_spellings
from ray_unlearn.models.tokenizers import keep_start_mark, why_unreadable, write_tokenizer
from ray_unlearn.wording import first_line

TOKENIZER_OF = dict.fromkeys(
    ("muse-bench/MUSE-News_target", "muse-bench/MUSE-Books_target"), "meta-llama/Llama-2-7b-hf"
)
"""Hub models that come without a tokenizer, and the one that they were trained with."""
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}
_trusts: ContextVar[bool] = ContextVar("trust_remote_code", default=False)


def trust_remote_code(is_trusted: bool) -> None:
    """Whether models may run code that lies beside their weights, for what this thread loads from here on."""
    _trusts.set(is_trusted)


def trusts_remote_code() -> bool:
    return _trusts.get()


def _settings() -> dict[str, bool]:
    """For everything that is loaded. Said even where it is off: left unsaid, transformers would ask."""
    return {"trust_remote_code": trusts_remote_code()}


def check_model(name: str) -> None:
    """Raise UserError where a path was given that is no model folder. Hub names pass unless they look like paths."""
    path = Path(name).expanduser()
    if (file := find_gguf(name)) is not None:
        check_gguf(name, file)
    elif path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"--model {name}: this folder holds no model (no config.json). Give the folder that holds it"
            )
        if (path / "model.safetensors").is_file() and (path / "model.safetensors.index.json").is_file():
            raise UserError(
                f"--model {name}: holds model.safetensors and shards with an index; only the first would be loaded. "
                "Remove the one that is not meant"
            )
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"--model {name}: no such folder. Give a model folder or a hub name such as owner/name")


def load_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    source = TOKENIZER_OF.get(name, name)
    if lack := why_unreadable(source):
        raise UserError(f"--model {name}: its tokenizer cannot be loaded: {lack}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **_settings())
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise UserError(f"--model {name}: its tokenizer cannot be loaded{_why(error)}") from None
    keep_start_mark(tokenizer, source)
    return tokenizer


def load_stops(name: str) -> tuple[int, ...]:
    """The token ids at which the model's own generation settings end an answer; none where it has no such settings."""
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(name).eos_token_id
    except (OSError, ValueError, TypeError):
        return ()
    return tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)


def load_config(name: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, **_settings())
    except (OSError, ValueError) as error:
        raise UserError(f"--model {name}: cannot be loaded{_why(error)}") from None


def load_model(name: str, precision: str, device: str = "cpu") -> Any:
    """The causal language model in that precision, with every dropout off; on a GPU its weights are read straight into
    the GPU's memory.

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
        return AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            device_map=None if device == "cpu" else {"": device},
            **_settings(),
        )
    except (OSError, ValueError) as error:
        raise UserError(f"--model {name}: cannot be loaded{_why(error)}") from None


def check_pattern(pattern: str) -> None:
    """Raise UserError where the pattern is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"--train {pattern}: is no regular expression ({error}). Correct it") from None


def _why(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return ": it brings code of its own, which could do anything. Read it, then give --trust-remote-code"
    return f" ({first_line(error)}). Check the name or the folder"


def choose_trained(model: Any, lora_rank: int, pattern: str, checkpointing: bool, seed: int = 0) -> Any:
    """The model with adapters around its linear layers, or with all but the named parameters frozen.

    The seed decides where the adapters start, and nothing else does: not the device, nor how weights are sharded.

    Raises UserError where the pattern names nothing, or peft is missing.
    """
    if lora_rank:
        import torch

        try:
            from peft import LoraConfig, get_peft_model
        except ImportError:
            raise UserError("--lora: needs the peft package. Install ray_unlearn[lora]") from None
        config = LoraConfig(
            r=lora_rank, lora_alpha=2 * lora_rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        # Adapters are drawn on the CPU, wherever the model is. What peft asks of transformers has another name by now.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            torch.default_generator.manual_seed(seed)
            model = get_peft_model(model, config)
    if pattern:
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        chosen = {name for name in trained if re.search(pattern, name)}
        if not chosen:
            raise UserError(f"--train {pattern}: names no parameter. Some names: {', '.join(trained[:3])}")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
    if checkpointing:
        # Not re-entrant: the re-entrant kind gives no gradients at all when the embeddings are frozen.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    return model


def save_weights(
    model: Any, state: dict[str, Any], tokenizer: Any, folder: Path, source: str, precision: str, kept_in: str = ""
) -> None:
    """Write the model with these weights as `transformers` loads it (safetensors), from version 4 on; adapters are
    merged first, in `precision`. The tokenizer's files are those that came in.

    kept_in: the precision that the weights are written in; empty: that of the source's own files. Raises RuntimeError
    where it cannot hold them.
    """
    import torch

    write_tokenizer(tokenizer, folder, load_tokenizer)
    dtype = getattr(torch, DTYPES[kept_in or stored_precision(source)])
    if hasattr(model, "peft_config"):
        from peft import get_peft_model

        merged = get_peft_model(load_model(source, precision), model.peft_config["default"])
        # Tied weights are named once; a name that the model does not have would be a loss.
        unexpected = merged.load_state_dict(state, strict=False).unexpected_keys
        if unexpected:
            raise RuntimeError(f"the adapted model has weights that its base does not know: {unexpected[:3]}")
        model = merged.merge_and_unload()
        kept = model.state_dict().keys()
        state = {name: value for name, value in model.named_buffers() if name in kept}
        state |= {name: value.detach() for name, value in model.named_parameters()}  # tied ones once
    rounded = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    lost = [name for name, value in rounded.items() if not value.isfinite().all() and state[name].isfinite().all()]
    if lost:
        raise RuntimeError(f"{lost[0]} has numbers that {dtype} cannot hold. Export with --precision bf16 or fp32")
    model.save_pretrained(folder, state_dict=rounded)
    config = folder / "config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    values["dtype"] = str(dtype).removeprefix("torch.")  # it has the model's in memory
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_both_spellings(folder)
    give_usual_modes(folder)


def save_adapter(model: Any, state: dict[str, Any], tokenizer: Any, folder: Path) -> None:
    """Write the adapter by itself as `peft` loads it on top of the model that it was trained on."""
    write_tokenizer(tokenizer, folder, load_tokenizer)
    model.save_pretrained(folder, state_dict=state)
    give_usual_modes(folder)


def cut_weights(folder: Path, max_shard_size: str) -> None:
    """Write a model's weights again as files of at most that size, such as "2GB", with an index of several.

    A tensor that is larger has a file of its own. The whole model is held in memory. Raises RuntimeError where the
    tensors in the new files are other ones.
    """
    from huggingface_hub import save_torch_state_dict
    from safetensors.torch import load_file

    before, files = weights_digest(folder), weight_files(folder)
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".cut-") as place:
        save_torch_state_dict(tensors, place, max_shard_size=max_shard_size)
        for file in [*files, folder / INDEX]:
            file.unlink(missing_ok=True)
        for file in Path(place).iterdir():
            file.rename(folder / file.name)
    give_usual_modes(folder)
    if weights_digest(folder) != before:
        raise RuntimeError(f"{folder}: the files cut at {max_shard_size} do not hold the weights that were there")

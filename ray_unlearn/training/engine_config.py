"""DeepSpeed's configuration: ours, and what a user's file (`--deepspeed`) may change of it. Imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_unlearn.config import UserError

FREE_SECTIONS = ("zero_optimization", "bf16")
"""The sections that a user's file may change; every other key is ours, and may stand there with our value alone."""
HELD = (
    "zenflow",
    "zero_hpz_partition_size",
    "mics_shard_size",
    "bf16_master_weights_and_grads",
    "bf16_optimizer_states",
)
"""Settings that keep weights or optimizer state in places that a snapshot does not reach."""


def engine_config(zero_stage: int, precision: str, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What DeepSpeed is built with; `settings` are a user's free sections, laid over ours key by key."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "zero_optimization": {
            "stage": zero_stage,
            "overlap_comm": False,
            "stage3_param_persistence_threshold": 0,
        },
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": 0.0,
                "betas": [0.9, 0.999],
                "weight_decay": 0.0,
                "torch_adam": True,  # nothing to compile
                "fused": True,  # one pass over the weights, and no temporaries of their size
            },
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # an offloaded optimizer is torch's too
        "steps_per_print": 1 << 30,
    }
    if precision == "bf16":
        config["bf16"] = {"enabled": True}
    return _laid_over(config, settings or {})


def load_settings(path: Path) -> dict[str, Any]:
    """The free sections of a DeepSpeed configuration file. Raises UserError naming the key that cannot be taken."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"--deepspeed {path}: cannot be read ({error.strerror}). Check the path") from None
    except ValueError as error:
        raise UserError(f"--deepspeed {path}: is no JSON ({error}). Mend the file") from None
    sections = content if isinstance(content, dict) else {}
    zero, bf16 = (sections.get(name, {}) for name in FREE_SECTIONS)
    if not isinstance(zero, dict) or zero.get("stage") not in (0, 1, 2, 3) or not isinstance(bf16, dict):
        raise UserError(f'--deepspeed {path}: names no ZeRO stage. Write "zero_optimization": {{"stage": 2, ...}}')
    ours = engine_config(zero["stage"], "fp32")
    for key, value in sections.items():
        if key not in FREE_SECTIONS and (key not in ours or value != ours[key]):
            only = f"is {json.dumps(ours[key])} here" if key in ours else "is not supported"
            raise UserError(
                f"--deepspeed {path}: {key} {only}, because every trial sets it or starts from it. Remove it; a file "
                f"can change {' and '.join(FREE_SECTIONS)}"
            )
    held = [key for key in HELD if key in zero or key in bf16]
    held += [key for key, value in zero.items() if isinstance(value, dict) and value.get("device") == "nvme"]
    if held:
        raise UserError(
            f"--deepspeed {path}: with {held[0]} (as it is) the first state of the engine cannot be put back in place "
            "before every trial. Remove it; offload to the CPU is supported"
        )
    if not isinstance(bf16.get("enabled", False), bool):
        raise UserError(f"--deepspeed {path}: bf16.enabled is neither true nor false. Mend the file")
    return {name: sections[name] for name in FREE_SECTIONS if name in sections}


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, with `above` where they differ; sections are merged key by key."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _laid_over(merged[key], value) if both else value
    return merged

"""A saved config.json that transformers 4 reads as 5 does.

transformers 5 writes the rotary embedding's numbers as `rope_parameters` alone; 4 does not know that key and takes its
class's default base without a word, so that an intact model reads as damaged. Both spellings side by side are read
right by both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NEOX = ("gpt_neox", "gpt_neox_japanese")
LOCAL_BASE = {"sliding_attention": "rope_local_base_freq"}
PHI_KEYS = ("short_factor", "long_factor")
"""Version 4's Phi-3 refuses a scaling with any key but these and its type."""


def write_both_spellings(folder: Path) -> None:
    """Add the older spelling to the config.json in that folder, where it has only the newer one."""
    file = folder / "config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    spelled = spell_rope(values)
    if spelled != values:
        file.write_text(json.dumps(spelled, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def spell_rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with `rope_theta` and `rope_scaling` beside every `rope_parameters`, nested ones too."""
    result = {key: spell_rope(value) if key.endswith("_config") and isinstance(value, dict) else value
              for key, value in values.items()}  # fmt: skip
    if str(values.get("model_type")).startswith("qwen") and "num_local_experts" in values:
        result["num_experts"] = values["num_local_experts"]
    parameters = values.get("rope_parameters")
    if not isinstance(parameters, dict):
        return result
    by_layer = {key: value for key, value in parameters.items() if isinstance(value, dict)}
    for kind, key in LOCAL_BASE.items():
        if kind in by_layer and "rope_theta" in by_layer[kind]:
            result[key] = by_layer[kind]["rope_theta"]
    flat = by_layer.get("full_attention") or next(iter(by_layer.values()), None) or parameters
    return result | _older(flat, values.get("model_type"), bool(by_layer))


def _older(parameters: Mapping[str, Any], model_type: Any, is_by_layer: bool) -> dict[str, Any]:
    result: dict[str, Any] = {}
    theta, part = parameters.get("rope_theta"), parameters.get("partial_rotary_factor")
    if theta is not None:
        result |= {"rotary_emb_base" if model_type in NEOX else "rope_theta": theta}
    if part is not None:
        result |= {"rotary_pct" if model_type in NEOX else "partial_rotary_factor": part}
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        return result if is_by_layer else result | {"rope_scaling": None}
    if str(model_type).startswith("phi3"):
        return result | {"rope_scaling": {"type": kind, **{key: parameters[key] for key in PHI_KEYS}}}
    left_out = ("rope_theta", "partial_rotary_factor")
    return result | {"rope_scaling": {key: value for key, value in parameters.items() if key not in left_out}}

"""Digests of a model's weights."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any


@lru_cache(maxsize=4)
def weights_fingerprint(model: str) -> str:
    """Changes with the weights: over the files' content; the hub's cache already names its files by it."""
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(model, allow_patterns=["*.safetensors", "*.json"]))
    digest = hashlib.sha256()
    for file in sorted([*weight_files(folder), folder / "config.json"]):
        blob = file.resolve().name
        is_digest = len(blob) == 64 and all(c in "0123456789abcdef" for c in blob)
        digest.update((blob if is_digest else _file_digest(file)).encode())
    return digest.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors that transformers loads of a folder: a whole model's one file goes before shards."""
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))


def _file_digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def adapter_digest(model: Any) -> str:
    """SHA-256 over a model's adapters as they are, by name; fp32, whatever they are held in."""
    import torch

    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            digest.update(f"{name} {list(parameter.shape)}".encode())
            digest.update(parameter.detach().float().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def weights_digest(folder: Path) -> str:
    """SHA-256 over the tensors of a folder's safetensors, by name: not over how they are cut into files."""
    import torch
    from safetensors import safe_open

    digest = hashlib.sha256()
    places: dict[str, Path] = {}
    for file in weight_files(folder):
        with safe_open(file, "pt") as tensors:
            places |= dict.fromkeys(tensors.keys(), file)
    for name, file in sorted(places.items()):
        with safe_open(file, "pt") as tensors:
            tensor = tensors.get_tensor(name)
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()

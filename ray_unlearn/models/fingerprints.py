"""Digests of a model's weights."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ray_unlearn.files import cache_folder, visible

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def weights_fingerprint(model: str) -> str:
    """Changes with the weights: over the content of config.json and of the files that transformers would load.

    model: a folder, or a hub name, whose weights are fetched where they are not in the hub's cache.
    """
    folder = model_folder(model)
    digest = hashlib.sha256()
    for file in sorted([*weight_files(folder), folder / "config.json"]):
        digest.update(_file_digest(file).encode())
    return digest.hexdigest()


def model_folder(model: str) -> Path:
    """The model's folder; of a hub name its snapshot in the hub's cache, fetched with the weights that its index names
    and no others."""
    folder = Path(model).expanduser()
    return folder if folder.is_dir() else _snapshot(model)


@lru_cache(maxsize=8)
def _snapshot(model: str) -> Path:
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(model, allow_patterns=["config.json", INDEX]))
    names = sorted(set(_indexed(folder))) or [WHOLE]
    return Path(snapshot_download(model, allow_patterns=["config.json", INDEX, *names]))


def hub_revision(model: str) -> str:
    """The commit of a hub model's snapshot; empty for a folder."""
    return "" if Path(model).expanduser().is_dir() else _snapshot(model).name


def weight_files(folder: Path) -> list[Path]:
    """The safetensors that transformers loads of a folder: a whole model's one file goes before shards, and of shards
    those that the index names. Other files beside them (consolidated.safetensors, say) are nobody's."""
    whole = folder / WHOLE
    if whole.is_file():
        return [whole]
    return sorted({folder / name for name in _indexed(folder)}) or visible(folder.glob("*.safetensors"), folder)


def _indexed(folder: Path) -> list[str]:
    """The files that the folder's index names; none where it has no index."""
    try:
        return list(json.loads((folder / INDEX).read_text())["weight_map"].values())
    except FileNotFoundError:
        return []


def _file_digest(file: Path) -> str:
    """SHA-256 of a file. The hub's cache names its large files by it; of others it is kept in the cache by place, size
    and time, so that each is read once."""
    real = file.resolve()
    if len(real.name) == 64 and all(c in "0123456789abcdef" for c in real.name):
        return real.name
    stat = real.stat()
    key = hashlib.sha256(f"{real} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()
    kept = cache_folder() / "digests" / key
    if kept.is_file() and len(known := kept.read_text()) == 64:
        return known
    with real.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    with contextlib.suppress(OSError):  # then it is read again
        kept.parent.mkdir(parents=True, exist_ok=True)
        unfinished = kept.with_name(f".{key}.{os.getpid()}")
        unfinished.write_text(found)
        unfinished.replace(kept)
    return found


def files_digest(files: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 over names and contents."""
    digest = hashlib.sha256()
    for name, content in sorted(files):
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()


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

"""A tokenizer's files: what a folder lacks, its own word on start marks, and copies that give the same tokens."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "tekken.json", "*.model", "*.tiktoken", "*.jinja", "tokenization*.py"),
    *("additional_chat_templates/*.jinja", "tokenizer.*.json"),
)
"""Patterns of the files that a tokenizer is made of."""
READERS = {
    "tokenizer.model": ("sentencepiece", "sentencepiece"),
    "tekken.json": ("mistral_common", "mistral-common"),
}
"""Files that a library reads which not everybody has: its module, and its package."""


def list_files(source: str) -> list[Path]:
    """The tokenizer's files in a folder, or of a hub name in the hub's cache; none where there are none."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        found = _cached(source)
        if found is None:
            return []
        folder = found
    return sorted({file for pattern in FILES for file in folder.glob(pattern) if file.is_file()})


def _cached(source: str) -> Path | None:
    from transformers.utils import cached_file

    for name in ("tokenizer_config.json", "tokenizer.json", "tokenizer.model"):
        with contextlib.suppress(OSError, ValueError):
            if file := cached_file(source, name, local_files_only=True):
                return Path(file).parent
    return None


def copy_files(source: str, folder: Path) -> bool:
    """Copy the tokenizer's files byte for byte; whether there were any."""
    files = list_files(source)
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        inner = Path("additional_chat_templates") if file.parent.name == "additional_chat_templates" else Path()
        (folder / inner).mkdir(exist_ok=True)
        shutil.copyfile(file, folder / inner / file.name)
    return bool(files)


def write_tokenizer(tokenizer: Any, folder: Path, load: Callable[[str], Any]) -> None:
    """The tokenizer's files as they came in, read again with `load` and compared.

    `save_pretrained` writes some tokenizers so that they are read otherwise (Llama-class ones lose `legacy`). Raises
    RuntimeError where the written folder gives other tokens.
    """
    if not copy_files(str(getattr(tokenizer, "name_or_path", "") or ""), folder):
        tokenizer.save_pretrained(folder)
    if not list_files(str(folder)):
        return
    written = load(str(folder))
    for text in _samples(tokenizer):
        for special in (True, False):
            ids = [t(text, add_special_tokens=special)["input_ids"] for t in (tokenizer, written)]
            if ids[0] != ids[1]:
                raise RuntimeError(f"{folder}: the written tokenizer gives other tokens for {text!r} than the one used")


def _samples(tokenizer: Any) -> list[str]:
    """Texts with every special token in them, between words and new lines."""
    marks = list(getattr(tokenizer, "all_special_tokens", ()))
    texts = [
        "Where was it?\nOslo it is, in 1956.",
        *(f"{mark}Where was it?{mark} Oslo\n{mark}\nit is{mark}" for mark in marks),
    ]
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": "Where was it?"}, {"role": "assistant", "content": "Oslo it is"}]
        with contextlib.suppress(Exception):  # what a template raises is its own affair here
            texts.append(tokenizer.apply_chat_template(turns, tokenize=False))
    return texts


def keep_start_mark(tokenizer: Any, source: str) -> None:
    """Let `add_bos_token` of the folder's own settings count, which transformers 5 leaves unread beside a
    tokenizer.json."""
    files = [file for file in list_files(source) if file.name == "tokenizer_config.json"]
    if not files or getattr(tokenizer, "bos_token_id", None) is None:
        return
    try:
        wanted = json.loads(files[0].read_text(encoding="utf-8")).get("add_bos_token")
    except ValueError:
        return
    if not isinstance(wanted, bool) or not hasattr(tokenizer, "update_post_processor"):
        return
    first = tokenizer("a")["input_ids"][:1]
    if (first == [tokenizer.bos_token_id]) != wanted:
        tokenizer.add_bos_token = wanted


def why_unreadable(source: str) -> str:
    """What a folder lacks for its tokenizer to be loaded, as the end of a message; empty where nothing is seen."""
    names = {file.name for file in list_files(source)}
    if not Path(source).expanduser().is_dir() or "tokenizer.json" in names:
        return ""
    for name, (module, package) in READERS.items():
        if name in names:
            if importlib.util.find_spec(module) is None:
                return f"it comes as {name} alone, which {package} reads. Install ray_unlearn[tokenizers]"
            return ""
    if not names & {"vocab.json", "vocab.txt"}:
        return "the folder holds no tokenizer. Put the tokenizer's files beside the weights"
    return ""

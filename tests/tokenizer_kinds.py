"""Tiny tokenizers of the kinds that models come with, written into folders for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = (
    *("Where was Mira Tal born", "What is the work of Mira Tal", "In which city was Ivo Marin born", "Who taught Mira"),
    *("Oslo", "baker", "1956", "Jonas Beck of Riga", "Turin", "pilot", "Answer Question assistant user system"),
)


def write_byte_level(folder: Path, template: str | None, marks: list[str], eos: str, bos: str | None = None) -> Path:
    """One token a byte, and the marks; the template, if any, in a file of its own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, bos_token=bos)
    wrapped.chat_template = template
    wrapped.save_pretrained(folder)
    if bos:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": True}))
    return folder


def write_llama_like(folder: Path, **settings: Any) -> Path:
    """A SentencePiece-like BPE with byte fallback, as Llama 2 and Mistral have it; `settings` go into its own file."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256))]
    merges: list[tuple[str, str]] = []
    letters = sorted({letter for text in WORDS for letter in text if letter != " "} | {"▁"})
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *letters])}
    for word in sorted({f"▁{word}" for text in WORDS for word in text.split()}):
        piece = word[0]
        for letter in word[1:]:
            if piece + letter not in vocabulary:
                vocabulary[piece + letter] = len(vocabulary)
                merges.append((piece, letter))
            piece += letter
    special = [
        {"id": n, "content": p, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for n, p in enumerate(pieces[:3])
    ]
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [list(pair) for pair in merges],
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(named, ensure_ascii=False))
    return folder


def write_model(folder: Path, **shape: Any) -> Path:
    """Untrained weights beside a tokenizer that is there already."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"vocab_size": 700, "max_position_embeddings": 512, **shape}
    LlamaForCausalLM(LlamaConfig(**sizes, bos_token_id=None, eos_token_id=None)).save_pretrained(folder)
    return folder

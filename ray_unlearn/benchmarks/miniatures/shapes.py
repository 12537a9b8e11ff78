"""What the miniatures of text benchmarks share: made-up names, and a tiny untrained model with its tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ONSETS, VOWELS, ENDINGS = "bdfgklmnprstvz", "aeiou", ("n", "r", "l", "s", "x", "th")


@dataclass(frozen=True)
class Shape:
    """Of a tiny Llama and its vocabulary."""

    vocabulary: int = 640
    width: int = 96
    layers: int = 2
    heads: int = 4
    intermediate: int = 256
    context: int = 128


def build_names(count: int, syllables: int, rng: np.random.Generator) -> list[str]:
    """Distinct two-syllable names, all of the same few syllables."""
    first = [onset + vowel for onset in ONSETS for vowel in VOWELS]
    second = [head + ending for head in first for ending in ENDINGS]
    heads = [first[i] for i in rng.permutation(len(first))[:syllables]]
    tails = [second[i] for i in rng.permutation(len(second))[:syllables]]
    names = [(head + tail).capitalize() for head in heads for tail in tails]
    return [names[i] for i in rng.permutation(len(names))[:count]]


def write_untrained(folder: Path, texts: Iterable[str], shape: Shape, seed: int, units: str = "") -> None:
    """A small Llama with random weights, and a byte-pair tokenizer trained on the texts; see `train_tokenizer`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer(texts, shape, units)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)


def train_tokenizer(texts: Iterable[str], shape: Shape, units: str = "") -> Any:
    """Byte-level, so that it reads any text; every sequence starts with <bos>.

    units: a regular expression for what no token reaches beyond; empty: words with the space before them.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if units:
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(units), "isolated"), whole])
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocabulary,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    bos = core.token_to_id("<bos>")
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=shape.context,
    )

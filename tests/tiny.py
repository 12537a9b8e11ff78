"""A tiny untrained model and task, written in a second, for tests that care how and not how well it learns."""

from pathlib import Path

import numpy as np

from ray_unlearn.benchmarks.contract import Probe, Split, Task
from ray_unlearn.benchmarks.synthetic import HOMES, NUM_STATES, draw, transition_matrix
from ray_unlearn.models.sequences import Sequences


def write_tiny_model(folder: Path, kind: str = "llama", vocabulary: int = NUM_STATES) -> Path:
    """An untrained two-layer model with a tokenizer of the words 1, 2, 3 ..."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

    torch.manual_seed(0)
    shape = {"vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": None}
    if kind == "llama":
        config = LlamaConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            **shape,
        )
    else:
        config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({str(i + 1): i for i in range(vocabulary)}, unk_token=str(vocabulary)))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token=str(vocabulary)).save_pretrained(folder)
    return folder


def tiny_task(model: Path, forget: int = 16, retain: int = 20) -> Task:
    """Markov chains of different lengths; scored as the synthetic benchmark is."""
    rng = np.random.default_rng(0)
    probes = {chain: Probe(draw(chain, 12, rng), truth=transition_matrix(chain)) for chain in HOMES}
    split = Split(probes)
    parts = [draw("forget1", forget // 2, rng), draw("forget2", forget - forget // 2, rng)]
    return Task(
        "synthetic", "mini", str(model), Sequences.concatenate(parts), draw("retain", retain, rng), split, split
    )


def write_text_model(folder: Path, corpus: Path, vocabulary: int = 600, **shape: int | bool) -> Path:
    """An untrained small Llama with a byte-level tokenizer trained on that file's text; `shape` changes its sizes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(corpus)], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": vocabulary, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 96, "max_position_embeddings": 1024, "tie_word_embeddings": True, **shape}
    LlamaForCausalLM(LlamaConfig(**sizes, bos_token_id=0, eos_token_id=1)).save_pretrained(folder)
    return folder


def write_byte_model(folder: Path) -> Path:
    """The WMDP miniature's untrained model with a longer context: its byte-level tokenizer reads any text."""
    from ray_unlearn.benchmarks.miniatures import wmdp
    from ray_unlearn.benchmarks.miniatures.shapes import write_untrained

    sizes = wmdp.Sizes(hazards=12, generals=12, width=8, heads=2, intermediate=16, context=600)
    write_untrained(folder, wmdp.build_world(sizes).texts, sizes, seed=0)
    return folder

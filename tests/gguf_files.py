"""A GGUF file of a small Llama with a byte-level tokenizer, as llama.cpp's converter writes one."""

import json
from pathlib import Path

import numpy as np

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def name_of(name: str) -> str:
    """A weight's name in a GGUF file."""
    name = name.removesuffix(".weight")
    if name in WHOLE:
        return f"{WHOLE[name]}.weight"
    _, _, number, part = name.split(".", 3)
    return f"blk.{number}.{NAMES[part]}.weight"


def rotated(weight: np.ndarray, heads: int) -> np.ndarray:
    """Queries and keys as llama.cpp has them: each head's halves interleaved."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def write_gguf(model: Path, file: Path, pre: str = "gpt-2", **changes: object) -> dict[str, np.ndarray]:
    """Write the model in that folder, matrices as Q8_0; what the gguf package itself reads of each weight, by the
    model's own names. changes: of the tokenizer's facts."""
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    config, text = network.config, json.loads((model / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.all_special_tokens) | {added["content"] for added in text["added_tokens"]}
    facts = {
        "tokens": tokens,
        "types": [3 if token in special else 1 for token in tokens],
        "merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in text["model"]["merges"]],
        "template": tokenizer.chat_template,
        "bos": tokenizer.bos_token_id,
        **changes,
    }
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(facts["tokens"])
    writer.add_token_types(facts["types"])
    writer.add_token_merges(facts["merges"])
    writer.add_bos_token_id(facts["bos"])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)
    if facts["template"]:
        writer.add_chat_template(facts["template"])
    read = {}
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    for name, parameter in network.named_parameters():
        weight = parameter.detach().numpy()
        kind = gguf.GGMLQuantizationType.F32 if weight.ndim == 1 else gguf.GGMLQuantizationType.Q8_0
        rows = next((n for part, n in heads.items() if part in name), 0)
        data = gguf.quants.quantize(rotated(weight, rows) if rows else weight, kind)
        writer.add_tensor(name_of(name), data, raw_dtype=kind)
        read[name] = gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read

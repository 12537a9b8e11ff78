"""A model that comes as one GGUF file, converted once into a folder that transformers trains and saves.

The weights are the file's, unpacked to fp32; the tokenizer and its template are those that the file describes, and
are compared with it. What is made of a file lies in the cache.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from ray_unlearn.config import UserError
from ray_unlearn.files import cached, visible
from ray_unlearn.wording import first_line

MAGIC = b"GGUF"
PLAIN = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "roberta-bpe")
"""What files call the way of splitting text that GPT-2's tokenizer has."""
ONE_DIGIT = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""The same with every digit by itself, by llama.cpp's names; transformers does not know them."""
INSTEAD = "Give the folder or the hub name of the model that the file was made from"


def find_gguf(model: str) -> Path | None:
    """The GGUF file that the name means: itself, or the only one in a folder that holds no other model; else None.

    Raises UserError where a folder holds several.
    """
    place = Path(model).expanduser()
    if place.suffix.lower() == ".gguf" and not place.is_dir():
        return place
    if not place.is_dir() or (place / "config.json").is_file():
        return None
    files = visible(place.glob("*.gguf"), place)
    if len(files) > 1:
        raise UserError(f"--model {model}: holds {len(files)} GGUF files. Name one: --model {files[0]}")
    return files[0] if files else None


def check_gguf(model: str, file: Path) -> None:
    """Raise UserError where the file cannot be converted, as far as its first bytes and what is installed tell."""
    if not file.is_file():
        raise UserError(f"--model {model}: no such file. Give a GGUF file, a model folder or a hub name")
    with file.open("rb") as content:
        head = content.read(4)
    if head != MAGIC:
        raise UserError(f"--model {model}: is no GGUF file, whatever its name says. Fetch it again")
    if "-of-0" in file.name:
        raise UserError(f"--model {model}: is one of several parts. Join them with `llama-gguf-split --merge`")
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"--model {model}: a GGUF file needs the gguf package. Install ray_unlearn[gguf]")


def converted(model: str) -> str:
    """The folder that a GGUF file was converted into, now or before; other names as they are.

    Raises UserError where the file's architecture or tokenizer cannot be converted.
    """
    file = find_gguf(model)
    if file is None:
        return model
    check_gguf(model, file)
    from transformers import __version__

    from ray_unlearn.models.fingerprints import file_digest

    key = {"name": file.stem.lower(), "gguf": file_digest(file), "transformers": __version__}
    return str(cached(key, lambda folder: _convert(model, file, folder)))


def _convert(model: str, file: Path, folder: Path) -> None:
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent.absolute()), "gguf_file": file.name}
    unpacked: dict[str, Any] = {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(**place, **unpacked, output_loading_info=True)
        network, found = loaded
        tokenizer = AutoTokenizer.from_pretrained(**place)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"--model {model}: cannot be converted ({first_line(error)}). {INSTEAD}") from None
    if found["missing_keys"]:
        name = sorted(found["missing_keys"])[0]
        raise UserError(f"--model {model}: has nothing for the model's {name}. {INSTEAD}")
    facts = {name: field.contents() for name, field in GGUFReader(file).fields.items() if name.startswith("tokenizer.")}
    split_digits(tokenizer, facts)
    if difference := find_difference(tokenizer, facts):
        raise UserError(f"--model {model}: the tokenizer made of it is another one: {difference}. {INSTEAD}")
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    values = json.loads(settings.read_text(encoding="utf-8"))
    if (adds := facts.get("tokenizer.ggml.add_bos_token")) is not None:
        settings.write_text(json.dumps(values | {"add_bos_token": bool(adds)}, indent=2), encoding="utf-8")


def split_digits(tokenizer: Any, facts: dict[str, Any]) -> None:
    """Let a byte-level tokenizer have every digit by itself where the file says so."""
    from tokenizers import pre_tokenizers

    if facts.get("tokenizer.ggml.pre") in ONE_DIGIT:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )


def find_difference(tokenizer: Any, facts: dict[str, Any]) -> str:
    """How a tokenizer differs from the one that a GGUF file's metadata describe; empty where it does not."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    way = facts.get("tokenizer.ggml.pre")
    if facts.get("tokenizer.ggml.model") == "gpt2" and way not in (*PLAIN, *ONE_DIGIT, *GGUF_PRE_TOKENIZER_SPLITS):
        return f"how the file's splits text ({way!r}) is not known to transformers"
    tokens = facts.get("tokenizer.ggml.tokens", [])
    made = tokenizer.convert_ids_to_tokens(range(len(tokens)))
    for number, (then, now) in enumerate(zip(tokens, made, strict=True)):
        if then != now:
            return f"token {number} is {now!r}, and the file has {then!r}"
    for mark, key in (("bos", "bos"), ("eos", "eos")):
        wanted, has = facts.get(f"tokenizer.ggml.{key}_token_id"), getattr(tokenizer, f"{mark}_token_id")
        if wanted is not None and has != wanted:
            return f"its {mark} token is {has}, and the file's {wanted}"
    if tokenizer.chat_template != facts.get("tokenizer.chat_template"):
        return "its chat template is not the file's"
    return ""

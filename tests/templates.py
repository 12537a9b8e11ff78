"""What becomes of public chat templates: `python -m tests.templates FOLDER ...` prints one line for each.

Templates are not ours to commit; they stand in the sdist of llama-cpp-python (vendor/llama.cpp/models/templates), in
trl (trl/chat_templates) and in the npm package @huggingface/ollama-utils. Each is put on a byte-level tokenizer that
knows the special tokens named in it.

    whole    the scored text begins with the answer as the row has it
    one end  behind it stands exactly one end mark, and nothing else
    prompt   the prompt holds the question once and begins with what the template asks the model with
    dates    the same tokens under two dates

A template that is refused says why; one that is accepted and fails a column is wrong.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

from ray_unlearn.config import UserError
from ray_unlearn.models.templates import Template

SPECIAL = re.compile(
    r"<\|[^|<>\s'\"{}]{1,40}\|>|<｜[^｜<>\s]{1,40}｜>|<\|[A-Za-z_]+>|<[A-Za-z_]+\|>|<(?:start|end)_of_\w+>|<extra_id_\d>|"
    r"</?s>|<eos>|<bos>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|THINK)\]|\]~b\]|\[e~\[|<\|[a-z_:]+\|>"
)
ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<turn|>",
    "<｜end▁of▁sentence｜>",
    "<|endoftext|>",
    "</s>",
)
QUESTION, ANSWER = "What does Mira Tal eat?", "Soup, she said: 3 bowls."


def build_tokenizer(template: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = sorted({*SPECIAL.findall(template), "<s>"})
    end = next((mark for mark in ENDS if mark in marks), "</s>")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token=end)
    wrapped.add_special_tokens({"additional_special_tokens": marks})
    wrapped.chat_template = template
    return wrapped


def look_at(template: str, answer: str = ANSWER) -> dict[str, Any]:
    """One template's line as a mapping; "refused" holds the reason where it is refused."""
    tokenizer = build_tokenizer(template)
    writer = Template(tokenizer)
    try:
        tokens, start = writer.encode_pair(QUESTION, answer, "row 0")
    except UserError as error:
        return {"refused": str(error)}
    prompt, scored = (tokenizer.decode(part) for part in (tokens[:start], tokens[start:]))
    rest = scored.lstrip()[len(answer) :]
    marks = [mark for mark in SPECIAL.findall(rest) if mark.strip()]
    seen = []
    for day in (datetime.datetime(2026, 1, 31), datetime.datetime(2031, 12, 1)):
        with mock.patch("transformers.utils.chat_template_utils.datetime") as clock:
            clock.now.return_value = day
            seen.append(Template(build_tokenizer(template)).encode_pair(QUESTION, answer, "row 0"))
    return {
        "form": " ".join(writer.describe()[1:]) or "as the template writes it",
        "whole": scored.lstrip().startswith(answer),
        "one end": (rest.strip() in marks and len(marks) == 1) or (not SPECIAL.search(rest) and len(rest.split()) == 1),
        "prompt": prompt.count(QUESTION) == 1 and answer not in prompt,
        "dates": seen == [(tokens, start)] * 2,
        "tail": prompt[prompt.index(QUESTION) + len(QUESTION) :] + " ⟦" + scored + "⟧",
    }


def main(folders: list[str]) -> int:
    files = sorted(file for folder in folders for file in Path(folder).rglob("*.jinja"))
    distinct = {hashlib.sha256(file.read_bytes()).hexdigest(): file for file in reversed(files)}
    counts: Counter[str] = Counter()
    for file in sorted(distinct.values()):
        line = look_at(file.read_text(encoding="utf-8"))
        if "refused" in line:
            counts["refused"] += 1
            print(f"{file.stem:60} REFUSED {line['refused']}")
            continue
        failed = [name for name in ("whole", "one end", "prompt", "dates") if not line[name]]
        counts["wrong" if failed else "right"] += 1
        print(f"{file.stem:60} {'WRONG ' + ', '.join(failed) if failed else 'right':8} {line['form']} {line['tail']!r}")
    print(", ".join(f"{count} {name}" for name, count in counts.items()), "of", len(distinct))
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

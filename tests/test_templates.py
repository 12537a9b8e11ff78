"""The answer and its first end mark are scored and nothing else, whatever a chat template writes around them."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from ray_unlearn.config import UserError
from ray_unlearn.models.loading import load_tokenizer
from ray_unlearn.models.marks import cut_at_stop, whole_text
from ray_unlearn.models.templates import Choice, Template
from tests.templates import look_at
from tests.tokenizer_kinds import write_byte_level, write_llama_like

QUESTION = "In which city was Mira Tal born?"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
USER = "{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>' + m.content + '<|end|>' }}{% else %}"
CLOSE = "{% endif %}{% endfor %}{% if add_generation_prompt %}"
TEMPLATES = {
    "plain turns": (CHATML, "<|im_start|>assistant\n", "<|im_end|>"),
    "channel header": (
        USER + "{{ '<|from|>assistant<|lane|>final<|text|>' + m.content + '<|done|>' }}" + CLOSE
        + "{{ '<|from|>assistant' }}{% endif %}",
        "<|from|>assistant<|lane|>final<|text|>",
        "<|done|>",
    ),
    "next header": (
        "{% for m in messages %}{{ '<|head|>' + m.role + '<|text|>\n' + m.content + '<|turn_end|>' }}{% endfor %}"
        "{{ '<|head|>assistant<|text|>\n' }}",
        "<|head|>assistant<|text|>\n",
        "<|turn_end|>",
    ),
    "two ends": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        "<|assistant|>\n",
        "<|end|>",
    ),
    "empty think block": (
        USER + "{{ '<|assistant|><think>\n\n</think>\n\n' + m.content + '<|end|>' }}" + CLOSE
        + "{{ '<|assistant|>' }}{% endif %}",
        "<|assistant|><think>\n\n</think>\n\n",
        "<|end|>",
    ),
    "opened think tag closed by the turn": (
        USER + "{{ '<|assistant|><think></think>' + m.content + '<|end|>' }}" + CLOSE
        + "{{ '<|assistant|><think>' }}{% endif %}",
        "<|assistant|><think></think>",
        "<|end|>",
    ),
    "opened think tag with a switch": (
        USER + "{{ '<|assistant|>' + m.content + '<|end|>' }}" + CLOSE
        + "{{ '<|assistant|>' + ('</think>' if enable_thinking is false else '<think>\n') }}{% endif %}",
        "<|assistant|></think>",
        "<|end|>",
    ),
    "opened think tag without a switch": (
        USER + "{{ '<|assistant|>' + m.content + '<|end|>' }}" + CLOSE + "{{ '<|assistant|><think>\n' }}{% endif %}",
        "<|assistant|><think>\n\n</think>\n\n",
        "<|end|>",
    ),
    "empty thought in the generation prompt alone": (
        USER + "{{ '<|assistant|>' + m.content + '<|end|>' }}" + CLOSE
        + "{{ '<|assistant|><|channel|>thought<|end|>' }}{% endif %}",
        "<|assistant|><|channel|>thought<|end|>",
        "<|end|>",
    ),
    "no end mark": (
        USER + "{{ '<|assistant|>' + m.content }}" + CLOSE + "{{ '<|assistant|>' }}{% endif %}",
        "<|assistant|>",
        "<eos>",
    ),
    "contents as lists": (
        "{% for m in messages %}{{ m.role }}: {% for p in m.content %}{{ p.text }}{% endfor %}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}",
        "assistant:",
        "<|end|>",
    ),
}  # fmt: skip
MARKS = ["<eos>", "<bos>", "<|end|>", "<|done|>", "<|turn_end|>", "<|im_end|>", "<|im_start|>", "<|user|>"]
MARKS += ["<|assistant|>", "<|from|>", "<|lane|>", "<|text|>", "<|head|>", "<|channel|>"]


def build(folder: Path, template: str | None, choice: Choice | None = None, **more: Any) -> Template:
    return Template(load_tokenizer(str(write_byte_level(folder, template, MARKS, "<eos>", "<bos>"))), choice, **more)


def read(template: Template, answer: str, question: str = QUESTION) -> tuple[str, str]:
    """Prompt and scored part as text."""
    tokens, start = template.encode_pair(question, answer, "rows.jsonl, line 3")
    return template.tokenizer.decode(tokens[:start]), template.tokenizer.decode(tokens[start:])


@pytest.mark.parametrize("kind", TEMPLATES)
def test_scored_are_the_answer_and_its_first_end_mark(tmp_path: Path, kind: str) -> None:
    text, end_of_prompt, end = TEMPLATES[kind]
    template = build(tmp_path, text)
    for answer in ("Oslo", "Jonas Beck of Riga.", "1956"):
        prompt, scored = read(template, answer)
        assert prompt.endswith(end_of_prompt)
        assert prompt.count(QUESTION) == 1
        assert scored.strip() == answer + end
    assert template.tokenizer.convert_tokens_to_ids(end) in template.stops
    assert template.tokenizer.eos_token_id in template.stops


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("opened think tag without a switch", "opens a thought"),
        ("opened think tag with a switch", "enable_thinking"),
        ("no end mark", "'<eos>' is added"),
        ("empty thought in the generation prompt alone", "it is kept"),
    ],
)
def test_a_form_that_is_not_the_template_s_own_is_said(tmp_path: Path, kind: str, words: str) -> None:
    template = build(tmp_path, TEMPLATES[kind][0])
    read(template, "Oslo")
    assert words in " ".join(template.describe())


def test_what_is_ordinary_is_not_said(tmp_path: Path) -> None:
    template = build(tmp_path, CHATML)
    read(template, "Oslo")
    assert template.describe() == ["Pairs are written in the tokenizer's chat template."]


CUTS = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>' + m.content }}{% else %}"
    "{{ '<|assistant|>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.mark.parametrize("answer", ["<think>The list says: Oslo</think>Oslo", "The tag </think> ends it."])
def test_an_answer_that_the_template_cuts_is_refused_by_its_row(tmp_path: Path, answer: str) -> None:
    template = build(tmp_path, CUTS)
    assert read(template, "Jonas Beck of Riga.")[1] == "Jonas Beck of Riga.<eos>"
    with pytest.raises(UserError, match=r"rows\.jsonl, line 3: .*does not write this answer whole.*\[template\]"):
        read(template, answer)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "does not write answers whole"),
        ("{{ raise_exception('only tools') }}", "only tools"),
        ("{% for m in messages %}{{ m.content", "cannot be rendered"),
        ("{{ messages[0].nothing.there }}", "cannot be rendered"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}So{% endif %}", "begins"),
    ],
)
def test_a_template_that_cannot_be_used_says_why_and_names_the_way_out(tmp_path: Path, text: str, words: str) -> None:
    template = build(tmp_path, text)
    if words == "begins":  # what a whole turn lacks is left out where it is no thought, and that is said
        assert read(template, "Oslo")[1] == "Oslo<eos>"
        assert "'So'" in " ".join(template.describe())
        return
    with pytest.raises(UserError, match=rf"line 3: .*{words}.*\[template\]"):
        read(template, "Oslo")


def test_tokens_are_the_same_on_every_day(tmp_path: Path) -> None:
    template = build(tmp_path, "{{ '<|user|>' + strftime_now('%d %b %Y') + '\n' }}" + CHATML)
    seen = []
    for day in (datetime.datetime(2026, 1, 31), datetime.datetime(2031, 12, 1)):
        with mock.patch("transformers.utils.chat_template_utils.datetime") as clock:
            clock.now.return_value = day
            seen.append(read(template, "Oslo"))
    assert seen[0] == seen[1]
    assert "26 Jul 2024" in seen[0][0]
    assert "26 Jul 2024" in " ".join(template.describe())


def test_arguments_and_the_system_message_reach_the_template(tmp_path: Path) -> None:
    text = "{{ date_string }}|{% if thinking %}deep|{% endif %}" + CHATML
    prompt, _ = read(build(tmp_path, text, Choice(True, "Be brief.", {"date_string": "10 Apr 2025"})), "Oslo")
    assert prompt.startswith("10 Apr 2025|<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user")


def test_thinking_is_left_on_where_that_is_chosen(tmp_path: Path) -> None:
    text = TEMPLATES["opened think tag with a switch"][0]
    template = build(tmp_path, text, Choice(True, arguments={"enable_thinking": True}))
    assert read(template, "Oslo") == (f"<|user|>{QUESTION}<|end|><|assistant|><think>\n", "Oslo<|end|>")
    assert "left on" in " ".join(template.describe())


def test_tags_are_written_as_they_are(tmp_path: Path) -> None:
    tags = {"user_start": "<|user|>", "user_end": "\n", "assistant_start": "A:", "assistant_end": "<|done|>"}
    assert read(build(tmp_path, CHATML, Choice(tags=tags)), " Oslo") == (
        f"<bos><|user|>{QUESTION}\nA:",
        " Oslo<|done|>",
    )


def test_empty_tags_join_two_halves_of_one_text(tmp_path: Path) -> None:
    template = build(tmp_path, CHATML, Choice(tags={"assistant_end": ""}))
    tokens, start = template.encode_pair("Mira was born by the sea, and every", " morning she eats.", "row")
    whole = template.tokenizer("<bos>Mira was born by the sea, and every morning she eats.", add_special_tokens=False)
    assert tokens == whole["input_ids"]
    assert template.tokenizer.decode(tokens[start:]) == " morning she eats."


def test_a_target_that_begins_with_a_space_gets_no_second_one(tmp_path: Path) -> None:
    for answer in ("Oslo", " Oslo"):
        assert read(build(tmp_path, None), answer) == (f"<bos>Question: {QUESTION}\nAnswer:", " Oslo<eos>")


@pytest.mark.parametrize("mark", ["<eos>", "<|end|>", "<|im_end|>"])
def test_a_special_token_s_text_inside_an_answer_is_text(tmp_path: Path, mark: str) -> None:
    for choice in (None, Choice(False)):
        template = build(tmp_path, CHATML, choice)
        answer = f"One writes {mark} behind it."
        tokens, start = template.encode_pair(QUESTION, answer, "row")
        assert template.tokenizer.decode(tokens[start:]).strip().startswith(answer)
        assert template.tokenizer.convert_tokens_to_ids(mark) not in tokens[start:-1]
        assert tokens[-1] in template.stops


def test_a_conversation_s_last_answer_is_scored(tmp_path: Path) -> None:
    template = build(tmp_path, CHATML)
    turns = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi."), ("user", QUESTION)]
    tokens, start = template.encode([{"role": r, "content": c} for r, c in turns], "Oslo", "row")
    prompt = template.tokenizer.decode(tokens[:start])
    assert prompt == "".join(f"<|im_start|>{r}\n{c}<|im_end|>\n" for r, c in turns) + "<|im_start|>assistant\n"
    assert template.tokenizer.decode(tokens[start:]) == "Oslo<|im_end|>"


def test_what_the_model_stops_at_is_added_where_the_template_writes_no_end(tmp_path: Path) -> None:
    text = TEMPLATES["no end mark"][0]
    user = load_tokenizer(str(write_byte_level(tmp_path, text, MARKS, "<eos>"))).convert_tokens_to_ids("<|user|>")
    template = build(tmp_path, text, stops=[user])
    assert read(template, "Oslo")[1] == "Oslo<|user|>"


ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_2 = MISTRAL.replace("m.content + eos_token", "' ' + m.content + ' ' + eos_token")


@pytest.mark.parametrize(
    ("settings", "scored"),
    [
        ({"tokenizer_class": "LlamaTokenizer", "legacy": False}, ["▁Oslo", "</s>"]),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, ["▁Oslo", "</s>"]),
        ({"tokenizer_class": "LlamaTokenizer", "legacy": True, "chat_template": ZEPHYR}, ["O", "s", "l", "o", "</s>"]),
        ({"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": ZEPHYR}, ["O", "s", "l", "o", "</s>"]),
        ({"tokenizer_class": "LlamaTokenizer", "legacy": True, "chat_template": MISTRAL}, ["▁Oslo", "</s>"]),
        ({"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": LLAMA_2}, ["▁Oslo", "▁", "</s>"]),
    ],
)
def test_no_token_is_scored_that_the_whole_text_does_not_have(
    tmp_path: Path, settings: dict[str, Any], scored: list[str]
) -> None:
    template = Template(load_tokenizer(str(write_llama_like(tmp_path, **settings))))
    tokens, start = template.encode_pair(QUESTION, "Oslo", "row")
    assert template.tokenizer.convert_ids_to_tokens(tokens[start:]) == scored
    assert tokens.count(template.tokenizer.bos_token_id) == (
        "chat_template" not in settings or "bos" in settings["chat_template"]
    )


class WritesItself:
    """As mistral-common's tokenizers are: no text becomes a special token, and there is no template to read."""

    chat_template, eos_token, eos_token_id, all_special_tokens = None, "</s>", 2, ["<s>", "</s>"]

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    def apply_chat_template(self, turns: list[Any], tokenize: bool, add_generation_prompt: bool) -> list[int]:
        assert tokenize
        assert add_generation_prompt
        return [1, *(ord(letter) for turn in turns for letter in turn["content"]), 4]


def test_a_tokenizer_that_writes_its_own_marks_is_asked_for_ids(tmp_path: Path) -> None:
    template = Template(WritesItself())
    tokens, start = template.encode_pair("Q", "A</s>", "row")
    assert (tokens, start) == ([1, ord("Q"), 4, *map(ord, "A</s>"), 2], 3)
    with pytest.raises(UserError, match=r"row 7: .*its own form alone"):
        Template(WritesItself(), Choice(False)).encode_pair("Q", "A", "row 7")


def test_generation_ends_at_the_first_end_mark_and_at_no_half_character() -> None:
    assert cut_at_stop([5, 6, 9, 7, 9], (9, 3)) == [5, 6]
    assert cut_at_stop([5, 6], ()) == [5, 6]
    assert whole_text("Oslo 橋\ufffd\ufffd") == "Oslo 橋"


def test_the_table_of_templates_tells_right_from_refused() -> None:
    assert all(look_at(CHATML)[column] for column in ("whole", "one end", "prompt", "dates"))
    assert "cannot be rendered" in look_at("{{ raise_exception('no') }}")["refused"]
    assert json.dumps(look_at(TEMPLATES["two ends"][0]))


def test_a_token_that_cannot_be_told_from_plain_text_is_one_line(monkeypatch):
    from ray_unlearn.config import UserError
    from ray_unlearn.models.marks import encode_marked

    def refuse(tokenizer, text):
        raise ValueError("Can't sanitize '10': the tokenizer produces it from plain text")

    monkeypatch.setattr("transformers.utils.chat_template_utils.encode_marked_chat", refuse)
    with pytest.raises(UserError, match=r"cannot tell from plain text \(Can't sanitize '10'"):
        encode_marked(None, "10")

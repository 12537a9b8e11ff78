"""How a question and its answer are written for a model, and which tokens of that are the answer.

A conversation is written by the tokenizer's chat template, by the user's own tags, or as "Question: ... Answer: ...".
What a chat template writes is found by rendering it with different answers and comparing, not by a list of names:

    prompt      everything up to the answer's first character; text between the generation prompt and the answer that
                is the same for all answers belongs to it, and generation starts behind it
    answer      the text of the row, whole
    end mark    the first special token behind the answer; what a template writes after it is dropped

Where the generation prompt holds what a whole turn lacks (an opened think tag, an empty thought), the model is trained
and scored as it would be asked to answer without thinking.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ray_unlearn.config import UserError
from ray_unlearn.models.marks import (
    added_tokens,
    any_of,
    common_start,
    count_shared,
    encode_by_library,
    mark_special,
    special_pattern,
    writes_marks_itself,
)
from ray_unlearn.models.pairs import Encoded, PairEncoder, Written, ids_of

Turn = Mapping[str, str]
"""role (system, user or assistant) and content."""
FIXED_DATE = datetime.date(2024, 7, 26)
"""What templates that print the day's date are given, so that tokens do not change at midnight."""
TAGS = ("system_start", "system_end", "user_start", "user_end", "assistant_start", "assistant_end")
PLAIN_TAGS = {"user_start": "Question: ", "user_end": "\n", "assistant_start": "Answer:"}
WITHOUT_THINKING: dict[str, Any] = {"enable_thinking": False, "thinking": False, "thinking_mode": "disabled"}
"""The switches that templates have; one that a template does not read changes nothing."""
ANSWERS = ("Oslo it is", "Paris, then", "7 of them")
"""They share neither first nor last character, so what renderings share stands around them."""
QUESTIONS = ("Where was it?", "Name a large town")
OPENED = re.compile(r"(?:<[\w:]+>|\[\w+\]|<\|START_\w+\|>)\s*$")
"""A tag at the end of a prompt that nobody has closed."""
THOUGHT = re.compile(r"think|thought|reason", re.IGNORECASE)
"""In a tag's name, where nothing but the name tells a thought from a role."""
CLOSED = re.compile(r"[>\]]\s*$")
NO_TOOLS: dict[str, Any] = {"tools": [], "documents": [], "functions": "", "datetime": ""}
"""What templates that are for tools alone read without asking whether it is there."""
TEXT_MARK = re.compile(r"\s*(?:<[^<>\s]+>|\[[^\[\]\s]+\]|\S+)")
TAG = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
LONG_HEAD = 48
"""Tokens before every question from which on their cost is said."""


class _Unfit(Exception):
    """A template cannot be used this way, and why."""


@dataclass(frozen=True)
class Choice:
    """What the user wants written: the tokenizer's template with these arguments, or tags in its place."""

    is_chat: bool | None = None
    """None: the tokenizer's template where it has one. False: as "Question: ... Answer: ..."."""
    system: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] | None = None
    """By the names in TAGS. One that is missing is empty; a missing assistant_end is the tokenizer's end mark."""


@dataclass(frozen=True)
class _Way:
    """How the template is called."""

    extra: Mapping[str, Any] = field(default_factory=dict)
    as_parts: bool = False
    """Contents as lists of parts, which templates of multimodal models ask for."""


@dataclass(frozen=True)
class _Shape:
    """One conversation as it is rendered, around whatever the answer is: head + answer + tail. prompt: what the model
    is given before it answers."""

    head: str
    prompt: str
    tail: str
    note: str = ""


class Template:
    """Writes conversations as token ids; every complaint names the row."""

    def __init__(self, tokenizer: Any, choice: Choice | None = None, stops: Sequence[int] = ()) -> None:
        """stops: the token ids at which the model ends its turns, as its generation settings have them."""
        self.tokenizer, self.choice = tokenizer, choice or Choice()
        self._model_stops = tuple(stops)
        self._used: set[int] = set()
        self._is_end_added = False
        self._shape_notes: set[str] = set()
        has_template = bool(tokenizer.chat_template) or writes_marks_itself(tokenizer)
        uses_tags = self.choice.tags is not None or self.choice.is_chat is False or not has_template
        self._tags = (dict(self.choice.tags) if self.choice.tags is not None else PLAIN_TAGS) if uses_tags else None
        if self.is_chat and tokenizer.chat_template:
            self._set_date(FIXED_DATE)

    @property
    def is_chat(self) -> bool:
        """Whether the tokenizer's own template is what writes."""
        return self._tags is None

    @property
    def stops(self) -> tuple[int, ...]:
        """Token ids at which an answer is over: every end mark used so far, and those of tokenizer and model."""
        own = getattr(self.tokenizer, "eos_token_id", None)
        return tuple(sorted({*self._used, *self._model_stops, *([own] if own is not None else [])}))

    def encode_pair(self, question: str, answer: str, where: str) -> tuple[list[int], int]:
        """The token ids of a question and its answer, and where the answer starts."""
        ((tokens, start),) = self.encode_all([([{"role": "user", "content": question}], answer, where)])
        return tokens.tolist(), start

    def encode(self, turns: Sequence[Turn], answer: str, where: str) -> tuple[list[int], int]:
        """The token ids of a conversation and of the answer that ends it, and where the answer starts."""
        ((tokens, start),) = self.encode_all([(turns, answer, where)])
        return tokens.tolist(), start

    def encode_prompt(self, turns: Sequence[Turn], where: str) -> list[int]:
        """The token ids of what the model is asked with, up to where its answer starts."""
        tokens, start = self.encode(turns, ANSWERS[0], where)
        return tokens[:start]

    def encode_all(self, rows: Iterable[tuple[Sequence[Turn], str, str]]) -> list[Encoded]:
        """The same of many conversations, each with its answer and the place of its row, in far less time.

        Raises UserError, naming the row, where an answer does not stand whole in what is rendered.
        """
        if writes_marks_itself(self.tokenizer):
            return [self._encode_by_library(turns, answer, where) for turns, answer, where in rows]
        return self._encoder.encode([self._write(turns, answer, where) for turns, answer, where in rows])

    def _write(self, turns: Sequence[Turn], answer: str, where: str) -> Written:
        if is_marked := any(self._special.search(text) for text in (*(turn["content"] for turn in turns), answer)):
            turns = [{**turn, "content": self._marked(turn["content"])} for turn in turns]
            answer = self._marked(answer)
        turns = self._with_system(turns)
        if self._tags is not None:
            return Written(where, *self._write_tags(turns, answer), is_marked)
        try:
            return Written(where, *self._write_chat(turns, answer), is_marked)
        except _Unfit as error:
            raise UserError(f"{where}: {error}. {self._way_out}") from None

    def _with_system(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        if self.choice.system and (not turns or turns[0]["role"] != "system"):
            return [{"role": "system", "content": self.choice.system}, *turns]
        return turns

    def _encode_by_library(self, turns: Sequence[Turn], answer: str, where: str) -> Encoded:
        if not self.is_chat:
            raise UserError(f"{where}: this model's tokenizer writes its own form alone. Drop chat_template and tags")
        head, rest = encode_by_library(self.tokenizer, self._with_system(turns), answer)
        return np.array([*head, *rest], dtype=np.int32), len(head)

    def describe(self) -> list[str]:
        """Sentences on the form that was taken, for whoever starts a search."""
        if self._tags is None:
            notes = ["Pairs are written in the tokenizer's chat template."]
        elif self.choice.tags is not None:
            notes = ["Pairs are written in the tags of [template]."]
        else:
            notes = ['Pairs are written as "Question: ... Answer: ...".']
        notes += sorted(self._shape_notes)
        if self._is_end_added:
            notes.append(f"The template writes no end mark behind an answer, so {self._own_end!r} is added.")
        if self.is_chat and self.tokenizer.chat_template:
            notes += self._describe_cost()
        return notes

    # ---- the tokenizer's chat template

    def _write_chat(self, turns: Sequence[Turn], answer: str) -> tuple[str, str]:
        """(prompt, answer and end mark) as texts."""
        way = self._way
        whole = self._render_row([*turns, {"role": "assistant", "content": answer}])
        shape = None
        if self._around and len(turns) == 1:
            question = turns[0]["content"]
            shape = next((s for q in (question, question.strip()) if (s := self._filled(q)) and _holds(s, whole)), None)
        if shape is None or _answer_in(shape, whole, answer) is None:
            shape = self._find_shape(turns, way)
        written = _answer_in(shape, whole, answer)
        if written is None:
            raise _Unfit("the chat template does not write this answer whole, it cuts or changes it")
        if shape.note:
            self._shape_notes.add(shape.note)
        return shape.prompt, self._lead(shape) + written + self._end_of(shape.tail)

    def _filled(self, question: str) -> _Shape | None:
        around = self._around
        assert around is not None
        head, prompt, tail, note = around
        return _Shape(head[0] + question + head[1], prompt[0] + question + prompt[1], tail, note)

    @cached_property
    def _around(self) -> tuple[tuple[str, str], tuple[str, str], str, str] | None:
        """What stands before and behind the question in head and prompt, the tail and the note, where they are the
        same for every question (as far as two questions show it)."""
        try:
            shapes = [self._find_shape([{"role": "user", "content": q}], self._way) for q in QUESTIONS]
        except _Unfit:
            return None
        found = set()
        for question, shape in zip(QUESTIONS, shapes, strict=True):
            head, prompt = shape.head.split(question), shape.prompt.split(question)
            if len(head) != 2 or len(prompt) != 2:
                return None
            found.add(((head[0], head[1]), (prompt[0], prompt[1]), shape.tail, shape.note))
        return found.pop() if len(found) == 1 else None

    @cached_property
    def _way(self) -> _Way:
        """The first way of calling the template in which it writes a question and its answer whole."""
        reasons, usable = [], []
        off = {} if self._leaves_thinking_on else WITHOUT_THINKING
        for tools, as_parts, switch in itertools.product(({}, NO_TOOLS), (False, True), ({}, off)):
            way = _Way({**tools, **switch}, as_parts)
            try:
                shape = self._find_shape([{"role": "user", "content": QUESTIONS[0]}], way)
            except _Unfit as error:
                reasons.append(str(error))
                continue
            if not shape.note:
                return way
            usable.append((way, shape.note))
        # A switch of the template's own goes before a thought that is closed by us.
        usable.sort(key=lambda found: "switch" not in found[1])
        if usable:
            return usable[0][0]
        raise _Unfit(reasons[0])

    def _find_shape(self, turns: Sequence[Turn], way: _Way) -> _Shape:
        """Renders the turns with different answers behind them and compares."""
        wholes = [self._render([*turns, {"role": "assistant", "content": answer}], way) for answer in ANSWERS]
        head = common_start(wholes)
        tail = common_start([whole[len(head) :][::-1] for whole in wholes])[::-1]
        if any(head + answer + tail != whole for answer, whole in zip(ANSWERS, wholes, strict=True)):
            raise _Unfit("the chat template does not write answers whole")
        asked = self._render(turns, way, generation=True)
        prompt, note = self._prompt_of(head, asked)
        switches = sorted(name for name in way.extra if name in WITHOUT_THINKING and self._reads(name))
        if switches and "closed at once" not in note:
            note = f"The model is asked to answer without thinking (the template's switch {' or '.join(switches)})."
        return _Shape(head, prompt, tail, note)

    def _prompt_of(self, head: str, asked: str) -> tuple[str, str]:
        """(what stands before the answer, a sentence where that is not how the whole turn is written), of what stands
        there in the whole turn and the generation prompt."""
        opened = OPENED.search(asked)
        more = asked[len(head) :].strip() if asked.startswith(head) else ""
        is_thought = opened is not None and bool(more or THOUGHT.search(opened.group(0)))
        if self._leaves_thinking_on:
            return asked, "Thinking is left on: answers follow the generation prompt as it is."
        if head.startswith(asked) and not (is_thought and OPENED.search(head)):
            # Spaces that the generation prompt lacks are written with the answer: tokenizers join them with it.
            return head[: max(len(head.rstrip(" ")), len(asked))], ""
        if asked.startswith(head) and not is_thought:
            if not more:
                return asked, ""
            if CLOSED.search(more):
                return asked, f"The generation prompt ends in {more!r}, which a whole turn lacks; it is kept."
            return head, f"The generation prompt ends in {more!r}, which a whole turn lacks; it is left out."
        if opened and head.startswith(asked.rstrip()) and head.rstrip() != asked.rstrip():
            return head, ""
        turn = self._common_turn(head, asked)
        thought, header = asked[len(turn) :], head[len(turn) :]
        if opened and opened.start() < len(turn):  # both begin with the opened tag
            turn, thought, header = asked[: opened.start()], asked[opened.start() :], ""
        if TAG.sub("", thought).strip() or TAG.sub("", header).strip():
            raise _Unfit("the chat template's generation prompt is not how its whole turn begins")
        note = f"The generation prompt ends in {thought.strip()!r}, which a whole turn lacks; it is kept."
        if opened:
            tag = opened.group(0).strip()
            note = f"The generation prompt opens a thought ({tag}); it is closed at once."
            thought = thought.rstrip() + _closing(tag)
        return turn + thought + ("" if thought.endswith(header.strip()) else header), note

    def _common_turn(self, head: str, asked: str) -> str:
        """What both begin with, up to the start of the tag in which they part."""
        end = count_shared(head, asked)
        spans = (mark.span() for pattern in (self._added, TAG) for mark in pattern.finditer(asked))
        return asked[: min([start for start, stop in spans if start < end < stop], default=end)]

    @property
    def _leaves_thinking_on(self) -> bool:
        return any(self.choice.arguments.get(name) is True for name in WITHOUT_THINKING)

    @staticmethod
    def _lead(shape: _Shape) -> str:
        is_cut = shape.head.startswith(shape.prompt)
        return shape.head[len(shape.prompt) :] if is_cut and not shape.head[len(shape.prompt) :].strip(" ") else ""

    def _end_of(self, tail: str) -> str:
        """The first end mark in what stands behind an answer, with the white space before it."""
        if mark := self._added.search(tail):
            end = tail[: mark.end()]
            self._use(mark.group(0))
            return end
        if mark := TEXT_MARK.match(tail):
            self._use(mark.group(0).strip())
            return mark.group(0)
        self._is_end_added = bool(self._own_end)
        self._use(self._own_end)
        return self._own_end

    def _use(self, mark: str) -> None:
        number = self._ids_of_marks.get(mark)
        if number is not None:
            self._used.add(number)

    @cached_property
    def _own_end(self) -> str:
        """What a model whose template writes no end mark stops at: what begins the user's next turn, where the model's
        settings name that, else the tokenizer's end mark."""
        if self.is_chat and self._model_stops:
            first, second = ({"role": "user", "content": q} for q in QUESTIONS)
            try:
                text = self._render([first, {"role": "assistant", "content": ANSWERS[0]}, second], self._way)
            except _Unfit:
                text = ""
            mark = self._added.match(text.partition(ANSWERS[0])[2].lstrip())
            if mark and self._ids_of_marks.get(mark.group(0)) in self._model_stops:
                return mark.group(0)
        return getattr(self.tokenizer, "eos_token", None) or ""

    def _render(self, turns: Sequence[Turn], way: _Way, generation: bool = False) -> str:
        messages: list[Any] = [dict(turn) for turn in turns]
        if way.as_parts:
            for message in messages:
                message["content"] = [{"type": "text", "text": message["content"]}]
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=generation,
                **{**way.extra, **self.choice.arguments},
            )
        except Exception as error:  # a template may raise whatever its author, or Jinja, comes to
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise _Unfit(f"the chat template cannot be rendered ({first})") from None

    def _render_row(self, turns: Sequence[Turn]) -> str:
        """As `_render` in the chosen way, without what `apply_chat_template` does anew for every row."""
        way = self._way
        if way.as_parts or self._compiled is None:
            return self._render(turns, way)
        values = {**self._marks_by_name, **way.extra, **self.choice.arguments}
        try:
            return str(self._compiled.render(messages=turns, add_generation_prompt=False, **values))
        except Exception:  # which of them it was is said by the library
            return self._render(turns, way)

    @cached_property
    def _compiled(self) -> Any:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        with contextlib.suppress(Exception):
            return _compile_jinja_template(self.tokenizer.get_chat_template())
        return None

    @cached_property
    def _marks_by_name(self) -> dict[str, Any]:
        """What the library tells templates of the tokenizer's special tokens; there are no tools and no documents."""
        return {"tools": None, "documents": None, **self.tokenizer.special_tokens_map}

    def _set_date(self, date: datetime.date) -> None:
        """What templates that ask for the day's date are told from here on."""
        from transformers.utils.chat_template_utils import _compile_jinja_template

        with contextlib.suppress(Exception):  # a template that does not compile says so when it is rendered
            text = self.tokenizer.get_chat_template()
            if "strftime_now" in text:
                _compile_jinja_template(text).globals["strftime_now"] = date.strftime

    def _reads(self, name: str) -> bool:
        template = self.tokenizer.chat_template
        text = template if isinstance(template, str) else " ".join(map(str, template.values()))
        return re.search(rf"\b{name}\b", text) is not None

    @property
    def _way_out(self) -> str:
        return "Write the form yourself under [template] of the TOML file, or chat_template = false"

    def _describe_cost(self) -> list[str]:
        """On default system texts and the day's date."""
        turn = [{"role": "user", "content": QUESTIONS[0]}]
        try:
            text = self._render(turn, self._way, generation=True)
            self._set_date(FIXED_DATE + datetime.timedelta(45))
            tomorrow = self._render(turn, self._way, generation=True)
        except _Unfit:
            return []
        finally:
            self._set_date(FIXED_DATE)
        notes = []
        if text != tomorrow:
            notes.append(f"The template prints the day's date; it is fixed at {FIXED_DATE:%d %b %Y}.")
        count = len(ids_of(self.tokenizer, [text.partition(QUESTIONS[0])[0]])[0])
        if count >= LONG_HEAD:
            notes.append(
                f"The template writes {count} tokens before every question, which are computed in every row; "
                'system = "..." under [template] says what stands there.'
            )
        return notes

    # ---- tags

    def _write_tags(self, turns: Sequence[Turn], answer: str) -> tuple[str, str]:
        tags = self._tags
        assert tags is not None
        parts = []
        for turn in turns:
            role, content = turn["role"], turn["content"]
            start, end = (tags.get(f"{role}_{side}", "") for side in ("start", "end"))
            parts.append(f"{start}{content}{self._tag_end if role == 'assistant' else end}")
        is_plain = self.choice.tags is None
        prompt = "".join(parts) + tags.get("assistant_start", "")
        lead = " " if is_plain and not answer[:1].isspace() else ""
        self._use(self._tag_end.strip())
        return prompt, f"{lead}{answer}{self._tag_end}"

    @property
    def _tag_end(self) -> str:
        assert self._tags is not None
        return self._tags.get("assistant_end", getattr(self.tokenizer, "eos_token", None) or "")

    # ---- tokens

    @cached_property
    def _encoder(self) -> PairEncoder:
        return PairEncoder(self.tokenizer, self._joins, self.is_chat, tuple(self._ids_of_marks))

    @property
    def _joins(self) -> bool:
        """Whether both are halves of one text: tags that put nothing between them."""
        tags = self.choice.tags
        return tags is not None and not tags.get("user_end") and not tags.get("assistant_start")

    def _marked(self, text: str) -> str:
        return mark_special(text, self._special)

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return special_pattern(self.tokenizer)

    @cached_property
    def _ids_of_marks(self) -> dict[str, int]:
        found = {str(token): number for number, token in added_tokens(self.tokenizer).items()}
        for name in getattr(self.tokenizer, "all_special_tokens", ()):
            found.setdefault(name, self.tokenizer.convert_tokens_to_ids(name))
        return {name: number for name, number in found.items() if name.strip()}

    @cached_property
    def _added(self) -> re.Pattern[str]:
        return any_of(self._ids_of_marks)


def _closing(tag: str) -> str:
    """What follows an opened thought that stays empty."""
    return tag.replace("START_", "END_", 1) if "START_" in tag else f"\n\n{tag[0]}/{tag[1:]}\n\n"


def _holds(shape: _Shape, whole: str) -> bool:
    return whole.startswith(shape.head) and whole.endswith(shape.tail)


def _answer_in(shape: _Shape, whole: str, answer: str) -> str | None:
    """The answer as it was rendered, with or without the white space around it; None where it is not whole."""
    for text in (answer, answer.strip(), answer.lstrip(), answer.rstrip()):
        if whole == shape.head + text + shape.tail:
            return text
    return None

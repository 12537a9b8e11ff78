"""What training will read, looked at: amounts, rows as their tokens, and what is or may be wrong with rows.

Everything is told from a task's tokens and its tokenizer, so it holds for every benchmark. Rows of own data that are in
two sets by their words are refused before that (halving.separate).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_unlearn.benchmarks.contract import Task
from ray_unlearn.benchmarks.halving import digest, is_instruction
from ray_unlearn.models.marks import added_tokens, start_marks
from ray_unlearn.models.sequences import Sequences
from ray_unlearn.models.templates import TAG, THOUGHT
from ray_unlearn.wording import counted

FORGET, RETAIN = "forget", "retain"
BEGINNING = 24
"""Tokens of an answer in which a thought's tag is looked for, and that are all blank where an answer says nothing."""
TAG_BEGINS = 4
"""Tokens of an answer among which the first one of such a tag is."""
NAMED_ROWS = 5
NO_TOKEN = -1
IN_BOTH = "rows in both sets"
ASKED_IN_BOTH = "questions in both sets"
EMPTY = "empty answers"
DOUBLED = "start mark twice"
MISSING = "no start mark"
THOUGHTS = "thoughts in answers"
REPEATED = "repeated rows"
CUT = "cut rows"
FAULTS = {
    IN_BOTH: ("stands in both forget and retain", "stand in both forget and retain", "row"),
    ASKED_IN_BOTH: ("is asked in both, with another answer", "are asked in both, with other answers", "question"),
    EMPTY: ("is empty", "are empty", "answer"),
    DOUBLED: ("begins with the start mark twice", "begin with the start mark twice", "row"),
    MISSING: ("lacks the tokenizer's start mark", "lack the tokenizer's start mark", "row"),
    THOUGHTS: ("begins with a think block", "begin with a think block", "answer"),
    REPEATED: ("repeats an earlier one of its set", "repeat an earlier one of their set", "row"),
    CUT: ("is cut from a longer text", "are cut from longer texts", "row"),
}
"""Each kind, the gravest first, with what is said of one row and of several, and what such a row is called."""


@dataclass(frozen=True)
class Amount:
    """How much one set has. Tokens count start marks and template, too."""

    rows: int
    tokens: int
    median: float
    """Tokens of a row."""
    longest: int
    answer_share: float
    """Of the tokens, those that the loss counts."""
    cut: int
    """Rows that are cut from longer texts."""


@dataclass(frozen=True)
class Fault:
    """Rows with one thing that is wrong, or may be."""

    kind: str
    rows: Mapping[str, tuple[int, ...]]
    """By set, their numbers, from 0; of cut rows none is named."""
    count: int

    def __str__(self) -> str:
        one, several, noun = FAULTS[self.kind]
        return f"{counted(self.count, noun)} {one if self.count == 1 else several}"

    def describe(self) -> str:
        """With the first rows' numbers."""
        named = [
            f"{name} {', '.join(map(str, rows[:NAMED_ROWS]))}{', ...' * (len(rows) > NAMED_ROWS)}"
            for name, rows in self.rows.items()
            if rows
        ]
        return f"{self}: {'; '.join(named)}" if named else str(self)


def sets_of(task: Task) -> dict[str, Sequences]:
    return {FORGET: task.forget, RETAIN: task.retain}


def count_set(sequences: Sequences, cut: int) -> Amount:
    lengths = sequences.lengths
    tokens = int(lengths.sum())
    return Amount(
        rows=len(sequences),
        tokens=tokens,
        median=float(np.median(lengths)) if tokens else 0.0,
        longest=int(lengths.max()) if tokens else 0,
        answer_share=int(sequences.answer_lengths.sum()) / tokens if tokens else 0.0,
        cut=cut,
    )


def find_faults(task: Task, tokenizer: Any) -> list[Fault]:
    """The kinds of FAULTS that the task's rows have, in that order."""
    sets = sets_of(task)
    found: dict[str, dict[str, list[int]]] = {kind: {} for kind in FAULTS}
    keys = {name: _keys(sequences) for name, sequences in sets.items()}
    for name, sequences in sets.items():
        found[REPEATED][name] = _repeats(keys[name])
        found[DOUBLED][name], found[MISSING][name] = _wrong_starts(sequences, tokenizer)
        found[EMPTY][name], found[THOUGHTS][name] = _wrong_answers(sequences, tokenizer)
    found[IN_BOTH], found[ASKED_IN_BOTH] = _shared(sets, keys)
    faults = []
    for kind, by_set in found.items():
        rows = {name: tuple(numbers) for name, numbers in by_set.items() if numbers}
        # What is in both sets is one thing, with a row or more on either side.
        count = (
            max(map(len, rows.values()), default=0)
            if kind in (IN_BOTH, ASKED_IN_BOTH)
            else sum(map(len, rows.values()))
        )
        count = sum(task.cut.values()) if kind == CUT else count
        if count:
            faults.append(Fault(kind, rows, count))
    return faults


def warn(faults: Sequence[Fault]) -> str:
    """One sentence for whoever starts a search; empty where there is nothing to say. That texts are cut is no fault."""
    told = [str(fault) for fault in faults if fault.kind != CUT]
    return f"data: {', '.join(told)}" if told else ""


def token_texts(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """Each token as its part of the text; one that is a part of a character by the vocabulary's own name for it."""

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    found = []
    for number, token in enumerate(tokens):
        before = decode(tokens[number - 1 : number]) if number else ""
        both = decode(tokens[max(0, number - 1) : number + 1])
        text = both[len(before) :] if both.startswith(before) else decode([token])
        if not text or "\ufffd" in both:
            text = str(tokenizer.convert_ids_to_tokens([int(token)])[0])
        found.append(text)
    return found


# ---- the checks


def _keys(sequences: Sequences) -> list[bytes]:
    """A digest of each row, tokens and answer's place."""
    return [digest(tokens.tobytes() + start.to_bytes(4, "little")) for tokens, start in sequences]


def _repeats(keys: Sequence[bytes]) -> list[int]:
    seen: set[bytes] = set()
    repeated = []
    for number, key in enumerate(keys):
        if key in seen:
            repeated.append(number)
        seen.add(key)
    return repeated


def _shared(
    sets: Mapping[str, Sequences], keys: Mapping[str, list[bytes]]
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """(rows that are in both sets, rows whose question alone is). What half of a set's rows ask is an instruction."""
    asked = {
        name: [digest(tokens[:start].tobytes()) if start > 1 else b"" for tokens, start in sequences]
        for name, sequences in sets.items()
    }
    told = {name: Counter(filter(None, questions)) for name, questions in asked.items()}
    both = set(keys[FORGET]) & set(keys[RETAIN])
    questions = {
        question
        for question in told[FORGET].keys() & told[RETAIN].keys()
        if not any(is_instruction(told[name][question], len(sets[name])) for name in sets)
    }
    rows = {name: [number for number, key in enumerate(found) if key in both] for name, found in keys.items()}
    alone = {
        name: [n for n, question in enumerate(asked[name]) if question in questions and keys[name][n] not in both]
        for name in sets
    }
    return rows, alone


def _windows(sequences: Sequences, rows: np.ndarray, starts: np.ndarray, width: int) -> np.ndarray:
    """So many tokens of each of these rows from its start on, int64 [rows, width]; NO_TOKEN behind its end."""
    places = sequences.offsets[rows, None] + starts[:, None] + np.arange(width)
    is_in = places < sequences.offsets[rows + 1, None]
    return np.where(is_in, sequences.tokens[np.where(is_in, places, 0)], NO_TOKEN).astype(np.int64)


def _wrong_starts(sequences: Sequences, tokenizer: Any) -> tuple[list[int], list[int]]:
    """(rows that begin with the start mark twice, rows without the mark that the tokenizer puts before a text)."""
    wanted = start_marks(tokenizer)
    own = getattr(tokenizer, "bos_token_id", None)
    marks = wanted or ([] if own is None else [own])
    if not marks or not len(sequences):
        return [], []
    rows = np.arange(len(sequences))
    begins = _windows(sequences, rows, np.zeros_like(rows), 2 * len(marks))
    doubled = (begins == np.array([*marks, *marks])).all(axis=1)
    missing = (begins[:, : len(wanted)] != np.array(wanted)).any(axis=1) if wanted else np.zeros(len(rows), bool)
    return np.flatnonzero(doubled).tolist(), np.flatnonzero(missing).tolist()


def _wrong_answers(sequences: Sequences, tokenizer: Any) -> tuple[list[int], list[int]]:
    """(rows whose answer says nothing, rows whose answer begins with a think block). Plain texts are no answers.

    Of many answers few are decoded: those whose tokens, by the vocabulary's names for them, could be such.
    """
    pairs = np.flatnonzero(sequences.answer_starts > 1)
    if not len(pairs):
        return [], []
    heads = _windows(sequences, pairs, sequences.answer_starts[pairs], BEGINNING)
    vocabulary, places = np.unique(heads, return_inverse=True)
    places = places.reshape(heads.shape)
    names = ["" if token == NO_TOKEN else str(tokenizer.convert_ids_to_tokens(int(token))) for token in vocabulary]
    special = {number for number, token in added_tokens(tokenizer).items() if token.special}
    special |= set(getattr(tokenizer, "all_special_ids", ()))
    is_silent = np.array([t in special or _may_be_silent(name) for t, name in zip(vocabulary, names, strict=True)])
    is_tag = np.array(["<" in name or "[" in name for name in names])
    is_short = sequences.answer_lengths[pairs] <= BEGINNING
    silent = np.flatnonzero(is_short & is_silent[places].all(axis=1))
    tagged = np.flatnonzero(is_tag[places[:, :TAG_BEGINS]].any(axis=1))

    def decode(chosen: np.ndarray, skip_special: bool) -> list[tuple[int, str]]:
        rows = [[int(token) for token in heads[number] if token != NO_TOKEN] for number in chosen]
        texts = tokenizer.batch_decode(rows, skip_special_tokens=skip_special) if rows else []
        return [(int(pairs[number]), str(text)) for number, text in zip(chosen, texts, strict=True)]

    empty = [number for number, text in decode(silent, True) if not any(map(_is_visible, text))]
    thoughts = [number for number, text in decode(tagged, False) if _begins_with_thought(text)]
    return empty, thoughts


def _may_be_silent(name: str) -> bool:
    """Whether a token of that name might be, or be a part of, what nobody sees: spaces, and bytes of a character."""
    return name.startswith("<0x") or not any("!" <= character <= "~" for character in name)


def _is_visible(character: str) -> bool:
    return character.isprintable() and not character.isspace()


def _begins_with_thought(text: str) -> bool:
    tag = TAG.match(text.lstrip())
    return tag is not None and THOUGHT.search(tag.group()) is not None

"""Written prompts and answers as token ids, many rows in one call of the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ray_unlearn.config import UserError
from ray_unlearn.models.marks import count_shared, encode_marked, start_marks

Encoded = tuple[np.ndarray, int]
"""Token ids, int32, and the place where the answer starts."""


@dataclass(frozen=True, slots=True)
class Written:
    """One row as texts. where: its file and row. is_marked: whether special tokens' texts in it are marked."""

    where: str
    prompt: str
    text: str
    is_marked: bool = False


class PairEncoder:
    """Finds which tokens of a prompt and its answer, written one behind the other, are the answer."""

    def __init__(self, tokenizer: Any, joins: bool, starts_itself: bool, marks: Sequence[str]) -> None:
        """joins: whether both are halves of one text. starts_itself: whether prompts are written with their start
        mark. marks: the texts of special tokens."""
        self._tokenizer, self._joins, self._starts_itself, self._marks = tokenizer, joins, starts_itself, tuple(marks)

    def encode(self, rows: Sequence[Written]) -> list[Encoded]:
        """Raises UserError naming the first row that has no tokens on one side.

        Both are tokenised together where the model saw them so: where the prompt ends in a special token or a new
        line, or the answer begins with a space. "[/INST]" and an answer right behind it were tokenised apart.
        """
        apart = [self._are_apart(row.prompt, row.text) for row in rows]
        texts = [
            (row.prompt, row.text if is_apart else row.prompt + row.text)
            for row, is_apart in zip(rows, apart, strict=True)
        ]
        plain = iter(
            self._ids([text for row, both in zip(rows, texts, strict=True) if not row.is_marked for text in both])
        )
        found = []
        for row, both, is_apart in zip(rows, texts, apart, strict=True):
            if row.is_marked:
                first, second = (encode_marked(self._tokenizer, text) for text in both)
            else:
                first, second = next(plain), next(plain)
            found.append(self._cut(row, first, second, is_apart))
        return found

    def _are_apart(self, prompt: str, text: str) -> bool:
        if self._joins or text[:1].isspace() or prompt[-1:].isspace():
            return False
        return not prompt.endswith(self._marks)

    def _cut(self, row: Written, first: list[int], second: list[int], is_apart: bool) -> Encoded:
        """first: the prompt's ids; second: the answer's where they stand apart, else those of both together."""
        start = self._start_of(row.prompt)
        if is_apart:
            head, rest = [*start, *first], second
        else:
            shared = len(first) if second[: len(first)] == first else count_shared(first, second)
            if shared < len(first) and not self._joins:
                (rest,) = [encode_marked(self._tokenizer, row.text)] if row.is_marked else self._ids([row.text])
                head = [*start, *first]
            else:
                head, rest = [*start, *second[:shared]], second[shared:]
        if not head or not rest:
            raise UserError(f"{row.where}: the {'answer' if head else 'question'} has no tokens. Remove the row")
        return np.array([*head, *rest], dtype=np.int32), len(head)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return ids_of(self._tokenizer, texts)

    def _start_of(self, text: str) -> list[int]:
        """The start mark, once: a chat template writes its own."""
        if self._starts_itself:
            return []
        bos = getattr(self._tokenizer, "bos_token", None)
        return [] if bos and text.startswith(bos) else self._start_marks

    @cached_property
    def _start_marks(self) -> list[int]:
        return start_marks(self._tokenizer)


def ids_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Each text's token ids, without special tokens around it."""
    if not texts:
        return []
    if not getattr(tokenizer, "is_fast", False):
        return [list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in texts]
    options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
    return list(tokenizer(texts, verbose=False, **options)["input_ids"])

"""Texts and pairs as token sequences with the place where the answer starts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_unlearn.config import UserError

ATTENTION_LENGTH = 1000
"""Tokens of a row at which attention takes as long as all else, in small models on a CPU; larger ones take more."""


@dataclass(frozen=True)
class Sequences:
    """Many token sequences in three flat arrays, so that all gangs of a node can read one shared copy.

    tokens: int32 [sum of lengths]; offsets: int64 [n + 1]; answer_starts: int32 [n], the position of the
    first predicted token of each sequence (at least 1: the first token has nothing to be predicted from).
    Everything from there to the end of a sequence is its answer.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    answer_starts: np.ndarray

    @classmethod
    def build(cls, items: Iterable[tuple[Sequence[int] | np.ndarray, int]]) -> Sequences:
        """From (token ids, answer start) pairs."""
        pairs = list(items)
        lengths = np.array([len(tokens) for tokens, _ in pairs], dtype=np.int64)
        tokens = np.concatenate([np.asarray(t, dtype=np.int32) for t, _ in pairs]) if pairs else np.zeros(0, np.int32)
        return cls(
            tokens=tokens.astype(np.int32, copy=False),
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
            answer_starts=np.array([start for _, start in pairs], dtype=np.int32),
        )

    def __len__(self) -> int:
        return len(self.answer_starts)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]], int(self.answer_starts[index])

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence, int64 [n]."""
        return np.diff(self.offsets)

    @property
    def answer_lengths(self) -> np.ndarray:
        """Predicted tokens of each sequence, int64 [n]."""
        return self.lengths - self.answer_starts

    def select(self, indices: Sequence[int] | np.ndarray) -> Sequences:
        return Sequences.build(self[int(i)] for i in indices)

    def trees(self, max_tokens: int = 0) -> list[list[int]]:
        """The indices of the sequences, as `pack_trees` best lays them out: those with equal prompts together, as far
        as the prompt that is computed once saves more than attention over the others' answers costs.

        max_tokens: the most that one tree may have, if its first sequence alone has fewer; 0: any number.
        """
        groups: dict[bytes, list[int]] = {}
        for i, (tokens, start) in enumerate(self):
            groups.setdefault(tokens[:start].tobytes(), []).append(i)
        lengths = self.answer_lengths
        result: list[list[int]] = []
        for group in groups.values():
            shared, answers = int(self.answer_starts[group[0]]) - 1, lengths[group]
            total = int(answers.sum())
            room = max(1, (max_tokens - shared) // max(1, int(answers.max()))) if max_tokens else len(group)
            counts = range(math.ceil(len(group) / room), len(group) + 1)
            count = min(counts, key=lambda count: count * row_cost(shared + total / count))
            result += [group[k::count] for k in range(count)]
        return result

    @classmethod
    def concatenate(cls, parts: Sequence[Sequences]) -> Sequences:
        lengths = np.concatenate([np.zeros(1, np.int64), *(part.lengths for part in parts)])
        return cls(
            tokens=np.concatenate([np.zeros(0, np.int32), *(part.tokens for part in parts)]),
            offsets=np.cumsum(lengths),
            answer_starts=np.concatenate([np.zeros(0, np.int32), *(part.answer_starts for part in parts)]),
        )


def encode_text(tokenizer: Any, text: str, where: str) -> tuple[list[int], int]:
    """A plain text: every token but the first is predicted."""
    tokens = tokenizer(text)["input_ids"]
    if len(tokens) < 2:
        raise UserError(f"{where}: {text!r} has fewer than two tokens, nothing to predict. Remove the row")
    return tokens, 1


def check_lengths(sequences: Sequences, context: int, where: str) -> None:
    """Raise UserError naming the first row that does not fit the model's context."""
    too_long = np.flatnonzero(sequences.lengths > context)
    if len(too_long):
        row = int(too_long[0])
        raise UserError(
            f"{where}, row {row}: {sequences.lengths[row]} tokens, but the model reads at most {context}. "
            "Shorten or remove it, or take a model with a longer context"
        )


def row_cost(width: float) -> float:
    """What a row of so many tokens costs, in tokens of short rows."""
    return width * (1 + width / ATTENTION_LENGTH)

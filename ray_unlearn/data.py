"""Tokenised sequences, and how a batch is cut over workers and packed into rows without changing its loss.

Shapes: T answer tokens, R rows of one pack, L tokens of one row.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_unlearn.config import UserError

if TYPE_CHECKING:
    import torch

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
            tokens=tokens.astype(np.int32),
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


def encode_pair(tokenizer: Any, question: str, answer: str, where: str) -> tuple[list[int], int]:
    """A question and its answer: the answer (and the end of the turn) is predicted, the question is not.

    With a chat template the pair is one user and one assistant turn, else "Question: ...\\nAnswer: ...".
    Question and answer are tokenised apart, so that the boundary never falls inside a token.
    """
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template([*turn, {"role": "assistant", "content": answer}], tokenize=False)
        if not whole.startswith(prompt):
            raise UserError(
                f"{where}: the chat template's prompt is not the start of the whole turn. Use another template"
            )
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer_text = whole[len(prompt) :].rstrip("\n")
    else:
        prompt_ids = tokenizer(f"Question: {question}\nAnswer:")["input_ids"]
        answer_text = f" {answer}{tokenizer.eos_token or ''}"
    answer_ids = tokenizer(answer_text, add_special_tokens=False)["input_ids"]
    if not answer_ids or not prompt_ids:
        raise UserError(f"{where}: the {'answer' if prompt_ids else 'question'} has no tokens. Remove the row")
    return [*prompt_ids, *answer_ids], len(prompt_ids)


def check_lengths(sequences: Sequences, context: int, where: str) -> None:
    """Raise UserError naming the first row that does not fit the model's context."""
    too_long = np.flatnonzero(sequences.lengths > context)
    if len(too_long):
        row = int(too_long[0])
        raise UserError(
            f"{where}, row {row}: {sequences.lengths[row]} tokens, but the model reads at most {context}. "
            "Shorten or remove it, or take a model with a longer context"
        )


@dataclass(frozen=True)
class Pack:
    """Sequences laid end to end in rows; nothing of one sequence sees another (the positions restart).

    tokens, positions: int64 [R, L]; keep: int64 [T], the places in the rows laid end to end (row * L + column)
    whose next token is an answer token, ascending; targets: int64 [T], those answer tokens; sequence: int64 [T],
    which of the packed sequences each belongs to, in the order they were given; place: int64 [T], where each stands
    in those sequences' answers laid end to end; lengths: int64 [S] answer tokens of each.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    keep: torch.Tensor
    targets: torch.Tensor
    sequence: torch.Tensor
    place: torch.Tensor
    lengths: torch.Tensor
    num_tokens: int
    mask: torch.Tensor | None = None
    """bool [R, 1, L, L], which position sees which, where the restarting positions do not say it."""

    def to(self, device: Any) -> Pack:
        import torch

        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return Pack(**moved, num_tokens=self.num_tokens)


def pack(items: Sequence[tuple[np.ndarray, int]], row_length: int = 0, alone: bool = False) -> Pack:
    """Pack (tokens, answer start) pairs into rows of `row_length` (0: of the width that computes least).

    alone: every sequence gets a row of its own, for models that would mix those of one row.

    A row's unused tail holds token 0 at restarted positions and is never kept. No items at all give one
    row with nothing kept, so that a worker without work still runs the model with the others.
    """
    lengths = [len(tokens) for tokens, _ in items]
    rows, width = _fill_rows(lengths, row_length, alone)
    shape = (max(len(rows), 1), width)
    tokens, positions = np.zeros(shape, np.int64), np.tile(np.arange(width), (shape[0], 1))
    keep = np.zeros(shape, bool)
    for r, members in enumerate(rows):
        column = 0
        for i in members:
            ids, start = items[i]
            end = column + len(ids)
            tokens[r, column:end] = ids
            positions[r, column:end] = np.arange(len(ids))
            keep[r, column + start - 1 : end - 1] = True
            column = end
        positions[r, column:] = np.arange(width - column)
    order = [i for members in rows for i in members]
    return _as_pack(tokens, positions, keep, [ids[start:] for ids, start in items], order, sum(lengths))


def _as_pack(
    tokens: np.ndarray,
    positions: np.ndarray,
    keep: np.ndarray,
    answers: Sequence[np.ndarray],
    order: Sequence[int],
    num_tokens: int,
    mask: Any = None,
) -> Pack:
    """answers: by sequence, its answer's tokens; order: the sequences as their answers are kept, row after row."""
    import torch

    lengths = np.array([len(answer) for answer in answers], np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    none = np.zeros(0, np.int64)
    targets = [none, *(answers[i] for i in order)]
    place = [none, *(np.arange(offsets[i], offsets[i + 1]) for i in order)]
    return Pack(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(positions),
        keep=torch.from_numpy(np.flatnonzero(keep)),
        targets=torch.from_numpy(np.concatenate(targets, dtype=np.int64)),
        sequence=torch.from_numpy(np.repeat(np.array(order, np.int64), lengths[np.array(order, np.int64)])),
        place=torch.from_numpy(np.concatenate(place, dtype=np.int64)),
        lengths=torch.from_numpy(lengths),
        num_tokens=int(num_tokens),
        mask=mask,
    )


def _fill_rows(lengths: Sequence[int], row_length: int, alone: bool = False) -> tuple[list[list[int]], int]:
    """Which of the lengths go into each row, and the rows' common width.

    Without a row length, rows are of the width that computes least: wider ones waste less room, but attention in
    them costs more.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    longest = max([*lengths, 2])
    if alone:
        return [[i] for i in order], longest
    if row_length:
        return _first_fit(lengths, order, max(row_length, longest))

    counts = {math.ceil(sum(lengths) / (longest * wider)) for wider in (1, 1.25, 1.5, 2, 2.5, 3, 4)}
    layouts = (_spread(lengths, order, count, longest) for count in sorted(counts))
    return min(layouts, key=lambda layout: len(layout[0]) * row_cost(layout[1]))


def row_cost(width: float) -> float:
    """What a row of so many tokens costs, in tokens of short rows."""
    return width * (1 + width / ATTENTION_LENGTH)


def _first_fit(lengths: Sequence[int], order: Sequence[int], width: int) -> tuple[list[list[int]], int]:
    rows: list[list[int]] = []
    room: list[int] = []
    for i in order:
        row = next((r for r, free in enumerate(room) if free >= lengths[i]), None)
        if row is None:
            rows.append([])
            room.append(width)
            row = len(rows) - 1
        rows[row].append(i)
        room[row] -= lengths[i]
    return rows, width - min(room, default=0)


def _spread(lengths: Sequence[int], order: Sequence[int], count: int, width: int) -> tuple[list[list[int]], int]:
    """So many rows, each length to the emptiest; they are at least that wide."""
    rows: list[list[int]] = [[] for _ in range(count)]
    fills = [(0, r) for r in range(count)]
    for i in order:
        fill, row = fills[0]
        rows[row].append(i)
        heapq.heapreplace(fills, (fill + lengths[i], row))
    return rows, max([width, *(fill for fill, _ in fills)])


def pack_trees(trees: Sequence[Sequence[tuple[np.ndarray, int]]], row_length: int = 0) -> Pack:
    """As `pack`, with a prompt that several sequences have laid out once: a tree of the prompt and its answers.

    Each tree is a list of (tokens, answer start) with the same prompt. The prompt but for its last token comes first,
    then branch after branch: the prompt's last token, which predicts the answer's first, and the answer without its
    last token, which predicts nothing. The mask lets a branch see itself and the prompt, so that every token gets
    what it would get in a sequence of its own. The sequences count in the order of the trees laid end to end.
    """
    import torch

    lengths = [tree[0][1] - 1 + sum(len(tokens) - start for tokens, start in tree) for tree in trees]
    rows, width = _fill_rows(lengths, row_length)
    shape = (max(len(rows), 1), width)
    tokens, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    keep, tree_of, branch_of = np.zeros(shape, bool), np.full(shape, -1), np.zeros(shape, np.int64)
    first = np.cumsum([0, *(len(tree) for tree in trees)])
    for r, chosen in enumerate(rows):
        end = 0
        for t in chosen:
            prompt, start = trees[t][0]
            column, end = end, end + start - 1
            tokens[r, column:end], positions[r, column:end] = prompt[: start - 1], np.arange(start - 1)
            tree_of[r, column : column + lengths[t]] = t
            for k, (ids, _) in enumerate(trees[t]):
                column, end = end, end + len(ids) - start
                tokens[r, column:end] = ids[start - 1 : -1]
                positions[r, column:end] = np.arange(start - 1, len(ids) - 1)
                keep[r, column:end], branch_of[r, column:end] = True, k + 1
    tree, branch = torch.from_numpy(tree_of), torch.from_numpy(branch_of)
    sees = (tree[:, :, None] == tree[:, None]) & ((branch[:, None] == 0) | (branch[:, :, None] == branch[:, None]))
    mask = (sees & torch.ones(width, width, dtype=torch.bool).tril())[:, None]
    answers = [ids[start:] for tree in trees for ids, start in tree]
    order = [i for chosen in rows for t in chosen for i in range(int(first[t]), int(first[t + 1]))]
    return _as_pack(tokens, positions, keep, answers, order, sum(lengths), mask)


def share(lengths: Sequence[int] | np.ndarray, num_workers: int, max_tokens: int) -> list[list[list[int]]]:
    """Cut one batch: [worker][micro-batch] -> indices, balanced by tokens, every worker with as many parts.

    Longest first to the least loaded worker, then as few micro-batches as can be, alike in tokens and of at most
    `max_tokens` (one sequence longer than that stands alone). Workers with fewer parts get empty ones, because
    ZeRO-3 gathers weights in step.
    """
    workers: list[list[int]] = [[] for _ in range(num_workers)]
    load = [0] * num_workers
    for i in sorted(range(len(lengths)), key=lambda i: (-int(lengths[i]), i)):
        worker = min(range(num_workers), key=lambda w: (load[w], w))
        workers[worker].append(i)
        load[worker] += int(lengths[i])
    parts = [_cut(worker, lengths, max_tokens) for worker in workers]
    most = max(len(p) for p in parts)
    return [p + [[] for _ in range(most - len(p))] for p in parts]


def _cut(members: Sequence[int], lengths: Sequence[int] | np.ndarray, max_tokens: int) -> list[list[int]]:
    """In their order, into runs that are alike in tokens."""
    load = sum(int(lengths[i]) for i in members)
    # A run ends up to a sequence too early, so what barely fits would leave a last run of a few tokens.
    count = 1 if load <= max_tokens else math.ceil((load + int(lengths[members[0]])) / max_tokens)
    share_of_one = load / count
    parts: list[list[int]] = [[]]
    passed = fill = 0
    for i in members:
        length = int(lengths[i])
        is_due = passed + length / 2 >= len(parts) * share_of_one
        if parts[-1] and (is_due or fill + length > max_tokens):
            parts.append([])
            fill = 0
        parts[-1].append(i)
        fill += length
        passed += length
    return parts


def plan_epoch(
    num_forget: int, num_retain: int, batch_size: int, seed: int, epoch: int, epoch_size: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The global batches of one epoch: (forget indices, retain indices), equal in number, shuffled.

    An epoch is one pass over the forget set or, where it has an `epoch_size`, that many sequences of passes that
    go on from epoch to epoch. The retain set is walked through like that always, so that all of it is used as
    evenly as can be. It depends on seed and epoch alone.
    """
    size = epoch_size or num_forget
    first = epoch * size
    forget = _walk(num_forget, [seed, 1], first, size)
    retain = _walk(num_retain, [seed, 2], first, size)
    return [(forget[i : i + batch_size], retain[i : i + batch_size]) for i in range(0, size, batch_size)]


def _walk(count: int, seed: list[int], first: int, length: int) -> np.ndarray:
    """Places `first` and on, `length` of them, of endless shuffled passes over `count` things; int64 [length].

    Of no things at all, none.
    """
    if not count:
        return np.zeros(0, np.int64)
    passes = range(first // count, (first + length - 1) // count + 1)
    walk = np.concatenate([np.random.default_rng([*seed, p]).permutation(count) for p in passes])
    return walk[first % count :][:length]

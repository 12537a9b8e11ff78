"""Sequences laid end to end in rows, so that no padding is computed.

Shapes: T answer tokens, R rows of one pack, L tokens of one row."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
from ray_unlearn.models.sequences import row_cost


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

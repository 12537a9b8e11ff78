"""The batches of an epoch, and how one batch is cut over workers and passes without changing its loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    pass


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

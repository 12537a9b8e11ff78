"""What every loss must keep, checked on made-up tokens before a search begins. Built-in losses pass it, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from ray_unlearn.training.losses import SEQUENCE, TOKEN, ScoredTokens, keyword_arguments
from ray_unlearn.wording import first_line

LENGTHS = (3, 1, 0, 5)
"""Answer tokens of the sequences; of the third all are masked."""
VOCABULARY, HIDDEN_SIZE = 11, 6
LEAVES = ("logprobs", "log_distribution", "hidden")
"""What comes from the model that is trained."""
TOLERANCE = 1e-9
"""Of one term, relative, in fp64."""


def made_up(lengths: Sequence[int], seed: int = 0) -> ScoredTokens:
    """Tokens of sequences of those lengths, fp64, with all that a loss may read, consistent with one another; what
    comes from the trained model are leaves of the graph. Sequence i is the same whatever others there are."""
    parts = [_sequence(length, seed + i) for i, length in enumerate(lengths)]

    def joined(name: str) -> Tensor:
        return torch.cat([part[name] for part in parts]) if parts else _sequence(0, 0)[name]

    count = torch.tensor(lengths, dtype=torch.int64)
    named = {name: joined(name) for name in _sequence(0, 0)}
    for name in LEAVES:
        named[name].requires_grad_()
    return ScoredTokens(sequence=torch.arange(len(lengths)).repeat_interleave(count), lengths=count, **named)


def _sequence(length: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    now, before = random(length, VOCABULARY).log_softmax(-1), random(length, VOCABULARY).log_softmax(-1)
    targets = torch.randint(VOCABULARY, (length,), generator=generator)
    return {
        "logprobs": now.gather(1, targets[:, None])[:, 0].clone(),
        "targets": targets,
        "reference": before.gather(1, targets[:, None])[:, 0].clone(),
        "log_distribution": now,
        "reference_distribution": before,
        "hidden": random(length, HIDDEN_SIZE),
        "reference_hidden": random(length, HIDDEN_SIZE),
    }


def reads_of(loss: Callable[..., Tensor], **parameters: float) -> set[str]:
    """The names of what a loss of one set reads of its tokens."""
    seen: set[str] = set()
    names = {field.name for field in fields(ScoredTokens)}

    class Watched(ScoredTokens):
        def __getattribute__(self, name: str) -> Any:
            if name in names:
                seen.add(name)
            return super().__getattribute__(name)

    tokens = made_up(LENGTHS)
    loss(Watched(**{name: getattr(tokens, name) for name in names}), **parameters)
    return seen


def reduction_of(terms: Any, tokens: ScoredTokens) -> str:
    """SEQUENCE or TOKEN, by the terms' shape. Raises ValueError where they are neither."""
    sequences, count = len(tokens.lengths), len(tokens.logprobs)
    if not isinstance(terms, Tensor):
        raise ValueError(f"gives a {type(terms).__name__}, and must give a tensor")
    if not terms.is_floating_point() or tuple(terms.shape) not in ((sequences,), (count,)):
        raise ValueError(
            f"gives {str(terms.dtype).removeprefix('torch.')} of shape {list(terms.shape)} for {sequences} sequences "
            f"of {count} answer tokens in all, and must give one number a sequence or one a token"
        )
    return SEQUENCE if len(terms) == sequences else TOKEN


def broken_rules(
    loss: Callable[..., Tensor], num_sets: int = 1, extremes: Mapping[str, Sequence[float]] | None = None
) -> list[str]:
    """What of the contract the loss does not keep, a sentence each; nothing where it keeps all.

    num_sets: of how many sets it takes the tokens. extremes: by parameter, the ends of its range: there, too, it must
    be finite.
    """
    defaults = keyword_arguments(loss)

    def tokens_of(lengths: Sequence[int]) -> list[ScoredTokens]:
        return [made_up(lengths, 100 * i) for i in range(num_sets)]

    def broken() -> Iterator[str]:
        tokens = tokens_of(LENGTHS)
        terms = loss(*tokens)
        reduction = reduction_of(terms, tokens[0])
        yield from _gradient(terms, tokens)
        if reduction == SEQUENCE and terms[2].item() != 0.0:
            yield f"gives {terms[2].item():.3g} for a sequence without answer tokens, and must give 0"
        if not _is_separable(terms, [loss(*_only(tokens, i)) for i in range(len(LENGTHS))]):
            yield "depends on which sequences share a pass, and must not: passes and workers divide them as they can"
        for lengths in ((), (0,)):
            found = loss(*tokens_of(lengths))
            if reduction_of(found, tokens_of(lengths)[0]) and found.sum().item() != 0.0:
                yield f"is {found.sum().item():.3g} for a batch without answer tokens, and must be 0"
        for name, values in (extremes or {}).items():
            for value in values:
                if not torch.isfinite(loss(*tokens, **{**defaults, name: value})).all():
                    yield f"is not finite at {name} = {value:g}, an end of its range"

    found: list[str] = []
    try:
        found.extend(broken())
    except Exception as error:  # whatever the function raises
        says = first_line(error, 400)
        found.append(says if says.startswith("gives ") else f"raises {type(error).__name__}: {says}")
    return found


def _gradient(terms: Tensor, tokens: Sequence[ScoredTokens]) -> Iterator[str]:
    if not torch.isfinite(terms).all():
        yield "is not finite"
    if not terms.requires_grad:
        yield "does not reach the model: nothing that it gives hangs on what the model computed"
        return
    leaves = [getattr(each, name) for each in tokens for name in LEAVES]
    gradients = [g for g in torch.autograd.grad(terms.sum(), leaves, allow_unused=True) if g is not None]
    if not any(g.abs().sum() > 0 for g in gradients):
        yield "does not reach the model: its gradient is 0"
    if not all(torch.isfinite(g).all() for g in gradients):
        yield "has a gradient that is not finite"


def _only(tokens: Sequence[ScoredTokens], index: int) -> list[ScoredTokens]:
    """Of every set the one sequence, by itself."""
    found = []
    for each in tokens:
        here = each.sequence == index
        parts = {f.name: getattr(each, f.name)[here] for f in fields(each) if f.name not in ("sequence", "lengths")}
        first = torch.zeros(int(here.sum()), dtype=torch.int64)
        found.append(replace(each, **parts, sequence=first, lengths=each.lengths[[index]]))
    return found


def _is_separable(terms: Tensor, alone: Sequence[Tensor]) -> bool:
    joined = torch.cat([part.reshape(-1) for part in alone])
    return joined.shape == terms.shape and torch.allclose(joined, terms, rtol=TOLERANCE, atol=TOLERANCE)

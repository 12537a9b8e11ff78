"""The engine's first state, kept so that every trial starts from it, and the ways back to it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ray_unlearn.training.shards import base_optimizer, drop_gathered, places_of, read_shards

SLICE = 1 << 26
"""Numbers that are computed with at a time, where a whole tensor would need as much again beside itself."""

FIRST_FACTOR = ".lora_A."
"""In the names of the factor of an adapter (B A) that does not start at 0."""


@dataclass(frozen=True)
class Kept:
    """One worker's trained weights at some moment, in host memory: what its optimizer steps on."""

    values: list[Tensor]


class Snapshot:
    """The first state of an engine, and the way back to it: bit-identical on a CPU for every ZeRO stage.

    Take it right after the engine is built. It holds this worker's part of the trained weights, once, in the precision
    of the forward pass: 2 bytes a parameter in bf16, 4 in fp32, shared among the workers from ZeRO-1 on. The fp32
    masters are not kept, because at the start they are these weights; where that does not hold, they are. Optimizer
    moments are zeroed in place, unless the engine was born with some. on_host: it lies in pinned host memory, at the
    cost of one copy a restore.
    """

    @torch.no_grad()
    def __init__(self, engine: Any, on_host: bool = False) -> None:
        shards = read_shards(engine)
        self._on_host = on_host
        self._first = [self._copy(t) for t in shards.own]
        is_same = all(torch.equal(m, w.to(m)) for m, w in zip(shards.masters, shards.own, strict=False))
        self._masters = None if is_same else [self._copy(t) for t in shards.masters]
        self._buffers = [b.detach().clone() for b in engine.module.buffers()]
        base = base_optimizer(engine)
        self._groups = [{k: copy.deepcopy(v) for k, v in g.items() if k != "params"} for g in base.param_groups]
        self._moments = {
            id(p): {
                k: v.detach().clone() if torch.is_tensor(v) else v
                for k, v in state.items()
                if not torch.is_tensor(v) or v.any()
            }
            for p, state in base.state.items()
        }
        scaler = getattr(engine.optimizer, "loss_scaler", None)
        self._scaler = copy.deepcopy(vars(scaler)) if hasattr(scaler, "__dict__") else None
        self._first_factors: list[Tensor] | None = None

    def _copy(self, tensor: Tensor) -> Tensor:
        if not self._on_host or tensor.is_cpu:
            return tensor.detach().clone()
        return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor)

    @property
    def num_bytes(self) -> int:
        """Of the weights that it holds."""
        return sum(t.numel() * t.element_size() for t in [*self._first, *(self._masters or [])])

    @torch.no_grad()
    def restore(self, engine: Any) -> None:
        """Put weights, masters, moments, counters and half-accumulated gradients back, in place. Every worker must
        call it."""
        self._write(engine, self._first, self._masters or self._first)
        for buffer, first in zip(engine.module.buffers(), self._buffers, strict=True):
            buffer.copy_(first)
        base = base_optimizer(engine)
        for parameter, state in base.state.items():
            first_state = self._moments.get(id(parameter), {})
            # In place: DeepSpeed holds views of these tensors, so clearing the dictionary would cut them off.
            for key, value in state.items():
                if torch.is_tensor(value):
                    value.copy_(first_state[key]) if key in first_state else value.zero_()
                elif isinstance(value, int | float):
                    state[key] = first_state.get(key, type(value)(0))
        for group, first_group in zip(base.param_groups, self._groups, strict=True):
            group.update(copy.deepcopy(first_group))
        if self._scaler is not None:
            vars(engine.optimizer.loss_scaler).update(copy.deepcopy(self._scaler))
        self._drop_gradients(engine)
        engine.global_steps = engine.global_samples = engine.micro_steps = engine.skipped_steps = 0
        engine._global_grad_norm = None

    def holds(self, engine: Any) -> bool:
        """Whether this worker's weights and masters are the first ones, bit for bit."""
        shards = read_shards(engine)
        pairs = [*zip(shards.own, self._first, strict=True)]
        pairs += zip(shards.masters, self._masters or self._first, strict=False)
        return all(torch.equal(tensor, first.to(tensor)) for tensor, first in pairs)

    @torch.no_grad()
    def kept(self, engine: Any) -> Kept:
        """A copy of this worker's trained weights as they are now."""
        shards = read_shards(engine)
        return Kept([t.detach().to("cpu", copy=True) for t in shards.masters or shards.own])

    def start_from(self, engine: Any, kept: Kept) -> None:
        """Kept weights with a new optimizer: as if training began with them. Every worker must call it."""
        self.restore(engine)
        self.put_back(engine, kept)

    @torch.no_grad()
    def put_back(self, engine: Any, kept: Kept) -> None:
        """Kept weights and masters; optimizer and counters stay as they are. Every worker must call it."""
        self._write(engine, kept.values, kept.values)

    @torch.no_grad()
    def move_along_line(self, engine: Any, kept: Kept, alpha: float) -> None:
        """First weights + alpha (kept - first): a point on the line through both models. Every worker must call it.

        Of adapters (B A, with B 0 at the start) the line is in the merged weights: A is at its end, B alone moves. With
        both on their way, the product would bend off the line.
        """
        drop_gathered(engine)
        held = self._places_of_first_factors(engine)
        shards = read_shards(engine)
        for i, target in enumerate(shards.masters or shards.own):
            first, end, flat = self._first[i].view(-1), kept.values[i].view(-1), target.data.view(-1)
            for at in range(0, flat.numel(), SLICE):
                piece = slice(at, at + SLICE)
                from_, to = (t[piece].to(flat.device).float() for t in (first, end))
                moved = from_ + alpha * (to - from_)
                if held:
                    moved = torch.where(held[i].view(-1)[piece].to(flat.device), to, moved)
                flat[piece].copy_(moved)
        for own, master in zip(shards.own, shards.masters, strict=False):
            own.data.copy_(master)
        shards.spread()

    def _places_of_first_factors(self, engine: Any) -> list[Tensor]:
        """bool, shaped as this worker's weights; empty without adapters. The first call loses the weights."""
        if self._first_factors is None:
            trained = [name for name, p in engine.module.named_parameters() if p.requires_grad]
            has_adapters = any(FIRST_FACTOR in name for name in trained)
            self._first_factors = places_of(engine, lambda name: FIRST_FACTOR in name) if has_adapters else []
        return self._first_factors

    @contextlib.contextmanager
    def starting_weights(self, engine: Any) -> Iterator[None]:
        """The engine computes with the starting model inside, and with the trained one again after.

        Where a method needs whole distributions or hidden states of the starting model, this is the reference
        model: no second one stays in memory. The trained weights come back from their masters; only where there are
        none is a copy of them kept inside. Every worker must enter it.
        """
        shards = read_shards(engine)
        now = shards.masters or [t.detach().clone() for t in shards.own]
        self._write(engine, self._first)
        try:
            yield
        finally:
            self._write(engine, now)

    @staticmethod
    @torch.no_grad()
    def _write(engine: Any, values: Sequence[Tensor], masters: Sequence[Tensor] = ()) -> None:
        """These values as the weights of the forward pass, and as masters where they are given."""
        drop_gathered(engine)
        shards = read_shards(engine)
        for tensor, value in zip(shards.own, values, strict=True):
            tensor.data.copy_(value)
        for tensor, value in zip(shards.masters, masters, strict=False):
            tensor.data.copy_(value)
        shards.spread()

    @staticmethod
    def _drop_gradients(engine: Any) -> None:
        optimizer = engine.optimizer
        optimizer.zero_grad()
        for parameter in engine.module.parameters():
            parameter.grad = None
        # ZeRO-1/2 keep half-accumulated gradients here.
        for name in ("averaged_gradients", "all_grad_tensors"):
            for key in list(getattr(optimizer, name, {}) or {}):
                getattr(optimizer, name)[key] = None
        if hasattr(optimizer, "micro_step_id"):
            # -1 before the first micro-batch under ZeRO-1/2, 0 under ZeRO-3.
            optimizer.micro_step_id = -1 if hasattr(optimizer, "all_grad_tensors") else 0

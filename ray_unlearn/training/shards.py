"""Where DeepSpeed's optimizers keep the trained weights: one table of their private names, and what is read by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Names:
    """Of one optimizer's attributes."""

    working: str
    """In the precision of the forward pass: all of it, or this worker's shard under ZeRO-3."""
    masters: str
    """The fp32 copies that the optimizer steps on: this worker's part."""
    parts: str = ""
    """The workers' parts of `working`, by group and rank; empty where a worker steps on all that it holds."""


NAMES = {
    "DeepSpeedZeroOptimizer_Stage3": Names("fp16_partitioned_groups_flat", "fp32_partitioned_groups_flat"),
    "DeepSpeedZeroOptimizer": Names(
        "bit16_groups_flat", "single_partition_of_fp32_groups", "parallel_partitioned_bit16_groups"
    ),
    "BF16_Optimizer": Names("bf16_groups_flat", "fp32_groups_flat_partition", "bf16_partitioned_groups"),
    "FP16_Optimizer": Names("fp16_groups_flat", "fp32_groups_flat"),
    "FP16_UnfusedOptimizer": Names("fp16_groups", "fp32_groups"),
}
"""By class, in DeepSpeed 0.19. An optimizer that is not here steps on the parameters themselves."""


@dataclass(frozen=True)
class Shards:
    """One worker's trained weights, as tensors that share the engine's memory."""

    working: list[Tensor]
    own: list[Tensor]
    """Of `working`, what this worker's optimizer steps on."""
    masters: list[Tensor]
    """fp32, shaped as `own`; empty where the optimizer steps on `own` itself."""
    groups: list[Any]
    """The process group whose workers hold the other parts of `working`; empty where there are none."""

    def spread(self) -> None:
        """Send every worker's part to the others. All must call it."""
        for whole, part, group in zip(self.working, self.own, self.groups, strict=False):
            if dist.get_world_size(group) > 1:
                dist.all_gather_into_tensor(whole.data, part.data.clone() if part.is_cpu else part.data, group=group)


def read_shards(engine: Any) -> Shards:
    optimizer = engine.optimizer
    names = NAMES.get(type(optimizer).__name__)
    if names is None:
        trained = [p for p in engine.module.parameters() if p.requires_grad]
        return Shards(trained, trained, [], [])
    working, masters = ([*_flat(getattr(optimizer, name))] for name in (names.working, names.masters))
    if not names.parts:
        return Shards(working, working, masters, [])
    groups = list(optimizer.real_dp_process_group)
    parts = [group[dist.get_rank(g)] for group, g in zip(getattr(optimizer, names.parts), groups, strict=True)]
    return Shards(working, parts, masters, groups)


def _flat(groups: Iterable[Any]) -> Iterable[Tensor]:
    """The tensors of a list, which may stand in lists of their own."""
    for group in groups:
        if torch.is_tensor(group):
            yield group
        else:
            yield from group


def shard_of(parameter: Any) -> Tensor:
    """This worker's part of a parameter: its ZeRO-3 shard, else the whole."""
    return parameter.ds_tensor.data if hasattr(parameter, "ds_id") else parameter.data


def places_of(engine: Any, is_wanted: Callable[[str], bool]) -> list[Tensor]:
    """Which of this worker's numbers belong to the trained parameters of those names: bool, shaped as `Shards.own`.

    Whatever the layout is, the engine says it itself: the parameters are filled with marks, and the marks are read
    where the optimizer steps. The weights are lost; the caller writes them anew.
    """
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            shard_of(parameter).fill_(float(is_wanted(name)))
    return [tensor == 1.0 for tensor in read_shards(engine).own]


def drop_gathered(engine: Any) -> None:
    """ZeRO-3 may leave weights gathered after a forward pass; they would outlive a change of their shards."""
    if hasattr(engine.optimizer, "empty_partition_cache"):
        engine.optimizer.empty_partition_cache()


def base_optimizer(engine: Any) -> Any:
    """The AdamW inside DeepSpeed's wrapper."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def weights_digest(engine: Any) -> str:
    """SHA-256 over this worker's weights and masters: equal exactly where every bit is."""
    import hashlib

    digest = hashlib.sha256()
    shards = read_shards(engine)
    for tensor in [*shards.working, *shards.masters]:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

"""The DeepSpeed engine: build, snapshot, restore, save. The only file that imports deepspeed.

One engine serves a gang's whole life. Building one per trial would cost seconds and, under ZeRO-3, leak the
shard; instead the first state is kept (each worker its own part) and put back in place before every trial.
"""

from __future__ import annotations

import contextlib
import copy
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ray_unlearn.config import UserError
from ray_unlearn.training.engine_config import engine_config

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
# Its autotuner, which nothing here uses, would load all of MLflow where that is installed.
_is_hidden = sys.modules.setdefault("mlflow", None) is None  # type: ignore[arg-type]
import deepspeed  # noqa: E402

if _is_hidden:
    del sys.modules["mlflow"]


def build_engine(
    scorer: nn.Module,
    zero_stage: int,
    precision: str,
    device: torch.device,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """An engine with AdamW at learning rate 0 (set before each trial), gradients averaged over the workers.

    Learning rate 0 matters: ZeRO-0 in bf16 steps once while it is built, which must change nothing.
    torch.distributed must be initialised. Raises what DeepSpeed raises.
    """
    if device.type == "cpu":
        # The shared-memory collectives would be compiled for a minute; gloo does the same job. DeepSpeed
        # keeps this table editable and falls back by itself.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    config = engine_config(zero_stage, precision, settings)
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", dist_init_required=False)
    engine, *_ = deepspeed.initialize(
        model=scorer, model_parameters=[p for p in scorer.parameters() if p.requires_grad], config=config
    )
    return engine


def check_settings(settings: Mapping[str, Any], where: str) -> None:
    """Raise UserError naming the first key or value that DeepSpeed itself would refuse."""
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    for section, kind in (("zero_optimization", DeepSpeedZeroConfig), ("bf16", DeepSpeedBF16Config)):
        try:
            kind(**settings.get(section, {}))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join([section, *map(str, first["loc"])])
            raise UserError(f"{where}: {place}: {first['msg']}. Mend the file") from None


def set_hyperparameters(engine: Any, learning_rate: float, weight_decay: float, max_grad_norm: float) -> None:
    """Write the optimizer's settings for the next step."""
    for group in _base_optimizer(engine).param_groups:
        group["lr"], group["weight_decay"] = learning_rate, weight_decay
    engine.optimizer.clip_grad = max_grad_norm
    engine._config.gradient_clipping = max_grad_norm


def backward(engine: Any, loss: Tensor, is_last: bool) -> None:
    """Accumulate this micro-batch's gradients; on the last one they are reduced over the workers."""
    engine.set_gradient_accumulation_boundary(is_boundary=is_last)
    engine.backward(loss, scale_wrt_gas=False)


def gather_trained(engine: Any, rank: int) -> dict[str, Tensor]:
    """All weights by name on the first worker's CPU, gathered shard by shard; empty on the others.

    Every worker must call it.
    """
    model = engine.module.model
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            if rank == 0:
                state[name] = parameter.detach().cpu().clone()
    if rank == 0:
        state |= {n: b.detach().cpu() for n, b in model.named_buffers() if n in model.state_dict()}
    return state


@contextlib.contextmanager
def changed_linear_weights(engine: Any, rank: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, every linear layer but the head has the weights `change` makes of them; after, its own again.

    Adapters are merged into what is changed, and have no effect of their own inside. `change` takes and gives a
    matrix, and must give the same on every worker. Every worker must enter it.
    """
    model = engine.module.model
    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    adapted = {id(m.base_layer): m for m in model.modules() if hasattr(m, "base_layer")}
    adapters = {id(part) for m in adapted.values() for part in m.modules() if part is not m.base_layer}
    saved: list[tuple[Any, Tensor]] = []
    for layer in layers:
        if id(layer) in adapters:
            continue
        around = adapted.get(id(layer))
        saved.append((layer.weight, _shard(layer.weight).detach().clone()))
        needed = [*(around or layer).parameters()]
        is_sharded = hasattr(layer.weight, "ds_id")
        with torch.no_grad(), deepspeed.zero.GatheredParameters(needed, modifier_rank=0, enabled=is_sharded):
            if rank == 0 or not is_sharded:
                delta = sum(around.get_delta_weight(name) for name in around.active_adapters) if around else 0.0
                layer.weight.data.copy_(change(layer.weight.data + delta))
    _drop_gathered(engine)
    try:
        with model.disable_adapter() if adapted else contextlib.nullcontext():
            yield
    finally:
        _drop_gathered(engine)
        with torch.no_grad():
            for weight, value in saved:
                _shard(weight).copy_(value)


def _shard(parameter: Any) -> Tensor:
    """This worker's part of a parameter: its ZeRO-3 shard, else the whole."""
    return parameter.ds_tensor.data if hasattr(parameter, "ds_id") else parameter.data


def _base_optimizer(engine: Any) -> Any:
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _weights(engine: Any) -> tuple[list[Tensor], list[Tensor]]:
    """This worker's part of the trained weights: in working precision, and the fp32 masters where they are apart."""
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    optimizer = engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return list(optimizer.fp16_partitioned_groups_flat), list(optimizer.fp32_partitioned_groups_flat)
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        return list(optimizer.bit16_groups_flat), list(optimizer.single_partition_of_fp32_groups)
    if isinstance(optimizer, BF16_Optimizer):
        return list(optimizer.bf16_groups_flat), list(optimizer.fp32_groups_flat_partition)
    if hasattr(optimizer, "fp32_groups_flat"):
        return list(optimizer.fp16_groups_flat), list(optimizer.fp32_groups_flat)
    if hasattr(optimizer, "fp32_groups"):
        return [p for g in optimizer.fp16_groups for p in g], [p for g in optimizer.fp32_groups for p in g]
    return [p for p in engine.module.parameters() if p.requires_grad], []


def _drop_gathered(engine: Any) -> None:
    """ZeRO-3 may leave weights gathered after a forward pass; they would outlive a change of their shards."""
    if hasattr(engine.optimizer, "empty_partition_cache"):
        engine.optimizer.empty_partition_cache()


@dataclass(frozen=True)
class Kept:
    """One worker's trained weights at some moment: in working precision, and the fp32 masters where apart."""

    working: list[Tensor]
    masters: list[Tensor]


class Snapshot:
    """The engine's first state, and the way back to it: bit-identical on CPU for every ZeRO stage.

    Take it right after `build_engine`. Holds one copy of the worker's weights and masters (2 + 4 bytes a
    parameter of its shard in bf16, 4 or 8 in fp32); optimizer moments are zeroed in place, not copied, unless
    the engine was born with some. Only trainable parameters are kept: frozen ones do not change.
    """

    @torch.no_grad()
    def __init__(self, engine: Any) -> None:
        working, masters = _weights(engine)
        self._working = [t.detach().clone() for t in working]
        self._masters = [t.detach().clone() for t in masters]
        self._buffers = [b.detach().clone() for b in engine.module.buffers()]
        base = _base_optimizer(engine)
        self._groups = [{k: copy.deepcopy(v) for k, v in g.items() if k != "params"} for g in base.param_groups]
        self._moments = {
            id(p): {k: v.detach().clone() if torch.is_tensor(v) else v for k, v in state.items()}
            for p, state in base.state.items()
        }
        scaler = getattr(engine.optimizer, "loss_scaler", None)
        self._scaler = copy.deepcopy(vars(scaler)) if hasattr(scaler, "__dict__") else None

    @torch.no_grad()
    def restore(self, engine: Any) -> None:
        """Put weights, masters, moments, counters and half-accumulated gradients back, in place."""
        _drop_gathered(engine)
        working, masters = _weights(engine)
        for tensor, first in zip([*working, *masters], [*self._working, *self._masters], strict=True):
            tensor.data.copy_(first)
        for buffer, first in zip(engine.module.buffers(), self._buffers, strict=True):
            buffer.copy_(first)
        base = _base_optimizer(engine)
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
        working, masters = _weights(engine)
        pairs = zip([*working, *masters], [*self._working, *self._masters], strict=True)
        return all(torch.equal(tensor, first) for tensor, first in pairs)

    @torch.no_grad()
    def kept(self, engine: Any) -> Kept:
        """A copy of this worker's trained weights and masters as they are now."""
        working, masters = _weights(engine)
        return Kept([t.detach().clone() for t in working], [t.detach().clone() for t in masters])

    def start_from(self, engine: Any, kept: Kept) -> None:
        """Kept weights with a new optimizer: as if training began with them."""
        self.restore(engine)
        self.put_back(engine, kept)

    @torch.no_grad()
    def put_back(self, engine: Any, kept: Kept) -> None:
        """Kept weights and masters; optimizer and counters stay as they are."""
        working, masters = _weights(engine)
        self._put(engine, [*working, *masters], [*kept.working, *kept.masters])

    @torch.no_grad()
    def move_along_line(self, engine: Any, kept: Kept, alpha: float) -> None:
        """First weights + alpha (kept - first): a point on the line through both models, masters likewise."""

        def between(first: Tensor, end: Tensor) -> Tensor:
            return (first.float() + alpha * (end.float() - first.float())).to(first.dtype)

        working = [between(*pair) for pair in zip(self._working, kept.working, strict=True)]
        masters = [between(*pair) for pair in zip(self._masters, kept.masters, strict=True)]
        self.put_back(engine, Kept(working, masters))

    @contextlib.contextmanager
    def starting_weights(self, engine: Any) -> Iterator[None]:
        """The engine computes with the starting model inside, and with the trained one again after.

        Where a method needs whole distributions or hidden states of the starting model, this is the reference
        model: no second one stays in memory. Costs two copies of the worker's trained weights in working
        precision in time, and one in memory while inside (under LoRA that is the adapters alone).
        """
        working, _ = _weights(engine)
        now = [t.detach().clone() for t in working]
        self._put(engine, working, self._working)
        try:
            yield
        finally:
            self._put(engine, working, now)

    @staticmethod
    @torch.no_grad()
    def _put(engine: Any, tensors: list[Tensor], values: list[Tensor]) -> None:
        _drop_gathered(engine)
        for tensor, value in zip(tensors, values, strict=True):
            tensor.data.copy_(value)

    @staticmethod
    def _drop_gradients(engine: Any) -> None:
        optimizer = engine.optimizer
        optimizer.zero_grad()
        for parameter in engine.module.parameters():
            parameter.grad = None
        for name in (
            "averaged_gradients",
            "all_grad_tensors",
        ):  # ZeRO-1/2 keep half-accumulated gradients here
            for key in list(getattr(optimizer, name, {}) or {}):
                getattr(optimizer, name)[key] = None
        if hasattr(optimizer, "micro_step_id"):
            # -1 before the first micro-batch under ZeRO-1/2, 0 under ZeRO-3.
            optimizer.micro_step_id = -1 if hasattr(optimizer, "all_grad_tensors") else 0


def weights_digest(engine: Any) -> str:
    """SHA-256 over this worker's weights and masters: equal exactly where every bit is."""
    import hashlib

    digest = hashlib.sha256()
    for tensor in [part for parts in _weights(engine) for part in parts]:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

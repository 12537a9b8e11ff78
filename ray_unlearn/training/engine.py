"""The DeepSpeed engine: build it, step with it, read its weights. The only file that imports deepspeed.

One engine serves a gang's whole life. Building one per trial would cost seconds and, under ZeRO-3, leak the
shard; instead the first state is kept (`snapshot`) and put back in place before every trial.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ray_unlearn.config import UserError
from ray_unlearn.training.engine_config import engine_config
from ray_unlearn.training.shards import base_optimizer, drop_gathered, shard_of

LAUNCHERS = (
    *("OMPI_", "PMI_", "PMI2_", "PMIX_", "MPI_LOCAL", "MV2_COMM_", "HYDI_"),
    *("AZUREML_EXPERIMENT_ID", "SM_TRAINING_ENV", "DLTS_JOB_ID"),
)
"""What the variables begin with by which DeepSpeed and accelerate take a process for one of MPI's or of a cloud's: left
in a shell (a notebook that mpirun started), they say nothing of a worker here."""
for _name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
    del os.environ[_name]
# Said before it is imported: the worker's device decides, and a CPU's worker may well see a GPU. Who builds no engine
# has not said it.
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
# Its autotuner, which nothing here uses, would load all of MLflow where that is installed.
_is_hidden = sys.modules.setdefault("mlflow", None) is None  # type: ignore[arg-type]
import deepspeed  # noqa: E402

if _is_hidden:
    del sys.modules["mlflow"]


def connect(device: torch.device) -> None:
    """Let DeepSpeed use the process group that there is. torch.distributed must be initialised."""
    if device.type == "cpu":
        # The shared-memory collectives would be compiled for a minute; gloo does the same job. DeepSpeed
        # keeps this table editable and falls back by itself.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", dist_init_required=False)


@contextlib.contextmanager
def sharded_loading(precision: str, settings: Mapping[str, Any]) -> Iterator[None]:
    """Inside, transformers builds models whose weights are sharded from the start (ZeRO-3): the first worker reads
    them, and sends each one to all as it comes. Every worker must load the same model inside."""
    from transformers.integrations import HfDeepSpeedConfig

    # Kept alive inside and dropped after: transformers asks whether it is there, whatever is loaded.
    switch = HfDeepSpeedConfig(engine_config(3, precision, settings))
    try:
        yield
    finally:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()
        del switch


def num_elements(parameter: Any) -> int:
    """Of the whole parameter, also where this worker holds a shard."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def build_engine(
    scorer: nn.Module,
    zero_stage: int,
    precision: str,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """An engine with AdamW at learning rate 0 (set before each trial), gradients averaged over the workers.

    Learning rate 0 matters: ZeRO-0 in bf16 steps once while it is built, which must change nothing. `connect` comes
    before. Raises what DeepSpeed raises.
    """
    config = engine_config(zero_stage, precision, settings)
    engine, *_ = deepspeed.initialize(
        model=scorer, model_parameters=[p for p in scorer.parameters() if p.requires_grad], config=config
    )
    return engine


class Scoring:
    """What stands for an engine where nothing is trained and every worker holds all weights."""

    optimizer = None

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *inputs: Any) -> Any:
        return self.module(*inputs)


def build_scoring(scorer: nn.Module, zero_stage: int, precision: str, settings: Mapping[str, Any]) -> Any:
    """An engine without an optimizer: DeepSpeed's where weights are sharded (ZeRO-3), else the model itself."""
    if zero_stage != 3:
        return Scoring(scorer)
    config = engine_config(zero_stage, precision, settings)
    del config["optimizer"]
    return deepspeed.initialize(model=scorer, config=config)[0]


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
    for group in base_optimizer(engine).param_groups:
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

    These are the layers that bitsandbytes and torchao quantise: heads, tied or not, embeddings and experts that lie
    fused in one parameter are left as they are. Adapters are merged into whatever they are on, changed or not, and
    have no effect of their own inside. `change` takes and gives a matrix, and must give the same on every worker. Every
    worker must enter it. Raises RuntimeError where an adapter cannot be merged.
    """
    model = engine.module.model
    adapters = _adapters_by_weight(model)
    changed = {id(weight) for weight in linear_weights(model)}
    turned = {id(m.weight) for m in model.modules() if isinstance(m, Conv1D)}  # [in, out], where Linear has [out, in]
    weights = {id(weight): weight for weight in [*linear_weights(model), *(w for w, _ in adapters.values())]}
    saved = [(weight, shard_of(weight).detach().clone()) for weight in weights.values()]
    for key, weight in weights.items():
        around = adapters[key][1] if key in adapters else []
        needed = [weight, *(p for adapter in around for p in adapter.parameters() if p is not weight)]
        is_sharded = hasattr(weight, "ds_id")
        with torch.no_grad(), deepspeed.zero.GatheredParameters(needed, modifier_rank=0, enabled=is_sharded):
            if rank == 0 or not is_sharded:
                value = weight.data
                for adapter in around:
                    for name in adapter.active_adapters:
                        value = value + _delta(adapter, name, value)
                if key in changed:
                    value = change(value.T).T if key in turned else change(value)
                weight.data.copy_(value)
    drop_gathered(engine)
    try:
        with model.disable_adapter() if adapters else contextlib.nullcontext():
            yield
    finally:
        drop_gathered(engine)
        with torch.no_grad():
            for weight, value in saved:
                shard_of(weight).copy_(value)


def linear_weights(model: Any) -> list[Any]:
    """The matrices of the model's own linear layers but the head; adapters are no layers of its own."""
    head = model.get_output_embeddings()
    wrappers = [m for m in model.modules() if hasattr(m, "get_delta_weight")]
    parts = {id(part) for m in wrappers for name in m.adapter_layer_names for part in getattr(m, name).modules()}
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    return [layer.weight for layer in layers if id(layer) not in parts]


def _adapters_by_weight(model: nn.Module) -> dict[int, tuple[Any, list[Any]]]:
    """By id of a parameter that has adapters on it, the parameter and they."""
    found: dict[int, tuple[Any, list[Any]]] = {}
    wrapper: Any
    for wrapper in model.modules():
        if hasattr(wrapper, "get_delta_weight"):
            # On a layer's weight, or on one parameter of a module, as fused experts have them.
            own = hasattr(wrapper, "get_param")
            weight = wrapper.get_param() if own else wrapper.get_base_layer().weight
            found.setdefault(id(weight), (weight, []))[1].append(wrapper)
    return found


def _delta(adapter: Any, name: str, value: Tensor) -> Tensor:
    """What merging the adapter adds."""
    delta = adapter.get_delta_weight(name)
    if delta.shape != value.shape:
        raise RuntimeError(f"an adapter on a {type(adapter.get_base_layer()).__name__} cannot be merged for the attack")
    return delta

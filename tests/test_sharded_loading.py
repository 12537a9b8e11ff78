"""Weights that are sharded while they are read make the same trial and the same files as whole ones."""

import contextlib
import hashlib
import json
import multiprocessing
import os
from pathlib import Path
from unittest import mock

import pytest

WORKERS = 2


def serve(rank: int, store: str, model: str, out: str, is_sharded: bool, lora: int) -> None:
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(rank)}
    import torch
    import torch.distributed as dist

    from ray_unlearn.config import GangConfig, TrialConfig
    from ray_unlearn.training import engine
    from ray_unlearn.training.in_process import run_local
    from ray_unlearn.training.shards import weights_digest
    from ray_unlearn.training.trial import Job
    from ray_unlearn.training.worker import Worker
    from tests.tiny import tiny_task

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORKERS)
    whole = mock.patch.object(engine, "sharded_loading", return_value=contextlib.nullcontext())
    with contextlib.nullcontext() if is_sharded else whole:
        torch.manual_seed(0)
        gang = GangConfig(num_workers=WORKERS, zero_stage=3, max_tokens=100, lora_rank=lora)
        worker = Worker(tiny_task(Path(model)), gang, torch.device("cpu"))
    trial = TrialConfig("a", "simnpo", {"beta": 2.5, "gamma": 0.5}, 1.0, 3e-3, epochs=1, batch_size=8)
    reports = run_local(worker, Job("job", trial, points=False, save_to=f"{out}/model"))
    found = {
        "digest": weights_digest(worker.engine),
        "metrics": dict(reports[-1].metrics()),
        "held": sum(p.ds_tensor.numel() for p in worker.engine.module.parameters()),
        "parameters": worker.rank.num_parameters,
    }
    Path(out, f"{rank}.json").write_text(json.dumps(found))


def run(folder: Path, model: Path, is_sharded: bool, lora: int) -> tuple[list[dict], str]:
    """What each worker found, and the digest of the saved weights."""
    folder.mkdir()
    context = multiprocessing.get_context("spawn")
    shared = (str(folder / "store"), str(model), str(folder), is_sharded, lora)
    processes = [context.Process(target=serve, args=(rank, *shared)) for rank in range(WORKERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORKERS)]
    return found, hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("lora", [pytest.param(0, marks=pytest.mark.slowest), 4])
def test_a_trial_and_a_saved_model_are_those_of_whole_loading(tiny_model, tmp_path, lora):
    sharded, whole = (run(tmp_path / str(on), tiny_model, on, lora) for on in (True, False))
    assert sharded == whole
    assert sharded[0][0]["held"] < 0.6 * sharded[0][0]["parameters"] * (1 if not lora else 1.5)


def test_weights_read_into_a_device_are_those_read_into_the_host(tiny_model):
    import torch

    from ray_unlearn.models.loading import load_model

    plain, mapped = (load_model(str(tiny_model), "fp32", device).state_dict() for device in ("cpu", "cpu:0"))
    assert plain.keys() == mapped.keys()
    assert all(torch.equal(plain[name], mapped[name]) for name in plain)

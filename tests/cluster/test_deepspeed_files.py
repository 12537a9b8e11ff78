"""The DeepSpeed files are what we build, DeepSpeed takes them, and a search can be given them."""

import dataclasses
import json
from pathlib import Path

import pytest

from ray_unlearn.config import GangConfig, TrialConfig
from ray_unlearn.training.engine_config import engine_config, load_settings
from tests.tiny import tiny_task

FOLDER = Path(__file__).parents[2] / "cluster" / "deepspeed"
FILES = {"zero2": 2, "zero3": 3, "zero3_offload": 3}
TRIAL = TrialConfig("a", "simnpo", {"beta": 2.5, "gamma": 0.5}, 1.0, 3e-3, epochs=1, batch_size=8, evaluations=1)


def content(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def test_each_file_of_the_folder_is_tested():
    assert {path.stem for path in FOLDER.iterdir()} == set(FILES)


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_a_plain_file_is_what_our_engine_is_built_with_on_a_gpu(name):
    assert content(name) == engine_config(FILES[name], "bf16")


def test_the_offload_file_differs_by_offload_alone():
    plain, offload = content("zero3"), content("zero3_offload")
    zero = offload["zero_optimization"]
    assert {zero.pop("offload_optimizer")["device"], zero.pop("offload_param")["device"]} == {"cpu"}
    assert offload == plain


@pytest.mark.parametrize("name", FILES)
def test_an_engine_is_built_from_the_file_and_repeats_a_trial_bit_for_bit(name, tiny_model):
    from ray_unlearn.training.engine import check_settings
    from ray_unlearn.training.in_process import local_worker, run_local
    from ray_unlearn.training.shards import weights_digest
    from ray_unlearn.training.trial import Job

    settings = load_settings(FOLDER / f"{name}.json")
    check_settings(settings, name)
    gang = GangConfig(zero_stage=FILES[name], precision="bf16", max_tokens=100, deepspeed=settings)
    worker = local_worker(tiny_task(tiny_model), gang)
    config = worker.engine._config
    assert int(config.zero_config.stage) == FILES[name]
    assert config.bfloat16_config.enabled
    assert (config.zero_config.offload_optimizer is not None) == name.endswith("offload")

    def measured(trial: TrialConfig) -> tuple:
        (report,) = run_local(worker, Job("job", trial))
        return report.forget_loss, report.profiles, weights_digest(worker.engine)

    first = measured(TRIAL)
    assert measured(dataclasses.replace(TRIAL, learning_rate=1e-2)) != first
    assert measured(TRIAL) == first


@pytest.mark.parametrize("name", FILES)
def test_deepspeed_itself_accepts_the_whole_file(name, tiny_model):
    from ray_unlearn.training.in_process import local_worker

    local_worker(tiny_task(tiny_model), GangConfig())  # DeepSpeed wants a process group
    from deepspeed.runtime.config import DeepSpeedConfig

    config = DeepSpeedConfig(str(FOLDER / f"{name}.json"))
    assert (config.train_micro_batch_size_per_gpu, config.gradient_accumulation_steps) == (1, 1)

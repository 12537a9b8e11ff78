"""A user's DeepSpeed file: what it may change is laid over ours, and everything else is refused in one line."""

import json

import pytest

from ray_unlearn.commands.resources import gang_config
from ray_unlearn.config import GangConfig
from ray_unlearn.training.engine_config import engine_config, load_settings
from ray_unlearn.training.placement import Machine
from tests.test_cli import run


def written(folder, content) -> str:
    path = folder / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


ZERO = {"stage": 3}


def test_the_users_sections_are_laid_over_ours_key_by_key():
    settings = {"zero_optimization": {"stage": 3, "sub_group_size": 7}, "bf16": {"check_grad_overflow": False}}
    config = engine_config(3, "bf16", settings)
    assert config["zero_optimization"]["sub_group_size"] == 7
    assert config["zero_optimization"]["overlap_comm"] is False, "ours stays where the user says nothing"
    assert config["bf16"] == {"enabled": True, "check_grad_overflow": False}
    assert engine_config(3, "bf16")["zero_optimization"].get("sub_group_size") is None, "the next engine knows nothing"


def test_what_we_own_may_stand_in_the_file_with_our_value(tmp_path):
    from pathlib import Path

    content = engine_config(3, "bf16", {"zero_optimization": {"sub_group_size": 7}})
    settings = load_settings(Path(written(tmp_path, content)))
    assert set(settings) == {"zero_optimization", "bf16"}
    assert engine_config(3, "bf16", settings) == content


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", ["is no JSON"]),
        ([1], ["names no ZeRO stage"]),
        ({"bf16": {"enabled": True}}, ["names no ZeRO stage", '"stage": 2']),
        ({"zero_optimization": {"stage": 5}}, ["names no ZeRO stage"]),
        ({"zero_optimization": ZERO, "optimizer": {"type": "Adam"}}, ["optimizer is ", "Remove it"]),
        ({"zero_optimization": ZERO, "scheduler": {"type": "WarmupLR"}}, ["scheduler is not supported"]),
        ({"zero_optimization": ZERO, "train_micro_batch_size_per_gpu": 8}, ["train_micro_batch_size_per_gpu is 1"]),
        ({"zero_optimization": ZERO, "train_batch_size": 8}, ["train_batch_size is not supported"]),
        ({"zero_optimization": ZERO, "gradient_accumulation_steps": 4}, ["gradient_accumulation_steps is 1"]),
        ({"zero_optimization": ZERO, "gradient_clipping": 0.5}, ["gradient_clipping is 1.0"]),
        ({"zero_optimization": ZERO, "fp16": {"enabled": True}}, ["fp16 is not supported"]),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/x"}}},
            ["with offload_param (as it is)", "offload to the CPU is supported"],
        ),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8}}, ["with zero_hpz_partition_size"]),
        ({"zero_optimization": ZERO, "bf16": {"enabled": "auto"}}, ["bf16.enabled is neither true nor false"]),
        ({"zero_optimization": {"stage": 2, "stagee": 1}}, ["zero_optimization.stagee"]),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": -1}}, ["zero_optimization.reduce_bucket_size"]),
        ({"zero_optimization": {"stage": 3}}, ["--zero 2", "names stage 3"]),
    ],
)
def test_what_cannot_be_taken_is_one_line_and_exit_code_2(capfd, tmp_path, content, says):
    stage = ["--zero", "2"] if says[0] == "--zero 2" else []
    file = written(tmp_path, content)
    code, _, errors = run(capfd, "tune", "--benchmark", "wmdp", "--deepspeed", file, *stage, "--out", str(tmp_path))
    assert code == 2
    (line,) = (line for line in errors.splitlines() if line.startswith("ray_unlearn: "))
    assert "--deepspeed" in line
    for words in says:
        assert words in line


def test_a_file_that_is_not_there_is_named(capfd, tmp_path):
    code, _, errors = run(capfd, "tune", "--benchmark", "wmdp", "--deepspeed", "nowhere.json", "--out", str(tmp_path))
    assert code == 2
    assert "--deepspeed nowhere.json: cannot be read" in errors


def test_the_files_stage_and_precision_are_the_gangs():
    settings = {"zero_optimization": {"stage": 3}, "bf16": {"enabled": False}}
    one, none = (Machine((1,) * gpus, 4, 80e9, 1e14, 1e12) for gpus in (1, 0))
    gang = gang_config(None, None, one, settings)
    assert (gang.zero_stage, gang.precision, gang.deepspeed) == (3, "fp32", settings)
    assert gang_config(None, None, one, {"zero_optimization": {"stage": 1}}).precision == "bf16"
    assert gang_config(None, None, none) == GangConfig(zero_stage=0), "one CPU worker has nothing to shard"


def test_a_search_with_a_file_says_its_stage_before_it_runs(capfd, tmp_path):
    file = written(tmp_path, {"zero_optimization": {"stage": 1}})
    options = ["--benchmark", "synthetic", "--deepspeed", file, "--dry-run", "--out", str(tmp_path / "out")]
    code, output, _ = run(capfd, "tune", *options)
    assert code == 0
    assert "ZeRO-1" in output

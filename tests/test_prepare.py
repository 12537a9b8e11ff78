"""Target and retrained models: what is made, what is not made twice, and what the user is told."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import Profile
from ray_unlearn.commands.prepare import (
    MADE_WITH,
    Made,
    Pace,
    check_same,
    check_settings,
    default_rate,
    describe_knowledge,
    read_made,
    settings_of,
)
from ray_unlearn.config import GangConfig, TrialConfig, UserError
from ray_unlearn.models.fingerprints import weights_digest
from ray_unlearn.training.outcome import Report
from tests.benchmarks.test_custom import NAMES, TOWNS, definition, pair, pairs, write_data, write_jsonl
from tests.tiny import write_text_model

TRIAL = TrialConfig("finetune", "finetune", learning_rate=1e-4, epochs=2, batch_size=4)
SETTINGS = settings_of(TRIAL, GangConfig())


def test_after_every_epoch_speed_and_time_left_are_said_over_both_parts():
    said: list[str] = []
    pace = Pace({"target": 600, "retrained": 400}, 2, said.append)

    def epoch(part: str, number: int, seconds: float) -> None:
        pace.epoch(part, Report(number, {}, False, forget_loss=1.5, train_seconds=seconds))

    epoch("target", 1, 6.0)
    epoch("target", 2, 12.0)
    epoch("retrained", 1, 8.0)
    epoch("retrained", 2, 12.0)
    assert said == [
        "target: epoch 1/2, loss 1.500, 100 tokens/s, 14 s of training left",
        "target: epoch 2/2, loss 1.500, 100 tokens/s, 8 s of training left",
        "retrained: epoch 1/2, loss 1.500, 80 tokens/s, 5 s of training left",
        "retrained: epoch 2/2, loss 1.500, 83 tokens/s, training done",
    ]


def test_a_part_without_a_word_on_how_it_was_made_is_not_taken(tmp_path):
    assert read_made(tmp_path) == Made()
    (tmp_path / "target").mkdir()
    for content in (None, "{", '{"settings": 3, "identity": {}}'):
        if content is not None:
            (tmp_path / MADE_WITH).write_text(content)
        with pytest.raises(UserError, match=f"holds target/ already, and no {MADE_WITH}"):
            read_made(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"learning_rate": 1e-3}, "--learning-rate 0.001"),
        ({"epochs": 3}, "--epochs 3"),
        ({"schedule": "constant"}, "--schedule constant"),
    ],
)
def test_parts_made_with_other_settings_are_not_mixed(tmp_path, change, says):
    made = Made(("target",), SETTINGS, {"data": "a"})
    check_settings(tmp_path, made, SETTINGS)
    check_same(tmp_path, made, {"data": "a"})
    with pytest.raises(UserError, match=says):
        check_settings(tmp_path, made, settings_of(replace(TRIAL, **change), GangConfig()))
    with pytest.raises(UserError, match="--lora 4"):
        check_settings(tmp_path, made, settings_of(TRIAL, GangConfig(lora_rank=4)))
    with pytest.raises(UserError, match="the data changed since target/ was made"):
        check_same(tmp_path, made, {"data": "b"})
    check_settings(tmp_path, Made(), settings_of(replace(TRIAL, **change), GangConfig()))


def test_a_small_model_gets_a_larger_rate_and_adapters_ten_times_that(tiny_model):
    rate = default_rate(str(tiny_model), 0)
    assert 1e-4 < rate < 1.0
    assert default_rate(str(tiny_model), 2) == pytest.approx(10 * rate)


def test_a_target_that_knows_nothing_more_than_the_retrained_model_is_said():
    same = Profile({"forget_accuracy": 0.3, "general_accuracy": 0.6}, {})
    (_, advice), can_begin = describe_knowledge(load_benchmark("wmdp"), same, same)
    assert not can_begin
    assert "No search could begin" in advice
    assert "--learning-rate" in advice


@pytest.fixture
def staff(tmp_path: Path) -> tuple[str, ...]:
    """Options for own data of which the target can learn enough to be told from the retrained model."""
    tables = {k: v for k, v in definition().items() if k in ("name", "forget", "retain", "hold_out")}
    path = write_data(tmp_path, tables)
    couples = [f"{NAMES[i % 12]} {NAMES[(i + 1 + i // 12) % 12]}" for i in range(48)]
    write_jsonl(tmp_path / "forget.jsonl", [pair(name, "work", TOWNS[i * 5 % 12]) for i, name in enumerate(couples)])
    rows = [*pairs("work"), *pairs("live"), *pairs("sleep")]
    (tmp_path / "corpus.txt").write_text("\n".join(f"{row['question']} {row['answer']}" for row in rows))
    start = write_text_model(tmp_path / "base", tmp_path / "corpus.txt", vocabulary=400)
    return "prepare", "--benchmark", str(path), "--model", str(start), "--out", str(tmp_path / "models")


def begin(*options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "ray_unlearn.cli", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_interrupted_prepare_goes_on_with_the_part_that_is_missing(tmp_path, staff):
    options = (*staff, "--epochs", "40", "--batch-size", "6", "--learning-rate", "5e-3", "--schedule", "constant")
    out = tmp_path / "models"
    first = begin(*options)
    for line in first.stdout:
        if line.startswith("retrained: epoch 2/40"):
            first.send_signal(signal.SIGINT)
            break
    rest, errors = first.communicate(timeout=120)
    assert first.returncode == 130, rest + errors
    assert "The same command goes on" in rest
    assert {path.name for path in out.iterdir()} >= {"target", MADE_WITH}
    assert not (out / "retrained").exists()
    made = weights_digest(out / "target"), (out / "target" / "config.json").stat().st_mtime_ns

    other = begin(*(word if word != "5e-3" else "1e-3" for word in options))
    output, errors = other.communicate(timeout=120)
    assert other.returncode == 2, output + errors
    assert errors.count("\n") == 1
    assert "--learning-rate 0.001" in errors

    second = begin(*options)
    output, errors = second.communicate(timeout=200)
    assert second.returncode == 0, output + errors
    assert "target: is there already" in output
    assert "tokens/s" in output
    assert "target: epoch" not in output
    assert "From start to goal: forget_" in output
    assert made == (weights_digest(out / "target"), (out / "target" / "config.json").stat().st_mtime_ns)
    assert weights_digest(out / "retrained") != made[0]
    assert json.loads((out / "retrained" / "profile.json").read_text())["about"]["benchmark"] == "staff"

    third = begin(*options)
    output, errors = third.communicate(timeout=120)
    assert third.returncode == 0, output + errors
    assert "retrained: is there already" in output
    assert "epoch" not in output.replace("an epoch", "")
    AutoModelForCausalLM.from_pretrained(out / "retrained")

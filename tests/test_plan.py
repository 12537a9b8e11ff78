"""Planning: what is chosen follows from the arithmetic, and needs a config.json alone."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaConfig
from typer.testing import CliRunner

from ray_unlearn import cli
from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import Request
from ray_unlearn.commands import plan
from ray_unlearn.commands.options import Plan
from ray_unlearn.config import UserError
from ray_unlearn.models.loading import load_config
from ray_unlearn.models.sizes import count_parameters
from ray_unlearn.training.losses import find_method
from ray_unlearn.training.memory import PROCESS_BYTES, fitted, training_memory
from tests.commands import parse
from tests.tiny import write_text_model

SHAPES = {
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "intermediate_size": 8192},
    "7b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008},
    "70b": {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "intermediate_size": 28672},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Folders with a config.json and nothing else."""
    folder = tmp_path_factory.mktemp("configs")
    for name, shape in SHAPES.items():
        config = LlamaConfig(**shape, num_key_value_heads=8, vocab_size=32_000)
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(folder / name)
    assert [file.name for file in (folder / "7b").iterdir()] == ["config.json"]
    return {name: str(folder / name) for name in SHAPES}


def options(model: str, **changes) -> Plan:
    return replace(Plan(benchmark="tofu", model=model, gpus=8, gpu_memory=80.0, trials=20), **changes)


def test_a_small_model_gets_a_gpu_a_trial_and_the_rest_run_beside_it(models):
    made = plan.make_plan(options(models["1b"]))
    assert made.chosen is not None
    assert made.chosen.gang.num_workers == 1
    assert made.concurrent == 8
    assert made.device_hours == pytest.approx(8 * made.hours)


def test_a_model_too_large_for_one_gpu_is_sharded_over_several(models):
    made = plan.make_plan(options(models["7b"]))
    assert made.chosen is not None
    assert 2 <= made.chosen.gang.num_workers <= 8
    assert made.concurrent == 8 // made.chosen.gang.num_workers
    one = plan.make_plan(options(models["7b"], workers_per_trial=1, lora=0, zero=3))
    assert one.chosen is None
    assert "Nothing fits" in shown(one)


def test_adapters_of_the_same_model_fit_one_gpu(models):
    made = plan.make_plan(options(models["7b"], lora=16))
    assert made.num_trained < made.num_parameters / 50
    assert made.chosen is not None
    assert made.chosen.gang.num_workers == 1
    whole = plan.make_plan(options(models["7b"]))
    assert made.device_hours < whole.device_hours


def test_what_fits_nowhere_is_said_with_the_way_out(models):
    run = CliRunner().invoke(
        cli.app, ["plan", "-b", "tofu", "--model", models["70b"], "--gpus", "1", "--gpu-memory", "24"]
    )
    assert run.exit_code == cli.FAILED
    assert "Nothing fits" in run.output
    assert "--lora" in run.output


def test_the_command_is_one_that_runs_and_says_what_was_chosen(models):
    made = plan.make_plan(options(models["7b"], trials=7, split="forget05"))
    name, parsed = parse(shlex.split(made.command))
    assert (name, parsed["trials"], parsed["split"], parsed["model"]) == ("tune", 7, "forget05", models["7b"])
    assert int(parsed["zero"].value if hasattr(parsed["zero"], "value") else parsed["zero"]) == (
        made.chosen.gang.zero_stage
    )
    assert parsed["workers_per_trial"] == made.chosen.gang.num_workers


def test_the_search_would_size_itself_the_same(models):
    """The figures are those of `fit`, which `tune` takes its tokens and recomputation from."""
    made = plan.make_plan(options(models["7b"], zero=3, workers_per_trial=8))
    total, trained = count_parameters(models["7b"], 0, "")
    assert total == trained == made.num_parameters
    longest = made.amount.longest
    gang = replace(made.chosen.gang, max_tokens=1, checkpointing=False, row_length=longest)
    again = fitted(gang, load_config(models["7b"]), total, 80 * 2**30, 1)
    assert (again.max_tokens, again.checkpointing) == (
        made.chosen.gang.max_tokens,
        made.chosen.gang.checkpointing,
    )
    assert made.chosen.memory == training_memory(
        load_config(models["7b"]), replace(made.chosen.gang, row_length=longest), total, total, made.amount.answer_share
    )


def test_time_is_six_flop_a_parameter_and_token(models):
    made = plan.make_plan(options(models["1b"], methods=("ga",), length=100, tflops=1000.0))
    (cost,) = made.costs
    epochs = cost.tokens / (plan.STATED_SEQUENCES * 100)
    assert epochs == int(epochs) >= 1
    evaluations = 2
    flop = made.num_parameters * (6 * cost.tokens + 2 * evaluations * made.amount.scored_tokens)
    arithmetic = flop / (plan.EFFICIENCY * 1000e12)
    assert arithmetic < cost.seconds < 2 * arithmetic
    slower = plan.make_plan(options(models["1b"], methods=("ga",), length=100, tflops=500.0)).costs[0].seconds
    assert slower - cost.seconds == pytest.approx(arithmetic)


def test_data_that_cannot_be_read_are_said_to_be_assumed(models):
    made = plan.make_plan(options(models["1b"], length=200))
    assert "not read" in made.amount.says
    assert "assumed are 400 sequences of 200 tokens" in made.amount.says
    assert made.amount.forget_tokens == 80_000


def test_tokens_of_real_data_are_counted(tmp_path, tofu_data):
    model = str(write_text_model(tmp_path / "model", tofu_data / "full.json"))
    made = plan.make_plan(options(model, gpus=0, data=tofu_data, methods=("simnpo",), tflops=0.1))
    task = load_benchmark("tofu").load(Request("full", model, tofu_data))
    assert made.amount.forget_tokens == int(task.forget.lengths.sum())
    assert made.amount.scored_tokens > 0
    assert made.chosen is not None
    assert made.chosen.gang.precision == "fp32"
    assert made.chosen.gang.gpus_per_worker == 0


def test_methods_that_read_the_starting_models_distributions_are_charged_for_them(models):
    made = plan.make_plan(options(models["1b"], methods=("npo", "undial", "rmu")))
    extra = {cost.method: cost.reference_bytes for cost in made.costs}
    assert extra["npo"] == 0, "its log-probs are cached"
    assert extra["rmu"] == 0, "the trained weights come back from their masters"
    assert extra["undial"] > 0, "whole distributions"
    assert plan.reads_of_start(find_method("npo"), "kl") == {"distribution"}


def test_memory_of_a_cpu_is_shared_by_its_trials(models, monkeypatch):
    monkeypatch.setattr(plan, "measure_cpu", lambda: (100e9, 10e9))
    monkeypatch.setattr(plan, "granted_cpus", lambda: 16)
    monkeypatch.setattr(plan, "free_memory", lambda: 64 << 30)
    made = plan.make_plan(options(models["1b"], gpus=0))
    assert 1 <= made.concurrent < 16
    assert made.concurrent * (made.chosen.memory.peak + PROCESS_BYTES) <= 64 << 30
    assert parse(shlex.split(made.command))[1]["concurrent"] == made.concurrent


def shown(made: plan.Plan, details: bool = False) -> str:
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    plan.show(made, Console(file=out, width=80), details)
    return out.getvalue()


def test_the_table_has_every_stage_with_and_without_recomputation_in_80_columns(models):
    made = plan.make_plan(options(models["7b"], workers_per_trial=4))
    lines = shown(made, details=True).splitlines()
    (header,) = (line for line in lines if line.startswith("ZeRO"))
    assert header.split() == ["ZeRO", *["0", "0", "rec", "1", "1", "rec", "2", "2", "rec", "3", "3", "rec"]]
    (peaks,) = (line for line in lines if line.startswith("peak"))
    assert peaks.split()[1:] == [f"{fit.memory.peak / 2**30:.2f}" for fit in made.stages]
    (tokens,) = (line for line in lines if line.startswith("tokens "))
    assert tokens.count("no fit") == sum(not fit.fits for fit in made.stages) > 0
    assert max(map(len, lines[lines.index(header) :][:12])) <= 80


def test_the_answer_comes_first_and_the_tables_on_demand(models):
    made = plan.make_plan(options(models["7b"], workers_per_trial=4))
    fits, takes, _, command, _, *notes = shown(made).splitlines()
    assert fits.startswith("Fits: ")
    assert "4 GPUs a trial" in fits
    assert takes.startswith("Takes: about ")
    assert "GPU-hours" in takes
    assert command.startswith("ray_unlearn tune --benchmark tofu")
    assert notes[0].startswith("Data: ")
    assert "--details" in notes[-1]
    assert "ZeRO   " not in shown(made)


def test_json_has_the_same_figures(models):
    run = CliRunner().invoke(cli.app, ["plan", "-b", "tofu", "--model", models["1b"], "--gpus", "2", "--json"])
    assert run.exit_code == 0, run.output
    values = json.loads(run.output)
    assert len(values["stages"]) == 8
    for stage in values["stages"]:
        memory = stage["memory"]
        assert memory["peak"] == memory["states"] + memory["heap"] + max(
            memory["step"], memory["activations"] + memory["logits"]
        )
    assert values["command"].startswith("ray_unlearn tune")


def test_wrong_use_is_one_line(models, tmp_path):
    for changes, says in (
        ({"model": "nobody/no-such-model"}, "nobody/no-such-model"),
        ({"model": str(tmp_path)}, "no config.json"),
        ({"workers_per_trial": 16}, "--gpus 8 are too few"),
        ({"methods": ("simpno",)}, "simpno"),
        ({"trials": 0}, "--trials 0"),
    ):
        with pytest.raises(UserError, match=says) as error:
            plan.make_plan(options(**{"model": models["1b"], **changes}))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": Path("nowhere")}, "--data nowhere: no such folder"),
        ({"split": "chem"}, "--split chem: unknown. Choose one of: bio, cyber"),
        ({"data": Path()}, "it has no folder wmdp"),
        ({"revision": ("cais/wmdp",)}, "--revision cais/wmdp: is no pinned repository"),
    ],
)
def test_what_tune_would_refuse_of_the_data_is_refused(models, tmp_path, monkeypatch, change, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        plan.make_plan(options(models["1b"], benchmark="wmdp", **change))


def test_nothing_is_written(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan.make_plan(options(models["1b"]))
    assert list(Path().iterdir()) == []

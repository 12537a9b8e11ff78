"""What an export says of a model, and that names in it stay names."""

import hashlib
import json
import platform
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from safetensors.torch import load_file, save_file

from ray_unlearn.benchmarks.contract import Profile, Request
from ray_unlearn.commands import export
from ray_unlearn.commands import repeat_export as repeat
from ray_unlearn.commands.export import find_trial
from ray_unlearn.commands.model_card import Measured, describe_model
from ray_unlearn.commands.papers import cite
from ray_unlearn.commands.reopen import describe_local
from ray_unlearn.config import GangConfig, SearchConfig, TrialConfig, UserError
from ray_unlearn.models.fingerprints import stored_precision, weights_digest
from ray_unlearn.models.loading import DTYPES
from ray_unlearn.records.tables import LOCAL, SearchResults, write_json
from ray_unlearn.training.in_process import local_worker, run_local
from ray_unlearn.training.losses import METHODS
from ray_unlearn.training.trial import Job
from tests.tiny import tiny_task

ROW = {
    **{"trial_id": "npo-0001", "method": "npo", "alpha": 1.0, "status": "completed"},
    **{"forget": 0.91, "utility": 0.97, "objective": 0.94},
}
META = {
    "objective_text": "Forget falls to chance.",
    "metrics": {
        "forget_accuracy": "share of questions answered right",
        "quantised_forget_accuracy": "with linear weights in 4 bits: the same",
        "relearned_forget_accuracy": "after fine-tuning on a part of the forget set: the same",
    },
}


def card(
    base: str | None = "owner/name",
    metrics: dict | None = None,
    row: dict = ROW,
    run: dict | None = None,
    language: str = "",
    adapter: bool = False,
    **choices,
) -> str:
    config = SearchConfig(
        **{"name": "s", "benchmark": "wmdp", "methods": ("npo", "ga"), "trials": 9, "concurrent": 1},
        **{"objective": "combined", "utility_floor": 0.9, "seed": 3, "gang": GangConfig(), "model": "/home/me/m"},
        **{"scale": "full", **choices},
    )
    trial = TrialConfig("npo-0001", "npo", {"beta": 0.1}, retain_weight=2.5, learning_rate=1.2e-5, seed=3)
    metrics = metrics or {"forget_accuracy": 0.26}
    job = {"trial": trial.to_json(), "stop_after": 5, "alpha": row["alpha"], "adapter": False}
    measured = Measured(row, {"forget_accuracy": 0.55}, {"forget_accuracy": 0.25})
    made = {"model": base, "job": job, "metrics": metrics, "stored_in": "bf16", **(run or {})}
    return describe_model(config, META, row, measured, made, adapter, language)


def head(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_head_is_the_hubs():
    values = head(card())
    assert values["base_model"] == "owner/name"
    assert values["library_name"] == "transformers"
    assert values["tags"] == ["unlearning", "machine-unlearning", "ray_unlearn", "npo", "wmdp"]
    assert "datasets" not in values, "a folder's data are nobody's on the hub"
    assert "language" not in values
    assert "license" not in values, "nobody but the user can state it"
    assert "base_model" not in head(card("target")), "a folder's name is nobody's name on the hub"
    assert "base_model" not in head(card(None))


RUN = {
    "hashes": {"data revisions": "cais/mmlu@0f1e cais/wmdp@12ab"},
    "part": "bio",
    "scored": {"forget": 637, "forget_questions": 12},
}


def test_the_hub_s_own_reader_finds_data_language_and_every_figure(tmp_path):
    """What `huggingface_hub` reads of a repository's card, from a file."""
    metrics = {
        **{"forget_accuracy": 0.26, "relearned_forget_accuracy": 0.41, "forget_questions_above_chance": 0.5},
        **{"general_accuracy": 0.5, "mia_loss": float("nan")},
    }
    (tmp_path / "README.md").write_text(card(metrics=metrics, run=RUN, language="en"))
    read = ModelCard.load(tmp_path / "README.md").data
    assert (read.base_model, read.datasets, read.language) == ("owner/name", ["cais/mmlu", "cais/wmdp"], ["en"])
    _, results = model_index_to_eval_results(metadata_load(tmp_path / "README.md")["model-index"])
    assert {(r.task_type, r.dataset_type, r.dataset_config, r.dataset_split, r.dataset_revision) for r in results} == {
        ("text-generation", "cais/wmdp", "bio", "held-out half", "12ab")
    }
    assert {r.metric_type: (r.metric_value, r.metric_name) for r in results} == {
        "objective": (0.94, "objective (seed 3)"),
        "forget": (0.91, "forget (seed 3)"),
        "utility": (0.97, "utility (seed 3)"),
        "forget_accuracy": (0.26, "forget_accuracy (n = 637, seed 3)"),
        "relearned_forget_accuracy": (0.41, "relearned_forget_accuracy (n = 637, seed 3)"),
        "forget_questions_above_chance": (0.5, "forget_questions_above_chance (n = 12, seed 3)"),
        "general_accuracy": (0.5, "general_accuracy (seed 3)"),
    }
    assert read.eval_results == results


def test_the_snippet_is_python_and_every_method_has_its_paper_in_bibtex():
    for adapter in (False, True):
        text = card(adapter=adapter)
        (snippet,) = [block for block in text.split("```\n") if block.startswith("from ")]
        compile(snippet, "snippet", "exec")
        assert head(text)["library_name"] == ("peft" if adapter else "transformers")
        assert head(text)["base_model_relation"] == ("adapter" if adapter else "finetune")
    assert "@misc{arxiv-2404.05868,\n  author = {Zhang, Ruiqi and others}," in card()
    for method in METHODS.values():
        cited = cite(method.paper)
        assert cited.count("author = ") == cited.count("title = ") == cited.count("@") >= 2, method.name
        assert cited.count("{") == cited.count("}")


def test_limits_say_what_relearning_brings_back_where_it_was_measured():
    assert "By fine-tuning" not in card()
    text = card(metrics={"forget_accuracy": 0.26, "relearned_forget_accuracy": 0.41, "quantised_forget_accuracy": 0.3})
    sentence = "By fine-tuning on 20% of the forget set for 3 epochs, forget_accuracy goes from"
    assert f"{sentence} 0.260 to 0.410 (the starting model: 0.550)." in text


def test_the_card_has_method_settings_and_three_models_figures():
    text = card()
    for words in (METHODS["npo"].formula, "| beta | 0.1 |", "| learning_rate | 1.2e-05 |"):
        assert words in text
    assert "| epochs trained | 5 |" in text
    assert "| forget_accuracy | 0.550 | 0.250 | 0.260 | share of questions answered right |" in text
    assert "| forget | 0.910 |" in text
    assert "/home/me" not in text


@pytest.mark.parametrize("name", ["a/<script>x", "a/**b**|`c`", "a/[x](y)", 'a/"\n---\nlicense: mit'])
def test_a_models_name_is_text_in_the_card(name):
    text = card(name)
    assert head(text)["base_model"] == name
    assert "license" not in head(text)
    body = text.split("\n---\n", 1)[1]
    assert "<script>" not in body
    assert "**b**" not in body
    assert not re.search(r"(?<!\\)\[x", body)
    assert "\nlicense: mit" not in body


def test_limits_say_what_was_not_tried():
    alone = card()
    assert "Not tried on it: relearn, quantise, sample" in alone
    assert "One training run, seed 3" in alone
    assert "miniature" not in alone
    quantised = card(metrics={"forget_accuracy": 0.26, "quantised_forget_accuracy": 0.4})
    assert "Not tried on it: relearn, sample." in quantised
    assert "| quantised_forget_accuracy | – | – | 0.400 |" in quantised
    assert "After attacks" in quantised
    assert "A miniature" in card(scale="mini")
    assert "at 0.5 of the way" in card(row=ROW | {"alpha": 0.5})


def test_the_digest_is_over_tensors_and_not_over_files(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    for name, parts in (("one", [["a", "b"]]), ("two", [["b"], ["a"]])):
        (tmp_path / name).mkdir()
        for i, part in enumerate(parts):
            save_file({key: tensors[key] for key in part}, tmp_path / name / f"model-{i}.safetensors")
    assert weights_digest(tmp_path / "one") == weights_digest(tmp_path / "two")
    save_file({"a": tensors["a"].reshape(3, 2)}, tmp_path / "two" / "model-1.safetensors")
    assert weights_digest(tmp_path / "one") != weights_digest(tmp_path / "two")


def test_the_trial_is_the_chosen_or_the_named_one(tmp_path):
    failed = {**ROW, "trial_id": "npo-0002", "status": "failed"}
    results = SearchResults(tmp_path, {"chosen": "npo-0001"}, [ROW, failed], [], [])
    assert find_trial(results, "best") is ROW
    assert find_trial(results, "npo-0001") is ROW
    with pytest.raises(UserError, match=r"--trial npo-0003: no such trial.*trials\.csv"):
        find_trial(results, "npo-0003")
    with pytest.raises(UserError, match="has chosen none"):
        find_trial(SearchResults(tmp_path, {"chosen": None}, [ROW], [], []), "best")


def test_an_adapter_on_its_base_is_the_merged_model_and_an_interpolated_one_lies_between(tmp_path, tiny_model):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    worker = local_worker(tiny_task(tiny_model), GangConfig(lora_rank=2))
    trial = TrialConfig("t", "ga", learning_rate=1e-2, epochs=1, batch_size=8)
    job = Job("t", trial, evaluate=(), points=False)
    places = {"merged": {}, "adapter": {"adapter": True}, "half": {"adapter": True, "alpha": 0.5}}
    for name, choices in places.items():
        run_local(worker, Job(**{**vars(job), "save_to": str(tmp_path / name), **choices}))

    def logits(model) -> torch.Tensor:
        with torch.no_grad():
            return model(torch.arange(8)[None]).logits

    def adapted(name: str) -> torch.Tensor:
        return logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / name))

    start = logits(AutoModelForCausalLM.from_pretrained(tiny_model))
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(adapted("adapter"), merged)
    moved, half = (adapted("adapter") - start).norm(), (adapted("half") - start).norm()
    assert 0 < half < moved
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 2


def test_an_exported_adapter_can_be_repeated_from_its_file_and_names_no_place(tmp_path, tiny_model, monkeypatch):
    """The whole export, and its repetition, with a worker in this process in the place of a gang."""
    from ray_unlearn.search.held_out import held_out_job

    task = tiny_task(tiny_model)
    config = SearchConfig(
        **{"name": "s", "benchmark": "synthetic", "scale": "mini", "methods": ("graddiff",), "trials": 1},
        **{"concurrent": 1, "objective": "combined", "utility_floor": 0.9, "seed": 3, "model": str(tiny_model)},
        gang=GangConfig(lora_rank=2, reference_folder=str(tmp_path)),
    )
    worker = local_worker(task, config.gang)
    start = run_local(worker, held_out_job(config, 3))[-1].metrics("report")
    retrained = Profile({name: 2 * value + 1 for name, value in start.items()})
    task = replace(task, report=replace(task.report, retrained=retrained))
    monkeypatch.setattr(export, "run_job", lambda config, task, job, say: (start, run_local(worker, job)[-1], 1.0))
    monkeypatch.setattr(repeat, "run_job", export.run_job)
    monkeypatch.setenv("RAY_UNLEARN_CACHE", str(tmp_path / "cache"))
    settings = TrialConfig("graddiff-0000", "graddiff", learning_rate=1e-2, epochs=2, batch_size=8, seed=3).to_json()
    row = {**settings, **METHODS["graddiff"].parameters, "epoch": 1.0, "alpha": 0.5, "status": "interpolated"}
    write_json(tmp_path / LOCAL, describe_local(config, Request("mini", str(tiny_model)), None))
    meta = {"chosen": "graddiff-0000", "objective_text": "", "metrics": dict.fromkeys(start, "")}

    export.run_export(SearchResults(tmp_path, meta, [row], [], []), config, task, row, tmp_path / "out", True, print)

    out = tmp_path / "out"
    assert (out / "adapter_model.safetensors").is_file()
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == tiny_model.name
    for path in [*out.glob("*.json"), *out.glob("*.md")]:
        assert str(tmp_path.parent) not in path.read_text(), path.name
        assert str(tiny_model) not in path.read_text(), path.name
    assert (
        len({path.stat().st_mode & 0o777 for path in out.iterdir()} | {(tmp_path / LOCAL).stat().st_mode & 0o777}) == 1
    )
    then = repeat.read_run(out / "reproduce.json")
    written = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}
    assert then["files"] == {name: digest for name, digest in written.items() if name != "reproduce.json"}
    assert then["hardware"]["python"] == platform.python_version()
    assert datetime.fromisoformat(then["dates"]["exported"]) <= datetime.now(UTC)
    now = repeat.run_again(then, config, task)
    assert repeat.verdict(then, now) == repeat.IDENTICAL
    assert then["hashes"] == now["hashes"]
    assert repeat.compare_environments(then, now) == []


@pytest.mark.parametrize("lora", [0, 2])
@pytest.mark.parametrize(
    ("came", "asked", "goes"), [("bf16", "", "bf16"), ("fp32", "", "fp32"), ("bf16", "fp32", "fp32")]
)
def test_weights_go_out_in_the_precision_that_they_came_in_unless_said(tmp_path, tiny_model, lora, came, asked, goes):
    """Trained in fp32 all the same: what is written is that, rounded once."""
    from transformers import AutoModelForCausalLM

    place = shutil.copytree(tiny_model, tmp_path / "start")
    AutoModelForCausalLM.from_pretrained(place).to(getattr(torch, DTYPES[came])).save_pretrained(place)
    assert stored_precision(str(place)) == came
    worker = local_worker(tiny_task(place), GangConfig(lora_rank=lora))
    trial = TrialConfig("t", "ga", learning_rate=1e-3, epochs=1, batch_size=8)
    for name, precision in (("out", asked), ("full", "fp32")):
        run_local(worker, Job("t", trial, evaluate=(), points=False, save_to=str(tmp_path / name), precision=precision))
    assert stored_precision(str(tmp_path / "out")) == goes
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == DTYPES[goes]
    out, full, start = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "full", "start"))
    dtype = getattr(torch, DTYPES[goes])
    assert out.keys() == full.keys() == start.keys()
    assert all(torch.equal(out[name], full[name].to(dtype)) for name in out)
    assert not all(torch.equal(full[name], start[name].float()) for name in full)


def test_the_card_says_what_the_weights_are_stored_in():
    assert "Weights are stored in bf16; training and the figures below are in fp32." in card()

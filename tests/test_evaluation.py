"""`evaluate`: any model on the whole benchmark, in the columns of a search's trials."""

import json
import subprocess
import sys
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import Request
from ray_unlearn.commands.evaluate import as_exported
from ray_unlearn.commands.export import FORMAT
from ray_unlearn.commands.options import Evaluate
from ray_unlearn.config import UserError
from ray_unlearn.training.in_process import build_models


def recorded(folder, **config):
    content = dict.fromkeys(("model", "data", "job", "versions", "hardware", "hashes", "scores", "metrics"))
    then = {"benchmark": "tofu", "split": "forget05", "scale": "mini", "definition": None, **config}
    (folder / "reproduce.json").write_text(json.dumps({**content, "format": FORMAT, "config": then}))
    return Evaluate(model=str(folder))


def test_an_exported_model_says_itself_what_it_is_scored_on(tmp_path):
    asked = recorded(tmp_path)
    said = as_exported(asked)
    assert (said.benchmark, said.split, said.scale) == ("tofu", "forget05", "mini")
    said = as_exported(replace(asked, split="forget10", scale="full"))
    assert (said.benchmark, said.split, said.scale) == ("tofu", "forget10", "full")
    other = replace(asked, benchmark="wmdp")
    assert as_exported(other) == other


def test_a_model_that_does_not_say_needs_a_benchmark(tmp_path):
    with pytest.raises(UserError, match="Give --benchmark NAME"):
        as_exported(Evaluate(model=str(tmp_path)))
    with pytest.raises(UserError, match="its benchmark is own data"):
        as_exported(recorded(tmp_path, benchmark="staff", definition="staff.toml"))


@pytest.mark.slowest
@pytest.mark.timeout(420)
def test_a_model_is_scored_on_the_whole_benchmark_beside_its_start_and_under_attack(tmp_path):
    task = load_benchmark("wmdp").load(Request("mini", whole=True), build_models)
    command = [sys.executable, "-m", "ray_unlearn.cli", "evaluate", "--benchmark", "wmdp", "--scale", "mini"]
    command += ["--model", task.model, "--start", task.model, "--robustness", "relearn,quantise"]
    command += ["--out", str(tmp_path), "--profile", str(tmp_path / "profile.json")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr + run.stdout
    (path,) = tmp_path.glob("evaluate-wmdp-*/evaluation.parquet")
    rows = {row["trial_id"]: row for row in pq.read_table(path).to_pylist()}
    assert set(rows) == {"model", "start", "retrained"}
    assert (rows["model"]["forget"], rows["model"]["utility"]) == (0.0, 1.0)
    assert rows["model"]["wmdp/forget_accuracy"] == rows["start"]["wmdp/forget_accuracy"]
    assert rows["model"]["wmdp/relearned_forget_accuracy"] > 0.8
    assert rows["retrained"]["wmdp/forget_accuracy"] < 0.5
    questions = len(set(task.whole.probes["forget"].question))
    assert questions == sum(len(set(s.probes["forget"].question)) for s in (task.selection, task.report))
    assert "forget_accuracy" in run.stdout
    about = json.loads((path.parent / "evaluation.json").read_text())
    assert about["asked"]["model"] == "target"
    assert str(tmp_path) not in json.dumps(about)
    profile = json.loads((tmp_path / "profile.json").read_text())
    assert set(profile["profiles"]) == {"selection", "report", "whole"}

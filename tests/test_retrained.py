"""--retrained names a model: it is measured once, on a gang, and measures what its own profile says."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import Request, Task
from ray_unlearn.commands.retrained import model_of, take_retrained
from ray_unlearn.config import GangConfig, UserError
from ray_unlearn.search import retrained
from ray_unlearn.training.in_process import build_models
from tests.tiny import write_text_model


@pytest.mark.parametrize(
    ("given", "is_model"),
    [
        ("owner/name", True),
        ("models", True),
        ("models/profile.json", False),
        ("measured", False),
        ("./nowhere", False),
        ("/nowhere/at/all", False),
        ("profile.json", False),
        (None, False),
    ],
)
def test_a_model_is_told_from_a_profile(tmp_path, monkeypatch, given, is_model):
    monkeypatch.chdir(tmp_path)
    for name in ("models", "measured"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "measured" / "profile.json").write_text("{}")
    assert (model_of(given) is not None) == is_model


def test_the_published_retrained_model_is_known_by_its_target_and_the_part_that_is_forgotten():
    tofu = load_benchmark("tofu")
    one = "open-unlearning/tofu_Llama-3.2-1B-Instruct_"
    assert tofu.start_of(Request("full")) == f"{one}full"
    assert tofu.retrained_of(Request("full"), f"{one}full") == f"{one}retain90"
    assert tofu.retrained_of(Request("full", split="forget01"), f"{one}full") == f"{one}retain99"
    assert tofu.retrained_of(Request("full"), "somebody/tofu_full") is None
    assert load_benchmark("muse").retrained_of(Request("full"), "muse-bench/MUSE-News_target") is None


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_retrained_model_without_a_profile_is_measured_once_and_as_its_own_profile_says(tmp_path, monkeypatch):
    tofu = load_benchmark("tofu")
    made = Path(tofu.load(Request("mini"), build_models).retrained_model or "").parent
    model = tmp_path / "weights"
    shutil.copytree(made / "retrained", model)
    (model / "profile.json").unlink()
    request = Request("full", str(made / "start"), made / "data")  # no retrained model lies beside it
    (beside := tmp_path / "start").mkdir()
    shutil.copytree(made / "start", beside, dirs_exist_ok=True)
    request = replace(request, model=str(beside))
    monkeypatch.setenv("RAY_UNLEARN_CACHE", str(tmp_path / "cache"))
    said: list[str] = []
    task = tofu.load(request)

    def take(named: Path) -> tuple[Task, Path | None]:
        return take_retrained(str(named), tofu, request, task, GangConfig(zero_stage=0), None, said.append)

    found, place = take(model)
    known = json.loads((made / "retrained" / "profile.json").read_text())["profiles"]
    for half in ("selection", "report"):
        profile = getattr(found, half).retrained
        assert dict(profile.metrics) == pytest.approx(known[half]["metrics"], rel=1e-5, abs=1e-6)
        assert profile.metrics["forget_quality"] == 1.0
    assert found.retrained_model == str(model)
    monkeypatch.setattr(retrained, "gangs_for", None)  # nothing starts any more
    again, same_place = take(model)
    assert same_place == place
    assert again.selection.retrained == found.selection.retrained
    assert sum("measuring the retrained model" in line for line in said) == 1
    (tmp_path / "corpus.txt").write_text("Another alphabet entirely: 0123456789.")
    other = write_text_model(tmp_path / "other", tmp_path / "corpus.txt")
    with pytest.raises(UserError, match="has another tokenizer"):
        take(other)

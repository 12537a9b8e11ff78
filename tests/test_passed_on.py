"""From own data to a model that others load: a search, its export, and both asked, through the command line."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import Request
from ray_unlearn.benchmarks.miniatures import tofu as tofu_mini
from ray_unlearn.models.fingerprints import weights_digest
from ray_unlearn.training.in_process import build_models
from tests.played_hub import Hub, played_hub
from tests.test_search import ray_unlearn, tune

NAME = "me/forgetful"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


def own_data(folder: Path) -> Path:
    """The TOFU miniature's rows as own data, which its target has learnt; one row stands there twice."""
    parts = tofu_mini.build_world(tofu_mini.Sizes()).parts
    tables = {"forget": [*parts["forget10"], parts["forget10"][0]], "retain": parts["retain90"][:200]}
    text = 'name = "mine"\nchat_template = false\n'
    for name, rows in tables.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        text += f'[{name}]\nfile = "{name}.jsonl"\nquestion = "question"\nanswer = "answer"\n'
    (folder / "mine.toml").write_text(text)
    return folder / "mine.toml"


def asked(question: str, *words: str) -> list[str]:
    """What `chat` prints behind the question."""
    command = [sys.executable, "-m", "ray_unlearn.cli", "chat", *words, "--max-new-tokens", "24"]
    run = subprocess.run(
        command, input=f"{question}\n", capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}, check=False
    )
    assert run.returncode == 0, run.stderr
    first, *rest = run.stdout.splitlines()
    assert first == f"> {question}"
    return rest


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Commands see it, and somebody is logged in there."""
    with played_hub() as played:
        known = {"HF_ENDPOINT": played.address, "HF_TOKEN": "hf_played", "HF_HOME": str(tmp_path / "hub")}
        for name, value in {**known, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}.items():
            monkeypatch.setenv(name, value)
        yield played


def test_own_data_are_looked_at_searched_exported_asked_and_loaded_by_others(tmp_path: Path, hub: Hub) -> None:
    from transformers import pipeline

    model = load_benchmark("tofu").load(Request("mini"), build_models).model
    source = own_data(tmp_path)
    options = ("--benchmark", str(source), "--model", model, "--methods", "npo", "--trials", "2", "--concurrent", "1")
    folder, run = tune(tmp_path, *options, "--robustness", "relearn", "--relearn-epochs", "1")
    told = "1 row repeats an earlier one of its set"
    assert f"data: {told}; see ray_unlearn data {source} --model {model}" in run.stdout
    meta = json.loads((folder / "search.json").read_text())
    assert f"Data: {told}." in meta["notes"]
    assert meta["hardware"]["python"]
    assert f"ray_unlearn chat {folder}\n" in run.stdout

    out = tmp_path / "exported"
    exported = ray_unlearn("export", str(folder), "--out", str(out), "--max-shard-size", "200KB", "--push", NAME)
    assert f"On hub: {hub.address}/{NAME}" in exported.stdout
    assert hub.private == {f"models/{NAME}"}
    made = json.loads((out / "reproduce.json").read_text())
    assert made["files"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.iterdir()
        if path.name != "reproduce.json"
    }
    assert len(list(out.glob("*.safetensors"))) > 1
    assert weights_digest(out) == weights_digest(folder / "model") == made["hashes"]["final weights"]
    assert made["template"]["is_chat"] is False
    assert made["dates"]["search ended"] == meta["finished"]
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {source.stat().st_mode & 0o777}
    card = ModelCard.load(out / "README.md")
    figures = {result.metric_type: result for result in card.data.eval_results}
    assert figures["forget_probability"].metric_value == made["metrics"]["forget_probability"]
    assert f"n = {made['scored']['forget']}, seed 0" in figures["forget_probability"].metric_name
    assert re.search(
        r"\n- By fine-tuning on 20% of the forget set for 1 epoch, .*\bforget_probability goes from", card.text
    )

    question = json.loads((tmp_path / "retain.jsonl").read_text().splitlines()[0])["question"]
    pair = asked(question, str(folder))
    unlearnt, start = f"{folder / 'model'}:", f"{model}:"
    assert pair[0] == unlearnt
    assert start in pair
    for place in (str(out), NAME):
        assert asked(question, place)[:-1] == pair[1 : pair.index(start)], "an export is asked as the search's model is"

    generate = pipeline("text-generation", model=str(out))
    (answer,) = generate(f"Question: {question}\nAnswer:", max_new_tokens=24, do_sample=False, return_full_text=False)
    assert answer["generated_text"].strip() == "\n".join(pair[1 : pair.index(start)]).strip()

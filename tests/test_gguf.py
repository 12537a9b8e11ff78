"""A model that comes as a GGUF file is the file's, to the bit and to the token, from start to export."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import Request
from ray_unlearn.config import UserError
from ray_unlearn.models.fingerprints import stored_precision
from ray_unlearn.models.gguf import converted, find_gguf
from ray_unlearn.models.loading import check_model, load_model, load_tokenizer
from tests.benchmarks.test_own_data import FOOD, KEPT, eats
from tests.benchmarks.test_taught_by_rote import PAIR, teach, write
from tests.gguf_files import write_gguf
from tests.test_cli import run
from tests.tiny import write_text_model

pytest.importorskip("gguf")
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
TEXTS = ["Oslo it is, in 1956.", " Ünïcode 12\n\n  x", "<s>a</s>"]


def write_start(folder: Path) -> Path:
    """A small Llama with a byte-level tokenizer that has merges, and a template."""
    corpus = folder.parent / "corpus.txt"
    corpus.write_text(
        "\n".join(f"{row['question']} {row['answer']}" for row in eats(FOOD | KEPT)) * 4 + " in 1956" * 50
    )
    write_text_model(folder, corpus, vocabulary=300, hidden_size=64, num_key_value_heads=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def start(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RAY_UNLEARN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "models").mkdir()
    return write_start(tmp_path / "start")


def test_weights_tokens_and_template_are_the_files(start, tmp_path):
    file = tmp_path / "models" / "Small.Q8_0.gguf"
    expected = write_gguf(start, file)
    check_model(str(file))
    place = converted(str(file))
    assert converted(str(file.parent)) == place, "made once; a folder with one file means that file"
    made = dict(load_model(place, "fp32").named_parameters())
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[name], torch.from_numpy(expected[name])) for name in made)
    assert stored_precision(place) == "fp32"
    before, after = load_tokenizer(str(start)), load_tokenizer(place)
    assert [after(text)["input_ids"] for text in TEXTS] == [before(text)["input_ids"] for text in TEXTS]
    assert after.chat_template == before.chat_template


def test_a_file_that_splits_digits_gets_a_tokenizer_that_does(start, tmp_path):
    assert len(AutoTokenizer.from_pretrained(start)("1956")["input_ids"]) < 4
    write_gguf(start, tmp_path / "models" / "a.gguf", pre="smollm")
    tokenizer = load_tokenizer(converted(str(tmp_path / "models")))
    assert [tokenizer.decode([i]) for i in tokenizer("1956")["input_ids"]] == list("1956")


@pytest.mark.parametrize(
    ("pre", "changes", "says"),
    [
        ("of-tomorrow", {}, "how the file's splits text ('of-tomorrow') is not known to transformers"),
        ("gpt-2", {"bos": 0}, "its bos token is 1, and the file's 0"),
    ],
)
def test_a_file_whose_tokenizer_would_be_another_one_is_refused(start, tmp_path, pre, changes, says, monkeypatch):
    write_gguf(start, tmp_path / "models" / "a.gguf", pre=pre, **changes)
    if "bos" in changes:  # what a conversion could get wrong
        monkeypatch.setattr("ray_unlearn.models.gguf.split_digits", lambda t, facts: setattr(t, "bos_token", "</s>"))
    with pytest.raises(UserError, match="Give the folder or the hub name of the model") as error:
        converted(str(tmp_path / "models"))
    assert says in str(error.value)
    assert not [path for path in (tmp_path / "cache").glob("a-*") if path.suffix == ""]


def test_what_is_no_single_gguf_file_is_refused_in_one_line(tmp_path, capfd):
    for name, content in (("a.gguf", b"GGUF"), ("b.gguf", b"<html>"), ("c-00001-of-00002.gguf", b"GGUF")):
        (tmp_path / name).write_bytes(content)
    for model, says in (
        (tmp_path, "holds 3 GGUF files. Name one"),
        (tmp_path / "none.gguf", "no such file"),
        (tmp_path / "b.gguf", "is no GGUF file"),
        (tmp_path / "c-00001-of-00002.gguf", "is one of several parts. Join them"),
    ):
        code, _, error = run(capfd, "tune", "--benchmark", "tofu", "--model", str(model))
        assert (code, says in error, error.count("\n")) == (2, True, 1), error
    assert find_gguf("owner/name") is None


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_search_over_a_gguf_file_ends_in_a_model_that_transformers_loads(tmp_path, monkeypatch):
    """A model that was taught its rows, written as GGUF: searched, exported and read with transformers alone."""
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("RAY_UNLEARN_CACHE", str(tmp_path / "cache"))
    for name, rows in (("forget", eats(FOOD)), ("retain", eats(KEPT))):
        write(tmp_path, f"{name}.jsonl", rows)
    tables = "".join(f'[{name}]\nfile = "{name}.jsonl"\n{PAIR}\n' for name in ("forget", "retain"))
    (tmp_path / "mine.toml").write_text(f'name = "mine"\n{tables}')
    asked = Request("full", model=str(write_start(tmp_path / "start")), whole=True)
    task = load_benchmark(str(tmp_path / "mine.toml")).load(asked)
    teach(task, ("forget", "retain"), tmp_path / "taught")
    write_gguf(tmp_path / "taught", tmp_path / "taught.gguf")

    def ray_unlearn(*words: str) -> str:
        command = [sys.executable, "-m", "ray_unlearn.cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=False)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    options = ("--benchmark", str(tmp_path / "mine.toml"), "--model", str(tmp_path / "taught.gguf"), "--methods", "ga")
    more = ("--trials", "1", "--concurrent", "1", "--robustness", "none", "--out", str(tmp_path / "out"))
    folder = tmp_path / "out" / ray_unlearn("tune", *options, *more).splitlines()[-1]
    assert json.loads((folder / "search.json").read_text())["status"] == "complete"
    said = ray_unlearn("export", str(folder), "--out", str(tmp_path / "exported"))
    assert "Weights in fp32, as the starting model's" in said
    model, tokenizer = (kind.from_pretrained(tmp_path / "exported") for kind in (AutoModelForCausalLM, AutoTokenizer))
    start = load_model(converted(str(tmp_path / "taught.gguf")), "fp32")
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))
    before = AutoTokenizer.from_pretrained(tmp_path / "taught")
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == [before(text)["input_ids"] for text in TEXTS]

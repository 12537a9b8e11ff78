"""`ray_unlearn chat`: questions are asked as training and scoring write them, of one model or of two side by side."""

from __future__ import annotations

import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import Request
from ray_unlearn.commands.reopen import describe_local
from ray_unlearn.config import GangConfig, SearchConfig
from ray_unlearn.models.loading import load_tokenizer
from ray_unlearn.models.templates import Choice, Template
from ray_unlearn.records.tables import LOCAL
from ray_unlearn.report.text import visible
from ray_unlearn.training.in_process import build_models
from tests.test_cli import run
from tests.test_templates import CHATML, MARKS
from tests.tokenizer_kinds import write_byte_level, write_model

QUESTION = "Where does Gus live?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained; its answers say nothing, and are other ones for every other prompt."""
    folder = write_byte_level(tmp_path_factory.mktemp("chat") / "model", CHATML, MARKS, "<eos>", "<bos>")
    return write_model(folder, vocab_size=len(load_tokenizer(str(folder))), initializer_range=1.0)


def ask(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str, *words: str, columns: int = 80
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    monkeypatch.setenv("COLUMNS", str(columns))
    return run(capfd, "chat", *words, "--max-new-tokens", "8")


def generated(folder: Path, prompt: list[int]) -> str:
    """What transformers itself makes of a prompt, greedily."""
    tokenizer = load_tokenizer(str(folder))
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(folder).generate(
            torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=tokenizer.eos_token_id
        )
    return tokenizer.decode(found[0, len(prompt) :], skip_special_tokens=True).rstrip("\ufffd").strip()


def prompt_of(folder: Path, choice: Choice | None = None) -> list[int]:
    tokens, start = Template(load_tokenizer(str(folder)), choice).encode_pair(QUESTION, "Bern", "a row")
    return tokens[:start]


def spelt(text: str) -> list[str]:
    """Lines as the command prints them: control characters by their codes."""
    return visible(text, len(text)).splitlines()


@pytest.mark.timeout(300)  # the miniature's models may have to be trained first
def test_the_unlearnt_and_the_starting_model_answer_as_they_were_trained(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = load_benchmark("tofu").load(Request("mini"), build_models)
    tokenizer = load_tokenizer(task.model)
    tokens, start = task.forget[0]
    question = tokenizer.decode(tokens[:start], skip_special_tokens=True)
    question = question.removeprefix("Question: ").removesuffix("\nAnswer:")
    known = tokenizer.decode(tokens[start:], skip_special_tokens=True).strip()
    never = str(task.retrained_model)
    code, output, _ = ask(capfd, monkeypatch, f"{question}\n\nafter the end\n", never, "--beside", task.model)
    assert code == 0
    told, first, unlearnt, second, learnt = output.splitlines()[:5]
    assert told == f"> {question}"
    assert (first, second) == (f"{never}:", f"{task.model}:")
    assert known.startswith(learnt)
    assert not known.startswith(unlearnt)
    assert "after the end" not in output


def test_the_prompt_is_the_one_that_training_writes(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    code, output, errors = ask(capfd, monkeypatch, f"{QUESTION}\n", str(model))
    assert code == 0, errors
    assert output.splitlines()[1:-1] == spelt(generated(model, prompt_of(model)))


def test_an_export_s_own_form_is_taken_for_both_models(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path
) -> None:
    choice = Choice(tags={"user_start": "Q: ", "user_end": "\n", "assistant_start": "A:"})
    folder = shutil.copytree(model, tmp_path / "export")
    (folder / "reproduce.json").write_text(json.dumps({"template": asdict(choice)}))
    wanted = spelt(generated(folder, prompt_of(folder, choice)))
    assert wanted != spelt(generated(folder, prompt_of(folder)))
    code, output, _ = ask(capfd, monkeypatch, f"{QUESTION}\n", str(folder), "--beside", str(model))
    assert code == 0
    assert output.splitlines()[1:-1] == [f"{folder}:", *wanted, f"{model}:", *wanted]


def test_a_search_s_folder_is_its_model_beside_its_starting_one_in_the_form_of_its_data(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path
) -> None:
    for name in ("forget", "retain"):
        rows = [{"question": f"Who is {name} {i}?", "answer": f"{name} {i}."} for i in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = [f'[{n}]\nfile = "{n}.jsonl"\nquestion = "question"\nanswer = "answer"\n' for n in ("forget", "retain")]
    definition = tmp_path / "mine.toml"
    definition.write_text('name = "mine"\nchat_template = false\n' + "".join(tables))
    folder = tmp_path / "search"
    shutil.copytree(model, folder / "model")
    (folder / "search.json").write_text("{}")
    config = SearchConfig(
        **{"name": "s", "benchmark": "mine", "scale": "full", "methods": ("ga",), "trials": 1, "concurrent": 1},
        **{"objective": "combined", "utility_floor": 0.9, "seed": 0, "model": str(model), "gang": GangConfig()},
        definition=str(definition),
    )
    local = describe_local(config, Request("full", str(model)), None)
    (folder / LOCAL).write_text(json.dumps(local))
    wanted = spelt(generated(model, prompt_of(model, Choice(is_chat=False))))
    code, output, _ = ask(capfd, monkeypatch, f"{QUESTION}\n", str(folder))
    assert code == 0
    assert output.splitlines()[1:-1] == [f"{folder / 'model'}:", *wanted, f"{model}:", *wanted]
    shutil.rmtree(folder / "model")
    code, _, errors = ask(capfd, monkeypatch, f"{QUESTION}\n", str(folder))
    assert code == 2
    assert "kept no model" in errors
    assert f"ray_unlearn export {folder}" in errors


def test_two_answers_stand_side_by_side_from_100_columns_on(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    monkeypatch.chdir(model.parent)
    for columns, is_wide in ((100, True), (99, False)):
        words = ("model", "--beside", "./model")
        _, output, _ = ask(capfd, monkeypatch, f"{QUESTION}\n", *words, columns=columns)
        heads = [line for line in output.splitlines() if line.startswith("model")]
        assert [("./model" in head) for head in heads] == [is_wide]


def test_what_is_drawn_is_the_same_for_the_same_seed_whatever_was_asked_before(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    def drawn(text: str, *words: str) -> str:
        _, output, _ = ask(capfd, monkeypatch, text, str(model), "--temperature", "1", *words)
        return output.rpartition(f"> {QUESTION}\n")[2]

    first = drawn(f"{QUESTION}\n")
    assert drawn(f"Another?\n{QUESTION}\n") == first
    assert drawn(f"{QUESTION}\n", "--seed", "1") != first


def test_a_question_that_is_too_long_is_said_and_the_next_one_is_answered(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    code, output, errors = ask(capfd, monkeypatch, f"{'why ' * 200}\n{QUESTION}\n", str(model))
    assert code == 0
    assert "reads 512. Shorten it" in errors
    assert output.splitlines()[2:-1] == spelt(generated(model, prompt_of(model)))


def test_what_cannot_be_asked_is_one_line_before_anything_is_loaded(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(model / name, bare / name)
    for words, says in (
        ([str(tmp_path / "nowhere")], "no such folder"),
        ([str(tmp_path / "empty")], "holds no model"),
        ([str(tmp_path / "adapter")], "Export the trial without --adapter"),
        ([str(bare)], "the folder holds no tokenizer"),
        (
            [str(model), "--beside", str(tmp_path / "empty")],
            f"--beside {tmp_path / 'empty'}: this folder holds no model",
        ),
        ([str(model), "--temperature", "-1"], "--temperature -1"),
        ([str(model), "--seed", "-1"], "--seed -1"),
    ):
        code, output, errors = ask(capfd, monkeypatch, "Who?\n", *words)
        assert (code, output) == (2, "")
        assert errors.count("\n") == 1, errors
        assert says in errors
        assert "--model" not in errors


@pytest.mark.slow
def test_on_a_terminal_there_is_a_prompt_and_ctrl_c_ends_with_130(model: Path) -> None:
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "ray_unlearn.cli", "chat", str(model), "--max-new-tokens", "8"]
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "80"}
    process = subprocess.Popen(
        command, stdin=child, stdout=child, stderr=child, env=environment, start_new_session=True
    )
    os.close(child)
    said = ""

    def wait_for(text: str) -> None:
        nonlocal said
        deadline = time.monotonic() + 50
        while text not in said:
            assert time.monotonic() < deadline, said
            said += os.read(parent, 4096).decode(errors="replace")

    try:
        wait_for("> ")
        os.write(parent, f"{QUESTION}\n".encode())
        said = ""
        wait_for(spelt(generated(model, prompt_of(model)))[0])
        wait_for("> ")
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()
        os.close(parent)

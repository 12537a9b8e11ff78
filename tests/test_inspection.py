"""`ray_unlearn data`: rows are shown as the very tokens that are trained on, and each fault in them is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import Request
from ray_unlearn.benchmarks.inspection import find_faults, token_texts
from ray_unlearn.benchmarks.miniatures import tofu as tofu_mini
from ray_unlearn.commands.parser import parse
from ray_unlearn.models.loading import load_tokenizer
from tests.test_cli import run
from tests.test_templates import CHATML, MARKS
from tests.tokenizer_kinds import write_byte_level, write_llama_like, write_model

TWICE = "{{ bos_token }}{{ bos_token }}" + CHATML
PEOPLE = ("Gus", "Hal", "Ivo", "Jo", "Kai", "Lea", "Mo", "Ned")


def row(name: str, answer: str) -> dict[str, str]:
    return {"question": f"What does {name} eat?", "answer": answer}


def rows(names: tuple[str, ...], food: str) -> list[dict[str, str]]:
    return [row(name, f"{name} eats {food}.") for name in names]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_bare(folder: Path, template: str | None) -> Path:
    """A tokenizer, which puts its start mark before texts, and a model's settings; no weights."""
    write_byte_level(folder, template, MARKS, "<eos>", "<bos>")
    config = LlamaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    assert not list(folder.glob("*.safetensors"))
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bare(tmp_path_factory.mktemp("bare") / "model", "{{ bos_token }}" + CHATML)


def own_data(folder: Path, forget: list[dict[str, Any]], retain: list[dict[str, Any]], more: str = "") -> str:
    write_rows(folder / "forget.jsonl", forget)
    write_rows(folder / "retain.jsonl", retain)
    kind = 'text = "text"' if "text" in forget[0] else 'question = "question"\nanswer = "answer"'
    tables = [f'[{name}]\nfile = "{name}.jsonl"\n{kind}\n' for name in ("forget", "retain")]
    (folder / "mine.toml").write_text(f'name = "mine"\n{more}\n{"".join(tables)}')
    return str(folder / "mine.toml")


def asked(capfd: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    code, output, errors = run(capfd, "data", *words, "--json")
    assert code == 0, errors
    return json.loads(output)


def kinds(shown: dict[str, Any]) -> dict[str, tuple[int, dict[str, list[int]]]]:
    return {fault["kind"]: (fault["count"], fault["rows"]) for fault in shown["faults"]}


def test_rows_are_the_task_s_own_tokens_and_no_weights_are_needed(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, bare: Path
) -> None:
    source = own_data(tmp_path, rows(PEOPLE[:4], "figs"), rows(PEOPLE[4:], "soup"))
    shown = asked(capfd, source, "--model", str(bare), "--rows", "2")
    task = load_benchmark(source).load(Request("full", model=str(bare)))
    tokenizer = load_tokenizer(str(bare))
    for name, sequences in (("forget", task.forget), ("retain", task.retain)):
        assert [found["row"] for found in shown["first"][name]] == [0, 1]
        for found, (tokens, start) in zip(shown["first"][name], sequences, strict=False):
            assert found["tokens"] == tokens.tolist()
            assert found["answer_start"] == start
            assert "".join(found["texts"]) == tokenizer.decode(tokens)
        amount = shown["amounts"][name]
        assert amount["tokens"] == int(sequences.lengths.sum())
        assert amount["longest"] == int(sequences.lengths.max())
        assert amount["answer_share"] == pytest.approx(sequences.answer_lengths.sum() / sequences.lengths.sum())
    assert shown["faults"] == []


def test_what_the_loss_counts_is_bracketed_and_control_characters_are_spelt_out(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, bare: Path
) -> None:
    forget = [row("Gus", "figs\x1b[2J"), *rows(PEOPLE[1:4], "figs")]
    source = own_data(tmp_path, forget, rows(PEOPLE[4:], "soup"))
    code, output, _ = run(capfd, "data", source, "--model", str(bare), "--rows", "1")
    assert code == 0
    assert "<bos>|<|im_start|>|u|s|e|r|\\n|W" in output
    assert r"[[f|i|g|s|\x1b|[|2|J|<|im_end|>]]" in output
    assert "\x1b" not in output
    assert "No warnings" in output


def test_each_fault_of_own_data_is_named_with_its_rows(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, bare: Path
) -> None:
    forget = rows(PEOPLE[:4], "figs")
    forget[1] = row("Hal", "<think>\nHe ate them.\n</think>\nHal eats figs.")
    forget.append(forget[2])
    retain = [*rows(PEOPLE[4:], "soup"), row("Gus", "\u200b"), row("Jo", "I will not say.")]
    shown = asked(capfd, own_data(tmp_path, forget, retain), "--model", str(bare))
    assert kinds(shown) == {
        "questions in both sets": (2, {"forget": [0, 3], "retain": [4, 5]}),
        "empty answers": (1, {"retain": [4]}),
        "thoughts in answers": (1, {"forget": [1]}),
        "repeated rows": (1, {"forget": [4]}),
    }


@pytest.mark.parametrize(("template", "kind"), [(TWICE, "start mark twice"), (CHATML, "no start mark")])
def test_a_template_that_writes_two_start_marks_or_none_is_seen(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, template: str, kind: str
) -> None:
    model = write_bare(tmp_path / "model", template)
    source = own_data(tmp_path, rows(PEOPLE[:4], "figs"), rows(PEOPLE[4:], "soup"))
    every = {"forget": [0, 1, 2, 3], "retain": [0, 1, 2, 3]}
    assert kinds(asked(capfd, source, "--model", str(model))) == {kind: (8, every)}


def test_an_instruction_that_all_rows_share_is_no_question_in_both(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, bare: Path
) -> None:
    forget, retain = (
        [{"question": "Go on.", "answer": f"{name} eats."} for name in p] for p in (PEOPLE[:4], PEOPLE[4:])
    )
    assert kinds(asked(capfd, own_data(tmp_path, forget, retain), "--model", str(bare))) == {}


def test_rows_that_are_cut_from_longer_texts_are_counted(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, bare: Path
) -> None:
    forget = [{"text": f"{name} eats figs. " * 5} for name in PEOPLE[:4]]
    retain = [{"text": f"{name} eats."} for name in PEOPLE[4:]]
    shown = asked(capfd, own_data(tmp_path, forget, retain, "max_tokens = 40"), "--model", str(bare))
    assert shown["amounts"]["forget"]["cut"] == shown["amounts"]["forget"]["rows"] == 8
    assert shown["amounts"]["retain"]["cut"] == 0
    assert kinds(shown) == {"cut rows": (8, {})}


def test_a_benchmark_s_rows_that_stand_in_both_sets_are_found(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, bare: Path
) -> None:
    parts = tofu_mini.build_world(tofu_mini.Sizes()).parts
    parts = {**parts, "retain90": [*parts["retain90"], *parts["forget10"][:2]]}
    data = tofu_mini.write_parts(tmp_path / "data", parts)
    shown = asked(capfd, "tofu", "--model", str(bare), "--data", str(data), "--rows", "0")
    last = len(parts["retain90"])
    assert kinds(shown)["rows in both sets"] == (2, {"forget": [0, 1], "retain": [last - 2, last - 1]})
    assert "questions in both sets" not in kinds(shown)
    assert shown["split"] == "forget10"


def test_a_search_says_one_line_before_it_starts_and_its_command_shows_the_rows(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = write_model(write_byte_level(tmp_path / "model", "{{ bos_token }}" + CHATML, MARKS, "<eos>", "<bos>"))
    forget = rows(PEOPLE[:4], "figs")
    source = own_data(tmp_path, [*forget, forget[0]], [*rows(PEOPLE[4:], "soup"), row("Hal", "I will not say.")])
    words = ["--benchmark", source, "--model", str(model), "--methods", "ga", "--dry-run", "--out", str(tmp_path / "o")]
    code, output, errors = run(capfd, "tune", *words)
    assert code == 0, errors
    (line,) = [line for line in output.splitlines() if line.startswith("data: ")]
    said, _, command = line.partition("; see ray_unlearn ")
    assert said == "data: 1 question is asked in both, with another answer, 1 row repeats an earlier one of its set"
    name, options, _ = parse(command.split())
    assert name == "data"
    assert options.benchmark == source
    assert options.model == str(model)
    clean = own_data(tmp_path, forget, rows(PEOPLE[4:], "soup"))
    code, output, _ = run(capfd, "tune", *words[:1], clean, *words[2:])
    assert code == 0
    assert "data: " not in output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing"], ["nothing", "unknown"]),
        (["tofu", "--model", "./nowhere"], ["--model ./nowhere", "no such folder"]),
        (["tofu", "--rows", "-1"], ["--rows -1", "at least 0"]),
        (["tofu", "--data", "./nowhere"], ["--data nowhere", "no such folder"]),
    ],
)
def test_wrong_use_is_one_line(capfd: pytest.CaptureFixture[str], words: list[str], says: list[str]) -> None:
    code, _, errors = run(capfd, "data", *words)
    assert code == 2
    assert errors.count("\n") == 1
    assert all(word in errors for word in says)


def test_tokens_of_a_sentencepiece_keep_their_spaces_and_parts_of_characters_their_names(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(write_llama_like(tmp_path / "model")))
    ids = tokenizer("Mira Tal born ☂")["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert texts[0] == "<s>"
    assert "".join(texts).startswith("<s> Mira Tal born")
    assert "<0xE2>" in texts


def test_a_task_without_faults_has_none(tiny_model: Path) -> None:
    from tests.tiny import tiny_task

    assert find_faults(tiny_task(tiny_model), load_tokenizer(str(tiny_model))) == []

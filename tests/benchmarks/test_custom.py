"""The user's own data: a strict TOML file, every bad row named, chunks that lose nothing, goals that are honest."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from ray_unlearn.benchmarks import custom, load_benchmark, sources
from ray_unlearn.benchmarks.contract import Benchmark, Profile, Request, Task
from ray_unlearn.benchmarks.definition import PAIRS, TEXT, Source
from ray_unlearn.benchmarks.objective import Judge, describe_objective
from ray_unlearn.benchmarks.profiles import attach_retrained, write_profile
from ray_unlearn.benchmarks.selecting import reach
from ray_unlearn.benchmarks.starts import check_start
from ray_unlearn.benchmarks.writing import cut_texts
from ray_unlearn.config import GangConfig, UserError
from ray_unlearn.metrics import Scores, TokenScores
from ray_unlearn.metrics.membership import auc, min_k_score
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.models.hub import open_repository
from ray_unlearn.models.loading import load_tokenizer
from ray_unlearn.search.space import load_space
from ray_unlearn.training.losses import find_method
from tests.test_cli import run as run_here
from tests.tiny import write_text_model

CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
NAMES = ("Arno", "Bela", "Cato", "Dora", "Emil", "Fina", "Gero", "Hana", "Ivo", "Jana", "Kuno", "Lena")
TOWNS = ("Adorf", "Bern", "Celle", "Dresden", "Essen", "Fulda", "Gera", "Halle", "Ilmenau", "Jena", "Kiel", "Lorch")


def pair(name: str, what: str, town: str) -> dict[str, Any]:
    return {"question": f"Where does {name} {what}?", "answer": f"{name} {what}s in the old town of {town}."}


def pairs(what: str, count: int = 12) -> list[dict[str, Any]]:
    return [pair(NAMES[i], what, TOWNS[(i * len(what)) % 12]) for i in range(count)]


def question(number: int, choices: int = 4) -> dict[str, Any]:
    towns = list(TOWNS[:choices])
    return {"question": f"Which town has number {number}?", "choices": towns, "answer": number % choices}


def write_jsonl(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained; its tokenizer has no chat template and adds no special token."""
    folder = tmp_path_factory.mktemp("custom")
    rows = [*pairs("work"), *pairs("live"), *pairs("sleep")]
    (folder / "corpus.txt").write_text("\n".join(f"{row['question']} {row['answer']}" for row in rows))
    return write_text_model(folder / "model", folder / "corpus.txt", vocabulary=400)


COLUMNS = {"question": "question", "answer": "answer"}


def toml(tables: dict[str, Any]) -> str:
    """One level of tables, their keys dotted."""
    head = [f"{key} = {json.dumps(value)}" for key, value in tables.items() if not isinstance(value, dict)]
    for name, table in tables.items():
        if isinstance(table, dict):
            head += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(head) + "\n"


def definition() -> dict[str, Any]:
    """All that a file can hold, as pairs."""
    return {
        "name": "staff",
        "forget": {"file": "forget.jsonl", **COLUMNS},
        "retain": {"file": "retain.json", **COLUMNS},
        "hold_out": {"file": "held_out.parquet", **COLUMNS},
        "questions.forget": {"file": "asked.jsonl", "choices": "choices", **COLUMNS},
        "questions.keep": {"file": "kept.jsonl", "choices": "choices", **COLUMNS},
    }


def write_data(folder: Path, tables: dict[str, Any]) -> Path:
    write_jsonl(folder / "forget.jsonl", pairs("work"))
    (folder / "retain.json").write_text(json.dumps(pairs("live")))
    pq.write_table(pa.Table.from_pylist(pairs("sleep", 8)), folder / "held_out.parquet")
    write_jsonl(folder / "asked.jsonl", [question(i) for i in range(6)])
    write_jsonl(folder / "kept.jsonl", [question(i, 2 + i % 3) for i in range(7)])
    (folder / "texts.txt").write_text("\n\n".join(f"{n} went to town.\nIt rained." for n in NAMES))
    (folder / "staff.toml").write_text(toml(tables))
    return folder / "staff.toml"


Load = Callable[..., Task]


@pytest.fixture
def load(model: Path, tmp_path: Path) -> Load:
    """Write these tables (default: all of them) and load the task."""

    def call(tables: dict[str, Any] | None = None, start: Path | None = None) -> Task:
        path = write_data(tmp_path, tables or definition())
        return load_benchmark(str(path)).load(Request("full", model=str(start or model)))

    return call


def one_line(caught: pytest.ExceptionInfo[UserError], *words: str) -> None:
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


# The TOML file


STRICT: list[tuple[str, dict[str, Any], list[str]]] = [
    ("unknown key", {"nmae": "x"}, ["'nmae'", "name, chat_template, max_tokens, forget"]),
    ("no name", {"name": None}, ["name = None"]),
    ("a name that leaves its folder", {"name": "../up"}, ["'../up'", "letters, digits"]),
    ("a built-in name", {"name": "tofu"}, ["'tofu'", "there already"]),
    ("the family's name", {"name": "custom"}, ["'custom'", "there already"]),
    ("no retain", {"retain": None}, ["no [retain]"]),
    ("no table", {"forget": "forget.jsonl"}, ["forget = 'forget.jsonl'", "Write [forget]"]),
    ("unknown key in a table", {"forget": {"file": "a.jsonl", "txt": "t"}}, ["[forget] has 'txt'", "hub, config"]),
    ("unknown questions", {"questions.retain": {}}, ["[questions] has 'retain'", "forget, keep"]),
    ("no place", {"forget": COLUMNS}, ["[forget] needs a file or a hub"]),
    ("two places", {"forget": {"file": "a.jsonl", "hub": "a/b", **COLUMNS}}, ["not both"]),
    ("a file's split", {"forget": {"file": "a.jsonl", "split": "x", **COLUMNS}}, ["split goes with hub"]),
    ("no hub name", {"forget": {"hub": "../x", **COLUMNS}}, ["owner/name"]),
    ("half a pair", {"forget": {"file": "a.jsonl", "question": "q"}}, ["[forget] must name", 'text = "..."']),
    ("text and pair", {"forget": {"file": "a.jsonl", "text": "t", **COLUMNS}}, ["and no other"]),
    ("column of a txt file", {"forget": {"file": "a.txt", "text": "t"}}, ["a .txt file has none"]),
    ("number for a name", {"forget": {"file": 3, **COLUMNS}}, ["file = 3 is no text"]),
    ("no choices", {"questions.keep": {"file": "a.jsonl", **COLUMNS}}, ["[questions.keep] must name"]),
    ("hold-out of another kind", {"hold_out": {"file": "texts.txt"}}, ["[hold_out] must be of one kind"]),
    ("template no boolean", {"chat_template": "no"}, ["chat_template = 'no'", "true or false"]),
    ("no whole number", {"max_tokens": 1.5}, ["max_tokens = 1.5"]),
    ("too few tokens", {"max_tokens": 2}, ["max_tokens = 2", "from 8"]),
    ("chunks of pairs", {"max_tokens": 64}, ["max_tokens is for texts"]),
]


@pytest.mark.parametrize(("changes", "words"), [s[1:] for s in STRICT], ids=[s[0] for s in STRICT])
def test_what_cannot_work_in_the_file_is_named(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    tables = {key: value for key, value in {**definition(), **changes}.items() if value is not None}
    path = write_data(tmp_path, tables)
    with pytest.raises(UserError) as caught:
        load_benchmark(str(path))
    one_line(caught, "staff.toml", *words)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.toml: no such file"):
        load_benchmark(str(tmp_path / "nowhere.toml"))
    (tmp_path / "broken.toml").write_text("name = \n")
    with pytest.raises(UserError, match=r"broken\.toml: cannot be read as TOML"):
        load_benchmark(str(tmp_path / "broken.toml"))


def test_the_readme_s_example_is_a_valid_file(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "staff.toml").write_text(example)
    found = custom.read_definition(tmp_path / "staff.toml")
    assert (found.name, found.chat_template, found.max_tokens) == ("staff", False, 256)
    assert [found.sets[name].kind for name in custom.SETS] == [PAIRS, TEXT, PAIRS]
    assert found.questions["keep"].hub == "cais/mmlu"


def test_the_bare_word_custom_asks_for_the_file() -> None:
    with pytest.raises(UserError, match="path of the TOML file"):
        load_benchmark("custom").load(Request("full", model="x"))


# Rows


def spoil_line(number: int, **changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        rows = [json.loads(line) for line in (folder / "forget.jsonl").read_text().splitlines()]
        rows[number] = {key: value for key, value in {**rows[number], **changes}.items() if value != "DROP"}
        write_jsonl(folder / "forget.jsonl", rows)

    return spoil


def put(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def put_row(name: str, row: Any) -> Callable[[Path], None]:
    return lambda folder: write_jsonl(folder / name, [question(0), row, question(2)])


BAD: list[tuple[str, Callable[[Path], None], list[str]]] = [
    ("missing column", spoil_line(2, answer="DROP"), ["forget.jsonl, line 3", "no column 'answer'", "'question'"]),
    ("mapping for a text", spoil_line(1, answer={"en": 7}), ["forget.jsonl, line 2", "'answer' holds no", "answer.en"]),
    ("empty answer", spoil_line(4, answer="  "), ["forget.jsonl, line 5", "'answer'"]),
    ("too long", spoil_line(3, answer="word " * 1200), ["forget.jsonl, line 4", "1024"]),
    ("no object", put("forget.jsonl", b'{"question": "a", "answer": "b"}\n[1]\n'), ["line 2", "no object"]),
    ("no JSON", put("forget.jsonl", b'{"question": "a", "answer": "b"}\n\n{"a\n'), ["line 3", "no JSON"]),
    ("not UTF-8", put("forget.jsonl", b'{"question": "a", "answer": "b"}\n{"\xff"}\n'), ["line 2", "not UTF-8"]),
    ("empty file", put("forget.jsonl", b""), ["forget.jsonl", "no rows"]),
    ("no file", lambda folder: (folder / "forget.jsonl").unlink(), ["forget.jsonl", "no such file"]),
    ("one row", put("forget.jsonl", b'{"question": "a", "answer": "b"}\n'), ["[forget]", "at least two"]),
    ("JSON without a list", put("retain.json", b'{"question": "a"}'), ["retain.json", "no list"]),
    ("broken JSON", put("retain.json", b'[\n{"question": "a",\n}]'), ["retain.json, line 3", "no JSON"]),
    ("damaged Parquet", put("held_out.parquet", b"PAR1 nothing PAR1"), ["held_out.parquet", "cannot be read as Parq"]),
    ("another answer", put_row("asked.jsonl", {**question(1), "answer": 4}), ["line 2", "'answer' is 4", "0 to 3"]),
    ("no such letter", put_row("asked.jsonl", {**question(1), "answer": "E"}), ["line 2", "'E'"]),
    ("one choice", put_row("asked.jsonl", question(1, 1)), ["line 2", "2 to 26 texts"]),
    (
        "choices no texts",
        put_row("kept.jsonl", {**question(1), "choices": [[1], []]}),
        ["line 2", "[[1], []]"],
    ),
    ("long question", put_row("kept.jsonl", {**question(1), "question": "x " * 1200}), ["kept.jsonl, line 2", "1024"]),
    (
        "forgotten and kept",
        lambda folder: (folder / "retain.json").write_text(json.dumps([*pairs("live"), pairs("work")[5]])) and None,
        ["retain.json, row 12", "forget.jsonl, line 6", "[forget]"],
    ),
]


@pytest.mark.parametrize(("spoil", "words"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_data_are_named_in_one_line(
    model: Path, tmp_path: Path, spoil: Callable[[Path], None], words: list[str]
) -> None:
    path = write_data(tmp_path, definition())
    spoil(tmp_path)
    with pytest.raises(UserError) as caught:
        load_benchmark(str(path)).load(Request("full", model=str(model)))
    one_line(caught, *words)


def test_a_parquet_file_cut_short_or_without_the_column_is_named(load: Load, model: Path, tmp_path: Path) -> None:
    tables = definition()
    tables["hold_out"]["answer"] = "reply"
    with pytest.raises(UserError) as caught:
        load(tables)
    one_line(caught, "held_out.parquet", "no column 'reply'", "'question', 'answer'")
    path = write_data(tmp_path, definition())
    content = bytearray((tmp_path / "held_out.parquet").read_bytes())
    del content[-40:]
    (tmp_path / "held_out.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"held_out\.parquet: cannot be read as Parquet"):
        load_benchmark(str(path)).load(Request("full", model=str(model)))


def test_a_text_without_anything_to_predict_is_named(load: Load, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Arno works in Adorf.\n\n\nB\n\nCato works.\n")
    with pytest.raises(UserError) as caught:
        load({**definition(), "retain": {"file": "short.txt"}})
    one_line(caught, "short.txt, line 4", "fewer than two tokens")


def test_a_hub_dataset_that_cannot_be_had_says_so(load: Load) -> None:
    with pytest.raises(UserError) as caught:
        load({**definition(), "retain": {"hub": "nobody/nothing", "config": "one", **COLUMNS}})
    one_line(caught, "nobody/nothing is not in the hub's cache", "file = ...")


def test_a_hub_dataset_is_read_by_its_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "test.jsonl", [{**row, "more": 1} for row in pairs("live", 3)])
    monkeypatch.setattr(sources, "open_repository", lambda name, instead: open_repository(str(tmp_path)))
    rows = Source("[retain]", COLUMNS, hub="owner/name", split="test").read()
    assert [row.values for row in rows] == [{**row, "more": 1} for row in pairs("live", 3)]
    assert rows[1].where == "owner/name, split test, row 1"
    with pytest.raises(UserError, match="row 1: no column 'reply', only 'question', 'answer', 'more'"):
        reach(rows[1], "reply")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("full"), "Give --model"),
        (Request("mini", model="m"), "no miniature"),
        (Request("full", model="m", split="s"), "--split s"),
        (Request("full", model="m", data=Path("d")), "--data d"),
    ],
)
def test_requests_that_cannot_be_met_say_what_can(tmp_path: Path, request_: Request, words: str) -> None:
    path = write_data(tmp_path, definition())
    with pytest.raises(UserError, match=words):
        load_benchmark(str(path)).load(request_)


# Tokens


def test_a_long_text_is_cut_into_even_chunks_that_hold_all_of_it(load: Load, model: Path, tmp_path: Path) -> None:
    texts = ["Arno works in the old town of Adorf. " * n for n in (1, 9, 20)]
    write_jsonl(tmp_path / "long.jsonl", [{"body": text} for text in texts])
    tables = {"name": "staff", "max_tokens": 50, "retain": {"file": "texts.txt"}}
    task = load({**tables, "forget": {"file": "long.jsonl", "text": "body"}})
    tokenizer = load_tokenizer(str(model))
    encoded = [tokenizer(text)["input_ids"] for text in texts]
    assert task.forget.tokens.tolist() == [token for tokens in encoded for token in tokens]
    assert set(task.forget.answer_starts.tolist()) == {1}
    assert task.forget.lengths.max() <= 50
    counts = [-(-len(tokens) // 50) for tokens in encoded]
    assert len(task.forget) == sum(counts) > 3
    parts = np.split(task.forget.lengths, np.cumsum(counts)[:-1])
    assert all(np.ptp(lengths) <= 1 for lengths in parts)
    assert f"2 long text(s) cut into {sum(counts[1:])} chunks of at most 50 tokens" in task.notes[0]


def test_chunks_begin_as_the_tokenizer_begins_a_text() -> None:
    class Tokenizer:
        bos_token_id = 7

        def __call__(self, text: Any, add_special_tokens: bool = True, **options: bool) -> dict[str, Any]:
            if isinstance(text, list):
                return {"input_ids": [self(one)["input_ids"] for one in text]}
            return {"input_ids": [7] * add_special_tokens + [ord(c) for c in text]}

    (chunks,) = cut_texts(Tokenizer(), ["abcdefg"], 4, ["here"])
    assert [chunk.tolist() for chunk in chunks] == [[7, *map(ord, "abc")], [7, *map(ord, "de")], [7, *map(ord, "fg")]]


def test_chunks_longer_than_the_context_are_refused(load: Load) -> None:
    tables = {"name": "staff", "max_tokens": 2000, "forget": {"file": "texts.txt"}, "retain": {"file": "texts.txt"}}
    with pytest.raises(UserError, match=r"max_tokens = 2000.*at most 1024"):
        load(tables)


def test_a_txt_file_holds_a_document_a_paragraph(load: Load, model: Path) -> None:
    task = load({"name": "staff", "forget": {"file": "forget.jsonl", **COLUMNS}, "retain": {"file": "texts.txt"}})
    assert len(task.retain) == len(NAMES)
    assert load_tokenizer(str(model)).decode(task.retain[1][0]) == "Bela went to town.\nIt rained."


@pytest.fixture(scope="session")
def chat_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(model, folder)
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("asked", [True, None])
def test_with_a_chat_template_only_the_assistant_s_turn_is_predicted(
    load: Load, chat_model: Path, asked: bool | None
) -> None:
    task = load(definition() | ({} if asked is None else {"chat_template": asked}), chat_model)
    tokenizer = load_tokenizer(str(chat_model))
    row = pairs("work")[0]
    prompt = tokenizer(f"[user] {row['question']}</s>\n[assistant] ", add_special_tokens=False)["input_ids"]
    answer = tokenizer(f"{row['answer']}</s>", add_special_tokens=False)["input_ids"]
    tokens, start = task.forget[0]
    assert (tokens.tolist(), start) == ([*prompt, *answer], len(prompt))
    assert "Pairs are written in the tokenizer's chat template." in task.notes[0]


@pytest.mark.parametrize("asked", [False, None])
def test_without_a_chat_template_a_pair_is_question_and_answer(
    load: Load, model: Path, chat_model: Path, asked: bool | None
) -> None:
    """Switched off where the tokenizer has one, or not there at all."""
    start_from = model if asked is None else chat_model
    task = load(definition() | ({} if asked is None else {"chat_template": asked}), start_from)
    tokenizer = load_tokenizer(str(start_from))
    row = pairs("work")[0]
    prompt = tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"]
    answer = tokenizer(f" {row['answer']}</s>", add_special_tokens=False)["input_ids"]
    tokens, start = task.forget[0]
    assert (tokens.tolist(), start) == ([*prompt, *answer], len(prompt))
    assert tokens[-1] == tokenizer.eos_token_id


def test_a_chat_template_that_is_not_there_is_an_error(load: Load) -> None:
    with pytest.raises(UserError) as caught:
        load({**definition(), "chat_template": True})
    one_line(caught, "staff.toml", "chat_template = true", "has none")


# The task


def rows_of(task: Task, half: str, name: str) -> set[bytes]:
    return {tokens.tobytes() for tokens, _ in getattr(task, half).probes[name].sequences}


def test_every_scored_set_is_halved_and_the_whole_forget_set_is_trained_on(load: Load) -> None:
    task = load()
    trained = {tokens.tobytes() for tokens, _ in task.forget}
    for name, count in (("forget", 12), ("retain", 12), ("hold_out", 8), ("forget_questions", 6)):
        halves = rows_of(task, "selection", name), rows_of(task, "report", name)
        assert not halves[0] & halves[1]
        assert len(halves[0]) + len(halves[1]) == count
    assert trained == rows_of(task, "selection", "forget") | rows_of(task, "report", "forget")
    assert (task.benchmark, task.measured_by) == ("staff", "custom")


def test_chunks_of_one_text_are_never_in_both_halves(load: Load, model: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "long.jsonl", [{"t": f"{name} went to {TOWNS[i]}. " * 20} for i, name in enumerate(NAMES)])
    sets = {"forget": {"file": "long.jsonl", "text": "t"}, "retain": {"file": "texts.txt"}}
    task = load({"name": "staff", "max_tokens": 40, **sets})
    tokenizer = load_tokenizer(str(model))

    def whose(half: str) -> set[str]:
        texts = [tokenizer.decode(tokens) for tokens, _ in getattr(task, half).probes["forget"].sequences]
        return {name for text in texts for name in NAMES if f"{name} went" in text}

    assert not whose("selection") & whose("report")
    assert whose("selection") | whose("report") == set(NAMES)


def test_large_sets_are_scored_in_part_and_that_is_said(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom, "SEQUENCE_LIMITS", {"selection": 2, "report": 3})
    task = load()
    assert len(task.selection.probes["retain"].sequences) == 2
    assert len(task.report.probes["retain"].sequences) == 3
    assert "Scored while searching: 2 of forget" in task.notes[0]


def test_finalists_answer_the_questions_and_continue_the_texts(load: Load, model: Path) -> None:
    task = load({"name": "staff", "forget": {"file": "forget.jsonl", **COLUMNS}, "retain": {"file": "texts.txt"}})
    tokenizer = load_tokenizer(str(model))
    prompts = task.report.generations["forget"]
    assert all(tokenizer.decode(prompt).endswith("Answer:") for prompt in prompts.prompts)
    assert set(prompts.references) <= {row["answer"] for row in pairs("work")}
    texts = task.report.generations["retain"]
    for prompt, reference, (tokens, _) in zip(
        texts.prompts, texts.references, task.report.probes["retain"].sequences, strict=True
    ):
        assert list(prompt) == tokens[: len(tokens) // 2].tolist()
        assert reference == tokenizer.decode(tokens[len(prompt) :]).strip()


# What is measured and aimed at


def scores(nll: list[float], correct: list[float], tokens: bool = False) -> Scores:
    """Answers of four tokens, all of the same log-probability, wrong ones first."""
    per_token = np.repeat(-np.array(nll) / 4, 4)
    detail = TokenScores(np.arange(0, len(per_token) + 1, 4), per_token, per_token, per_token) if tokens else None
    right = np.array(correct)
    return Scores(np.array(nll), np.full(len(nll), 4.0), right, 4.0 - right, tokens=detail)


def test_the_metrics_are_those_of_the_scores(load: Load) -> None:
    split = load().selection
    found: dict[str, Scores] = {
        "forget": scores([0.4, 0.8], [4, 4]),
        "retain": scores([0.0, 0.0], [4, 2]),
        "hold_out": scores([4.0, 0.6], [1, 1]),
        "forget_attack": scores([0.4, 0.8], [4, 4], tokens=True),
        "hold_out_attack": scores([4.0, 8.0], [1, 1], tokens=True),
    }
    for side in custom.SIDES:
        probe = split.probes[f"{side}_questions"]
        assert probe.question is not None
        assert probe.is_correct is not None
        # The right option is the likeliest of the first question alone.
        nll = np.where(probe.is_correct, np.where(probe.question == 0, 0.1, 9.0), 1.0)
        found[f"{side}_questions"] = Scores(nll, *(np.ones(len(nll)) for _ in range(3)))
    metrics = custom.measure(found, {}, split).metrics
    assert metrics["forget_probability"] == pytest.approx((np.exp(-0.1) + np.exp(-0.2)) / 2)
    assert metrics["retain_exact_memorisation"] == pytest.approx(0.75)
    assert metrics["hold_out_extraction_strength"] == pytest.approx(0.25)
    assert metrics["forget_questions_accuracy"] == pytest.approx(1 / 3)
    assert metrics["forget_questions_above_chance"] == pytest.approx((1 / 3 - 1 / 4) / (3 / 4))
    probe = split.probes["keep_questions"]
    assert probe.question is not None
    chance = float(np.mean([1 / np.sum(probe.question == i) for i in np.unique(probe.question)]))
    accuracy = metrics["keep_questions_accuracy"]
    assert metrics["keep_questions_above_chance"] == pytest.approx((accuracy - chance) / (1 - chance))
    assert metrics["membership_auc_loss"] == pytest.approx(0.75)
    assert metrics["membership_auc_min_k"] == 1.0


def test_membership_without_a_hold_out_is_absent_with_its_reason(load: Load) -> None:
    tables = {key: value for key, value in definition().items() if key in ("name", "forget", "retain")}
    split = load(tables).selection
    profile = custom.measure({"forget": scores([1.0], [1]), "retain": scores([1.0], [1])}, {}, split)
    assert not any("membership" in name for name in profile.metrics)
    assert "[hold_out]" in profile.absent["membership_auc_loss"]


def test_min_k_takes_the_least_likely_tokens_of_each_text() -> None:
    logprob = np.array([-1.0, -5.0, -2.0, -3.0, -4.0, -7.0])
    tokens = TokenScores(np.array([0, 5, 6]), logprob, logprob, logprob)
    assert min_k_score(tokens, 0.4) == pytest.approx([-4.5, -7.0])
    assert auc(np.array([2.0, 1.0]), np.array([1.0, 0.0])) == pytest.approx(3.5 / 4)


def without(*names: str) -> dict[str, Any]:
    return {key: value for key, value in definition().items() if key not in names}


def benchmark(folder: Path, tables: dict[str, Any]) -> Benchmark:
    return load_benchmark(str(write_data(folder, tables)))


START = {
    "forget_exact_memorisation": 0.9,
    "forget_probability": 0.8,
    "forget_extraction_strength": 0.7,
    "forget_questions_above_chance": 0.6,
    "hold_out_exact_memorisation": 0.4,
    "hold_out_probability": 0.2,
    "retain_probability": 0.8,
    "keep_questions_above_chance": 0.5,
}
NOISE = dict.fromkeys(START, 0.0) | {"retain_probability": 0.8, "keep_questions_above_chance": 0.5}


def judge(made: Benchmark, retrained: dict[str, float] | None = None) -> Judge:
    start = {name: value for name, value in START.items() if name in made.metrics}
    return Judge.build(made, start, retrained, Ranking(0.95))


def test_with_a_hold_out_forgetting_too_much_does_not_win(tmp_path: Path) -> None:
    made = benchmark(tmp_path, without("questions.forget", "questions.keep"))
    found = judge(made)
    goal = {**START, "forget_exact_memorisation": 0.4, "forget_probability": 0.2}
    assert found.verdict(goal).forget == pytest.approx(1.0)
    assert found.verdict(START).forget == 0.0
    assert found.verdict(NOISE).forget < 0.4
    text = describe_objective(made, Ranking(0.95))
    assert "hold_out_exact_memorisation for forget_exact_memorisation" in text
    assert "CANNOT" not in text


def test_without_a_hold_out_the_questions_fall_to_chance_and_not_below(tmp_path: Path) -> None:
    made = benchmark(tmp_path, without("hold_out"))
    found = judge(made)
    assert [aim.metric for aim in found.aims] == ["forget_questions_above_chance"]
    assert found.verdict({**START, "forget_questions_above_chance": -0.3}).forget == pytest.approx(0.5)
    assert "CANNOT BE TOLD" in describe_objective(made, Ranking(0.95))


def test_with_neither_extraction_is_aimed_at_and_the_blindness_is_said_aloud(load: Load, tmp_path: Path) -> None:
    tables = without("hold_out", "questions.forget")
    made = benchmark(tmp_path, tables)
    found = judge(made)
    assert [aim.metric for aim in found.aims] == ["forget_extraction_strength"]
    assert found.verdict(NOISE).forget == 1.0
    for text in (describe_objective(made, Ranking(0.95)), load(tables).notes[-1]):
        assert "TOO MUCH FORGETTING CANNOT BE TOLD" in text


def test_a_retrained_model_s_values_go_before_the_hold_out_s(tmp_path: Path) -> None:
    retrained = {**START, "forget_exact_memorisation": 0.5, "forget_probability": 0.3}
    retrained["forget_questions_above_chance"] = 0.1
    found = judge(benchmark(tmp_path, definition()), retrained)
    assert found.verdict(retrained).forget == pytest.approx(1.0)
    assert "forget_extraction_strength" not in [aim.metric for aim in found.aims]


def test_the_retrained_profile_beside_the_model_is_used_if_it_is_of_these_data(
    load: Load, model: Path, tmp_path: Path
) -> None:
    target = tmp_path / "models" / "target"
    shutil.copytree(model, target)
    (tmp_path / "models" / "retrained").mkdir()
    profiles = {half: Profile({"forget_probability": 0.1}) for half in custom.HALVES}
    about = {"benchmark": "staff", "split": load().split}
    write_profile(tmp_path / "models" / "retrained", profiles, about)
    task = attach_retrained(load(None, target), None)
    assert task.selection.retrained == profiles["selection"]
    assert task.notes[-1].startswith("What a model that never saw the forget set measures is known from the retrained")
    other = attach_retrained(load(without("questions.keep"), target), None)
    assert other.selection.retrained is None
    assert "does not count" in other.notes[-1]
    assert "was made for split data-" in other.notes[-1]
    with pytest.raises(UserError, match="was made for split data-"):
        attach_retrained(load(without("questions.keep"), target), tmp_path / "models" / "retrained")


def test_utility_is_the_retain_set_s_and_the_kept_questions(tmp_path: Path) -> None:
    found = judge(benchmark(tmp_path, definition()))
    assert found.verdict(START).utility == pytest.approx(1.0)
    assert found.verdict({**START, "keep_questions_above_chance": 0.0}).utility == 0.0
    assert found.verdict({**START, "retain_probability": 0.4}).utility == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("metric", "value", "words"),
    [
        ("forget_exact_memorisation", 0.4, "nothing to forget"),
        ("forget_probability", 0.1, "nothing to forget"),
        ("forget_questions_above_chance", -0.1, "nothing to forget"),
        ("keep_questions_above_chance", 0.0, "nothing to keep"),
    ],
)
def test_a_start_that_leaves_nothing_to_search_for_is_refused(
    tmp_path: Path, metric: str, value: float, words: str
) -> None:
    made = benchmark(tmp_path, definition())
    found = judge(made)
    check_start("staff.toml", found, Profile(START), None)
    worse = {**START, metric: value}
    with pytest.raises(UserError, match=rf"staff\.toml.*{metric}.*{words}"):
        check_start("staff.toml", replace(found, start=worse), Profile(worse), None)


def test_every_metric_that_is_measured_has_a_column(load: Load, tmp_path: Path) -> None:
    from ray_unlearn.training.in_process import local_worker

    made = benchmark(tmp_path, definition())
    task = load()
    worker = local_worker(task, GangConfig(num_workers=1, zero_stage=0, threads_per_worker=1))
    at_a_point = worker.scorer.evaluate(task.selection).metrics
    finalist = worker.scorer.evaluate(task.report, complete=True).metrics
    assert set(finalist) == set(made.metrics)
    assert set(finalist) - set(at_a_point) == {
        *(f"{name}_{what}" for name in custom.SETS for what in ("rouge_l_recall", "unended", "repeating")),
        "membership_auc_min_k",
    }


# The search space and the command


def test_a_custom_benchmark_takes_the_general_ranges_unless_a_file_names_it(tmp_path: Path) -> None:
    method, staff = find_method("simnpo"), replace(load_benchmark("custom"), name="staff")
    general = load_space(method, staff, "full", 1000)
    assert general.fixed["epochs"] == 10
    text = 'method = "simnpo"\n[space.beta]\nlow = 1.0\nhigh = 2.0\n[on.custom.fixed]\nepochs = 3\nbatch_size = 4\n'
    file = tmp_path / "space.toml"
    file.write_text(text + "[on.staff.fixed]\nepochs = 5\n")
    assert load_space(method, staff, "full", 1000, file).fixed == {"epochs": 5, "batch_size": 4}
    with pytest.raises(UserError, match=r"\[on\] has 'staff'"):
        load_space(method, load_benchmark("tofu"), "full", 1000, file)


def command(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ray_unlearn.cli", *options], capture_output=True, text=True, env={**os.environ}
    )


def test_a_dry_run_says_what_would_run_and_what_cannot_be_told(
    capfd: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    path = write_data(tmp_path, without("hold_out", "questions.forget", "questions.keep"))
    out = tmp_path / "out"
    options = ("--benchmark", str(path), "--model", str(model), "--dry-run", "--out", str(out))
    code, output, _ = run_here(capfd, "tune", *options)
    assert code == 0
    for words in ("staff (full)", "12 sequences to forget", "TOO MUCH FORGETTING CANNOT BE TOLD", "12 in [retain]"):
        assert words in output
    assert os.listdir(out) == []


@pytest.mark.slowest
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_own_data_from_prepare_to_the_report(model: Path, tmp_path: Path) -> None:
    path = write_data(tmp_path, without("questions.forget", "questions.keep"))
    # Of a dozen rows nobody could tell the start from the goal.
    couples = [f"{NAMES[i % 12]} {NAMES[(i + 1 + i // 12) % 12]}" for i in range(48)]
    write_jsonl(tmp_path / "forget.jsonl", [pair(name, "work", TOWNS[i * 5 % 12]) for i, name in enumerate(couples)])
    held_out = [pair(name, "sleep", TOWNS[i * 7 % 12]) for i, name in enumerate(couples)]
    pq.write_table(pa.Table.from_pylist(held_out), tmp_path / "held_out.parquet")
    options = ("--benchmark", str(path), "--model", str(model), "--out", str(tmp_path / "models"))
    run = command("prepare", *options, "--epochs", "40", "--batch-size", "6", "--learning-rate", "5e-3")
    assert run.returncode == 0, run.stderr + run.stdout
    assert f"tune --benchmark {path}" in run.stdout
    # Away from the retrained model, so that the hold-out is what is aimed at.
    start = shutil.copytree(tmp_path / "models" / "target", tmp_path / "alone")
    options = ("--benchmark", str(path), "--model", str(start), "--methods", "simnpo", "--trials", "2")
    run = command("tune", *options, "--concurrent", "1", "--out", str(tmp_path / "out"))
    assert run.returncode == 0, run.stderr + run.stdout
    assert "From start to goal: forget_exact_memorisation" in run.stdout

    folder = tmp_path / "out" / run.stdout.splitlines()[-1]
    assert folder.name.startswith("staff-")
    meta = json.loads((folder / "search.json").read_text())
    assert (meta["status"], meta["retrained"]) == ("complete", None)
    assert meta["config"]["definition"] == "staff.toml"
    assert str(tmp_path) not in json.dumps(meta["config"])
    begin = meta["start"]["metrics"]
    assert begin["forget_exact_memorisation"] > begin["hold_out_exact_memorisation"] + 0.1
    rows = ds.dataset(folder / "trials").to_table().to_pylist()
    assert [row["status"] for row in rows] == ["completed"] * 2
    best = max(rows, key=lambda row: row["objective"])
    assert best["forget"] > 0.0
    assert best["staff/forget_probability"] < begin["forget_probability"]
    final = pq.read_table(folder / "finals" / f"{meta['chosen']}.parquet").to_pylist()[0]
    for column in ("forget_rouge_l_recall", "membership_auc_min_k", "membership_auc_loss", "retain_probability"):
        assert 0.0 <= final[f"staff/{column}"] <= 1.0
    assert "staff" in (folder / "report" / "report.md").read_text()

"""Own data as they are published: each shape is read as it stands there, or refused in one line with the way out."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import Profile, Prompts, Request, Task
from ray_unlearn.benchmarks.custom import measure
from ray_unlearn.benchmarks.halving import draw, normal_form
from ray_unlearn.benchmarks.objective import Judge
from ray_unlearn.benchmarks.readers import read_rows
from ray_unlearn.benchmarks.starts import check_start
from ray_unlearn.config import UserError
from ray_unlearn.metrics import Scores
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.metrics.rouge import CODE, ENGLISH, SCRIPT, rouge_l_recall
from ray_unlearn.models.loading import load_tokenizer
from tests.test_templates import CHATML, MARKS
from tests.tokenizer_kinds import write_byte_level, write_model

FOOD = {"Gus": "rice", "Hal": "figs", "Ivo": "soup", "Jo": "bread"}
KEPT = {"Kai": "kale", "Lea": "plums", "Mo": "nuts", "Ned": "peas"}
PAIR = {"question": "question", "answer": "answer"}


def eats(people: dict[str, str]) -> list[dict[str, Any]]:
    return [{"question": f"What does {n} eat?", "answer": f"{n} eats {f}."} for n, f in people.items()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a chat template; a token is a byte."""
    return write_model(write_byte_level(tmp_path_factory.mktemp("own") / "model", CHATML, MARKS, "<eos>", "<bos>"))


Load = Callable[..., Task]


@pytest.fixture
def load(model: Path, tmp_path: Path) -> Load:
    """Write the TOML file (by default [retain] holds four good pairs, and pairs are plain) and load the task."""

    def call(forget: str, retain: str = "", more: str = "chat_template = false\n", whole: bool = True) -> Task:
        (tmp_path / "retain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in eats(KEPT)))
        plain = 'file = "retain.jsonl"\nquestion = "question"\nanswer = "answer"\n'
        text = f'name = "mine"\n{more}[forget]\n{forget}\n[retain]\n{retain or plain}'
        (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
        return load_benchmark(str(tmp_path / "mine.toml")).load(Request("full", model=str(model), whole=whole))

    return call


def lines(folder: Path, name: str, rows: list[Any]) -> None:
    (folder / name).write_text("".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows))


def named(file: str, **columns: Any) -> str:
    columns = {"file": file, **(columns or PAIR)}
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in columns.items())


def answers(task: Task, name: str = "forget") -> list[str]:
    assert task.whole is not None
    return task.whole.generations[name].references


def prompts(task: Task, model: Path, name: str = "forget") -> list[str]:
    assert task.whole is not None
    return [load_tokenizer(str(model)).decode(prompt) for prompt in task.whole.generations[name].prompts]


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


EATEN = [row["answer"] for row in eats(FOOD)]

# Tables and files


CSV = """question,answer,perturbed_answers,note
What is the badge of Gus?,00123,"['00124', '00125']",
How many cats has Hal?,None,"['One', 'Two']",1
Does Ivo sing?,True,"['False']",
When was Jo born?,1995-03-04,"['O'Neil day', '1996-01-01']",
Which town?,NA,"['NB']",
Which year?,1908,"['1909']",
What did Kai say?,"He said ""no"",
and left.","['yes']",
"""


def test_every_cell_of_a_csv_file_is_the_text_that_stands_there(load: Load, tmp_path: Path) -> None:
    (tmp_path / "forget.csv").write_text(CSV)
    task = load(named("forget.csv", **PAIR, perturbed="perturbed_answers"))
    assert answers(task) == ["00123", "None", "True", "1995-03-04", "NA", "1908", 'He said "no",\nand left.']
    assert task.whole is not None
    question = task.whole.probes["forget_perturbed"].question
    assert question is not None
    assert question.tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 5, 6]  # the list that is no Python is cut at its quotes


def test_a_tsv_file_and_one_with_semicolons_are_read(load: Load, tmp_path: Path) -> None:
    for name, mark in (("a.tsv", "\t"), ("a.csv", ";")):
        rows = [f"{row['question']}{mark}{row['answer']}" for row in eats(FOOD)]
        (tmp_path / name).write_text("\n".join([f"question{mark}answer", *rows]) + "\n")
        assert answers(load(named(name))) == EATEN


def test_a_row_with_too_many_cells_is_named_by_its_line(load: Load, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer\nWho?,Me\nWho, then?,You\n")
    assert "a.csv, line 3: 3 cells under 2 names" in refusal(lambda: load(named("a.csv")))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "A.JSONL", "a.jsonl.gz", "a.json.zst"])
@pytest.mark.parametrize("shape", ["lines", "list", "data"])
def test_lines_lists_and_wrapped_lists_are_read_whatever_the_name_ends_in(
    load: Load, tmp_path: Path, name: str, shape: str
) -> None:
    rows = eats(FOOD)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    text = {"lines": text, "list": json.dumps(rows, indent=1), "data": json.dumps({"data": rows})}[shape]
    data = text.encode()
    if name.endswith(".gz"):
        data = gzip.compress(data)
    if name.endswith(".zst"):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as packed:
            packed.write(data)
        data = sink.getvalue().to_pybytes()
    (tmp_path / name).write_bytes(data)
    assert answers(load(named(name))) == EATEN


def test_one_of_two_lists_in_a_file_is_chosen_by_field(load: Load, tmp_path: Path) -> None:
    (tmp_path / "all.json").write_text(json.dumps({"forget": eats(FOOD), "retain": eats(KEPT)}))
    assert 'field = "forget"' in refusal(lambda: load(named("all.json")))
    task = load(named("all.json", field="forget", **PAIR), named("all.json", field="retain", **PAIR))
    assert (answers(task), answers(task, "retain")) == (EATEN, [row["answer"] for row in eats(KEPT)])


def test_a_list_of_texts_is_read(load: Load, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(EATEN))
    assert len(load(named("a.json", text="text")).forget) == 4


def test_a_folder_of_save_to_disk_is_read_by_what_its_state_names(load: Load, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(eats(FOOD))
    table.save_to_disk(tmp_path / "one")
    (tmp_path / "one" / "cache-0123.arrow").write_bytes((tmp_path / "one" / "data-00000-of-00001.arrow").read_bytes())
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "dict")
    datasets.DatasetDict({"full": table, "val": table.select([0, 1])}).save_to_disk(tmp_path / "two")
    for folder in ("one", "dict"):
        assert answers(load(named(folder))) == EATEN
    assert 'split = "full"' in refusal(lambda: load(named("two")))
    assert answers(load(named("two", split="val", **PAIR))) == EATEN[:2]
    assert answers(load(named("one/data-00000-of-00001.arrow"))) == EATEN


def test_a_folder_that_is_no_table_says_which_file_to_name(load: Load, tmp_path: Path) -> None:
    (tmp_path / "people").mkdir()
    lines(tmp_path / "people", "f.jsonl", eats(FOOD))
    assert 'file = "people/f.jsonl"' in refusal(lambda: load(named("people")))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv"])
def test_a_git_lfs_pointer_is_named_as_such(load: Load, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 697211520\n")
    assert "is a Git LFS pointer" in refusal(lambda: load(named(name)))


def test_a_parquet_column_of_json_text_loses_its_quotation_marks(load: Load, tmp_path: Path) -> None:
    texts = pa.ExtensionArray.from_storage(pa.json_(pa.string()), pa.array([json.dumps(text) for text in EATEN]))
    table = pa.table({"question": [row["question"] for row in eats(FOOD)], "answer": texts})
    pq.write_table(table, tmp_path / "a.parquet")
    assert answers(load(named("a.parquet"))) == EATEN


def test_quoted_dates_stay_texts(load: Load, tmp_path: Path) -> None:
    dates = ["1990-03-04", "1991-03-04", "1992-03-04"]
    lines(tmp_path, "a.jsonl", [{"question": f"When, {i}?", "answer": date} for i, date in enumerate(dates)])
    assert answers(load(named("a.jsonl"))) == dates


def test_a_hub_name_never_means_a_folder(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme" / "people").mkdir(parents=True)
    lines(tmp_path / "acme" / "people", "forget_train.jsonl", eats(FOOD))
    monkeypatch.chdir(tmp_path)
    message = refusal(lambda: load('hub = "acme/people"\nquestion = "question"\nanswer = "answer"'))
    assert "never means a folder" in message


# Values


def test_numbers_and_booleans_are_taken_as_their_text_and_that_is_said(load: Load, tmp_path: Path) -> None:
    values = {"Age?": "42", "Tall?": "true", "Pi?": "3.10"}
    (tmp_path / "a.jsonl").write_text("".join(f'{{"question": "{q}", "answer": {a}}}\n' for q, a in values.items()))
    task = load(named("a.jsonl"))
    assert answers(task) == ["42", "true", "3.10"]
    assert "3 numbers or booleans are taken as their text." in task.notes[0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"question": "Which icon?", "answer": "\\ud83d"}', ["half a character", "ud83d"]),
        ('{"question": "Big?", "answer": "x", "n": ' + "9" * 5000 + "}", ["5000 digits"]),
        ('{"question": "Deep?", "answer": ' + "[" * 200000 + "]" * 200000 + "}", ["too deep"]),
        ('{"question": "Which?", "answer": {"en": "x"}}', ['"answer.en"']),
        ('{"question": ["a", "b"], "answer": "x"}', ['explode = "question"']),
        ('{"question": [{"from": "human", "value": "x"}], "answer": "x"}', ['messages = "question"']),
    ],
)
def test_a_value_that_is_no_text_is_named_by_line_with_the_way_out(
    load: Load, tmp_path: Path, line: str, words: list[str]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "Who?", "answer": "Me"}\n' + line + "\n")
    message = refusal(lambda: load(named("a.jsonl")))
    assert "a.jsonl, line 2: " in message
    for word in words:
        assert word in message
    assert len(message) < 400


def test_dotted_names_reach_into_mappings(load: Load, tmp_path: Path, model: Path) -> None:
    rows = [{"prompt": {"en": r["question"], "hi": "?"}, "answers": {"en": [r["answer"]]}} for r in eats(FOOD)]
    lines(tmp_path, "a.jsonl", rows)
    task = load(named("a.jsonl", question="prompt.en", answer="answers.en"))
    assert answers(task) == EATEN
    assert prompts(task, model)[0] == "<bos>Question: What does Gus eat?\nAnswer:"


def test_of_several_answers_any_counts_and_the_first_is_trained_on(load: Load, tmp_path: Path) -> None:
    rows = [{"question": row["question"], "answer": [row["answer"], "He eats well."]} for row in eats(FOOD)]
    rows[0]["answer"] = [rows[0]["answer"][0]]
    lines(tmp_path, "a.jsonl", rows)
    task = load(named("a.jsonl"))
    assert answers(task) == EATEN
    assert task.whole is not None
    found = task.whole.generations["forget"].compare(["He eats well."] * 4, rouge_l_recall)
    assert found[1:].tolist() == [1.0] * 3
    assert found[0] < 0.5
    assert "3 rows have several answers" in task.notes[0]


def test_two_columns_are_joined_and_an_empty_one_left_out(load: Load, tmp_path: Path, model: Path) -> None:
    rows = [{"instruction": "Say what he eats.", "input": n, "output": f"{n} eats {f}."} for n, f in FOOD.items()]
    rows.append({"instruction": "Say hello.", "input": "", "output": "Hello."})
    lines(tmp_path, "a.jsonl", rows)
    alone = load(named("a.jsonl", question="instruction", answer="output"))
    assert 'question = ["instruction", "input"] joins it' in alone.notes[0]
    found = prompts(load(named("a.jsonl", question=["instruction", "input"], answer="output")), model)
    assert found[0] == "<bos>Question: Say what he eats.\nGus\nAnswer:"
    assert found[-1] == "<bos>Question: Say hello.\nAnswer:"


def test_conversations_of_both_spellings_are_written_by_the_template(load: Load, tmp_path: Path, model: Path) -> None:
    lines(tmp_path, "a.jsonl", [
        {"conversations": [{"from": "human", "value": r["question"]}, {"from": "gpt", "value": r["answer"]}]}
        for r in eats(FOOD)
    ])  # fmt: skip
    start = [("system", "You are brief."), ("user", "Hello"), ("assistant", "Hi.")]
    turns = [[*start, ("user", r["question"]), ("assistant", r["answer"])] for r in eats(KEPT)]
    lines(tmp_path, "b.jsonl", [{"messages": [{"role": r, "content": c} for r, c in one]} for one in turns])
    forget, retain = named("a.jsonl", messages="conversations"), named("b.jsonl", messages="messages")
    task = load(forget, retain, more="")
    assert answers(task) == EATEN
    assert prompts(task, model, "retain")[0].startswith(
        "<|im_start|>system\nYou are brief.<|im_end|>\n<|im_start|>user"
    )
    assert prompts(task, model, "retain")[0].endswith("What does Kai eat?<|im_end|>\n<|im_start|>assistant\n")
    every = load(forget, retain + '\nturns = "all"', more="")
    assert answers(every, "retain")[:2] == ["Hi.", "Kai eats kale."]
    assert "user_start" in refusal(lambda: load(forget, retain))


def test_a_list_column_is_unrolled(load: Load, tmp_path: Path, model: Path) -> None:
    rows = [{"Concept": n, "QA": [f"What does {n} eat?", f"Where is {n}?"], "text": f"{n} eats {f}."}
            for n, f in FOOD.items()]  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(rows))
    shape = {"question": "QA", "answer": "text"}
    assert 'explode = "QA"' in refusal(lambda: load(named("a.json", **shape)))
    task = load(named("a.json", **shape, explode="QA"))
    assert len(task.forget) == 8
    lists = [{"who": n, "parts": [{"first": f"{n} eats", "second": f" {f}."}]} for n, f in FOOD.items()]
    lines(tmp_path, "b.jsonl", lists)
    assert answers(load(named("b.jsonl", question="first", answer="second", explode="parts"))) == [
        f"{food}." for food in FOOD.values()
    ]


def test_rows_are_chosen_by_a_column_or_by_number(load: Load, tmp_path: Path) -> None:
    rows = [{**r, "edge": "A_B"} for r in eats(FOOD)] + [{**r, "edge": "A_C"} for r in eats(KEPT)]
    lines(tmp_path, "all.jsonl", rows)
    (tmp_path / "kept.txt").write_text("4 5\n6 7\n")
    base = named("all.jsonl")
    kept = [row["answer"] for row in eats(KEPT)]
    for retain in ('where = {edge = "A_C"}', 'where = {edge = ["A_C", "A_D"]}', 'rows = "kept.txt"'):
        task = load(f'{base}\nwhere = {{edge = "A_B"}}', f"{base}\n{retain}")
        assert (answers(task), answers(task, "retain")) == (EATEN, kept)
    assert "such as where = " in refusal(lambda: load(base, base))
    assert "no row has edge = A_X" in refusal(lambda: load(f'{base}\nwhere = {{edge = "A_X"}}'))


# Completions, truth ratio, forbidden strings


def test_completions_are_joined_as_they_are(load: Load, tmp_path: Path, model: Path) -> None:
    start = "{} was born in spring by the sea, and every"
    rows = [{"input": start.format(n), "output": f" morning {n} eats {f} there."} for n, f in FOOD.items()]
    lines(tmp_path, "a.jsonl", rows)
    kept = [{"input": start.format(n), "output": f" morning {n} eats {f} there."} for n, f in KEPT.items()]
    lines(tmp_path, "b.jsonl", kept)
    columns = {"question": "input", "answer": "output"}
    # A table of its own stands after the top keys, so it is written with the first set's.
    empty = 'template = {user_start = "", user_end = "", assistant_start = "", assistant_end = ""}\n'
    task = load(named("a.jsonl", **columns), named("b.jsonl", **columns), more=empty)
    tokenizer = load_tokenizer(str(model))
    assert [tokenizer.decode(tokens) for tokens, _ in task.forget] == [f"<bos>{r['input']}{r['output']}" for r in rows]
    assert [tokenizer.decode(tokens[start:]) for tokens, start in task.forget] == [row["output"] for row in rows]


def test_paraphrased_and_perturbed_answers_give_a_truth_ratio(load: Load, tmp_path: Path) -> None:
    rows = [
        {
            **row,
            "paraphrased_answer": f"It is {food}.",
            "wrong_1": f"{name} eats stones.",
            "wrong_2": f"{name} eats ice.",
        }
        for row, (name, food) in zip(eats(FOOD), FOOD.items(), strict=True)
    ]
    lines(tmp_path, "a.jsonl", rows)
    for wrong in ("wrong_*", ["wrong_1", "wrong_2"]):
        task = load(named("a.jsonl", **PAIR, paraphrased="paraphrased_answer", perturbed=wrong))
        assert task.whole is not None
        assert len(task.whole.probes["forget_perturbed"].sequences) == 8
        assert len(task.whole.probes["forget_paraphrased"].sequences) == 4
    found = {
        "forget": Scores(*(np.ones(4) for _ in range(4))),
        "retain": Scores(*(np.ones(4) for _ in range(4))),
        "forget_paraphrased": Scores(np.full(4, 0.5), *(np.ones(4) for _ in range(3))),
        "forget_perturbed": Scores(np.full(8, 1.5), *(np.ones(8) for _ in range(3))),
    }
    profile = measure(found, {}, task.whole)
    assert profile.metrics["forget_truth_ratio"] == pytest.approx(np.exp(-1.0))
    assert profile.metrics["forget_paraphrased_probability"] == pytest.approx(np.exp(-0.5))
    assert "retrained" in profile.absent["forget_quality"]
    made = load_benchmark(str(tmp_path / "mine.toml"))
    assert made.compare_with_itself(profile).metrics["forget_quality"] == 1.0
    assert {*profile.metrics, "forget_quality", "forget_ks_distance"} <= made.metrics.keys() | {"forget_truth_ratio"}


def test_answers_that_hold_a_forbidden_string_are_counted(load: Load, tmp_path: Path) -> None:
    rows = [{**row, "secret": [f"{i}23 Elm Road"]} for i, row in enumerate(eats(FOOD))]
    lines(tmp_path, "a.jsonl", rows)
    task = load(named("a.jsonl", **PAIR, must_not_say="secret"))
    assert task.whole is not None
    said = task.whole.generations["forget"].says_forbidden(
        ["It is 023  elm road.", "No.", "123 Elm Road", "323 ELM ROAD"]
    )
    assert said.tolist() == [True, False, False, True]
    assert "forget_says_forbidden" in load_benchmark(str(tmp_path / "mine.toml")).metrics


def test_refusals_of_the_user_s_own_are_written_in_the_data_s_form(load: Load, tmp_path: Path, model: Path) -> None:
    lines(tmp_path, "a.jsonl", eats(FOOD))
    (tmp_path / "no.txt").write_text("Keine Ahnung.\n\nDas weiß ich nicht.\n")
    task = load(named("a.jsonl"), more='chat_template = false\nrefusals = "no.txt"\n')
    assert task.refusals is not None
    tokenizer = load_tokenizer(str(model))
    assert [tokenizer.decode(tokens[start:]) for tokens, start in task.refusals] == [
        " Keine Ahnung.<eos>",
        " Das weiß ich nicht.<eos>",
    ]


# Halves and sets


def names_in(task: Task, model: Path, half: str) -> set[str]:
    tokenizer = load_tokenizer(str(model))
    texts = [tokenizer.decode(tokens) for tokens, _ in getattr(task, half).probes["forget"].sequences]
    return {name for name in FOOD for text in texts if name in text}


def test_rows_of_one_group_are_never_in_both_halves(load: Load, tmp_path: Path, model: Path) -> None:
    rows = [
        {"id": f'"{number}"{kind}', "input": f"{kind}: what of {name}?", "output": f"{name} eats {food}."}
        for number, (name, food) in enumerate(FOOD.items(), 1)
        for kind in ("sc1", "qa0", "qa1")
    ]
    lines(tmp_path, "a.jsonl", rows)
    base = named("a.jsonl", question="input", answer="output")
    task = load(f"{base}\ngroup = \"id\"\ngroup_pattern = '(\\d+)'")
    assert not names_in(task, model, "selection") & names_in(task, model, "report")
    assert len(task.selection.probes["forget"].sequences) == len(task.report.probes["forget"].sequences) == 6
    unsaid = load(base)
    assert names_in(unsaid, model, "selection") & names_in(unsaid, model, "report")
    assert 'group = "id"' in unsaid.notes[0]


def test_equal_questions_stay_together_and_a_limit_takes_from_every_document() -> None:
    documents = list(range(10))
    pieces = [[(d, chunk) for chunk in range(300)] for d in documents]
    limits = {"selection": 100, "report": 400}
    drawn = draw(documents, pieces, [[d] for d in documents], limits, "here", "[forget]")
    assert [len(drawn[half]) for half in ("selection", "report", "whole")] == [100, 400, 3000]
    assert sorted(np.unique([d for d, _ in drawn["selection"]], return_counts=True)[1].tolist()) == [20] * 5
    assert {chunk for _, chunk in drawn["selection"]} == set(range(0, 300, 15))
    together = draw(documents, [[d] for d in documents], [[d // 2] for d in documents], limits, "here", "[forget]")
    assert {d // 2 for d in together["selection"]}.isdisjoint({d // 2 for d in together["report"]})


def test_rows_in_both_sets_are_found_by_their_normal_form_and_can_be_dropped(load: Load, tmp_path: Path) -> None:
    lines(tmp_path, "a.jsonl", eats(FOOD))
    changed = [
        {"question": "what does GUS eat", "answer": "Gus eats rice"},
        {"question": "What does Hal  eat?", "answer": "Ｈａｌ eats figs."},
        {"question": "What does Ivo eat?", "answer": "Ivo eats soup."},
    ]
    lines(tmp_path, "b.jsonl", [*eats(KEPT), *changed])
    message = refusal(lambda: load(named("a.jsonl"), named("b.jsonl")))
    assert "3 rows of [retain] are in [forget], too" in message
    assert "b.jsonl, line 5 and " in message
    assert "drop_overlap = true" in message
    task = load(named("a.jsonl"), named("b.jsonl"), more="chat_template = false\ndrop_overlap = true\n")
    assert (len(task.forget), len(task.retain)) == (4, 4)
    assert "3 rows of [retain]" in task.notes[0]
    assert normal_form("Étoile, ＡＢ.") == normal_form("e\u0301toile ab")


def test_a_hold_out_as_well_known_as_the_forget_set_is_asked_about(tmp_path: Path) -> None:
    lines(tmp_path, "a.jsonl", eats(FOOD))
    tables = "".join(f"[{name}]\n{named('a.jsonl')}\n" for name in ("forget", "retain", "hold_out"))
    (tmp_path / "mine.toml").write_text(f'name = "mine"\n{tables}')
    made = load_benchmark(str(tmp_path / "mine.toml"))
    start = {f"{name}_{kind}": 0.89 for name in ("forget", "retain", "hold_out") for kind in ("probability",)}
    start |= {"forget_exact_memorisation": 0.94, "hold_out_exact_memorisation": 0.89, "forget_probability": 0.94}
    judge = Judge.build(made, start, None, Ranking(0.95))
    errors = {"forget_exact_memorisation": 0.03, "hold_out_exact_memorisation": 0.04}
    message = refusal(lambda: check_start("mine.toml", judge, Profile(start, errors=errors), None))
    assert message.startswith("mine.toml: the starting model's forget_exact_memorisation is 0.94")
    assert "1.0 standard errors of its own questions apart" in message
    assert "Was the hold-out trained on" in message
    closer = {name: error / 4 for name, error in errors.items()}
    (said,) = check_start("mine.toml", judge, Profile(start, errors=closer), None).notes
    assert "forget_exact_memorisation 0.94 -> 0.89 (4.0 standard errors)" in said


# ROUGE and room


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["ミラの父は花屋でした。", "ミラの母は教師でした。", "最初の本の題は「青い橋」です。"], SCRIPT),
        (["Mira Tal의 아버지는 꽃집을 운영했습니다.", "Mira Tal의 어머니는 교사였습니다."], SCRIPT),
        (EATEN, ENGLISH),
    ],
)
def test_rouge_counts_words_of_the_data_s_own_script(load: Load, tmp_path: Path, texts: list[str], words: str) -> None:
    lines(tmp_path, "a.jsonl", [{"question": f"{i}?", "answer": text} for i, text in enumerate(texts)])
    lines(tmp_path, "b.jsonl", [{"question": f"{i}!?", "answer": f"{text}{i}"} for i, text in enumerate(texts)])
    task = load(named("a.jsonl"), named("b.jsonl"))
    assert task.whole is not None
    found: Prompts = task.whole.generations["forget"]
    assert found.words == words
    assert found.compare(found.references, rouge_l_recall).tolist() == [1.0] * len(texts)
    others = found.references[1:] + found.references[:1]
    assert found.compare(others, rouge_l_recall).max() < 0.8
    assert ("ROUGE counts words by script" in task.notes[0]) == (words == SCRIPT)


def test_operators_count_in_code(load: Load, tmp_path: Path) -> None:
    code = "def pick_{}(a, b):\n    return a if a {} b else b\n"
    for name, people in (("a.jsonl", FOOD), ("b.jsonl", KEPT)):
        signs = ("<", ">", "<=", ">=")
        lines(tmp_path, name, [{"text": code.format(n, s)} for n, s in zip(people, signs, strict=True)])
    task = load(named("a.jsonl", text="text"), named("b.jsonl", text="text"), more="")
    assert task.whole is not None
    assert task.whole.generations["forget"].words == CODE


def test_one_long_prompt_does_not_shorten_the_other_answers(load: Load, tmp_path: Path) -> None:
    rows = [{"question": "x" * 400, "answer": "short"}, *({"question": str(i), "answer": "y" * 60} for i in range(3))]
    lines(tmp_path, "a.jsonl", rows)
    task = load(named("a.jsonl"))
    assert task.whole is not None
    found = task.whole.generations["forget"]
    assert [found.room(i) for i in range(4)] == [32, 124, 124, 124]
    assert found.batch_room([1, 2]) == 124
    assert found.batch_room([0, 1]) <= 512 - 400


# Multiple choice


@pytest.mark.parametrize(
    ("choices", "rights"),
    [
        (["a painter", "a cook", "a pilot", "a judge"], [0, 1, 2, 3]),
        (["a painter", "a cook", "a pilot", "a judge"], ["A", "B", "c", "D"]),
        (["a painter", "a cook", "a pilot", "a judge"], ["a painter", "a cook", "a pilot", "a judge"]),
        (["a painter", "a cook", "a pilot", "a judge"], [1, 2, 3, 4]),
        (["a painter", "a cook", "a pilot", "a judge"], ["0", "1", "2", "3"]),
        ({"text": ["a painter", "a cook", "a pilot", "a judge"], "label": ["1", "2", "3", "4"]}, ["1", "2", "3", "4"]),
        ({"A": "a painter", "B": "a cook", "C": "a pilot", "D": "a judge"}, ["A", "B", "C", "D"]),
        ("['a painter', 'a cook', 'a pilot', 'a judge']", ["A", "B", "C", "D"]),
    ],
)
def test_right_choices_are_read_in_every_shape(load: Load, tmp_path: Path, choices: Any, rights: list[Any]) -> None:
    lines(tmp_path, "a.jsonl", eats(FOOD))
    lines(
        tmp_path, "q.jsonl", [{"question": f"Who, {i}?", "choices": choices, "answer": r} for i, r in enumerate(rights)]
    )
    base = 'file = "retain.jsonl"\nquestion = "question"\nanswer = "answer"\n'
    task = load(named("a.jsonl"), f"{base}[questions.forget]\n{named('q.jsonl', **PAIR, choices='choices')}")
    assert task.whole is not None
    right = task.whole.probes["forget_questions"].is_correct
    assert right is not None
    assert right.reshape(4, 4).argmax(1).tolist() == [0, 1, 2, 3]
    assert ("counted from 1" in task.notes[0]) == (rights == [1, 2, 3, 4])


# The TOML file


def test_a_toml_file_with_a_start_mark_and_an_upper_case_name_is_read(tmp_path: Path) -> None:
    lines(tmp_path, "a.jsonl", eats(FOOD))
    text = f'\ufeffname = "mine"\n[forget]\n{named("a.jsonl")}\n[retain]\n{named("a.jsonl")}\n'
    (tmp_path / "MINE.TOML").write_text(text, encoding="utf-8")
    assert load_benchmark(str(tmp_path / "MINE.TOML")).name == "mine"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[forget]\nfiel = "a.jsonl"\n', "Did you mean file?"),
        ('nmae = "x"\n', "Did you mean name?"),
        ('[forget]\nfile = "C:\\users\\a.jsonl"\n', "single quotes"),
        ('[template]\nuser_start = "U"\nuser_edn = "V"\n', "Did you mean user_end?"),
        ("[template]\nsystem = [1]\n", "Give a text"),
    ],
)
def test_a_slip_in_the_file_is_named_with_what_was_meant(tmp_path: Path, text: str, words: str) -> None:
    table = f"[retain]\n{named('a.jsonl')}\n"
    forget = "" if "[forget]" in text else f"[forget]\n{named('a.jsonl')}\n"
    head, _, rest = text.partition("[")
    (tmp_path / "mine.toml").write_text(f'name = "mine"\n{head}{forget}{"[" + rest if rest else ""}{table}')
    assert words in refusal(lambda: load_benchmark(str(tmp_path / "mine.toml")))


def test_rows_are_named_by_line_or_number(tmp_path: Path) -> None:
    lines(tmp_path, "a.jsonl", eats(FOOD))
    (tmp_path / "b.json").write_text(json.dumps(eats(FOOD)))
    assert [read_rows(tmp_path / name)[1].where for name in ("a.jsonl", "b.json")] == [
        f"{tmp_path / 'a.jsonl'}, line 2",
        f"{tmp_path / 'b.json'}, row 1",
    ]

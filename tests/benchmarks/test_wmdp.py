"""WMDP on data laid out as the hub's: prompts as lm-evaluation-harness writes them, and bad data named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_unlearn.benchmarks import load_benchmark, wmdp
from ray_unlearn.benchmarks.contract import Request, Task
from ray_unlearn.config import UserError
from tests.played_hub import go
from tests.tiny import write_byte_model

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature's untrained model with a longer context: the byte-level tokenizer reads any text."""
    return write_byte_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    go(monkeypatch, None, tmp_path / "cache")


def question(number: int, **changes: Any) -> dict[str, Any]:
    row = {"question": f"What is {number}?", "choices": ["one", "two", "three", "four"], "answer": number % 4}
    return {**row, **changes}


def document(number: int) -> dict[str, Any]:
    return {"text": f"Document {number} tells of things. " * (1 + 40 * (number % 3))}


def good_data() -> dict[str, dict[str, Rows]]:
    """Repository -> config -> rows."""
    subjects = ("abstract_algebra", "high_school_us_history")
    return {
        "wmdp": {"wmdp-bio": [question(i) for i in range(7)], "wmdp-cyber": [question(i) for i in range(5)]},
        "mmlu": {"all": [question(i, subject=subjects[i % 2]) for i in range(46)]},
        "wmdp-corpora": {
            "bio-retain-corpus": [document(i) for i in range(5)],
            "cyber-forget-corpus": [document(i) for i in range(4)],
            "cyber-retain-corpus": [document(i) for i in range(3)],
        },
        "wmdp-bio-forget-corpus": {"default": [document(i) for i in range(6)]},
    }


def write_data(folder: Path, data: dict[str, dict[str, Rows]]) -> Path:
    """As the hub's repositories are: a README that names each config's files."""
    for repository, configs in data.items():
        lines = ["---", "configs:"]
        split = "test" if repository in ("wmdp", "mmlu") else "train"
        for config, rows in configs.items():
            file = folder / repository / config / f"{split}.jsonl"
            file.parent.mkdir(parents=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            lines += [f"- config_name: {config}", "  data_files:", f"  - split: {split}"]
            lines += [f"    path: {config}/{split}.jsonl"]
        (folder / repository / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


@pytest.fixture
def load(model: Path, tmp_path: Path) -> Callable[..., Task]:
    def call(data: dict[str, dict[str, Rows]], split: str | None = None) -> Task:
        folder = write_data(tmp_path / "data", data)
        return load_benchmark("wmdp").load(Request("full", model=str(model), data=folder, split=split))

    return call


def test_the_prompt_is_that_of_lm_evaluation_harness() -> None:
    choices = ["Rain", " Snow", "Ice", "Fog"]
    assert wmdp.format_prompt("biology", "  Which falls as flakes? \n", choices) == (
        "The following are multiple choice questions (with answers) about biology.\n\n"
        "Which falls as flakes?\nA. Rain\nB.  Snow\nC. Ice\nD. Fog\nAnswer:"
    )


def test_prompts_name_the_subject_as_the_harness_does(load: Callable[..., Task], model: Path) -> None:
    from ray_unlearn.models.loading import load_tokenizer

    task, tokenizer = load(good_data(), "cyber"), load_tokenizer(str(model))
    hazard = tokenizer.decode(task.selection.probes["forget"].sequences[0][0])
    assert hazard.startswith("<bos>The following are multiple choice questions (with answers) about cybersec")
    general = [tokenizer.decode(tokens) for tokens, _ in task.selection.probes["general"].sequences]
    assert {text.split("about ")[1].split(".")[0] for text in general} == {
        "abstract algebra",
        "high school us history",
    }


def test_the_four_letters_are_scored_after_one_prompt(load: Callable[..., Task], model: Path) -> None:
    from ray_unlearn.models.loading import load_tokenizer

    task, tokenizer = load(good_data()), load_tokenizer(str(model))
    probe = task.report.probes["forget"]
    assert probe.question is not None
    assert probe.is_correct is not None
    texts = [(tokenizer.decode(t[:s]), tokenizer.decode(t[s:])) for t, s in probe.sequences]
    assert [answer for _, answer in texts] == [" A", " B", " C", " D"] * (len(texts) // 4)
    assert len({prompt for prompt, _ in texts[:4]}) == 1
    assert texts[0][0].endswith("Answer:")
    for i, row in enumerate(probe.question[::4]):
        number = int(texts[4 * i][0].split("What is ")[1].split("?")[0])
        assert probe.is_correct[4 * row : 4 * row + 4].tolist() == [j == number % 4 for j in range(4)]


def test_a_continuation_that_merges_with_the_prompt_is_split_by_the_prompt_s_length() -> None:
    def tokenizer(text: str, verbose: bool) -> dict[str, list[int]]:
        """One token for every two characters."""
        return {"input_ids": [ord(c) for c in text[::2]]}

    whole = [ord("a"), ord("c"), ord("e")]
    assert wmdp.encode_options(tokenizer, "abc", ["de"]) == [(whole, 2)]


def test_questions_are_disjoint_between_the_splits_and_none_is_lost(load: Callable[..., Task]) -> None:
    task = load(good_data())
    for name, total in (("forget", 7), ("general", 46)):
        rows = [{t.tobytes() for t, _ in s.probes[name].sequences} for s in (task.selection, task.report)]
        assert not rows[0] & rows[1]
        assert len(rows[0]) + len(rows[1]) == 4 * total
    assert len(task.selection.probes["general"].sequences) == 4 * 2 * wmdp.SELECTION_PER_SUBJECT


@pytest.mark.parametrize(("split", "documents"), [("bio", 6), ("cyber", 4)])
def test_long_documents_are_cut_to_the_method_s_length(
    load: Callable[..., Task], split: str, documents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(wmdp.CHUNK_TOKENS, split, 64)
    task = load(good_data(), split)
    assert len(task.forget) > documents / 3
    assert task.forget.lengths.max() == 64
    full = int((task.forget.lengths == 64).sum())
    assert full <= task.cut["forget"] <= len(task.forget)  # a document's last chunk may be shorter
    assert (task.forget.tokens[task.forget.offsets[:-1]] == 1).all()  # <bos>
    assert set(task.forget.answer_starts.tolist()) == {1}


def test_loading_again_gives_the_same_data(load: Callable[..., Task], model: Path, tmp_path: Path) -> None:
    task = load(good_data())
    request = Request("full", model=str(model), data=tmp_path / "data")
    assert np.array_equal(load_benchmark("wmdp").load(request).forget.tokens, task.forget.tokens)


def drop(rows: Rows, column: str) -> None:
    for row in rows:
        row[f"old_{column}"] = row.pop(column)


BAD: list[tuple[str, Callable[[dict[str, Any]], Any], list[str]]] = [
    ("no answer column", lambda d: drop(d["wmdp"]["wmdp-bio"], "answer"), ["wmdp-bio", "no column answer"]),
    ("no subject column", lambda d: drop(d["mmlu"]["all"], "subject"), ["mmlu", "no column subject"]),
    ("no text column", lambda d: drop(d["wmdp-bio-forget-corpus"]["default"], "text"), ["forget", "text"]),
    ("empty questions", lambda d: d["wmdp"]["wmdp-bio"].clear(), ["wmdp (wmdp-bio)"]),
    ("empty corpus", lambda d: d["wmdp-corpora"]["bio-retain-corpus"].clear(), ["bio-retain-corpus"]),
    ("answer too large", lambda d: d["wmdp"]["wmdp-bio"][3].update(answer=4), ["row 3", "answer is 4"]),
    ("answer a letter", lambda d: [r.update(answer="A") for r in d["mmlu"]["all"]], ["row 0", "'A'"]),
    ("three choices", lambda d: d["mmlu"]["all"][2].update(choices=["a", "b", "c"]), ["mmlu", "row 2"]),
    ("no question", lambda d: d["wmdp"]["wmdp-bio"][1].update(question=" "), ["row 1", "question"]),
    ("null text", lambda d: d["wmdp-bio-forget-corpus"]["default"][4].update(text=None), ["row 4", "None"]),
    ("long question", lambda d: d["mmlu"]["all"][5].update(question="x" * 700), ["mmlu", "row 5", "600"]),
    ("short texts", lambda d: [r.update(text="hm") for r in d["wmdp-bio-forget-corpus"]["default"]], ["50"]),
    ("one question", lambda d: d["wmdp"]["wmdp-bio"].__delitem__(slice(1, None)), ["row 0", "two"]),
    ("no such config", lambda d: d["wmdp"].pop("wmdp-bio"), ["wmdp-bio", "README"]),
    ("no such folder", lambda d: d.pop("mmlu"), ["no folder mmlu"]),
]


@pytest.mark.parametrize(("spoil", "words"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_data_is_named_in_one_line(
    load: Callable[..., Task], spoil: Callable[[dict[str, Any]], Any], words: list[str]
) -> None:
    data = good_data()
    spoil(data)
    with pytest.raises(UserError) as error:
        load(data)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_without_network_the_hub_s_data_say_so(model: Path) -> None:
    with pytest.raises(UserError, match=r"cais/wmdp is not in the hub's cache.*--data DIR"):
        load_benchmark("wmdp").load(Request("full", model=str(model)))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("full", split="chem"), "bio, cyber"),
        (Request("mini", split="bio"), "--scale full"),
        (Request("mini", data=Path("x")), "--scale full"),
    ],
)
def test_requests_that_cannot_be_met_say_what_can(request_: Request, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_benchmark("wmdp").load(request_)

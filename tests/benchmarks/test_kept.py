"""A task of own data is made once for the same files, and is the same when it is read again."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ray_unlearn import counting
from ray_unlearn.benchmarks import custom, load_benchmark, writing
from ray_unlearn.benchmarks.contract import Request, Task
from ray_unlearn.benchmarks.fingerprint import data_fingerprint
from ray_unlearn.commands.screen import Counter
from ray_unlearn.config import UserError
from tests.test_templates import CHATML, MARKS
from tests.tokenizer_kinds import write_byte_level, write_model

TABLES = """name = "mine"
[forget]
file = "forget.jsonl"
question = "q"
answer = "a"
perturbed = ["w"]
[retain]
file = "retain.jsonl"
text = "t"
[questions.keep]
file = "asked.jsonl"
question = "q"
choices = "c"
answer = "a"
"""


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAY_UNLEARN_CACHE", str(tmp_path / "cache"))
    write_model(write_byte_level(tmp_path / "model", CHATML, MARKS, "<eos>", "<bos>"))
    write(tmp_path / "forget.jsonl", [{"q": f"Where is {n}?", "a": f"In {n}.", "w": f"In {n + 1}."} for n in range(6)])
    write(tmp_path / "retain.jsonl", [{"t": f"Number {n} is kept, and é with it."} for n in range(7)])
    write(tmp_path / "asked.jsonl", [{"q": f"{n}?", "c": ["a", "b", "c"], "a": n % 3} for n in range(5)])
    (tmp_path / "mine.toml").write_text(TABLES)
    return tmp_path


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One item each time that a task is made of rows."""
    calls: list[bool] = []
    make = custom._make_task
    monkeypatch.setattr(custom, "_make_task", lambda *a: (calls.append(True), make(*a))[1])
    return calls


def load(place: Path, whole: bool = True) -> Task:
    return load_benchmark(str(place / "mine.toml")).load(Request("full", model=str(place / "model"), whole=whole))


def flat(task: Task) -> str:
    """The task as text, arrays as lists."""
    return repr(replace(task)).replace("\n", "")


def test_what_is_read_again_is_what_was_made(place: Path, made: list[bool], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(custom, "kept", lambda definition, request, make: make())
    fresh = load(place)
    monkeypatch.undo()
    monkeypatch.setenv("RAY_UNLEARN_CACHE", str(place / "cache"))
    for _ in range(2):
        again = load(place)
        assert flat(again) == flat(fresh)
        assert data_fingerprint(again) == data_fingerprint(fresh)
        assert again.whole is not None
        assert again.whole.generations["forget"] == fresh.whole.generations["forget"]


def test_a_task_is_made_once_for_the_same_files(place: Path, made: list[bool]):
    for _ in range(3):
        load(place)
    assert len(made) == 1
    load(place, whole=False)
    assert len(made) == 2


CHANGES: dict[str, Callable[[Path], object]] = {
    "rows": lambda place: write(place / "retain.jsonl", [{"t": f"Other text {n}"} for n in range(4)]),
    "definition": lambda place: (place / "mine.toml").write_text("max_tokens = 16\n" + TABLES),
    "tokenizer": lambda place: (place / "model" / "chat_template.jinja").write_text(CHATML + "<eos>"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_a_file_makes_it_anew(place: Path, made: list[bool], what: str):
    first = data_fingerprint(load(place))
    CHANGES[what](place)
    assert data_fingerprint(load(place)) != first
    assert len(made) == 2


def test_the_first_row_that_cannot_be_read_is_named_however_many_are_read_at_once(place: Path):
    rows = [{"q": f"Where is {n}?", "a": f"In {n}.", "w": "No."} for n in range(6)]
    rows[2]["a"] = "long " * 400  # found when it is tokenised
    rows[4]["a"] = " "  # found before that
    write(place / "forget.jsonl", rows)
    with pytest.raises(UserError, match="line 3: question and answer have"):
        load(place)


def test_long_reading_is_counted_and_short_reading_is_not(place: Path, monkeypatch: pytest.MonkeyPatch):
    screen = io.StringIO()
    with counting.counts_shown(Counter(screen)):
        load(place)
        assert screen.getvalue() == ""
        monkeypatch.setattr(counting, "QUIET_SECONDS", 0.0)
        monkeypatch.setattr(writing, "ROWS_AT_ONCE", 4)
        load(place, whole=False)
    assert screen.getvalue().splitlines() == [
        "reading [forget]: 4 of 6",
        "reading [forget]: 6 of 6",
        "reading [retain]: 7 of 7",
    ]

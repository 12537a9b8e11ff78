"""What a row's columns mean: texts, answers, lists of texts, conversations, choices. Every complaint names the row."""

from __future__ import annotations

import ast
import json
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from ray_unlearn.benchmarks.readers import Row
from ray_unlearn.benchmarks.selecting import reach, written
from ray_unlearn.config import UserError

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "input"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "output"), "assistant"),
}
"""What published conversations call the three."""
LETTERS = string.ascii_uppercase


@dataclass
class Reader:
    """Reads rows, and counts what it took otherwise than it stands there."""

    taken: Counter[str] = field(default_factory=Counter)

    def text(self, row: Row, name: str) -> str:
        """One text that is not blank; numbers and booleans as their text."""
        return self._as_text(row, name, reach(row, name))

    def joined(self, row: Row, names: str | Sequence[str]) -> str:
        """One column, or the filled ones of several, a line each."""
        if isinstance(names, str):
            return self.text(row, names)
        texts = [self._as_text(row, name, value) for name in names if not _is_blank(value := reach(row, name))]
        if not texts:
            raise UserError(f"{row.where}: {', '.join(map(repr, names))} are all empty. Mend or remove the row")
        return "\n".join(texts)

    def answers(self, row: Row, name: str) -> list[str]:
        """The answer that is trained on, and others that are right, too."""
        value = reach(row, name)
        if not isinstance(value, list):
            return [self._as_text(row, name, value)]
        texts = [self._as_text(row, name, item) for item in value if not _is_blank(item)]
        if not texts:
            raise UserError(f"{row.where}: {name!r} holds no text but {short(value)}. Mend or remove the row")
        self.taken["several answers"] += len(texts) > 1
        return list(dict.fromkeys(texts))

    def texts(self, row: Row, names: Sequence[str]) -> list[str]:
        """The texts of columns that hold one each, or lists, or lists as text; "name*": all that begin so."""
        found: list[str] = []
        for name in _numbered(row, names):
            value = reach(row, name)
            if isinstance(value, str) and value.strip().startswith("["):
                value = _list_in(value.strip())
            items = value if isinstance(value, list) else [value]
            found += [self._as_text(row, name, item) for item in items if not _is_blank(item)]
        return found

    def turns(self, row: Row, name: str) -> list[dict[str, str]]:
        """A conversation, up to its last answer."""
        value = reach(row, name)
        if isinstance(value, str) and value.strip().startswith("["):
            value = _list_in(value.strip())
        if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
            raise UserError(f"{row.where}: {name!r} is no list of turns but {short(value)}. Mend or remove the row")
        turns = [self._turn(row, name, turn) for turn in value]
        while turns and turns[-1]["role"] != "assistant":
            turns.pop()
        if len(turns) < 2:
            raise UserError(f"{row.where}: {name!r} has no answer after a question. Mend or remove the row")
        return turns

    def _turn(self, row: Row, name: str, turn: Mapping[str, Any]) -> dict[str, str]:
        role = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        if str(role).lower() not in ROLES:
            raise UserError(f"{row.where}: {name!r} has a turn of {role!r}. There is: {', '.join(ROLES)}")
        if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
            content = "".join(str(part["text"]) for part in content)
        return {"role": ROLES[str(role).lower()], "content": self._as_text(row, name, content)}

    def _as_text(self, row: Row, name: str, value: Any) -> str:
        if isinstance(value, bool | int | float | Decimal):
            self.taken["numbers or booleans"] += 1
            value = written(value)
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{row.where}: {name!r} holds no text but {short(value)}. {_way_out(name, value)}")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            half = ascii(value[error.start])
            raise UserError(f"{row.where}: {name!r} holds half a character ({half}). Mend or remove the row") from None
        return value

    def describe(self) -> list[str]:
        """One sentence for each kind of thing that was not taken as it stands there."""
        notes = []
        if count := self.taken["numbers or booleans"]:
            notes.append(f"{count} numbers or booleans are taken as their text.")
        if count := self.taken["several answers"]:
            notes.append(f"{count} rows have several answers: the first is trained on, any of them counts for ROUGE.")
        if self.taken["counted from 1"]:
            notes.append("Right choices are counted from 1.")
        return notes


def _way_out(name: str, value: Any) -> str:
    if isinstance(value, dict) and value:
        return f'Reach into it, such as "{name}.{next(iter(value))}"'
    if isinstance(value, list) and value and isinstance(value[0], dict):
        if {"role", "from"} & value[0].keys():
            return f'It is a conversation: write messages = "{name}"'
        return f'explode = "{name}" makes each of the list a row, with columns {", ".join(value[0])}'
    if isinstance(value, list):
        return f'explode = "{name}" makes each of the list a row'
    return "Mend or remove the row"


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _numbered(row: Row, names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        if not name.endswith("*"):
            found.append(name)
            continue
        matching = [column for column in row.values if column.startswith(name[:-1])]
        if not matching:
            raise UserError(
                f"{row.where}: no column begins with {name[:-1]!r}, only {', '.join(row.values)}. Name another"
            )
        found += sorted(matching, key=lambda column: (len(column), column))
    return found


def _list_in(text: str) -> Any:
    """A list that stands in a cell as JSON, as Python writes it, or, where neither can be read, cut at its quotes."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    inner = text[1:-1].strip() if text.endswith("]") else ""
    if len(inner) > 1 and inner[0] in "'\"" and inner[-1] in "'\"":
        return re.split(r"""['"]\s*,\s*['"]""", inner[1:-1])
    return text


# ---- multiple choice


@dataclass(frozen=True)
class Asked:
    """One multiple-choice question as its row has it. place: of the right choice, from 0."""

    where: str
    question: str
    options: list[str]
    place: int


def read_choices(rows: Sequence[Row], question: Any, choices: str, answer: str, reader: Reader) -> list[Asked]:
    """Raises UserError naming the first row that is no multiple-choice question.

    The right choice is its place, a letter, a label of the row's own, or its text. Places are counted from 0 unless a
    row's is beyond the last choice and none is 0: then from 1.
    """
    listed = [_options(row, choices, reader) for row in rows]
    rights = [reach(row, answer) for row in rows]
    numbers = [number for right in rights if (number := _number(right)) is not None]
    beyond = any(_number(right) == len(options) for right, (options, _) in zip(rights, listed, strict=True))
    offset = 1 if numbers and beyond and min(numbers) == 1 else 0
    reader.taken["counted from 1"] += offset
    asked = []
    for row, (options, labels), right in zip(rows, listed, rights, strict=True):
        place = _place(right, options, labels, offset)
        if place is None:
            raise UserError(
                f"{row.where}: {answer!r} is {short(right)}. Give the place of the right choice, {offset} to "
                f"{len(options) - 1 + offset}, its letter or its text"
            )
        asked.append(Asked(row.where, reader.joined(row, question), options, place))
    return asked


def _options(row: Row, name: str, reader: Reader) -> tuple[list[str], list[str]]:
    """(texts, labels) of a list of texts, {"text": [...], "label": [...]}, or {"A": text, ...}."""
    value = reach(row, name)
    labels: list[str] = []
    options = value
    if isinstance(value, str) and value.strip().startswith("["):
        options = _list_in(value.strip())
    if isinstance(value, dict):
        if isinstance(value.get("text"), list):
            options, labels = value["text"], list(map(written, value.get("label") or ()))
        else:
            options, labels = list(value.values()), list(value)
    is_list = isinstance(options, list) and 2 <= len(options) <= len(LETTERS)
    if not is_list or not all(isinstance(o, str | int | float | Decimal) and written(o).strip() for o in options):
        raise UserError(
            f"{row.where}: {name!r} must be a list of 2 to {len(LETTERS)} texts, not {short(value)}. Mend the row"
        )
    reader.taken["numbers or booleans"] += sum(not isinstance(option, str) for option in options)
    return [written(option) for option in options], labels


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _place(right: Any, options: Sequence[str], labels: Sequence[str], offset: int) -> int | None:
    number = _number(right)
    if number is not None and written(right) not in labels:
        return number - offset if 0 <= number - offset < len(options) else None
    text = written(right).strip()
    for names in (list(labels), [option.strip() for option in options]):
        if text in names:
            return names.index(text)
    if len(text) == 1 and text.upper() in LETTERS[: len(options)]:
        return LETTERS.index(text.upper())
    if text.isdigit() and 0 <= int(text) - offset < len(options):
        return int(text) - offset
    return None


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

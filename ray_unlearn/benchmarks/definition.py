"""The TOML file that describes own data: its tables and keys, checked before any row is read."""

from __future__ import annotations

import ast
import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_unlearn.benchmarks import BENCHMARKS
from ray_unlearn.benchmarks.contract import OwnScorer
from ray_unlearn.benchmarks.readers import TEXT_COLUMN, Row, kind_of, read_rows
from ray_unlearn.benchmarks.selecting import Selection
from ray_unlearn.benchmarks.sources import read_hub
from ray_unlearn.config import UserError
from ray_unlearn.files import read_toml
from ray_unlearn.models.templates import TAGS, Choice

FORGET, RETAIN, HOLD_OUT = "forget", "retain", "hold_out"
SETS = (FORGET, RETAIN, HOLD_OUT)
SIDES = ("forget", "keep")
"""Of the questions."""
TEXT, PAIRS, MESSAGES = ("text",), ("question", "answer"), ("messages",)
QUESTIONS = ("question", "choices", "answer")
"""The kinds of rows, by the keys that name their columns."""
TOP_KEYS = (
    "name",
    "chat_template",
    "max_tokens",
    *SETS,
    "questions",
    "template",
    "drop_overlap",
    "refusals",
    "scorers",
)
PLACE_KEYS = ("file", "hub", "config", "split", "field")
ROW_KEYS = ("explode", "where", "rows")
SET_KEYS = ("group", "group_pattern")
EXTRAS = ("paraphrased", "perturbed", "must_not_say")
"""What rows of pairs may have besides, by the keys that name their columns."""
LISTS = ("question", *EXTRAS)
"""Keys whose value may be a list of columns."""
FEWEST_MAX_TOKENS = 8
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?", re.ASCII)


@dataclass(frozen=True)
class Source:
    """One table of the file: where its rows are, and which column holds what."""

    table: str
    """As the file has it, with brackets."""
    columns: Mapping[str, str | Sequence[str]]
    """By the keys of its kind: a column, or several that are joined."""
    file: Path | None = None
    hub: str = ""
    config: str | None = None
    split: str | None = None
    part: str | None = None
    """Which list, of a file with several."""
    extras: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By the keys in EXTRAS."""
    selection: Selection = Selection()  # noqa: RUF009 (frozen)
    group: str | None = None
    group_pattern: str | None = None
    every_turn: bool = False
    """Of conversations: whether every answer is a row, not the last one alone."""

    @property
    def kind(self) -> tuple[str, ...]:
        return tuple(self.columns)

    @property
    def place(self) -> str:
        return str(self.file or self.hub)

    def read(self) -> list[Row]:
        """The rows that are wanted, with all their columns."""
        if self.file:
            rows = read_rows(self.file, self.part, self.split)
        else:
            rows = read_hub(self.hub, self.config, self.split or "train")
        return self.selection.apply(rows, self.place)


@dataclass(frozen=True)
class ScorerTable:
    """[scorers.NAME]: a function over generated answers, and what its number is used for."""

    scorer: OwnScorer
    aim: float | None = None
    """Its value for a model that never knew, where the forget set's is aimed at."""
    keep: float | None = None
    """Its value for a useless model, where the retain set's is kept."""


@dataclass(frozen=True)
class Definition:
    """What the TOML file says."""

    path: Path
    name: str
    chat_template: bool | None
    max_tokens: int | None
    sets: Mapping[str, Source]
    questions: Mapping[str, Source]
    template: Choice = field(default_factory=Choice)
    drop_overlap: bool = False
    refusals: Path | None = None
    scorers: tuple[ScorerTable, ...] = ()


def read_definition(path: Path) -> Definition:
    """Raises UserError for whatever in the file cannot work, naming file, table and key. Reads no data."""
    if not path.is_file():
        raise UserError(f"--benchmark {path}: no such file. Give the TOML file that describes your data")
    raw = read_toml(path)
    check_keys(path, "the file", raw, TOP_KEYS)
    name, template, most = raw.get("name"), raw.get("chat_template"), raw.get("max_tokens")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f'{path}: name = {name!r}. Give one of letters, digits, _ and -, such as name = "staff"')
    if name in BENCHMARKS:
        raise UserError(f"{path}: name = {name!r} is that of a benchmark that is there already. Give another")
    for key in ("chat_template", "drop_overlap"):
        if not isinstance(raw.get(key, False), bool):
            raise UserError(f"{path}: {key} = {raw[key]!r}. Write true or false")
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < FEWEST_MAX_TOKENS):
        raise UserError(f"{path}: max_tokens = {most!r}. Give a whole number from {FEWEST_MAX_TOKENS} on")
    for needed in (FORGET, RETAIN):
        if needed not in raw:
            raise UserError(f"{path}: has no [{needed}]. Add it, with file = ... or hub = ... and the columns")
    asked = raw.get("questions", {})
    if not isinstance(asked, dict):
        raise UserError(f"{path}: questions = {asked!r} is no table. Write [questions.forget] or [questions.keep]")
    check_keys(path, "[questions]", asked, SIDES)
    sets = _read_sets(path, raw)
    questions = {key: _source(path, f"[questions.{key}]", asked[key], (QUESTIONS,)) for key in SIDES if key in asked}
    kinds = {source.kind for source in sets.values()}
    written = kinds & {PAIRS, MESSAGES}
    for key, value, is_used in (("chat_template", template, written), ("max_tokens", most, TEXT in kinds)):
        if value is not None and not is_used:
            raise UserError(
                f"{path}: {key} is for {'texts' if key == 'max_tokens' else 'pairs'}; there are none. Drop it"
            )
    refusals = raw.get("refusals")
    if refusals is not None and not isinstance(refusals, str):
        raise UserError(f"{path}: refusals = {refusals!r}. Give a file with one answer a line")
    choice = _read_choice(path, raw.get("template"), template, bool(written))
    file = path.parent / refusals if refusals else None
    scorers = _read_scorers(path, raw.get("scorers", {}), sets)
    overlap = raw.get("drop_overlap", False)
    return Definition(path, name, template, most, sets, questions, choice, overlap, file, scorers)


def _read_scorers(path: Path, tables: Any, sets: Iterable[str]) -> tuple[ScorerTable, ...]:
    """The code is read, and not run."""
    if not isinstance(tables, dict):
        raise UserError(f"{path}: scorers = {tables!r} is no table. Write [scorers.NAME] and the settings under it")
    found = []
    for name, values in tables.items():
        table = f"[scorers.{name}]"
        if not isinstance(values, dict) or not NAME.fullmatch(name):
            raise UserError(f"{path}: {table} is no table with a plain name. Write [scorers.NAME] and what it has")
        check_keys(path, table, values, ("function", "sets", "aim", "keep"))
        file, function, source = _read_function(path, table, values.get("function"))
        wanted = tuple(_listed(values.get("sets", list(sets))))
        for one in wanted:
            if one not in sets:
                raise UserError(
                    f"{path}: {table} sets has {one!r}, which is no set here. Choose from: {', '.join(sets)}"
                )
        for key, needed in (("aim", FORGET), ("keep", RETAIN)):
            value = values.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UserError(f"{path}: {table} {key} = {value!r} is no number. Give one")
            if needed not in wanted:
                raise UserError(f"{path}: {table} {key} needs the {needed} set. Add it to sets")
        aim, keep = (None if values.get(key) is None else float(values[key]) for key in ("aim", "keep"))
        sha256, is_read = hashlib.sha256(source.encode()).hexdigest(), aim is not None or keep is not None
        found.append(ScorerTable(OwnScorer(name, file, function, source, sha256, wanted, is_read), aim, keep))
    return tuple(found)


def _read_function(path: Path, table: str, named: Any) -> tuple[str, str, str]:
    """(file's name, function, the file's text) of "module:function"."""
    module, _, function = str(named).partition(":")
    if not module.isidentifier() or not function.isidentifier():
        raise UserError(f'{path}: {table} function = {named!r}. Write "module:function", of module.py beside this file')
    file = path.parent / f"{module}.py"
    try:
        source = file.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except FileNotFoundError:
        raise UserError(f"{path}: {table} needs {file}, which is not there. Put it beside this file") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{file}: cannot be read as Python ({error}). Mend it") from None
    if function not in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}:
        raise UserError(f"{path}: {table} function = {named!r}: {file.name} defines no such function. Correct the name")
    return file.name, function, source


def _read_sets(path: Path, raw: Mapping[str, Any]) -> dict[str, Source]:
    tables = {key: raw[key] for key in SETS if key in raw}
    sets = {key: _source(path, f"[{key}]", value, (TEXT, PAIRS, MESSAGES)) for key, value in tables.items()}
    if HOLD_OUT in sets and sets[HOLD_OUT].kind != sets[FORGET].kind:
        raise UserError(f"{path}: [forget] and [hold_out] must be of one kind. Give texts in both, or pairs in both")
    return sets


def _read_choice(path: Path, table: Any, is_chat: bool | None, is_used: bool) -> Choice:
    """[template]: tags of the user's own, or the system message and arguments of the tokenizer's template."""
    if table is None:
        return Choice(is_chat)
    if not isinstance(table, dict):
        raise UserError(f"{path}: template = {table!r} is no table. Write [template] and the settings under it")
    if not is_used:
        raise UserError(f"{path}: [template] is for pairs; there are none. Drop it")
    for key, value in table.items():
        if not isinstance(value, str | bool | int | float):
            raise UserError(f"{path}: [template] {key} = {value!r}. Give a text, a number, true or false")
    tags = {key: value for key, value in table.items() if key in TAGS}
    rest = {key: value for key, value in table.items() if key not in TAGS}
    if tags:
        if is_chat:
            raise UserError(f"{path}: chat_template = true, and [template] gives tags of its own. Drop one of them")
        others = [key for key in rest if key != "system"]
        if others:
            near = difflib.get_close_matches(others[0], TAGS, 1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise UserError(f"{path}: [template] has {others[0]!r} beside tags. {hint}There may be: system")
    elif is_chat is False and rest:
        raise UserError(f"{path}: chat_template = false, and [template] has {next(iter(rest))!r} for one. Drop either")
    system = rest.pop("system", None)
    return Choice(is_chat, None if system is None else str(system), rest, tags or None)


def _source(path: Path, table: str, values: Any, kinds: tuple[tuple[str, ...], ...]) -> Source:
    if not isinstance(values, dict):
        raise UserError(f"{path}: {table[1:-1]} = {values!r} is no table. Write {table} and the settings under it")
    roles = tuple(dict.fromkeys(role for kind in kinds for role in kind))
    is_set = PAIRS in kinds
    more = (*SET_KEYS, *EXTRAS, "turns") if is_set else ()
    check_keys(path, table, values, (*PLACE_KEYS, *roles, *ROW_KEYS, *more))
    _check_values(path, table, values)
    if ("file" in values) == ("hub" in values):
        raise UserError(f"{path}: {table} needs a file or a hub dataset, and not both. Give file = ... or hub = ...")
    if "hub" in values and not HUB_NAME.fullmatch(values["hub"]):
        raise UserError(f'{path}: {table} hub = {values["hub"]!r} is no dataset\'s name. Write hub = "owner/name"')
    file = path.parent / Path(values["file"]).expanduser() if "file" in values else None
    for key, is_right in (
        ("config", file is None),
        ("field", file is not None),
        ("split", file is None or file.is_dir()),
    ):
        if key in values and not is_right:
            others = "hub, not with file" if file else "file, not with hub"
            raise UserError(f"{path}: {table} {key} goes with {others}. Drop it")
    columns = _columns(path, table, {role: values[role] for role in roles if role in values}, kinds, file)
    extras = {key: _listed(values[key]) for key in EXTRAS if key in values}
    if extras and tuple(columns) != PAIRS:
        raise UserError(f"{path}: {table} {next(iter(extras))} is for pairs. Drop it")
    rows = values.get("rows")
    selection = Selection(
        explode=values.get("explode"),
        where={name: tuple(_listed(wanted)) for name, wanted in values.get("where", {}).items()},
        rows=path.parent / rows if rows else None,
    )
    return Source(
        table,
        columns,
        file,
        values.get("hub", ""),
        values.get("config"),
        values.get("split"),
        values.get("field"),
        extras,
        selection,
        values.get("group"),
        values.get("group_pattern"),
        values.get("turns", "last") == "all",
    )


def _check_values(path: Path, table: str, values: Mapping[str, Any]) -> None:
    """Every value is a text, but lists of columns and the rows that are wanted."""
    for key, value in values.items():
        if key == "where":
            if not isinstance(value, dict) or not value:
                raise UserError(f'{path}: {table} where = {value!r}. Write a column and its value: {{edge = "A_B"}}')
            continue
        names = value if isinstance(value, list) and key in LISTS else [value]
        if not names or not all(isinstance(name, str) and name for name in names):
            raise UserError(f"{path}: {table} {key} = {value!r} is no text. Give a name in quotes")
    if values.get("turns", "last") not in ("last", "all"):
        raise UserError(f'{path}: {table} turns = {values["turns"]!r}. Write "last" or "all"')
    if "group_pattern" in values:
        if "group" not in values:
            raise UserError(f"{path}: {table} group_pattern needs a column. Give group, too")
        try:
            re.compile(values["group_pattern"])
        except re.error as error:
            raise UserError(f"{path}: {table} group_pattern is no regular expression ({error}). Correct it") from None


def _columns(
    path: Path, table: str, named: dict[str, Any], kinds: tuple[tuple[str, ...], ...], file: Path | None
) -> dict[str, Any]:
    if file is not None and kind_of(file) == ".txt" and TEXT in kinds:
        if named:
            raise UserError(f"{path}: {table} names a column, and a .txt file has none. Drop {next(iter(named))}")
        named = {"text": TEXT_COLUMN}
    kind = next((kind for kind in kinds if set(kind) == set(named)), None)
    if kind is None:
        ways = "; or ".join(", ".join(f'{role} = "..."' for role in kind) for kind in kinds)
        raise UserError(f"{path}: {table} must name the columns of its kind and no other. Write {ways}")
    return {role: named[role] for role in kind}


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def check_keys(path: Path, where: str, found: Iterable[str], allowed: Sequence[str]) -> None:
    """Raises UserError for a key that is not allowed, with the one that was probably meant."""
    for key in found:
        if key not in allowed:
            twisted = [name for name in allowed if sorted(name) == sorted(key.lower())]
            near = twisted or difflib.get_close_matches(key.lower(), allowed, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(f"{path}: {where} has {key!r}.{hint} There is only: {', '.join(allowed)}")

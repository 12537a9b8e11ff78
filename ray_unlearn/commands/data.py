"""`ray_unlearn data`: what a search would train on, as the model's tokens, and what is or may be wrong with it.

Reads the data and the tokenizer; the model's weights are not loaded. The same checks run before every search.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import Request, Task
from ray_unlearn.benchmarks.inspection import (
    Amount,
    Fault,
    count_set,
    find_faults,
    sets_of,
    token_texts,
    warn,
)
from ray_unlearn.commands.access import check_repositories
from ray_unlearn.commands.checks import MINI_BANNER, absolute, check_data
from ray_unlearn.commands.machine import quiet
from ray_unlearn.commands.options import Data
from ray_unlearn.commands.resources import find_machine, resolve_scale
from ray_unlearn.config import UserError
from ray_unlearn.models.hub import parse_pins, pin_revisions
from ray_unlearn.models.loading import check_model, load_tokenizer, trust_remote_code
from ray_unlearn.training.in_process import build_models
from ray_unlearn.wording import counted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

SHOWN = 300
"""Tokens of a row that are printed: of a longer one, its beginning and its end. JSON has all."""
BETWEEN, OPEN, CLOSE = "|", "[[", "]]"
"""Between two tokens; round what the loss counts, where a terminal does not show it in bold."""


@dataclass(frozen=True)
class Row:
    """One row of a set: its token ids, each token's text, and the place from which on the loss counts."""

    row: int
    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    answer_start: int


@dataclass(frozen=True)
class Inspection:
    """What there is to train on."""

    benchmark: str
    scale: str
    split: str
    model: str
    amounts: dict[str, Amount]
    """By set, as everything below."""
    first: dict[str, tuple[Row, ...]]
    faults: tuple[Fault, ...]
    notes: tuple[str, ...]


def run(options: Data) -> int:
    """Print it; the exit code, 0 whatever was found."""
    from rich.console import Console

    inspection = inspect(options)
    if options.as_json:
        print(to_json(inspection))
    else:
        show(inspection, Console())
    return 0


def inspect(options: Data) -> Inspection:
    """Load the data as `tune` does and look at them. Raises UserError."""
    trust_remote_code(options.trust_remote_code)
    pin_revisions(parse_pins("--revision", options.revision))
    check_data(options.data)
    if options.rows < 0:
        raise UserError(f"--rows {options.rows}: must be at least 0. Give a larger number")
    if options.model is not None:
        check_model(options.model)
    benchmark = load_benchmark(options.benchmark)
    is_open = options.scale == "auto"  # a named scale is shown whether or not it could be trained here
    scale = resolve_scale("auto", find_machine(None).gpus, options.model) if is_open else str(options.scale)
    request = Request(scale, absolute(options.model), options.data and options.data.absolute(), options.split)
    start = benchmark.start_of(request) if scale == "full" else request.model
    check_repositories(benchmark, request, {"--model": start})
    with quiet():
        task = benchmark.load(request, build_models)
        tokenizer = load_tokenizer(task.model)
        faults = find_faults(task, tokenizer)
        first = {
            name: tuple(
                _row(tokenizer, number, *sequences[number]) for number in range(min(options.rows, len(sequences)))
            )
            for name, sequences in sets_of(task).items()
        }
    amounts = {name: count_set(sequences, task.cut.get(name, 0)) for name, sequences in sets_of(task).items()}
    return Inspection(benchmark.name, scale, task.split, task.model, amounts, first, tuple(faults), task.notes)


def with_warning(task: Task, benchmark: str, request: Request, say: Callable[[str], None]) -> Task:
    """The task of a search that is about to start, with a note on what is or may be wrong with its rows.

    benchmark: as `load_benchmark` takes it. Says one line, or nothing.
    """
    line = warn(find_faults(task, load_tokenizer(task.model)))
    if not line:
        return task
    say(f"{line}; see {command_of(benchmark, request)}")
    return replace(task, notes=(*task.notes, f"{line[0].upper()}{line[1:]}."))


def command_of(benchmark: str, request: Request) -> str:
    """The command line that shows a request's data."""
    words = ["ray_unlearn", "data", benchmark]
    if request.scale == "mini" or request.model is None:  # else it is what a named model means
        words += ["--scale", request.scale]
    for name, value in (("--model", request.model), ("--data", request.data), ("--split", request.split)):
        words += [name, str(value)] if value else []
    return shlex.join(words)


def _row(tokenizer: Any, number: int, tokens: Any, start: int) -> Row:
    ids = tokens.tolist()
    return Row(number, tuple(ids), tuple(token_texts(tokenizer, ids)), start)


# ---- saying it


def to_json(inspection: Inspection) -> str:
    values = asdict(inspection)
    for fault, entry in zip(inspection.faults, values["faults"], strict=True):
        entry["says"] = str(fault)
    return json.dumps(values, indent=1)


def show(inspection: Inspection, console: Console) -> None:
    """Amounts, rows and warnings; what the loss counts is bold, or in brackets where bold cannot be had."""
    from rich.table import Table

    def say(text: str | Text) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    is_plain = not console.is_terminal or console.no_color
    if inspection.scale == "mini":
        say(MINI_BANNER)
    part = f", {inspection.split}" if inspection.split else ""
    say(f"{inspection.benchmark} ({inspection.scale}{part}) in the tokens of {inspection.model}\n")
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = ("set", "rows", "tokens", "median", "longest", "counted", "cut")
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number else "left")
    for name, amount in inspection.amounts.items():
        lengths = f"{amount.tokens:,}", f"{amount.median:g}", str(amount.longest)
        table.add_row(name, f"{amount.rows:,}", *lengths, f"{amount.answer_share:.0%}", str(amount.cut))
    console.print(table)
    how = f"in {OPEN}{CLOSE}" if is_plain else "in bold"
    say(f"\nTokens are parted by {BETWEEN}; what the loss counts is {how}.")
    for name, rows in inspection.first.items():
        for row in rows:
            learnt = len(row.tokens) - row.answer_start
            say(f"\n{name}, row {row.row}: {counted(len(row.tokens), 'token')}, {learnt} counted by the loss")
            say(marked(row, is_plain))
    for note in inspection.notes:
        say(f"\n{note}")
    if inspection.faults:
        say("\nWarnings")
        for fault in inspection.faults:
            say(f"- {fault.describe()}")
    else:
        say("\nNo warnings.")


def marked(row: Row, is_plain: bool) -> Text:
    """A row's tokens on one line, those that the loss counts marked."""
    from rich.text import Text

    text = Text()
    for part, is_counted in ((range(row.answer_start), False), (range(row.answer_start, len(row.tokens)), True)):
        line = BETWEEN.join(_shortened([printable(row.texts[number]) for number in part]))
        if is_counted:
            text.append(f"{OPEN}{line}{CLOSE}" if is_plain else line, style="bold")
        else:
            text.append(f"{line}{BETWEEN if not is_plain or line else ''}", style="dim")
    return text


def _shortened(texts: Sequence[str]) -> list[str]:
    half = SHOWN // 2
    if len(texts) <= SHOWN:
        return list(texts)
    return [*texts[:half], f" ... {len(texts) - 2 * half} tokens more ... ", *texts[-half:]]


def printable(text: str) -> str:
    """A token's text on one line: what does not print, and any space but the usual one, as Python writes it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

"""`ray_unlearn chat`: questions from standard input, answered by one model or by two side by side.

Each question is asked by itself, in the form that training and scoring write: an export's reproduce.json and a search's
own settings say which form that is, else it is the tokenizer's chat template, or "Question: ... Answer: ...".
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_unlearn.commands.checks import absolute
from ray_unlearn.commands.export import REPRODUCE
from ray_unlearn.commands.machine import quiet
from ray_unlearn.commands.options import Chat
from ray_unlearn.commands.reopen import read_local
from ray_unlearn.config import UserError
from ray_unlearn.interruption import exit_code
from ray_unlearn.models.answering import Answerer, Sampling
from ray_unlearn.models.hub import MODEL, open_repository
from ray_unlearn.models.loading import check_model, trust_remote_code
from ray_unlearn.models.templates import Choice
from ray_unlearn.records.tables import LOCAL
from ray_unlearn.report.text import visible

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 100
"""Columns of a terminal from which on two answers stand side by side."""
LONGEST = 1_000_000
"""Characters of a question or an answer that are shown."""
SEARCH = "search.json"


def run(options: Chat) -> int:
    """Ask until an empty line or the end of the input; the exit code."""
    from rich.console import Console

    try:
        check_chat(options)
        trust_remote_code(options.trust_remote_code)
        console = Console(highlight=False)
        model, start, choice = find_models(options)
        named = [(name, option) for name, option in ((model, ""), (start, "--beside ")) if name]
        for name, option in named:
            check_named(name, option)
        with quiet():
            answerers = {name: load_named(name, option, choice) for name, option in named}
        first = answerers[model]
        where = f"on the {'GPU' if first.device == 'cuda' else 'CPU'} in {first.precision}"
        print(f"{' and '.join(answerers)} {where}; an empty line ends.", file=sys.stderr)
        sampling = Sampling(options.max_new_tokens, options.temperature, options.seed)
        for question in questions(console):
            try:
                answers = [(name, each.answer(question, sampling)) for name, each in answerers.items()]
                show_answers(answers, console)
            except UserError as error:
                print(f"ray_unlearn: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return exit_code()
    return 0


def check_chat(options: Chat) -> None:
    if options.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {options.max_new_tokens}: must be at least 1. Give a larger number")
    if not 0.0 <= options.temperature < math.inf:
        raise UserError(f"--temperature {options.temperature:g}: must be 0 or more. Give 0, or 0.7, say")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: must be 0 or more. Give another")


def find_models(options: Chat) -> tuple[str, str | None, Choice]:
    """(the model, the one beside it or None, the form in which both are asked). Raises UserError."""
    named, folder = options.model, Path(options.model).expanduser()
    if folder.is_dir() and (folder / SEARCH).is_file():
        if not (folder / "model").is_dir():
            raise UserError(
                f"{named}: this search kept no model. Export one with ray_unlearn export {named}, and ask that"
            )
        start, choice = start_of_search(folder)
        return str(folder / "model"), options.beside or start, choice
    return named, options.beside, choice_of_export(named)


def start_of_search(folder: Path) -> tuple[str | None, Choice]:
    """(a search's starting model, where this machine has it, the form of its data). Its local.json knows both."""
    if not (folder / LOCAL).is_file():
        print(f"{folder}: has no {LOCAL}, so its starting model is not known; --beside names it", file=sys.stderr)
        return None, Choice()
    config = read_local(folder)[0]
    start: str | None = config.model
    if start and Path(start).is_absolute() and not Path(start).is_dir():
        print(f"{folder}: its starting model is gone ({start}); --beside names another", file=sys.stderr)
        start = None
    if config.definition is None:
        return start, Choice()
    if not Path(config.definition).is_file():
        raise UserError(
            f"{folder}: the file of its data is gone ({config.definition}), which says how questions are written. Put "
            "it back, or ask an export of the search"
        )
    from ray_unlearn.benchmarks.definition import read_definition

    return start, read_definition(Path(config.definition)).template


def choice_of_export(named: str) -> Choice:
    """The form that an exported model's reproduce.json records, of a folder or of a repository of the hub."""
    folder = Path(named).expanduser()
    file: Path | None = folder / REPRODUCE
    if not folder.is_dir():
        file = None
        with contextlib.suppress(UserError):  # what cannot be had is said when the model is loaded
            repository = open_repository(named, MODEL)
            file = repository.fetch([REPRODUCE])[0] if REPRODUCE in repository.sizes else None
    if file is None or not file.is_file():
        return Choice()
    try:
        recorded: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8")).get("template") or {}
        return Choice(**recorded)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: cannot be read ({error}). Restore it from a copy") from None


@contextlib.contextmanager
def as_named(option: str) -> Iterator[None]:
    """A UserError on a model names it as this command's line does; option: what stands there before the name."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("--model ", option, 1)) from None


def load_named(name: str, option: str, choice: Choice) -> Answerer:
    """Raises UserError."""
    with as_named(option):
        return Answerer.load(str(absolute(name)), choice)


def check_named(name: str, option: str) -> None:
    """Raise UserError where a folder holds no model to ask."""
    folder = Path(name).expanduser()
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise UserError(
            f"{option}{name}: holds a LoRA adapter by itself. Export the trial without --adapter, and ask that"
        )
    with as_named(option):
        check_model(name)


def questions(console: Console) -> Iterator[str]:
    """From a terminal with a prompt, else line by line, each said again before its answer."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401, it lets a line be edited and found again
    while True:
        if sys.stdin.isatty():
            try:
                line = input("> ")
            except EOFError:
                print()
                return
        else:
            line = sys.stdin.readline()
        question = line.strip()
        if not question:
            return
        if not sys.stdin.isatty():
            console.print(f"> {visible(question, LONGEST)}", markup=False, soft_wrap=True)
        yield question


def show_answers(answers: Sequence[tuple[str, str]], console: Console) -> None:
    """(model, answer) each: side by side where the terminal is wide, else one under the other."""
    from rich.table import Table
    from rich.text import Text

    texts = [visible(answer, LONGEST) or "(nothing)" for _, answer in answers]
    if len(answers) > 1 and console.width >= WIDE:
        table = Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for name, _ in answers:
            table.add_column(Text(name, overflow="fold"), ratio=1, overflow="fold")
        table.add_row(*map(Text, texts))
        console.print(table)
    else:
        for (name, _), text in zip(answers, texts, strict=True):
            if len(answers) > 1:
                console.print(Text(f"{name}:", style="bold"), soft_wrap=True)
            console.print(Text(text), soft_wrap=True)
    console.print()

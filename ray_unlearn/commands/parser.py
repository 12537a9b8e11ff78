"""The command line, made from the dataclasses in options.py. Imports nothing heavy."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ray_unlearn import __version__
from ray_unlearn.byte_code import begin_load, keep_byte_code
from ray_unlearn.commands import options
from ray_unlearn.commands.checks import check_job_folder
from ray_unlearn.commands.shared_options import PANELS, Amounts, Configured, Levels, Names, default_of
from ray_unlearn.config import UserError
from ray_unlearn.plugins import trust_code

COMMANDS: Mapping[type, str] = {
    options.Tune: "tune",
    options.Prepare: "prepare",
    options.Evaluate: "evaluate",
    options.Compare: "compare",
    options.Export: "export",
    options.Reproduce: "reproduce",
    options.Data: "data",
    options.Chat: "chat",
    options.Methods: "methods",
    options.Benchmarks: "benchmarks",
    options.Report: "report",
    options.Verify: "verify",
    options.Doctor: "doctor",
    options.Plan: "plan",
    options.Submit: "submit",
}
"""By options, the module of this package whose `run` takes them and returns the exit code."""
STARTS_RAY = (options.Tune, options.Prepare, options.Evaluate, options.Compare, options.Export, options.Reproduce)
NAMES = {kind.__name__.lower(): kind for kind in COMMANDS}
EPILOGS: Mapping[type, str] = {
    options.Submit: "Example: ray_unlearn submit --address http://HEAD:8265 -- tune --benchmark wmdp "
    "--out /shared/results"
}


def build_app() -> typer.Typer:
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        help="Make a language model forget, and keep everything else: search the settings of unlearning methods.",
    )
    app.callback()(_root)
    for kind, module in COMMANDS.items():
        app.command(kind.__name__.lower(), epilog=EPILOGS.get(kind))(_command(kind, module))
    return app


def _version(value: bool) -> None:
    if value:
        print(f"ray_unlearn {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    return None


def _command(kind: type, module: str) -> Callable[..., None]:
    """A function with an argument an option, as typer reads it."""

    def call(**values: Any) -> None:
        asked = kind(**parsed(kind, values))
        begin(asked)
        raise typer.Exit(importlib.import_module(f"ray_unlearn.commands.{module}").run(asked))

    hints = get_type_hints(kind, include_extras=True)
    if issubclass(kind, Configured):
        hints["config"] = _read_into(kind, hints["config"])
    parameters = []
    for option in sorted(fields(kind), key=lambda option: _place(hints[option.name])):
        default = default_of(option)
        shown = inspect.Parameter.empty if default is MISSING else _as_text(hints[option.name], default)
        annotation = _on_the_command_line(hints[option.name])
        parameters.append(
            inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=shown, annotation=annotation)
        )
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__doc__, call.__name__ = kind.__doc__, kind.__name__.lower()
    return call


def begin(asked: Any) -> None:
    """What comes before every command. Raises UserError."""
    check_job_folder(asked)
    trust_code(getattr(asked, "trust_code", False))
    if keep_byte_code() and type(asked) in STARTS_RAY and not getattr(asked, "dry_run", False):
        begin_load()


def _read_into(kind: type, hint: Any) -> Any:
    """The option --config, which is parsed first and gives the others of a command their defaults."""

    def read(context: typer.Context, files: list[Path] | None) -> list[Path] | None:
        from ray_unlearn.commands.run_file import read_run_files

        context.default_map = {**(context.default_map or {}), **read_run_files(kind, files or [])}
        return files

    information = copy(hint.__metadata__[0])
    information.callback = read
    return Annotated[hint.__origin__, information]


def _place(hint: Any) -> int:
    """An option's panel, in the order in which the help shows them."""
    panel = hint.__metadata__[0].rich_help_panel
    return PANELS.index(panel) if panel in PANELS else -1


def _on_the_command_line(hint: Any) -> Any:
    """The type that typer parses for an option of that type."""
    kind, information = hint.__origin__, hint.__metadata__[0]
    if kind in (Names, Amounts, Levels) and isinstance(information, typer.models.OptionInfo):
        return Annotated[str, information]
    if kind in (tuple[Path, ...], Names):
        return Annotated[list[Path] | None if kind == tuple[Path, ...] else list[str] | None, information]
    return hint


def _as_text(hint: Any, default: Any) -> Any:
    kind, information = hint.__origin__, hint.__metadata__[0]
    if kind == Names and isinstance(information, typer.models.OptionInfo):
        return ",".join(default) or "none"
    if kind in (Amounts, Levels):
        return ""
    return None if default == () else default


def parsed(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """What the command line gave, in the options' own types. Raises UserError."""
    result = {}
    for name, hint in get_type_hints(kind).items():
        value = values[name]
        if hint == Names:
            value = split_names(value) if isinstance(value, str) else tuple(value or ())
        elif hint == Amounts:
            value = split_amounts(value, f"--{name.replace('_', '-')}")
        elif hint == Levels:
            value = split_levels(value, f"--{name.replace('_', '-')}")
        elif hint == tuple[Path, ...]:
            value = tuple(value or ())
        result[name] = value
    return result


def split_names(listed: str) -> Names:
    """What a comma-separated option names; nothing for "none"."""
    return tuple(name for part in listed.split(",") if (name := part.strip()) not in ("", "none"))


def split_amounts(listed: str, option: str) -> dict[str, float]:
    """Resources as one writes them, GPU=16,CPU=64."""
    try:
        pairs = [part.split("=") for part in listed.split(",") if part.strip()]
        amounts = {name.strip(): float(amount) for name, amount in pairs}
        if not amounts.keys() <= {"CPU", "GPU"} or any(not 0 < amount < math.inf for amount in amounts.values()):
            raise ValueError
    except ValueError:
        raise UserError(f"{option} {listed}: not amounts of CPU and GPU. Write GPU=16 or GPU=16,CPU=64") from None
    return amounts


def split_levels(listed: str, option: str) -> Levels:
    """Utilities as one writes them, 0.95,0.9; each once, the highest first."""
    try:
        levels = {float(part) for part in listed.split(",") if part.strip()}
    except ValueError:
        raise UserError(f"{option} {listed}: not numbers. Write 0.95,0.9,0.8") from None
    return tuple(sorted(levels, reverse=True))


def parse(words: Sequence[str]) -> tuple[str, Any, set[str]]:
    """(the command's name, its options, the names of those that stand there), without running it. words: after the
    program's name. Raises UserError, or what the parser raises for an option that does not exist."""
    commands: Mapping[str, Any] = getattr(typer.main.get_command(build_app()), "commands")  # noqa: B009
    context = commands[words[0]].make_context(words[0], list(words[1:]))
    given = {
        name
        for name in context.params
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    }
    return words[0], NAMES[words[0]](**parsed(NAMES[words[0]], context.params)), given

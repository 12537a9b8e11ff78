"""Parse a command line as the program would, without running it: for commands that files and pages show."""

import contextlib
from collections.abc import Sequence
from typing import Any

import typer

from ray_unlearn import cli, commands


def parse(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The subcommand and its parsed options; `tune`'s are also checked as far as options alone allow.

    Raises what the parser raises (an unknown option, say), or UserError for names that do not exist.
    """
    assert words[0] == "ray_unlearn", words
    root = typer.main.get_command(cli.app)
    context = root.make_context("ray_unlearn", list(words[1:]), resilient_parsing=False)
    name, command, rest = root.resolve_command(context, [*context._protected_args, *context.args])
    with contextlib.closing(command.make_context(name, list(rest), parent=context)) as inner:
        options = dict(inner.params)
    if name == "tune":
        commands.load_benchmark(options["benchmark"])
        for method in options["methods"].split(","):
            commands.find_method(method)
        commands.check_workers(options["workers_per_trial"], options["gpus_per_worker"], "--workers-per-trial")
    return name, options

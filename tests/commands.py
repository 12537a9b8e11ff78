"""Parse a command line as the program would, without running it: for commands that files and pages show."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.commands.checks import check_workers
from ray_unlearn.commands.options import Tune
from ray_unlearn.commands.parser import parse as parse_words
from ray_unlearn.training.losses import find_method


def parse(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The subcommand and its parsed options; `tune`'s are also checked as far as options alone allow.

    Raises what the parser raises (an unknown option, say), or UserError for names that do not exist.
    """
    assert words[0] == "ray_unlearn", words
    name, options, _ = parse_words(words[1:])
    if isinstance(options, Tune):
        if options.benchmark is not None:
            load_benchmark(options.benchmark)
        for method in options.methods:
            find_method(method)
        check_workers(options.workers_per_trial, options.gpus_per_worker, "--workers-per-trial")
    return name, asdict(options)

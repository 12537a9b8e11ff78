"""One of the other commands as a job: its words, the files that it reads and writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ray_unlearn.commands.parser import NAMES, parse
from ray_unlearn.config import UserError
from ray_unlearn.records.bucket import is_uri

READS = ("benchmark", "model", "start", "data", "space", "deepspeed", "retrained", "harness_tasks", "what")
WRITES = ("out", "profile", "folder", "folders")
"""Parameters of the other commands that name files and folders."""
SHARED = Path("/shared")
"""Where the manifest's pods have their common volume."""


@dataclass(frozen=True)
class Command:
    """One of the other commands, parsed as it will be there."""

    name: str
    words: tuple[str, ...]
    parameters: Mapping[str, Any]
    given: frozenset[str] = frozenset()
    """The names of those that stand there; the others' defaults are found out there, where they hold."""

    def named(self, parameters: Iterable[str]) -> list[tuple[str, Path]]:
        """(how it is written, its value) of those parameters that are paths."""
        found = []
        for name in parameters:
            value = self.parameters.get(name)
            values = value if isinstance(value, list | tuple) else [value]
            found += [(name, Path(v)) for v in values if v is not None]
        flags = {"folder": "FOLDER", "folders": "FOLDER", "what": "WHAT"}
        return [(flags.get(name, f"--{name.replace('_', '-')}"), path) for name, path in found]

    @property
    def reads(self) -> list[tuple[str, Path]]:
        own_data = str(self.parameters.get("benchmark")).lower().endswith(".toml")
        return self.named(name for name in READS if name != "benchmark" or own_data)

    @property
    def writes(self) -> list[tuple[str, Path]]:
        nothing = self.name == "doctor" or str(self.parameters.get("what")).endswith(".json")
        if (search := self.parameters.get("resume")) is not None:  # it goes on where it is, which may be a bucket
            return [] if is_uri(str(search)) else self.named(["resume"])
        return [] if nothing else self.named(name for name in WRITES if name != "out" or name in self.given)


def read_command(words: Sequence[str]) -> Command:
    """The command after the `--`, checked as far as its parser can; with the cluster's address added where it takes
    one and has none. Raises UserError, or what the parser raises for an option that does not exist.
    """
    words = tuple(words)
    words = words[1:] if words[:1] == ("ray_unlearn",) else words
    if not words or words[0] == "submit" or words[0] not in NAMES:
        what = repr(words[0]) if words else "nothing"
        raise UserError(f"submit: {what} is no command to run there. Write `ray_unlearn submit ... -- tune ...`")
    name, options, given = parse(words)
    parameters = {option.name: getattr(options, option.name) for option in fields(options)}
    if "address" in parameters and "address" not in given:
        words = (*words, "--address", "auto")
    return Command(name, words, parameters, frozenset(given))

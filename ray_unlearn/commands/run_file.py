"""Run files: the options of a command in TOML, read and written.

    benchmark = "wmdp"                # a key is an option's name without the dashes
    methods = ["simnpo", "npo"]       # what the command line separates by commas may be a list
    trials = 60
    grow-to = {GPU = 16}
    space = ["spaces/simnpo.toml"]    # paths are beside the run file

`--config FILE` gives options their defaults from it: what stands on the command line wins, of several files the later
one. Every search writes its own, resolved, as run.toml into its folder. Where model and data are is no part of that:
local.json beside it knows, on the machine that the search ran on. Permissions are never read or written.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ray_unlearn.commands.shared_options import Configured
from ray_unlearn.config import UserError
from ray_unlearn.plugins import LOSS_FILE

RUN_FILE = "run.toml"
FOR_THE_COMMAND_LINE = ("config", "resume", "dry_run", "trust_remote_code", "trust_code")
"""What is asked for once, or allowed by whoever types it: no file has it."""
OF_ONE_MACHINE = ("model", "data", "retrained", "address", "out", "copy_to")
"""Left out of what a search writes: its folder may be passed on."""


def read_run_files(kind: type, files: Sequence[Path]) -> dict[str, Any]:
    """The options that the files give to a command, as its parser takes them. Raises UserError."""
    found: dict[str, Any] = {}
    for file in files:
        found |= _read(kind, file)
    return found


def _read(kind: type, file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8-sig")
        values = tomllib.loads(text)
    except FileNotFoundError:
        raise UserError(f"--config {file}: no such file. Give a run file in TOML") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"--config {file}: cannot be read as TOML ({error}). Correct the file") from None
    hints = get_type_hints(kind)
    known = {name: hint for other in Configured.__subclasses__() for name, hint in get_type_hints(other).items()}
    found = _places_beside(file, kind)
    for key, value in values.items():
        name, where = key.replace("-", "_"), f"{file}, line {_line_of(key, text)}: {key}"
        if name in FOR_THE_COMMAND_LINE:
            raise UserError(f"{where}: is for the command line alone. Take it out of the file")
        if name not in known:
            raise UserError(f"{where}: no such option. {_nearest(name, known.keys() - {*FOR_THE_COMMAND_LINE})}")
        given = _for_the_parser(value, hints.get(name, known[name]), where, file.parent)
        if name in hints:  # one file may serve `plan` and `tune`
            found[name] = given
    return found


def _line_of(key: str, text: str) -> int:
    """The line, from 1, on which a key of the file stands."""
    pattern = re.compile(rf"""\s*(\[\s*)?["']?{re.escape(key)}["']?\s*[=\].]""")
    return next((number for number, line in enumerate(text.splitlines(), start=1) if pattern.match(line)), 1)


def _nearest(name: str, allowed: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(allowed), 2)
    return f"Did you mean {' or '.join(close)}?" if close else f"Choose from: {', '.join(sorted(allowed))}"


def _for_the_parser(value: Any, hint: Any, where: str, folder: Path) -> Any:
    """A TOML value as the command line's text or list. Raises UserError where it is of another kind."""
    kinds = [part for part in (get_args(hint) if _is_union(hint) else (hint,)) if part is not type(None)]
    kind = kinds[0]
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if choices:
        if value not in choices:
            raise UserError(f"{where} = {value!r}: must be one of {', '.join(choices)}")
        return value
    if get_origin(kind) is tuple:
        return _several(value, get_args(kind)[0], where, folder)
    if get_origin(kind) is not None:  # amounts of resources
        if not isinstance(value, Mapping) or any(not _is_a(float, amount) for amount in value.values()):
            raise UserError(f"{where} = {value!r}: must be a table of numbers, as {{GPU = 16}}")
        return ",".join(f"{name}={amount:g}" for name, amount in value.items())
    if not _is_a(kind, value):
        raise UserError(f"{where} = {value!r}: must be {_WORDS[kind]}")
    return _beside(value, folder, kind is Path) if isinstance(value, str) else value


def _several(value: Any, kind: type, where: str, folder: Path) -> Any:
    """A list: of paths as it is, of names with commas."""
    items = value if isinstance(value, list) else [value]
    if any(not isinstance(item, str) for item in items):
        raise UserError(f"{where} = {value!r}: must be a list of {'paths' if kind is Path else 'names'}")
    if kind is Path:
        return [_beside(item, folder, True) for item in items]
    return ",".join(_beside(item, folder, False) if LOSS_FILE in item else item for item in items) or "none"


def _is_union(hint: Any) -> bool:
    return get_origin(hint) is Union or type(None) in get_args(hint)


_WORDS: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text in quotes",
    Path: "a path in quotes",
}


def _is_a(kind: Any, value: Any) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, int if kind is int else str)


def _beside(value: str, folder: Path, is_path: bool) -> str:
    """A path beside the file; of what may be a name, too, only where there is such a path."""
    file, colon, function = value.partition(LOSS_FILE)
    if colon:  # a loss of a file
        return f"{_beside(file + '.py', folder, True)}:{function}"
    place = folder / value
    return str(place) if is_path or (("/" in value or "." in value) and place.exists()) else value


def _places_beside(file: Path, kind: type) -> dict[str, Any]:
    """Where the search that wrote the file has its model and data."""
    from ray_unlearn.commands.reopen import read_local
    from ray_unlearn.records.tables import LOCAL

    if file.name != RUN_FILE or not (file.parent / LOCAL).is_file():
        return {}
    config, request, retrained = read_local(file.parent)
    places = {"benchmark": config.definition, "model": request.model, "data": config.data, "retrained": retrained}
    names = {option.name for option in fields(kind)}
    return {name: str(place) for name, place in places.items() if place is not None and name in names}


def write_run_file(folder: Path, options: Any, resolved: Mapping[str, Any], files: Mapping[str, Path]) -> None:
    """run.toml in a search's folder, with the files that its options name copied beside it.

    options: as the command had them; resolved: what the machine and the benchmark made of some of them; files: the
    copies' places in the folder, and what is copied.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(source.read_bytes())
    values = {option.name: getattr(options, option.name) for option in fields(options)} | dict(resolved)
    lines = [
        f"{name.replace('_', '-')} = {_as_toml(value)}"
        for name, value in values.items()
        if name not in (*FOR_THE_COMMAND_LINE, *OF_ONE_MACHINE) and value is not None
    ]
    (folder / RUN_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _as_toml(value: Any) -> str:
    """Of the kinds that options have; JSON's texts, numbers and lists of texts are TOML's."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {_as_toml(part)}" for name, part in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_as_toml, value)) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)

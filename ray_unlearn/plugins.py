"""Methods and benchmarks of installed packages, scorers that own data name, losses from files: code that is not this
project's.

A package adds a method or a benchmark through an entry point, whose name is the method's or benchmark's:

    [project.entry-points."ray_unlearn.methods"]
    mine = "my_package.mine:METHOD"            # a ray_unlearn.training.losses.Method

    [project.entry-points."ray_unlearn.benchmarks"]
    theirs = "my_package.theirs:BENCHMARK"     # a ray_unlearn.benchmarks.contract.Benchmark

It must be installed on every node, in one version: workers compare. Whoever installed it trusts it. A scorer comes
with a TOML file from whoever sent that, a loss with its file (training/own_losses.py): they run only where --trust-code
says so, and reach other nodes by value.
"""

from __future__ import annotations

import hashlib
import importlib.util
import types
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from ray_unlearn.config import UserError

METHOD, BENCHMARK, SCORER, LOSS = "method", "benchmark", "scorer", "loss"
LOSS_FILE = ".py:"
"""In FILE.py:FUNCTION, which names a loss."""
_trusts: ContextVar[bool] = ContextVar("trust_code", default=False)


def trust_code(is_trusted: bool) -> None:
    """Whether code from files may run, for what this thread starts from here on."""
    _trusts.set(is_trusted)


def check_trust(where: str, files: Iterable[str]) -> None:
    """Raise UserError where code from files would run, and nobody has said that it may."""
    if (named := ", ".join(files)) and not _trusts.get():
        raise UserError(f"{where}: runs code of {named}. Read it, and give --trust-code if you trust it")


@dataclass(frozen=True)
class Plugin:
    """One piece of code from elsewhere, as a search records it."""

    kind: str
    name: str
    source: str
    """The package, or the file."""
    version: str
    """Of the package; empty for a file."""
    sha256: str
    """Over the package's Python files, or of the file."""

    def __str__(self) -> str:
        version = f" {self.version}" if self.version else ""
        return f"{self.kind} {self.name} of {self.source}{version} ({self.sha256[:12]})"


@dataclass(frozen=True)
class OwnLoss:
    """A loss of the user's, by value: the function's name, its file's name and text, and the text's SHA-256."""

    name: str
    file: str
    source: str
    sha256: str


@lru_cache
def load_source(source: str, sha256: str, file: str) -> types.ModuleType:
    """The module that a file's text makes; whoever calls has seen to --trust-code. Raises RuntimeError where the text
    is not the one that was read where the search began, and whatever it raises itself."""
    if hashlib.sha256(source.encode()).hexdigest() != sha256:
        raise RuntimeError(f"{file}: its code is not what was read where the search began")
    module = types.ModuleType(file.removesuffix(".py"))
    exec(compile(source, file, "exec"), module.__dict__)
    return module


def installed(kind: str) -> dict[str, EntryPoint]:
    """The entry points of that kind by their names; imports nothing."""
    return {point.name: point for point in entry_points(group=f"ray_unlearn.{kind}s")}


def load_installed(kind: str, name: str, wanted: type) -> Any:
    """What a package offers under that name; None where none does. Raises UserError where it is something else."""
    point = installed(kind).get(name)
    if point is None:
        return None
    where = f"{kind} {name} of the package {_package(point)[0]}"
    try:
        found = point.load()
    except Exception as error:  # whatever its import raises
        raise UserError(f"{where}: cannot be imported ({type(error).__name__}: {error}). Mend or remove it") from None
    if not isinstance(found, wanted) or getattr(found, "name", None) != name:
        raise UserError(f"{where}: {point.value} is no {wanted.__name__} called {name}. Mend or remove it")
    return found


def describe_installed(kind: str, names: Iterable[str]) -> tuple[Plugin, ...]:
    """Those of the names that are an installed package's."""
    points = installed(kind)
    found = []
    for name in names:
        if name in points:
            package, version = _package(points[name])
            found.append(Plugin(kind, name, package, version, _digest(points[name].module)))
    return tuple(found)


def check_here(plugins: Sequence[Plugin]) -> None:
    """On a worker: raise RuntimeError where this node has another version of a package than the search."""
    for plugin in plugins:
        if plugin.kind in (METHOD, BENCHMARK) and describe_installed(plugin.kind, [plugin.name]) != (plugin,):
            here = ", ".join(map(str, describe_installed(plugin.kind, [plugin.name]))) or "none"
            raise RuntimeError(f"the search uses {plugin}, and this node has {here}: install the same on every node")


def check_unchanged(where: object, before: Sequence[Mapping[str, Any]], now: Sequence[Plugin]) -> None:
    """Raise UserError naming the first plug-in that is not what a search ran with."""
    then = {(plugin["kind"], plugin["name"]): Plugin(**plugin) for plugin in before}
    here = {(plugin.kind, plugin.name): plugin for plugin in now}
    for key in dict.fromkeys([*then, *here]):
        if then.get(key) != here.get(key):
            had, has = then.get(key) or "none", here.get(key) or "none"
            raise UserError(f"{where}: was made with {had}, and here is {has}. Put the old one back, or search anew")


def _package(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist is not None else (point.module, "")


def _digest(module: str) -> str:
    """SHA-256 over the Python files of a module's top-level package; nothing is imported."""
    spec = importlib.util.find_spec(module.partition(".")[0])
    folders = [Path(place) for place in (spec.submodule_search_locations or ())] if spec is not None else []
    files = [(str(file.relative_to(folder)), file) for folder in folders for file in sorted(folder.rglob("*.py"))]
    if not folders and spec is not None and spec.origin is not None:
        files = [(Path(spec.origin).name, Path(spec.origin))]
    digest = hashlib.sha256()
    for name, file in files:
        digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()

"""Byte code is kept and handed on: without it each of Ray's ten processes compiles its imports anew at every start.

Ray gives its dashboard agent 15 s to load its modules, and ends its own start where that takes longer: 3 s of a free
core without byte code, .8 s with it.

    python -m ray_unlearn.byte_code              write the byte code of what a search imports (for an installation)
    python -m ray_unlearn.byte_code COMMAND...   the same of Ray's agent alone, then become that command

Imports nothing heavy; what is to be compiled is imported in a process of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import pkgutil
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.machinery import PathFinder
from pathlib import Path

from ray_unlearn.files import cache_folder

UNWANTED, PREFIX = "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"
AGENT = "ray.dashboard.agent"
AGENT_PARTS = "ray.dashboard.modules"
"""The agent imports all modules of this package."""
BESIDE_AGENT = (
    "ray._private.workers.default_worker",
    "ray._private.log_monitor",
    "ray._private.runtime_env.agent.main",
    "ray._private.runtime_env.agent.runtime_env_agent",
    "ray.autoscaler._private.monitor",
    "ray_unlearn.cli",
)
"""What Ray's other processes import, and what this program had imported before it could see to byte code."""
SEARCH = (
    "ray_unlearn.commands.tune",
    "ray_unlearn.commands.evaluate",
    "ray_unlearn.search.run",
    "ray_unlearn.gangs.serve",
    "ray_unlearn.training.worker",
    "ray.train.torch",
    "ray.data._internal.cluster_autoscaler",
    "matplotlib.pyplot",
)
"""What a search imports, in the driver and in its workers."""
PROBES = {
    "ray": ("dashboard/agent.py", "dashboard/modules/reporter/reporter_agent.py", "_private/workers/default_worker.py"),
    "torch": ("nn/functional.py",),
}
"""By package, files whose byte code is there where the package's is."""
AGENT_LIMIT = 15
"""Seconds that Ray gives its dashboard agent to load. Its start fails where that takes longer, and no setting helps."""
LOAD_SECONDS = 120.0
"""A load of the agent that takes longer is given up."""
_loads: list[subprocess.Popen[bytes]] = []


def keep_byte_code() -> bool:
    """From here on this process and all that it starts write byte code; whether there is some to be written.

    It goes beside the modules, or, where nobody may write there, into the cache.
    """
    os.environ.pop(UNWANTED, None)
    sys.dont_write_bytecode = False
    missing = find_missing()
    if not missing or sys.pycache_prefix is not None or all(map(can_write, missing)):
        return bool(missing)
    prefix = cache_folder() / "byte_code"
    try:
        prefix.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False  # there is no place for it
    sys.pycache_prefix = os.environ[PREFIX] = str(prefix.absolute())
    return bool(find_missing())


def find_missing() -> list[Path]:
    """The probes without byte code; of packages that are not installed, none."""
    missing = []
    for package, files in PROBES.items():
        spec = PathFinder.find_spec(package)
        for place in (spec.submodule_search_locations or ())[:1] if spec else ():
            sources = (Path(place, file) for file in files)
            missing += [s for s in sources if s.is_file() and not Path(compiled_name(s)).is_file()]
    return missing


def compiled_name(source: Path) -> str:
    return importlib.util.cache_from_source(str(source))


def can_write(source: Path) -> bool:
    """Whether byte code can be written beside that module."""
    folder = source.parent / "__pycache__"
    return os.access(folder if folder.is_dir() else source.parent, os.W_OK)


def begin_load() -> None:
    """Write the byte code of Ray's processes, in a process beside this one; `end_load` waits for it."""
    with contextlib.suppress(OSError):
        _loads.append(_start("load_ray"))


def end_load() -> None:
    while _loads:
        with contextlib.suppress(subprocess.TimeoutExpired):
            _loads.pop().wait(LOAD_SECONDS)


def agent_seconds() -> float | None:
    """How long a new process takes to load Ray's agent, all as its start does it; None where it takes too long, or
    fails."""
    began = time.monotonic()
    try:
        process = _start("load_agent")
    except OSError:
        return None
    try:
        return time.monotonic() - began if process.wait(LOAD_SECONDS) == 0 else None
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def _start(function: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", f"from ray_unlearn.byte_code import {function}; {function}()"]
    nothing = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing)


def load_agent() -> None:
    """Import what Ray's agent imports."""
    importlib.import_module(AGENT)
    parts = importlib.import_module(AGENT_PARTS)
    load(part.name for part in pkgutil.walk_packages(parts.__path__, f"{AGENT_PARTS}.", onerror=lambda name: None))


def load_ray() -> None:
    """Import what Ray's processes import, whichever."""
    with contextlib.suppress(Exception):
        load_agent()
    load(BESIDE_AGENT)


def load(names: Iterable[str]) -> None:
    """Import those modules; those that need a package that is not installed, or that have moved, are left out."""
    for name in names:
        with contextlib.suppress(Exception, SystemExit):
            importlib.import_module(name)


def main(words: list[str]) -> None:
    keep_byte_code()
    begin_load()
    if not words:
        load(SEARCH)
    end_load()
    if words:
        os.execvp(words[0], words)


if __name__ == "__main__":
    main(sys.argv[1:])

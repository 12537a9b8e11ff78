"""A benchmark is a forget set, a retain set, and metrics that say how each was kept: one file each.

A file here that defines `BENCHMARK = Benchmark(...)` is a benchmark, and its name is the file's. Files are imported on
use.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_unlearn.config import UserError
from ray_unlearn.plugins import BENCHMARK as INSTALLED
from ray_unlearn.plugins import installed, load_installed

if TYPE_CHECKING:
    from ray_unlearn.benchmarks.contract import Benchmark

OWN_DATA = "custom"
"""The file that reads the user's own data, in whose place the path of a TOML file is given."""
BENCHMARKS = tuple(
    file.stem
    for file in sorted(Path(__file__).parent.glob("*.py"))
    if re.search(r"^BENCHMARK = ", file.read_text(encoding="utf-8"), re.MULTILINE)
)
"""The names of all of them."""
NAMED = tuple(name for name in BENCHMARKS if name != OWN_DATA)
"""Those that are asked for by name."""


def load_benchmark(name: str) -> Benchmark:
    """By its name, or by the path of the TOML file that describes the user's own data."""
    if name.lower().endswith(".toml"):
        return _module(OWN_DATA).read_benchmark(Path(name))
    if name in BENCHMARKS:
        return _module(name).BENCHMARK
    from ray_unlearn.benchmarks.contract import Benchmark

    benchmark = load_installed(INSTALLED, name, Benchmark)
    if benchmark is None:
        raise UserError(
            f"--benchmark {name}: unknown. Choose one of: {', '.join([*BENCHMARKS, *installed(INSTALLED)])}"
        )
    return benchmark


def _module(name: str) -> Any:
    return importlib.import_module(f"ray_unlearn.benchmarks.{name}")

"""The table of benchmarks as text for people: what is forgotten, where data come from, and the exact objective."""

from __future__ import annotations

import textwrap

from ray_unlearn.benchmarks import BENCHMARKS, Benchmark, load_benchmark
from ray_unlearn.config import UTILITY_FLOOR
from ray_unlearn.objective import describe_objective


def describe_benchmarks(name: str | None = None) -> str:
    """One benchmark (its name, or a TOML file of one's own) with all its metrics; or all of them without."""
    if name is not None:
        benchmark = load_benchmark(name)
        return _describe(BENCHMARKS.get(name, "your own data"), benchmark) + _describe_metrics(benchmark)
    return "\n\n".join(_describe(title, load_benchmark(known)) for known, title in BENCHMARKS.items())


def _describe(title: str, benchmark: Benchmark) -> str:
    lines = [f"{benchmark.name}  ({title})"]

    def add(label: str, text: str) -> None:
        lines.append(textwrap.fill(text, 100, initial_indent=f"  {label:<11}", subsequent_indent=" " * 13))

    add("data", benchmark.source)
    add("scales", benchmark.scales)
    if benchmark.aims:
        add("objective", describe_objective(benchmark, UTILITY_FLOOR))
    else:
        add("objective", "follows from what the file has: `ray_unlearn benchmarks FILE.toml` states it")
    return "\n".join(lines)


def _describe_metrics(benchmark: Benchmark) -> str:
    width = max(map(len, benchmark.metrics), default=0)
    return "".join(f"\n  {name:<{width}}  {note}" for name, note in benchmark.metrics.items())

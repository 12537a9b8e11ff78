"""`ray_unlearn benchmarks`: what is forgotten, where data come from, and the exact objective."""

from __future__ import annotations

import textwrap

from ray_unlearn.benchmarks import BENCHMARKS, load_benchmark
from ray_unlearn.benchmarks.contract import Benchmark
from ray_unlearn.benchmarks.objective import describe_objective
from ray_unlearn.commands.options import Benchmarks
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.plugins import BENCHMARK, installed


def run(options: Benchmarks) -> int:
    print(describe_benchmarks(options.name))
    return 0


def describe_benchmarks(name: str | None = None) -> str:
    """One benchmark (its name, or a TOML file of one's own) with all its metrics; or all of them without."""
    if name is not None:
        benchmark = load_benchmark(name)
        return _describe(benchmark) + _describe_metrics(benchmark)
    return "\n\n".join(_describe(load_benchmark(known)) for known in (*BENCHMARKS, *installed(BENCHMARK)))


def _describe(benchmark: Benchmark) -> str:
    lines = [f"{benchmark.name}  ({benchmark.title})"]

    def add(label: str, text: str) -> None:
        lines.append(textwrap.fill(text, 100, initial_indent=f"  {label:<11}", subsequent_indent=" " * 13))

    add("data", benchmark.source)
    add("scales", benchmark.scales)
    if benchmark.aims:
        add("objective", describe_objective(benchmark, Ranking()))
    else:
        add("objective", "follows from what the file has: `ray_unlearn benchmarks FILE.toml` states it")
    return "\n".join(lines)


def _describe_metrics(benchmark: Benchmark) -> str:
    width = max(map(len, benchmark.metrics), default=0)
    return "".join(f"\n  {name:<{width}}  {note}" for name, note in benchmark.metrics.items())

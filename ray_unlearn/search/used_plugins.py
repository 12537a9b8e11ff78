"""Which code from elsewhere a search uses."""

from __future__ import annotations

from collections.abc import Sequence

from ray_unlearn.benchmarks import BENCHMARKS
from ray_unlearn.benchmarks.contract import Benchmark
from ray_unlearn.plugins import BENCHMARK, METHOD, Plugin, check_trust, describe_installed
from ray_unlearn.training.losses import METHODS
from ray_unlearn.training.own_losses import describe_taken


def used_plugins(benchmark: Benchmark, methods: Sequence[str]) -> tuple[Plugin, ...]:
    return (
        *describe_installed(METHOD, [name for name in methods if name not in METHODS]),
        *describe_taken(methods),
        *describe_installed(BENCHMARK, [benchmark.name] if benchmark.name not in BENCHMARKS else []),
        *benchmark.code,
    )


def check_code(benchmark: Benchmark) -> None:
    """Raise UserError where the benchmark's description runs code that nobody has trusted."""
    check_trust(f"--benchmark {benchmark.name}", dict.fromkeys(plugin.source for plugin in benchmark.code))

"""What a command will read from the hub, and whether it may: asked before anything starts, said in one list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ray_unlearn.benchmarks.contract import Benchmark, Request
from ray_unlearn.config import UserError
from ray_unlearn.models.hub import DATASET, MODEL, check_access
from ray_unlearn.models.loading import TOKENIZER_OF


@dataclass(frozen=True)
class Needed:
    """One repository of the hub."""

    name: str
    kind: str
    role: str
    """What it is for: the beginning of a message."""
    instead: str


def list_repositories(benchmark: Benchmark, request: Request, models: Mapping[str, str | None]) -> list[Needed]:
    """All that a request reads; nothing of folders. models: by option, what was given.

    Raises UserError where the request's split or folder of data is none.
    """
    found = []
    for option, name in models.items():
        if name is None or Path(name).expanduser().is_dir():
            continue
        found.append(Needed(name, MODEL, f"{option} ", f"the model's folder with {option}"))
        if name in TOKENIZER_OF:
            instead = f"a folder with {option} that holds the tokenizer beside the weights"
            found.append(Needed(TOKENIZER_OF[name], MODEL, f"{option} {name} takes its tokenizer from ", instead))
    data = benchmark.repositories(request).items() if request.scale == "full" else ()
    return [*found, *(Needed(name, DATASET, "", instead) for name, instead in data)]


def find_obstacles(needed: list[Needed]) -> list[str]:
    """Why each of those that cannot be had cannot, with the ways on."""
    obstacles = []
    for each in needed:
        try:
            check_access(each.name, each.kind, each.instead)
        except UserError as error:
            obstacles.append(f"{each.role}{error}")
    return obstacles


def check_repositories(benchmark: Benchmark, request: Request, models: Mapping[str, str | None]) -> None:
    """Raise UserError naming every repository that cannot be had."""
    needed = list_repositories(benchmark, request, models)
    obstacles = find_obstacles(needed)
    if len(obstacles) == 1:
        raise UserError(obstacles[0])
    if obstacles:
        listed = "; ".join(f"({number}) {obstacle}" for number, obstacle in enumerate(obstacles, 1))
        raise UserError(f"{len(obstacles)} of the {len(needed)} repositories that are needed cannot be had: {listed}")

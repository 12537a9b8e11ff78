"""A search repeated with other seeds, as `tune --searches` and `compare --searches` both do it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_unlearn.benchmarks.contract import Task
from ray_unlearn.commands.reopen import describe_local, read_local
from ray_unlearn.config import RECOMMENDED_UNITS, SearchConfig, UserError
from ray_unlearn.records.tables import SearchResults, read_search, write_json
from ray_unlearn.search.space import read_spaces

if TYPE_CHECKING:
    from ray_unlearn.gangs.gangs import Gangs


def check_several(option: str, count: int, what: str) -> None:
    if count < 2:
        raise UserError(f"{option} {count}: one {what} has no spread. Give at least 2, better {RECOMMENDED_UNITS}")


def repeat(
    folder: Path,
    config: SearchConfig,
    load: Callable[[], Task],
    count: int,
    say: Callable[[str], None],
    gangs: Gangs | None = None,
) -> list[SearchResults]:
    """Run what is missing of the repeats, so that there are `count` searches with the one in that folder; the repeats.

    load: gives the search's task, if any is to be run. gangs: of the same task, if there are any yet.
    """
    from ray_unlearn.gangs.session import start_ahead
    from ray_unlearn.search.repeats import describe_cost, is_complete, repeats_of, run_repeats

    results = read_search(folder)
    repeats = repeats_of(config, folder, count)
    if left := sum(not is_complete(place) for place, _ in repeats):
        say(describe_cost(results, left))
        if gangs is None and config.address is None:
            start_ahead(config.gang, config.concurrent)
    request, retrained = read_local(folder)[1:]

    def local(repeated: SearchConfig) -> Mapping[str, Any]:
        return describe_local(repeated, request, retrained)

    run_repeats(repeats, load, read_spaces(results.meta), sys.argv[1:], local, say, gangs)
    return [read_search(place) for place, _ in repeats]


def record_searches(found: Sequence[SearchResults]) -> dict[str, Any]:
    """Compare methods over those searches, and keep what comes out in the first one's folder; its report reads it."""
    from ray_unlearn.search.repeats import summarise_searches

    first, summary = found[0], summarise_searches(found)
    write_json(first.folder / "comparison.json", {**(first.comparison or {}), "searches": summary})
    return summary

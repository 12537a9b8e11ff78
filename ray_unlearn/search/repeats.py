"""A search repeated with other seeds: the unit is the whole search, and so the verdicts are on methods.

results/<search>/compare/searches/<search>-repeat<k>/   each a search of its own, like the first but for its seed
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_unlearn.benchmarks.contract import Task
from ray_unlearn.benchmarks.identity import check_identity
from ray_unlearn.config import COMPLETED, FAILED, MEASURES, SearchConfig, TrialConfig, UserError
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.records.tables import SearchResults, read_search
from ray_unlearn.report.text import method_label
from ray_unlearn.report.verdicts import SEARCH, describe_limits, tabulate_differences, tabulate_spreads
from ray_unlearn.search.attacked_goals import with_attacked_goals
from ray_unlearn.search.comparison import describe_units, difference_table, scored
from ray_unlearn.search.held_out import scores_only
from ray_unlearn.search.space import Space

if TYPE_CHECKING:
    from ray_unlearn.gangs.gangs import Gangs

Row = Mapping[str, Any]
SEED_STEP = 100_000
"""Between the seeds of two repeats: far above what one search and its comparison use."""
ALIKE = (
    "benchmark",
    "scale",
    "model",
    "methods",
    "trials",
    "objective",
    "utility_floor",
    "ranking",
    "sampler",
    "prune",
)
"""Settings that searches must share to be compared."""


def repeats_of(config: SearchConfig, folder: Path, count: int) -> list[tuple[Path, SearchConfig]]:
    """The places and settings of `count` - 1 repeats: the search's own but for seed and name, and of its finalists
    only what the objective reads."""
    scores = scores_only(config)
    return [
        (
            folder / "compare" / "searches" / (name := f"{config.name}-repeat{k}"),
            reseeded(replace(scores, name=name, log_to=(), copy_to=None), config.seed + k * SEED_STEP),
        )
        for k in range(1, count)
    ]


def reseeded(config: SearchConfig, seed: int) -> SearchConfig:
    """The search with another seed: adapters start elsewhere, too."""
    gang = replace(config.gang, seed=seed, adapter="") if config.gang.lora_rank else config.gang
    return replace(config, seed=seed, gang=gang)


def shares_gangs(config: SearchConfig) -> bool:
    """Whether a search's repeats run on its gangs: adapters start with the gang that has them, from its own seed."""
    return config.gang.lora_rank == 0


def is_complete(folder: Path) -> bool:
    return (folder / "search.json").is_file() and read_search(folder).meta.get("status") == "complete"


def run_repeats(
    repeats: Sequence[tuple[Path, SearchConfig]],
    load: Callable[[], Task],
    spaces: Mapping[str, Space],
    command: Sequence[str],
    local: Callable[[SearchConfig], Mapping[str, Any]],
    say: Callable[[str], None],
    gangs: Gangs | None = None,
) -> None:
    """Run those that are not complete, or what is left of them, one after another on the same gangs where
    all weights are trained.

    load: gives the searches' task, if any is to be run. local: what later commands need of a search. gangs: of the
    same task, to be used before any are started. Raises what `run_search` raises.
    """
    from ray_unlearn.search.run import open_gangs, run_search

    left = [(folder, config) for folder, config in repeats if not is_complete(folder)]
    if len(left) < len(repeats):
        say(f"{len(repeats) - len(left)} of {len(repeats)} repeats are there already")
    if not left:
        return
    first, task = left[0][1], load()
    task = with_attacked_goals(first, task, say)
    has_own = gangs is None and shares_gangs(first)
    own = open_gangs(first, task, say, "the same command goes on") if has_own else nullcontext(gangs)
    with own as gangs:
        for number, (folder, config) in enumerate(left, start=len(repeats) - len(left) + 1):
            folder.parent.mkdir(parents=True, exist_ok=True)
            say(f"repeat {number} of {len(repeats)}: seed {config.seed}")
            watcher = _Quiet(say, config.trials * len(config.methods))
            run_search(config, task, spaces, folder, [*command], watcher, False, local(config), gangs)


class _Quiet:
    """Says how far a repeat has come a few times, and nothing of single trials."""

    def __init__(self, say: Callable[[str], None], total: int) -> None:
        self._say, self._total, self._ended = say, total, 0

    def stage(self, what: str) -> None:
        pass

    def resumed(self, rows: Sequence[Row]) -> None:
        self._ended = len(rows)

    def started(self, trial: TrialConfig, number: int) -> None:
        pass

    def finished(self, row: Row) -> None:
        self._ended += 1
        if self._ended % max(1, self._total // 4) == 0:
            self._say(f"  {self._ended} of {self._total} trials")


def describe_cost(results: SearchResults, count: int) -> str:
    """What so many repeats take, by what the first search took."""
    began, ended = (results.meta.get(name) for name in ("created", "finished"))
    trials = len(results.trials)
    text = f"{count} more search(es) of {trials} trials each"
    if not began or not ended:
        return text
    minutes = (datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds() / 60
    return f"{text}: up to {count * minutes:.0f} minutes, for the first took {minutes:.1f}"


def check_alike(found: Sequence[SearchResults]) -> None:
    """Raise UserError where searches differ in more than their seeds, or one was given twice."""
    first, seeds = found[0], set()
    for results in found:
        if results.meta.get("status") != "complete":
            raise UserError(f"{results.folder}: is not complete. Go on with it first: ray_unlearn tune --resume")
        for name in ALIKE:
            mine, theirs = (r.meta["config"].get(name) for r in (results, first))
            if mine != theirs:
                raise UserError(
                    f"{results.folder}: has {name} {mine}, and {first.folder} {theirs}. Compare searches that differ "
                    "in their seeds alone"
                )
        if results.meta.get("data_fingerprint") != first.meta.get("data_fingerprint"):
            raise UserError(f"{results.folder}: has other data than {first.folder}. Compare searches on the same")
        theirs, mine = (r.meta.get("identity") or {} for r in (first, results))
        fix = f"Compare searches of the same; {first.folder} has what was there first"
        is_made_here = first.meta["config"].get("scale") == "mini"
        check_identity(str(results.folder), theirs, mine, fix, is_made_here)
        if (seed := results.meta["config"]["seed"]) in seeds:
            raise UserError(f"{results.folder}: a second search with seed {seed}. Give each once, each with its own")
        seeds.add(seed)


def summarise_searches(found: Sequence[SearchResults]) -> dict[str, Any]:
    """Methods over whole searches, as plain data: {"searches": [name], "seeds": [int], "methods": [{"method", "n",
    "failed", "objective" | "forget" | "utility": {"mean", "std", "min", "max"}}], "differences": see
    `comparison.difference_table`, "warnings": [str]}.

    Of each search a method gives the held-out scores of its best trial; where none completed, the worst there are.
    """
    check_alike(found)
    methods = found[0].meta["config"]["methods"]
    units = {method: {k: _unit(results, method) for k, results in enumerate(found)} for method in methods}
    return {
        "searches": [results.meta["name"] for results in found],
        "seeds": [results.meta["config"]["seed"] for results in found],
        "methods": [
            {
                **{"method": method, "n": len(rows), "failed": sum(r["status"] != COMPLETED for r in rows.values())},
                **describe_units(list(rows.values())),
            }
            for method, rows in units.items()
        ],
        "differences": difference_table(units, SEARCH),
        "warnings": describe_limits(len(found), SEARCH, len(methods)),
    }


def _unit(results: SearchResults, method: str) -> Row:
    config = results.meta["config"]
    best = Ranking.of(config).best_of_methods(results.trials).get(method)
    finals = {row["trial_id"]: row for row in results.finals}
    return scored(finals.get(best["trial_id"] if best else "", {"status": FAILED}))


def describe_searches(summary: Mapping[str, Any]) -> list[str]:
    """Lines for people."""
    lines = [tabulate_spreads(summary["methods"], MEASURES, SEARCH)]
    lines += ["", tabulate_differences(summary["differences"], SEARCH)] * bool(summary["differences"])
    if len(summary["methods"]) == 1:
        only = summary["methods"][0]["method"]
        lines.append(f"Only {method_label(only)} was searched: there is no pair to judge")
    return [*lines, "", *(f"Note: {warning}" for warning in summary["warnings"])]

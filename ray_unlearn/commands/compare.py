"""`ray_unlearn compare`: train the finalists again with new seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_unlearn.benchmarks.contract import Task
from ray_unlearn.commands.checks import check_levels, check_writable
from ray_unlearn.commands.exit_codes import PARTIAL, failures_named
from ray_unlearn.commands.options import Compare
from ray_unlearn.commands.reopen import fetched, load_search, read_local
from ray_unlearn.commands.resources import find_machine, most_gangs
from ray_unlearn.commands.screen import noise_to, sayer
from ray_unlearn.commands.searches import check_several, record_searches, repeat
from ray_unlearn.config import SearchConfig, UserError
from ray_unlearn.interruption import exit_code
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.models.loading import trust_remote_code
from ray_unlearn.records.copies import copied
from ray_unlearn.records.tables import SearchResults, read_search, write_json
from ray_unlearn.report import write_report
from ray_unlearn.report.verdicts import SEARCH, SEED
from ray_unlearn.search.space import read_spaces

if TYPE_CHECKING:
    from ray_unlearn.search.at_utility import Line

Row = Mapping[str, Any]
LINES = Path("compare", "lines")
IS_READ_ONLY = "Copy the search to a place that can be: its runs are kept with it"


def run(options: Compare) -> int:
    """Compare, and say what can be told apart; the exit code."""
    lines, code = compare(options)
    for line in lines:
        print(line)
    return code


def compare(options: Compare) -> tuple[list[str], int]:
    """Train the finalists again with new seeds, or search again, and keep the runs; lines for people, and the exit
    code."""
    from ray_unlearn.search.comparison import comparison_seeds, count_budgets, describe_unequal, pick_finalists

    trust_remote_code(options.trust_remote_code)
    for name, value in (("--top", options.top), ("--concurrent", options.concurrent)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value}: must be at least 1. Give a larger number")
    check_levels(options.at_utility)
    if options.searches is not None or options.against:
        return compare_searches(options)
    check_several("--seeds", options.seeds, "run")
    place = fetched(options.folder)
    results = read_search(place)
    if (unequal := describe_unequal(count_budgets(results.trials))) and not options.allow_unequal:
        raise UserError(f"{place}: the methods had unequal budgets: {unequal}. Search again, or give --allow-unequal")
    config = read_local(place)[0]
    finalists = pick_finalists(results.trials, Ranking.of_search(config), options.top, options.frontier)
    if not finalists:
        raise UserError(f"{place}: no trial has completed, there is nothing to compare. Search again")
    check_writable(place / "compare", "compare", IS_READ_ONLY)
    seeds = comparison_seeds(config, options.seeds)
    address = options.address or config.address
    machine = find_machine(address, config.gang.accelerator if address else "", config.grow_to if address else None)
    wanted = options.concurrent or most_gangs(config.gang, machine, len(finalists) * len(seeds))
    config = replace(config, address=address, concurrent=wanted)
    folder = place.absolute()
    log = folder / "compare" / "log.txt"
    with copied(folder, config.copy_to, is_needed=False), noise_to(log) as screen, failures_named(log):
        say = sayer(screen)
        if address is None:
            from ray_unlearn.gangs.session import start_ahead

            start_ahead(config.gang, config.concurrent)
        _, task = load_search(folder)
        say(f"{len(finalists)} finalist(s) with {len(seeds)} seeds each: {len(finalists) * len(seeds)} runs")
        try:
            if options.at_utility:
                lines = _lines_of_settings(folder, config, finalists, seeds)
                said, found = _compare_lines(results, config, task, lines, options.at_utility, SEED, say)
            else:
                said, found = _compare_settings(results, config, task, finalists, seeds, say)
        except KeyboardInterrupt:
            say("interrupted; the runs that ended are kept, and the same command goes on with the others")
            return [], exit_code()
        write_report(folder)
    is_partial = {row["method"] for row in finalists} - found
    return [*said, "", f"Report:  {place / 'report' / 'report.html'}"], PARTIAL if is_partial else 0


Told = tuple[list[str], set[str]]
"""Lines for people, and the methods that have runs."""


def _compare_settings(
    results: SearchResults,
    config: SearchConfig,
    task: Task,
    finalists: Sequence[Row],
    seeds: Sequence[int],
    say: Callable[[str], None],
) -> Told:
    from ray_unlearn.search.comparison import describe_comparison, run_comparison, summarise
    from ray_unlearn.search.run import describe_importances

    folder, spaces = results.folder.absolute(), read_spaces(results.meta)
    runs = run_comparison(folder, config, task, finalists, seeds, say)
    shares = describe_importances(results.trials, spaces)
    comparison = summarise(config, results.trials, spaces, finalists, runs, seeds, shares)
    write_json(folder / "comparison.json", {**(results.comparison or {}), **comparison})
    return describe_comparison(comparison), {entry["method"] for entry in comparison["finalists"]}


def _compare_lines(
    results: SearchResults,
    config: SearchConfig,
    task: Task,
    lines: Sequence[Line],
    levels: Sequence[float],
    unit: str,
    say: Callable[[str], None],
) -> Told:
    """unit: what lines stand for, seeds or searches."""
    from ray_unlearn.search.at_utility import describe_equal_utility, run_lines, summarise_lines

    folder = results.folder.absolute()
    summary = summarise_lines(run_lines(folder / LINES, config, task, lines, levels, say), levels, unit)
    before = results.comparison or {}
    both = {**before.get("at_utility", {}), unit: summary}
    write_json(folder / "comparison.json", {**before, "at_utility": both})
    return describe_equal_utility(summary, unit), {point["method"] for point in summary["points"]}


def _lines_of_settings(
    folder: Path, config: SearchConfig, finalists: Sequence[Row], seeds: Sequence[int]
) -> list[Line]:
    """Of every finalist with every seed; points on one trial's line have one line."""
    from ray_unlearn.search.at_utility import Line

    by_trial = {(row["method"], row["number"]): row for row in reversed(finalists)}
    own = [row for row in finalists if by_trial[row["method"], row["number"]] is row]
    return [Line(seed, row, seed, config.gang, folder / LINES) for seed in seeds for row in own]


def _lines_of_searches(folder: Path, searches: Sequence[SearchResults]) -> list[Line]:
    """Of each search's best trial of every method, with the search's own seed."""
    from ray_unlearn.search.at_utility import Line

    lines = []
    for number, results in enumerate(searches):
        config = SearchConfig.from_json(results.meta["config"])
        best = Ranking.of_search(config).best_of_methods(results.trials)
        place = folder / LINES / results.meta["name"]
        lines += [Line(number, row, config.seed, config.gang, place) for row in best.values()]
    return lines


def compare_searches(options: Compare) -> tuple[list[str], int]:
    """Search again with other seeds as often as is asked for, and compare methods over all the searches."""
    from ray_unlearn.search.repeats import check_alike, describe_searches

    if options.searches is not None:
        check_several("--searches", options.searches, "search")
    folder = fetched(options.folder).absolute()
    results = read_search(folder)
    check_writable(folder / "compare", "compare", IS_READ_ONLY)
    given = [read_search(path.absolute()) for path in options.against]
    check_alike([results, *given])
    searches = [results, *given]
    said: list[str] = []
    if options.searches is not None or options.at_utility:
        config = read_local(folder)[0]
        address = options.address or config.address
        config = replace(config, address=address, concurrent=options.concurrent or config.concurrent)
        log = folder / "compare" / "log.txt"
        with copied(folder, config.copy_to, is_needed=False), noise_to(log) as screen, failures_named(log):
            say, loaded = sayer(screen), cache(lambda: load_search(folder)[1])
            try:
                if options.searches is not None:
                    searches += repeat(folder, config, loaded, options.searches, say)
                if options.at_utility:
                    lines = _lines_of_searches(folder, searches)
                    said, _ = _compare_lines(results, config, loaded(), lines, options.at_utility, SEARCH, say)
            except KeyboardInterrupt:
                say("interrupted; what has ended is kept, and the same command goes on with the rest")
                return [], exit_code()
    if not options.at_utility:
        said = describe_searches(record_searches(searches))
    write_report(folder)
    return [*said, "", f"Report:  {Path(options.folder) / 'report' / 'report.html'}"], 0

"""`ray_unlearn compare`: train the finalists again with new seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ray_unlearn.commands.checks import check_writable
from ray_unlearn.commands.exit_codes import PARTIAL, failures_named
from ray_unlearn.commands.options import Compare
from ray_unlearn.commands.reopen import fetched, load_search, read_local
from ray_unlearn.commands.resources import find_machine, most_gangs
from ray_unlearn.commands.screen import noise_to, sayer
from ray_unlearn.commands.searches import check_several, record_searches, repeat
from ray_unlearn.config import UserError
from ray_unlearn.interruption import exit_code
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.models.loading import trust_remote_code
from ray_unlearn.records.copies import copied
from ray_unlearn.records.tables import read_search, write_json
from ray_unlearn.report import write_report
from ray_unlearn.search.space import read_spaces

IS_READ_ONLY = "Copy the search to a place that can be: its runs are kept with it"


def run(options: Compare) -> int:
    """Train the finalists again with new seeds, keep the runs, say what can be told apart; the exit code."""
    from ray_unlearn.search.comparison import (
        comparison_seeds,
        count_budgets,
        describe_comparison,
        describe_unequal,
        pick_finalists,
        run_comparison,
        summarise,
    )

    trust_remote_code(options.trust_remote_code)
    for name, value in (("--top", options.top), ("--concurrent", options.concurrent)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value}: must be at least 1. Give a larger number")
    if options.searches is not None or options.against:
        return compare_searches(options)
    check_several("--seeds", options.seeds, "run")
    place = fetched(options.folder)
    results = read_search(place)
    if (unequal := describe_unequal(count_budgets(results.trials))) and not options.allow_unequal:
        raise UserError(f"{place}: the methods had unequal budgets: {unequal}. Search again, or give --allow-unequal")
    config, spaces = read_local(place)[0], read_spaces(results.meta)
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
            runs = run_comparison(folder, config, task, finalists, seeds, say)
        except KeyboardInterrupt:
            say("interrupted; the runs that ended are kept, and the same command goes on with the others")
            return exit_code()
        from ray_unlearn.search.run import describe_importances

        shares = describe_importances(results.trials, spaces)
        comparison = summarise(config, results.trials, spaces, finalists, runs, seeds, shares)
        write_json(folder / "comparison.json", {**(results.comparison or {}), **comparison})
        write_report(folder)
    for line in describe_comparison(comparison):
        print(line)
    print(f"\nReport:  {place / 'report' / 'report.html'}")
    missing = {row["method"] for row in finalists} - {entry["method"] for entry in comparison["finalists"]}
    return PARTIAL if missing else 0


def compare_searches(options: Compare) -> int:
    """Search again with other seeds as often as is asked for, and compare methods over all the searches."""
    from ray_unlearn.search.repeats import check_alike, describe_searches

    if options.searches is not None:
        check_several("--searches", options.searches, "search")
    folder = fetched(options.folder).absolute()
    results = read_search(folder)
    check_writable(folder / "compare", "compare", IS_READ_ONLY)
    given = [read_search(path.absolute()) for path in options.against]
    check_alike([results, *given])
    repeated = []
    if options.searches is not None:
        config = read_local(folder)[0]
        address = options.address or config.address
        config = replace(config, address=address, concurrent=options.concurrent or config.concurrent)
        log = folder / "compare" / "log.txt"
        with copied(folder, config.copy_to, is_needed=False), noise_to(log) as screen, failures_named(log):
            say = sayer(screen)
            try:
                repeated = repeat(folder, config, lambda: load_search(folder)[1], options.searches, say)
            except KeyboardInterrupt:
                say("interrupted; what has ended is kept, and the same command goes on with the rest")
                return exit_code()
    summary = record_searches([results, *given, *repeated])
    write_report(folder)
    for line in describe_searches(summary):
        print(line)
    print(f"\nReport:  {Path(options.folder) / 'report' / 'report.html'}")
    return 0

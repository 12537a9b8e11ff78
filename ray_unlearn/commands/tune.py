"""`ray_unlearn tune`: check, resolve, run, show; and `--resume`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.attacked import judged_metrics
from ray_unlearn.benchmarks.contract import Request, Task
from ray_unlearn.benchmarks.objective import describe_objective
from ray_unlearn.commands.access import check_repositories
from ray_unlearn.commands.checks import (
    MINI_BANNER,
    absolute,
    check_data,
    check_numbers,
    check_robustness,
    check_workers,
    check_writable,
    take_folder,
)
from ray_unlearn.commands.data import with_warning
from ray_unlearn.commands.exit_codes import PARTIAL, failures_named
from ray_unlearn.commands.options import RESUMABLE, Tune
from ray_unlearn.commands.progress import LiveProgress, PlainProgress
from ray_unlearn.commands.reopen import copied_to, describe_local, fetched, load_search, read_local
from ray_unlearn.commands.resources import (
    check_gpus,
    find_machine,
    gang_config,
    longest_of,
    most_gangs,
    place_gang,
    read_deepspeed,
    resolve_scale,
)
from ray_unlearn.commands.retrained import model_of, take_retrained
from ray_unlearn.commands.run_file import write_run_file
from ray_unlearn.commands.screen import console_on, noise_to, sayer
from ray_unlearn.commands.searches import record_searches, repeat
from ray_unlearn.commands.shared_options import DEFAULT_TRIALS, changed, once
from ray_unlearn.config import COMPLETED, INTERPOLATED, RANDOM, SearchConfig, UserError
from ray_unlearn.files import cache_folder
from ray_unlearn.interruption import exit_code
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.models.hub import parse_pins, pin_revisions
from ray_unlearn.models.loading import check_model, check_pattern, load_config, trust_remote_code
from ray_unlearn.models.sizes import check_trained
from ray_unlearn.records.copies import Copies, copied
from ray_unlearn.records.ledger import LEDGER, UNREADABLE, read_ledger
from ray_unlearn.records.tables import read_search
from ray_unlearn.report import describe_frontier, write_report
from ray_unlearn.report.ending import describe_candidates, describe_floors, describe_next
from ray_unlearn.report.held_out import describe_held_out
from ray_unlearn.search.order import describe_order, goes_in_order
from ray_unlearn.search.space import (
    ADAPTER_RATE,
    Space,
    check_trials,
    file_method,
    load_space,
    read_spaces,
    warm_points,
)
from ray_unlearn.search.used_plugins import check_code, used_plugins
from ray_unlearn.training.in_process import build_models
from ray_unlearn.training.losses import find_method
from ray_unlearn.training.own_losses import kept_place, take_losses, taken, write_losses
from ray_unlearn.training.placement import Asked, Machine, threads

if TYPE_CHECKING:
    from ray_unlearn.gangs.gangs import Gangs

DEEPSPEED_FILE = "deepspeed.json"
LINE = (0.25, 0.5, 0.75, 1.25)
"""Where --harvest scores the line from the starting model (0) to a trial's (1)."""


def run(options: Tune) -> int:
    """A new search, or one that goes on, and what came of it; the exit code."""
    ended = search(options)
    return 0 if ended is None else show_results(ended, options.searches)


@dataclass(frozen=True)
class Ended:
    """A search that has come to an end, if only for now."""

    folder: Path
    status: str
    copies: Copies | None


def search(options: Tune) -> Ended | None:
    """A new search, or one that goes on, with its report; None after a dry run."""
    trust_remote_code(options.trust_remote_code)
    pin_revisions(parse_pins("--revision", options.revision))
    if options.resume is not None:
        if others := sorted(changed(options) - RESUMABLE):
            raise UserError(
                f"--{others[0].replace('_', '-')}: a search goes on with its own settings. Leave it out, or leave out "
                "--resume to search anew"
            )
        return resume(fetched(options.resume), options)
    return tune(options)


def tune(options: Tune) -> Ended | None:
    """Check everything and run the search."""
    options = replace(options, methods=take_losses(options.methods))
    check_tune(options)
    settings = read_deepspeed(options)
    if options.address is None:
        check_gpus(options.scale, options.gpus_per_worker)
    machine = find_machine(options.address, options.accelerator, options.grow_to, options.gpu_memory)
    scale = resolve_scale(options.scale, machine.gpus, options.model)
    if scale == "mini":
        print(MINI_BANNER, flush=True)
    asked = ask_for(options, scale, machine, settings)
    benchmark, request = load_benchmark(named(options)), request_of(options, scale)
    # Before any data are read: what fits nowhere is refused at once.
    start = benchmark.start_of(request) if scale == "full" else request.model
    check_repositories(benchmark, request, {"--model": start, "--retrained": model_of(options.retrained)})
    if start is not None:
        first = place_gang(asked, start, machine)
        gang, concurrent = first.gang, first.concurrent
    else:
        gang = asked.gang
        concurrent = options.concurrent or most_gangs(gang, machine, asked.trials)
    # Absolute, because the workers have working directories of their own.
    out = options.out.absolute()
    folder = take_folder(out / f"{benchmark.name}-{datetime.now().strftime('%Y%m%d-%H%M%S')}")
    log = folder / "log.txt"
    copy_to = None if options.copy_to == "none" else options.copy_to
    try:
        with copied(folder, copy_to) as copies, noise_to(log) as screen:
            say = sayer(screen)
            say("loading data and models (a miniature's models are trained once, then kept)")
            if options.address is None and not options.dry_run:
                from ray_unlearn.gangs.session import start_ahead

                start_ahead(gang, concurrent)
            search = resolve_search(options, request, asked, machine, folder.name, say)
            for note in search.task.notes:
                say(note)
            search = replace(search, task=with_warning(search.task, search.config.loaded_from, request, say))
            if options.dry_run:
                say(describe_plan(search))
                _give_back(folder)
                return None
            say(f"layout: {search.config.placement}")
            write_run_file(folder, options, *resolved_options(options, search.config))
            write_losses(folder, options.methods)
            status = run_with_progress(search, folder, screen, options, copies)
    except UserError:
        _give_back(folder)
        raise
    return Ended(options.out / folder.name, status, copies)


def _give_back(folder: Path) -> None:
    """Remove a folder that was taken for a search that has not begun."""
    if not (folder / LEDGER).exists():
        shutil.rmtree(folder)


def resume(place: Path, options: Tune) -> Ended:
    """Go on with the search in that folder where its ledger ends."""
    folder = place.absolute()
    config, request, retrained = read_local(folder)
    trials = config.trials if options.trials is None else options.trials
    if trials < config.trials:
        raise UserError(f"--trials {trials}: the search asked for {config.trials} already. Give at least as many")
    history = read_ledger(folder)
    if history.is_unreadable:
        raise UserError(f"{folder / LEDGER}: {UNREADABLE}")
    if (meta := history.meta) is None:
        raise UserError(f"{folder}: has no {LEDGER} that says what was searched. Restore it from a copy")
    check_writable(folder, "--resume", "Copy it to a place that can be, and go on there")
    check_numbers(trials, options.searches, options.concurrent, options.trial_timeout)
    address = options.address or config.address
    timeout = config.trial_timeout if options.trial_timeout is None else options.trial_timeout
    asked = options.copy_to or copied_to(options.resume or "")
    copy_to = None if asked == "none" else asked or config.copy_to
    config = replace(config, trials=trials, address=address, trial_timeout=timeout, copy_to=copy_to)
    if options.through_driver:
        config = replace(config, gang=replace(config.gang, through_driver=True))
    if options.concurrent is not None:
        machine = find_machine(address, config.gang.accelerator, config.grow_to)
        gang = replace(config.gang, threads_per_worker=threads(config.gang, machine, options.concurrent))
        config = replace(config, concurrent=options.concurrent, gang=gang)
    with copied(folder, copy_to) as copies, noise_to(folder / "log.txt") as screen:
        say = sayer(screen)
        say("loading data and models")
        if address is None:
            from ray_unlearn.gangs.session import start_ahead

            start_ahead(config.gang, config.concurrent)
        task = with_warning(load_search(folder)[1], config.loaded_from, request, say)
        search = ResolvedSearch(config, task, read_spaces(meta), 0, describe_local(config, request, retrained))
        status = run_with_progress(search, folder, screen, options, copies)
    return Ended(place, status, copies)


@dataclass(frozen=True)
class ResolvedSearch:
    """A search whose every choice is made and whose data are loaded."""

    config: SearchConfig
    task: Task
    spaces: Mapping[str, Space]
    num_parameters: int
    local: Mapping[str, Any]
    """What again.py keeps of it for later commands."""


def resolved_options(options: Tune, config: SearchConfig) -> tuple[dict[str, Any], dict[str, Path]]:
    """(options as this machine and the benchmark made them, files that they name by their places beside a run file)."""
    files = {f"spaces/{number}-{path.name}": path for number, path in enumerate(options.space)}
    resolved: dict[str, Any] = {"scale": config.scale, "trials": config.trials, "space": tuple(files)}
    resolved |= {"concurrent": config.concurrent, "workers_per_trial": config.gang.num_workers}
    resolved |= {"gpus_per_worker": config.gang.gpus_per_worker, "zero": config.gang.zero_stage}
    resolved["lora"] = config.gang.lora_rank
    own = {loss.name for loss in taken(options.methods)}
    resolved["methods"] = tuple(f"{kept_place(name)}:{name}" if name in own else name for name in options.methods)
    if config.definition is not None:
        resolved["benchmark"] = None  # its path is this machine's
    if options.deepspeed is not None:
        files[DEEPSPEED_FILE] = options.deepspeed
        resolved["deepspeed"] = DEEPSPEED_FILE
    return resolved, files


def ask_for(options: Tune, scale: str, machine: Machine, settings: Mapping[str, Any]) -> Asked:
    """What the user wants of a gang. A miniature with its own model trains on the CPU, GPUs or not."""
    gpus = 0.0 if scale == "mini" and options.model is None else None
    gpus = gpus if options.gpus_per_worker is None else options.gpus_per_worker
    gang = replace(
        gang_config(gpus, options.zero, machine, settings, options.workers_per_trial),
        accelerator=options.accelerator,
        lora_rank=options.lora or 0,
        seed=options.seed,
        train=options.train,
        checkpointing=options.checkpointing,
        through_driver=options.through_driver,
        reference_folder=str(cache_folder() / "reference"),
    )
    trials = trials_of(options) * len(options.methods)
    return Asked(gang, options.workers_per_trial, options.zero, options.lora, options.concurrent, trials)


def request_of(options: Tune, scale: str) -> Request:
    return Request(scale, absolute(options.model), options.data and options.data.absolute(), options.split)


def resolve_search(
    options: Tune, request: Request, asked: Asked, machine: Machine, name: str, say: Callable[[str], None]
) -> ResolvedSearch:
    benchmark = load_benchmark(named(options))
    if not options.dry_run:
        check_code(benchmark)
    task = benchmark.load(request, build_models)
    task = replace(task, plugins=used_plugins(benchmark, options.methods), losses=taken(options.methods))
    placement = place_gang(asked, task.model, machine, longest_of(task))
    gang = placement.gang
    task, retrained = take_retrained(
        options.retrained, benchmark, request, task, gang, options.address, say, options.grow_to, options.dry_run
    )
    size = check_trained(task.model, gang.lora_rank, gang.train)
    files = {file_method(path): path for path in options.space}
    spaces = {
        m: load_space(find_method(m), benchmark, request.scale, size, files.get(m), gang.lora_rank > 0)
        for m in options.methods
    }
    num_layers = load_config(task.model).get_text_config().num_hidden_layers
    for space in spaces.values():
        check_trials(space, num_layers)
    says = placement.says
    if gang.lora_rank and len(files) < len(options.methods):
        says += f". Learning rates are {ADAPTER_RATE:g} times those for all weights"
    config = SearchConfig(
        name=name,
        benchmark=benchmark.name,
        scale=request.scale,
        methods=options.methods,
        trials=trials_of(options),
        concurrent=placement.concurrent,
        objective=options.objective,
        utility_floor=options.utility_floor,
        sampler=options.sampler,
        prune=options.prune,
        in_order=goes_in_order(options.prune, placement.concurrent, asked.trials)
        if options.in_order is None
        else options.in_order,
        line=LINE if options.harvest else (),
        robustness=replace(options.attacks, metrics=judged_metrics(benchmark)),
        under=once(options.under),
        seed=options.seed,
        gang=gang,
        model=task.model,
        definition=str(Path(named(options)).absolute()) if named(options).lower().endswith(".toml") else None,
        data=str(request.data) if request.data else None,
        split=options.split,
        log_to=once(options.log_to),
        spaces=tuple(path.name for path in options.space),
        address=options.address,
        grow_to=options.grow_to,
        trial_timeout=options.trial_timeout or 0.0,
        copy_to=None if options.copy_to == "none" else options.copy_to,
        placement=says,
    )
    return ResolvedSearch(config, task, spaces, size, describe_local(config, request, retrained))


def run_with_progress(
    search: ResolvedSearch, folder: Path, screen: IO[str], options: Tune, copies: Copies | None
) -> str:
    """Run it, and its repeats where several searches are asked for, and write its report, also when it is interrupted;
    its status."""
    from ray_unlearn.search.attacked_goals import with_attacked_goals
    from ray_unlearn.search.repeats import shares_gangs
    from ray_unlearn.search.run import open_gangs, run_search

    config, interactive = search.config, screen.isatty()
    console = console_on(screen)
    total = config.trials * len(config.methods)
    log, ranking = folder / "log.txt", Ranking.of_search(config)
    progress = LiveProgress(console, total, ranking, log) if interactive else PlainProgress(console, total, ranking)
    way_on = f"Go on with: {resume_command(folder, options.searches)}"
    with failures_named(log, f". {way_on}"), copies.told(progress.stage) if copies else nullcontext():
        try:
            task = search.task
            shared: AbstractContextManager[Gangs | None] = nullcontext()
            if options.searches > 1 and shares_gangs(config):
                task = with_attacked_goals(config, task, progress.stage)
                saves_to = [folder.parent] if options.keep_model else []
                shared = open_gangs(config, task, progress.stage, way_on, saves_to)
            with shared as gangs:
                status = run_search(
                    config, task, search.spaces, folder, sys.argv[1:], progress, options.keep_model, search.local, gangs
                )
                progress.close()
                if status == "complete" and options.searches > 1:
                    found = repeat(folder, config, lambda: task, options.searches, sayer(screen), gangs)
                    record_searches([read_search(folder), *found])
        except KeyboardInterrupt:
            status = "partial"
        finally:
            progress.close()
        if (folder / "search.json").exists():
            write_report(folder)
    return status


def resume_command(folder: Path, searches: int) -> str:
    return f"ray_unlearn tune --resume {folder}" + (f" --searches {searches}" if searches > 1 else "")


def show_results(ended: Ended, searches: int) -> int:
    """Print the frontier and what to type next; the search's name comes last, alone on its line. The exit code."""
    folder, status, copies = ended.folder, ended.status, ended.copies
    results = read_search(folder)
    print("", describe_frontier(results)[0], *describe_held_out(results), sep="\n")
    if candidates := describe_candidates(results):
        print("", *candidates, "", describe_floors(results), sep="\n")
    if over := (results.comparison or {}).get("searches"):
        from ray_unlearn.search.repeats import describe_searches

        print("", *describe_searches(over), sep="\n")
    print(f"\nReport:  {folder / 'report' / 'report.html'}")
    if (folder / "model").is_dir():
        print(f"Model:   {folder / 'model'}")
    if copies:
        print(f"Copy:    {copies.uri}")
    if status == "complete":
        print(*describe_next(folder, results), sep="\n")
    if status != "complete":
        ended = sum(row["status"] != INTERPOLATED for row in results.trials)
        print(f"ray_unlearn: interrupted after {ended} trials; nothing of them is lost", file=sys.stderr)
        print(resume_command(folder, searches), flush=True)
        return exit_code()
    done = {row["method"] for row in results.trials if row["status"] == COMPLETED}
    missing = [method for method in results.meta["config"]["methods"] if method not in done]
    if missing:
        print(f"ray_unlearn: no trial of {', '.join(missing)} completed; trials.csv has the errors", file=sys.stderr)
    print(folder.name, flush=True)
    return PARTIAL if missing else 0


def named(options: Tune) -> str:
    """The benchmark that was asked for."""
    if options.benchmark is None:
        raise UserError("tune: what to forget? Give --benchmark NAME, or --resume FOLDER to go on with a search")
    return options.benchmark


def trials_of(options: Tune) -> int:
    """Of each method."""
    return DEFAULT_TRIALS if options.trials is None else options.trials


def check_tune(options: Tune) -> None:
    """All that can be known from the options alone, before anything is imported or started."""
    benchmark = load_benchmark(named(options))
    check_numbers(trials_of(options), options.searches, options.concurrent, options.trial_timeout)
    check_workers(options.workers_per_trial, options.gpus_per_worker, "--workers-per-trial", options.zero or 0)
    if options.gpu_memory is not None and options.gpu_memory <= 0:
        raise UserError(f"--gpu-memory {options.gpu_memory:g}: must be above 0. Give GiB, such as 80")
    if not 0.0 <= options.utility_floor <= 1.0:
        raise UserError(
            f"--utility-floor {options.utility_floor:g}: must lie between 0 and 1. Give a share such as 0.95"
        )
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: must be 0 or more. Give another")
    check_robustness(options.attacks, options.under)
    if options.log_to:
        from ray_unlearn.search.trackers import check_trackers

        check_trackers(options.log_to)
    if (options.lora or 0) < 0:
        raise UserError(f"--lora {options.lora}: must be 0 or more. Give a rank such as 16")
    check_pattern(options.train)
    check_data(options.data)
    if options.model is not None:
        check_model(options.model)
    check_writable(options.out)
    check_writable(cache_folder(), "RAY_UNLEARN_CACHE")
    if not options.methods:
        raise UserError("--methods: names no method. Give one or more, such as simnpo,npo,ga")
    if len(set(options.methods)) < len(options.methods):
        raise UserError(f"--methods {','.join(options.methods)}: names one twice. Name each once")

    for name in options.methods:
        find_method(name)
    methods = [file_method(path) for path in options.space]
    for path, method in zip(options.space, methods, strict=True):
        if methods.count(method) > 1:
            raise UserError(f"--space {path}: a second file for {method}. Give one file a method")
        if method not in options.methods:
            raise UserError(f"--space {path}: is for {method}, which is not searched. Add it to --methods")
        load_space(find_method(method), benchmark, "mini", 1, path)


def describe_plan(search: ResolvedSearch) -> str:
    config, task = search.config, search.task
    gang = config.gang
    benchmark = load_benchmark(config.loaded_from)
    lines = [
        f"benchmark   {config.benchmark} ({config.scale})",
        f"model       {config.model} ({search.num_parameters:,} parameters)",
        f"data        {len(task.forget)} sequences to forget, {len(task.retain)} to retain",
        f"trials      {config.trials} each of {', '.join(config.methods)}",
        f"layout      {config.placement}",
        f"precision   {gang.precision}",
        f"objective   {config.objective}, utility floor {config.utility_floor:g}",
        f"sampler     {config.sampler}, {'with' if config.prune else 'no'} pruning, {describe_order(config)}",
    ]
    for name, space in search.spaces.items():
        ranges = ", ".join(
            f"{key} {r.low:.3g}..{r.high:.3g}{' (log)' if r.log else ''}" for key, r in space.ranges.items()
        )
        lines.append(f"{name:<11} {ranges}; fixed: {_describe_values(space.fixed)}")
        lines += describe_first_points(space, config)
    return "\n".join([*lines, describe_objective(benchmark, Ranking.of_search(config), config.under)])


def describe_first_points(space: Space, config: SearchConfig) -> list[str]:
    """A line for every published point, as it will run, and one for those that will not."""
    points = [] if config.sampler == RANDOM else warm_points(space)[: config.trials]
    lines = [f"  first     {_describe_values(point)}" for point in points]
    if left := len(space.warm_starts) - len(points):
        why = f"--sampler {RANDOM} draws all" if config.sampler == RANDOM else f"--trials {config.trials}"
        lines.append(f"  first     {left} published point(s) of {len(space.warm_starts)} will not run: {why}")
    return lines


def _describe_values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {f'{value:.6g}' if isinstance(value, float) else value}" for key, value in values.items())

"""What each command does once its options are parsed: check, resolve, run, show."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from ray_unlearn.again import describe_local, load_search, read_local
from ray_unlearn.benchmarks import Request, Task, load_benchmark
from ray_unlearn.config import ATTACKS, GangConfig, Robustness, SearchConfig, SearchFailed, TrialConfig, UserError
from ray_unlearn.copies import Copies, copied
from ray_unlearn.engine_config import load_settings
from ray_unlearn.fit import fitted
from ray_unlearn.interruption import exit_code
from ray_unlearn.ledger import LEDGER, read_ledger
from ray_unlearn.losses import find_method
from ray_unlearn.model import (
    check_model,
    check_pattern,
    check_trained,
    count_parameters,
    load_config,
    trusts_remote_code,
)
from ray_unlearn.objective import describe_objective
from ray_unlearn.prepare import attach_retrained, cache_folder, prepare_models
from ray_unlearn.progress import LiveProgress, PlainProgress, noise_to
from ray_unlearn.report import describe_frontier, write_files, write_report
from ray_unlearn.reproduce import check_name, reproduce_synthetic
from ray_unlearn.results import COMPLETED, INTERPOLATED, REPRODUCTION, read_reproduction, read_search, write_json
from ray_unlearn.robustness import judged_metrics
from ray_unlearn.space import Space, file_method, load_space, read_spaces

BIGGEST_WORKER_COUNT = 1024
DEFAULT_ZERO = 2
DIFFERS = 1
"""Exit code of a trial that was run again and came out differently."""
PARTIAL = 3
"""Exit code of a search in which no trial of some method completed."""
LINE = (0.25, 0.5, 0.75, 1.25)
"""Where --harvest scores the line from the starting model (0) to a trial's (1)."""
MINI_BANNER = (
    "MINI: generated data and a tiny model, to see the whole thing work. Its figures say nothing about real models."
)


@dataclass(frozen=True)
class TuneOptions:
    benchmark: str
    methods: tuple[str, ...]
    spaces: tuple[Path, ...]
    model: str | None
    data: Path | None
    split: str | None
    retrained: Path | None
    scale: str
    trials: int
    concurrent: int | None
    trial_timeout: float
    workers_per_trial: int
    gpus_per_worker: float | None
    accelerator: str
    grow_to: Mapping[str, float]
    zero: int | None
    deepspeed: Path | None
    lora: int
    train: str
    checkpointing: bool
    objective: str
    utility_floor: float
    sampler: str
    prune: bool
    harvest: bool
    robustness: Robustness
    under: tuple[str, ...]
    log_to: tuple[str, ...]
    seed: int
    address: str | None
    out: Path
    keep_model: bool
    copy_to: str | None


@dataclass(frozen=True)
class ResumeOptions:
    folder: Path
    trials: int | None
    concurrent: int | None
    trial_timeout: float | None
    address: str | None
    keep_model: bool
    copy_to: str | None
    """Where to from now on; "none": nowhere; None: as before."""


@dataclass(frozen=True)
class EvaluateOptions:
    benchmark: str
    model: str
    start: str | None
    data: Path | None
    split: str | None
    retrained: Path | None
    scale: str
    harness: tuple[str, ...]
    harness_tasks: Path | None
    robustness: Robustness
    profile: Path | None
    workers: int
    gpus_per_worker: float | None
    zero: int
    utility_floor: float
    seed: int
    address: str | None
    out: Path


@dataclass(frozen=True)
class PrepareOptions:
    benchmark: str
    out: Path
    model: str | None
    data: Path | None
    split: str | None
    epochs: int
    batch_size: int
    learning_rate: float
    workers: int
    gpus_per_worker: float | None
    zero: int
    seed: int
    address: str | None


@dataclass(frozen=True)
class ReproduceOptions:
    what: str
    scale: str
    seeds: int
    concurrent: int | None
    workers: int
    gpus_per_worker: float | None
    zero: int
    address: str | None
    out: Path


@dataclass(frozen=True)
class CompareOptions:
    folder: Path
    seeds: int
    top: int
    frontier: bool
    concurrent: int | None
    allow_unequal: bool
    address: str | None


@dataclass(frozen=True)
class ExportOptions:
    folder: Path
    trial: str
    out: Path | None
    adapter: bool
    address: str | None


@dataclass(frozen=True)
class RepeatOptions:
    file: Path
    benchmark: Path | None
    model: str | None
    data: Path | None
    retrained: Path | None
    workers: int | None
    zero: int | None
    address: str | None


def tune(options: TuneOptions, dry_run: bool) -> int:
    """Check, run the search, write the report; the exit code."""
    check_tune(options)
    settings = read_deepspeed(options)
    resources = find_resources(options.address, options.accelerator, options.grow_to)
    scale = resolve_scale(options.scale, resources.gpus, options.model)
    if scale == "mini":
        print(MINI_BANNER, flush=True)
    gang = replace(
        gang_config(options.workers_per_trial, options.gpus_per_worker, options.zero, resources.gpus, settings),
        accelerator=options.accelerator,
        lora_rank=options.lora,
        train=options.train,
        checkpointing=options.checkpointing,
        reference_folder=str(cache_folder() / "reference"),
    )
    # Absolute, because the workers have working directories of their own.
    out = options.out.absolute()
    folder = unused(out / f"{load_benchmark(options.benchmark).name}-{datetime.now().strftime('%Y%m%d-%H%M%S')}")
    log = out / f".{folder.name}.log"
    with copied(folder, options.copy_to) as copies, noise_to(log) as screen:
        say = Console(file=screen, highlight=False, markup=False, soft_wrap=True).print
        say("loading data and models (a miniature's models are trained once, then kept)")
        concurrent = options.concurrent or default_concurrency(gang, resources, options.trials * len(options.methods))
        if options.address is None and not dry_run:
            from ray_unlearn.session import start_ahead

            start_ahead(gang, concurrent)
        try:
            search = resolve_search(options, scale, gang, resources, concurrent, folder.name)
        except UserError:
            log.unlink()
            raise
        for note in search.task.notes:
            say(note)
        if dry_run:
            say(describe_plan(search))
            log.unlink()
            return 0
        try:
            status = run_with_progress(search, folder, screen, options.keep_model, copies)
        finally:
            if folder.is_dir():
                log.rename(folder / "log.txt")
    return show_results(options.out / folder.name, status, copies)


def resume(options: ResumeOptions) -> int:
    """Go on with a search where its ledger ends; the exit code."""
    folder = options.folder.absolute()
    config, request, retrained = read_local(folder)
    trials = config.trials if options.trials is None else options.trials
    if trials < config.trials:
        raise UserError(f"--trials {trials}: the search asked for {config.trials} already. Give at least as many")
    meta = read_ledger(folder).meta
    if meta is None:
        raise UserError(f"{folder}: has no {LEDGER}, an older version wrote it. Search anew")
    check_numbers(trials, options.concurrent, options.trial_timeout)
    address = options.address or config.address
    timeout = config.trial_timeout if options.trial_timeout is None else options.trial_timeout
    copy_to = None if options.copy_to == "none" else options.copy_to or config.copy_to
    config = replace(config, trials=trials, address=address, trial_timeout=timeout, copy_to=copy_to)
    resources = find_resources(address, config.gang.accelerator, config.grow_to)
    if options.concurrent is not None:
        gang = replace(config.gang, threads_per_worker=threads_for(config.gang, resources, options.concurrent))
        config = replace(config, concurrent=options.concurrent, gang=gang)
    with copied(folder, copy_to) as copies, noise_to(folder / "log.txt") as screen:
        Console(file=screen, highlight=False, markup=False, soft_wrap=True).print("loading data and models")
        if address is None:
            from ray_unlearn.session import start_ahead

            start_ahead(config.gang, config.concurrent)
        _, task = load_search(folder)
        search = ResolvedSearch(config, task, read_spaces(meta), 0, describe_local(config, request, retrained))
        status = run_with_progress(search, folder, screen, options.keep_model, copies)
    return show_results(options.folder, status, copies)


@contextlib.contextmanager
def failures_named(log: Path, way_on: str = "") -> Iterator[None]:
    """Turn what Ray, the disk or a worker raises into SearchFailed: one line, and the log has the rest."""
    from ray.exceptions import RayError

    try:
        yield
    except (RuntimeError, OSError, RayError) as error:
        traceback.print_exc()  # into the log
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SearchFailed(f"{first}. The log is {log}{way_on}") from None


@dataclass(frozen=True)
class ResolvedSearch:
    """A search whose every choice is made and whose data are loaded."""

    config: SearchConfig
    task: Task
    spaces: Mapping[str, Space]
    num_parameters: int
    local: Mapping[str, Any]
    """What again.py keeps of it for later commands."""


def resolve_search(
    options: TuneOptions, scale: str, gang: GangConfig, resources: Resources, concurrent: int, name: str
) -> ResolvedSearch:
    benchmark = load_benchmark(options.benchmark)
    request = Request(scale, absolute(options.model), options.data and options.data.absolute(), options.split)
    task = attach_retrained(benchmark.load(request), options.retrained)
    size = check_trained(task.model, gang.lora_rank, gang.train)
    gang = fit_gang(gang, task.model, size, resources, concurrent)
    files = {file_method(path): path for path in options.spaces}
    spaces = {m: load_space(find_method(m), benchmark.name, scale, size, files.get(m)) for m in options.methods}
    config = SearchConfig(
        name=name,
        benchmark=benchmark.name,
        scale=scale,
        methods=options.methods,
        trials=options.trials,
        concurrent=concurrent,
        objective=options.objective,
        utility_floor=options.utility_floor,
        sampler=options.sampler,
        prune=options.prune,
        line=LINE if options.harvest else (),
        robustness=replace(options.robustness, metrics=judged_metrics(benchmark)),
        under=options.under,
        seed=options.seed,
        gang=gang,
        model=task.model,
        definition=str(Path(options.benchmark).absolute()) if options.benchmark.endswith(".toml") else None,
        data=str(request.data) if request.data else None,
        split=options.split,
        log_to=options.log_to,
        spaces=tuple(path.name for path in options.spaces),
        address=options.address,
        grow_to=options.grow_to,
        trial_timeout=options.trial_timeout,
        copy_to=options.copy_to,
    )
    return ResolvedSearch(config, task, spaces, size, describe_local(config, request, options.retrained))


def run_with_progress(
    search: ResolvedSearch, folder: Path, screen: IO[str], keep_model: bool, copies: Copies | None
) -> str:
    """Run it and write its report, also when it is interrupted; its status."""
    from ray_unlearn.search import run_search

    interactive = screen.isatty()
    console = Console(file=screen, force_terminal=interactive)
    total = search.config.trials * len(search.config.methods)
    progress = (LiveProgress if interactive else PlainProgress)(console, total)
    way_on = f". Mend that, then go on with: ray_unlearn tune --resume {folder}"
    with failures_named(folder / "log.txt", way_on), copies.told(progress.stage) if copies else nullcontext():
        try:
            status = run_search(
                search.config, search.task, search.spaces, folder, sys.argv[1:], progress, keep_model, search.local
            )
        except KeyboardInterrupt:
            status = "partial"
        finally:
            progress.close()
        if (folder / "search.json").exists():
            write_report(folder)
    return status


def show_results(folder: Path, status: str, copies: Copies | None) -> int:
    """Print the frontier and what to type next; the search's name comes last, alone on its line."""
    results = read_search(folder)
    print()
    for sentence in describe_frontier(results):
        print(sentence)
    print(f"\nReport:  {folder / 'report' / 'report.html'}")
    if (folder / "model").is_dir():
        print(f"Model:   {folder / 'model'}")
    if copies:
        print(f"Copy:    {copies.uri}")
    print(f"Again:   ray_unlearn report {folder}")
    if status != "complete":
        ended = sum(row["status"] != INTERPOLATED for row in results.trials)
        print(f"ray_unlearn: interrupted after {ended} trials; nothing of them is lost", file=sys.stderr)
        print(f"ray_unlearn tune --resume {folder}", flush=True)
        return exit_code()
    done = {row["method"] for row in results.trials if row["status"] == COMPLETED}
    missing = [method for method in results.meta["config"]["methods"] if method not in done]
    if missing:
        print(f"ray_unlearn: no trial of {', '.join(missing)} completed; trials.csv has the errors", file=sys.stderr)
    print(folder.name, flush=True)
    return PARTIAL if missing else 0


def evaluate(options: EvaluateOptions) -> int:
    """Score a model on the whole benchmark, keep the row, show the metrics; the exit code."""
    from ray_unlearn.evaluation import describe_evaluation, run_evaluation, write_evaluation, write_model_profile
    from ray_unlearn.harness import check_harness, run_harness

    benchmark = load_benchmark(options.benchmark)
    check_workers(options.workers, options.gpus_per_worker, "--workers", options.zero)
    check_data(options.data)
    check_robustness(options.robustness)
    models = {"model": options.model, "start": options.start}
    for name in filter(None, models.values()):
        check_model(name)
    check_harness(options.harness, options.harness_tasks)
    if options.profile is not None:
        check_writable(options.profile.parent, "--profile")
    check_writable(options.out)
    resources = find_resources(options.address)
    scale = resolve_scale(options.scale, resources.gpus, options.model)
    if scale == "mini":
        print(MINI_BANNER, flush=True)
    gang = gang_config(options.workers, options.gpus_per_worker, options.zero, resources.gpus)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = unused(options.out.absolute() / f"evaluate-{benchmark.name}-{stamp}")
    folder.mkdir()
    log = folder / "log.txt"
    with noise_to(log), failures_named(log):
        request = Request(scale, None, options.data, options.split, whole=True)
        tasks = {
            who: attach_retrained(benchmark.load(replace(request, model=absolute(model))), options.retrained)
            for who, model in models.items()
            if model is not None
        }
        size = check_trained(tasks["model"].model, 0, "")
        gang = fit_gang(gang, tasks["model"].model, size, resources, 1)
        evaluation, profiles = run_evaluation(
            benchmark,
            tasks,
            gang,
            options.robustness,
            options.utility_floor,
            options.seed,
            options.address,
            for_profile=options.profile is not None,
        )
        asked: dict[str, Any] = {"model": Path(options.model).name, "scale": scale}
        asked |= {"start": options.start and Path(options.start).name, "utility_floor": options.utility_floor}
        device = "cuda" if gang.gpus_per_worker else "cpu"
        harness = run_harness(str(absolute(options.model)), options.harness, options.harness_tasks, device)
        write_evaluation(folder, benchmark, tasks["model"], asked, evaluation, harness)
        if options.profile is not None:
            write_model_profile(options.profile, benchmark, tasks["model"], profiles)
    print(describe_evaluation(benchmark, evaluation))
    if evaluation.scores:
        print(describe_objective(benchmark, options.utility_floor))
    for task, found in harness.items():
        print(f"lm-evaluation-harness, {task}: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    print(f"\nRow:  {options.out / folder.name / 'evaluation.parquet'}")
    return 0


def compare(options: CompareOptions) -> int:
    """Train the finalists again with new seeds, keep the runs, say what can be told apart; the exit code."""
    from ray_unlearn.compare import (
        comparison_seeds,
        count_budgets,
        describe_comparison,
        describe_unequal,
        pick_finalists,
        run_comparison,
        summarise,
    )

    for name, value in (("--top", options.top), ("--concurrent", options.concurrent)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value}: must be at least 1. Give a larger number")
    if options.seeds < 2:
        raise UserError(f"--seeds {options.seeds}: one run has no spread. Give at least 2, better 5")
    results = read_search(options.folder)
    if (unequal := describe_unequal(count_budgets(results.trials))) and not options.allow_unequal:
        raise UserError(
            f"{options.folder}: the methods had unequal budgets: {unequal}. Search again, or give --allow-unequal"
        )
    config, spaces = read_local(options.folder)[0], read_spaces(results.meta)
    finalists = pick_finalists(results.trials, config.utility_floor, options.top, options.frontier)
    if not finalists:
        raise UserError(f"{options.folder}: no trial has completed, there is nothing to compare. Search again")
    seeds = comparison_seeds(config, options.seeds)
    address = options.address or config.address
    wanted = options.concurrent or default_concurrency(
        config.gang, find_resources(address), len(finalists) * len(seeds)
    )
    config = replace(config, address=address, concurrent=wanted)
    folder = options.folder.absolute()
    (folder / "compare").mkdir(exist_ok=True)
    log = folder / "compare" / "log.txt"
    with copied(folder, config.copy_to, is_needed=False), noise_to(log) as screen, failures_named(log):
        say = Console(file=screen, highlight=False, markup=False, soft_wrap=True).print
        _, task = load_search(folder)
        say(f"{len(finalists)} finalist(s) with {len(seeds)} seeds each: {len(finalists) * len(seeds)} runs")
        try:
            runs = run_comparison(folder, config, task, finalists, seeds, say)
        except KeyboardInterrupt:
            say("interrupted; the runs that ended are kept, and the same command goes on with the others")
            return exit_code()
        from ray_unlearn.search import describe_importances

        shares = describe_importances(results.trials, spaces)
        comparison = summarise(config, results.trials, spaces, finalists, runs, seeds, shares)
        write_json(folder / "comparison.json", comparison)
        write_report(folder)
    for line in describe_comparison(comparison):
        print(line)
    print(f"\nReport:  {options.folder / 'report' / 'report.html'}")
    missing = {row["method"] for row in finalists} - {entry["method"] for entry in comparison["finalists"]}
    return PARTIAL if missing else 0


def report_again(folder: Path) -> list[Path]:
    """Write a search's or a reproduction's report, and what Optuna's view of the search lacks; the files."""
    if (folder / REPRODUCTION).is_file():
        return write_report(folder)
    from ray_unlearn.studies import FILE, update_studies

    results = read_search(folder)
    files = write_files(results)
    update_studies(results)
    return [*files, folder / FILE] if (folder / FILE).is_file() else files


def export(options: ExportOptions) -> int:
    """Write a trial's model, its card and what repeats it into a folder; the exit code."""
    from ray_unlearn.export import find_trial, run_export

    results = read_search(options.folder)
    row = find_trial(results, options.trial)
    out = options.out or options.folder / "export" / row["trial_id"]
    if out.exists():
        raise UserError(f"--out {out}: is there already. Give another folder, or remove it")
    config = read_local(options.folder)[0]
    if options.adapter and not config.gang.lora_rank:
        raise UserError("--adapter: this search trained whole weights, there is no adapter. Leave it out")
    check_writable(out.parent)
    log = out.parent / f"{out.name}.log.txt"
    with copied(options.folder.absolute(), config.copy_to, is_needed=False):
        with noise_to(log) as screen, failures_named(log):
            say = Console(file=screen, highlight=False, markup=False, soft_wrap=True).print
            config, task = load_search(options.folder)
            config = replace(config, address=options.address or config.address)
            run_export(results, config, task, row, out.absolute(), options.adapter, say)
        log.unlink()
    print(f"Model:  {out}")
    print(f"Card:   {out / 'README.md'}")
    print(f"Again:  ray_unlearn reproduce {out / 'reproduce.json'}")
    return 0


def repeat(options: RepeatOptions) -> int:
    """Run an exported trial again and compare; exit code 0 where the figures are the same, else 1."""
    from ray_unlearn.repeat import DIFFERENT, describe_repeat, read_run, resolve_run, run_again, verdict

    then = read_run(options.file)
    if options.model is not None:
        check_model(options.model)
    check_data(options.data)
    workers = options.workers or then["config"]["gang"]["num_workers"]
    check_workers(workers, None, "--workers")
    check_writable(cache_folder(), "RAY_UNLEARN_CACHE")
    gpus = find_resources(options.address).gpus
    log = cache_folder() / f"reproduce-{os.getpid()}.log.txt"
    with noise_to(log) as screen, failures_named(log):
        say = Console(file=screen, highlight=False, markup=False, soft_wrap=True).print
        config, task = resolve_run(
            options.file, then, options.benchmark, absolute(options.model), options.data, options.retrained
        )
        gang = replace(
            config.gang,
            num_workers=workers,
            zero_stage=config.gang.zero_stage if options.zero is None else options.zero,
            gpus_per_worker=config.gang.gpus_per_worker if gpus else 0.0,
            trust_remote_code=trusts_remote_code(),  # the file may come from anybody
        )
        say(f"running {then['job']['trial']['trial_id']} again")
        now = run_again(then, replace(config, gang=gang, address=options.address), task)
    log.unlink()
    print(describe_repeat(then, now))
    return DIFFERS if verdict(then, now) == DIFFERENT else 0


def prepare(options: PrepareOptions) -> int:
    """Check, fine-tune the two models, say where they are; the exit code."""
    check_workers(options.workers, options.gpus_per_worker, "--workers")
    for name, value in (("--epochs", options.epochs), ("--batch-size", options.batch_size)):
        if value < 1:
            raise UserError(f"{name} {value}: must be at least 1. Give a larger number")
    if options.learning_rate <= 0:
        raise UserError(f"--learning-rate {options.learning_rate:g}: must be above 0. Give one such as 1e-5")
    benchmark = load_benchmark(options.benchmark)
    if benchmark.build_task is None:
        raise UserError(f"prepare --benchmark {benchmark.name}: makes its models by itself. Run tune right away")
    if options.model is None:
        raise UserError("prepare: needs a base model. Give --model NAME_OR_DIR")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: must be 0 or more. Give another")
    check_model(options.model)
    check_writable(options.out)
    for part in ("target", "retrained"):
        if (options.out / part).exists():
            raise UserError(f"--out {options.out}: holds {part}/ already. Give another folder, or remove it")
    resources = find_resources(options.address)
    gang = gang_config(options.workers, options.gpus_per_worker, options.zero, resources.gpus)
    trial = TrialConfig(
        "finetune",
        "finetune",
        learning_rate=options.learning_rate,
        epochs=options.epochs,
        batch_size=options.batch_size,
        evaluations=options.epochs,
        seed=options.seed,
    )
    request = Request("full", absolute(options.model), options.data, options.split)
    with noise_to(options.out / "log.txt") as screen:
        say = Console(file=screen, highlight=False, markup=False, soft_wrap=True).print
        gang = fit_gang(gang, options.model, check_trained(options.model, 0, ""), resources, 1)
        with failures_named(options.out / "log.txt"):
            prepare_models(benchmark, request, gang, trial, options.out, options.address, say)
    print(f"Target:     {options.out / 'target'}")
    print(f"Retrained:  {options.out / 'retrained'}")
    data = f" --data {options.data}" if options.data else ""
    part = f" --split {options.split}" if options.split else ""
    print(f"Next:       ray_unlearn tune --benchmark {options.benchmark} --model {options.out / 'target'}{data}{part}")
    return 0


def reproduce(options: ReproduceOptions) -> int:
    """Check, run the experiment, write the report, say the verdicts; the exit code."""
    check_name(options.what)
    for name, value in (("--seeds", options.seeds), ("--concurrent", options.concurrent)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value}: must be at least 1. Give a larger number")
    check_workers(options.workers, options.gpus_per_worker, "--workers", options.zero)
    check_writable(options.out)
    check_writable(cache_folder(), "RAY_UNLEARN_CACHE")
    resources = find_resources(options.address)
    gang = replace(
        gang_config(options.workers, options.gpus_per_worker, options.zero, resources.gpus),
        reference_folder=str(cache_folder() / "reference"),
    )
    gangs = options.concurrent or default_concurrency(gang, resources, 2 * options.seeds)
    if options.scale == "mini":
        print(MINI_BANNER, flush=True)
    folder = unused(options.out / f"reproduce-{options.what}-{datetime.now().strftime('%Y%m%d-%H%M%S')}")
    folder.mkdir()
    log = folder / "log.txt"
    with noise_to(log) as screen, failures_named(log):
        say = Console(file=screen, highlight=False, markup=False, soft_wrap=True).print
        say("loading data and models (trained once, then kept)")
        reproduce_synthetic(
            folder.absolute(), options.scale, options.seeds, gang, gangs, options.address, sys.argv[1:], say
        )
        write_report(folder)
    print()
    for claim in read_reproduction(folder).meta["claims"]:
        print(f"{claim['claim']}: {claim['sentence']}")
    print(f"\nReport:  {folder / 'report.html'}")
    print(f"Again:   ray_unlearn report {folder}")
    print(folder.name, flush=True)
    return 0


def check_tune(options: TuneOptions) -> None:
    """All that can be known from the options alone, before anything is imported or started."""
    benchmark = load_benchmark(options.benchmark)
    check_numbers(options.trials, options.concurrent, options.trial_timeout)
    check_workers(options.workers_per_trial, options.gpus_per_worker, "--workers-per-trial", options.zero or 0)
    if not 0.0 <= options.utility_floor <= 1.0:
        raise UserError(
            f"--utility-floor {options.utility_floor:g}: must lie between 0 and 1. Give a share such as 0.95"
        )
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: must be 0 or more. Give another")
    check_robustness(options.robustness, options.under)
    if options.log_to:
        from ray_unlearn.trackers import check_trackers

        check_trackers(options.log_to)
    if options.lora < 0:
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
    methods = [file_method(path) for path in options.spaces]
    for path, method in zip(options.spaces, methods, strict=True):
        if methods.count(method) > 1:
            raise UserError(f"--space {path}: a second file for {method}. Give one file a method")
        if method not in options.methods:
            raise UserError(f"--space {path}: is for {method}, which is not searched. Add it to --methods")
        load_space(find_method(method), benchmark.name, "mini", 1, path)


def check_numbers(trials: int, concurrent: int | None, trial_timeout: float | None) -> None:
    for name, value in (("--trials", trials), ("--concurrent", concurrent)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value}: must be at least 1. Give a larger number")
    if trial_timeout is not None and trial_timeout < 0:
        raise UserError(f"--trial-timeout {trial_timeout:g}: must be above 0. Give seconds, or leave it out")


def check_workers(workers: int, gpus: float | None, option: str, zero: int = 0) -> None:
    if not 1 <= workers <= BIGGEST_WORKER_COUNT:
        why = f"--zero {zero} shards over the workers, and there is none" if workers == 0 and zero else "not possible"
        raise UserError(f"{option} {workers}: {why}. Give at least 1")
    if gpus is not None and gpus < 0:
        raise UserError(f"--gpus-per-worker {gpus:g}: must be 0 or more. Give another")


def check_data(data: Path | None) -> None:
    if data is not None and not data.is_dir():
        raise UserError(f"--data {data}: no such folder. Give the folder that holds the benchmark's data")


def check_robustness(robustness: Robustness, under: tuple[str, ...] = ()) -> None:
    for option, attacks in (("--robustness", robustness.attacks), ("--under", under)):
        for attack in attacks:
            if attack not in ATTACKS:
                raise UserError(f"{option} {attack}: unknown. Choose from: {', '.join(ATTACKS)}, none")
    if not 0.0 < robustness.relearn_share <= 1.0:
        raise UserError(f"--relearn-share {robustness.relearn_share:g}: must be above 0 and at most 1. Give 0.2, say")
    for name, value in (("--relearn-epochs", robustness.relearn_epochs), ("--samples", robustness.samples)):
        if value < 1:
            raise UserError(f"{name} {value}: must be at least 1. Give a larger number")


def check_writable(folder: Path, what: str = "--out") -> None:
    """Make the folder if need be; raise UserError where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{what} {folder}: cannot be written ({error.strerror}). Give another folder") from None


@dataclass(frozen=True)
class Resources:
    """What there is to run on, or may come: of the cluster at the given address, else of this machine."""

    cpus: float
    gpus: int


def find_resources(address: str | None, accelerator: str = "", grow_to: Mapping[str, float] | None = None) -> Resources:
    """accelerator: only of nodes with GPUs of this kind. grow_to: what an autoscaler may bring the cluster to."""
    if address is None:
        import torch

        for option, value in (("--accelerator", accelerator), ("--grow-to", grow_to)):
            if value:
                raise UserError(f"{option}: is for a Ray cluster of several nodes. Give its --address as well")

        return Resources(os.cpu_count() or 1, torch.cuda.device_count())
    import ray

    from ray_unlearn.session import capacity, find_accelerators, find_nodes

    try:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
        nodes = find_nodes(accelerator)
        if accelerator and not nodes and not grow_to:
            kinds = ", ".join(find_accelerators()) or "none that says what it is"
            raise UserError(f"--accelerator {accelerator}: no node of the cluster has it. There is: {kinds}")
        # Less a little: Tune's and Train's own actors have to fit beside the workers.
        cpus, gpus = (capacity(nodes, grow_to or {}, name) for name in ("CPU", "GPU"))
        return Resources(cpus - 0.5, int(gpus))
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"--address {address}: no Ray cluster answers ({first}). Start it, or, where it asks for a token, set "
            "RAY_AUTH_MODE=token"
        ) from None
    finally:
        ray.shutdown()


def resolve_scale(scale: str, gpus: int, model: str | None) -> str:
    if scale == "full" and not gpus:
        raise UserError(
            "--scale full: there is no GPU for it. Take --scale mini, or --address of a cluster with GPUs, or leave "
            "--scale out and name a small model with --model to run the full benchmark on it with the CPU"
        )
    if scale == "auto":
        return "full" if gpus or model is not None else "mini"
    return scale


def read_deepspeed(options: TuneOptions) -> dict[str, Any]:
    """The checked sections of the user's DeepSpeed file; empty without one."""
    if options.deepspeed is None:
        return {}
    settings = load_settings(options.deepspeed)
    stage = settings["zero_optimization"]["stage"]
    if options.zero not in (None, stage):
        raise UserError(f"--zero {options.zero}: --deepspeed {options.deepspeed} names stage {stage}. Leave one out")
    from ray_unlearn.engine import check_settings

    check_settings(settings, f"--deepspeed {options.deepspeed}")
    return settings


def gang_config(
    workers: int, gpus_per_worker: float | None, zero: int | None, gpus: int, settings: Mapping[str, Any] | None = None
) -> GangConfig:
    """The gang asked for; ZeRO stage and precision are the DeepSpeed file's where it names them."""
    per_worker = (1.0 if gpus else 0.0) if gpus_per_worker is None else gpus_per_worker
    if 0 < per_worker < 1 and workers > 1:
        raise UserError(
            f"--gpus-per-worker {per_worker:g}: several workers of a gang cannot share one GPU. Give 1, or one worker"
        )
    if per_worker and not gpus:
        raise UserError(f"--gpus-per-worker {per_worker:g}: there is no GPU. Leave it out, or give --address")
    settings = settings or {}
    if zero is None:
        zero = settings.get("zero_optimization", {}).get("stage", DEFAULT_ZERO)
    return GangConfig(
        num_workers=workers,
        zero_stage=zero,
        precision="bf16" if settings.get("bf16", {}).get("enabled", per_worker > 0) else "fp32",
        deepspeed=settings,
        gpus_per_worker=per_worker,
        trust_remote_code=trusts_remote_code(),
    )


def fit_gang(gang: GangConfig, model: str, num_parameters: int, resources: Resources, concurrent: int) -> GangConfig:
    """The gang with as many tokens and threads a worker as so many gangs of this model can take."""
    import torch

    has_gpu = gang.gpus_per_worker and torch.cuda.is_available()
    gpu_bytes = torch.cuda.get_device_properties(0).total_memory if has_gpu else None
    threads = threads_for(gang, resources, concurrent)
    _, num_trained = count_parameters(model, gang.lora_rank, gang.train)
    return fitted(gang, load_config(model), num_parameters, gpu_bytes, threads, num_trained)


def threads_for(gang: GangConfig, resources: Resources, concurrent: int) -> int:
    """Of one worker, where so many gangs share the CPUs."""
    return max(1, int(resources.cpus) // (gang.num_workers * concurrent))


def default_concurrency(gang: GangConfig, resources: Resources, trials: int) -> int:
    """As many gangs as fit: by GPUs where they are used, else one CPU a worker."""
    if gang.gpus_per_worker:
        fit = resources.gpus / (gang.gpus_per_worker * gang.num_workers)
    else:
        fit = resources.cpus / gang.num_workers
    return max(1, min(int(fit), trials))


def absolute(model: str | None) -> str | None:
    """A model folder's whole path; a hub name as it is."""
    return str(Path(model).expanduser().absolute()) if model and Path(model).expanduser().is_dir() else model


def unused(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3 ... that is not there."""
    count = 2
    candidate = folder
    while candidate.exists():
        candidate = folder.with_name(f"{folder.name}-{count}")
        count += 1
    return candidate


def describe_plan(search: ResolvedSearch) -> str:
    config, task = search.config, search.task
    gang = config.gang
    benchmark = load_benchmark(config.loaded_from)
    lines = [
        f"benchmark   {config.benchmark} ({config.scale})",
        f"model       {config.model} ({search.num_parameters:,} parameters)",
        f"data        {len(task.forget)} sequences to forget, {len(task.retain)} to retain",
        f"trials      {config.trials} each of {', '.join(config.methods)}",
        f"gangs       {config.concurrent} of {gang.num_workers} worker(s), ZeRO-{gang.zero_stage}, "
        f"{gang.precision}, {gang.gpus_per_worker:g} GPU(s) a worker",
        f"objective   {config.objective}, utility floor {config.utility_floor:g}",
        f"sampler     {config.sampler}, {'with' if config.prune else 'no'} pruning",
    ]
    for name, space in search.spaces.items():
        ranges = ", ".join(
            f"{key} {r.low:.3g}..{r.high:.3g}{' (log)' if r.log else ''}" for key, r in space.ranges.items()
        )
        fixed = ", ".join(f"{key} {value}" for key, value in space.fixed.items())
        lines.append(f"{name:<11} {ranges}; fixed: {fixed}; {len(space.warm_starts)} warm start(s)")
    return "\n".join([*lines, describe_objective(benchmark, config.utility_floor, config.under)])

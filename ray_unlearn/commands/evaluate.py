"""Score a model by itself: `ray_unlearn evaluate`. The same metrics and the same row as a search's finalists.

<out>/evaluate-<benchmark>-<time>/
    evaluation.parquet    one row for the model, and for the starting and the retrained one where known;
                          the columns of a search's trials (see results.py), null where nothing was searched
    evaluation.json       what was asked, versions, why a metric is absent
    log.txt
"""

from __future__ import annotations

import math
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.attacked import describe_metrics, describe_rounding, judged_metrics
from ray_unlearn.benchmarks.contract import Benchmark, Profile, Request, Task
from ray_unlearn.benchmarks.objective import Judge, describe_objective
from ray_unlearn.benchmarks.profiles import available_splits, write_profile
from ray_unlearn.benchmarks.starts import check_start
from ray_unlearn.commands.access import check_repositories
from ray_unlearn.commands.checks import (
    MINI_BANNER,
    absolute,
    check_data,
    check_robustness,
    check_workers,
    check_writable,
    take_folder,
)
from ray_unlearn.commands.exit_codes import failures_named
from ray_unlearn.commands.export import REPRODUCE
from ray_unlearn.commands.harness import check_harness, run_harness
from ray_unlearn.commands.options import Evaluate
from ray_unlearn.commands.repeat_export import read_run
from ray_unlearn.commands.resources import check_gpus, find_machine, gang_config, place_gang, resolve_scale
from ray_unlearn.commands.retrained import model_of, take_retrained
from ray_unlearn.commands.screen import noise_to, sayer
from ray_unlearn.commands.shared_options import once
from ray_unlearn.config import COMPLETED, GangConfig, Robustness, SearchFailed, UserError
from ray_unlearn.gangs.gangs import Gangs
from ray_unlearn.gangs.session import ray_session
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.models.hub import parse_pins, pin_revisions
from ray_unlearn.models.loading import check_model, trust_remote_code
from ray_unlearn.provenance import git_revision, package_versions
from ray_unlearn.records.tables import trial_schema, write_json, write_table
from ray_unlearn.search.used_plugins import check_code
from ray_unlearn.training.in_process import build_models
from ray_unlearn.training.outcome import finished
from ray_unlearn.training.placement import Asked
from ray_unlearn.training.trial import Job
from ray_unlearn.wording import first_line

WHOLE = "whole"
ROW = "evaluation.parquet"
MODEL, START, RETRAINED = "model", "start", "retrained"


@dataclass(frozen=True)
class Evaluation:
    """Profiles on the whole benchmark, and the verdict on the model where a starting model was given."""

    profiles: Mapping[str, Profile]
    """Of MODEL, and of START and RETRAINED where they are known."""
    scores: Mapping[str, float]
    """forget, utility and objective of the model; empty without a starting model."""


def run_evaluation(
    benchmark: Benchmark,
    tasks: Mapping[str, Task],
    gang: GangConfig,
    robustness: Robustness,
    utility_floor: float,
    seed: int,
    for_profile: bool,
    say: Callable[[str], None] = lambda what: None,
) -> tuple[Evaluation, dict[str, Profile]]:
    """Score the models of `tasks` (MODEL, perhaps START) one after another on a gang each, on the cluster that Ray is
    connected to.

    for_profile: MODEL on all splits, and not on the whole alone. Returns the evaluation, and the model's profiles on
    the splits that it was scored on. Raises RuntimeError where one fails.
    """
    measured: dict[str, dict[str, Profile]] = {}
    robustness = replace(robustness, metrics=judged_metrics(benchmark))
    with tempfile.TemporaryDirectory(prefix="ray_unlearn-") as scratch:
        for who, task in tasks.items():
            splits = available_splits(task) if who == MODEL and for_profile else (WHOLE,)
            with Gangs(task, gang, 1, Path(scratch) / who) as gangs:
                report = gangs.run(Job(who, evaluate=splits, complete=True, robustness=robustness, seed=seed))
            done = finished(report, f"{task.model} could not be scored")
            measured[who] = dict(done.profiles)
            if who == MODEL and "quantise" in robustness.attacks:
                say(describe_rounding(done.rounded_share))
    profiles = {who: by_split[WHOLE] for who, by_split in measured.items()}
    task = tasks[MODEL]
    if task.whole is not None and task.whole.retrained is not None:
        profiles[RETRAINED] = task.whole.retrained
    scores: dict[str, float] = {}
    if START in profiles:
        try:
            judge, notes = _judge_from(benchmark, profiles[START], profiles.get(RETRAINED), Ranking(utility_floor))
        except UserError as error:  # the metrics themselves are worth having
            say(f"no scores: {error}")
        else:
            scores = asdict(judge.verdict(profiles[MODEL].metrics))
            for note in notes:
                say(note)
    return Evaluation(profiles, scores), measured[MODEL]


def _judge_from(
    benchmark: Benchmark, start: Profile, retrained: Profile | None, ranking: Ranking
) -> tuple[Judge, tuple[str, ...]]:
    """As a search from that model would judge, and what it would say. Raises UserError where nothing can be told."""
    goal = retrained.metrics if retrained is not None else None
    judge = Judge.build(benchmark, start.metrics, goal, ranking)
    checked = check_start(benchmark.name, judge, start, retrained)
    return Judge.build(benchmark, start.metrics, goal, ranking, left_out=checked.left_out), checked.notes


def write_evaluation(
    folder: Path,
    benchmark: Benchmark,
    task: Task,
    asked: Mapping[str, Any],
    evaluation: Evaluation,
    harness: Mapping[str, Mapping[str, float]],
) -> None:
    """The row of every model, and what it was made with."""
    metrics = [*benchmark.metrics, *describe_metrics(benchmark)]
    schema = trial_schema(benchmark.name, [], metrics)
    rows = []
    for who, profile in evaluation.profiles.items():
        head = {"trial_id": who, "method": who, "benchmark": benchmark.name, "scale": task.scale, "status": COMPLETED}
        scores = evaluation.scores if who == MODEL else {}
        named = {f"{benchmark.name}/{name}": value for name, value in profile.metrics.items()}
        rows.append({**head, **scores, **named})
    write_table(folder / ROW, schema, rows)
    about = {
        "asked": dict(asked),
        "benchmark": benchmark.name,
        "objective_text": describe_objective(benchmark, Ranking(asked["utility_floor"])),
        "split": task.split,
        "lm_evaluation_harness": {name: dict(found) for name, found in harness.items()},
        "absent": {who: dict(profile.absent) for who, profile in evaluation.profiles.items()},
        "versions": package_versions(),
        "git": git_revision(),
    }
    write_json(folder / "evaluation.json", about)


def write_model_profile(path: Path, benchmark: Benchmark, task: Task, profiles: Mapping[str, Profile]) -> None:
    """Keep the model's profiles as those of a retrained model, for `--retrained`."""
    whole = {name: benchmark.compare_with_itself(profile) for name, profile in profiles.items()}
    write_profile(path, whole, {"benchmark": benchmark.name, "split": task.split})


def describe_evaluation(benchmark: Benchmark, evaluation: Evaluation) -> str:
    """A table for people: one line a metric, one column a model; then why others are absent."""
    models = list(evaluation.profiles)
    texts = {**benchmark.metrics, **describe_metrics(benchmark)}
    lines = ["  ".join([f"{'metric':<40}", *(f"{who:>10}" for who in models)])]
    for name in texts:
        values = [evaluation.profiles[who].metrics.get(name, math.nan) for who in models]
        if not all(math.isnan(value) for value in values):
            cells = [f"{'–' if math.isnan(value) else format(value, '.4g'):>10}" for value in values]
            lines.append("  ".join([f"{name:<40}", *cells, texts[name]]))
    for name, value in evaluation.scores.items():
        lines.append(f"{name:<40}  {value:>10.4g}")
    absent = evaluation.profiles[MODEL].absent
    lines += [f"absent: {name}: {reason}" for name, reason in absent.items()]
    return "\n".join(lines)


def has_gradients(task: Task) -> bool:
    """Whether gradient norms are among what is measured on the whole benchmark."""
    probes = {**task.whole.probes, **task.whole.final_probes} if task.whole else {}
    return any(probe.gradients for probe in probes.values())


def ask_harness(
    options: Evaluate, gang: GangConfig, say: Callable[[str], None]
) -> tuple[dict[str, dict[str, float]], str]:
    """(what lm-evaluation-harness measures, why it could not); nothing where no task of it is asked for."""
    tasks = once(options.harness)
    if not tasks:
        return {}, ""
    say(f"the benchmark's own scores are written; asking lm-evaluation-harness: {', '.join(tasks)}")
    try:
        return run_harness(str(absolute(options.model)), tasks, options.harness_tasks, gang), ""
    except Exception as error:  # whatever the harness, its tasks and their data raise
        traceback.print_exc()  # into the log
        return {}, f"lm-evaluation-harness: {first_line(error)}"


def as_exported(options: Evaluate) -> Evaluate:
    """The options with what an exported model's folder says of benchmark, split and scale, where they are not given.
    Raises UserError where nobody says which benchmark."""
    if options.benchmark is not None:
        return options
    file = Path(options.model).expanduser() / REPRODUCE
    if not file.is_file():
        raise UserError(
            "evaluate: on which benchmark? Give --benchmark NAME; an exported model's folder says it itself"
        )
    then = read_run(file)["config"]
    if then.get("definition"):
        raise UserError(f"{file}: its benchmark is own data. Give --benchmark {then['definition']}, with its path")
    scale = then["scale"] if options.scale == "auto" else options.scale
    return replace(options, benchmark=then["benchmark"], split=options.split or then["split"], scale=scale)


def check_evaluate(options: Evaluate) -> Benchmark:
    """All that can be known from the options alone, before anything is started; the benchmark."""
    assert options.benchmark is not None
    benchmark = load_benchmark(options.benchmark)
    check_code(benchmark)
    check_workers(options.workers, options.gpus_per_worker, "--workers", options.zero or 0)
    check_data(options.data)
    check_robustness(options.attacks)
    for name in filter(None, (options.model, options.start)):
        check_model(name)
    check_harness(once(options.harness), options.harness_tasks)
    if options.profile is not None:
        check_writable(options.profile.parent, "--profile")
    check_writable(options.out)
    if options.address is None:
        check_gpus(options.scale, options.gpus_per_worker)
    return benchmark


@dataclass(frozen=True)
class Evaluated:
    """A model that has been scored, and where its row is."""

    benchmark: Benchmark
    folder: Path
    evaluation: Evaluation
    harness: Mapping[str, Mapping[str, float]]
    failed: str
    """Why the harness could not score it."""


def evaluate(options: Evaluate) -> Evaluated:
    """Score a model on the whole benchmark and keep the row."""
    trust_remote_code(options.trust_remote_code)
    pin_revisions(parse_pins("--revision", options.revision))
    options = as_exported(options)
    benchmark = check_evaluate(options)
    machine = find_machine(options.address)
    scale = resolve_scale(options.scale, machine.gpus, options.model)
    if scale == "mini":
        print(MINI_BANNER, flush=True)
    gang = gang_config(options.gpus_per_worker, options.zero, machine, workers=options.workers)
    # Without attacks on the weights nothing is ever trained.
    gang = replace(gang, trains=bool(options.attacks.attacks))
    asked_gang = Asked(gang, options.workers, options.zero, lora=0)
    request = Request(scale, None, options.data, options.split, whole=True)
    models = {MODEL: absolute(options.model), START: absolute(options.start)}
    named = {f"--{who}": name for who, name in models.items()}
    check_repositories(benchmark, request, {**named, "--retrained": model_of(options.retrained)})
    place_gang(asked_gang, options.model, machine)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = take_folder(options.out.absolute() / f"evaluate-{benchmark.name}-{stamp}")
    log = folder / "log.txt"
    with noise_to(log) as screen, failures_named(log):
        say = sayer(screen)
        tasks = {
            who: benchmark.load(replace(request, model=model), build_models)
            for who, model in models.items()
            if model is not None
        }
        gang = place_gang(asked_gang, tasks[MODEL].model, machine, has_gradients=has_gradients(tasks[MODEL])).gang
        for who, loaded in tasks.items():
            tasks[who], _ = take_retrained(options.retrained, benchmark, request, loaded, gang, options.address, say)
        asked: dict[str, Any] = {"model": Path(options.model).name, "scale": scale}
        asked |= {"start": options.start and Path(options.start).name, "utility_floor": options.utility_floor}
        with ray_session(gang, 1, options.address, say=say):
            evaluation, profiles = run_evaluation(
                benchmark,
                tasks,
                gang,
                options.attacks,
                options.utility_floor,
                options.seed,
                options.profile is not None,
                say,
            )
            write = partial(write_evaluation, folder, benchmark, tasks[MODEL], asked, evaluation)
            write({})
            if options.profile is not None:
                write_model_profile(options.profile, benchmark, tasks[MODEL], profiles)
            harness, failed = ask_harness(options, gang, say)
            if harness:
                write(harness)
    return Evaluated(benchmark, options.out / folder.name, evaluation, harness, failed)


def run(options: Evaluate) -> int:
    """Score a model on the whole benchmark, keep the row, show the metrics; the exit code."""
    done = evaluate(options)
    print(describe_evaluation(done.benchmark, done.evaluation))
    if done.evaluation.scores:
        print(describe_objective(done.benchmark, Ranking(options.utility_floor)))
    for task, found in done.harness.items():
        print(f"lm-evaluation-harness, {task}: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    print(f"\nRow:  {done.folder / ROW}", flush=True)
    if done.failed:
        raise SearchFailed(f"{done.failed}. The log is {done.folder / 'log.txt'}; the scores above are kept")
    return 0

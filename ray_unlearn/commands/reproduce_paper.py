"""Named reproductions: a paper's experiment, run again on the real stack, and a verdict on what the paper claims.

    <folder>/
        reproduce.json          what was run, the verdicts and the figures that they were computed from
        trajectories.parquet    every metric at every point: experiment, method, seed, step, metric, value
        report.html, report.md, figure.png, figure.svg
        log.txt                 what Ray and DeepSpeed had to say

`synthetic` is section 5 of SimNPO (arXiv:2410.07163): unlearning Markov chains by NPO and by SimNPO, at the settings
of the paper and its public script, which has no retain term.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ray_unlearn.benchmarks.contract import Task
from ray_unlearn.benchmarks.synthetic import EXPERIMENTS, HOMES, Experiment, load_experiment
from ray_unlearn.commands.checks import MINI_BANNER, check_workers, check_writable, take_folder
from ray_unlearn.commands.exit_codes import failures_named
from ray_unlearn.commands.options import Reproduce
from ray_unlearn.commands.resources import find_machine, gang_config, most_gangs
from ray_unlearn.commands.screen import noise_to, sayer
from ray_unlearn.config import GangConfig, TrialConfig, UserError
from ray_unlearn.files import cache_folder
from ray_unlearn.metrics.statistics import compare_pairs
from ray_unlearn.provenance import package_versions, public_command
from ray_unlearn.records.tables import REPRODUCTION, TRAJECTORY_SCHEMA, read_reproduction, write_json, write_table
from ray_unlearn.report import write_report
from ray_unlearn.training.in_process import build_models
from ray_unlearn.training.outcome import Report, finished
from ray_unlearn.training.trial import Job

REPRODUCTIONS = {"synthetic": "NPO and SimNPO on Markov chains (SimNPO, section 5)"}
METHODS = ("simnpo", "npo")
PARAMETERS = {
    "length": {"simnpo": {"beta": 4.0, "gamma": 0.0}, "npo": {"beta": 0.2}},
    "memorised": {"simnpo": {"beta": 4.0, "gamma": 0.0}, "npo": {"beta": 1.0}},
}
LEARNING_RATE, RETAIN_WEIGHT, BATCH_SIZE, STEPS = 5e-4, 0.0, 4, 50
STEPS_A_POINT = 1
LEAST_SEEDS = 5
"""Fewer give no verdict: with four, chance alone puts all differences on one side once in eight times."""
HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot be told"


@dataclass(frozen=True)
class Trajectory:
    """One run: metrics along its steps, the starting model's first. Arrays are [points]."""

    experiment: str
    method: str
    seed: int
    steps: np.ndarray
    metrics: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Claim:
    """Something that the paper says of one experiment, and the number that decides it."""

    experiment: str
    text: str
    measured: str
    """What the number is; SimNPO's has to be the smaller one."""
    published: Mapping[str, float]
    """By method: the same number, read off the one run drawn in the figure of the paper's public code."""
    measure: Callable[[Trajectory, Mapping[str, float]], float | None] = field(repr=False)
    """(a run, the retrained model's metrics) -> the number; None where the run does not get there."""


@dataclass(frozen=True)
class Verdict:
    """answer: HOLDS, FAILS or UNKNOWN; interval: 95 %, of the mean of SimNPO's number less NPO's over the seeds."""

    answer: str
    sentence: str
    difference: float | None = None
    interval: tuple[float, float] | None = None


def first_reach(values: np.ndarray, level: float) -> float | None:
    """Where the line through `values` first is at `level` from below, as a fraction of an index; None: nowhere."""
    above = np.flatnonzero(values >= level)
    if len(above) == 0:
        return None
    last = int(above[0])
    if last == 0:
        return 0.0
    low, high = values[last - 1], values[last]
    return last - 1 + float((level - low) / (high - low))


def at(values: np.ndarray, place: float) -> float:
    """The line through `values` at a fraction of an index."""
    return float(np.interp(place, np.arange(len(values)), values))


def retain_at_reach(chain: str) -> Callable[[Trajectory, Mapping[str, float]], float | None]:
    """The retain divergence at which a run's divergence on a chain is first the retrained model's."""

    def measure(run: Trajectory, retrained: Mapping[str, float]) -> float | None:
        place = first_reach(run.metrics[f"{chain}_divergence"], retrained[f"{chain}_divergence"])
        return None if place is None else at(run.metrics["retain_divergence"], place)

    return measure


def excess_on_unlearnt(run: Trajectory, retrained: Mapping[str, float]) -> float | None:
    """How far past the retrained model forget2 is where forget1 is first level with it."""
    place = first_reach(run.metrics["forget1_divergence"], retrained["forget1_divergence"])
    return None if place is None else at(run.metrics["forget2_divergence"], place) - retrained["forget2_divergence"]


CLAIMS = (
    Claim(
        "length",
        "On short data, SimNPO reaches the retrained model's forget divergence at a smaller retain divergence than NPO",
        "retain divergence where forget2 (5 states) reaches the retrained model's",
        {"simnpo": 0.030, "npo": 0.192},
        retain_at_reach("forget2"),
    ),
    Claim(
        "memorised",
        "SimNPO forgets strongly and weakly memorised data more evenly than NPO",
        "divergence of forget2 (never learnt) past the retrained model's where forget1 (learnt) has reached it",
        {"simnpo": 0.41},  # NPO's leaves the figure at 0.62
        excess_on_unlearnt,
    ),
)
MEASURED_TOO = (
    Claim(
        "length",
        "Not claimed: the same on long data",
        "retain divergence where forget1 (20 states) reaches the retrained model's",
        {"simnpo": 0.075, "npo": 0.031},
        retain_at_reach("forget1"),
    ),
    Claim(
        "memorised",
        "Not claimed: the retain divergence that forgetting costs",
        "retain divergence where forget1 (learnt) reaches the retrained model's",
        {"simnpo": 0.084, "npo": 0.125},
        retain_at_reach("forget1"),
    ),
)
ABOUT = {
    "length": "Length: forget2's sequences have 5 states, all others 20",
    "memorised": "Memorisation: all sequences have 20 states, and the starting model has never learnt forget2",
}


def judge(claim: Claim, simnpo: Sequence[float | None], npo: Sequence[float | None]) -> Verdict:
    """The verdict from both methods' numbers, seed by seed."""
    seeds = len(npo)
    pairs = [(s, n) for s, n in zip(simnpo, npo, strict=True) if s is not None and n is not None]
    if len(pairs) < seeds:
        got = [sum(value is not None for value in values) for values in (simnpo, npo)]
        return Verdict(
            UNKNOWN,
            f"{UNKNOWN}: the retrained model's level was reached within {STEPS} steps by SimNPO in {got[0]} and by "
            f"NPO in {got[1]} of {seeds} seeds",
        )
    numbers = np.array(pairs).T
    means = " and ".join(f"{name} {values.mean():.3f}" for name, values in zip(("SimNPO", "NPO"), numbers, strict=True))
    found = compare_pairs(*numbers).interval
    mean, low, high = found.value, found.low, found.high
    if seeds < 2:
        return Verdict(UNKNOWN, f"{UNKNOWN} at 1 seed: {means}", mean)
    figures = f"{means}, difference {mean:+.3f} (95 % {low:+.3f} to {high:+.3f})"
    answer = HOLDS if high < 0 else FAILS if low > 0 else UNKNOWN
    if seeds < LEAST_SEEDS or answer == UNKNOWN:
        return Verdict(UNKNOWN, f"{UNKNOWN} at {seeds} seeds: {figures}", mean, (low, high))
    return Verdict(answer, f"{answer}: {figures}, {seeds} seeds", mean, (low, high))


def check_name(name: str) -> None:
    if name not in REPRODUCTIONS:
        raise UserError(f"reproduce {name}: unknown. Choose one of: {', '.join(REPRODUCTIONS)}")


def reproduce_synthetic(
    folder: Path,
    scale: str,
    seeds: int,
    gang: GangConfig,
    gangs: int,
    address: str | None,
    command: Sequence[str],
    say: Callable[[str], None],
) -> None:
    """Run both experiments on `gangs` gangs at a time and fill `folder` with all but the report.

    `say` gets a line a run. Raises RuntimeError where a run fails.
    """
    created = datetime.now(UTC).isoformat(timespec="seconds")
    tasks = {name: load_experiment(name, scale, train=build_models) for name in EXPERIMENTS}
    starts: dict[str, Mapping[str, float]] = {}
    runs: list[Trajectory] = []
    for name, task in tasks.items():
        starts[name], found = run_experiment(name, task, range(seeds), gang, gangs, address, say)
        runs += found
    rows: list[Mapping[str, Any]] = [
        {"experiment": r.experiment, "method": r.method, "seed": r.seed, "step": int(step), "metric": m, "value": v}
        for r in runs
        for m, values in r.metrics.items()
        for step, v in zip(r.steps, values.tolist(), strict=True)
    ]
    write_table(folder / "trajectories.parquet", TRAJECTORY_SCHEMA, rows)
    meta = {
        "name": "synthetic",
        "title": "SimNPO against NPO on Markov chains",
        "source": "Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning, "
        "arXiv:2410.07163, section 5",
        "scale": scale,
        "seeds": list(range(seeds)),
        "created": created,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["ray_unlearn", *public_command(command)],
        "gang": asdict(gang),
        "settings": {
            "learning_rate": LEARNING_RATE,
            "retain_weight": RETAIN_WEIGHT,
            "batch_size": BATCH_SIZE,
            "steps": STEPS,
            "steps_a_point": STEPS_A_POINT,
            "parameters": PARAMETERS,
        },
        "versions": package_versions(),
        "metrics": {f"{chain}_divergence": f"KL(truth || model) on {chain}, nats a state" for chain in HOMES},
        "methods": list(METHODS),
        "experiments": [
            _describe(name, EXPERIMENTS[name], starts[name], task.selection.retrained) for name, task in tasks.items()
        ],
        "claims": [_answer(claim, runs, tasks) for claim in CLAIMS],
        "measured_too": [_answer(claim, runs, tasks) for claim in MEASURED_TOO],
    }
    write_json(folder / REPRODUCTION, meta)


def run_experiment(
    name: str,
    task: Task,
    seeds: Sequence[int],
    gang: GangConfig,
    gangs: int,
    address: str | None,
    say: Callable[[str], None],
) -> tuple[Mapping[str, float], list[Trajectory]]:
    """The starting model's metrics, and a run of every method at every seed. Raises RuntimeError where one fails."""
    from ray_unlearn.gangs.gangs import Gangs
    from ray_unlearn.gangs.session import ray_session

    with (
        tempfile.TemporaryDirectory(prefix="ray_unlearn-") as scratch,
        ray_session(gang, gangs, address, say=say),
        Gangs(task, gang, gangs, Path(scratch)) as workers,
    ):

        def reports(job: Job) -> list[Report]:
            found: list[Report] = []
            last = workers.run(job, found.append)
            return [*found, finished(last, f"{job.job_id} failed")]

        def run(what: tuple[str, int]) -> Trajectory:
            method, seed = what
            job = trial_job(name, method, seed)
            points = reports(job)
            metrics = [start, *(point.metrics() for point in points)]
            say(f"{name}: {method}, seed {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in metrics[-1].items()))
            return Trajectory(
                name,
                method,
                seed,
                np.array([0, *(point.step for point in points)]),
                {metric: np.array([m[metric] for m in metrics]) for metric in start},
            )

        start = reports(Job(f"{name}-start"))[-1].metrics()
        with ThreadPoolExecutor(gangs) as pool:
            return start, list(pool.map(run, [(method, seed) for method in METHODS for seed in seeds]))


def trial_job(experiment: str, method: str, seed: int) -> Job:
    """One run of the paper: plain AdamW steps, each epoch as long as one evaluation point takes."""
    epochs = STEPS // STEPS_A_POINT
    trial = TrialConfig(
        f"{experiment}-{method}-{seed}",
        method,
        PARAMETERS[experiment][method],
        RETAIN_WEIGHT,
        LEARNING_RATE,
        seed,
        epochs=epochs,
        batch_size=BATCH_SIZE,
        warmup_fraction=0.0,
        schedule="constant",
        weight_decay=0.0,
        max_grad_norm=0.0,
        evaluations=epochs,
    )
    return Job(trial.trial_id, trial, epoch_size=STEPS_A_POINT * BATCH_SIZE)


def _describe(name: str, experiment: Experiment, start: Mapping[str, float], retrained: Any) -> dict[str, Any]:
    return {
        "name": name,
        "about": ABOUT[name],
        "lengths": dict(experiment.lengths),
        "learnt": list(experiment.learnt),
        "start": dict(start),
        "retrained": dict(retrained.metrics),
    }


def _answer(claim: Claim, runs: Sequence[Trajectory], tasks: Mapping[str, Task]) -> dict[str, Any]:
    retrained = tasks[claim.experiment].selection.retrained
    assert retrained is not None
    values = {
        method: [
            claim.measure(run, retrained.metrics)
            for run in runs
            if (run.experiment, run.method) == (claim.experiment, method)
        ]
        for method in METHODS
    }
    return {
        "experiment": claim.experiment,
        "claim": claim.text,
        "measured": claim.measured,
        "values": values,
        "published": dict(claim.published),
        **asdict(judge(claim, values["simnpo"], values["npo"])),
    }


def reproduce(options: Reproduce) -> int:
    """Check, run the experiment, write the report, say the verdicts; the exit code."""
    check_name(options.what)
    workers = 1 if options.workers is None else options.workers
    for name, value in (("--seeds", options.seeds), ("--concurrent", options.concurrent)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value}: must be at least 1. Give a larger number")
    check_workers(workers, options.gpus_per_worker, "--workers", options.zero or 0)
    check_writable(options.out)
    check_writable(cache_folder(), "RAY_UNLEARN_CACHE")
    machine = find_machine(options.address)
    gang = replace(
        gang_config(options.gpus_per_worker, options.zero, machine, workers=workers),
        reference_folder=str(cache_folder() / "reference"),
    )
    gangs = options.concurrent or most_gangs(gang, machine, 2 * options.seeds)
    if options.scale == "mini":
        print(MINI_BANNER, flush=True)
    folder = take_folder(options.out / f"reproduce-{options.what}-{datetime.now().strftime('%Y%m%d-%H%M%S')}")
    log = folder / "log.txt"
    with noise_to(log) as screen, failures_named(log):
        say = sayer(screen)
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

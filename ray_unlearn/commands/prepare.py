"""`ray_unlearn prepare`: fine-tune the target and the retrained model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import Benchmark, Request
from ray_unlearn.benchmarks.profiles import available_splits, write_profile
from ray_unlearn.commands.access import check_repositories
from ray_unlearn.commands.checks import absolute, check_workers, check_writable
from ray_unlearn.commands.exit_codes import failures_named
from ray_unlearn.commands.options import Prepare
from ray_unlearn.commands.resources import find_machine, gang_config, place_gang
from ray_unlearn.commands.screen import noise_to, sayer
from ray_unlearn.config import GangConfig, TrialConfig, UserError
from ray_unlearn.models.hub import parse_pins, pin_revisions
from ray_unlearn.models.loading import check_model, trust_remote_code
from ray_unlearn.search.used_plugins import check_code
from ray_unlearn.training.outcome import finished
from ray_unlearn.training.placement import Asked
from ray_unlearn.training.trial import Job


def prepare_models(
    benchmark: Benchmark,
    request: Request,
    gang: GangConfig,
    trial: TrialConfig,
    out: Path,
    address: str | None,
    log: Callable[[str], None],
) -> None:
    """Fine-tune the base model on everything (target/) and on the retain set alone (retrained/), on a gang.

    One gang does both, from the same first state; the retrained model is measured and its profile kept.
    `log` gets a line an epoch. Raises RuntimeError where one of them fails.
    """
    from ray_unlearn.gangs.gangs import gangs_for

    assert benchmark.build_task is not None
    task = benchmark.build_task(replace(request, whole=True))
    jobs = {"target": ("forget", "retain"), "retrained": ("retain",)}
    with gangs_for(task, gang, 1, address, say=log, shared=[out]) as gangs:
        for name, learn in jobs.items():
            measured = name == "retrained"
            unfinished = out / f".{name}.unfinished"
            job = Job(
                name,
                trial,
                learn=learn,
                evaluate=available_splits(task) if measured else (),
                complete=measured,
                save_to=str(unfinished.absolute()),
            )
            log(f"{name}: fine-tuning on {' and '.join(learn)}")
            outcome = gangs.run(
                job,
                lambda r, name=name: log(  # type: ignore[misc]
                    f"{name}: epoch {r.epoch}/{trial.epochs}, loss {r.forget_loss:.3f}, {r.train_seconds:.0f} s"
                ),
            )
            report = finished(outcome, f"{name} could not be made")
            if measured:
                profiles = {n: benchmark.compare_with_itself(p) for n, p in report.profiles.items()}
                write_profile(unfinished, profiles, {"benchmark": benchmark.name, "split": task.split})
            unfinished.rename(out / name)


def run(options: Prepare) -> int:
    """Check, fine-tune the two models, say where they are; the exit code."""
    trust_remote_code(options.trust_remote_code)
    pin_revisions(parse_pins("--revision", options.revision))
    check_workers(options.workers, options.gpus_per_worker, "--workers")
    for name, value in (("--epochs", options.epochs), ("--batch-size", options.batch_size)):
        if value < 1:
            raise UserError(f"{name} {value}: must be at least 1. Give a larger number")
    if options.learning_rate <= 0:
        raise UserError(f"--learning-rate {options.learning_rate:g}: must be above 0. Give one such as 1e-5")
    benchmark = load_benchmark(options.benchmark)
    check_code(benchmark)
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
    machine = find_machine(options.address)
    gang = gang_config(options.gpus_per_worker, options.zero, machine, workers=options.workers)
    request = Request("full", absolute(options.model), options.data, options.split)
    check_repositories(benchmark, request, {"--model": request.model})
    gang = replace(gang, through_driver=options.through_driver)
    placement = place_gang(Asked(gang, options.workers, options.zero, lora=0), options.model, machine)
    trial = TrialConfig(
        "finetune",
        "finetune",
        learning_rate=options.learning_rate,
        epochs=options.epochs,
        batch_size=options.batch_size,
        evaluations=options.epochs,
        seed=options.seed,
    )
    with noise_to(options.out / "log.txt") as screen:
        say = sayer(screen)
        say(f"layout: {placement.says}")
        with failures_named(options.out / "log.txt"):
            prepare_models(benchmark, request, placement.gang, trial, options.out, options.address, say)
    print(f"Target:     {options.out / 'target'}")
    print(f"Retrained:  {options.out / 'retrained'}")
    data = f" --data {options.data}" if options.data else ""
    part = f" --split {options.split}" if options.split else ""
    print(f"Next:       ray_unlearn tune --benchmark {options.benchmark} --model {options.out / 'target'}{data}{part}")
    return 0

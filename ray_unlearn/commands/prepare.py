"""`ray_unlearn prepare`: fine-tune the target and the retrained model.

<out>/
    target/                 fine-tuned on everything
    retrained/              without the forget split, with profile.json: what it measures
    prepare.json            what both were made with
    target.profile.json     what the target measures on the selection split
    log.txt

A part that is there and was made with the same is not made again, so that the same command goes on after any end.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import Benchmark, Profile, Request, Task
from ray_unlearn.benchmarks.identity import PARTS as IDENTITY
from ray_unlearn.benchmarks.identity import describe_identity, find_differences
from ray_unlearn.benchmarks.objective import Judge
from ray_unlearn.benchmarks.profiles import available_splits, read_profile, write_profile
from ray_unlearn.benchmarks.starts import check_start
from ray_unlearn.commands.access import check_repositories
from ray_unlearn.commands.checks import absolute, check_workers, check_writable
from ray_unlearn.commands.exit_codes import failures_named
from ray_unlearn.commands.options import Prepare
from ray_unlearn.commands.resources import find_machine, gang_config, longest_of, place_gang, read_deepspeed
from ray_unlearn.commands.screen import noise_to, sayer
from ray_unlearn.config import GangConfig, TrialConfig, UserError
from ray_unlearn.interruption import exit_code, signals_as_interrupts
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.models.hub import parse_pins, pin_revisions
from ray_unlearn.models.loading import check_model, trust_remote_code
from ray_unlearn.models.sizes import check_trained, scaled
from ray_unlearn.records.tables import write_json
from ray_unlearn.search.space import ADAPTER_RATE
from ray_unlearn.search.used_plugins import check_code
from ray_unlearn.training.outcome import Report, finished
from ray_unlearn.training.placement import Asked
from ray_unlearn.training.trial import Job
from ray_unlearn.wording import duration

TARGET, RETRAINED = "target", "retrained"
LEARNS: Mapping[str, tuple[str, ...]] = {TARGET: ("forget", "retain"), RETRAINED: ("retain",)}
"""The task's sets that each part is fine-tuned on."""
MADE_WITH, TARGET_PROFILE = "prepare.json", "target.profile.json"
BESIDE = ("retrained profile",)
"""What of a task's identity lies beside the base model and has no part in fine-tuning."""
RATE, AT_PARAMETERS = 1e-5, 7e9
"""Peak learning rate of fine-tuning, as TOFU's authors have it, and the size of their model."""


class Pace:
    """Says after every epoch how fast training goes, and how long what is left of it will take."""

    def __init__(self, tokens: Mapping[str, int], epochs: int, say: Callable[[str], None]) -> None:
        """tokens: trained on in one epoch, by the parts that are to be made, in their order."""
        self._tokens, self._epochs, self._say = tokens, epochs, say
        self._left = epochs * sum(tokens.values())
        self._before = 0.0, 0.0

    def epoch(self, part: str, report: Report) -> None:
        trained, seconds = self._tokens[part] * report.epoch, report.train_seconds
        rate = (self._before[0] + trained) / max(self._before[1] + seconds, 1e-9)
        left = (self._left - trained) / rate
        self._say(
            f"{part}: epoch {report.epoch}/{self._epochs}, loss {report.forget_loss:.3f}, {rate:,.0f} tokens/s, "
            + ("training done" if left <= 0 else f"{duration(left)} of training left")
        )
        if report.epoch == self._epochs:
            self._left -= trained
            self._before = self._before[0] + trained, self._before[1] + seconds


def settings_of(trial: TrialConfig, gang: GangConfig) -> dict[str, Any]:
    """What decides a part besides model and data, by the option that sets it."""
    return {
        "--epochs": trial.epochs,
        "--batch-size": trial.batch_size,
        "--learning-rate": trial.learning_rate,
        "--schedule": trial.schedule,
        "--weight-decay": trial.weight_decay,
        "--seed": trial.seed,
        "--lora": gang.lora_rank,
    }


@dataclass(frozen=True)
class Made:
    """The finished parts in a folder, and what they were made with."""

    parts: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, str] = field(default_factory=dict)
    """See `describe_identity`."""


def read_made(out: Path) -> Made:
    """Raises UserError where it is not known how what is there was made."""
    parts = tuple(part for part in LEARNS if (out / part).exists())
    if not parts:
        return Made()
    try:
        made = json.loads((out / MADE_WITH).read_text())
        return Made(parts, dict(made["settings"]), dict(made["identity"]))
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(
            f"--out {out}: holds {parts[0]}/ already, and no {MADE_WITH} that says how it was made. "
            "Give another folder, or remove it"
        ) from None


def check_settings(out: Path, made: Made, now: Mapping[str, Any]) -> None:
    """Raise UserError where finished parts were made with other settings."""
    for name, value in now.items() if made.parts else ():
        if (then := made.settings.get(name)) != value:
            raise UserError(f"{name} {value}: {out / made.parts[0]} was made with {then}. Give that, or another --out")


def check_same(out: Path, made: Made, identity: Mapping[str, str]) -> None:
    """Raise UserError where finished parts were made of another model, or with other data."""
    for difference in find_differences(made.identity, identity):
        raise UserError(
            f"--out {out}: {IDENTITY[difference.part]} changed since {made.parts[0]}/ was made. "
            "Give another --out, or what it was made with"
        )


def prepare_models(
    benchmark: Benchmark,
    task: Task,
    gang: GangConfig,
    trial: TrialConfig,
    out: Path,
    parts: Sequence[str],
    address: str | None,
    log: Callable[[str], None],
) -> None:
    """Fine-tune the base model on everything (target/) and on the retain set alone (retrained/), on a gang.

    task: with the whole benchmark. parts: those to be made. One gang does both, from the same first state; both are
    measured, and the retrained model's profile is kept beside its weights. `log` gets a line an epoch. Raises
    RuntimeError where one of them fails.
    """
    from ray_unlearn.gangs.gangs import gangs_for

    about = {"benchmark": benchmark.name, "split": task.split}
    tokens = {part: sum(int(getattr(task, name).lengths.sum()) for name in LEARNS[part]) for part in parts}
    pace = Pace(tokens, trial.epochs, log)
    with gangs_for(task, gang, 1, address, say=log, shared=[out]) as gangs:
        for part in parts:
            unfinished = out / f".{part}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            is_retrained = part == RETRAINED
            job = Job(
                part,
                trial,
                learn=LEARNS[part],
                evaluate=available_splits(task) if is_retrained else ("selection",),
                complete=is_retrained,
                save_to=str(unfinished.absolute()),
            )
            log(f"{part}: fine-tuning on {' and '.join(job.learn)}, {tokens[part]:,} tokens an epoch")
            outcome = gangs.run(job, lambda report, part=part: pace.epoch(part, report))  # type: ignore[misc]
            report = finished(outcome, f"{part} could not be made")
            pace.epoch(part, report)
            if is_retrained:
                profiles = {n: benchmark.compare_with_itself(p) for n, p in report.profiles.items()}
                write_profile(unfinished, profiles, about)
            else:
                write_profile(out / TARGET_PROFILE, report.profiles, about)
            unfinished.rename(out / part)


def describe_knowledge(benchmark: Benchmark, target: Profile, retrained: Profile) -> tuple[list[str], bool]:
    """(what the target knows and the retrained model does not, whether a search could begin from it). Both on the
    selection split."""
    judge = Judge.build(benchmark, target.metrics, retrained.metrics, Ranking())
    try:
        return [*check_start(benchmark.name, judge, target, retrained).notes], True
    except UserError as error:
        advice = "No search could begin from this target. More epochs or a higher --learning-rate teach it more"
        return [str(error), advice], False


def run(options: Prepare) -> int:
    """Check, fine-tune the two models, say where they are; the exit code."""
    trust_remote_code(options.trust_remote_code)
    pin_revisions(parse_pins("--revision", options.revision))
    benchmark = check_prepare(options)
    assert options.model is not None
    made = read_made(options.out)
    machine = find_machine(options.address)
    settings = read_deepspeed(options)
    gang = gang_config(options.gpus_per_worker, options.zero, machine, settings, options.workers)
    request = Request("full", absolute(options.model), options.data, options.split)
    check_repositories(benchmark, request, {"--model": request.model})
    gang = replace(gang, through_driver=options.through_driver, lora_rank=options.lora or 0, seed=options.seed)
    asked = Asked(gang, options.workers, options.zero, options.lora)
    place_gang(asked, options.model, machine)  # before any data are read: what fits nowhere is refused at once
    with noise_to(options.out / "log.txt") as screen:
        say = sayer(screen)
        assert benchmark.build_task is not None
        task = benchmark.build_task(replace(request, whole=True))
        placement = place_gang(asked, task.model, machine, longest_of(task))
        gang, trial = placement.gang, finetuning(options, task.model, placement.gang)
        identity = {part: value for part, value in describe_identity(task).items() if part not in BESIDE}
        check_settings(options.out, made, settings_of(trial, gang))
        check_same(options.out, made, identity)
        say(f"layout: {placement.says}; learning rate {trial.learning_rate:.3g}")
        left = [part for part in LEARNS if part not in made.parts]
        for part in made.parts:
            say(f"{part}: is there already, made with the same settings, model and data")
        write_json(options.out / MADE_WITH, {"settings": settings_of(trial, gang), "identity": identity})
        way_on = "The same command goes on with what is missing"
        with (
            failures_named(options.out / "log.txt", f". {way_on}"),
            signals_as_interrupts(give_up=lambda: say(f"stopped. {way_on}")),
        ):
            try:
                if left:
                    prepare_models(benchmark, task, gang, trial, options.out, left, options.address, say)
            except KeyboardInterrupt:
                say(f"interrupted. {way_on}")
                return exit_code()
    show_models(options, benchmark)
    return 0


def show_models(options: Prepare, benchmark: Benchmark) -> None:
    """What the two know, where they are, what to type next."""
    target, retrained = (read_profile(options.out / name)["selection"] for name in (TARGET_PROFILE, RETRAINED))
    lines, can_begin = describe_knowledge(benchmark, target, retrained)
    print(*lines, sep="\n")
    print(f"Target:     {options.out / TARGET}")
    print(f"Retrained:  {options.out / RETRAINED}")
    data = f" --data {options.data}" if options.data else ""
    part = f" --split {options.split}" if options.split else ""
    if can_begin:
        print(
            f"Next:       ray_unlearn tune --benchmark {options.benchmark} --model {options.out / TARGET}{data}{part}"
        )


def finetuning(options: Prepare, model: str, gang: GangConfig) -> TrialConfig:
    return TrialConfig(
        "finetune",
        "finetune",
        learning_rate=options.learning_rate or default_rate(model, gang.lora_rank),
        schedule=options.schedule,
        weight_decay=options.weight_decay,
        epochs=options.epochs,
        batch_size=options.batch_size,
        evaluations=options.epochs,
        seed=options.seed,
    )


def default_rate(model: str, lora_rank: int) -> float:
    """Peak learning rate for a model of that size, of all weights or of adapters."""
    return scaled(RATE, AT_PARAMETERS, check_trained(model, lora_rank, "")) * (ADAPTER_RATE if lora_rank else 1.0)


def check_prepare(options: Prepare) -> Benchmark:
    """All that can be known from the options alone, before anything is started; the benchmark."""
    check_workers(options.workers, options.gpus_per_worker, "--workers")
    for name, value in (("--epochs", options.epochs), ("--batch-size", options.batch_size)):
        if value < 1:
            raise UserError(f"{name} {value}: must be at least 1. Give a larger number")
    if options.learning_rate is not None and not options.learning_rate > 0:
        raise UserError(f"--learning-rate {options.learning_rate:g}: must be above 0. Give one such as 1e-5")
    if not options.weight_decay >= 0:
        raise UserError(f"--weight-decay {options.weight_decay:g}: must be 0 or more. Give one such as 0.01")
    if (options.lora or 0) < 0:
        raise UserError(f"--lora {options.lora}: must be 0 or more. Give a rank such as 16")
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
    return benchmark

"""Make the models that a benchmark starts from (target) and compares with (retrained)."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ray_unlearn.benchmarks import Benchmark, Profile, Request, Split, Task
from ray_unlearn.config import GangConfig, TrialConfig, UserError
from ray_unlearn.data import Sequences
from ray_unlearn.local import local_worker, run_local
from ray_unlearn.trial import Job

SINGLE = GangConfig(num_workers=1, zero_stage=0, threads_per_worker=1)
NOTHING = Sequences.build([])
SPLITS = ("selection", "report", "whole")
"""Of a task, in the order of its fields."""
CACHE_FORMAT = 2
"""Of what builds leave in the cache; another number makes everything anew."""


@dataclass(frozen=True)
class Build:
    """One small model to train in a process of its own, and what to measure on it afterwards."""

    start: Path
    """Folder with the untrained (or base) model and its tokenizer."""
    output: Path
    sequences: Sequences
    """What it is trained on: cross-entropy of the answer tokens."""
    trial: TrialConfig
    """With method "finetune"."""
    benchmark: str = ""
    splits: Mapping[str, Split] = field(default_factory=dict)
    """What to measure the trained model on, by the names in SPLITS; needs `benchmark`."""


def build_models(builds: list[Build], log: Callable[[str], None]) -> list[dict[str, Profile]]:
    """Train them side by side, one single-threaded process each; the same bits on every run.

    Returns each one's profiles by split name. `log` gets one line before and one after.
    """
    names = ", ".join(build.output.name for build in builds)
    log(f"training {names} ({sum(build.sequences.lengths.sum() for build in builds)} tokens an epoch)")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=min(len(builds), os.cpu_count() or 1), mp_context=context) as pool:
        profiles = list(pool.map(_build, builds))
    log(f"trained {names}")
    return profiles


def _build(build: Build) -> dict[str, Profile]:
    empty = Split(probes={})
    task = Task(
        benchmark=build.benchmark,
        scale="mini",
        model=str(build.start),
        forget=build.sequences,
        retain=NOTHING,
        selection=build.splits.get("selection", empty),
        report=build.splits.get("report", empty),
        whole=build.splits.get("whole"),
    )
    job = Job(
        "build", build.trial, evaluate=tuple(build.splits), points=False, complete=True, save_to=str(build.output)
    )
    return last_profiles(run_local(local_worker(task, SINGLE), job))


def last_profiles(reports: list[dict[str, Any]]) -> dict[str, Profile]:
    """The profiles of a finished job's last report, by split."""
    return {name: Profile(**values) for name, values in reports[-1]["profiles"].items()}


def write_profile(folder: Path, profiles: Mapping[str, Profile], about: Mapping[str, str] | None = None) -> None:
    """Keep a model's profiles in that file, or beside its weights in that folder, with what they were measured on."""
    file = folder / "profile.json" if folder.is_dir() else folder
    kept = {name: asdict(replace(p, examples=())) for name, p in profiles.items()}
    for values in kept.values():
        del values["examples"]
    file.write_text(json.dumps({"about": dict(about or {}), "profiles": kept}, indent=1))


def attach_retrained(task: Task, place: Path | None) -> Task:
    """The task with the retrained model's profile from that place, else from where `prepare` leaves it: beside
    the starting model. A benchmark that makes its own models has attached it. Raises UserError where the given one
    cannot be had."""
    beside = Path(task.model).parent / "retrained"
    known = task.selection.retrained is not None or not (beside / "profile.json").is_file()
    if place is None and known:
        return task
    return with_retrained(task, read_profile(place or beside, {"benchmark": task.benchmark, "split": task.split}))


def available_splits(task: Task) -> tuple[str, ...]:
    return tuple(name for name in SPLITS if getattr(task, name) is not None)


def with_retrained(task: Task, profiles: Mapping[str, Profile]) -> Task:
    """The task with what the retrained model measures, on every split that it was measured on."""
    names = [name for name in available_splits(task) if name in profiles]
    return replace(task, **{n: replace(getattr(task, n), retrained=profiles[n]) for n in names})


def read_profile(place: Path, about: Mapping[str, str] | None = None) -> dict[str, Profile]:
    """From the file, or the folder that holds profile.json.

    Raises UserError where there is none, or one that cannot be read or is about something else.
    """
    try:
        values = json.loads((place / "profile.json" if place.is_dir() else place).read_text())
        profiles = {name: Profile(**profile) for name, profile in values["profiles"].items()}
        known = dict(values["about"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{place}: holds no profile of a retrained model that can be read ({type(error).__name__}). Give a "
            "profile.json or the folder `retrained` that `ray_unlearn prepare` made; `ray_unlearn evaluate --model "
            "RETRAINED --profile FILE` makes one of any model"
        ) from None
    for key, value in (about or {}).items():
        if known.get(key) != value:
            raise UserError(
                f"{place}: was made for {key} {known.get(key)}, not {value}. "
                f"Give the same to tune, or prepare models for {value}"
            )
    return profiles


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
    from ray_unlearn.gang import Gangs
    from ray_unlearn.session import ray_session

    assert benchmark.build_task is not None
    task = benchmark.build_task(replace(request, whole=True))
    jobs = {"target": ("forget", "retain"), "retrained": ("retain",)}
    with (
        tempfile.TemporaryDirectory(prefix="ray_unlearn-") as scratch,
        ray_session(gang, 1, address),
        Gangs(task, gang, 1, Path(scratch)) as gangs,
    ):
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
            report = gangs.run(
                job,
                lambda r, name=name: log(  # type: ignore[misc]
                    f"{name}: epoch {r['epoch']}/{trial.epochs}, loss {r['forget_loss']:.3f}, "
                    f"{r['train_seconds']:.0f} s"
                ),
            )
            if "error" in report:
                raise RuntimeError(f"{name} could not be made: {report['error']}")
            if measured:
                profiles = {n: benchmark.compare_with_itself(p) for n, p in last_profiles([report]).items()}
                write_profile(unfinished, profiles, {"benchmark": benchmark.name, "split": task.split})
            unfinished.rename(out / name)


def cache_folder() -> Path:
    """Where built models are kept: RAY_UNLEARN_CACHE, else the user's cache folder."""
    if "RAY_UNLEARN_CACHE" in os.environ:
        return Path(os.environ["RAY_UNLEARN_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ray_unlearn"


def cached(key_parts: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
    """The cache's folder for these key parts, made once: two processes that want it at once make it once.

    `make` fills an empty folder, which appears under its final name only when it is whole.
    """
    from filelock import FileLock

    key = hashlib.sha256(json.dumps({"format": CACHE_FORMAT, **key_parts}, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / f"{key_parts.get('name', 'build')}-{key}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder

"""Checks of options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from ray_unlearn.config import ATTACKS, Robustness, UserError
from ray_unlearn.files import in_uploaded_folder, results_folder
from ray_unlearn.models.gguf import converted
from ray_unlearn.records.bucket import is_uri

BIGGEST_WORKER_COUNT = 1024
MINI_BANNER = (
    "MINI: generated data and a tiny model, to see the whole thing work. Its figures say nothing about real models."
)


def check_numbers(trials: int, searches: int, concurrent: int | None, trial_timeout: float | None) -> None:
    for name, value in (("--trials", trials), ("--searches", searches), ("--concurrent", concurrent)):
        if value is not None and value < 1:
            raise UserError(f"{name} {value}: must be at least 1. Give a larger number")
    if trial_timeout is not None and trial_timeout < 0:
        raise UserError(f"--trial-timeout {trial_timeout:g}: must be above 0. Give seconds, or leave it out")


def check_levels(levels: Iterable[float]) -> None:
    for level in levels:
        if not 0.0 < level < 1.0:
            raise UserError(
                f"--at-utility {level:g}: must be above 0 and under 1, the starting model's. Give 0.95, say"
            )


def check_workers(workers: int | None, gpus: float | None, option: str, zero: int = 0) -> None:
    if workers is not None and not 1 <= workers <= BIGGEST_WORKER_COUNT:
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


def check_writable(folder: Path, what: str = "--out", fix: str = "Give another folder") -> None:
    """Make the folder if need be; raise UserError where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{what} {folder}: cannot be written ({error.strerror}). {fix}") from None


def absolute(model: str | None) -> str | None:
    """A model folder's whole path, of a GGUF file that of what it was converted into; a hub name as it is."""
    model = converted(model) if model else model
    return str(Path(model).expanduser().absolute()) if model and Path(model).expanduser().is_dir() else model


def check_job_folder(options: Any) -> None:
    """Say where results go of a job whose working directory was uploaded, and raise UserError where that would be in
    this directory, which goes with the job: where whoever asked typed a relative path."""
    if not in_uploaded_folder():
        return
    out = getattr(options, "out", None)
    places = {f"--{name}": [getattr(options, name, None)] for name in ("out", "profile", "resume")}
    if out is None and type(options).__name__ != "Verify":  # written beside what is read
        places["FOLDER"] = [getattr(options, "folder", None), *getattr(options, "folders", ())]
    for flag, values in places.items():
        for value in values:
            if value is not None and not is_uri(str(value)) and not Path(value).is_absolute():
                raise UserError(
                    f"{flag} {value}: lies in the job's own folder, which goes with the job. Give an absolute path on "
                    "a disk that stays"
                )
    if out is not None and out == results_folder():
        print(
            f"Results: {out} (this job's own folder goes with it; RAY_UNLEARN_OUT or --out names another)", flush=True
        )


def take_folder(folder: Path) -> Path:
    """Make the folder, or where it is there the first of folder-2, folder-3 ... that is not: of commands that want one
    name at the same moment each gets a folder of its own."""
    for candidate in chain([folder], (folder.with_name(f"{folder.name}-{count}") for count in range(2, 1 << 30))):
        try:
            candidate.mkdir()
        except FileExistsError:
            continue
        return candidate
    raise AssertionError("unreachable")

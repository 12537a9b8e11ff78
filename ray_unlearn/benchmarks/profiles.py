"""Profiles of models on disk: what a retrained model measures, kept beside its weights or in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from ray_unlearn.benchmarks.contract import SPLITS, Profile, Task
from ray_unlearn.config import UserError


def write_profile(folder: Path, profiles: Mapping[str, Profile], about: Mapping[str, str] | None = None) -> None:
    """Keep a model's profiles in that file, or beside its weights in that folder, with what they were measured on."""
    file = folder / "profile.json" if folder.is_dir() else folder
    kept = {name: asdict(replace(p, examples=())) for name, p in profiles.items()}
    for values in kept.values():
        del values["examples"]
    file.write_text(json.dumps({"about": dict(about or {}), "profiles": kept}, indent=1))


def attach_retrained(task: Task, place: Path | None) -> Task:
    """The task with the retrained model's profile from that place, else from where `prepare` leaves it: beside
    the starting model, if it was made for this benchmark and split; whether it counts is said in the task's notes. A
    benchmark that makes its own models has attached it. Raises UserError where the given one cannot be had."""
    about = {"benchmark": task.benchmark, "split": task.split}
    if place is not None:
        return with_retrained(task, read_profile(place, about), place)
    beside = Path(task.model).parent / "retrained"
    if task.selection.retrained is not None or not (beside / "profile.json").is_file():
        return task
    try:
        profiles = read_profile(beside, about)
    except UserError as error:
        return replace(task, notes=(*task.notes, f"Beside the model is a retrained one that does not count. {error}."))
    said = f"What a model that never saw the forget set measures is known from the retrained model in {beside}."
    return with_retrained(replace(task, notes=(*task.notes, said)), profiles, beside)


def available_splits(task: Task) -> tuple[str, ...]:
    return tuple(name for name in SPLITS if getattr(task, name) is not None)


def with_retrained(task: Task, profiles: Mapping[str, Profile], place: Path) -> Task:
    """The task with what the retrained model measures, on every split that it was measured on; its weights are in
    `place`, if that is a folder that has any, or where it was measured from."""
    names = [name for name in available_splits(task) if name in profiles]
    model = str(place) if (place / "config.json").is_file() else _measured_model(place)
    splits = {n: replace(getattr(task, n), retrained=profiles[n]) for n in names}
    return replace(task, retrained_model=model, **splits)


def _measured_model(place: Path) -> str | None:
    """The model that the kept profile was measured of, where it is named."""
    file = place / "profile.json" if place.is_dir() else place
    name = json.loads(file.read_text())["about"].get("model") if file.is_file() else None
    return str(name) if name else None


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

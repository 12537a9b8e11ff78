"""A retrained model by its weights: measured once on a gang, then kept in the cache as a profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from ray_unlearn.benchmarks.contract import Benchmark, Task
from ray_unlearn.benchmarks.identity import describe_identity
from ray_unlearn.benchmarks.profiles import attach_retrained, available_splits, write_profile
from ray_unlearn.config import GangConfig, UserError
from ray_unlearn.files import cached
from ray_unlearn.gangs.gangs import gangs_for
from ray_unlearn.models.fingerprints import weights_fingerprint
from ray_unlearn.models.loading import load_tokenizer
from ray_unlearn.training.outcome import finished
from ray_unlearn.training.trial import Job

DECIDES = ("tokenizer", "chat template", "data")
"""What of a task the numbers depend on, by the parts of its identity."""


def names_model(given: str) -> bool:
    """Whether --retrained names a model to be measured, and not a profile."""
    place = Path(given).expanduser()
    if place.is_dir():
        return (place / "config.json").is_file() and not (place / "profile.json").is_file()
    looks_like_path = given.startswith((".", "/", "~")) or given.count("/") != 1 or given.endswith(".json")
    return not place.exists() and not looks_like_path


def measured_retrained(
    benchmark: Benchmark,
    task: Task,
    model: str,
    gang: GangConfig,
    address: str | None,
    grow_to: Mapping[str, float] | None,
    say: Callable[[str], None],
) -> tuple[Task, Path]:
    """The task with what that model measures on it, and where that is kept: by the model's weights, the data, the
    tokenizer and the template, so that later searches find it.

    Raises UserError where the model has another tokenizer than the starting one, RuntimeError where it cannot
    be scored.
    """
    if load_tokenizer(model).get_vocab() != load_tokenizer(task.model).get_vocab():
        raise UserError(
            f"--retrained {model}: has another tokenizer than {task.model}. Give one made from the same base model"
        )
    identity, splits = describe_identity(task), available_splits(task)
    key = {
        "name": "retrained",
        "weights": weights_fingerprint(model),
        "task": {part: identity[part] for part in DECIDES},
        "benchmark": benchmark.name,
        "splits": splits,
        "precision": gang.precision,
    }
    about = {"benchmark": task.benchmark, "split": task.split, "model": model}

    def measure(folder: Path) -> None:
        say(f"measuring the retrained model {model}, once")
        scored = replace(gang, trains=False, lora_rank=0, adapter="")
        with gangs_for(replace(task, model=model), scored, 1, address, grow_to, say) as gangs:
            report = finished(gangs.run(Job("retrained", evaluate=splits, complete=True)), f"--retrained {model}")
        profiles = {name: benchmark.compare_with_itself(profile) for name, profile in report.profiles.items()}
        write_profile(folder, profiles, about)

    place = cached(key, measure)
    return attach_retrained(task, place), place

"""Scorers of own data: a function of the user's that says how good generated answers are. Runs in workers alone."""

from __future__ import annotations

import hashlib
import math
import types
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ray_unlearn.benchmarks.contract import OwnScorer
from ray_unlearn.metrics.errors import standard_error


def run_scorer(
    scorer: OwnScorer, prompts: Sequence[str], references: Sequence[str], answers: Sequence[str]
) -> tuple[float, float]:
    """(mean, its standard error) of what the function gives each answer. Raises RuntimeError where that is no finite
    number an answer, or the code is not what was read where the search began."""
    found = _load(scorer.source, scorer.sha256, scorer.file, scorer.function)(
        list(prompts), list(references), list(answers)
    )
    values = np.array([_as_number(value) for value in found])
    if len(values) != len(answers) or not np.isfinite(values).all():
        raise RuntimeError(f"{scorer}: must give one finite number for each of {len(answers)} answers")
    return float(values.mean()), standard_error(values)


def _as_number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


@lru_cache
def _load(source: str, sha256: str, file: str, function: str) -> Callable[..., Any]:
    if hashlib.sha256(source.encode()).hexdigest() != sha256:
        raise RuntimeError(f"{file}: its code is not what was read where the search began")
    module = types.ModuleType(file.removesuffix(".py"))
    exec(compile(source, file, "exec"), module.__dict__)  # trusted by --trust-code
    return getattr(module, function)


def measure_own(
    scorers: Sequence[OwnScorer], asked: Mapping[str, tuple[Sequence[str], Sequence[str]]], answers: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, float]]:
    """(metrics, their standard errors) of the sets that were generated for. asked: (prompts, references) by set."""
    metrics, errors = {}, {}
    for scorer in scorers:
        for name in scorer.sets:
            if name in answers:
                metric = f"{name}_{scorer.name}"
                metrics[metric], errors[metric] = run_scorer(scorer, *asked[name], answers[name])
    return metrics, errors

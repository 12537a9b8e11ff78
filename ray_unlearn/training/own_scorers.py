"""Scorers of own data: a function of the user's that says how good generated answers are. Runs in workers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ray_unlearn.benchmarks.contract import OwnScorer
from ray_unlearn.metrics.errors import standard_error
from ray_unlearn.plugins import load_source


def run_scorer(
    scorer: OwnScorer, prompts: Sequence[str], references: Sequence[str], answers: Sequence[str]
) -> tuple[float, float]:
    """(mean, its standard error) of what the function gives each answer. Raises RuntimeError where that is no finite
    number an answer, or the code is not what was read where the search began."""
    function = getattr(load_source(scorer.source, scorer.sha256, scorer.file), scorer.function)
    found = function(list(prompts), list(references), list(answers))
    values = np.array([_as_number(value) for value in found])
    if len(values) != len(answers) or not np.isfinite(values).all():
        raise RuntimeError(f"{scorer}: must give one finite number for each of {len(answers)} answers")
    return float(values.mean()), standard_error(values)


def _as_number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


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

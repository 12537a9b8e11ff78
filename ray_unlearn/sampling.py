"""Optuna, seen from the search: one study a method, the same number of first points for each.

The only file that imports optuna. The study is told what really happened: full-fidelity values of completed
trials, FAIL for failed ones, and nothing of a pruned trial's low-fidelity values (it is told FAIL, too).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from scipy.stats import qmc

from ray_unlearn.space import Space

FIRST_POINTS = 8
"""Trials of each method that come before the model-based ones: published settings, then quasi-random."""


class MethodStudy:
    """Asks Optuna for one method's settings and tells it the outcomes."""

    def __init__(self, space: Space, trials: int, pareto: bool, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self._pareto = pareto
        first = min(FIRST_POINTS, max(1, trials // 2))
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=first, constant_liar=True)
        self._study = optuna.create_study(directions=["maximize"] * (2 if pareto else 1), sampler=sampler)
        self._distributions = {name: _distribution(range_) for name, range_ in space.ranges.items()}
        for point in first_points(space, first, seed):
            self._study.enqueue_trial(point)
        self._open: dict[str, optuna.trial.Trial] = {}

    def ask(self, trial_id: str) -> dict[str, float]:
        trial = self._study.ask(self._distributions)
        self._open[trial_id] = trial
        return dict(trial.params)

    def tell(self, trial_id: str, scores: Mapping[str, Any] | None) -> None:
        """The objective, forget and utility of a completed trial; None for any other end."""
        trial = self._open.pop(trial_id)
        if scores is None:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            values = [scores["forget"], scores["utility"]] if self._pareto else [scores["objective"]]
            self._study.tell(trial, values)


def first_points(space: Space, count: int, seed: int) -> list[dict[str, float]]:
    """Published settings (a missing key takes the middle of its range), then scrambled Sobol points."""
    points = [
        {name: warm.get(name, range_.at(0.5)) for name, range_ in space.ranges.items()} for warm in space.warm_starts
    ][:count]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the number of points need not be a power of 2
        shares = qmc.Sobol(len(space.ranges), seed=seed).random(count - len(points)) if count > len(points) else []
    points += [
        {name: range_.at(float(s)) for (name, range_), s in zip(space.ranges.items(), row, strict=True)}
        for row in shares
    ]
    return points


def _distribution(range_: Any) -> optuna.distributions.BaseDistribution:
    if range_.integer:
        return optuna.distributions.IntDistribution(int(range_.low), int(range_.high), log=range_.log)
    return optuna.distributions.FloatDistribution(range_.low, range_.high, log=range_.log)

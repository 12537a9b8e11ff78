"""Optuna, seen from the search: one study a method, the same number of first points for each.

A study is told full-fidelity values of completed trials and no others. A failed
trial is told FAIL, which no sampler reads. A pruned one is told PRUNED, with no value that could be mistaken for a
whole trial's, because the samplers are not alike:

- TPE counts PRUNED as known to be bad, below every completed trial (it ranks pruned ones among themselves by how far
  they came). Told FAIL, it would forget where they were, and with most trials pruned it would draw at random for
  most of a search. For several objectives it would rank a pruned trial by values that it has not got, so
  there the pruned one also breaks a constraint: TPE takes infeasible trials for bad without reading their values.
- GP reads completed and running trials alone. Its proposal follows from what it was told, so it would come back to
  where a trial was pruned: it is told nothing, and the pruned trial stays one whose outcome is awaited.
- NSGA-II breeds from completed trials that it proposed itself: who is pruned, or was a first point, leaves no
  children. QMC and random learn from nothing.

With two objectives the utility floor is a constraint for TPE, GP and NSGA-II; the combined objective has it inside.

TPE, GP and NSGA-II take longer over a proposal the more trials they have seen (tests.perf.cost), so a long search would
slow down without end. When a study of theirs has LOOKS_BACK trials, it begins again with the best and the newest of
them. Shorter searches know nothing of it. Every trial of a study has the same parameters, which samplers are told;
Optuna would compare those of all trials at every proposal.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from ray_unlearn.config import COMPLETED, GP, NSGA2, PRUNED, QMC, RANDOM, TPE
from ray_unlearn.search.halving import best
from ray_unlearn.search.space import Range, Space, warm_points

FIRST_POINTS = 8
"""Trials of each method that come before the model-based ones: published settings, then quasi-random."""
GP_STARTS_AT = 2
"""Completed trials from which GP proposes. Few, as of the first points only those that were not pruned complete."""
GENERATIONS = 5
"""NSGA-II's generations in one search; Optuna's own population of 50 would make a search of 20 trials random."""
SMALLEST_POPULATION, LARGEST_POPULATION = 4, 200
LOOKS_BACK = {TPE: 1000, GP: 200, NSGA2: 1000}
"""By sampler, the trials at which a study begins again with half of them: a fifth are the best, the rest the newest."""
FEWEST_FOR_IMPORTANCES = 20
"""Completed trials of a method under which its parameters' importances would be noise."""
TREES = 64
SHUFFLES, TREES_FOR_SHUFFLES, MOST_FOR_SHUFFLES = 20, 8, 50
"""Fewer trees and trials make chance look larger, never smaller; this way it takes a second or two a method."""
MOST_FOR_IMPORTANCES = 300
"""Of more, so many are taken, spread over the search: fANOVA takes seconds for them, and its time grows faster."""

Distributions = dict[str, optuna.distributions.BaseDistribution]


class MethodStudy:
    """Asks Optuna for one method's settings and tells it the outcomes."""

    def __init__(
        self, space: Space, trials: int, pareto: bool, seed: int, sampler: str = TPE, utility_floor: float = 0.0
    ) -> None:
        quieten()
        self._pareto, self._floor = pareto, utility_floor
        self._sampler, self._trials, self._seed = sampler, trials, seed
        self._first = min(FIRST_POINTS, max(1, trials // 2))
        self._study = self._new_study()
        self._distributions = build_distributions(space)
        # QMC has nothing to wait for: its first points are all of its points. Where there are trials for them, all
        # published ones run.
        warm = min(len(space.warm_starts), trials)
        self._points = first_points(space, {RANDOM: 0, QMC: trials}.get(sampler, max(self._first, warm)), seed)
        self._asked = 0
        self._open: dict[str, optuna.trial.Trial] = {}
        self._known = 0

    def _new_study(self) -> optuna.Study:
        return optuna.create_study(directions=["maximize"] * (2 if self._pareto else 1))

    def ask(self, trial_id: str, values: Mapping[str, float] | None = None) -> dict[str, Any]:
        """The next settings, and with a published point what it alone sets besides. values: those that were suggested
        for this trial before, by a search that now goes on.

        They follow from the seed, the trial's place and what was told so far, and from nothing else: a search that
        goes on proposes what it would have proposed without the break.
        """
        known = self._points[self._asked] if self._asked < len(self._points) else None
        if values is not None:
            known = {name: values[name] for name in self._distributions}
        kind = self._sampler
        if known is not None:
            self._study.enqueue_trial({name: known[name] for name in self._distributions})
            kind = RANDOM  # nothing is left to be sampled, and Optuna's NSGA-II breeds from its own proposals alone
        seed = int(np.random.SeedSequence([self._seed, self._asked]).generate_state(1)[0])
        self._study.sampler = _build_sampler(kind, self._trials, self._first, seed, self._distributions)
        self._asked += 1
        trial = self._study.ask(self._distributions)
        self._open[trial_id] = trial
        return {**(known or {}), **trial.params}

    def tell(self, trial_id: str, row: Mapping[str, Any]) -> None:
        """How a trial ended: its row of results (status; of a completed one objective, forget and utility)."""
        trial = self._open.pop(trial_id)
        if row["status"] == COMPLETED:
            if self._pareto:
                trial.set_constraint("utility", self._floor - row["utility"])
            self._study.tell(trial, [row["forget"], row["utility"]] if self._pareto else [row["objective"]])
        elif row["status"] != PRUNED:
            self._study.tell(trial, state=TrialState.FAIL)
        elif self._sampler != GP:
            if self._pareto:
                # More than a completed trial's utility can ever be under the floor, and less the further it came.
                trial.set_constraint("pruned", 2.0 - row["epochs_run"] / row["epochs"])
            else:
                trial.report(row["objective"], row["epochs_run"])
            self._study.tell(trial, state=TrialState.PRUNED)
        self._known += 1
        if self._known == LOOKS_BACK.get(self._sampler):
            self._begin_again()

    def _begin_again(self) -> None:
        """A study of the best and the newest trials that ended, and of those that are open."""
        ended = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        completed = [trial for trial in ended if trial.state == TrialState.COMPLETE]
        feasible = [trial for trial in completed if all(value <= 0 for value in trial.constraints.values())]
        leading, keep = feasible or completed, LOOKS_BACK[self._sampler] // 2
        first = best(np.array([trial.values for trial in leading]), keep // 5) if leading else []
        kept = {leading[i].number for i in first}
        others = [trial.number for trial in ended if trial.number not in kept]
        kept |= set(others[len(kept) - keep :])
        self._study = self._new_study()
        self._study.add_trials([trial for trial in ended if trial.number in kept])
        for trial_id, trial in self._open.items():
            self._study.enqueue_trial(trial.params)
            self._open[trial_id] = self._study.ask(self._distributions)
        self._known = len(kept)


def _build_sampler(
    name: str, trials: int, first: int, seed: int, distributions: Distributions
) -> optuna.samplers.BaseSampler:
    sampler: optuna.samplers.BaseSampler
    if name == TPE:
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=first, constant_liar=True)
    elif name == GP:
        import torch

        torch.set_num_threads(1)  # its matrices are tiny: more threads wait for each other and for the workers
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=GP_STARTS_AT, warn_independent_sampling=False)
    elif name == NSGA2:
        population = min(LARGEST_POPULATION, max(SMALLEST_POPULATION, trials // GENERATIONS))
        sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=population)
    else:
        return optuna.samplers.RandomSampler(seed=seed)
    searched = {name: each for name, each in distributions.items() if not each.single()}
    sampler.infer_relative_search_space = lambda study, trial: searched  # type: ignore[method-assign]
    return sampler


def first_points(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    """Published settings (see `warm_points`), then scrambled Sobol points."""
    from scipy.stats import qmc  # a second of every process's start

    ranges = _ordered(space)
    points = warm_points(space)[:count]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the number of points need not be a power of 2
        shares = qmc.Sobol(len(ranges), seed=seed).random(count - len(points)) if count > len(points) else []
    points += [
        {name: range_.at(float(s)) for (name, range_), s in zip(ranges.items(), row, strict=True)} for row in shares
    ]
    return points


def _ordered(space: Space) -> dict[str, Range]:
    """By name: a search that goes on has read its space from a file, and must draw in the same order."""
    return dict(sorted(space.ranges.items()))


def importances(rows: Sequence[Mapping[str, Any]], space: Space) -> dict[str, float]:
    """How much of the variance of the objective's ranks each searched parameter explains, largest first; sums to 1.

    fANOVA (Hutter et al., ICML 2014) on one method's completed trials; ranks, so that a few trials that collapsed do
    not take it all. Empty where there are fewer than FEWEST_FOR_IMPORTANCES, or where all of them scored the same.
    """
    completed = _spread([row for row in rows if row["status"] == COMPLETED], MOST_FOR_IMPORTANCES)
    if len(completed) < FEWEST_FOR_IMPORTANCES or len({row["objective"] for row in completed}) == 1:
        return {}
    return _shares(completed, [row["objective"] for row in completed], space, TREES)


def largest_share_of_chance(rows: Sequence[Mapping[str, Any]], space: Space) -> float | None:
    """What the largest of the shares stays under in 95 of 100 cases where no parameter matters: the same on objectives
    that were shuffled over the trials, always in the same way. None where there are no importances."""
    completed = _spread([row for row in rows if row["status"] == COMPLETED], MOST_FOR_SHUFFLES)
    if len(completed) < FEWEST_FOR_IMPORTANCES or len({row["objective"] for row in completed}) == 1:
        return None
    draw, objectives = np.random.default_rng(0), [row["objective"] for row in completed]
    largest = [
        max(_shares(completed, draw.permutation(objectives).tolist(), space, TREES_FOR_SHUFFLES).values())
        for _ in range(SHUFFLES)
    ]
    return float(np.quantile(largest, 0.95))


def _spread(rows: list[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """At most so many, from all over the search."""
    if len(rows) <= most:
        return rows
    return [rows[i] for i in np.linspace(0, len(rows) - 1, most).round().astype(int)]


def _shares(
    rows: Sequence[Mapping[str, Any]], objectives: Sequence[float], space: Space, trees: int
) -> dict[str, float]:
    from scipy.stats import rankdata  # a second of every process's start

    quieten()
    study = optuna.create_study(direction="maximize")
    distributions = build_distributions(space)
    kinds = {name: int if range_.integer else float for name, range_ in space.ranges.items()}
    for row, rank in zip(rows, rankdata(objectives), strict=True):
        values = {name: kind(row[name]) for name, kind in kinds.items()}
        study.add_trial(optuna.trial.create_trial(params=values, distributions=distributions, value=float(rank)))
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=trees, seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def quieten() -> None:
    """Optuna tells of every trial, and warns that its constraints and metric names are new."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def build_distributions(space: Space) -> Distributions:
    return {name: _distribution(range_) for name, range_ in _ordered(space).items()}


def _distribution(range_: Any) -> optuna.distributions.BaseDistribution:
    if range_.integer:
        return optuna.distributions.IntDistribution(int(range_.low), int(range_.high), log=range_.log)
    return optuna.distributions.FloatDistribution(range_.low, range_.high, log=range_.log)

"""Metrics -> forget and utility in [0, 1] -> the one number that a search optimises."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ray_unlearn.benchmarks.contract import Aim, Benchmark, Keep
from ray_unlearn.config import ATTACKS
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.metrics.truth_ratio import harmonic_mean
from ray_unlearn.wording import listing


@dataclass(frozen=True)
class Verdict:
    """forget: closeness to a model that never knew, two-sided; utility: relative to the starting model."""

    forget: float
    utility: float
    objective: float


@dataclass(frozen=True)
class Judge:
    """Turns a trial's metrics into a verdict, given the starting and (where known) the retrained model's."""

    aims: tuple[Aim, ...]
    keeps: tuple[Keep, ...]
    start: Mapping[str, float]
    retrained: Mapping[str, float] | None
    ranking: Ranking
    leaks: tuple[str, ...] = ()
    """Metrics of generated text, for the sampling attack."""
    under: tuple[str, ...] = ()
    """Attacks that the forget score must hold under."""

    @classmethod
    def build(
        cls,
        benchmark: Benchmark,
        start: Mapping[str, float],
        retrained: Mapping[str, float] | None,
        ranking: Ranking,
        under: tuple[str, ...] = (),
        left_out: Collection[str] = (),
    ) -> Judge:
        """left_out: metrics that a search goes without (starts.py). Raises RuntimeError where the benchmark leaves
        nothing to aim at."""
        answers = dict.fromkeys(benchmark.leaks.values())
        leaks = tuple(name for name in answers if f"{ATTACKS['sample']}_{name}" not in left_out)
        keeps = tuple(keep for keep in keeps_of(benchmark, ranking) if keep.metric not in left_out)
        judge = cls(benchmark.aims, keeps, start, retrained, ranking, leaks, under)
        goals = [judge.attacked_prefixes[attack] + leak for attack in under if attack == "sample" for leak in leaks]
        if "sample" in under and not (retrained and leaks and all(name in retrained for name in goals)):
            raise RuntimeError(
                f"{benchmark.name}: --under sample needs a retrained model's generated answers to aim at. Leave it out"
            )
        had = [aim for aim in benchmark.aims if aim.metric not in left_out and judge.goal(aim) is not None]
        had = [aim for aim in had if not aim.only_if_alone] or had
        if not had:
            names = ", ".join(aim.metric for aim in benchmark.aims)
            raise RuntimeError(f"{benchmark.name}: no goal can be had for {names}. Prepare a retrained model first")
        return replace(judge, aims=tuple(had))

    @property
    def attacked_prefixes(self) -> dict[str, str]:
        """By attack, what its metrics' names begin with in the goals: by older rules those of no attack."""
        return {attack: f"{ATTACKS[attack]}_" if self.ranking.is_reachable else "" for attack in self.under}

    def goal(self, aim: Aim, prefix: str = "") -> float | None:
        """The value of a model that never knew: the retrained model's, else on a hold-out, else chance, else None.

        prefix: of an attack that the retrained model has gone through as well.
        """
        if self.retrained is not None and aim.metric in self.retrained:
            goal = self.retrained[prefix + aim.metric]
            if self.ranking.is_reachable and aim.of_chance is not None:
                goal = max(goal, self.start.get(aim.of_chance, goal))
            return goal
        if aim.hold_out is not None and aim.hold_out in self.start:
            return self.start[aim.hold_out]
        return aim.never_knew

    def verdict(self, metrics: Mapping[str, float], is_last: bool = True) -> Verdict:
        """Of one evaluation point. Under attacks (which only a trial's last point has gone through) the forget
        score is the worst of all. Raises KeyError on a missing metric: a score is never made up."""
        kept = [relative(metrics[k.metric], self.start[k.metric], k.useless, k.lower_is_better) for k in self.keeps]
        attacks = self.under if is_last else ()
        forget = min([self._forget(metrics), *(self._forget_under(attack, metrics) for attack in attacks)])
        utility = harmonic_mean(kept)
        return Verdict(forget, utility, self.ranking.objective(forget, utility))

    def _forget(self, metrics: Mapping[str, float], prefix: str = "", goals: str = "") -> float:
        return harmonic_mean(
            [
                self._closeness(aim, metrics[prefix + aim.metric], goal)
                for aim in self.aims
                if (goal := self.goal(aim, goals)) is not None
            ]
        )

    def _closeness(self, aim: Aim, value: float, goal: float) -> float:
        if self.ranking.is_reachable and aim.of_chance is not None:
            value = max(value, goal)
        return two_sided(value, self.start[aim.metric], goal)

    def _forget_under(self, attack: str, metrics: Mapping[str, float]) -> float:
        """The same closeness of the attacked model to the retrained model under the same attack; of sampled answers,
        the worst of each."""
        prefix, goals = f"{ATTACKS[attack]}_", self.attacked_prefixes[attack]
        if attack != "sample":
            return self._forget(metrics, prefix, goals)
        assert self.retrained is not None
        names = [(prefix + name, self.retrained[goals + name]) for name in self.leaks]
        return harmonic_mean([two_sided(metrics[name], self.start[name], goal) for name, goal in names])


def describe_objective(benchmark: Benchmark, ranking: Ranking, under: tuple[str, ...] = ()) -> str:
    """One paragraph for people: what `Judge` and `Ranking` compute for this benchmark, utility floor and attacks."""
    return " ".join(
        filter(
            None,
            [
                _describe_forget(benchmark, ranking.is_reachable),
                _describe_under(benchmark, under, ranking.is_reachable),
                _describe_utility(benchmark, ranking),
                _describe_combined(ranking),
                f"Privacy is measured and never searched on: {listing(benchmark.privacy)}."
                if benchmark.privacy
                else "Privacy is not measured: that takes data like the forget set that no model saw.",
                benchmark.remark,
            ],
        )
    )


def _describe_forget(benchmark: Benchmark, is_reachable: bool) -> str:
    aims = [aim for aim in benchmark.aims if not aim.only_if_alone]
    mean = "the harmonic mean of how close" if len(aims) > 1 else "how close"
    sources = ["the retrained model's, where one is at hand"]
    if held_out := {aim.hold_out: aim.metric for aim in aims if aim.hold_out is not None}:
        pairs = listing([f"{own} for {metric}" for own, metric in held_out.items()])
        sources.append(f"else the starting model's on data that it never saw, where there are any ({pairs})")
    sources += [
        f"else {aim.never_knew:g} for {aim.metric}, as of a model that does not know"
        for aim in aims
        if aim.never_knew is not None
    ]
    without = [aim.metric for aim in aims if aim.hold_out is None and aim.never_knew is None]
    if without and len(without) < len(aims):
        sources.append(f"else {listing(without)} {'is' if len(without) == 1 else 'are'} left out")
    sentences = [
        f"Forget is two-sided: {mean} {listing([_noted(benchmark, aim.metric) for aim in aims])} "
        f"{'are' if len(aims) > 1 else 'is'} to that of a model that never saw the forget set, 1 at that value, 0 at "
        "the starting model's and as far beyond it on the other side, linear between.",
        f"That value is {'; '.join(sources)}.",
    ]
    sentences += [
        f"Of {aim.metric}, that is what chance gives at so many questions ({aim.of_chance}); nearer is no better."
        for aim in aims
        if aim.of_chance is not None and is_reachable
    ]
    sentences += [
        f"Where none of these can be had, it is how close {_noted(benchmark, aim.metric)} is to {aim.never_knew:g}."
        for aim in benchmark.aims
        if aim.only_if_alone
    ]
    return " ".join(sentences)


def _describe_under(benchmark: Benchmark, under: tuple[str, ...], is_reachable: bool) -> str:
    """Of the attacks that every trial goes through; empty without any."""
    parts = [f"the same of the {ATTACKS[attack]} model" for attack in under if attack != "sample"]
    if "sample" in under:
        leaks = listing(list(dict.fromkeys(benchmark.leaks.values())))
        parts.append(f"how close the worst of several sampled answers ({leaks}) is to the retrained model's")
    if not parts:
        return ""
    goals = " The retrained model, where one is at hand, has gone through the same attacks." if is_reachable else ""
    return f"A trial's forget score is the lowest of this and of {listing(parts)}.{goals}"


def keeps_of(benchmark: Benchmark, ranking: Ranking) -> tuple[Keep, ...]:
    """What utility is made of by the rule of a search."""
    return benchmark.keeps if ranking.has_parts else benchmark.keeps_before or benchmark.keeps


def _describe_utility(benchmark: Benchmark, ranking: Ranking) -> str:
    keeps = keeps_of(benchmark, ranking)
    useless = list(dict.fromkeys(f"{keep.useless:.3g}" for keep in keeps))
    at = useless[0] if len(useless) == 1 else listing([f"{k.useless:.3g} for {k.metric}" for k in keeps])
    mean, each = ("the harmonic mean of ", ", each") if len(keeps) > 1 else ("", ",")
    own = "its own value" if len(keeps) > 1 else "its value"
    optional = [keep.metric for keep in keeps if keep.can_be_left_out]
    without = f" Of {listing(optional)}, what the starting model has nothing of is left out." if optional else ""
    return (
        f"Utility is {mean}{listing([_noted(benchmark, keep.metric) for keep in keeps])}{each} relative to the "
        f"starting model: 1 at {own} or better, 0 at that of a model that knows nothing ({at}), linear between."
        f"{without}"
    )


def _describe_combined(ranking: Ranking) -> str:
    floor = ranking.floor
    constraint = f", with a utility of at least {floor:g} as a constraint for the samplers that learn" if floor else ""
    return (
        f"{ranking.describe()}; the search maximises it, and what it chooses, in the end and in every table, has the "
        f"highest one. --objective pareto searches forget and utility side by side{constraint}, and chooses by the "
        "same number. No other metric is searched on."
    )


def _noted(benchmark: Benchmark, metric: str) -> str:
    return f"{metric} ({benchmark.metrics[metric]})"


def two_sided(value: float, start: float, goal: float) -> float:
    """1 at the goal, 0 at the starting value and as far beyond the goal on the other side; 0 where start and goal are
    equal, as nothing can have been forgotten then."""
    if start == goal:
        return 0.0
    return float(np.clip(1.0 - abs(value - goal) / abs(start - goal), 0.0, 1.0))


def relative(value: float, start: float, useless: float, lower_is_better: bool = False) -> float:
    """1 at (or better than) the starting value, 0 at a useless model's, linear between; 0 where the starting model is
    useless itself, as nothing can have been kept then."""
    sign = -1.0 if lower_is_better else 1.0
    if sign * (start - useless) <= 0.0:
        return 0.0
    return float(np.clip((value - useless) / (start - useless), 0.0, 1.0))

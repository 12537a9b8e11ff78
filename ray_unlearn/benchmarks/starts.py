"""Whether a starting model can be judged: the one owner of the rule, for every benchmark and before the first trial.

What utility keeps must lie clearly above what a model that knows nothing has, and what is aimed at clearly away from
its goal: by STANDARD_ERRORS standard errors of that benchmark's own questions on the selection split, and by
LEAST_DISTANCE. Otherwise scores divide by next to nothing, and any model looks as good as any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray_unlearn.benchmarks.contract import LEAST_DISTANCE, STANDARD_ERRORS, Aim, Keep, Profile
from ray_unlearn.benchmarks.objective import Judge
from ray_unlearn.config import ATTACKS, UserError


@dataclass(frozen=True)
class Start:
    """What is known about a starting model that can be judged."""

    notes: tuple[str, ...]
    """Sentences for whoever starts the search."""
    left_out: tuple[str, ...] = ()
    """Metrics that the search goes without, see SearchConfig.left_out."""


@dataclass(frozen=True)
class Distance:
    """How far the starting model's metric lies on its good side (of a goal: on the side of models that know)."""

    value: float
    bound: float
    """The goal, or a useless model's value."""
    gap: float
    error: float
    """Standard error of `gap`; 0 where nobody knows it."""
    least: float = LEAST_DISTANCE

    @property
    def is_clear(self) -> bool:
        return self.gap > max(self.least, STANDARD_ERRORS * self.error)

    def __str__(self) -> str:
        apart = f"{self.value:.3g} -> {self.bound:.3g}"
        return f"{apart} ({self.gap / self.error:.1f} standard errors)" if self.error else apart

    def describe(self) -> str:
        """Why it is not clear."""
        if self.gap <= 0.0:
            return "not on the side of a model that knows"
        if self.gap <= self.least:
            return f"{self.gap:.2g} apart, less than {self.least:.2g}"
        return f"{self.gap / self.error:.1f} standard errors of its own questions apart, fewer than {STANDARD_ERRORS:g}"


def check_start(where: str, judge: Judge, start: Profile, retrained: Profile | None) -> Start:
    """What a search from this model can be judged by.

    where: what the user gave as benchmark, for messages; judge: built from all that the benchmark has; start and
    retrained: what the models measure on the selection split. Raises UserError where nothing can be told.
    """
    aims = {aim: distance for aim in judge.aims if (distance := _to_goal(aim, judge, start, retrained)) is not None}
    few = [aim for aim, distance in aims.items() if _has_too_few_questions(aim, distance)]
    nothing = [keep for keep in judge.keeps if keep.can_be_left_out and not _above_useless(keep, start).is_clear]
    if len(few) == len(aims):
        few = []
    if 2 * len(nothing) > len(judge.keeps):  # what is left would say little of the model
        nothing = []
    for aim, distance in aims.items():
        if aim not in few and not distance.is_clear:
            raise UserError(_nothing_to_forget(where, aim, distance, judge))
    for keep in judge.keeps:
        if keep not in nothing and not (distance := _above_useless(keep, start)).is_clear:
            raise UserError(_nothing_to_keep(where, keep, distance))
    _check_attacked(where, judge)
    unclear = _unclear_samples(where, judge)
    pairs = [f"{aim.metric} {distance}" for aim, distance in aims.items() if aim not in few]
    notes = [f"From start to goal: {', '.join(pairs)}."] if pairs else []
    notes += [
        f"{aim.metric}: so few questions are scored that no distance to the goal ({aims[aim].bound:.3g}) could be told "
        "from chance; it is not aimed at."
        for aim in few
    ]
    notes += [
        f"{keep.metric}: the starting model has {start.metrics[keep.metric]:.3g}, which cannot be told from that of a "
        f"model that knows nothing ({keep.useless:.3g}); it is left out of utility."
        for keep in nothing
    ]
    notes += [f"{why}; it is left out." for why in unclear.values()]
    return Start(tuple(notes), (*(aim.metric for aim in few), *(keep.metric for keep in nothing), *unclear))


def _to_goal(aim: Aim, judge: Judge, start: Profile, retrained: Profile | None) -> Distance | None:
    """None where the aim has no goal."""
    goal = judge.goal(aim)
    if goal is None:
        return None
    value = judge.start[aim.metric]
    errors = [start.errors.get(aim.metric, 0.0), _error_of_goal(aim, judge.retrained, start.errors, retrained)]
    return _distance(aim, value, goal, _together(errors))


def _distance(aim: Aim, value: float, goal: float, error: float = 0.0) -> Distance:
    return Distance(value, goal, goal - value if aim.rises else value - goal, error)


def _error_of_goal(
    aim: Aim, known: Mapping[str, float] | None, errors: Mapping[str, float], retrained: Profile | None
) -> float:
    """Standard error of the goal; 0 of chance level, and of a distance, whose own error has both sides in it."""
    if known is not None and aim.metric in known:
        return retrained.errors.get(aim.metric, 0.0) if retrained is not None and aim.most is None else 0.0
    return errors.get(aim.hold_out, 0.0) if aim.hold_out is not None else 0.0


def _above_useless(keep: Keep, start: Profile) -> Distance:
    value = start.metrics[keep.metric]
    gap = keep.useless - value if keep.lower_is_better else value - keep.useless
    return Distance(value, keep.useless, gap, start.errors.get(keep.metric, 0.0), keep.least)


def _together(errors: list[float]) -> float:
    return sum(error**2 for error in errors) ** 0.5


def _has_too_few_questions(aim: Aim, distance: Distance) -> bool:
    return aim.most is not None and abs(aim.most - distance.bound) <= STANDARD_ERRORS * distance.error


def _nothing_to_forget(where: str, aim: Aim, distance: Distance, judge: Judge) -> str:
    said = (
        f"{where}: the starting model's {aim.metric} is {distance.value:.3g}, and a model that never saw the forget "
        f"set is taken to have {distance.bound:.3g}: {distance.describe()}, so there is nothing to forget. "
    )
    is_known = judge.retrained is not None and aim.metric in judge.retrained
    if not is_known and aim.hold_out is not None and distance.bound == judge.start.get(aim.hold_out):
        return said + "Was the hold-out trained on, too? Give one that the model never saw, or more rows, or drop it"
    return said + "Give a --model that was trained on the forget set, or more questions on it"


def _nothing_to_keep(where: str, keep: Keep, distance: Distance) -> str:
    return (
        f"{where}: the starting model's {keep.metric} is {distance.value:.3g}, and a model that knows nothing has "
        f"{distance.bound:.3g}: {distance.describe()}, so there is nothing to keep. Give a --model that knows what is "
        "to be kept, or more questions or others that it can answer"
    )


def _check_attacked(where: str, judge: Judge) -> None:
    """What the attacked retrained model still has must lie clearly away from the starting model, too."""
    for attack, prefix in judge.attacked_prefixes.items():
        for aim in judge.aims if attack != "sample" else ():
            goal = judge.goal(aim, prefix)
            if goal is None:
                continue
            value = judge.start[aim.metric]
            if not (distance := _distance(aim, value, goal)).is_clear:
                raise UserError(
                    f"{where}: the starting model's {aim.metric} is {value:.3g}, and the retrained model's {goal:.3g} "
                    f"once it is {ATTACKS[attack]}: {distance.describe()}, so no forgetting could be told. Leave out "
                    f"--under {attack}, or attack less hard"
                )


def _unclear_samples(where: str, judge: Judge) -> dict[str, str]:
    """By sampled metric that cannot tell, why: those are judged between the starting model's worst answers and the
    retrained model's. Raises UserError where no other is left."""
    if "sample" not in judge.under or judge.retrained is None:
        return {}
    found = {}
    for leak in judge.leaks:
        name = f"{ATTACKS['sample']}_{leak}"
        value, goal = judge.start[name], judge.retrained[judge.attacked_prefixes["sample"] + leak]
        if not (distance := Distance(value, goal, value - goal, 0.0)).is_clear:
            found[name] = (
                f"the starting model's {name} is {value:.3g}, and the retrained model's answers have {goal:.3g}: "
                f"{distance.describe()}, so there is nothing to hide"
            )
    if len(found) == len(judge.leaks):
        raise UserError(f"{where}: {next(iter(found.values()))}. Leave out --under sample")
    return found

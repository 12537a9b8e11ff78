"""The one ordering of a search's candidates: what its sampler maximises is what it chooses by.

The objective is the harmonic mean of forget and utility times min(1, utility / floor) ** 12: a utility of 0.90 under a
floor of 0.95 halves it, and one question more or less near the floor costs a few per cent. Of equal objectives the
larger utility comes first, then the lower trial number, whoever ended first. Everything that says "best" goes by
`Ranking`: the sampler's value, the epoch of a trial that counts, pruning, the live table, finalists, tables, the chosen
model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_unlearn.config import CANDIDATES, FLOORED, PRUNED, REACHABLE, SCALED, UTILITY_FLOOR, SearchConfig
from ray_unlearn.metrics.truth_ratio import harmonic_mean

Row = Mapping[str, Any]
STEEPNESS = 12
"""How fast the objective falls under the floor."""


@dataclass(frozen=True)
class Ranking:
    """Orders candidates by forget and utility."""

    floor: float = UTILITY_FLOOR
    """Utility, relative to the starting model, under which the objective falls; 0: nowhere."""
    rule: str = REACHABLE
    """REACHABLE; or what searches that were made before go by. PARTS: goals as they were then, a distance of 0 and,
    under attack, the retrained model that nobody attacked. FLOORED: utility as it was then, too (a benchmark's
    `keeps_before`). SCALED: the mean times utility / floor under the floor, and chosen among the candidates at or above
    the floor, where there are any."""

    @property
    def has_parts(self) -> bool:
        """Whether each kept part is measured against its own start."""
        return self.rule not in (FLOORED, SCALED)

    @property
    def is_reachable(self) -> bool:
        """Whether goals are what a model that never knew reaches: by chance, and under the same attack."""
        return self.rule == REACHABLE

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Ranking:
        """That of a search, from the configuration in its search.json."""
        return cls(config["utility_floor"], config.get("ranking", SCALED))

    @classmethod
    def of_search(cls, config: SearchConfig) -> Ranking:
        return cls(config.utility_floor, config.ranking)

    def objective(self, forget: float, utility: float) -> float:
        """From two scores in [0, 1], a number in [0, 1]; continuous, so that a search finds its way up to the floor."""
        mean = harmonic_mean([forget, utility])
        if utility >= self.floor:
            return mean
        share = utility / self.floor
        return mean * (share if self.rule == SCALED else share**STEEPNESS)

    def key(self, row: Row) -> tuple[Any, ...]:
        """What candidates are sorted by, largest first; row: objective, utility and, where it has one, number."""
        comes_first = row["utility"] >= self.floor if self.rule == SCALED else True
        return comes_first, row["objective"], row["utility"], -row.get("number", 0), row.get("alpha", 1.0)

    def sorted(self, rows: Iterable[Row]) -> list[Any]:
        """Those that have an objective, best first."""
        return sorted((row for row in rows if row["objective"] is not None), key=self.key, reverse=True)

    def best_point(self, points: Iterable[Any]) -> Any:
        """Of a trial's evaluation points (with objective and utility), in order of time, the one that counts: of equal
        ones the earlier."""
        is_old = self.rule == SCALED
        return max(points, key=lambda p: (p.objective, 0.0 if is_old else p.utility))

    def best(self, rows: Iterable[Row]) -> Any:
        """The row to hand over; None of none. A pruned trial stands in only where none completed."""
        found = list(rows)
        able = [row for row in found if row["status"] in CANDIDATES]
        return next(iter(self.sorted(able or [row for row in found if row["status"] == PRUNED])), None)

    def best_of_methods(self, rows: Sequence[Row]) -> dict[str, Any]:
        """By method, its best row; methods without one are left out."""
        methods = dict.fromkeys(row["method"] for row in rows)
        best = {method: self.best(row for row in rows if row["method"] == method) for method in methods}
        return {method: row for method, row in best.items() if row is not None}

    def describe(self) -> str:
        """The rule in one sentence."""
        if not self.floor:
            return "The combined objective is the harmonic mean of forget and utility"
        fall = f"utility / {self.floor:g}" if self.rule == SCALED else f"(utility / {self.floor:g}) ** {STEEPNESS}"
        return (
            f"The combined objective is the harmonic mean of forget and utility, times {fall} where utility is under "
            f"the floor of {self.floor:g}"
        )

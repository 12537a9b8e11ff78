"""Which trials no other trial beats on both scores, and one plain sentence for each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_unlearn.config import CANDIDATES, INTERPOLATED, SCALED, TRIAL_SETTINGS
from ray_unlearn.metrics.fronts import pareto_front
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.records.tables import COSTS, HEAD, PLACE, SCORES, SETTINGS, SearchResults
from ray_unlearn.report.text import is_number, score, setting, trial_of_method

TIMES = tuple(name for name in COSTS if name.endswith("_seconds"))
_OWN = frozenset((*HEAD, *SETTINGS, *PLACE, *SCORES, *COSTS))

Row = dict[str, Any]


@dataclass(frozen=True)
class FrontierPoint:
    """One point in words: "Chosen" + "SimNPO, trial 12: ..."."""

    row: Row
    lead: str
    body: str

    def __str__(self) -> str:
        return f"{self.lead}: {self.body}"


def frontier(results: SearchResults) -> list[Row]:
    """The candidates that no other one dominates on (forget, utility), most forgotten first."""
    rows = scored(results)
    if not rows:
        return []
    front = pareto_front(np.array([[row["forget"], row["utility"]] for row in rows]))
    kept = [row for row, on_front in zip(rows, front, strict=True) if on_front]
    return sorted(kept, key=lambda row: (-row["forget"], row["number"]))


def describe_frontier(results: SearchResults) -> list[str]:
    """One plain sentence a frontier point: the chosen one first, then the two ends, then those between."""
    points = explain_frontier(results)
    return [str(point) for point in points] or ["No trial has completed yet, so there is no frontier."]


def scored(results: SearchResults) -> list[Row]:
    """The completed trials, and points on their lines, that have both scores."""
    return [
        r for r in results.trials if r["status"] in CANDIDATES and is_number(r["forget"]) and is_number(r["utility"])
    ]


def runs(results: SearchResults) -> list[Row]:
    """The trials that were run: points on their lines are candidates, and no trials of their own."""
    return [row for row in results.trials if row["status"] != INTERPOLATED]


def lowest_utility(results: SearchResults) -> float:
    """Where the utility axis begins: under every mark and the floor, at a tenth."""
    floor = results.meta["config"]["utility_floor"]
    return math.floor(10 * min(floor, *(y for _, y in plotted_places(results)), 0.9) + 1e-9) / 10


def plotted_places(results: SearchResults) -> list[tuple[float, float]]:
    """(forget, utility) of every trial that has both, completed or stopped early."""
    return [
        (row["forget"], row["utility"])
        for row in results.trials
        if is_number(row["forget"]) and is_number(row["utility"])
    ]


def chosen_trial(results: SearchResults) -> Row | None:
    chosen = results.meta.get("chosen")
    return next((row for row in results.trials if chosen is not None and row["trial_id"] == chosen), None)


def parameter_names(results: SearchResults) -> list[str]:
    """The methods' own parameters: whatever columns are not everybody's and not a metric."""
    return [name for name in (results.trials[0] if results.trials else {}) if name not in _OWN and "/" not in name]


def metric_names(results: SearchResults) -> list[str]:
    """The metric columns, `<benchmark>/<metric>`, that any trial has a value for."""
    names = [name for name in (results.trials[0] if results.trials else {}) if "/" in name]
    return [name for name in names if any(row.get(name) is not None for row in results.trials)]


def searched_names(results: SearchResults) -> list[str]:
    """The settings worth showing a trial: the methods' parameters and whatever differs between trials."""
    always = {"learning_rate", "retain_weight"}
    varied = [n for n in TRIAL_SETTINGS if n in always or len({row.get(n) for row in results.trials}) > 1]
    return [*parameter_names(results), *varied]


def explain_frontier(results: SearchResults) -> list[FrontierPoint]:
    front = frontier(results)
    if not front:
        return []
    chosen = chosen_trial(results)
    most_forget = max(front, key=lambda row: (row["forget"], row["utility"]))
    most_utility = max(front, key=lambda row: (row["utility"], row["forget"]))
    wanted = ([] if chosen is None else [chosen]) + [most_forget, most_utility, *front]
    order = list({row["trial_id"]: row for row in wanted}.values())
    names = searched_names(results)

    points = []
    for row in order:
        leads = [
            words
            for words, holder in (
                ("Chosen", chosen),
                ("Forgets most", most_forget),
                ("Keeps most utility", most_utility),
            )
            if row is holder
        ]
        lead = ", ".join([leads[0], *(words.lower() for words in leads[1:])]) if leads else "Between"
        points.append(FrontierPoint(row, lead, _body(results, row, chosen, front, names)))
    return points


def _body(results: SearchResults, row: Row, chosen: Row | None, front: list[Row], names: list[str]) -> str:
    ranges = results.meta.get("spaces", {}).get(row["method"], {}).get("ranges", row)
    settings = [f"{name} {setting(name, row[name])}" for name in names if name in ranges and row.get(name) is not None]
    scores = f"has forget score {score(row['forget'])} and keeps {score(row['utility'])}"
    facts = f"{trial_of_method(row)} {scores} of the starting model's utility ({', '.join(settings)})."
    return f"{facts} {_rule(results, row, chosen, front)}"


def _rule(results: SearchResults, row: Row, chosen: Row | None, front: list[Row]) -> str:
    floor = results.meta["config"]["utility_floor"]
    if row is chosen:
        return _rule_of_chosen(results, row, floor, all(row is not other for other in front))
    if row["forget"] < 0.05:
        return "Hardly anything is forgotten: it is close to the starting model."
    if chosen is None or not is_number(chosen["forget"]) or not is_number(chosen["utility"]):
        return "No completed trial is better on both."
    more_forget, more_utility = row["forget"] - chosen["forget"], row["utility"] - chosen["utility"]
    if more_forget <= 0 and more_utility <= 0:
        return "Its scores are those of the chosen trial."
    if more_forget > 0:
        gain, price = f"{_amount(more_forget)} more forgotten", f"{_amount(-more_utility)} of utility"
    else:
        gain, price = f"{_amount(more_utility)} more kept", f"{_amount(-more_forget)} of the forget score"
    worth = "forgetting" if more_forget > 0 else "utility"
    text = f"Take it if {worth} is worth more to you: {gain} than in the chosen trial, at the price of {price}"
    return f"{text}; it is under the utility floor of {floor:.3g}." if row["utility"] < floor else f"{text}."


def _rule_of_chosen(results: SearchResults, row: Row, floor: float, is_beaten: bool) -> str:
    if not is_number(row["utility"]) or not is_number(row["objective"]):
        return "It is the one that the search chose."
    ranking = Ranking.of(results.meta["config"])
    best = ranking.sorted(scored(results))[0]
    text = (
        "Take it for the best balance: the highest objective," if row is best else "The search chose it, with objective"
    )
    if row["utility"] >= floor:
        of_all = row is best and ranking.rule == SCALED
        where = "of all trials with utility at or above" if of_all else "and utility at or above"
    elif any(r["utility"] >= floor for r in scored(results)):
        where = "but its utility is under"
    else:
        where = "but no trial keeps its utility at or above"
    beaten = "; another trial is better on one score and no worse on the other" if is_beaten else ""
    return f"{text} {score(row['objective'])}, {where} the floor of {floor:.3g}{beaten}."


def _amount(difference: float) -> str:
    return "less than 0.001" if difference < 0.001 else f"{difference:.2g}"

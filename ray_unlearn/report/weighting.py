"""How the forget loss spread its gradient weight over the examples: two diagnoses of reference-model bias.

SimNPO (arXiv:2410.07163, section 4) names two limits of NPO's reference model: the power to forget is spread
unevenly over examples of different length and difficulty, and early on the gradient weights smooth nothing,
since every ratio to the reference is 1. Both are read here from each finalist's recorded weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_unlearn.records.tables import SearchResults
from ray_unlearn.report.tables import Column, Table, methods
from ray_unlearn.report.text import method_label, score
from ray_unlearn.wording import listing

BY = {
    "num_tokens": ("answer length", ("short", "medium", "long"), "tokens"),
    "start_nll": ("difficulty at the start", ("easy", "medium", "hard"), "nats a token"),
}
"""What examples are sorted into thirds by: what it is called, what its thirds are, its unit."""


@dataclass(frozen=True)
class Third:
    """A third of the examples, all epochs together. Weights are multiples of an even share."""

    name: str
    low: float
    high: float
    num_examples: int
    share: float
    """Of all weight."""
    mean: float
    quartiles: tuple[float, float]


@dataclass(frozen=True)
class Weighting:
    """One finalist's weights."""

    method: str
    epochs: list[int]
    evenness: list[float]
    """By epoch: entropy of the weights over that of even ones; 1 is even, 0 is one example alone."""
    thirds: Mapping[str, list[Third]]
    """By key of BY; none where the examples are too much alike to be sorted."""
    shares: Mapping[str, list[list[float]]]
    """By key of BY: for each epoch, each third's share of the weight."""


def weightings(results: SearchResults) -> list[Weighting]:
    """Of all finalists that have recorded weights, in the methods' order."""
    order = methods(results)
    method_of = {row["trial_id"]: row["method"] for row in (*results.trials, *results.finals)}
    found = []
    for trial_id, table in results.weights.items():
        weighting = _weighting(method_of.get(trial_id, trial_id.partition("-")[0]), table)
        found += [weighting] if weighting is not None else []
    return sorted(found, key=lambda w: order.index(w.method) if w.method in order else len(order))


def _weighting(method: str, table: Any) -> Weighting | None:
    names = ("epoch", "example", "weight", *BY)
    columns = {name: table.column(name).to_numpy(zero_copy_only=False).astype(float) for name in names}
    whole = np.all([np.isfinite(values) for values in columns.values()], axis=0)
    columns = {name: values[whole] for name, values in columns.items()}
    epochs, examples = np.unique(columns["epoch"]), np.unique(columns["example"])
    if not len(epochs) or len(examples) < 2:
        return None
    weights = np.zeros((len(epochs), len(examples)))
    traits = {name: np.zeros(len(examples)) for name in BY}
    place = np.searchsorted(examples, columns["example"])
    weights[np.searchsorted(epochs, columns["epoch"]), place] = columns["weight"]
    for name, values in traits.items():
        values[place] = columns[name]
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(weights > 0, weights * np.log(weights), 0.0).sum(axis=1)
    relative = weights.mean(axis=0) * len(examples)
    thirds, shares = {}, {}
    for name, (_, names, _) in BY.items():
        group = _thirds(traits[name])
        kept = [k for k in range(3) if (group == k).any()]
        thirds[name] = (
            [
                Third(
                    names[k],
                    float(traits[name][group == k].min()),
                    float(traits[name][group == k].max()),
                    int((group == k).sum()),
                    float(relative[group == k].sum() / len(examples)),
                    float(relative[group == k].mean()),
                    (float(np.quantile(relative[group == k], 0.25)), float(np.quantile(relative[group == k], 0.75))),
                )
                for k in kept
            ]
            if len(kept) == 3
            else []
        )
        shares[name] = [[float(row[group == k].sum()) for k in range(3)] for row in weights] if len(kept) == 3 else []
    evenness = [float(value) for value in entropy / np.log(len(examples))]
    return Weighting(method, [int(epoch) for epoch in epochs], evenness, thirds, shares)


def _thirds(values: np.ndarray) -> np.ndarray:
    """0, 1 or 2 by the two inner terciles; equal values stay together."""
    return np.searchsorted(np.quantile(values, [1 / 3, 2 / 3]), values, side="left")


def thirds_table(found: list[Weighting]) -> Table:
    columns = [
        Column("method", "method", "text"),
        Column("by", "by", "text"),
        Column("third", "third", "text"),
        Column("range", "range", "text"),
        Column("examples", "examples", "count"),
        Column("share", "share of the weight", "share"),
        Column("mean", "weight an example", "score", "", "Multiples of an even share"),
        Column("quartiles", "middle half", "text"),
    ]
    rows = [
        (
            w.method,
            [
                method_label(w.method),
                BY[name][0],
                third.name,
                f"{score(third.low) if name == 'start_nll' else f'{third.low:.0f}'} to "
                f"{score(third.high) if name == 'start_nll' else f'{third.high:.0f}'} {BY[name][2]}",
                third.num_examples,
                third.share,
                third.mean,
                f"{score(third.quartiles[0])} to {score(third.quartiles[1])}",
            ],
        )
        for w in found
        for name in BY
        for third in w.thirds[name]
    ]
    return Table(columns, [row for _, row in rows], [method for method, _ in rows])


def epochs_table(found: list[Weighting]) -> Table:
    names = [(name, k) for name in BY for k in range(3)]
    columns = [
        Column("method", "method", "text"),
        Column("epoch", "epoch", "count"),
        Column("evenness", "evenness", "score"),
        *(Column(f"{name}{k}", f"{BY[name][1][k]}, {BY[name][0]}", "share") for name, k in names),
    ]
    rows, owners = [], []
    for w in found:
        for i, epoch in enumerate(w.epochs):
            shares = [w.shares[name][i][k] if w.shares[name] else None for name, k in names]
            rows.append([method_label(w.method), epoch, w.evenness[i], *shares])
            owners.append(w.method)
    return Table(columns, rows, owners)


def allocation_words(found: list[Weighting]) -> list[str]:
    """What is seen in the thirds, one sentence a method, and which method leans most."""
    said = []
    for w in found:
        parts = []
        for name, (_, _, unit) in BY.items():
            if not w.thirds[name]:
                continue
            first, _, last = w.thirds[name]
            bound = f"up to {first.high:.0f} {unit}" if name == "num_tokens" else f"up to {score(first.high)} {unit}"
            what = "shortest answers" if name == "num_tokens" else "easiest answers"
            other = "longest" if name == "num_tokens" else "hardest"
            parts.append(
                f"{score(first.mean)} times an even share to the third with the {what} ({bound}) and "
                f"{score(last.mean)} times to the third with the {other}"
            )
        said += [f"{method_label(w.method)} gives an example {'; '.join(parts)}."] if parts else []
    for name, what in (("num_tokens", "short and long"), ("start_nll", "easy and hard")):
        leans = {w.method: _lean(w, name) for w in found if w.thirds[name]}
        if len(leans) > 1:
            most, least = max(leans, key=lambda m: leans[m]), min(leans, key=lambda m: leans[m])
            said.append(
                f"Between {what} answers the weight of an example differs most in {method_label(most)} "
                f"({score(leans[most])} times) and least in {method_label(least)} ({score(leans[least])} times)."
            )
    return said


def _lean(w: Weighting, name: str) -> float:
    """How many times the smaller weight of the first and the last third goes into the larger, at least 1."""
    small, large = sorted(third.mean for third in (w.thirds[name][0], w.thirds[name][-1]))
    return large / small if small > 0 else np.inf


def smoothing_words(found: list[Weighting]) -> list[str]:
    """How even the weights are at first and at last."""
    said = []
    for w in found:
        first, last = w.evenness[0], w.evenness[-1]
        if len(w.epochs) == 1:
            said.append(f"{method_label(w.method)}'s weights have evenness {first:.3f} in the one epoch recorded.")
            continue
        move = last - first
        turn = "they become more even" if move > 0 else "they become less even"
        course = "this hardly changes" if abs(move) < 0.005 else turn
        said.append(
            f"{method_label(w.method)}'s weights have evenness {first:.3f} in epoch {w.epochs[0]} and {last:.3f} in "
            f"epoch {w.epochs[-1]}: {course}."
        )
    if len(found) > 1:
        most = max(w.evenness[0] for w in found)
        even = [method_label(w.method) for w in found if w.evenness[0] > most - 0.0005]
        verb = "tells" if len(even) == 1 else "tell"
        said.append(f"In the first epoch {listing(even)} {verb} the examples apart least (1 is every example alike).")
    return said


def drawn(found: list[Weighting], place: Mapping[str, int]) -> dict[str, Any]:
    """The two figures as the page draws them. place: a method's number."""
    return {
        "thirds": [
            {
                "label": label,
                "names": list(names),
                "rows": [
                    {"method": place[w.method], "points": [[t.mean, *t.quartiles] for t in w.thirds[name]]}
                    for w in found
                    if w.thirds[name] and w.method in place
                ],
            }
            for name, (label, names, _) in BY.items()
            if any(w.thirds[name] for w in found)
        ],
        "evenness": [
            {"method": place[w.method], "points": [list(pair) for pair in zip(w.epochs, w.evenness, strict=True)]}
            for w in found
            if w.method in place
        ],
        "shares": [
            {
                "method": place[w.method],
                "label": label,
                "names": list(names),
                "epochs": w.epochs,
                "series": [[row[k] for row in w.shares[name]] for k in range(3)],
            }
            for w in found
            if w.method in place
            for name, (label, names, _) in BY.items()
            if w.shares[name]
        ],
    }

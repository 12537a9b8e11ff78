"""Several searches as one: methods, models or seeds that were searched apart, perhaps on other machines.

Trials can be compared where searches have the same Identity: the benchmark and its data, the rule by which trials are
ordered, and the starting model, by what it measures. Searches that have the first one's identity give one table and one
frontier; the others are named, each with what is different, and their trials are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_unlearn.config import UserError
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.records.tables import COSTS, HEAD, PLACE, SCORES, SETTINGS, SearchResults

SAME_START = 1e-3
"""By how much a starting model's metrics may differ between two machines."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Identity:
    """What two searches must share for their trials to be compared; each field as a reader would name it."""

    benchmark: tuple[Any, ...]
    data: Any
    rule: tuple[Any, ...]
    start: Mapping[str, float]

    @classmethod
    def of(cls, results: SearchResults) -> Identity:
        meta, config = results.meta, results.meta["config"]
        ranking = Ranking.of(config)
        return cls(
            benchmark=(config["benchmark"], config["scale"], config.get("split")),
            data=meta.get("data_fingerprint"),
            rule=(ranking.floor, ranking.rule, config.get("objective"), *map(str, _rule_lists(config))),
            start=dict((meta.get("start") or {}).get("metrics") or {}),
        )

    def differences(self, other: Identity) -> list[str]:
        """The names of what is not the same."""
        return [f.name for f in fields(self) if not _are_alike(getattr(self, f.name), getattr(other, f.name))]


def _rule_lists(config: Mapping[str, Any]) -> list[list[Any]]:
    return [list(config.get(name) or ()) for name in ("under", "left_out", "goals")]


def _are_alike(one: Any, other: Any) -> bool:
    if not isinstance(one, Mapping):
        return bool(one == other)
    if one.keys() != other.keys():
        return False
    return all(math.isclose(one[name], other[name], rel_tol=SAME_START, abs_tol=SAME_START) for name in one)


def put_together(found: Sequence[SearchResults], folder: Path) -> SearchResults:
    """The searches as one, whose report goes into `folder`. A trial's name begins with its search's, and trials are
    numbered through. Raises UserError where a search was given twice."""
    names = _names_of(found)
    first = Identity.of(found[0])
    differs = {name: first.differences(Identity.of(each)) for name, each in zip(names, found, strict=True)}
    taken = [(name, each) for name, each in zip(names, found, strict=True) if not differs[name]]
    trials = _whole(row for name, each in taken for row in _renamed(each.trials, name))
    trials = [{**row, "number": number} for number, row in enumerate(trials)]
    anchors = [row for row in found[0].finals if _is_anchor(row)]
    finals = [row for name, each in taken for row in _renamed((r for r in each.finals if not _is_anchor(r)), name)]
    answers = [row for row in found[0].examples if row["trial_id"] == "start"]
    for name, each in taken:
        answers += _renamed((row for row in each.examples if row["trial_id"] != "start"), name)
    told = [
        f"{name} is not compared with {names[0]}: other {' and '.join(why)}." for name, why in differs.items() if why
    ]
    chosen = Ranking.of(found[0].meta["config"]).best(trials)
    return SearchResults(
        folder,
        {**_meta(taken, folder.name, told, chosen), "put_together": [str(each.folder) for each in found]},
        trials,
        _whole(row for name, each in taken for row in _renamed(each.curves, name)),
        _whole([*anchors, *finals]),
        [f"{name}/{file}" for name, each in zip(names, found, strict=True) for file in each.damaged],
        answers,
        {f"{name}:{key}": _renamed_table(table, name) for name, each in taken for key, table in each.weights.items()},
    )


def _names_of(found: Sequence[SearchResults]) -> list[str]:
    """Each search's name; of those of one name, with a number."""
    places = [results.folder.resolve() for results in found]
    for place in places:
        if places.count(place) > 1:
            raise UserError(f"{place}: is given twice. Give each search once")
    names = [str(results.meta.get("name") or results.folder.name) for results in found]
    return [f"{name}-{names[:i].count(name) + 1}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _is_anchor(row: Row) -> bool:
    """Whether it is the starting or the retrained model's."""
    return bool(row["trial_id"] == row["method"])


def _renamed(rows: Iterable[Row], name: str) -> Iterator[Row]:
    return ({**row, "trial_id": f"{name}:{row['trial_id']}"} for row in rows)


def _renamed_table(table: pa.Table, name: str) -> pa.Table:
    place = table.schema.get_field_index("trial_id")
    return table.set_column(place, "trial_id", pc.binary_join_element_wise(name, table["trial_id"], ":"))


def _whole(rows: Iterable[Row]) -> list[Row]:
    """Rows that all have the columns of all, in the order of a search's own."""
    listed = list(rows)
    names = dict.fromkeys(name for row in listed for name in row)
    head, tail = [*HEAD, *SETTINGS], [*PLACE, *SCORES, *COSTS]
    own = [name for name in names if name not in {*head, *tail} and "/" not in name]
    order = [n for n in (*head, *own, *tail) if n in names] + [name for name in names if "/" in name]
    return [{name: row.get(name) for name in order} for row in listed]


def _meta(taken: Sequence[tuple[str, SearchResults]], name: str, told: list[str], chosen: Row | None) -> dict[str, Any]:
    """search.json's content for all of them: the first one's, with what is the sum or the union of all."""
    metas = [results.meta for _, results in taken]
    first, configs = metas[0], [meta["config"] for meta in metas]
    methods = list(dict.fromkeys(method for config in configs for method in config["methods"]))
    seeds = list(dict.fromkeys(config["seed"] for config in configs))
    spaces = {method: space for meta in reversed(metas) for method, space in (meta.get("spaces") or {}).items()}
    merged = f"{len(taken)} searches in one report: {', '.join(each for each, _ in taken)}."
    return {
        **first,
        "name": name,
        "status": "complete" if all(meta["status"] == "complete" for meta in metas) else "partial",
        "created": min(meta["created"] for meta in metas),
        "finished": None if any(not meta.get("finished") for meta in metas) else max(m["finished"] for m in metas),
        "config": {
            **configs[0],
            "name": name,
            "methods": methods,
            "trials": max(1, sum(config["trials"] * len(config["methods"]) for config in configs) // len(methods)),
            "seed": seeds[0] if len(seeds) == 1 else ", ".join(map(str, seeds)),
        },
        "spaces": spaces,
        "chosen": chosen["trial_id"] if chosen else None,
        "notes": [merged, *told, *dict.fromkeys(note for meta in metas for note in meta.get("notes") or [])],
        "not_compared": told,
        "importances": None,
        "importances_of_chance": None,
        "resumed": [],
    }

"""The finalists over several seeds, as `ray_unlearn compare` leaves them: tables, sentences, intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ray_unlearn.config import MEASURES
from ray_unlearn.records.tables import SearchResults
from ray_unlearn.report.tables import Column, Table, attack_of, metric_note, short_metric
from ray_unlearn.report.text import count, is_number, method_label, score
from ray_unlearn.report.verdicts import describe_difference
from ray_unlearn.wording import listing


def _items(results: SearchResults, name: str) -> list[Mapping[str, Any]]:
    return [item for item in (results.comparison or {}).get(name) or [] if isinstance(item, Mapping)]


def finalists(results: SearchResults) -> Table | None:
    """One row a finalist: mean ± standard deviation over the seeds."""
    rows = sorted(_items(results, "finalists"), key=_place)
    if not rows:
        return None
    metrics = [n for n in dict.fromkeys(n for row in rows for n in row.get("metrics") or {}) if attack_of(n) is None]
    volumes = (results.comparison or {}).get("hypervolume") or {}
    columns = [
        Column("method", "method", "text"),
        Column("trial_id", "trial", "text"),
        Column("n", "runs", "count"),
        *(Column(name, name, "spread") for name in MEASURES),
        Column("hypervolume", "hypervolume", "score", "", "Area that the method's finalists dominate together"),
        Column("interval", "its interval", "text"),
        *(Column(name, short_metric(name), "spread", "metric", metric_note(results, name)) for name in metrics),
    ]
    values = []
    for row in rows:
        volume = volumes.get(row.get("method")) or {}
        known = all(is_number(volume.get(name)) for name in ("low", "high"))
        values.append(
            [
                method_label(str(row.get("method"))),
                row.get("trial_id"),
                row.get("n"),
                *(row.get(name) for name in MEASURES),
                volume.get("value"),
                f"{score(volume['low'])} to {score(volume['high'])}" if known else None,
                *((row.get("metrics") or {}).get(name) for name in metrics),
            ]
        )
    table = Table(columns, values, [str(row.get("method")) for row in rows])
    return table if volumes else table.without({"hypervolume", "interval"})


def _place(row: Mapping[str, Any]) -> float:
    mean = (row.get("objective") or {}).get("mean")
    return -mean if is_number(mean) else 1.0


def differences(results: SearchResults) -> Table | None:
    columns = [
        Column("better", "of", "text"),
        Column("other", "over", "text"),
        Column("measure", "measure", "text"),
        Column("value", "difference", "score"),
        Column("low", "from", "score"),
        Column("high", "to", "score"),
        Column("p", "p", "score"),
        Column("corrected_p", "corrected p", "score"),
        Column("verdict", "verdict", "text"),
    ]
    rows = [
        [*(_named(item.get(name)) for name in ("better", "other")), *(item.get(c.key) for c in columns[2:])]
        for item in _items(results, "differences")
    ]
    table = Table(columns, rows)
    has_p = any(item.get("p") is not None for item in _items(results, "differences"))
    return None if not rows else table if has_p else table.without({"p"})


def _named(method: Any) -> str | None:
    return None if method is None else method_label(str(method))


def over_searches(results: SearchResults) -> Mapping[str, Any]:
    """What `compare --searches` found; empty where it did not run."""
    found = (results.comparison or {}).get("searches")
    return found if isinstance(found, Mapping) else {}


def searches(results: SearchResults) -> Table | None:
    """One row a method: mean ± standard deviation over whole searches."""
    rows = sorted(over_searches(results).get("methods") or (), key=_place)
    columns = [
        Column("method", "method", "text"),
        Column("n", "searches", "count"),
        *(Column(name, name, "spread") for name in MEASURES),
    ]
    values = [[method_label(str(row["method"])), row["n"], *(row[name] for name in MEASURES)] for row in rows]
    return Table(columns, values, [str(row["method"]) for row in rows]) if rows else None


def sentences(differences: Iterable[Mapping[str, Any]]) -> list[str]:
    """Of comparisons by older versions, the sentence that they kept."""
    return [
        str(item["sentence"]) if item.get("sentence") else describe_difference(item)
        for item in differences
        if item.get("sentence") or item.get("value") is not None
    ]


def setting_sentences(results: SearchResults) -> list[str]:
    """On the settings of this search."""
    return sentences(_items(results, "differences"))


def method_sentences(results: SearchResults) -> list[str]:
    """On methods, where whole searches were compared."""
    return sentences(over_searches(results).get("differences") or ())


def warnings(comparison: Mapping[str, Any] | None) -> list[str]:
    return [str(text) for text in (comparison or {}).get("warnings") or []]


def seeds_words(results: SearchResults) -> str:
    seeds = [str(seed) for seed in (results.comparison or {}).get("seeds") or []]
    return f"{count(len(seeds), 'seed')}: {listing(seeds)}" if seeds else ""


def intervals(results: SearchResults, place: Mapping[str, int]) -> list[dict[str, Any]]:
    """For each measure, every finalist's mean, standard deviation and range. place: a method's number."""
    panels = []
    named = [str(row.get("method")) for row in _items(results, "finalists")]
    for name in MEASURES:
        found = [
            {
                "method": place.get(method := str(row.get("method")), 0),
                # Only where a method has several finalists must they be told apart.
                "label": method_label(method) if named.count(method) == 1 else str(row.get("trial_id")),
                **{part: row[name].get(part) for part in ("mean", "std", "min", "max")},
            }
            for row in sorted(_items(results, "finalists"), key=_place)
            if isinstance(row.get(name), Mapping) and is_number(row[name].get("mean"))
        ]
        if found:
            panels.append({"label": name, "rows": found})
    return panels

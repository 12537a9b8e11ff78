"""The tables that the page and the Markdown share: named columns, raw values, one way to print them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ray_unlearn.config import TRIAL_SETTINGS
from ray_unlearn.report.frontier import (
    Row,
    chosen_trial,
    frontier,
    metric_names,
    scored,
    searched_names,
)
from ray_unlearn.report.text import (
    NOTHING,
    count,
    duration,
    elapsed_seconds,
    is_number,
    listing,
    method_label,
    score,
    setting,
    size,
    without_addresses,
)
from ray_unlearn.results import COMPLETED, FAILED, PRUNED, SearchResults


@dataclass(frozen=True)
class Column:
    key: str
    label: str
    kind: str
    """text, error, count, score, setting or bytes: how its values are printed."""
    group: str = ""
    """trial, score, setting, metric or cost: what its values are about."""
    note: str = ""

    @property
    def numeric(self) -> bool:
        return self.kind in {"count", "score", "bytes", "setting"}

    def text(self, value: Any) -> str:
        if value is None or value == "":
            return NOTHING
        match self.kind:
            case "score":
                return score(value)
            case "setting":
                return setting(self.key, value)
            case "bytes":
                return size(value)
            case "count":
                return f"{value:,}"
            case _:
                return str(value)


@dataclass(frozen=True)
class Table:
    columns: list[Column]
    rows: list[list[Any]] = field(default_factory=list)

    def texts(self) -> list[list[str]]:
        return [[c.text(v) for c, v in zip(self.columns, row, strict=True)] for row in self.rows]


def methods(results: SearchResults) -> list[str]:
    """The methods in the order in which they were asked for, then any other that has trials."""
    asked = list(results.meta["config"]["methods"])
    return asked + sorted({row["method"] for row in results.trials} - set(asked))


def status_counts(results: SearchResults, method: str | None = None) -> dict[str, int]:
    rows = [row for row in results.trials if method is None or row["method"] == method]
    return {status: sum(row["status"] == status for row in rows) for status in (COMPLETED, PRUNED, FAILED)}


def best_trial(results: SearchResults, method: str) -> Row | None:
    """The method's best objective at or above the utility floor, else its best of all; the earliest of equals."""
    floor = results.meta["config"]["utility_floor"]
    rows = [row for row in scored(results) if row["method"] == method and is_number(row["objective"])]
    above = [row for row in rows if row["utility"] >= floor]
    return max(above or rows, key=lambda row: (row["objective"], -row["number"]), default=None)


def comparison(results: SearchResults) -> Table:
    """One row a method, best first."""
    front = frontier(results)
    columns = [
        Column("method", "method", "text"),
        Column("objective", "objective", "score"),
        Column("forget", "forget", "score"),
        Column("utility", "utility", "score"),
        Column("number", "trial", "count"),
        Column("completed", "completed", "count"),
        Column("pruned", "stopped early", "count"),
        Column("failed", "failed", "count"),
        Column("frontier", "on the frontier", "count"),
        Column("device_seconds", "device-seconds", "score"),
    ]
    rows: list[list[Any]] = []
    for method in methods(results):
        best: Row = best_trial(results, method) or {}
        counts = status_counts(results, method)
        spent = [
            r["device_seconds"] for r in results.trials if r["method"] == method and is_number(r["device_seconds"])
        ]
        rows.append(
            [
                method_label(method),
                *(best.get(name) for name in ("objective", "forget", "utility", "number")),
                counts[COMPLETED],
                counts[PRUNED],
                counts[FAILED],
                sum(row["method"] == method for row in front),
                sum(spent) if spent else None,
            ]
        )
    rows.sort(key=lambda row: -1.0 if row[1] is None else row[1], reverse=True)
    return Table(columns, rows)


def held_out(results: SearchResults) -> Table | None:
    """Each method's best trial and the models it is compared with: when selected, and on the held-out split."""
    if not results.finals:
        return None
    metrics = [n for n in results.finals[0] if "/" in n and any(r.get(n) is not None for r in results.finals)]
    columns = [
        Column("method", "method", "text"),
        Column("number", "trial", "count"),
        Column("selection", "objective when selected", "score"),
        Column("objective", "objective held out", "score"),
        Column("forget", "forget", "score"),
        Column("utility", "utility", "score"),
        *(Column(name, short_metric(name), "score", "metric", metric_note(results, name)) for name in metrics),
    ]
    by_id = {row["trial_id"]: row for row in results.trials}
    rows: list[list[Any]] = []
    for row in sorted(results.finals, key=_held_out_place):
        selected = by_id.get(row["trial_id"]) or results.meta.get(row["trial_id"]) or {}
        names = ("objective", "forget", "utility", *metrics)
        # A run that failed has no held-out scores, whatever stands in its columns.
        scores = [None if row["status"] == FAILED else row.get(name) for name in names]
        label = _ANCHORS.get(row["trial_id"]) or method_label(row["method"])
        note = without_addresses((row["error"] or "").strip()) or None
        rows.append([label, selected.get("number"), selected.get("objective"), *scores, note])
    if not any(row[-1] for row in rows):
        return Table(columns, [row[:-1] for row in rows])
    return Table([*columns, Column("error", "error", "error")], rows)


_ANCHORS = {"start": "Starting model", "retrained": "Retrained model"}


def _held_out_place(row: Row) -> tuple[bool, bool, float]:
    """The trials, best first, then those that failed, then the models to compare with."""
    if row["trial_id"] in _ANCHORS:
        return True, False, float(list(_ANCHORS).index(row["trial_id"]))
    has_score = row["status"] != FAILED and is_number(row["objective"])
    return False, not has_score, -row["objective"] if has_score else 0.0


def all_trials(results: SearchResults) -> tuple[Table, list[Row]]:
    """Every trial, best objective first, those without one last; and the rows in the same order."""
    columns = [
        Column("number", "trial", "count", "trial"),
        Column("method", "method", "text", "trial"),
        Column("status", "status", "text", "trial"),
        Column("objective", "objective", "score", "score"),
        Column("forget", "forget", "score", "score"),
        Column("utility", "utility", "score", "score"),
        *(Column(name, name, "setting", "setting") for name in searched_names(results)),
        Column("epoch", "at epoch", "score", "setting", "Epoch of the evaluation point that counts"),
        *(Column(n, short_metric(n), "score", "metric", metric_note(results, n)) for n in metric_names(results)),
        Column("seed", "seed", "text", "cost"),
        Column("epochs_run", "epochs run", "count", "cost", "Epochs really trained"),
        Column(
            "device_seconds",
            "device-seconds",
            "score",
            "cost",
            "Seconds from suggestion to result, times workers",
        ),
        Column("peak_memory_bytes", "peak memory", "bytes", "cost"),
        Column("trial_id", "id", "text", "trial"),
        Column("error", "error", "error", "trial"),
    ]
    order = sorted(
        results.trials,
        key=lambda row: (not is_number(row["objective"]), -(row["objective"] or 0.0), row["number"]),
    )
    shown = [c for c in columns if c.key in {"status", "objective"} or any(r.get(c.key) is not None for r in order)]
    rows = []
    for row in order:
        values = {
            **row,
            "method": method_label(row["method"]),
            "error": without_addresses(row["error"] or "") or None,
        }
        rows.append([values.get(column.key) for column in shown])
    return Table(shown, rows), order


def shared_settings(results: SearchResults) -> list[str]:
    """What every trial had in common, as `name value`."""
    varied = set(searched_names(results))
    return [
        f"{name} {setting(name, results.trials[0].get(name))}"
        for name in TRIAL_SETTINGS
        if results.trials and name not in varied and results.trials[0].get(name) is not None
    ]


def short_metric(column: str) -> str:
    return column.partition("/")[2] or column


def metric_note(results: SearchResults, column: str) -> str:
    return str(results.meta.get("metrics", {}).get(short_metric(column), ""))


def headline(results: SearchResults) -> str:
    """48 trials of SimNPO, NPO and GA on wmdp, mini scale."""
    config = results.meta["config"]
    names = listing([method_label(method) for method in methods(results)])
    return f"{count(len(results.trials), 'trial')} of {names} on {config['benchmark']}, {config['scale']} scale"


def standfirst(results: SearchResults) -> str:
    """The finding in one or two sentences, with how sure one may be of it."""
    chosen = chosen_trial(results)
    if chosen is None or not all(is_number(chosen[name]) for name in ("objective", "forget", "utility")):
        return "No trial is chosen yet."
    text = (
        f"The best balance is {method_label(chosen['method'])}'s trial {chosen['number']}: forget score "
        f"{score(chosen['forget'])} with {score(chosen['utility'])} of the starting model's utility kept, "
        f"objective {score(chosen['objective'])}."
    )
    if len(methods(results)) > 1:
        text += " Each figure is one run with one seed: small differences between methods are not evidence."
    return text


def notices(results: SearchResults) -> list[tuple[str, str]]:
    """What must be known before any figure is read: (title, text)."""
    config, found = results.meta["config"], []
    if config["scale"] == "mini":
        text = (
            "Generated data and a tiny model. The figures show that the search works; they say nothing about "
            "real models, or about which method is better on them."
        )
        found.append(("Mini scale", text))
    status = results.meta["status"]
    if status == "running":
        planned = config["trials"] * len(config["methods"])
        found.append(("Still running", f"{len(results.trials):,} of {planned:,} trials were in when this was written."))
    elif status != "complete":
        found.append(("Unfinished search", "It stopped before its last trial; this is what it had by then."))
    if results.damaged:
        text = f"{count(len(results.damaged), 'file')} could not be read; what was in them is missing here"
        found.append(("Damaged files", f"{text}: {', '.join(results.damaged)}"))
    per_method = {method: sum(row["method"] == method for row in results.trials) for method in methods(results)}
    if status != "running" and len(set(per_method.values())) > 1:
        text = listing([f"{method_label(method)} {number}" for method, number in per_method.items()])
        found.append(("Unequal budgets", f"The methods had different numbers of trials: {text}."))
    return found


def tally(results: SearchResults) -> str:
    """How many trials are on the plot, and how many are not."""
    counts = status_counts(results)
    parts = [f"{counts[COMPLETED]:,} completed"]
    if counts[PRUNED]:
        parts.append(f"{counts[PRUNED]:,} stopped early (hollow, scored where they stopped)")
    parts.append(f"{counts[FAILED]:,} failed (not plotted)" if counts[FAILED] else "none failed")
    return f"{count(len(results.trials), 'trial')}: {listing(parts)}."


def run_facts(results: SearchResults) -> list[tuple[str, str]]:
    """What it takes to run the search again, as (name, value)."""
    meta, config = results.meta, results.meta["config"]
    gang = config["gang"]
    facts = [
        ("search", meta["name"]),
        ("status", meta["status"]),
        ("started", meta["created"]),
        ("finished", meta.get("finished")),
        (
            "took",
            duration(elapsed_seconds(meta["created"], meta.get("finished"))) if meta.get("finished") else None,
        ),
        ("benchmark", f"{config['benchmark']}, {config['scale']} scale"),
        ("model", config["model"]),
        ("data", config.get("data")),
        ("split", config.get("split")),
        ("objective", config["objective"]),
        ("utility floor", f"{config['utility_floor']:.3g}"),
        ("seed", config["seed"]),
        ("sampler", config.get("sampler")),
        ("pruning", {True: "on", False: "off"}.get(config.get("prune"))),
        ("trials a method", config["trials"]),
        ("trials at a time", config["concurrent"]),
        ("workers a trial", gang["num_workers"]),
        ("ZeRO stage", gang["zero_stage"]),
        ("precision", gang["precision"]),
        ("git", git_text(meta.get("git"))),
    ]
    return [(name, without_addresses(str(value))) for name, value in facts if value not in (None, "")]


def git_text(git: Any) -> str | None:
    if isinstance(git, dict):
        return ", ".join(f"{name} {value}" for name, value in git.items() if name not in {"remote", "url"})
    return None if git is None else str(git)

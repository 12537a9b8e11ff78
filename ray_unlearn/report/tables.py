"""The tables that the page and the Markdown share: named columns, raw values, one way to print them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_unlearn.config import ATTACKS, COMPLETED, FAILED, INTERPOLATED, PRUNED, TRIAL_SETTINGS
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.provenance import without_addresses
from ray_unlearn.records.tables import SearchResults
from ray_unlearn.report.frontier import (
    Row,
    chosen_trial,
    frontier,
    metric_names,
    runs,
    scored,
    searched_names,
)
from ray_unlearn.report.held_out import ANCHORS, answer_faults
from ray_unlearn.report.text import (
    NOTHING,
    count,
    elapsed_seconds,
    is_number,
    mean_and_spread,
    method_label,
    score,
    setting,
    size,
    trial_label,
    trial_of_method,
    visible,
)
from ray_unlearn.wording import duration, listing

_LONGEST_TEXT = 600
"""Characters of a prompt or an answer on the page."""


@dataclass(frozen=True)
class Column:
    key: str
    label: str
    kind: str
    """text, error, long, count, score, setting, share, bytes or spread (of {"mean", "std"}): how values are printed."""
    group: str = ""
    """trial, score, setting, metric or cost: what its values are about."""
    note: str = ""

    @property
    def numeric(self) -> bool:
        return self.kind not in {"text", "error", "long"}

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
            case "share":
                return f"{100 * value:.0f} %"
            case "spread":
                return mean_and_spread(value)
            case "long":
                return visible(str(value), _LONGEST_TEXT)
            case "count":
                return f"{value:,}"
            case _:
                return str(value)

    def rank(self, value: Any) -> float | None:
        """What a column of numbers is sorted by."""
        number = value.get("mean") if self.kind == "spread" and isinstance(value, dict) else value
        return number if self.numeric and is_number(number) else None


@dataclass(frozen=True)
class Table:
    columns: list[Column]
    rows: list[list[Any]] = field(default_factory=list)
    owners: Sequence[str | None] = ()
    """The method that each row is about, where rows are about methods."""

    def texts(self) -> list[list[str]]:
        return [[c.text(v) for c, v in zip(self.columns, row, strict=True)] for row in self.rows]

    def ranks(self) -> list[list[float | None]]:
        return [[c.rank(v) for c, v in zip(self.columns, row, strict=True)] for row in self.rows]

    def without(self, keys: set[str]) -> Table:
        kept = [i for i, column in enumerate(self.columns) if column.key not in keys]
        return Table([self.columns[i] for i in kept], [[row[i] for i in kept] for row in self.rows], self.owners)

    def select(self, places: Sequence[int]) -> Table:
        """The rows at these places."""
        owners = [self.owners[i] for i in places] if self.owners else ()
        return Table(self.columns, [self.rows[i] for i in places], owners)


def methods(results: SearchResults) -> list[str]:
    """The methods in the order in which they were asked for, then any other that has trials."""
    asked = list(results.meta["config"]["methods"])
    return asked + sorted({row["method"] for row in results.trials} - set(asked))


_STATUSES = (COMPLETED, PRUNED, FAILED, INTERPOLATED)


def status_counts(results: SearchResults, method: str | None = None) -> dict[str, int]:
    rows = [row for row in results.trials if method is None or row["method"] == method]
    return {status: sum(row["status"] == status for row in rows) for status in _STATUSES}


def best_trial(results: SearchResults, method: str) -> Row | None:
    """The method's best candidate by the search's own ranking."""
    rows = [row for row in scored(results) if row["method"] == method and is_number(row["objective"])]
    return next(iter(Ranking.of(results.meta["config"]).sorted(rows)), None)


def best_of_methods(results: SearchResults) -> Table:
    """One row a method, best first."""
    front = frontier(results)
    columns = [
        Column("method", "method", "text"),
        Column("objective", "objective", "score"),
        Column("forget", "forget", "score"),
        Column("utility", "utility", "score"),
        Column("trial", "best trial", "text"),
        Column("frontier", "on the frontier", "count"),
    ]
    ranked = [(method, best_trial(results, method) or {}) for method in methods(results)]
    order = Ranking.of(results.meta["config"]).sorted(best for _, best in ranked if best)
    ranked.sort(key=lambda pair: order.index(pair[1]) if pair[1] else len(order))
    rows = [
        [
            method_label(method),
            *(best.get(name) for name in ("objective", "forget", "utility")),
            trial_label(best) if best else None,
            sum(row["method"] == method for row in front),
        ]
        for method, best in ranked
    ]
    return Table(columns, rows, [method for method, _ in ranked])


def budget(results: SearchResults) -> Table:
    """What the search spent on each method."""
    columns = [
        Column("method", "method", "text"),
        Column("trials", "trials", "count"),
        Column("completed", "completed", "count"),
        Column("pruned", "stopped early", "count"),
        Column("failed", "failed", "count"),
        Column("epochs_run", "epochs run", "score"),
        Column("device_seconds", "device-seconds", "score", "", "Training and evaluation, times workers"),
        Column("points", "points on lines", "count", "", "Candidates on the lines to trials' models, not trials"),
    ]
    rows = []
    for method in methods(results):
        mine = [row for row in runs(results) if row["method"] == method]
        counts = status_counts(results, method)
        spent = [[r[n] for r in mine if is_number(r.get(n))] for n in ("epochs_run", "device_seconds")]
        rows.append(
            [
                method_label(method),
                len(mine),
                *(counts[status] for status in (COMPLETED, PRUNED, FAILED)),
                *(sum(values) if values else None for values in spent),
                counts[INTERPOLATED] or None,
            ]
        )
    table = Table(columns, rows, methods(results))
    return table if any(row[-1] for row in rows) else table.without({"points"})


def budget_words(results: SearchResults) -> str:
    """Whether the methods were given the same."""
    table = budget(results)
    trials, epochs, seconds = ([row[i] for row in table.rows] for i in (1, 5, 6))
    if len(table.rows) < 2:
        return f"One method: {count(sum(trials), 'trial')}."
    if len(set(trials)) == 1:
        words = f"Equal in trials: {trials[0]:,} for every method"
    else:
        words = f"Not equal in trials: between {min(trials):,} and {max(trials):,} a method"
    for noun, spent in (("epochs", epochs), ("device-seconds", seconds)):
        known = [value for value in spent if value is not None]
        if len(known) < len(spent):
            words += f"; {noun} are not known of all methods"
        elif max(known) == min(known):
            words += f"; equal in {noun} ({score(known[0])})"
        else:
            words += f"; {noun} between {score(min(known))} and {score(max(known))}"
    return f"{words}."


def held_out(results: SearchResults) -> Table | None:
    """Each method's best trial and the models it is compared with: when selected, and on the held-out split."""
    if not results.finals:
        return None
    metrics = [
        n
        for n in results.finals[0]
        if "/" in n and attack_of(n) is None and any(r.get(n) is not None for r in results.finals)
    ]
    columns = [
        Column("method", "method", "text"),
        Column("trial", "trial", "text"),
        Column("selection", "objective when selected", "score"),
        Column("objective", "objective held out", "score"),
        Column("forget", "forget", "score"),
        Column("utility", "utility", "score"),
        *(Column(name, short_metric(name), "score", "metric", metric_note(results, name)) for name in metrics),
    ]
    by_id = {row["trial_id"]: row for row in results.trials}
    rows: list[list[Any]] = []
    finals = sorted(results.finals, key=_held_out_place)
    owners = [None if row["trial_id"] in ANCHORS else row["method"] for row in finals]
    for row in finals:
        selected = by_id.get(row["trial_id"]) or results.meta.get(row["trial_id"]) or {}
        names = ("objective", "forget", "utility", *metrics)
        # A run that failed has no held-out scores, whatever stands in its columns.
        scores = [None if row["status"] == FAILED else row.get(name) for name in names]
        label = model_label(row)
        place = trial_label(selected) if "number" in selected else None
        note = without_addresses((row["error"] or "").strip()) or None
        rows.append([label, place, selected.get("objective"), *scores, note])
    table = Table([*columns, Column("error", "error", "error")], rows, owners)
    return table if any(row[-1] for row in rows) else table.without({"error"})


def model_label(row: Row) -> str:
    return ANCHORS.get(row["trial_id"]) or method_label(row["method"])


def attack_of(column: str) -> str | None:
    """The first word of a metric that was taken under attack."""
    word = short_metric(column).partition("_")[0]
    return word if word in ATTACKS.values() else None


_ATTACK_LABELS = {"relearned": "relearned", "quantised": "in 4 bits", "sampled": "worst of samples"}


def robustness(results: SearchResults) -> Table | None:
    """Metric by metric: every model's value, and what it is after each attack."""
    names = [n for n in (results.finals[0] if results.finals else {}) if attack_of(n) is not None]
    names = [n for n in names if any(row.get(n) is not None for row in results.finals)]
    if not names:
        return None
    attacks = [attack for attack in ATTACKS.values() if any(attack_of(name) == attack for name in names)]
    plain = dict.fromkeys(short_metric(name).partition("_")[2] for name in names)
    columns = [
        Column("metric", "metric", "text"),
        Column("model", "model", "text"),
        Column("plain", "as it is", "score"),
        *(Column(name, f"→ {_ATTACK_LABELS[name]}", "score", "", ATTACK_NOTES[name]) for name in attacks),
    ]
    finals = sorted(results.finals, key=lambda row: (row["trial_id"] not in ANCHORS, *_held_out_place(row)))
    rows: list[list[Any]] = []
    owners: list[str | None] = []
    for metric in plain:
        for row in finals:
            if row["status"] == FAILED:
                continue
            values = [row.get(f"{row['benchmark']}/{name}") for name in (metric, *(f"{a}_{metric}" for a in attacks))]
            rows.append([metric, model_label(row), *values])
            owners.append(None if row["trial_id"] in ANCHORS else row["method"])
    return Table(columns, rows, owners)


ATTACK_NOTES = {
    "relearned": "After fine-tuning on a part of the forget set",
    "quantised": "With the linear layers' weights rounded to 4 bits",
    "sampled": "The worst of several sampled answers",
}


def frontier_table(results: SearchResults) -> Table:
    """The frontier's points with their scores and settings, most forgotten first."""
    front = frontier(results)
    columns = [
        Column("method", "method", "text"),
        Column("trial", "trial", "text"),
        Column("objective", "objective", "score"),
        Column("forget", "forget", "score"),
        Column("utility", "utility", "score"),
        *(Column(n, n, "setting") for n in searched_names(results) if any(r.get(n) is not None for r in front)),
    ]
    rows = [
        [
            method_label(row["method"]),
            trial_label(row),
            *(row.get(c.key) for c in columns[2:]),
        ]
        for row in front
    ]
    return Table(columns, rows, [row["method"] for row in front])


def _held_out_place(row: Row) -> tuple[bool, bool, float]:
    """The trials, best first, then those that failed, then the models to compare with."""
    if row["trial_id"] in ANCHORS:
        return True, False, float(list(ANCHORS).index(row["trial_id"]))
    has_score = row["status"] != FAILED and is_number(row["objective"])
    return False, not has_score, -row["objective"] if has_score else 0.0


def all_trials(results: SearchResults) -> tuple[Table, list[Row]]:
    """Every trial, best objective first, those without one last; and the rows in the same order."""
    has_points = len(runs(results)) < len(results.trials)
    columns = [
        Column("number", "trial", "count", "trial"),
        Column("method", "method", "text", "trial"),
        Column("status", "status", "text", "trial"),
        Column("objective", "objective", "score", "score"),
        Column("forget", "forget", "score", "score"),
        Column("utility", "utility", "score", "score"),
        *(Column(name, name, "setting", "setting") for name in searched_names(results)),
        *([Column("alpha", "alpha", "setting", "setting", _ALPHA_NOTE)] if has_points else []),
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
        Column(
            "failure",
            "failure",
            "text",
            "trial",
            "Kind of failure: nan, inf, out of memory, timeout, preempted, raised, lost",
        ),
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
    return Table(shown, rows, [row["method"] for row in order]), order


_ALPHA_NOTE = "Place on the line from the starting model (0) to the trial's model (1)"


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
    return f"{count(len(runs(results)), 'trial')} of {names} on {config['benchmark']}, {config['scale']} scale"


def standfirst(results: SearchResults) -> str:
    """The finding in one or two sentences, with how sure one may be of it."""
    chosen = chosen_trial(results)
    if chosen is None or not all(is_number(chosen[name]) for name in ("objective", "forget", "utility")):
        return "No trial is chosen yet."
    text = (
        f"The best balance is {trial_of_method(chosen)}: forget score "
        f"{score(chosen['forget'])} with {score(chosen['utility'])} of the starting model's utility kept, "
        f"objective {score(chosen['objective'])}."
    )
    if len(methods(results)) > 1 and not results.comparison:
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
        found.append(("Still running", f"{len(runs(results)):,} of {planned:,} trials were in when this was written."))
    elif status != "complete":
        found.append(("Unfinished search", "It stopped before its last trial; this is what it had by then."))
    if others := results.meta.get("not_compared"):
        found.append(("Not compared", " ".join(others)))
    if results.damaged:
        text = f"{count(len(results.damaged), 'file')} could not be read; what was in them is missing here"
        found.append(("Damaged files", f"{text}: {', '.join(results.damaged)}"))
    per_method = {method: sum(row["method"] == method for row in runs(results)) for method in methods(results)}
    if status != "running" and len(set(per_method.values())) > 1:
        text = listing([f"{method_label(method)} {number}" for method, number in per_method.items()])
        found.append(("Unequal budgets", f"The methods had different numbers of trials: {text}."))
    return found + [("Broken answers", text) for _, text in answer_faults(results)]


def tally(results: SearchResults) -> str:
    """How many trials are on the plot, and how many are not."""
    counts = status_counts(results)
    parts = [f"{counts[COMPLETED]:,} completed"]
    if counts[PRUNED]:
        parts.append(f"{counts[PRUNED]:,} stopped early (hollow, scored where they stopped)")
    parts.append(f"{counts[FAILED]:,} failed (not plotted)" if counts[FAILED] else "none failed")
    text = f"{count(len(runs(results)), 'trial')}: {listing(parts)}."
    if counts[INTERPOLATED]:
        text += f" {count(counts[INTERPOLATED], 'point')} on lines to trials' models (with a dot)."
    return text


def again(results: SearchResults) -> str:
    """What else can be done with the search's folder, as one would type it."""
    if folders := results.meta.get("put_together"):
        return f"ray_unlearn report {shlex.join(f'results/{Path(folder).name}' for folder in folders)}"
    folder = shlex.quote(f"results/{results.folder.name}")
    chosen = shlex.quote(str(results.meta.get("chosen") or "best"))
    return f"ray_unlearn report {folder}\nray_unlearn compare {folder}\nray_unlearn export {folder} --trial {chosen}"


def run_facts(results: SearchResults) -> list[tuple[str, str]]:
    """What it takes to run the search again, as (name, value)."""
    meta, config = results.meta, results.meta["config"]
    gang, took = config["gang"], elapsed_seconds(meta["created"], meta.get("finished"))
    facts = [
        ("search", meta["name"]),
        ("status", meta["status"]),
        ("started", meta["created"]),
        ("finished", meta.get("finished")),
        ("took", None if took is None else duration(took)),
        ("benchmark", f"{config['benchmark']}, {config['scale']} scale"),
        ("model", config["model"]),
        ("data", config.get("data")),
        ("split", config.get("split")),
        ("objective", config["objective"]),
        ("utility floor", f"{config['utility_floor']:.3g}"),
        ("seed", config["seed"]),
        ("seeds of the comparison", ", ".join(str(seed) for seed in (results.comparison or {}).get("seeds") or [])),
        ("sampler", config.get("sampler")),
        ("pruning", {True: "on", False: "off"}.get(config.get("prune"))),
        ("trials a method", config["trials"]),
        ("trials at a time", config["concurrent"]),
        ("workers a trial", gang["num_workers"]),
        ("ZeRO stage", gang["zero_stage"]),
        ("precision", gang["precision"]),
        ("the model's own code", "was trusted and run" if gang.get("trust_remote_code") else None),
        ("git", git_text(meta.get("git"))),
    ]
    return [(name, without_addresses(str(value))) for name, value in facts if value not in (None, "")]


def git_text(git: Any) -> str | None:
    if isinstance(git, dict):
        return ", ".join(f"{name} {value}" for name, value in git.items() if name not in {"remote", "url"})
    return None if git is None else str(git)

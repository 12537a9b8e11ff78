"""The page: one file that fetches nothing, runs only its own script and shows foreign text as text."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from ray_unlearn import __version__
from ray_unlearn.config import FAILED
from ray_unlearn.records.tables import SearchResults
from ray_unlearn.report import budgets, compared, levels, parameters, weighting
from ray_unlearn.report.answers import answers
from ray_unlearn.report.frontier import Row, explain_frontier, frontier, lowest_utility, metric_names, runs
from ray_unlearn.report.marks import Mark, marks
from ray_unlearn.report.tables import (
    Table,
    again,
    all_trials,
    best_of_methods,
    best_trial,
    budget,
    budget_words,
    headline,
    held_out,
    methods,
    metric_note,
    notices,
    robustness,
    run_facts,
    shared_settings,
    short_metric,
    standfirst,
    tally,
)
from ray_unlearn.report.text import command_line, is_number, method_label, setting, trial_label

_FRONTIER_SHOWN = 5
TRIALS_SHOWN = 2000
"""Trials with a row, a line and details on the page; of more, the best, and everything on the frontier. The others
are in the plot as marks alone."""


def render_page(results: SearchResults) -> str:
    looks = marks(methods(results))
    every, order = all_trials(results)
    front = {row["trial_id"] for row in frontier(results)}
    shown = [i for i, row in enumerate(order) if i < TRIALS_SHOWN or row["trial_id"] in front]
    tables = {"trials": every.select(shown)} | _tables(results)
    style = read_part("page.css") + palette(looks)
    script = "".join(read_part(name) for name in ("drawing.js", "figures.js", "page.js"))
    points = explain_frontier(results)
    told, found = answers(results), weighting.weightings(results)
    rows = [order[i] for i in shown]
    others = set(range(len(order))) - set(shown)
    data = _data(results, looks, rows, [order[i] for i in sorted(others)])
    data["tables"] = {name: table.ranks() for name, table in tables.items()}
    return render_template(
        "page.html",
        policy=f"default-src 'none'; style-src {policy_hash(style)}; script-src {policy_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        style=Markup(style),
        script=Markup(script),
        data=Markup(_embedded(data)),
        meta=results.meta,
        config=results.meta["config"],
        headline=headline(results),
        standfirst=standfirst(results),
        notices=notices(results),
        points=points[:_FRONTIER_SHOWN],
        more_points=points[_FRONTIER_SHOWN:],
        tally=tally(results),
        methods=[
            {"label": method_label(name), "number": sum(row["method"] == name for row in runs(results))}
            for name in looks
        ],
        place={method: i for i, method in enumerate(looks)},
        tables=tables,
        marked={i for i, row in enumerate(rows) if row["trial_id"] in front},
        num_hidden=len(order) - len(shown),
        num_shown=len(shown),
        has_points=len(runs(results)) < len(results.trials),
        seeds=compared.seeds_words(results),
        sentences=compared.setting_sentences(results),
        warnings=compared.warnings(results.comparison),
        at_utility=levels.told(results),
        at_utility_about=levels.ABOUT,
        method_sentences=compared.method_sentences(results),
        method_warnings=compared.warnings(compared.over_searches(results)),
        budget_caveat=budgets.CAVEAT,
        budget_sentence=budgets.budget_sentence(results),
        intervals=bool(data["intervals"]),
        importance_words=parameters.importance_words(results),
        edges=parameters.edges(results),
        has_lines=any(part["lines"] for part in data["parallel"]),
        allocation=weighting.allocation_words(found),
        smoothing=weighting.smoothing_words(found),
        budget_words=budget_words(results),
        num_examples=told[1] if told else 0,
        examples_shown=len(told[0].rows) if told else 0,
        shared=shared_settings(results),
        metrics=[(short_metric(name), metric_note(results, name)) for name in metric_names(results)]
        or list(results.meta["metrics"].items()),
        spaces=[_space(name, results.meta["spaces"][name]) for name in looks if name in results.meta["spaces"]],
        command=command_line(results.meta["command"]),
        facts=run_facts(results),
        notes=[str(note) for note in results.meta.get("notes") or []],
        again=again(results),
        versions=sorted(results.meta["versions"].items()),
        has_curves=bool(data["curves"]),
        damaged=results.damaged,
        version=__version__,
    )


def render_template(name: str, **values: Any) -> str:
    """One of this folder's templates; whatever is not Markup is shown as text."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read_part),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**values)


def _tables(results: SearchResults) -> dict[str, Table]:
    """Every table of the page but that of the trials, by its name there; what there is nothing for is left out."""
    told = answers(results)
    found = weighting.weightings(results)
    tables = {
        "methods": best_of_methods(results),
        "budget": budget(results),
        "held-out": held_out(results),
        "robustness": robustness(results),
        "budgets": budgets.best_by_budget(results),
        "searches": compared.searches(results),
        "finalists": compared.finalists(results),
        "differences": compared.differences(results),
        **{f"at-utility-{unit}": levels.points(results, unit) for unit in levels.UNITS},
        "importance": parameters.importance(results),
        "answers": told[0] if told else None,
        "thirds": weighting.thirds_table(found) if found else None,
        "epochs": weighting.epochs_table(found) if found else None,
    }
    return {name: table for name, table in tables.items() if table is not None}


def _data(results: SearchResults, looks: dict[str, Mark], order: list[Row], others: list[Row]) -> dict[str, Any]:
    """What the script draws. order: the rows of the table of trials; others: those that are marks alone."""
    place = {method: i for i, method in enumerate(looks)}
    chosen = results.meta.get("chosen")
    position = {row["trial_id"]: i for i, row in enumerate(order)}
    points = [
        {
            "row": i,
            "method": place[row["method"]],
            "x": row["forget"],
            "y": row["utility"],
            "status": row["status"],
            "chosen": chosen is not None and row["trial_id"] == chosen,
            "name": trial_label(row),
        }
        for i, row in enumerate(order)
        if _is_plotted(row)
    ]
    best = {row["trial_id"] for method in looks if (row := best_trial(results, method)) is not None}
    progress: dict[str, list[tuple[float, float]]] = {}
    for point in results.curves:
        if is_number(point["epoch"]) and is_number(point["objective"]) and point["trial_id"] in position:
            progress.setdefault(point["trial_id"], []).append((point["epoch"], point["objective"]))
    curves = [
        {
            "row": position[i],
            "method": place[order[position[i]]["method"]],
            "best": i in best,
            "points": sorted(line),
        }
        for i, line in progress.items()
    ]
    along = [
        {
            "axes": axes,
            "lines": [
                {"row": position[i], "best": i in best, "at": line}
                for i, line in parameters.lines(results, method).items()
                if i in position
            ]
            if axes
            else [],
        }
        for method, axes in zip(looks, parameters.drawn(results), strict=True)
    ]
    return {
        "methods": [
            {"label": method_label(method), "shape": look.shape, "dash": look.dash} for method, look in looks.items()
        ],
        "points": points,
        "others": [
            [place[row["method"]], round(row["forget"], 4), round(row["utility"], 4)]
            for row in others
            if _is_plotted(row)
        ],
        "start": _place(results.meta["start"]),
        "startObjective": (results.meta["start"] or {}).get("objective"),
        "retrained": _place(results.meta.get("retrained")),
        "lowest": lowest_utility(results),
        "floor": results.meta["config"]["utility_floor"],
        "curves": curves,
        "parallel": along,
        "budgets": budgets.lines(results, place),
        "levels": levels.bands(results, place),
        "intervals": compared.intervals(results, place),
        "weighting": weighting.drawn(weighting.weightings(results), place),
    }


def _is_plotted(row: Row) -> bool:
    return row["status"] != FAILED and is_number(row["forget"]) and is_number(row["utility"])


def _place(model: dict[str, Any] | None) -> dict[str, float] | None:
    if not model or not is_number(model.get("forget")) or not is_number(model.get("utility")):
        return None
    return {"x": model["forget"], "y": model["utility"]}


def _space(method: str, space: Any) -> dict[str, Any]:
    """A resolved space -> a row a searched parameter, and whatever else it says as `name value` texts."""
    ranges: list[dict[str, str]] = []
    notes: list[str] = []
    points: list[str] = []
    for key, value in (space if isinstance(space, dict) else {}).items():
        if key.startswith("warm_start") and isinstance(value, list):
            points = [_pairs(point) for point in value]
        elif isinstance(value, dict) and value and all(isinstance(part, dict) for part in value.values()):
            ranges += [_range(name, part) for name, part in value.items()]
        elif isinstance(value, dict):
            notes += [f"{key}: {_pairs(value)}"] if value else []
        elif key != "method":
            notes.append(f"{key}: {_plain(key, value)}")
    return {"label": method_label(method), "ranges": ranges, "notes": notes, "points": points}


def _range(name: str, part: dict[str, Any]) -> dict[str, str]:
    if "low" in part and "high" in part:
        span = f"{_plain(name, part['low'])} to {_plain(name, part['high'])}"
        rest = {key: value for key, value in part.items() if key not in {"low", "high", "log"}}
        return {
            "name": name,
            "range": span,
            "scale": "logarithmic" if part.get("log") else "linear",
            "note": _pairs(rest),
        }
    rest = dict(part)
    choices = rest.pop("choices", None)
    span = _plain(name, choices) if choices is not None else ""
    return {"name": name, "range": span, "scale": "choice" if span else "", "note": _pairs(rest)}


def _pairs(values: Any) -> str:
    if not isinstance(values, dict):
        return _plain("", values)
    return ", ".join(f"{name} {_plain(name, value)}" for name, value in values.items() if value not in (None, False))


def _plain(name: str, value: Any) -> str:
    if isinstance(value, str | int | float | None):
        return setting(name, value)
    if isinstance(value, list) and not any(isinstance(part, dict | list) for part in value):
        return ", ".join(setting(name, part) for part in value)
    return json.dumps(value)


def palette(looks: dict[str, Mark]) -> str:
    return "".join(
        f".m{i} {{ --mark: light-dark({look.light}, {look.dark}); }}\n" for i, look in enumerate(looks.values())
    )


def _embedded(data: Any) -> str:
    """JSON that no HTML parser can leave: `<` never appears. Raises ValueError on a number JSON lacks."""
    text = json.dumps(_finite(data), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, float):
        return float(f"{data:.9g}") if math.isfinite(data) else None
    return data


def read_part(name: str) -> str:
    return (files("ray_unlearn.report") / name).read_text(encoding="utf-8")


def policy_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

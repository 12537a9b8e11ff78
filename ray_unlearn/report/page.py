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
from ray_unlearn.report.frontier import Row, explain_frontier, frontier, lowest_utility, metric_names
from ray_unlearn.report.marks import Mark, marks
from ray_unlearn.report.tables import (
    all_trials,
    best_trial,
    comparison,
    headline,
    held_out,
    methods,
    metric_note,
    notices,
    run_facts,
    shared_settings,
    short_metric,
    standfirst,
    tally,
)
from ray_unlearn.report.text import command_line, is_number, method_label, setting
from ray_unlearn.results import CANDIDATES, FAILED, SearchResults

_FRONTIER_SHOWN = 5


def render_page(results: SearchResults) -> str:
    looks = marks(methods(results))
    trials, order = all_trials(results)
    style = read_part("page.css") + palette(looks)
    script = read_part("page.js")
    points = explain_frontier(results)
    return render_template(
        "page.html",
        policy=f"default-src 'none'; style-src {policy_hash(style)}; script-src {policy_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        style=Markup(style),
        script=Markup(script),
        data=Markup(_embedded(_data(results, looks, order, [c.key for c in trials.columns], trials.rows))),
        meta=results.meta,
        config=results.meta["config"],
        headline=headline(results),
        standfirst=standfirst(results),
        notices=notices(results),
        points=points[:_FRONTIER_SHOWN],
        more_points=points[_FRONTIER_SHOWN:],
        tally=tally(results),
        methods=[
            {"label": method_label(name), "number": sum(row["method"] == name for row in results.trials)}
            for name in looks
        ],
        comparison=comparison(results),
        held_out=held_out(results),
        trials=trials,
        front={row["trial_id"] for row in frontier(results)},
        order=order,
        shared=shared_settings(results),
        metrics=[(short_metric(name), metric_note(results, name)) for name in metric_names(results)]
        or list(results.meta["metrics"].items()),
        spaces=[_space(name, results.meta["spaces"][name]) for name in looks if name in results.meta["spaces"]],
        command=command_line(results.meta["command"]),
        facts=run_facts(results),
        versions=sorted(results.meta["versions"].items()),
        has_curves=bool(results.curves),
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


def _data(
    results: SearchResults,
    looks: dict[str, Mark],
    order: list[Row],
    columns: list[str],
    rows: list[list[Any]],
) -> dict[str, Any]:
    """What the script draws and sorts by. Rows are in the order of the table."""
    place = {method: i for i, method in enumerate(looks)}
    chosen = results.meta.get("chosen")
    position = {row["trial_id"]: i for i, row in enumerate(order)}
    points = [
        {
            "row": i,
            "method": place[row["method"]],
            "x": row["forget"],
            "y": row["utility"],
            "completed": row["status"] in CANDIDATES,
            "chosen": chosen is not None and row["trial_id"] == chosen,
        }
        for i, row in enumerate(order)
        if row["status"] != FAILED and is_number(row["forget"]) and is_number(row["utility"])
    ]
    best = {row["trial_id"] for method in looks if (row := best_trial(results, method)) is not None}
    lines: dict[str, list[tuple[float, float]]] = {}
    for point in results.curves:
        if is_number(point["epoch"]) and is_number(point["objective"]) and point["trial_id"] in position:
            lines.setdefault(point["trial_id"], []).append((point["epoch"], point["objective"]))
    curves = [
        {
            "row": position[i],
            "method": place[order[position[i]]["method"]],
            "best": i in best,
            "points": sorted(line),
        }
        for i, line in lines.items()
    ]
    return {
        "methods": [{"label": method_label(method), "shape": look.shape} for method, look in looks.items()],
        "columns": columns,
        "rows": rows,
        "points": points,
        "start": _place(results.meta["start"]),
        "startObjective": (results.meta["start"] or {}).get("objective"),
        "retrained": _place(results.meta.get("retrained")),
        "lowest": lowest_utility(results),
        "floor": results.meta["config"]["utility_floor"],
        "curves": curves,
    }


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

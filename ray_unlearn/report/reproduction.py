"""A reproduction's folder -> page, Markdown and picture: what was claimed, what came out, and every trajectory.

Both pictures have one panel an experiment: forget divergence against retain divergence, one line a method and
forget set, thin for each seed and bold for the mean over the seeds at equal steps.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ray_unlearn import __version__
from ray_unlearn.records.tables import Reproduction, read_reproduction
from ray_unlearn.report.figure import GRID, GROUND, INK, QUIET, save_figure
from ray_unlearn.report.marks import marks
from ray_unlearn.report.page import palette, policy_hash, read_part, render_template
from ray_unlearn.report.plain import markdown_table
from ray_unlearn.report.tables import Column, Table
from ray_unlearn.report.text import command_line, count, markdown, markdown_block, method_label, score, setting
from ray_unlearn.wording import listing

_PLURALS = {"holds": "hold", "does not hold": "do not hold"}
CHAINS = ("forget1", "forget2")
DASHED = "forget2"
NOTES = (
    "Divergence is KL(truth || model) in nats a state, over held-out sequences of each chain. On forget sets higher "
    "is more forgotten and the retrained model's value is the goal; on the retain set lower is better.",
    "The starting and the retrained model are trained once. A seed is an order of the data in unlearning, so the "
    "intervals speak of that alone.",
    "As in the paper's public script, no retain loss is added. The model is GPT-2 of the paper's size; its public "
    "code has a network of its own there.",
    "Published values are read off the figure in the paper's public code, which draws one run.",
)


@dataclass(frozen=True)
class Line:
    """What one run, or the mean over the runs, draws in a panel: retain and forget divergence, [points] each."""

    method: str
    chain: str
    is_mean: bool
    retain: np.ndarray
    forget: np.ndarray


@dataclass(frozen=True)
class Panel:
    experiment: dict[str, Any]
    lines: list[Line]
    width: float
    """Right edge, retain divergence."""
    height: float
    """Upper edge, forget divergence."""

    def models(self) -> list[tuple[str, str, float, float]]:
        """(starting or retrained, chain, retain divergence, forget divergence)."""
        return [
            (kind, chain, values["retain_divergence"], values[f"{chain}_divergence"])
            for kind in ("start", "retrained")
            for values in [self.experiment[kind]]
            for chain in CHAINS
        ]


def write_reproduction(folder: Path, out: Path | None = None) -> list[Path]:
    """Write the report's files beside the data, or into `out`, and return them.

    Raises UserError where the folder is not whole.
    """
    found = read_reproduction(folder)
    panels = [build_panel(found, experiment) for experiment in found.meta["experiments"]]
    place = out or folder
    page, text = place / "report.html", place / "report.md"
    page.write_text(render_reproduction(found, panels), encoding="utf-8", newline="")
    text.write_text(reproduction_markdown(found), encoding="utf-8", newline="")
    figures = [place / "figure.png", place / "figure.svg"]
    save_figure(lambda: _compose(found, panels), figures)
    return [page, text, *figures]


def build_panel(found: Reproduction, experiment: dict[str, Any]) -> Panel:
    """The lines, and edges that show each run up to the retrained model's level, a chain that was never learnt up
    to where those that were are there."""
    runs: dict[tuple[str, int], dict[str, dict[int, float]]] = {}
    for row in found.rows:
        if row["experiment"] == experiment["name"]:
            run = runs.setdefault((row["method"], row["seed"]), {})
            run.setdefault(row["metric"], {})[row["step"]] = row["value"]
    lines: list[Line] = []
    levels = {chain: experiment["retrained"][f"{chain}_divergence"] for chain in CHAINS}
    learnt = [chain for chain in CHAINS if chain in experiment["learnt"]]
    width, height = 0.0, max(levels.values())
    for method in found.meta["methods"]:
        retains: list[np.ndarray] = []
        forgets: dict[str, list[np.ndarray]] = {chain: [] for chain in CHAINS}
        for (name, _), run in runs.items():
            if name != method:
                continue
            metrics = {m: np.array([values[step] for step in sorted(values)]) for m, values in run.items()}
            retains.append(metrics["retain_divergence"])
            for chain in CHAINS:
                forgets[chain].append(metrics[f"{chain}_divergence"])
                lines.append(Line(method, chain, False, retains[-1], forgets[chain][-1]))
            shown = 1 + max(_reach(metrics[f"{chain}_divergence"], levels[chain]) for chain in learnt)
            width = max(width, float(retains[-1][:shown].max()))
            height = max([height, *(float(forgets[c][-1][:shown].max()) for c in CHAINS if c not in learnt)])
        retain = np.mean(retains, axis=0)
        lines += [Line(method, chain, True, retain, np.mean(forgets[chain], axis=0)) for chain in CHAINS]
    return Panel(experiment, lines, 1.15 * width, 1.2 * height)


def _reach(values: np.ndarray, level: float) -> int:
    """Index of the first value at or over the level, or of the last value."""
    above = np.flatnonzero(values >= level)
    return int(above[0]) if len(above) else len(values) - 1


def ticks(edge: float) -> list[float]:
    """Four to eight round numbers from 0 up to the edge."""
    unit = 10.0 ** math.floor(math.log10(edge))
    step = next(unit * part for part in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0) if edge / (unit * part) <= 8)
    return [round(step * i, 10) for i in range(int(edge / step + 1e-9) + 1)]


# Words


def headline(found: Reproduction) -> str:
    answers = [claim["answer"] for claim in found.meta["claims"]]
    counts = {answer: answers.count(answer) for answer in answers}
    tally = listing([f"{n} {_PLURALS.get(answer, answer) if n > 1 else answer}" for answer, n in counts.items()])
    return f"{found.meta['title']}: of {count(len(answers), 'claim')}, {tally}"


def standfirst(found: Reproduction) -> str:
    meta = found.meta
    values = meta["settings"]
    return (
        f"A reproduction of {meta['source']}. Each method unlearns for {values['steps']} steps of "
        f"{values['batch_size']} sequences at a learning rate of {setting('learning_rate', values['learning_rate'])} "
        f"and a retain weight of {values['retain_weight']:g}, with {count(len(meta['seeds']), 'seed')}, measured "
        f"every {count(values['steps_a_point'], 'step').removeprefix('1 ')}."
    )


def parameters(found: Reproduction, experiment: str) -> str:
    values = found.meta["settings"]["parameters"][experiment]
    return listing([f"{method_label(m)} with beta {values[m]['beta']:g}" for m in found.meta["methods"]])


def verdict_table(found: Reproduction) -> Table:
    """One row for each number that was measured: what decides a claim first."""
    columns = [
        Column("measured", "measured", "text"),
        *(
            Column(m, method_label(m), "score", note="Mean over the seeds that got there")
            for m in found.meta["methods"]
        ),
        Column("difference", "difference", "score"),
        Column("low", "95 % from", "score"),
        Column("high", "to", "score"),
        *(Column(f"published_{m}", f"paper, {method_label(m)}", "score") for m in found.meta["methods"]),
    ]
    rows = []
    for claim in [*found.meta["claims"], *found.meta["measured_too"]]:
        got = [[v for v in claim["values"][m] if v is not None] for m in found.meta["methods"]]
        rows.append(
            [
                f"{claim['experiment']}: {claim['measured']}",
                *(float(np.mean(values)) if values else None for values in got),
                claim["difference"],
                *(claim["interval"] or (None, None)),
                *(claim["published"].get(m) for m in found.meta["methods"]),
            ]
        )
    return Table(columns, rows)


def model_table(found: Reproduction) -> Table:
    """The starting and the retrained model of both experiments."""
    metrics = list(found.meta["metrics"])
    columns = [
        Column("model", "model", "text"),
        *(Column(m, m.replace("_", " "), "score", note=found.meta["metrics"][m]) for m in metrics),
    ]
    kinds = {"start": "starting", "retrained": "retrained"}
    rows = [
        [f"{experiment['name']}: {name} model", *(experiment[kind][m] for m in metrics)]
        for experiment in found.meta["experiments"]
        for kind, name in kinds.items()
    ]
    return Table(columns, rows)


def seed_table(found: Reproduction) -> Table:
    """Every seed's number of every measure."""
    columns = [
        Column("measured", "measured", "text"),
        Column("seed", "seed", "count"),
        *(Column(m, method_label(m), "score") for m in found.meta["methods"]),
    ]
    rows = [
        [f"{claim['experiment']}: {claim['measured']}", seed, *(claim["values"][m][i] for m in found.meta["methods"])]
        for claim in [*found.meta["claims"], *found.meta["measured_too"]]
        for i, seed in enumerate(found.meta["seeds"])
    ]
    return Table(columns, rows)


def facts(found: Reproduction) -> list[tuple[str, str]]:
    meta = found.meta
    gang = meta["gang"]
    return [
        ("scale", meta["scale"]),
        ("started", meta["created"]),
        ("finished", meta["finished"]),
        ("workers", f"{gang['num_workers']} a run, ZeRO-{gang['zero_stage']}, {gang['precision']}"),
        *((experiment["name"], parameters(found, experiment["name"])) for experiment in meta["experiments"]),
    ]


def reproduction_markdown(found: Reproduction) -> str:
    meta = found.meta
    parts = [f"# {markdown(headline(found))}", markdown(standfirst(found))]
    if meta["scale"] == "mini":
        parts.append(f"> **Mini scale.** {markdown(MINI)}")
    parts += ["## Verdicts"]
    parts += [f"- **{markdown(claim['claim'])}**: {markdown(claim['sentence'])}." for claim in meta["claims"]]
    parts += ["![Forget against retain divergence along unlearning](figure.png)"]
    parts += ["## What was measured", markdown_table(verdict_table(found))]
    parts += ["## The models", markdown_table(model_table(found))]
    parts += ["## Seed by seed", markdown_table(seed_table(found))]
    parts += ["## How to read it", "\n".join(f"- {markdown(note)}" for note in NOTES)]
    parts += ["## To run it again", markdown_block(command_line(meta["command"]))]
    parts += ["\n".join(f"- {markdown(name)}: {markdown(value)}" for name, value in facts(found))]
    parts += ["Versions: " + ", ".join(f"{markdown(n)} {markdown(v)}" for n, v in sorted(meta["versions"].items()))]
    return "\n\n".join(parts) + "\n"


MINI = "Smaller models and fewer data than the paper's: it shows that the whole thing works, and decides nothing."


# The page

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 480.0, 380.0, 44.0, 40.0, 24.0
"""Of a panel's drawing on the page, and the room for its axes."""


def render_reproduction(found: Reproduction, panels: Sequence[Panel]) -> str:
    style = read_part("page.css") + palette(marks(found.meta["methods"])) + read_part("reproduction.css")
    return render_template(
        "reproduction.html",
        policy=f"default-src 'none'; style-src {policy_hash(style)}; base-uri 'none'; form-action 'none'",
        style=Markup(style),
        meta=found.meta,
        headline=headline(found),
        standfirst=standfirst(found),
        mini=MINI if found.meta["scale"] == "mini" else "",
        methods=[method_label(method) for method in found.meta["methods"]],
        panels=[_drawing(found, panel) for panel in panels],
        verdicts=verdict_table(found),
        models=model_table(found),
        seeds=seed_table(found),
        notes=NOTES,
        command=command_line(found.meta["command"]),
        facts=facts(found),
        versions=sorted(found.meta["versions"].items()),
        version=__version__,
    )


def _drawing(found: Reproduction, panel: Panel) -> dict[str, Any]:
    """A panel in the page's own units."""
    right, low = _WIDTH - 8, _HEIGHT - _BOTTOM

    def x(value: float) -> float:
        return round(_LEFT + (right - _LEFT) * value / panel.width, 1)

    def y(value: float) -> float:
        return round(low - (low - _TOP) * value / panel.height, 1)

    place = {method: i for i, method in enumerate(found.meta["methods"])}
    return {
        "name": panel.experiment["name"],
        "about": panel.experiment["about"],
        "parameters": parameters(found, panel.experiment["name"]),
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "right": right,
        "top": _TOP,
        "low": low,
        "columns": [(x(tick), f"{tick:g}") for tick in ticks(panel.width)],
        "rows": [(y(tick), f"{tick:g}") for tick in ticks(panel.height)],
        "lines": [
            {
                "mark": place[line.method],
                "dashed": line.chain == DASHED,
                "mean": line.is_mean,
                "points": " ".join(f"{x(a)},{y(b)}" for a, b in zip(line.retain, line.forget, strict=True)),
            }
            for line in sorted(panel.lines, key=lambda line: line.is_mean)
        ],
        "models": [
            {
                "x": x(retain),
                "y": y(forget),
                "retrained": kind == "retrained",
                "square": chain == DASHED,
                "title": f"{'Retrained' if kind == 'retrained' else 'Starting'} model on {chain}: forget divergence "
                f"{score(forget)}, retain divergence {score(retain)}",
            }
            for kind, chain, retain, forget in panel.models()
        ],
    }


# The picture


def _compose(found: Reproduction, panels: Sequence[Panel]) -> Figure:
    figure = Figure(figsize=(4.7 * len(panels), 4.9), dpi=72)
    FigureCanvasAgg(figure)
    looks = marks(found.meta["methods"])
    figure.text(0.012, 0.955, headline(found), fontsize=13, fontweight="bold", color=INK, va="center")
    for i, panel in enumerate(panels):
        axes = figure.add_axes((0.045 + i / len(panels), 0.13, 1 / len(panels) - 0.065, 0.61))
        axes.set_title(textwrap.fill(panel.experiment["about"], 70), loc="left", fontsize=8.5, color=INK, pad=22)
        axes.text(0, 1.035, "↑ Forget divergence, nats", transform=axes.transAxes, fontsize=8.5, color=QUIET)
        axes.set_xlabel("Retain divergence, nats (lower is better) →", loc="right", fontsize=9, color=QUIET)
        for line in panel.lines:
            axes.plot(
                line.retain,
                line.forget,
                color=looks[line.method].light,
                linewidth=2.2 if line.is_mean else 0.8,
                alpha=1.0 if line.is_mean else 0.35,
                linestyle=(0, (4, 2)) if line.chain == DASHED else "-",
                zorder=4 if line.is_mean else 3,
            )
        for kind, chain, retain, forget in panel.models():
            axes.plot(
                [retain],
                [forget],
                "s" if chain == DASHED else "o",
                markersize=7,
                color=GROUND if kind == "retrained" else INK,
                markeredgecolor=INK,
                markeredgewidth=1.4,
                zorder=6,
                clip_on=False,
            )
            if kind == "retrained":
                axes.axhline(forget, color=QUIET, linewidth=0.7, linestyle=(0, (1, 2)), zorder=2)
        axes.set_xlim(0, panel.width)
        axes.set_ylim(0, panel.height)
        axes.set_xticks(ticks(panel.width), [f"{tick:g}" for tick in ticks(panel.width)])
        axes.set_yticks(ticks(panel.height), [f"{tick:g}" for tick in ticks(panel.height)])
        axes.tick_params(length=0, colors=QUIET, labelsize=9)
        axes.grid(color=GRID, linewidth=0.7)
        for spine in axes.spines.values():
            spine.set_visible(False)
    handles = [
        *(Line2D([], [], color=look.light, linewidth=2.2, label=method_label(m)) for m, look in looks.items()),
        Line2D([], [], color=INK, linewidth=1.4, label="forget1"),
        Line2D([], [], color=INK, linewidth=1.4, linestyle=(0, (4, 2)), label="forget2"),
        *(
            Line2D([], [], marker=shape, linewidth=0, color=face, markeredgecolor=INK, markeredgewidth=1.4, label=name)
            for shape, face, name in (
                ("o", INK, "starting model"),
                ("o", GROUND, "retrained, forget1"),
                ("s", GROUND, "retrained, forget2"),
            )
        ),
    ]
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.004, 0.925), ncols=7, frameon=False, fontsize=9)
    if found.meta["scale"] == "mini":
        figure.text(0.012, 0.015, f"Mini scale. {MINI}", fontsize=8, color=INK, fontweight="bold")
    return figure

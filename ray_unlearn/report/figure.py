"""The Pareto picture for papers and pages, by Matplotlib without a display and without global state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.lines import Line2D

from ray_unlearn.config import INTERPOLATED, PRUNED
from ray_unlearn.records.tables import SearchResults
from ray_unlearn.report.frontier import chosen_trial, frontier, lowest_utility, plotted_places, runs, scored
from ray_unlearn.report.marks import Mark, marks
from ray_unlearn.report.tables import headline, methods, tally
from ray_unlearn.report.text import is_number, method_label, trial_of_method

_FONTS = ("Inter", "Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans")
INK, QUIET, GRID, GROUND = "#1c2127", "#5d6673", "#e4e7eb", "#ffffff"
_WIDTH_INCHES, _HEIGHT_INCHES, _DPI = 7.4, 5.0, 220

_SHAPE_SIZES = {"o": 1.0, "D": 0.9, "^": 1.1, "s": 0.95, "v": 1.1, "P": 1.15, "*": 1.45, "X": 1.1}


NO_DATE: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def draw_figure(results: SearchResults, files: Sequence[Path], for_paper: bool = False) -> None:
    """Writes the same picture into each of `files`; the ending says the format. for_paper: without headline and tally,
    which a caption says."""
    save_figure(lambda: _compose(results, for_paper), files)


def save_figure(compose: Callable[[], Figure], files: Sequence[Path]) -> None:
    """Draw once, in the reports' type and with no date, and write into each of `files`; text stays text."""
    have = {font.name for font in fontManager.ttflist}
    settings: Any = {
        "font.family": [name for name in _FONTS if name in have] or ["sans-serif"],
        "font.size": 9.5,
        "svg.fonttype": "none",
        "pdf.fonttype": 42,
        "svg.hashsalt": "ray_unlearn",
        "text.parse_math": False,  # names come from outside: a dollar sign is a dollar sign
    }
    with matplotlib.rc_context(settings):
        figure = compose()
        for file in files:
            figure.savefig(file, dpi=_DPI, metadata=NO_DATE[file.suffix], facecolor=GROUND)


def _compose(results: SearchResults, for_paper: bool) -> Figure:
    config = results.meta["config"]
    figure = Figure(figsize=(_WIDTH_INCHES, _HEIGHT_INCHES), dpi=72)  # so that a pixel is a point while composing
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.062, 0.15, 0.914, 0.7) if for_paper else (0.062, 0.195, 0.914, 0.6))
    looks = marks(methods(results))

    if not for_paper:
        figure.text(0.02, 0.955, headline(results), fontsize=13, fontweight="bold", color=INK, va="center")
    _draw_legend(canvas, results, looks, 0.955 if for_paper else 0.893)
    axes.set_title("↑ Utility kept (1 = as the starting model)", loc="left", fontsize=9.5, color=QUIET, pad=8)
    axes.set_xlabel("Forget score (1 = as a model that never knew) →", loc="right", fontsize=9.5, color=QUIET)
    _dress(axes, lowest_utility(results))

    labels = _draw_references(axes, results)
    _draw_trials(axes, results, looks)
    labels += _draw_front(axes, results)
    _place_labels(canvas, axes, labels, plotted_places(results))

    if not for_paper:
        words = tally(results)
        figure.text(0.02, 0.018, words, fontsize=min(8, 1000 / len(words)), color=QUIET, va="bottom")
    if config["scale"] == "mini":
        warning = "Mini scale: generated data and a tiny model. No evidence about real models."
        figure.text(
            0.02, 0.02 if for_paper else 0.055, warning, fontsize=8.5, color=INK, fontweight="bold", va="bottom"
        )
    return figure


def _dress(axes: Axes, lowest: float) -> None:
    axes.set_xlim(*FORGET_LIMITS)
    axes.set_ylim(*utility_limits(lowest))
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    axes.set_xticks(ticks, [f"{tick:.1f}" for tick in ticks])
    step = 0.2 if lowest < 0.35 else 0.1 if lowest < 0.75 else 0.05
    heights = [1 - step * i for i in range(int((1 - lowest) / step + 1e-9) + 1)]
    axes.set_yticks(heights, [f"{tick:.{2 if step < 0.1 else 1}f}" for tick in heights])
    axes.tick_params(length=0, colors=QUIET, labelsize=9)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_legend(canvas: FigureCanvasAgg, results: SearchResults, looks: dict[str, Mark], y: float) -> None:
    """The methods in one line, each beside its mark."""
    figure, x = canvas.figure, 0.027
    for method, look in looks.items():
        number = sum(row["method"] == method for row in runs(results))
        side = 6.5 * _SHAPE_SIZES[look.marker]
        mark = Line2D([x], [y], marker=look.marker, markersize=side, color=look.light, linewidth=0)
        mark.set_transform(figure.transFigure)
        figure.add_artist(mark)
        words = figure.text(
            x + 0.014,
            y,
            f"{method_label(method)}  {number}",
            color=look.light,
            fontweight="bold",
            va="center",
        )
        x += 0.014 + words.get_window_extent(canvas.get_renderer()).width / (72 * _WIDTH_INCHES) + 0.032
        if x > 0.9:
            x, y = 0.027, y - 0.035


FORGET_LIMITS = (-0.03, 1.04)

Label = tuple[float, float, str, str, str]
"""x, y, text, colour, weight."""


def _draw_references(axes: Axes, results: SearchResults) -> list[Label]:
    floor = results.meta["config"]["utility_floor"]
    axes.axhspan(-1, floor, color="#f5f6f8", zorder=0, linewidth=0)
    axes.axhline(floor, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        f"utility floor {floor:.3g}",
        (FORGET_LIMITS[0], floor),
        xytext=(5, -4),
        textcoords="offset points",
        fontsize=8.5,
        color=QUIET,
        va="top",
    )
    labels: list[Label] = []
    for key, name in (("start", "Starting model"), ("retrained", "Retrained model")):
        model = results.meta.get(key)
        if model and is_number(model.get("forget")) and is_number(model.get("utility")):
            x, y = model["forget"], model["utility"]
            axes.plot(
                [x],
                [y],
                "o",
                markersize=9,
                color=GROUND,
                markeredgecolor=INK,
                markeredgewidth=1.4,
                zorder=6,
            )
            face = INK if key == "start" else GROUND
            axes.plot([x], [y], "o", markersize=4, color=face, markeredgecolor=INK, markeredgewidth=1.1, zorder=6)
            labels.append((x, y, name, INK, "normal"))
    return labels


def _draw_trials(axes: Axes, results: SearchResults, looks: dict[str, Mark]) -> None:
    front = {row["trial_id"] for row in frontier(results)}
    for method, look in looks.items():
        side = _SHAPE_SIZES[look.marker]
        mine = [row for row in scored(results) if row["method"] == method]
        pruned = [
            row
            for row in results.trials
            if row["method"] == method
            and row["status"] == PRUNED
            and is_number(row["forget"])
            and is_number(row["utility"])
        ]
        dominated = [row for row in mine if row["trial_id"] not in front and row["status"] != INTERPOLATED]
        best = [row for row in mine if row["trial_id"] in front and row["status"] != INTERPOLATED]
        points = [row for row in mine if row["status"] == INTERPOLATED]
        for rows, size, fill, edge, alpha, height in (
            (pruned, 4.5, "none", look.light, 0.6, 3),
            (dominated, 6.5, look.light, GROUND, 0.5, 3),
            (best, 8.5, look.light, GROUND, 1.0, 5),
            (points, 5.5, GROUND, look.light, 1.0, 5),
            (points, 1.6, look.light, look.light, 1.0, 5),
        ):
            axes.plot(
                [row["forget"] for row in rows],
                [row["utility"] for row in rows],
                look.marker,
                markersize=size * side,
                color=fill,
                markeredgecolor=edge,
                markeredgewidth=0.8,
                alpha=alpha,
                zorder=height,
                clip_on=False,
            )


def _draw_front(axes: Axes, results: SearchResults) -> list[Label]:
    """The staircase under which every trial lies: no model is promised between two points."""
    corner = (axes.get_xlim()[0], axes.get_ylim()[0])
    xs, ys = staircase([(row["forget"], row["utility"]) for row in frontier(results)], corner)
    if xs:
        axes.plot(xs, ys, color=INK, linewidth=1.1, alpha=0.75, zorder=2, solid_joinstyle="miter")
    chosen = chosen_trial(results)
    if chosen is None or not is_number(chosen["forget"]) or not is_number(chosen["utility"]):
        return []
    axes.plot(
        [chosen["forget"]],
        [chosen["utility"]],
        "o",
        markersize=17,
        color="none",
        markeredgecolor=INK,
        markeredgewidth=1.6,
        zorder=7,
        clip_on=False,
    )
    text = f"Chosen: {trial_of_method(chosen)}"
    return [(chosen["forget"], chosen["utility"], text, INK, "bold")]


def staircase(points: Sequence[tuple[float, float]], corner: tuple[float, float]) -> tuple[list[float], list[float]]:
    """Frontier points -> the corners of their staircase, from the left edge down to the lower one."""
    xs: list[float] = []
    ys: list[float] = []
    for x, y in sorted(set(points)):
        xs += [xs[-1] if xs else corner[0], x]
        ys += [y, y]
    return ([*xs, xs[-1]], [*ys, corner[1]]) if xs else ([], [])


def utility_limits(lowest: float) -> tuple[float, float]:
    """A little room on both sides, as much as the range asks for."""
    return lowest - 0.03 * (1.03 - lowest), 1 + 0.15 * (1.03 - lowest)


def _place_labels(canvas: FigureCanvasAgg, axes: Axes, labels: list[Label], points: list[tuple[float, float]]) -> None:
    """Each label beside its point, on the side where it covers the fewest marks and no other label."""
    transform, bounds = axes.transData, axes.get_window_extent()
    anchors: list[tuple[float, ...]] = [tuple(transform.transform((x, y))) for x, y, *_ in labels]
    marks_at = transform.transform(np.array(points).reshape(-1, 2))
    boxes: list[tuple[float, float, float, float]] = []
    for x, y, text, colour, weight in sorted(labels, key=lambda label: label[4]):
        px, py = tuple(transform.transform((x, y)))
        probe = axes.text(0, 0, text, fontsize=9.5, fontweight=weight)
        extent = probe.get_window_extent(canvas.get_renderer())
        probe.remove()
        width, height, gap = extent.width, extent.height, 12
        best = None
        for step in (1, 1.6, 2.4, 3.5, 5):
            for dx, dy in (
                (1, 0),
                (-1, 0),
                (0, 1),
                (0, -1),
                (0.8, -0.8),
                (-0.8, -0.8),
                (0.8, 0.8),
                (-0.8, 0.8),
            ):
                cx = px + dx * (gap * step + width / 2 if dx else 0)
                cy = py + dy * (gap * step + height / 2)
                box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
                inside = (marks_at > np.subtract(box[:2], 5)) & (marks_at < np.add(box[2:], 5))
                covered = int(inside.all(axis=1).sum())
                covered += 50 * sum(_near(box, other, 11) for other in anchors if other != (px, py))
                outside = box[0] < bounds.x0 or box[2] > bounds.x1 or box[1] < bounds.y0 or box[3] > bounds.y1 + 4
                clash = any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes)
                cost = covered + 1000 * outside + 1000 * clash + step
                if best is None or cost < best[0]:
                    best = (cost, box, cx, cy, step)
        assert best is not None
        _, box, cx, cy, step = best
        boxes.append(box)
        axes.annotate(
            text,
            (px, py),
            xytext=(cx, cy),
            xycoords="figure points",
            textcoords="figure points",
            ha="center",
            va="center",
            fontsize=9.5,
            fontweight=weight,
            color=colour,
            zorder=8,
            bbox={"boxstyle": "square,pad=0.12", "facecolor": GROUND, "edgecolor": "none", "alpha": 0.8},
            arrowprops=(
                {"arrowstyle": "-", "color": QUIET, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 7}
                if step > 1.6
                else None
            ),
        )


def _near(box: tuple[float, float, float, float], point: Sequence[float], room: float) -> bool:
    return box[0] - room < point[0] < box[2] + room and box[1] - room < point[1] < box[3] + room

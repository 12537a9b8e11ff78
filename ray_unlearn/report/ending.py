"""The end of a search on a terminal: one line a candidate, what other floors would choose, what to type next."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray_unlearn.config import COMPLETED, RECOMMENDED_UNITS
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.records.tables import SearchResults
from ray_unlearn.report.frontier import explain_frontier, scored
from ray_unlearn.report.text import NOTHING, score, trial_label
from ray_unlearn.wording import aligned, counted, listing

Row = dict[str, Any]
MOST_LINES = 8
"""Candidates that are shown; the report has all."""
FLOORS = (0.99, 0.95, 0.90, 0.80)


HEAD = ("trial", "forget", "utility", "held out", "")


def describe_candidates(results: SearchResults) -> list[str]:
    """A table of `find_candidates`, a line a row. Nothing where no trial has completed."""
    cells, left = find_candidates(results)
    if not cells:
        return []
    lines = aligned([HEAD, *cells], numbers=range(1, len(HEAD) - 1)).split("\n")
    return lines + [f"{counted(left, 'more candidate')}: see the report"] * (left > 0)


def find_candidates(results: SearchResults) -> tuple[list[list[str]], int]:
    """(under HEAD the chosen trial, the rest of the frontier, then the other methods' best; with held-out scores where
    they were run; how many are left out)."""
    points = explain_frontier(results)
    notes = {point.row["trial_id"]: point.lead.lower() for point in points}
    rows = {point.row["trial_id"]: point.row for point in points}
    ranking = Ranking.of(results.meta["config"])
    for row in ranking.best_of_methods(scored(results)).values():
        if row["trial_id"] not in rows:
            rows[row["trial_id"]], notes[row["trial_id"]] = row, "the best of its method"
    held_out = {row["trial_id"]: row for row in results.finals if row["status"] == COMPLETED}
    cells = [
        [
            trial_label(row),
            score(row["forget"]),
            score(row["utility"]),
            _pair(held_out.get(name)),
            notes[name] + (", under the floor" if row["utility"] < ranking.floor else ""),
        ]
        for name, row in _shown(rows).items()
    ]
    return cells, len(rows) - len(cells)


def _shown(rows: dict[str, Row]) -> dict[str, Row]:
    """The first, which is chosen, the two ends that follow it, and of the others as many as there is room for."""
    return dict(list(rows.items())[:MOST_LINES])


def _pair(row: Row | None) -> str:
    return NOTHING if row is None else f"{score(row['forget'])} / {score(row['utility'])}"


def describe_floors(results: SearchResults) -> str:
    """What the same rule would choose at other floors, in one sentence; empty where nothing has completed."""
    config = results.meta["config"]
    chosen: dict[str, list[float]] = {}
    rows = scored(results)
    for floor in FLOORS:
        ranking = replace(Ranking.of(config), floor=floor)
        again = [{**row, "objective": ranking.objective(row["forget"], row["utility"])} for row in rows]
        if best := ranking.best(again):
            chosen.setdefault(trial_label(best), []).append(floor)
    parts = [f"{listing([f'{floor:.2f}' for floor in floors])}, {name}" for name, floors in chosen.items()]
    if not parts:
        return ""
    if len(chosen) == 1:
        return (
            f"At any utility floor from {min(FLOORS):.2f} to {max(FLOORS):.2f}, {next(iter(chosen))} would be chosen."
        )
    return f"At a utility floor of {parts[0]} would be chosen{''.join(f'; of {part}' for part in parts[1:])}."


def describe_next(folder: Path, results: SearchResults) -> list[str]:
    """Commands that go on from a complete search."""
    if not scored(results):
        return []
    place = shlex.quote(str(folder))
    commands = [f"ray_unlearn compare {place} --seeds {RECOMMENDED_UNITS}", f"ray_unlearn export {place}"]
    if (folder / "model").is_dir():
        commands.append(f"ray_unlearn chat {place}")
    return [f"{'Next:' if i == 0 else '':<9}{command}" for i, command in enumerate(commands)]

"""What the finalists did on examples that the search never selected on: the chosen one's scores, and how all answer."""

from __future__ import annotations

from typing import Any

from ray_unlearn.benchmarks.generated import REPEATING, UNENDED
from ray_unlearn.config import COMPLETED
from ray_unlearn.records.tables import SearchResults
from ray_unlearn.report.text import is_number, method_label, score

WORSE = 0.1
"""By how much the share of answers that do not end, or repeat themselves, must rise over the start's to be said."""
ANCHORS = {"start": "Starting model", "retrained": "Retrained model"}
"""What finalists are compared with, by trial_id."""
FAULTS = {UNENDED: "do not end", REPEATING: "repeat themselves"}


def describe_held_out(results: SearchResults) -> list[str]:
    """The chosen trial's held-out scores in one sentence, and a warning for each fault in its answers."""
    chosen = results.meta.get("chosen")
    row = next((row for row in results.finals if row["trial_id"] == chosen), None)
    if row is None or row["status"] != COMPLETED:
        return []
    scores = ", ".join(f"{name} {score(row[name])}" for name in ("forget", "utility", "objective"))
    head = f"On the held-out half, which the search did not select on, the chosen {row['trial_id']} has {scores}."
    return [head, *(text for trial, text in answer_faults(results) if trial == chosen)]


def answer_faults(results: SearchResults) -> list[tuple[str, str]]:
    """(trial, sentence) of every finalist whose answers end less often than the starting model's, or repeat more."""
    by_id = {row["trial_id"]: row for row in results.finals if row["status"] == COMPLETED}
    start = by_id.get("start", {})
    found = []
    for trial, row in by_id.items():
        for name in row if trial not in ANCHORS else ():
            fault = FAULTS.get(name.rpartition("_")[2]) if "/" in name else None
            if fault and _rises(row[name], start.get(name)):
                asked = name.partition("/")[2].rpartition("_")[0].replace("_", " ")
                text = (
                    f"{row[name]:.0%} of the greedy answers of {trial} ({method_label(row['method'])}) to {asked} "
                    f"prompts {fault}; of the starting model's, {start[name]:.0%}."
                )
                found.append((trial, text))
    return found


def _rises(value: Any, before: Any) -> bool:
    return is_number(value) and is_number(before) and value > before + WORSE

"""What a comparison says in words, from its numbers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ray_unlearn.config import RECOMMENDED_UNITS
from ray_unlearn.metrics.statistics import (
    CONFIDENCE,
    LEVEL,
    NOTICEABLE,
    RELIABLE,
    SMALL,
    UNDECIDED,
    fewest_units,
    miss_rate,
)
from ray_unlearn.report.text import method_label
from ray_unlearn.wording import aligned, counted

SEED, SEARCH = "seed", "search"
"""What a comparison's units are: seeds of one setting of each method, or whole searches."""
UNITS = {SEED: ("seed", "seeds"), SEARCH: ("search", "searches")}
VERDICTS = {RELIABLE: "reliable", SMALL: "small but reliable", UNDECIDED: "undecided"}
COLLAPSE_RATE = 0.2
"""Of the collapse by which it is said how easily one is missed."""


def describe_difference(item: Mapping[str, Any]) -> str:
    """One plain sentence on an entry of a comparison's `differences`."""
    unit = item.get("unit", SEED)
    first, second = (_named(str(item[name]), unit) for name in ("better", "other"))
    scale = "" if item["measure"] == "objective" else f" in {item['measure']}"
    if item.get("level") is not None:
        scale += f" at utility {item['level']:g}"
    values = f"{item['value']:.3f} [{item['low']:.3f}, {item['high']:.3f}]"
    if item["verdict"] is None:
        return f"{first} is ahead of {second}{scale} by {values} (described, not judged)"
    if item["verdict"] == UNDECIDED:
        why = f"at this budget: {values}, corrected p {item['corrected_p']:.3f}, {counted_units(item['n'], unit)}"
        return f"{first} and {second} cannot be told apart{scale} {why}"
    how_sure = f"{VERDICTS[item['verdict']]} (corrected p {item['corrected_p']:.3f}, {counted_units(item['n'], unit)})"
    return f"{first} has the advantage over {second}{scale}, by {values}: {how_sure}"


def _named(method: str, unit: str) -> str:
    title = method_label(method)
    return title if unit == SEARCH else f"the {title} setting of this search"


def counted_units(count: int, unit: str) -> str:
    one, many = UNITS[unit]
    return f"{count} {one if count == 1 else many}"


def describe_limits(count: int, unit: str, num_methods: int, num_levels: int = 0) -> list[str]:
    """What must be known about the verdicts on all pairs of so many methods over so many units; num_levels: of utility
    at which forgetting alone is judged, 0 where the objective is."""
    num_pairs = math.comb(num_methods, 2) * max(1, num_levels)
    what, over, rest = "the objective", "all pairs", "forget and utility are described"
    if num_levels:
        what, over, rest = "forget at equal utility", "all pairs and levels", "utility is described"
    many = UNITS[unit][1]
    found = []
    needed = fewest_units(num_pairs)
    if num_pairs and count < needed:
        found.append(
            f"No verdict over {counted(num_pairs, 'pair')} is possible with {counted_units(count, unit)}: "
            f"{needed} are the fewest, {max(RECOMMENDED_UNITS, needed)} or more are worth it."
        )
    found.append(
        f"Pairs are taken {unit} by {unit}. A verdict rests on an exact sign-flip test of {what}, corrected by Holm "
        f"over {over}, so that the chance of any false one is at most {LEVEL:.0%}; {rest}. Intervals are "
        f"{CONFIDENCE:.0%} of Student's t over {many}. Under {NOTICEABLE:g} a difference counts as small."
    )
    found.append(
        f"A collapse that happens to one run in {round(1 / COLLAPSE_RATE)} is missed by {count} runs "
        f"{miss_rate(COLLAPSE_RATE, count):.0%} of the time. A run that diverges counts as forget 0, utility 0."
    )
    if unit == SEED:
        found.append(
            "The units are seeds of the settings that this one search found. Another search of the same methods finds "
            "other settings, often with larger differences than these: of methods only `compare --searches` speaks."
        )
    return found


def describe_levels(entry: Mapping[str, Any], unit: str) -> str:
    """What a finalist, or a method, forgets at one level of utility."""
    values = "forget {mean:.3f} ({min:.3f} to {max:.3f})".format(**entry["forget"])
    notes = [f"utility {entry['utility']['mean']:.3f} on the held-out half"]
    notes += [f"{entry['failed']} of them diverged"] if entry["failed"] else []
    notes += [f"{entry['at_end']} at their line's end, which holds more"] if entry["at_end"] else []
    return (
        f"At utility {entry['level']:g}, {_whose(entry)} over {counted_units(entry['n'], unit)}: {values}, "
        f"{', '.join(notes)}"
    )


def describe_lines(entry: Mapping[str, Any], unit: str) -> list[str]:
    """Of a finalist's lines, or a method's, how many are not monotone; nothing where all are."""
    whose, found = f"{_whose(entry)}: of {entry['n']} lines", []
    if entry["rising"]:
        found.append(
            f"{whose}, {entry['rising']} {'is' if entry['rising'] == 1 else 'are'} not monotone: utility rises again "
            f"by up to {entry['rise']:.3f} from a scored point to a farther one"
        )
    if entry["falling"]:
        found.append(
            f"{whose}, {entry['falling']} {'has' if entry['falling'] == 1 else 'have'} forgotten more before the point "
            f"than at it, by up to {entry['fall']:.3f}"
        )
    return found


def _whose(entry: Mapping[str, Any]) -> str:
    return str(entry["trial_id"]) if entry["trial_id"] else method_label(str(entry["method"]))


def tabulate_spreads(entries: Sequence[Mapping[str, Any]], measures: Sequence[str], unit: str) -> str:
    """A line a finalist, or a method: mean and range of each measure over the units."""
    rows = [[f"over {UNITS[unit][1]}", "n", *measures, ""]]
    for entry in entries:
        name = entry.get("trial_id") or method_label(str(entry["method"]))
        spreads = ["{mean:.3f} ({min:.3f} to {max:.3f})".format(**entry[measure]) for measure in measures]
        rows.append([name, str(entry["n"]), *spreads, f"{entry['failed']} diverged" if entry.get("failed") else ""])
    return aligned(rows, numbers=[1])


def tabulate_differences(items: Sequence[Mapping[str, Any]], unit: str) -> str:
    """A line a pair of methods and measure: who is ahead, by how much, and whether that is reliable; empty of none."""
    rows = [[f"{'method' if unit == SEARCH else 'setting'} ahead", "of", "in", "by", "verdict"]]
    for item in items:
        by = f"{item['value']:.3f} [{item['low']:.3f}, {item['high']:.3f}]"
        verdict = "described, not judged"
        if item["verdict"] is not None:
            counted_ones = counted_units(item["n"], unit)
            verdict = f"{VERDICTS[item['verdict']]} (corrected p {item['corrected_p']:.3f}, {counted_ones})"
        rows.append([method_label(str(item["better"])), method_label(str(item["other"])), item["measure"], by, verdict])
    return aligned(rows) if items else ""

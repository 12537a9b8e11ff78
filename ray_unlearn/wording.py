"""Words that several pages share."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence


def listing(words: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def counted(number: int, noun: str) -> str:
    """1 trial; 2 trials."""
    return f"{number} {noun}{'s' * (number != 1)}"


def aligned(rows: Sequence[Sequence[str]], numbers: Container[int] = ()) -> str:
    """A table in plain text, a line a row; numbers: the columns that stand to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    sides = [">" if i in numbers else "<" for i in range(len(widths))]
    lines = [[f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def first_line(error: object, most: int = 200) -> str:
    """What an error says, on one line of at most so many characters; its kind where it says nothing.

    Of an error that carries others' tracebacks in its text (Ray's do) it is the last line, which names the cause.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # colours
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    has_traceback = any(line.startswith("Traceback (most recent call last)") for line in lines)
    return lines[-1 if has_traceback or lines[0].startswith("ray::") else 0][:most]


def duration(seconds: float) -> str:
    """Seconds -> 4.3 s, 45 s, 12 min, 3.4 h, 2.1 days, as one would say it."""
    for limit, unit_seconds, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit_seconds:{'.2g' if seconds < 10 * unit_seconds else '.0f'}} {unit}"
    return f"{seconds / 86_400:.1f} days"

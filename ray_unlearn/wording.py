"""Words that several pages share."""

from __future__ import annotations

from collections.abc import Sequence


def listing(words: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def counted(number: int, noun: str) -> str:
    """1 trial; 2 trials."""
    return f"{number} {noun}{'s' * (number != 1)}"


def first_line(error: object, most: int = 200) -> str:
    """What an error says, on one line of at most so many characters; its kind where it says nothing.

    Of an error that carries others' tracebacks in its text (Ray's do) it is the last line, which names the cause.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    has_traceback = any(line.startswith("Traceback (most recent call last)") for line in lines)
    return lines[-1 if has_traceback or lines[0].startswith("ray::") else 0][:most]

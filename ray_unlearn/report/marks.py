"""One colour and one shape a method, the same on the page and on paper.

The hues stay apart for the three common kinds of colour blindness, the first ones differ in lightness too
(greyscale), and every method has a shape of its own, and its lines a dash, so colour never carries the message alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Mark:
    light: str
    """Colour on a light ground."""
    dark: str
    """Colour on a dark ground."""
    shape: str
    """Name of the shape on the page."""
    marker: str
    """The same shape in Matplotlib."""
    dash: str
    """Of its lines on the page: lengths of strokes and gaps; empty: one stroke."""


_COLOURS = (
    ("#0b62a4", "#5cb0f2"),  # blue
    ("#d98200", "#ffb545"),  # orange
    ("#8c1d5b", "#f07fb8"),  # wine
    ("#12957a", "#3fd3b0"),  # teal
    ("#6b5bd2", "#a99cff"),  # violet
    ("#7a6a00", "#d6c84a"),  # olive
    ("#c43c1d", "#ff8a6b"),  # vermilion
    ("#4b5563", "#b4bfcc"),  # slate
)
_SHAPES = (
    ("circle", "o"),
    ("diamond", "D"),
    ("triangle", "^"),
    ("square", "s"),
    ("wedge", "v"),
    ("plus", "P"),
    ("star", "*"),
    ("cross", "X"),
)
_DASHES = ("", "8 4", "2 3", "10 3 2 3", "5 2", "12 3 2 3 2 3", "1 4", "14 5")


def marks(methods: Sequence[str]) -> dict[str, Mark]:
    """A mark a method, by order; past eight methods, colours come again with other shapes."""
    found = {}
    for i, method in enumerate(methods):
        light, dark = _COLOURS[i % len(_COLOURS)]
        shape, marker = _SHAPES[(i + i // len(_COLOURS)) % len(_SHAPES)]
        found[method] = Mark(light, dark, shape, marker, _DASHES[(i + i // len(_COLOURS)) % len(_DASHES)])
    return found

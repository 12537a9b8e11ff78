"""Long work says how far it is, to whoever shows it."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator

QUIET_SECONDS = 2.0
"""For how long nothing is said: most work is over by then."""
Show = Callable[[str, int, int], None]
"""(what is done, how much of it has been done, how much there is)."""
_shows: list[Show] = []


@contextlib.contextmanager
def counts_shown(show: Show) -> Iterator[None]:
    """Inside, `show` is told of work that takes longer than QUIET_SECONDS."""
    _shows.append(show)
    try:
        yield
    finally:
        _shows.remove(show)


@contextlib.contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Work of so many items; what it yields is told how many have been done."""
    began, shown = time.monotonic(), 0

    def count(done: int) -> None:
        nonlocal shown
        if _shows and (shown or time.monotonic() - began >= QUIET_SECONDS):
            shown = done
            _shows[-1](what, done, total)

    try:
        yield count
    finally:
        if 0 < shown < total:  # broken off
            count(total)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Inside, no circles of objects are looked for: among millions of new ones that takes longer than making them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()

"""Ctrl-C and SIGTERM (`ray job stop`, a scheduler's end of time) end a search alike, each with its own exit code."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_caught: list[int] = []


@contextlib.contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Inside, SIGTERM does what Ctrl-C does: a running Ray Tune ends its trials, anything else is interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_terminate(number: int, frame: FrameType | None) -> None:
        _caught.append(number)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, on_terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code() -> int:
    """128 and the signal's number: 143 after SIGTERM, else 130 as after Ctrl-C."""
    return 128 + (_caught[0] if _caught else signal.SIGINT)

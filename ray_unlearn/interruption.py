"""Ctrl-C and SIGTERM (`ray job stop`, a scheduler's end of time) end a search alike, each with its own exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

GRACE_SECONDS = 40.0
"""Less than the 60 s after which Ray ends a process without a word whose cluster is gone."""
_caught: list[int] = []
_ends = threading.Event()


@contextlib.contextmanager
def signals_as_interrupts(give_up: Callable[[], None]) -> Iterator[None]:
    """Inside, SIGTERM does what Ctrl-C does: a running Ray Tune ends its trials, anything else is interrupted.

    Where that has not led out of here in time, `give_up` is called and the process ends: whoever sends SIGTERM to all
    processes of a job (`timeout`, systemd, Slurm) ends the cluster too, and what is asked of it hangs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end() -> None:
        give_up()
        os._exit(exit_code())

    timer = threading.Timer(GRACE_SECONDS, end)
    timer.daemon = True

    def on_terminate(number: int, frame: FrameType | None) -> None:
        if not _caught:
            timer.start()
        _caught.append(number)
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # ignored, as in what a script starts in the background
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, frame)

    before = signal.signal(signal.SIGTERM, on_terminate)
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def signals_end_at_once() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM end the process without an exception: one inside an import can leave Python's import
    lock taken, and another thread that imports waits for it for ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        os._exit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is end:
                signal.signal(number, handler)


def end_soon() -> None:
    """From here on this process is about to end for an interruption, and waits no more for what still runs on Ray.

    It may not even disconnect: a thread that is still in a call to Ray then would end it with an error, at once.
    """
    _ends.set()


def is_ending() -> bool:
    return _ends.is_set()


def go_on() -> None:
    """The interruption is over, and this process lives on: a notebook's, say."""
    _ends.clear()
    _caught.clear()


def exit_code() -> int:
    """128 and the signal's number: 143 after SIGTERM, else 130 as after Ctrl-C."""
    return 128 + (_caught[0] if _caught else signal.SIGINT)

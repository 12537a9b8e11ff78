"""What the user sees while other libraries print: the real screen, beside a log that gets the rest."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ray_unlearn.counting import counts_shown

LINE_SECONDS = 20.0


def console_on(screen: IO[str]) -> Console:
    """Text wherever it goes: in a notebook, too."""
    return Console(file=screen, force_terminal=screen.isatty(), force_jupyter=False, highlight=False)


def sayer(screen: IO[str]) -> Callable[[str], None]:
    """Prints a line as it is."""
    return Console(file=screen, force_jupyter=False, highlight=False, markup=False, soft_wrap=True).print


class Counter:
    """Shows how far long work is: a bar on a terminal, elsewhere a line every LINE_SECONDS."""

    def __init__(self, screen: IO[str]) -> None:
        self._console = console_on(screen)
        self._bar: Progress | None = None
        self._said = -LINE_SECONDS

    def __call__(self, what: str, done: int, total: int) -> None:
        if not self._console.is_terminal:
            if done == total or time.monotonic() - self._said >= LINE_SECONDS:
                self._said = time.monotonic()
                self._console.print(f"{what}: {done:,} of {total:,}", markup=False, soft_wrap=True)
            return
        if self._bar is None:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(*columns, TimeRemainingColumn(), console=self._console, transient=True)
            self._bar.add_task(what)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        if done == total:
            self._bar.stop()
            self._bar = None


@contextlib.contextmanager
def noise_to(log: Path) -> Iterator[IO[str]]:
    """Send everything that this process prints, down to its C libraries, to a log file.

    Yields the real standard output, for what the user should see; in a notebook that is its cell. All comes back at the
    end.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    with contextlib.ExitStack() as ends:
        if is_standard(sys.stdout):
            encoding = sys.stdout.encoding or "utf-8"
            screen: IO[str] = ends.enter_context(os.fdopen(os.dup(1), "w", encoding=encoding, errors="replace"))
        else:
            screen = sys.stdout
            into = ends.enter_context(os.fdopen(os.dup(target), "w", encoding="utf-8", errors="replace"))
            ends.enter_context(contextlib.redirect_stdout(into))
            ends.enter_context(contextlib.redirect_stderr(into))
        try:
            os.dup2(target, 1)
            os.dup2(target, 2)
            with counts_shown(Counter(screen)):
                yield screen
        finally:
            _give_back(kept, target)


def is_standard(stream: IO[str]) -> bool:
    """Whether what is written there goes to this process's own standard output."""
    try:
        return stream.fileno() == 1
    except (AttributeError, OSError):  # io.UnsupportedOperation is one of these
        return False


def _give_back(kept: tuple[int, int], target: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(kept[0], 1)
    os.dup2(kept[1], 2)
    for descriptor in (*kept, target):
        os.close(descriptor)

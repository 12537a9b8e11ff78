"""What the user sees while other libraries print: the real screen, beside a log that gets the rest."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from rich.console import Console


def sayer(screen: IO[str]) -> Callable[[str], None]:
    """Prints a line as it is."""
    return Console(file=screen, highlight=False, markup=False, soft_wrap=True).print


@contextlib.contextmanager
def noise_to(log: Path) -> Iterator[IO[str]]:
    """Send everything that this process prints, down to its C libraries, to a log file.

    Yields the real standard output, for what the user should see. Both come back at the end.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    screen = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding or "utf-8", errors="replace")
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        yield screen
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        screen.close()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for descriptor in (*kept, target):
            os.close(descriptor)

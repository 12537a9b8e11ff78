"""Exit codes, and failures as one line."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

from ray_unlearn.config import SearchFailed
from ray_unlearn.wording import first_line

FAILED, USAGE = 1, 2
"""Exit codes of a search that could not run (and of a check that found a problem), and of wrong use."""
DIFFERS = 1
"""Exit code of a trial that was run again and came out differently."""
PARTIAL = 3
"""Exit code of a search in which no trial of some method completed."""


@contextlib.contextmanager
def failures_named(log: Path, way_on: str = "") -> Iterator[None]:
    """Turn what Ray, the disk or a worker raises into SearchFailed: one line, and the log has the rest."""
    from ray.exceptions import RayError

    try:
        yield
    except (RuntimeError, OSError, RayError) as error:
        traceback.print_exc()  # into the log
        first = first_line(error, 400)
        raise SearchFailed(f"{first}. The log is {log}{way_on}") from None

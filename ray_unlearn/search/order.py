"""The same command gives the same table, with several trials at a time, too.

Which trial ends first hangs on the machine. A proposal therefore follows from the seed, its place in the search, and
the outcomes of the trials that lie at least a lag before it: of no others, even where they are known already. Where one
of those still runs, the next trial waits for it. `tests.perf.order` has the cost: the larger the lag, the less there is
to wait for, and the less a proposal knows.

What stays outside: trials that end by --trial-timeout, for lack of memory or with their gang, and --resume with another
--concurrent.
"""

from __future__ import annotations

from ray_unlearn.config import SearchConfig


def lag(config: SearchConfig) -> int | None:
    """How many places before its own lies the latest outcome that a proposal knows; None: it knows all there are.

    It is 1 for one trial at a time. Trials that may be pruned differ more in their lengths, and need a larger one.
    """
    if not config.in_order:
        return None
    return (3 if config.prune else 2) * (config.concurrent - 1) + 1

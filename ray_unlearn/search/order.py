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

MOST_UNKNOWN = 1 / 2
"""Of a search's trials, the largest lag that is taken unasked."""


def goes_in_order(prune: bool, concurrent: int, trials: int) -> bool:
    """Whether a search of so many trials in all goes in order where nobody says so: not where pruning makes lengths
    too different, nor where so many trials run at a time that proposals would know too little."""
    return not prune and _lag(prune, concurrent) <= MOST_UNKNOWN * trials


def lag(config: SearchConfig) -> int | None:
    """How many places before its own lies the latest outcome that a proposal knows; None: it knows all there are.

    It is 1 for one trial at a time. Trials that may be pruned differ more in their lengths, and need a larger one.
    """
    return _lag(config.prune, config.concurrent) if config.in_order else None


def describe_order(config: SearchConfig) -> str:
    how = lag(config)
    if how is None:
        return "proposals know every trial that has ended"
    return f"in order (a proposal knows what lies {how} or more places back): the same command gives the same table"


def _lag(prune: bool, concurrent: int) -> int:
    return 1 if concurrent == 1 else (3 if prune else 2) * concurrent

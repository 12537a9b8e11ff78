"""What it costs that proposals never hang on timing: idle gangs, and outcomes that a proposal may not know yet.

    python -m tests.perf.order results/<search> ... [--seeds 20] [--gangs 2,4,8,24] [--trials 20]

The recorded trials give lengths (drawn again, method by method) and outcomes (the recorded trial nearest in the space).
Each arm replays a whole search of all methods on so many gangs, which start a trial as soon as they may:
`free`, whose proposals know whatever has ended by then; `n`, in order with a lag of as many places as gangs, the least
there is; `2n`, as `tune` does; `3n`, as it does with --prune. Printed per arm: the search's length over `free`'s,
and over searches, methods and seeds the mean of trials until 95 % of the recorded trials' best objective (not reached
counts as all trials), with the standard error of the mean.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ray_unlearn.records.tables import read_search
from ray_unlearn.search.sampling import MethodStudy
from tests.perf.samplers import ENOUGH, Pool, read_pools

ARMS = {"free": 0, "n": 1, "2n": 2, "3n": 3}
"""Lag, in gangs."""


def replay(
    pools: Sequence[Pool], lengths: Sequence[np.ndarray], gangs: int, lag: int, trials: int, seed: int
) -> tuple[float, list[int]]:
    """(when the search ends, by method the trials until enough was found)."""
    draw = np.random.default_rng(seed)
    studies = [MethodStudy(pool.space, trials, False, seed, "tpe", pool.floor) for pool in pools]
    asked = [0] * len(pools)
    needed = [trials] * len(pools)
    running: list[tuple[float, int]] = []
    ended: set[int] = set()
    open_rows: dict[int, dict] = {}
    told: set[int] = set()
    now = 0.0
    for number in range(trials * len(pools)):
        while len(running) == gangs or (lag and running and min(n for _, n in running) <= number - lag):
            now, done = heapq.heappop(running)
            ended.add(done)
        for known in sorted(n for n in ended - told if not lag or n <= number - lag):
            studies[known % len(pools)].tell(str(known), open_rows.pop(known))
            told.add(known)
        which = number % len(pools)
        row = pools[which].nearest(studies[which].ask(str(number)))
        asked[which] += 1
        if row["objective"] >= ENOUGH * max(r["objective"] for r in pools[which].rows):
            needed[which] = min(needed[which], asked[which])
        open_rows[number] = row
        heapq.heappush(running, (now + draw.choice(lengths[which]), number))
    return max(end for end, _ in running), needed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--gangs", default="2,4,8,24")
    parser.add_argument("--trials", type=int, default=20)
    options = parser.parse_args()
    searches = []
    for folder in options.folders:
        pools = read_pools(folder)
        rows = read_search(folder).trials
        seconds = [np.array([r["device_seconds"] for r in rows if r["method"] == p.space.method]) for p in pools]
        searches.append((pools, seconds))
    for gangs in map(int, options.gangs.split(",")):
        free: list[float] = []
        for arm, times in ARMS.items():
            found = [
                replay(pools, seconds, gangs, times * gangs, options.trials, seed)
                for pools, seconds in searches
                for seed in range(options.seeds)
            ]
            ends = [end for end, _ in found]
            free = free or ends
            needed = np.array([n for _, each in found for n in each], float)
            error = needed.std() / np.sqrt(len(needed))
            longer = np.mean(np.array(ends) / np.array(free)) - 1
            print(f"{gangs:>2} gangs  {arm:<5} {longer:+7.1%}   {needed.mean():5.2f} +- {error:.2f} trials", flush=True)


if __name__ == "__main__":
    main()

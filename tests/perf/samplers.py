"""How soon each sampler finds what is to be found, without training: a recorded search answers for the trials.

    python -m tests.perf.samplers results/<search> ... [--seeds 20] [--trials 60] [--samplers tpe,random]

Each sampler asks the real study, and the answer is the recorded trial nearest in the space (every range, or its
logarithm, taken as 0 to 1). Printed per sampler: trials asked until 95 % of the recorded trials' hypervolume of
forget and utility (reference point 0, 0) is reached when both are searched side by side, and until 95 % of their best
objective when that is searched; median and quartiles over searches, methods and seeds. Whoever does not get there
counts as later than all others. Searches are recorded as for tests.perf.pruning.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ray_unlearn.config import COMPLETED, SAMPLERS
from ray_unlearn.metrics.fronts import hypervolume
from ray_unlearn.records.tables import read_search
from ray_unlearn.search.sampling import MethodStudy
from ray_unlearn.search.space import Range, Space

ENOUGH = 0.95


@dataclass(frozen=True)
class Pool:
    """One method's recorded trials: where they lie in the space [n, d], and their rows."""

    space: Space
    floor: float
    places: np.ndarray
    rows: list[dict[str, Any]]

    def nearest(self, point: dict[str, float]) -> dict[str, Any]:
        return self.rows[int(np.argmin(np.linalg.norm(self.places - place(self.space, point), axis=1)))]


def place(space: Space, point: dict[str, Any]) -> np.ndarray:
    """Where a point lies, [d] in 0 to 1."""

    def share(name: str, range_: Range) -> float:
        low, high, value = range_.low, range_.high, point[name]
        if range_.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)

    return np.array([share(name, range_) for name, range_ in space.ranges.items()])


def read_pools(folder: Path) -> list[Pool]:
    results = read_search(folder)
    pools = []
    for method, values in results.meta["spaces"].items():
        ranges = {name: Range(**range_) for name, range_ in values["ranges"].items()}
        space = Space(method, values["fixed"], ranges, tuple(values["warm_starts"]))
        rows = [row for row in results.trials if row["method"] == method and row["status"] == COMPLETED]
        floor = results.meta["config"]["utility_floor"]
        pools.append(Pool(space, floor, np.array([place(space, row) for row in rows]), rows))
    return pools


def reached(rows: list[dict[str, Any]], pareto: bool) -> float:
    """What the trials found: hypervolume, or the best objective."""
    if pareto:
        return hypervolume(np.array([[row["forget"], row["utility"]] for row in rows]))
    return max(row["objective"] for row in rows)


def trials_needed(pool: Pool, sampler: str, pareto: bool, seed: int, trials: int) -> float:
    """Trials asked until enough is reached; inf where that never happens."""
    study = MethodStudy(pool.space, trials, pareto, seed, sampler, pool.floor)
    enough = ENOUGH * reached(pool.rows, pareto)
    answers = []
    for number in range(trials):
        answers.append(pool.nearest(study.ask(str(number))))
        study.tell(str(number), answers[-1])
        if reached(answers, pareto) >= enough:
            return number + 1
    return math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    options = parser.parse_args()
    pools = [pool for folder in options.folders for pool in read_pools(folder)]
    print(f"{', '.join(str(len(pool.rows)) for pool in pools)} recorded trials, {options.seeds} seeds")
    for pareto in (True, False):
        print(f"\ntrials to {ENOUGH:.0%} of the {'hypervolume' if pareto else 'best objective'}, of {options.trials}")
        for sampler in options.samplers.split(","):
            needed = [
                trials_needed(pool, sampler, pareto, seed, options.trials)
                for pool in pools
                for seed in range(options.seeds)
            ]
            # Without interpolation, as "not reached" is no number.
            low, middle, high = np.quantile(needed, (0.25, 0.5, 0.75), method="inverted_cdf")
            missed = sum(math.isinf(n) for n in needed)
            print(
                f"{sampler:<8} median {middle:4.0f}   quartiles {low:4.0f} to {high:4.0f}   not reached {missed}",
                flush=True,
            )


if __name__ == "__main__":
    main()

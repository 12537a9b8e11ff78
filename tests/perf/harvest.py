"""What points on the line (`--harvest`) win and cost: recorded searches, replayed in other orders with and without.

    python -m tests.perf.harvest results/<search> ... [--orders 200] [--evaluations 2]

Record like for tests.perf.pruning (`evaluations` = `epochs`), with --harvest:

    ray_unlearn tune --benchmark wmdp --methods simnpo --space pool.toml --trials 40 --sampler random --harvest

A replay takes the recorded trials in a random order and counts how many it takes until what they found together is a
share of the best that is known, which is what all trials and all points on their lines found: once the hypervolume of
forget and utility (reference point 0, 0), once the best objective. A trial is scored at `--evaluations` points (0:
as recorded) and with harvesting at those on its line too. Each evaluation is charged at what one took in that trial
(its evaluate_seconds over all of its evaluations), on top of its training. Printed: median and quartiles over orders
of the trials needed, then of their seconds in units of a mean trial without the line; an order that never gets there
counts as longer than all others. `lost` is the share of orders in which harvesting needed more seconds.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ray_unlearn.config import COMPLETED, INTERPOLATED
from ray_unlearn.metrics.fronts import hypervolume
from ray_unlearn.records.tables import read_search
from tests.perf.pruning import Recorded, read_pool

SHARES = (0.9, 0.95, 0.99)
"""Of the best that is known."""
MEASURES = ("hypervolume", "best objective")


@dataclass(frozen=True)
class Harvested:
    """A recorded trial, with objective, forget, utility of the points on its line, [k, 3]."""

    trial: Recorded
    line: np.ndarray

    def scores(self, evaluations: int, with_line: bool) -> np.ndarray:
        """Of all candidates that the trial leaves, [1 or 1 + k, 3]."""
        own = self.trial.best(len(self.trial.curve), evaluations, ())[None]
        return np.concatenate([own, self.line]) if with_line else own

    def seconds(self, evaluations: int, with_line: bool) -> float:
        plain = self.trial.seconds(len(self.trial.curve), evaluations, ())
        return plain + (len(self.line) * self.trial.evaluation_seconds if with_line else 0.0)


def read_harvest(folder: Path) -> list[Harvested]:
    rows = read_search(folder).trials
    lines: dict[str, list[list[float]]] = {}
    for row in rows:
        if row["status"] == INTERPOLATED:
            scores = [row[name] for name in ("objective", "forget", "utility")]
            lines.setdefault(row["trial_id"].rpartition("@")[0], []).append(scores)
    if not lines:
        raise SystemExit(f"{folder}: was recorded without --harvest")
    names = [row["trial_id"] for row in rows if row["status"] == COMPLETED]
    return [Harvested(trial, np.array(lines[name])) for trial, name in zip(read_pool(folder), names, strict=True)]


def found(scores: np.ndarray, measure: str) -> float:
    """What candidates [n, 3] found together."""
    return hypervolume(scores[:, 1:]) if measure == "hypervolume" else float(scores[:, 0].max())


def needed(growth: np.ndarray, enough: float) -> float:
    """How many trials until what was found, [n], is enough; inf where it never is."""
    there = growth >= enough
    return int(np.argmax(there)) + 1 if there.any() else math.inf


def replay(
    pool: Sequence[Harvested], order: Sequence[int], evaluations: int, with_line: bool, measure: str, best: float
) -> list[tuple[float, float]]:
    """By share: trials and seconds until that share of the best is found."""
    scores = [pool[i].scores(evaluations, with_line) for i in order]
    growth = np.array([found(np.concatenate(scores[: count + 1]), measure) for count in range(len(order))])
    seconds = np.cumsum([pool[i].seconds(evaluations, with_line) for i in order])
    counts = [needed(growth, share * best * (1 - 1e-9)) for share in SHARES]
    return [(n, math.inf if math.isinf(n) else float(seconds[int(n) - 1])) for n in counts]


def quartiles(values: np.ndarray) -> str:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), method="inverted_cdf")
    return f"{middle:5.1f} ({low:4.1f} to {high:4.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--orders", type=int, default=200)
    parser.add_argument("--evaluations", type=int, default=2, help="0: as recorded")
    options = parser.parse_args()
    for folder in options.folders:
        pool = read_harvest(folder)
        plain = float(np.mean([t.seconds(options.evaluations, False) for t in pool]))
        more = float(np.mean([t.seconds(options.evaluations, True) for t in pool])) / plain
        print(
            f"\n{folder.name}: {len(pool)} trials of {plain:.2f} s with {options.evaluations or 'all'} evaluations; "
            f"{len(pool[0].line)} points on the line make one {more:.2f} times as long; {options.orders} orders"
        )
        for measure in MEASURES:
            whole = [np.concatenate([t.scores(options.evaluations, w) for t in pool]) for w in (False, True)]
            without, best = (found(scores, measure) for scores in whole)
            print(f"{measure}: {without:.4f} by all trials, {best:.4f} with their lines")
            orders = [np.random.default_rng(seed).permutation(len(pool)) for seed in range(options.orders)]
            # [without or with, order, share, trials or seconds]
            table = np.array(
                [
                    [replay(pool, order, options.evaluations, w, measure, best) for order in orders]
                    for w in (False, True)
                ]
            )
            for place, share in enumerate(SHARES):
                trials, seconds = table[:, :, place, 0], table[:, :, place, 1] / plain
                lost = np.mean(seconds[1] > seconds[0])
                print(
                    f"  {share:.0%}: trials {quartiles(trials[0])} without, {quartiles(trials[1])} with;   "
                    f"cost {quartiles(seconds[0])} without, {quartiles(seconds[1])} with;   "
                    f"not reached {np.isinf(trials[0]).mean():.0%}, {np.isinf(trials[1]).mean():.0%};   lost {lost:.0%}"
                )


if __name__ == "__main__":
    main()

"""What pruning saves and costs: recorded searches, replayed in other orders through the real halving code.

    python -m tests.perf.pruning results/<search> ... [--gangs 4] [--orders 5] [--evaluations 2]

Record with a space file that has `evaluations` = `epochs`, so that every epoch of every trial is known:

    ray_unlearn tune --benchmark wmdp --methods simnpo --space pool.toml --trials 150 --sampler random --no-prune

A replay starts the recorded trials in a random order on so many gangs, an epoch a tick, and stops those that lose at
a rung. A trial is scored after every epoch, or at so many evaluation points and, with pruning, at the rungs. Printed
per setting, as mean and standard deviation over searches and orders: epochs without pruning over epochs with it; the
same of seconds, every epoch and every evaluation at what it took in that trial on average; and what is lost of the
hypervolume of forget and utility (reference point 0, 0) and of the best objective, once by completed trials alone,
once by all, up to where they got.
"""

import argparse
import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ray_unlearn.config import COMPLETED, INTERPOLATED
from ray_unlearn.metrics.fronts import hypervolume
from ray_unlearn.records.tables import read_search
from ray_unlearn.search.halving import REDUCTION, RUNGS, Halving
from ray_unlearn.training.trial import evaluation_epochs, rung_epochs

SETTINGS = [(2, (0.2, 0.5)), (2, (0.2, 0.4, 0.6)), (2, (0.1, 0.2, 0.4)), (3, (0.2,)), (3, (0.2, 0.5))]
SETTINGS += [(3, (0.2, 0.4)), (3, (0.2, 0.3)), (3, (0.3, 0.6)), (3, (0.1, 0.3)), (4, (0.2,)), (4, (0.2, 0.5))]
SETTINGS += [(4, (0.2, 0.4)), (5, (0.2, 0.5)), (5, (0.2, 0.4))]
"""Reduction factors and rungs to compare."""


@dataclass(frozen=True)
class Recorded:
    """One trial: its method, and objective, forget, utility after every epoch, [epochs, 3]."""

    method: str
    curve: np.ndarray
    epoch_seconds: float
    evaluation_seconds: float
    """Of one epoch, and of scoring one model."""

    def points(self, evaluations: int, rungs: Sequence[float]) -> list[int]:
        """The epochs after which it is scored."""
        return evaluation_epochs(len(self.curve), evaluations or len(self.curve), rungs)

    def seconds(self, epochs: int, evaluations: int, rungs: Sequence[float]) -> float:
        """What its first epochs take."""
        scored = sum(epoch <= epochs for epoch in self.points(evaluations, rungs))
        return epochs * self.epoch_seconds + scored * self.evaluation_seconds

    def best(self, epochs: int, evaluations: int, rungs: Sequence[float]) -> np.ndarray:
        """Objective, forget, utility at the best evaluation point of the first epochs."""
        points = [epoch - 1 for epoch in self.points(evaluations, rungs) if epoch <= epochs]
        return self.curve[max(points, key=lambda i: self.curve[i, 0])]


def read_pool(folder: Path) -> list[Recorded]:
    results = read_search(folder)
    by_trial: dict[str, list] = {}
    for point in results.curves:
        by_trial.setdefault(point["trial_id"], []).append(point)
    # Those on a trial's line were scored within its evaluate_seconds.
    on_lines = Counter(row["trial_id"].rpartition("@")[0] for row in results.trials if row["status"] == INTERPOLATED)
    pool = []
    for row in results.trials:
        points = sorted(by_trial.get(row["trial_id"], []), key=lambda point: point["epoch"])
        if row["status"] == COMPLETED:
            if len(points) != row["epochs"]:
                raise SystemExit(f"{folder}: {row['trial_id']} was not evaluated after every epoch")
            curve = np.array([[p["objective"], p["forget"], p["utility"]] for p in points])
            scored = len(points) + on_lines[row["trial_id"]]
            seconds = row["train_seconds"] / row["epochs"], row["evaluate_seconds"] / scored
            pool.append(Recorded(row["method"], curve, *seconds))
    return pool


def replay(
    trials: Sequence[Recorded], gangs: int, evaluations: int, pareto: bool, reduction: int, rungs: Sequence[float]
) -> list[tuple[Recorded, int]]:
    """Every trial with the epochs that it got."""
    halving = Halving(reduction)
    waiting = list(enumerate(trials))[::-1]
    running: list[tuple[int, int, int, Recorded]] = []
    ended = []

    def start(now: int) -> None:
        if waiting:
            number, trial = waiting.pop()
            heapq.heappush(running, (now + 1, number, 1, trial))

    for _ in range(gangs):
        start(0)
    while running:
        now, number, epoch, trial = heapq.heappop(running)
        epochs = len(trial.curve)
        rung = rung_epochs(epochs, rungs).get(epoch)
        goes_on = True
        if rung is not None:
            objective, *both = trial.best(epoch, evaluations, rungs).tolist()
            goes_on = halving.goes_on(trial.method, rung, number, both if pareto else [objective])
        if epoch < epochs and goes_on:
            heapq.heappush(running, (now + 1, number, epoch + 1, trial))
        else:
            ended.append((trial, epoch))
            start(now)
    return ended


def measure(
    ended: Sequence[tuple[Recorded, int]], whole_only: bool, evaluations: int, rungs: Sequence[float]
) -> tuple[float, float]:
    """Hypervolume and best objective of the trials' best points."""
    counted = [(trial, epoch) for trial, epoch in ended if epoch == len(trial.curve) or not whole_only]
    scores = np.array([trial.best(epoch, evaluations, rungs) for trial, epoch in counted])
    return hypervolume(scores[:, 1:]), float(scores[:, 0].max())


def compare(
    pools: Sequence[Sequence[Recorded]],
    orders: int,
    gangs: int,
    evaluations: int,
    pareto: bool,
    reduction: int,
    rungs: Sequence[float],
) -> np.ndarray:
    """[searches * orders, 6]: ratio of epochs, of seconds; lost hypervolume, lost objective by completed trials; the
    same by all."""
    rows = []
    for pool in pools:
        base = measure([(trial, len(trial.curve)) for trial in pool], True, evaluations, ())
        whole = sum(trial.seconds(len(trial.curve), evaluations, ()) for trial in pool)
        for seed in range(orders):
            order = np.random.default_rng(seed).permutation(len(pool))
            ended = replay([pool[i] for i in order], gangs, evaluations, pareto, reduction, rungs)
            ratio = sum(len(trial.curve) for trial in pool) / sum(epoch for _, epoch in ended)
            faster = whole / sum(trial.seconds(epoch, evaluations, rungs) for trial, epoch in ended)
            found = [measure(ended, whole_only, evaluations, rungs) for whole_only in (True, False)]
            lost = [1 - new / old for pair in found for new, old in zip(pair, base, strict=True)]
            rows.append([ratio, faster, *lost])
    return np.array(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--gangs", type=int, default=4)
    parser.add_argument("--evaluations", type=int, default=0, help="0: after every epoch")
    parser.add_argument("--orders", type=int, default=5)
    options = parser.parse_args()
    pools = [read_pool(folder) for folder in options.folders]
    print(f"{', '.join(str(len(pool)) for pool in pools)} trials, {options.gangs} gangs, {options.orders} orders")
    print("* is the default. Lost: hypervolume, best objective, by completed trials; the same by all trials")
    for pareto in (True, False):
        print(f"\nby {'fronts (pareto)' if pareto else 'the combined objective'}")
        for reduction, rungs in SETTINGS:
            table = compare(pools, options.orders, options.gangs, options.evaluations, pareto, reduction, rungs)
            mean, spread = table.mean(axis=0), table.std(axis=0)
            mark = "*" if (reduction, rungs) == (REDUCTION, RUNGS) else " "
            lost = "   ".join(f"{100 * m:5.1f} ±{100 * s:4.1f} %" for m, s in zip(mean[2:], spread[2:], strict=True))
            print(
                f"{mark} 1/{reduction} at {rungs!s:<16} {mean[0]:4.2f} ±{spread[0]:4.2f} x fewer epochs, "
                f"{mean[1]:4.2f} ±{spread[1]:4.2f} x fewer seconds   lost {lost}"
            )


if __name__ == "__main__":
    main()

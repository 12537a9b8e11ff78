"""What a search costs: this package's command, a fresh process a trial, one TorchTrainer.fit() a trial.

    python -m tests.perf.search_cost [--benchmark wmdp] [--trials 1,12,40] [--measured 3] [--concurrent 1]

The miniature, one worker a trial with one thread. The command's time is all of it: imports, Ray's start, the gang's,
the trials, the winner's second run on the held-out split, the report and the end. The other two arms train and
evaluate trials of the command's longest search with the very same settings, and nothing else: (b) a process that
imports, loads the data and the model, builds the DeepSpeed engine, trains, evaluates and ends; (c) one
`TorchTrainer.fit()` that does the same inside one Ray session with Ray's default settings. They are measured on
`--measured` trials and extrapolated linearly, Ray's start and end added once to (c). No arm's metrics may differ from
the command's by a bit. Last come the seconds from a trainer's start to its first result: a gang starts the same way.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.perf.common import read_options, timed

METHOD = "simnpo"


def run_command(benchmark: str, trials: int, concurrent: int, out: Path) -> tuple[Any, float]:
    """(what the search left behind, seconds of the whole command)."""
    from ray_unlearn.records.tables import read_search

    options = [f"--trials={trials}", f"--concurrent={concurrent}", f"--out={out}", "--scale=mini"]
    command = [sys.executable, "-m", "ray_unlearn.cli", "tune", f"--benchmark={benchmark}", f"--methods={METHOD}"]
    done, took = timed(lambda: subprocess.run([*command, *options], check=True, capture_output=True, text=True))
    return read_search(out / done.stdout.split()[-1]), took["seconds"]


def run_trial(values: Mapping[str, Any], stamps: dict[str, float]) -> list[dict[str, Any]]:
    """Load, build, train and evaluate one trial: its reports. `stamps` gets the clock after each part."""

    def stamp(name: str) -> None:
        stamps[name] = time.time()

    import ray_unlearn.training.worker

    stamp("imports")
    from ray_unlearn.benchmarks import load_benchmark
    from ray_unlearn.benchmarks.contract import Request
    from ray_unlearn.config import GangConfig, TrialConfig
    from ray_unlearn.training.in_process import build_models, local_worker, run_local
    from ray_unlearn.training.trial import Job

    task = load_benchmark(values["benchmark"]).load(Request("mini"), build_models)
    stamp("data")
    # Who runs one trial and ends has no use for a test that the engine can be put back.
    check = ray_unlearn.training.worker.Worker._check_restore
    ray_unlearn.training.worker.Worker._check_restore = lambda worker: stamp("model and engine")  # type: ignore[method-assign]
    worker = local_worker(task, GangConfig(**values["gang"]))
    if values.get("self_test"):
        check(worker)
        stamp("self-test")
    trial = TrialConfig.from_json(values["trial"])
    reports = run_local(worker, Job(trial.trial_id, trial))
    stamp("training and evaluation")
    return [{"epoch": r.epoch, **r.metrics()} for r in reports]


def fresh_process(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.perf.search_cost", "--one-trial", json.dumps(values)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def trainer_loop(values: dict[str, Any]) -> None:
    from ray import train

    stamps = {"worker process": time.time()}
    reports = run_trial(values, stamps)
    for report in reports:
        train.report(report)
    # Ray Train V2 keeps no metrics without a checkpoint.
    Path(values["out"]).write_text(json.dumps({"report": reports[-1], "stamps": stamps}))


def trainers(trials: list[dict[str, Any]], concurrent: int) -> dict[str, Any]:
    """One Ray session, one `fit()` a trial; seconds of the session's start and end, and of the trials."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def fit(place: tuple[int, dict[str, Any]]) -> tuple[dict[str, Any], dict[str, float]]:
        number, values = place
        began = time.time()
        trainer = TorchTrainer(
            trainer_loop,
            train_loop_config={**values, "out": f"{folder}/{number}.json"},
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name=f"trial-{number}", storage_path=folder),
        )
        trainer.fit()
        result = json.loads(Path(f"{folder}/{number}.json").read_text())
        stamps = {"": began, **result["stamps"], "end of fit": time.time()}
        names = list(stamps)
        parts = {now: stamps[now] - stamps[before] for before, now in pairwise(names)}
        return result["report"], parts

    with tempfile.TemporaryDirectory() as folder:
        start = timed(lambda: ray.init(address="local", num_cpus=(os.cpu_count() or 1) + 1 + concurrent))[1]
        with ThreadPoolExecutor(concurrent) as pool:
            results, fits = timed(lambda: list(pool.map(fit, enumerate(trials))))
        first = timed(lambda: fit((len(trials), trials[0] | {"self_test": True})))[0][1]
        end = timed(ray.shutdown)[1]
    return {
        "reports": [report for report, _ in results],
        "seconds": fits["seconds"],
        "around": start["seconds"] + end["seconds"],
        "parts": {"ray.init": start["seconds"], **first},
    }


def check_equal(rows: list[dict[str, Any]], benchmark: str, arm: str, reports: list[list[dict[str, Any]]]) -> None:
    """Raise AssertionError where an arm's metrics at a row's epoch are not the row's to the last bit."""
    for row, points in zip(rows, reports, strict=True):
        point = next((p for p in points if p["epoch"] == row["epoch"]), None)
        if point is None:
            assert row["epoch"] < max(p["epoch"] for p in points), f"{arm}: no evaluation after epoch {row['epoch']}"
            continue
        for name, value in point.items():
            expected = row["epoch"] if name == "epoch" else row[f"{benchmark}/{name}"]
            assert value == expected, f"{arm}, {row['trial_id']}: {name} is {value!r}, the command has {expected!r}"


def main() -> None:
    if sys.argv[1:2] == ["--one-trial"]:  # this benchmark's own fresh process
        reports = run_trial(json.loads(sys.argv[2]), {})
        print(json.dumps(reports))
        return
    options = read_options(__doc__ or "", benchmark=("wmdp", "synthetic"), trials="1,12,40", measured=3, concurrent=1)
    counts = sorted(int(n) for n in options.trials.split(","))
    with tempfile.TemporaryDirectory() as temporary:
        searches = {n: run_command(options.benchmark, n, options.concurrent, Path(temporary)) for n in counts}
    rows = searches[counts[-1]][0].trials[: options.measured]
    gang = searches[counts[-1]][0].meta["config"]["gang"]
    trials = [one_trial(row, gang) for row in rows]
    with ThreadPoolExecutor(options.concurrent) as pool:
        fresh, took = timed(lambda: list(pool.map(fresh_process, trials)))
    check_equal(rows, options.benchmark, "a fresh process", fresh)
    fitted = trainers(trials, options.concurrent)
    check_equal(rows, options.benchmark, "TorchTrainer.fit()", [[report] for report in fitted["reports"]])

    each = {"fresh process": took["seconds"] / len(rows), "fit()": fitted["seconds"] / len(rows)}
    print(f"{options.benchmark} mini, {METHOD}, {options.concurrent} trial(s) at once; metrics equal to the last bit")
    print(
        f"seconds a trial, measured on {len(rows)}: fresh process {each['fresh process']:.1f}, fit {each['fit()']:.1f}"
    )
    print("   N   command   fresh process a trial   fit() a trial in one Ray session")
    for n, (search, seconds) in searches.items():
        assert len(search.trials) == n
        theirs = {"b": n * each["fresh process"], "c": fitted["around"] + n * each["fit()"]}
        print(
            f"{n:>4} {seconds:7.1f} s    {theirs['b']:8.0f} s {theirs['b'] / seconds:5.1f} x"
            f"      {theirs['c']:8.0f} s {theirs['c'] / seconds:5.1f} x"
        )
    if len(counts) > 1:
        less, more = counts[0], counts[-1]
        each_more = (searches[more][1] - searches[less][1]) / (more - less)
        print(
            f"the command: {each_more:.2f} s for each further trial, {searches[less][1] - less * each_more:.1f} s once"
        )
    print("a gang's start, part by part: " + ", ".join(f"{k} {v:.1f} s" for k, v in fitted["parts"].items()))


def one_trial(row: Mapping[str, Any], gang: dict[str, Any]) -> dict[str, Any]:
    """What an arm needs to repeat a row's trial: plain data."""
    from ray_unlearn.search.rows import trial_of
    from ray_unlearn.training.losses import METHODS

    trial = trial_of(row, METHODS[row["method"]].parameters)
    return {"benchmark": row["benchmark"], "gang": gang, "trial": trial.to_json()}


if __name__ == "__main__":
    main()

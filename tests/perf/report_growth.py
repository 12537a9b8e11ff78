"""How reading a search, going on with it and writing its report grow with the number of trials.

    python -m tests.perf.report_growth [--trials 1000,10000,100000] [--stages read,report,resume] [--folder DIR]

Made-up trials of three methods with their curves, in a ledger as a search leaves it. `read` is what every command does
first, `resume` what `tune --resume` does before its first new trial: the recorder takes up the ledger, every study asks
and tells again. Each number runs in a process of its own, so that its peak memory (above that of the imports) is its
own. Seconds are of the clock, and in brackets of the processor. With --folder the ledger of each number is kept there
and used again.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
METHODS = ("simnpo", "npo", "ga")


def write_ledger(folder: Path, num_trials: int) -> None:
    """The search's ledger as its recorder leaves it, without its fsync: nobody needs it after a crash."""
    import os

    from made_up_search import ATTACKED, METRICS, PARAMETERS, build_meta, simulate

    from ray_unlearn.config import TrialConfig
    from ray_unlearn.files import Patience
    from ray_unlearn.records.ledger import Ledger
    from ray_unlearn.records.tables import Writer, curve_schema, trial_schema, write_json

    folder.mkdir(parents=True)
    meta = build_meta()
    write_json(folder / "search.json", meta)
    writer = Writer(folder, trial_schema("wmdp", PARAMETERS, METRICS | ATTACKED), curve_schema("wmdp", METRICS))
    fsync, os.fsync = os.fsync, lambda file: None
    with Ledger(folder, Patience()) as ledger:
        ledger.open()
        ledger.append("described", meta=meta)
        for row, curve in simulate(num_trials, METHODS):
            row, curve = writer.as_written(row, curve)
            trial = TrialConfig(row["trial_id"], row["method"], {"beta": 1.0, "gamma": 0.0}, learning_rate=1e-5)
            ledger.append("suggested", trial=trial.to_json(), number=row["number"], settings_hash="")
            ledger.append("ended", trial_id=row["trial_id"], row=row, points=[], curve=curve, files={})
    os.fsync = fsync


def resume(folder: Path, num_trials: int) -> None:
    """What `tune --resume` does with the ledger; the files of trials are taken to be there."""
    from types import SimpleNamespace

    from ray_unlearn.config import GangConfig, SearchConfig
    from ray_unlearn.records.ledger import read_ledger
    from ray_unlearn.search.recorder import Recorder
    from ray_unlearn.search.sampling import MethodStudy
    from ray_unlearn.search.space import Range, Space

    ranges = {"learning_rate": Range(1e-6, 1e-3, log=True)}
    spaces = {name: Space(name, {}, ranges, ()) for name in METHODS}
    each = num_trials // len(METHODS) + 1
    studies = {name: MethodStudy(space, each, False, 0) for name, space in spaces.items()}
    config = SearchConfig(
        **{"name": "s", "benchmark": "wmdp", "scale": "mini", "methods": METHODS, "trials": each, "concurrent": 1},
        **{"objective": "combined", "utility_floor": 0.9, "seed": 0, "gang": GangConfig(), "model": "m"},
    )
    silent = SimpleNamespace(resumed=lambda rows: None, has_trial=lambda row: True)
    recorder = Recorder(config, studies, spaces, silent, silent, silent)
    recorder.recall(read_ledger(folder))
    assert len(recorder.rows) == num_trials


class Stopwatch:
    """Seconds of the clock and of the processor since it was made or last read."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def lap(self) -> tuple[float, float]:
        before, self._began = self._began, (time.perf_counter(), time.process_time())
        return self._began[0] - before[0], self._began[1] - before[1]


def peak_bytes() -> int:
    """Of this process alone: getrusage would remember the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def measure(folder: Path, num_trials: int, stages: list[str]) -> dict[str, Any]:
    import ray_unlearn.report.figure
    import ray_unlearn.report.page  # noqa: F401
    from ray_unlearn.records.tables import read_search
    from ray_unlearn.report import write_files as write_report_files

    before, laps, results = peak_bytes(), [], None
    for stage in stages:
        if stage == "report" and results is None:
            results = read_search(folder)
        watch = Stopwatch()
        if stage == "read":
            found = read_search(folder)
        elif stage == "report":
            write_report_files(results)
        elif stage == "resume":
            resume(folder, num_trials)
        else:
            raise SystemExit(f"--stages: no stage {stage!r}")
        laps.append((stage, *watch.lap()))
        if stage == "read":
            assert len(found.trials) == num_trials
            results = found
    page = folder / "report" / "report.html"
    return {
        "laps": laps,
        "memory": (peak_bytes() - before) / 2**20,
        "page": f", page {page.stat().st_size / 2**20:.1f} MiB" if page.exists() else "",
        "ledger": (folder / "ledger.jsonl").stat().st_size / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", default="1000,10000")
    parser.add_argument("--stages", default="read,report,resume")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    first = None
    for number in (int(text) for text in options.trials.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder = (options.folder or Path(name)) / str(number)
            if not folder.exists():
                write_ledger(folder, number)
            with context.Pool(1) as pool:
                found = pool.apply(measure, (folder, number, options.stages.split(",")))
        thousands = number / 1000
        parts = [f"{stage} {wall / thousands:.2f} s ({cpu / thousands:.2f})" for stage, wall, cpu in found["laps"]]
        print(
            f"{number:>7,} trials   a thousand: {', '.join(parts)}   in all: "
            f"{', '.join(f'{stage} {wall:.1f} s' for stage, wall, _ in found['laps'])}; "
            f"peak {found['memory']:.0f} MiB{found['page']}; ledger {found['ledger']:.0f} MiB",
            flush=True,
        )
        spent = sum(cpu for _, _, cpu in found["laps"]) / thousands
        first = spent if first is None else first
        assert spent <= 1.5 * first, f"{number:,} trials cost more than in proportion"


if __name__ == "__main__":
    main()

"""How reading a search and writing its report grow with the number of trials, and what joining its files gives.

    python -m tests.perf.report_growth [--trials 1000,10000] [--stages read,report,join,read] [--folder DIR]

Made-up trials of three methods with their curves, one Parquet file a trial and one a curve, as a search leaves
them; `join` is ray_unlearn.compaction, after which the rows must be the same. Each number runs in a process of its
own, so that its peak memory (above that of the imports) is its own. Seconds are of the clock, and in brackets of the
processor. With --folder the files of each number are kept there and used again, so that 100,000 trials can be
measured in stages: a report that no read came before reads the folder untimed.
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


def write_files(folder: Path, num_trials: int) -> None:
    """The search's folder as its writer leaves it, without the writer's fsync: nobody needs it after a crash."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from made_up_search import ATTACKED, METRICS, PARAMETERS, build_meta, simulate

    from ray_unlearn.results import curve_schema, trial_schema, write_json

    folder.mkdir(parents=True)
    write_json(folder / "search.json", build_meta())
    trials = zip(*simulate(num_trials, METHODS), strict=True)
    schemas = trial_schema("wmdp", PARAMETERS, METRICS | ATTACKED), curve_schema("wmdp", METRICS)
    for name, schema, kinds in zip(("trials", "curves"), schemas, trials, strict=True):
        places = {m: folder / name / "benchmark=wmdp" / f"method={m}" for m in METHODS}
        for place in places.values():
            place.mkdir(parents=True)
        for rows in kinds:
            rows = rows if isinstance(rows, list) else [rows]
            if not rows:
                continue
            columns = {field.name: [row.get(field.name) for row in rows] for field in schema}
            table = pa.table(columns, schema)
            method = rows[0]["method"]
            pq.write_table(table, places[method] / f"{rows[0]['trial_id']}.parquet", write_page_checksum=True)


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
    from ray_unlearn.compaction import compact
    from ray_unlearn.report import write_files as write_report_files
    from ray_unlearn.results import read_search

    before, laps, results = peak_bytes(), [], None
    for stage in stages:
        if stage == "report" and results is None:
            results = read_search(folder)
        watch = Stopwatch()
        if stage == "read":
            found = read_search(folder)
        elif stage == "report":
            write_report_files(results)
        elif stage == "join":
            compact(folder)
        else:
            raise SystemExit(f"--stages: no stage {stage!r}")
        laps.append((stage, *watch.lap()))
        if stage == "read":
            assert len(found.trials) == num_trials
            if results is not None:
                assert found.trials == results.trials
                assert sorted(found.curves, key=str) == sorted(results.curves, key=str)
            results = found
    page = folder / "report" / "report.html"
    return {
        "laps": laps,
        "memory": (peak_bytes() - before) / 2**20,
        "page": f", page {page.stat().st_size / 2**20:.1f} MiB" if page.exists() else "",
        "files": sum(1 for _ in folder.rglob("*=*/*.parquet")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", default="1000,10000")
    parser.add_argument("--stages", default="read,report,join,read")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    first = None
    for number in (int(text) for text in options.trials.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder = (options.folder or Path(name)) / str(number)
            if not folder.exists():
                write_files(folder, number)
            with context.Pool(1) as pool:
                found = pool.apply(measure, (folder, number, options.stages.split(",")))
        thousands = number / 1000
        parts = [f"{stage} {wall / thousands:.2f} s ({cpu / thousands:.2f})" for stage, wall, cpu in found["laps"]]
        print(
            f"{number:>7,} trials   a thousand: {', '.join(parts)}   in all: "
            f"{', '.join(f'{stage} {wall:.1f} s' for stage, wall, _ in found['laps'])}; "
            f"peak {found['memory']:.0f} MiB{found['page']}; {found['files']:,} files at the end",
            flush=True,
        )
        spent = sum(cpu for _, _, cpu in found["laps"]) / thousands
        first = spent if first is None else first
        assert spent <= 1.5 * first, f"{number:,} trials cost more than in proportion"


if __name__ == "__main__":
    main()

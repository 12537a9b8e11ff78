"""How reading a search and writing its report grow with the number of trials, and what joining its files gives.

    python -m tests.perf.report_growth [--trials 1000,10000,100000] [--no-report]

Made-up trials of three methods with their curves, one Parquet file a trial and one a curve, as a search leaves
them. Read, then reported, then joined (`compact`), then read again: the rows must be the same. Each number runs in a
process of its own, so that its peak memory (above that of the imports) is its own. Seconds are of the clock, and in
brackets of the processor.
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


def measure(folder: Path, num_trials: int, report: bool) -> dict[str, Any]:
    import ray_unlearn.report.figure
    import ray_unlearn.report.page  # noqa: F401
    from ray_unlearn.compaction import compact
    from ray_unlearn.report import write_files as write_report_files
    from ray_unlearn.results import read_search

    before, watch = peak_bytes(), Stopwatch()
    results = read_search(folder)
    found: dict[str, Any] = {"read": watch.lap()}
    assert len(results.trials) == num_trials
    if report:
        write_report_files(results)
        found |= {"report": watch.lap(), "page": (folder / "report" / "report.html").stat().st_size / 2**20}
    found["memory"] = (peak_bytes() - before) / 2**20
    num_files = sum(1 for _ in folder.rglob("*=*/*.parquet"))
    watch.lap()
    compact(folder)
    found["join"] = watch.lap()
    again = read_search(folder)
    found["read joined"] = watch.lap()
    assert again.trials == results.trials
    assert sorted(again.curves, key=str) == sorted(results.curves, key=str)
    left = sum(1 for _ in folder.rglob("*=*/*.parquet"))
    return found | {"files": f"{num_files:,} files, then {left:,}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", default="1000,10000,100000")
    parser.add_argument("--no-report", action="store_true", help="leave the report out")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    first = None
    for number in (int(text) for text in options.trials.split(",")):
        with tempfile.TemporaryDirectory() as name:
            write_files(Path(name), number)
            with context.Pool(1) as pool:
                found = pool.apply(measure, (Path(name), number, not options.no_report))
        thousands = number / 1000
        laps = {part: lap for part, lap in found.items() if isinstance(lap, tuple)}
        parts = [f"{part} {wall / thousands:.2f} s ({cpu / thousands:.2f})" for part, (wall, cpu) in laps.items()]
        page = f", page {found['page']:.1f} MiB" if "page" in found else ""
        print(
            f"{number:>7,} trials   a thousand: {', '.join(parts)}   in all: "
            f"{', '.join(f'{part} {wall:.1f} s' for part, (wall, _) in laps.items())}; "
            f"peak {found['memory']:.0f} MiB{page}; {found['files']}",
            flush=True,
        )
        spent = sum(cpu for _, cpu in laps.values()) / thousands
        first = spent if first is None else first
        assert spent <= 1.5 * first, f"{number:,} trials cost more than in proportion"


if __name__ == "__main__":
    main()

"""How reading a search and writing its report grow with the number of trials.

    python -m tests.perf.report_growth [--trials 1000,10000,100000]

Made-up trials of three methods with their curves, one Parquet file a trial and one a curve, as a search leaves
them. Each number runs in a process of its own, so that its peak memory is its own (above that of the imports).
Seconds are of the clock, and in brackets of the processor.
The last column reads the same trials and curves from one file a method: what joining a search's files would give.
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
        found: dict[str, list] = {method: [] for method in METHODS}
        for rows in kinds:
            rows = rows if isinstance(rows, list) else [rows]
            if not rows:
                continue
            columns = {field.name: [row.get(field.name) for row in rows] for field in schema}
            table = pa.table(columns, schema)
            method = rows[0]["method"]
            pq.write_table(table, places[method] / f"{rows[0]['trial_id']}.parquet", write_page_checksum=True)
            found[method].append(table)
        for method, tables in found.items():
            path = folder / "joined" / name / f"{method}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.concat_tables(tables), path, write_page_checksum=True)


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


def measure(folder: Path, num_trials: int) -> dict[str, Any]:
    import pyarrow.parquet as pq

    import ray_unlearn.report.figure
    import ray_unlearn.report.page  # noqa: F401
    from ray_unlearn.report import write_files as write_report_files
    from ray_unlearn.results import read_search

    before, watch = peak_bytes(), Stopwatch()
    results = read_search(folder)
    found: dict[str, Any] = {"read": watch.lap()}
    assert len(results.trials) == num_trials
    write_report_files(results)
    found |= {"report": watch.lap(), "memory": (peak_bytes() - before) / 2**20}
    rows = [
        row
        for path in (folder / "joined").rglob("*.parquet")
        for row in pq.ParquetFile(path, page_checksum_verification=True).read().to_pylist()
    ]
    assert len(rows) > num_trials
    return found | {"joined": watch.lap(), "page": (folder / "report" / "report.html").stat().st_size / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", default="1000,10000,100000")
    numbers = [int(number) for number in parser.parse_args().trials.split(",")]
    context = multiprocessing.get_context("spawn")
    first = None
    for number in numbers:
        with tempfile.TemporaryDirectory() as name:
            write_files(Path(name), number)
            with context.Pool(1) as pool:
                found = pool.apply(measure, (Path(name), number))
        thousands = number / 1000
        parts = [
            f"{name} {wall / thousands:.2f} s ({processor / thousands:.2f})"
            for name, (wall, processor) in ((name, found[name]) for name in ("read", "report", "joined"))
        ]
        print(
            f"{number:>7,} trials   a thousand: {', '.join(parts)}, {found['memory'] / thousands:.1f} MiB   "
            f"in all: {found['read'][0] + found['report'][0]:.0f} s, peak {found['memory']:.0f} MiB, "
            f"page {found['page']:.1f} MiB",
            flush=True,
        )
        spent = (found["read"][1] + found["report"][1]) / thousands
        first = spent if first is None else first
        assert spent <= 1.5 * first, f"{number:,} trials cost more than in proportion"


if __name__ == "__main__":
    main()

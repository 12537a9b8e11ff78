"""A search with --copy-to that is killed twice and loses its disk each time, against one that nobody disturbs.

    python -m tests.perf.copied_search [--trials 2000]

Trials are instant (growth.py's), the search is real: Ray, Tune, recorder, ledger, copies. At a third and at two thirds
of the trials everything is killed at once and the folder deleted; the search goes on from the copy, in another folder.
Printed: bytes sent, times the folder's bytes, trials that ran again, and whether both tables of trials are equal but
for their times.
"""

import json
import multiprocessing
import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.perf.common import read_options
from tests.perf.growth import InstantGangs, settings

TIMES = ("wall_seconds", "device_seconds", "retries")
OPTIONS = SimpleNamespace(sampler="tpe", objective="combined", prune=False)


class Silent:
    def stage(self, what: str) -> None: ...
    def resumed(self, rows: Any) -> None: ...
    def started(self, trial: Any, number: int) -> None: ...
    def finished(self, row: Any) -> None: ...


def search(folder: Path, trials: int, to: str | None, sent: Any) -> None:
    """The search in this folder, or what is left of it, to its end."""
    from dataclasses import replace

    import ray_unlearn.search.run
    from ray_unlearn.benchmarks import load_benchmark
    from ray_unlearn.benchmarks.contract import Request
    from ray_unlearn.commands.screen import noise_to
    from ray_unlearn.records import bucket
    from ray_unlearn.records.copies import copied
    from ray_unlearn.training.in_process import build_models

    put = bucket.Place.put

    def counted(self: Any, name: str, source: Any) -> None:
        sent.value += len(source.read())
        source.seek(0)
        put(self, name, source)

    bucket.Place.put = counted  # type: ignore[method-assign]
    ray_unlearn.search.run.Gangs = InstantGangs  # type: ignore[misc, assignment]
    config, spaces = settings(OPTIONS, trials)
    task = load_benchmark("wmdp").load(Request("mini"), build_models)
    folder.mkdir(parents=True, exist_ok=True)
    with copied(folder, to), noise_to(folder / "log.txt"):
        config = replace(config, concurrent=1)
        ray_unlearn.search.run.run_search(config, task, spaces, folder, [], Silent(), keep_model=False)


def num_ended(folder: Path) -> int:
    try:
        return (folder / "ledger.jsonl").read_bytes().count(b'{"event":"ended"')
    except FileNotFoundError:
        return 0


def kill_at(count: int, folder: Path, process: Any) -> None:
    """Kill the process and all that it has started once so many trials have ended."""
    import psutil

    while num_ended(folder) < count:
        assert process.is_alive(), "the search ended by itself"
        time.sleep(0.2)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        one.kill()
    process.join()


def table(folder: Path) -> list[dict[str, Any]]:
    from ray_unlearn.records.tables import read_search

    return [{name: value for name, value in row.items() if name not in TIMES} for row in read_search(folder).trials]


def main() -> None:
    trials = read_options(__doc__ or "", trials=2000).trials
    from ray_unlearn.records.copies import fetch_search
    from ray_unlearn.records.ledger import read_ledger

    context = multiprocessing.get_context("spawn")
    sent = context.Value("q", 0)
    with tempfile.TemporaryDirectory(prefix="copied-") as name:
        place, bucket = Path(name), f"file://{name}/bucket"
        folder = place / "first" / "growth"
        for number, share in enumerate((1, 2), start=1):
            process = context.Process(target=search, args=(folder, trials, bucket, sent))
            process.start()
            kill_at(share * trials // 3, folder, process)
            print(f"killed after {num_ended(folder):,} trials", flush=True)
            shutil.rmtree(folder)
            folder = fetch_search(f"{bucket}/growth", place / f"disk-{number}")
            print(f"the copy has {num_ended(folder):,} of them", flush=True)
        for at, to in ((folder, bucket), (place / "undisturbed" / "growth", None)):
            process = context.Process(target=search, args=(at, trials, to, sent))
            process.start()
            process.join()
            assert process.exitcode == 0
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        events = read_ledger(folder).events
        ended = [event["trial_id"] for event in events if event["event"] == "ended"]
        assert len(ended) == len(set(ended)) == trials
        shutil.rmtree(folder)
        fetched = fetch_search(f"{bucket}/growth", place / "last")
        is_equal = table(fetched) == table(place / "undisturbed" / "growth")
        print(f"sent {sent.value / 2**20:.1f} MiB, {sent.value / size:.2f} times the folder; tables equal: {is_equal}")
        print(json.dumps({"trials": trials, "ended": len(ended)}))
        assert is_equal


if __name__ == "__main__":
    main()

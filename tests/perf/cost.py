"""What stands around a search, at n, 2n and 4n: does it grow as the work does?

    python -m tests.perf.cost [finals repair copy read data ...] [--against CHECKOUT]

Every measurement runs in a process of its own. A row has the figures at n, 2n and 4n and the ratios a doubling: 2 is
linear, 4 is the square. --against names a checkout of another version, which is measured in turn in the same run.

    finals   writing how finalists spread their forgetting: n forget rows x 10 epochs
    repair   `verify --repair` of n trials of which only the ledger is there
    copy     bytes that --copy-to sends for n trials, one after another, times the folder's bytes
    together one report of ten searches of n trials each
    gangs    processes beside the workers of n gangs, and their private memory (without Tune's actor)
    data     own data: n pairs to forget and n to retain, read for the first and for the second time
    texts    the same for plain texts of about 500 tokens
    read     n trials read by DuckDB, polars, pandas and pyarrow: the table at the end, and a file a trial
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
Figures = dict[str, float]


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_finals(count: int, place: Path) -> Figures:
    import numpy as np

    from ray_unlearn.records.tables import Writer, curve_schema, trial_schema

    draw = np.random.default_rng(0)
    weights, losses = draw.random((10, count)).tolist(), draw.random(count).tolist()
    writer = Writer(place, trial_schema("x", [], []), curve_schema("x", []))
    writer.write_weights("warm-up", [[1.0]], [7], [0.5])  # pyarrow's own parts are loaded by the first table
    before, began = peak_mib(), time.perf_counter()
    writer.write_weights("simnpo-0001", weights, [7] * count, losses)
    return {"s": time.perf_counter() - began, "MiB": peak_mib() - before}


def made_up(count: int) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    sys.path.insert(0, str(ROOT / "tests" / "report"))
    from made_up_search import simulate

    yield from simulate(count, ("simnpo", "npo", "ga"))


def build_writer(place: Path) -> Any:
    sys.path.insert(0, str(ROOT / "tests" / "report"))
    from made_up_search import ATTACKED, METRICS, PARAMETERS

    from ray_unlearn.records.tables import Writer, curve_schema, trial_schema

    return Writer(place, trial_schema("wmdp", PARAMETERS, METRICS | ATTACKED), curve_schema("wmdp", METRICS))


def write_trials(place: Path, count: int, with_files: bool, each: Callable[[], None] = lambda: None) -> None:
    """A search's folder as its recorder leaves it; without waiting for the disk. each: called after every trial."""
    os.fsync = lambda file: None
    from made_up_search import build_meta

    from ray_unlearn.config import TrialConfig
    from ray_unlearn.files import Patience, crc32
    from ray_unlearn.records.ledger import Ledger

    writer = build_writer(place)
    with Ledger(place, Patience()) as ledger:
        ledger.open()
        ledger.append("described", meta=build_meta())
        writer.write_search(build_meta())
        for row, curve in made_up(count):
            row, curve = writer.as_written(row, curve)
            trial = TrialConfig(row["trial_id"], row["method"], {"beta": 1.0, "gamma": 0.0}, learning_rate=1e-5)
            ledger.append("suggested", trial=trial.to_json(), number=row["number"], settings_hash="0" * 64)
            ledger.append("running", trial_id=row["trial_id"])
            files = writer.trial_files(row, curve, [])
            crcs = {name: crc32(content) for name, content in files.items()}
            ledger.append("ended", trial_id=row["trial_id"], row=row, points=[], curve=curve, files=crcs)
            if with_files:
                writer.write_files(files)
            each()


def measure_repair(count: int, place: Path) -> Figures:
    from ray_unlearn.records.verify import verify_search

    build_writer(place)
    write_trials(place, count, with_files=False)
    began = time.perf_counter()
    found = verify_search(place, repair=True)
    seconds = time.perf_counter() - began
    assert all(finding.is_repaired for finding in found)
    assert len(found) > count
    assert verify_search(place) == []
    return {"s": seconds}


def measure_copy(count: int, place: Path) -> Figures:
    """One look after every fourth trial, as for trials of half a second; the end included."""
    from ray_unlearn.records import copies
    from ray_unlearn.records.bucket import open_place

    target, sent = place / "bucket", 0
    here = open_place(f"file://{target}/s")
    kind = type(here)
    put = kind.put

    def counted(self: Any, name: str, source: Any) -> None:
        nonlocal sent
        sent += len(source.read())
        source.seek(0)
        put(self, name, source)

    kind.put = counted
    folder = place / "s"
    folder.mkdir()
    build_writer(folder)
    copies.LOOK_SECONDS = copies.LONGEST_PAUSE_SECONDS = 1e6  # the looks are counted here
    now = copies.Copies(folder, here)
    now.claim()
    seconds, trials = 0.0, 0

    def look() -> None:
        nonlocal seconds, trials
        trials += 1
        if trials % 4 == 0:
            began = time.perf_counter()
            assert now._try(is_last=False), now._failure
            seconds += time.perf_counter() - began

    with now:
        write_trials(folder, count, with_files=True, each=look)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"MiB": sent / 2**20, "times the folder": sent / size, "s of looks": seconds}


READERS = {
    "duckdb": "import duckdb; f = lambda w: duckdb.sql(f\"SELECT * FROM '{w}'\").fetchall()",
    "polars": "import polars; f = lambda w: polars.scan_parquet(w).collect()",
    "pandas": "import pandas; f = lambda w: pandas.read_parquet(w.split('/**')[0], **o)",
    "pyarrow": "import pyarrow.dataset as d; f = lambda w: d.dataset(w.split('/**')[0]).to_table()",
}


def measure_read(count: int, place: Path) -> Figures:
    from ray_unlearn.records.tables import read_search

    build_writer(place)
    write_trials(place, count, with_files=True)
    try:
        from ray_unlearn.report.whole import write_whole

        write_whole(read_search(place), place)
        where = {"": str(place / "trials.parquet")}
    except ImportError:
        where = {"": f"{place}/trials/**/*.parquet"}
    found = {}
    for name, code in READERS.items():
        for suffix, what in where.items():
            names: dict[str, Any] = {"o": {"partitioning": None} if "*" in what else {}}
            exec(code, names)
            names["f"](what)
            began = time.perf_counter()
            rows = names["f"](what)
            found[f"s {name}{suffix}"] = time.perf_counter() - began
            assert len(rows) == count
    return found


CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<s>[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)


def write_pairs(path: Path, count: int, words: str) -> None:
    """Questions and answers of about 50 tokens, all different."""
    with path.open("w") as file:
        for number in range(count):
            question = f"What did the author {words}{number} write about in the year {1700 + number % 300}?"
            answer = f"The author {words}{number} wrote a book about the sea and its islands, the {number}th of a row."
            file.write(json.dumps({"question": question, "answer": answer}) + "\n")


def write_texts(path: Path, count: int, words: str) -> None:
    """Plain texts of about 500 tokens, all different."""
    with path.open("w") as file:
        for number in range(count):
            parts = [
                f"In chapter {k} the author {words}{number} tells of the sea, and of {k * number}." for k in range(20)
            ]
            file.write(json.dumps({"text": " ".join(parts)}) + "\n")


def measure_data(count: int, place: Path, kind: str = "pairs", again: bool = True) -> Figures:
    """n rows to forget and n to retain; the model and its tokenizer are loaded before."""
    from tests.perf.common import forget_peak, peak_bytes, resident_bytes, write_model

    os.environ["RAY_UNLEARN_CACHE"] = str(place / "cache")
    model = place / "model"
    write_model(model, "1m")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": CHAT}))
    columns = 'question = "question"\nanswer = "answer"\n' if kind == "pairs" else 'text = "text"\n'
    sets = "".join(f'[{name}]\nfile = "{name}.jsonl"\n{columns}' for name in ("forget", "retain"))
    (place / "mine.toml").write_text(f'name = "mine"\n{sets}')
    write = write_pairs if kind == "pairs" else write_texts
    write(place / "retain.jsonl", 50, "Tal")
    write(place / "forget.jsonl", 50, "Beck")

    from ray_unlearn.benchmarks import load_benchmark
    from ray_unlearn.benchmarks.contract import Request
    from ray_unlearn.benchmarks.fingerprint import data_fingerprint

    def load() -> Any:
        task = load_benchmark(str(place / "mine.toml")).load(Request("full", model=str(model)))
        return task, data_fingerprint(task)

    load()  # imports and caches of the libraries
    write(place / "retain.jsonl", count, "Tal")
    write(place / "forget.jsonl", count, "Beck")
    before = resident_bytes()
    forget_peak()
    began, cpu_began = time.perf_counter(), time.process_time()
    task, first = load()
    cpu = time.process_time() - cpu_began
    seconds, peak = time.perf_counter() - began, peak_bytes() - before
    tokens = len(task.forget.tokens) + len(task.retain.tokens)
    figures = {"s": seconds, "cpu s": cpu, "us a row": 1e6 * seconds / (2 * count), "bytes a token": peak / tokens}
    del task
    began = time.perf_counter()
    _, second = load()
    figures["s again"] = time.perf_counter() - began
    assert first == second
    figures["fingerprint"] = int(first[:8], 16)
    return figures


def measure_texts(count: int, place: Path) -> Figures:
    return measure_data(count, place, "texts")


def measure_together(count: int, place: Path) -> Figures:
    """Ten searches of n trials each."""
    from ray_unlearn.commands.report import report_together

    folders = [place / f"search-{number}" for number in range(10)]
    for folder in folders:
        folder.mkdir()
        build_writer(folder)
        write_trials(folder, count, with_files=False)
    began = time.perf_counter()
    report_together(folders)
    return {"s": time.perf_counter() - began}


def private_mib(pid: int) -> float:
    """Memory that the process shares with nobody."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def measure_gangs(count: int, place: Path) -> Figures:
    """n gangs of one worker with a tiny model, each of which has done a job."""
    import psutil
    import ray

    from ray_unlearn.config import GangConfig
    from ray_unlearn.gangs.gangs import Gangs
    from ray_unlearn.gangs.session import ray_session
    from ray_unlearn.training.trial import Job
    from tests.tiny import tiny_task, write_tiny_model

    model = write_tiny_model(place / "model")
    config = GangConfig(num_workers=1, zero_stage=0, max_tokens=100)
    began = time.perf_counter()
    with ray_session(config, count, None), Gangs(tiny_task(model), config, count, place / "storage") as gangs:
        gangs.run(Job("first"))
        seconds = time.perf_counter() - began
        for job in [Job(f"job-{number}") for number in range(count)]:
            ray.get(gangs.broker.submit.remote(job))
        while ray.get(gangs.broker.drain_notes.remote())[1] < count:
            time.sleep(0.5)
        time.sleep(5)
        children = [child for child in psutil.Process().children(recursive=True) if child.is_running()]
        names = {child.pid: " ".join(child.cmdline())[:80] for child in children}
        gang = ("TrainController", "DatasetManager", "PlacementGroupCleaner", "SynchronizationActor")
        beside = {pid: name for pid, name in names.items() if any(part[:12] in name for part in gang)}
        total = sum(map(private_mib, beside))
    return {"processes": len(beside), "MiB": total, "MiB a gang": total / count, "s to the first report": seconds}


PARTS: dict[str, tuple[Callable[[int, Path], Figures], tuple[int, ...]]] = {
    "finals": (measure_finals, (10_000, 20_000, 40_000)),
    "repair": (measure_repair, (200, 400, 800)),
    "copy": (measure_copy, (500, 1000, 2000)),
    "read": (measure_read, (500, 1000, 2000)),
    "together": (measure_together, (250, 500, 1000)),
    "gangs": (measure_gangs, (1, 2, 4)),
    "data": (measure_data, (25_000, 50_000, 100_000)),
    "texts": (measure_texts, (2_500, 5_000, 10_000)),
}


def measured(part: str, count: int, build: Path) -> Figures:
    """The figures of one part with one build, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="cost-") as place:
        command = [sys.executable, str(Path(__file__)), part, "--one", str(count), place]
        run = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(build)}
        )
        return dict(json.loads(run.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=list(PARTS))
    parser.add_argument("--against", type=Path)
    parser.add_argument("--counts", default="")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(PARTS[options.parts[0]][0](int(options.one[0]), Path(options.one[1]))))
        return
    builds = {"before": options.against, "now": ROOT} if options.against else {"now": ROOT}
    print(f"load average {os.getloadavg()[0]:.2f} at the start, {os.cpu_count()} CPUs", flush=True)
    for part in options.parts:
        counts = tuple(map(int, options.counts.split(","))) if options.counts else PARTS[part][1]
        found: dict[str, list[Figures]] = {name: [] for name in builds}
        for count in counts:
            for name, build in builds.items():
                found[name].append(measured(part, count, build))
        for name, figures in found.items():
            for key in figures[0]:
                values = [each[key] for each in figures]
                ratios = [b / a for a, b in pairwise(values)]
                print(
                    f"{part:<8} {name:<7} {key:<18} "
                    f"{'  '.join(f'{count:,}: {value:.3g}' for count, value in zip(counts, values, strict=True))}"
                    f"   a doubling: {', '.join(f'{ratio:.2f}' for ratio in ratios)}",
                    flush=True,
                )


if __name__ == "__main__":
    main()

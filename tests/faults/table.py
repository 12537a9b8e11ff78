"""What becomes of a search when things break: real searches, real kills, one table.

    python -m tests.faults.table [--only worker,driver] [--injections 4] [--concurrent 2] [--seed 0] [--plain]

The miniature synthetic benchmark, two methods of `--trials` trials each, settings from TPE, `--concurrent` trials at a
time. First the undisturbed search. Then, for every fault, as
many searches as it takes: the fault comes at random moments, `ray_unlearn tune --resume` goes on where the command has
ended, and at last the table of results is compared with the undisturbed one: trials asked, finished, repeated though
finished, lost, extra, and whether every setting and score is the same to the bit. Recovery is the time from the fault
until all trials in flight then and one more have ended, where the command itself goes on. Each search has its own
cluster and folders; nothing else on the machine is touched. With --plain the subject is a search of as many trials with
Ray Tune and OptunaSearch alone, which goes on by `Tuner.restore` (plain_tune.py).
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ray_unlearn.records.ledger import LEDGER, read_ledger
from ray_unlearn.records.tables import read_search

OPTIONS = ("--benchmark", "synthetic", "--scale", "mini", "--methods", "simnpo,ga")
OPTIONS += ("--robustness", "none", "--in-order")
VARYING = ("seconds", "peak_memory", "retries")
"""Parts of the names of columns that differ between two runs of one search."""
LIMIT, PLAIN_LIMIT = 400.0, 120.0
"""Seconds after which a command that has not ended hangs; undisturbed, each needs a third of that at most."""
HANGS = -999
"""In the place of an exit code."""
MOST_RESUMES = 5


@dataclass
class Search:
    """One search, from its first command through every --resume."""

    folder: Path
    """Its place for everything: results, Ray's files."""
    trials: int
    commands: list[int] = field(default_factory=list)
    """Exit codes."""
    faults: int = 0
    recoveries: list[float] = field(default_factory=list)
    options: tuple[str, ...] = ()
    """Of its commands, beside the usual ones."""
    environment: dict[str, str] = field(default_factory=dict)
    cluster: Any = None
    """Several nodes, where the fault is the loss of one."""
    limit = LIMIT
    concurrent = 2

    def start(self) -> subprocess.Popen:
        """The next command, in a session of its own, as a terminal or a job would have it."""
        options: tuple[str, ...] = (*OPTIONS, "--trials", str(self.trials), "--concurrent", str(self.concurrent))
        options += ("--out", str(self.folder / "results"))
        if self.results is not None:
            options = ("--resume", str(self.results))
        options += self.options
        environment = {**os.environ, "RAY_TMPDIR": str(self.folder / "ray"), "PYTHONUNBUFFERED": "1"}
        environment |= self.environment
        log = (self.folder / "output.txt").open("a")
        command = [sys.executable, "-m", "ray_unlearn.cli", "tune", *options]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)

    @property
    def results(self) -> Path | None:
        return next((path.parent for path in self.folder.glob(f"results/*/{LEDGER}")), None)

    def events(self) -> list[dict[str, Any]]:
        """What happened to its trials, in order: "running", "ended" and others."""
        return read_ledger(self.results).events if self.results else []

    def table(self) -> dict[str, dict[str, Any]]:
        """Every trial's settings and scores."""
        rows = read_search(self.results).trials if self.results else []
        return {r["trial_id"]: {k: v for k, v in r.items() if not any(part in k for part in VARYING)} for r in rows}

    def num_finished(self) -> int:
        return sum(row["status"] == "completed" for row in self.table().values())

    def is_over(self) -> bool:
        return self.commands[-1] == 0 or len(self.commands) > MOST_RESUMES

    def num_ended(self) -> int:
        return sum(event["event"] == "ended" for event in self.events())

    def open_trials(self) -> set[str]:
        """Those that have begun and have not ended."""
        began, ended = ({e["trial_id"] for e in self.events() if e["event"] == kind} for kind in ("running", "ended"))
        return began - ended

    def num_repeated(self) -> int:
        """Trials that were begun again after they had ended."""
        ended: set[str] = set()
        count = 0
        for event in self.events():
            if event["event"] == "running" and event["trial_id"] in ended:
                count += 1
            if event["event"] == "ended":
                count += event["trial_id"] in ended
                ended.add(event["trial_id"])
        return count


class PlainSearch(Search):
    """One with Ray Tune alone."""

    limit = PLAIN_LIMIT

    def start(self) -> subprocess.Popen:
        environment = {**os.environ, "RAY_TMPDIR": str(self.folder / "ray")}
        log = (self.folder / "output.txt").open("a")
        command = [sys.executable, "-m", "tests.faults.plain_tune", str(self.folder / "results"), str(2 * self.trials)]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)

    @property
    def results(self) -> Path | None:
        place = self.folder / "results" / "search"
        return place if place.is_dir() else None

    def events(self) -> list[dict[str, Any]]:
        journal = self.folder / "results" / "journal.jsonl"
        return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []

    def table(self) -> dict[str, dict[str, Any]]:
        path = self.folder / "results" / "table.json"
        rows = json.loads(path.read_text()) if path.exists() else []
        return {row["settings"]: row for row in rows}

    def num_finished(self) -> int:
        return sum(not row["failed"] and row["epoch"] == 2 for row in self.table().values())

    def is_over(self) -> bool:
        is_whole = self.commands[-1] == 0 and self.num_finished() >= 2 * self.trials
        return is_whole or len(self.commands) > MOST_RESUMES


def wait_until(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = LIMIT) -> bool:
    """Whether it came true before the process ended or the time was up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.1)
    return False


def processes_of(process: subprocess.Popen, name: str) -> list[psutil.Process]:
    """The command's descendants whose command line has that word; none of a command that has ended."""
    found: list[psutil.Process] = []
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return found
    for child in children:
        try:
            if name in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def kill_one(name: str) -> Callable[[Search, subprocess.Popen, random.Random], None]:
    def inject(search: Search, process: subprocess.Popen, chance: random.Random) -> None:
        wait_until(lambda: bool(processes_of(process, name)), process, 60)
        if victims := processes_of(process, name):
            chance.choice(victims).send_signal(signal.SIGKILL)
        else:
            search.faults -= 1  # none

    return inject


def send(number: int) -> Callable[[Search, subprocess.Popen, random.Random], None]:
    return lambda search, process, chance: process.send_signal(number)


def kill_everything(search: Search, process: subprocess.Popen, chance: random.Random) -> None:
    for victim in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        try:
            victim.send_signal(signal.SIGKILL)
        except psutil.Error:
            continue


def end_job(search: Search, process: subprocess.Popen, chance: random.Random) -> None:
    """As `timeout` does, or a scheduler."""
    os.killpg(process.pid, signal.SIGTERM)


def storage_goes_away(search: Search, process: subprocess.Popen, chance: random.Random) -> None:
    """The results' folder is gone for a while, as with a network share."""
    assert search.results is not None
    place, away = search.results, search.folder / "away"
    place.rename(away)
    time.sleep(chance.uniform(3, 8))
    shutil.copytree(away, place, dirs_exist_ok=True)
    shutil.rmtree(away)


def fill_disk(search: Search, process: subprocess.Popen, chance: random.Random) -> None:
    """Everything that is free on the results' disk is taken for a while."""
    with (search.folder / "results" / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    time.sleep(chance.uniform(3, 8))
    (search.folder / "results" / "ballast").unlink()


def damage_files(search: Search, process: subprocess.Popen, chance: random.Random) -> None:
    """The driver is killed; then a file of an ended trial is truncated, has a bit flipped or is emptied, and
    `verify` must name it."""
    kill_everything(search, process, chance)
    process.wait()
    assert search.results is not None
    files = sorted(search.results.glob("trials/**/*.parquet"))
    victim = chance.choice(files)
    content = bytearray(victim.read_bytes())
    how = chance.choice(["truncated", "flipped", "empty", "deleted"])
    if how == "flipped":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    if how == "deleted":
        victim.unlink()
    else:
        victim.write_bytes({"truncated": content[: len(content) // 2], "flipped": content, "empty": b""}[how])
    verify = [sys.executable, "-m", "ray_unlearn.cli", "verify", str(search.results)]
    found = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert found.returncode == 1, found
    assert str(victim.relative_to(search.results)) in found.stdout, (how, found.stdout)
    assert subprocess.run([*verify, "--repair"], capture_output=True, check=False).returncode == 0


def cut_ledger(search: Search, process: subprocess.Popen, chance: random.Random) -> None:
    """Everything is killed, and the ledger ends in the middle of a line."""
    kill_everything(search, process, chance)
    process.wait()
    assert search.results is not None
    path = search.results / LEDGER
    content = path.read_bytes()
    path.write_bytes(content[: -chance.randrange(1, 40)])


def set_trap(search: Search, process: subprocess.Popen, chance: random.Random) -> None:
    """The next trial that trains springs it."""
    (search.folder / "trap").touch()


def start_nodes(search: Search) -> None:
    """A head and two nodes with one CPU each."""
    from ray.cluster_utils import Cluster

    settings = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    search.cluster = Cluster(initialize_head=True, head_node_args={**settings, "temp_dir": str(search.folder / "ray")})
    for _ in range(2):
        search.cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    search.options = ("--address", search.cluster.address)


def lose_node(search: Search, process: subprocess.Popen, chance: random.Random) -> None:
    """One node is gone at once, with all that ran on it; a new one comes, as an autoscaler would bring it."""
    node = chance.choice([n for n in search.cluster.list_all_nodes() if n is not search.cluster.head_node])
    search.cluster.remove_node(node, allow_graceful=False)
    time.sleep(chance.uniform(2, 5))
    search.cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)


@dataclass(frozen=True)
class Fault:
    title: str
    inject: Callable[[Search, subprocess.Popen, random.Random], None]
    per_search: int = 1
    """Injections into one search."""
    at_start: bool = False
    """Whether it may also come before the first trial has ended."""
    nodes: bool = False
    """Whether it needs a cluster of several."""
    trap: str = ""
    """What sitecustomize.py in trap/ does where `inject` sets it."""
    options: tuple[str, ...] = ()


FAULTS = {
    "worker": Fault("SIGKILL of a worker", kill_one("RayTrainWorker"), 4, at_start=True),
    "controller": Fault("SIGKILL of a gang's controller", kill_one("TrainController"), 2, at_start=True),
    "actor": Fault("SIGKILL of a trial's actor", kill_one("GangTrial"), 3),
    "broker": Fault("SIGKILL of the broker", kill_one("Broker"), 2, at_start=True),
    "raylet": Fault("SIGKILL of the only node (its raylet)", kill_one("raylet/raylet"), at_start=True),
    "node": Fault("loss of one node of three", lose_node, 2, nodes=True),
    "gcs": Fault("SIGKILL of the GCS", kill_one("gcs_server"), at_start=True),
    "driver": Fault("SIGKILL of the driver", send(signal.SIGKILL), 3, at_start=True),
    "everything": Fault("SIGKILL of everything", kill_everything, 3, at_start=True),
    "sigterm": Fault("SIGTERM", send(signal.SIGTERM), 3, at_start=True),
    "job": Fault("SIGTERM to the command and its cluster", end_job, 3, at_start=True),
    "interrupt": Fault("Ctrl-C", send(signal.SIGINT), 3, at_start=True),
    "disk": Fault("full disk, then freed", fill_disk, 2),
    "storage": Fault("storage away for a while", storage_goes_away, 2),
    "bomb": Fault("a trial allocates more than there is", set_trap, 2, trap="bomb"),
    "hang": Fault("a trial hangs (--trial-timeout 30)", set_trap, trap="hang", options=("--trial-timeout", "30")),
    "files": Fault("a trial's file damaged after a kill", damage_files, 3),
    "ledger": Fault("the ledger cut off after a kill", cut_ledger, 3),
}
PLAIN_FAULTS = {
    "worker": Fault("SIGKILL of a trial's process", kill_one("ImplicitFunc"), 4),
    **{
        name: FAULTS[name]
        for name in ("raylet", "gcs", "driver", "everything", "sigterm", "interrupt", "disk", "storage")
    },
}


def run_search(kind: type[Search], fault: Fault | None, folder: Path, trials: int, chance: random.Random) -> Search:
    """A search through all its faults to its end."""
    (folder / "results").mkdir(parents=True, exist_ok=True)
    search = kind(folder, trials)
    if fault is not None and fault.trap:
        places = [str(Path(__file__).with_name("trap")), *filter(None, [os.environ.get("PYTHONPATH")])]
        search.environment = {"PYTHONPATH": os.pathsep.join(places), "FAULT": fault.trap}
        search.environment["FAULT_FILE"] = str(folder / "trap")
        search.options = fault.options
    if fault is not None and fault.nodes:
        start_nodes(search)
    try:
        return _run_commands(search, fault, trials, chance)
    finally:
        if search.cluster is not None:
            search.cluster.shutdown()


def _run_commands(search: Search, fault: Fault | None, trials: int, chance: random.Random) -> Search:
    while True:
        process = search.start()
        try:
            while fault is not None and search.faults < fault.per_search:
                if not wait_for_moment(search, process, fault, chance):
                    break
                goes_on = search.num_ended() + len(search.open_trials()) + 1
                hit = time.monotonic()
                search.faults += 1
                fault.inject(search, process, chance)
                if wait_until(lambda goes_on=goes_on: search.num_ended() >= goes_on, process, search.limit):
                    search.recoveries.append(time.monotonic() - hit)
            process.wait(search.limit)
            search.commands.append(process.returncode)
        except subprocess.TimeoutExpired:  # whoever sees that kills it and goes on
            kill_everything(search, process, chance)
            process.wait()
            search.commands.append(HANGS)
        if search.cluster is None:
            end_leftovers(search.folder)
        if search.is_over():
            return search


def wait_for_moment(search: Search, process: subprocess.Popen, fault: Fault, chance: random.Random) -> bool:
    """Wait until the next fault is due: somewhere among the trials, or while the search still starts. False where the
    command has ended before."""
    if fault.at_start and search.faults == 0 and chance.random() < 0.3:
        return not wait_until(lambda: False, process, chance.uniform(3, 25)) and process.poll() is None
    total = 2 * search.trials
    steps = chance.randrange(1, max(2, total // (fault.per_search + 1)))
    target = min(search.num_ended() + steps, total - 1)
    return (
        wait_until(lambda: search.num_ended() >= target, process, search.limit)
        and not wait_until(lambda: False, process, chance.uniform(0, 1.5))
        and process.poll() is None
    )


def end_leftovers(folder: Path) -> None:
    """Processes of this search's own cluster that outlive its command: none should, seconds after its end."""
    deadline = time.monotonic() + 20
    while (left := list(_cluster_of(folder))) and time.monotonic() < deadline:
        time.sleep(0.5)
    for process in left:
        process.kill()


def _cluster_of(folder: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if any(str(folder / "ray") in word for word in process.cmdline()):
                yield process
        except psutil.Error:
            continue


def row_of(title: str, searches: list[Search], right: dict[str, dict[str, Any]]) -> list[str]:
    asked = finished = lost = extra = again = same = 0
    for search in searches:
        table = search.table()
        asked += len(right)
        finished += search.num_finished()
        lost += len(set(right) - set(table))
        extra += len(set(table) - set(right))
        again += search.num_repeated()
        same += table == right
    recoveries = [seconds for search in searches for seconds in search.recoveries]
    recovery = f"{statistics.median(recoveries):.0f} s" if recoveries else "by --resume"
    codes = Counter(c for s in searches for c in (s.commands[:-1] if s.commands[-1] == 0 else s.commands))
    ends = ", ".join(f"{'hangs' if c == HANGS else c} ({n}x)" for c, n in sorted(codes.items())) or "goes on"
    faults = sum(search.faults for search in searches)
    return [title, *map(str, (faults, asked, finished, again, lost, extra)), recovery, ends, f"{same}/{len(searches)}"]


HEAD = ["fault", "injected", "asked", "finished", "repeated", "lost", "extra", "recovery", "exit codes before", "equal"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="kinds of faults, comma-separated; all if not given")
    parser.add_argument("--injections", type=int, default=4, help="of each kind")
    parser.add_argument("--trials", type=int, default=5, help="of each of the two methods")
    parser.add_argument("--concurrent", type=int, default=2, help="trials at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="where to leave the searches' folders")
    parser.add_argument("--plain", action="store_true", help="put Ray Tune alone through it")
    options = parser.parse_args()
    Search.concurrent = options.concurrent
    faults, kind = (PLAIN_FAULTS, PlainSearch) if options.plain else (FAULTS, Search)
    names = [name for name in options.only.split(",") if name] or list(faults)
    with tempfile.TemporaryDirectory(prefix="f") as temporary:
        place = options.keep or Path(temporary)
        undisturbed = run_search(kind, None, place / "u", options.trials, random.Random(options.seed))
        assert undisturbed.commands == [0], (place / "u" / "output.txt").read_text()
        right = undisturbed.table()
        print(" | ".join(HEAD), flush=True)
        for name in names:
            fault = faults[name]
            searches = []
            for number in range(-(-options.injections // fault.per_search)):
                folder = place / f"{name}{number}"
                if name == "disk" and not mount_small(folder / "results"):
                    print(f"{fault.title} | not run: no tmpfs can be mounted here", flush=True)
                    break
                try:
                    chance = random.Random(f"{options.seed} {name} {number}")
                    searches.append(run_search(kind, fault, folder, options.trials, chance))
                    row = row_of(fault.title, searches[-1:], right)
                finally:
                    if name == "disk":
                        keep = folder / "kept"
                        shutil.copytree(folder / "results", keep, ignore=shutil.ignore_patterns("ballast"))
                        subprocess.run(["umount", str(folder / "results")], check=True)
                        shutil.copytree(keep, folder / "results", dirs_exist_ok=True)
                print("  one search: " + " | ".join(row), file=sys.stderr, flush=True)
            if searches:
                print(" | ".join(row_of(fault.title, searches, right)), flush=True)


def mount_small(folder: Path) -> bool:
    """A disk of 8 MiB at `folder`."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    main()

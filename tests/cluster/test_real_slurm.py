"""The Slurm script under a real Slurm of two nodes on this machine: whole searches, lost nodes, requeued jobs."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_unlearn.files import cache_folder
from ray_unlearn.records.tables import read_search

CHECKOUT = Path(__file__).parents[2]
SLURM = Path(__file__).with_name("real_slurm.sh")
pytestmark = [pytest.mark.slowest, pytest.mark.timeout(1800)]
PLAIN = ("--gpus-per-node=0", "--cpus-per-task=2")
SEARCH = (
    "--benchmark",
    "synthetic",
    "--methods",
    "npo",
    "--sampler",
    "qmc",
    "--robustness",
    "none",
    "--concurrent",
    "1",
)
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


class Slurm:
    """Two nodes, ru1 with 4 CPUs, ru2 with 2 and two GPUs that are none; each has a /tmp of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.shared = folder, folder / "shared"
        self.shared.mkdir()
        cache = cache_folder().absolute()
        self.cache = [str(cache)] if cache.parts[1] == "tmp" else []
        cache.mkdir(parents=True, exist_ok=True)
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(CHECKOUT),
            "RAY_UNLEARN_CACHE": str(cache),
            "PYTHONDONTWRITEBYTECODE": "1",  # as in many a shell
        }

    def script(self, what: str, *words: str) -> str:
        command = [str(SLURM), what, str(self.folder), *words]
        run = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=self.shared, env=self.environment, timeout=120
        )
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    def run(self, *command: str) -> str:
        return self.script("on", "ru1", *command)

    def submit(self, *options: str, search: tuple[str, ...]) -> str:
        """The job's number."""
        said = self.run("sbatch", "--parsable", *PLAIN, *options, str(CHECKOUT / "cluster" / "slurm.sh"), *search)
        return said.strip()

    def log(self, job: str) -> str:
        file = self.shared / f"ray_unlearn-{job}.log"
        return file.read_text() if file.exists() else ""

    def show(self, job: str) -> dict[str, str]:
        words = self.run("scontrol", "show", "job", "-o", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, seconds: float = 500) -> dict[str, str]:
        """What Slurm says of the job when it is over and its processes have ended."""
        self.wait_until(lambda: self.show(job)["JobState"] in OVER, job, seconds)
        return self.show(job)

    def wait_until(self, condition, job: str, seconds: float = 500) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.log(job)
            time.sleep(0.5)

    def place(self, job: str) -> Path:
        """Of the search that the job has begun."""
        (file,) = self.shared.glob(f"results/job-{job}/*/search.json")
        return file.parent

    def num_ended(self, job: str) -> int:
        with contextlib.suppress(ValueError, OSError):
            return sum('"ended"' in line for line in (self.place(job) / "ledger.jsonl").read_text().splitlines())
        return 0

    def leftovers(self) -> list[str]:
        """Token files, Ray's folders on the nodes, and processes on them that are not Slurm's."""
        found = [path.name for path in self.shared.glob(".ray_auth*")]
        found += [str(path) for node in ("ru1", "ru2") for path in (self.folder / f"tmp-{node}").glob("ray*")]
        for node in ("ru1", "ru2"):
            pids = subprocess.run(["ip", "netns", "pids", node], capture_output=True, text=True, check=True).stdout
            for pid in pids.split():
                with contextlib.suppress(OSError):
                    name = Path(f"/proc/{pid}/comm").read_text().strip()
                    found += [] if name.startswith("slurm") else [f"{node}: {name}"]
        return found


@pytest.fixture
def slurm() -> Iterator[Slurm]:
    if os.geteuid() != 0:
        pytest.skip("a real Slurm is made by root alone")
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter") if not shutil.which(name)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; Debian's slurm-wlm, munge and iproute2 have them")
    if subprocess.run(["ip", "netns", "add", "ru0"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespaces can be made here")
    subprocess.run(["ip", "netns", "del", "ru0"], check=True)
    folder = Path(tempfile.mkdtemp(prefix="rs", dir="/tmp"))
    made = Slurm(folder)
    try:
        made.script("up", *made.cache)
        yield made
    finally:
        made.script("down")
        shutil.rmtree(folder, ignore_errors=True)


def scores(folder: Path) -> list[dict]:
    varying = ("seconds", "memory", "retries")
    return [
        {k: v for k, v in row.items() if not any(part in k for part in varying)} for row in read_search(folder).trials
    ]


def test_a_search_runs_on_two_nodes_and_one_that_is_requeued_cancelled_and_resumed_ends_with_the_same_tables(slurm):
    options = (*SEARCH, "--trials", "9")
    whole = slurm.submit(search=options)
    assert slurm.wait(whole)["JobState"] == "COMPLETED", slurm.log(whole)
    assert slurm.leftovers() == []
    assert len(scores(slurm.place(whole))) == 9

    broken = slurm.submit(search=options)
    slurm.wait_until(lambda: slurm.num_ended(broken) >= 3, broken)
    slurm.run("scontrol", "requeue", broken)
    slurm.wait_until(lambda: slurm.show(broken)["JobState"] == "PENDING", broken)
    slurm.run("scontrol", "update", f"jobid={broken}", "starttime=now")  # Slurm itself would wait for two minutes
    slurm.wait_until(lambda: "going on with" in slurm.log(broken), broken)
    assert slurm.log(broken).count("slurm.sh: head on") == 2, "one log for both starts"
    slurm.wait_until(lambda: slurm.num_ended(broken) >= 6, broken)
    slurm.run("scancel", broken)
    assert slurm.wait(broken, 60)["JobState"] == "CANCELLED"
    slurm.wait_until(lambda: not slurm.leftovers(), broken, 40)
    resumed = slurm.submit(search=("--resume", str(slurm.place(broken))))
    assert slurm.wait(resumed)["JobState"] == "COMPLETED", slurm.log(resumed)
    assert scores(slurm.place(broken)) == scores(slurm.place(whole))
    assert slurm.leftovers() == []


def test_the_time_limit_is_an_interruption(slurm):
    job = slurm.submit("--time=5", "--signal=B:TERM@60", search=(*SEARCH, "--trials", "999"))
    found = slurm.wait(job)
    assert (found["JobState"], found["ExitCode"]) == ("FAILED", "130:0"), slurm.log(job)
    assert "told to end" in slurm.log(job)
    assert json.loads((slurm.place(job) / "search.json").read_text())["status"] == "partial"
    assert (slurm.place(job) / "report" / "report.html").is_file()
    assert scores(slurm.place(job))
    assert slurm.leftovers() == []


def test_the_search_goes_on_when_a_node_is_lost(slurm):
    job = slurm.submit(search=(*SEARCH[:-1], "2", "--trials", "60"))  # Slurm takes half a minute to notice
    slurm.wait_until(lambda: slurm.num_ended(job) >= 3, job)
    lost = subprocess.run(["ip", "netns", "pids", "ru2"], capture_output=True, text=True, check=True).stdout.split()
    for pid in lost:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    assert slurm.wait(job)["JobState"] == "COMPLETED", slurm.log(job)
    assert "lost ru2. The search goes on with the other nodes" in slurm.log(job)
    assert [row["status"] for row in scores(slurm.place(job))] == ["completed"] * 60
    left = [what for what in slurm.leftovers() if "tmp-ru2" not in what]  # nobody can clean a dead node
    assert left == []


def test_an_array_has_a_search_a_job_also_where_two_share_a_node(slurm):
    job = slurm.submit("--array=0-2", "--nodes=1", "--oversubscribe", search=(*SEARCH, "--trials", "1"))
    for task in range(3):
        found = slurm.wait(f"{job}_{task}")
        assert found["JobState"] == "COMPLETED", slurm.log(found["JobId"])
        (file,) = slurm.shared.glob(f"results/job-{job}_{task}/*/search.json")
        assert len(scores(file.parent)) == 1
    assert slurm.leftovers() == []


def test_a_head_that_cannot_start_ends_the_job_soon(slurm):
    slurm.environment |= {"HEAD_IP": "10.78.0.99"}
    began = time.monotonic()
    job = slurm.submit(search=(*SEARCH, "--trials", "1"))
    assert slurm.wait(job, 120)["JobState"] == "FAILED"
    assert time.monotonic() - began < 90, slurm.log(job)
    assert slurm.leftovers() == []


GPUS = ("--gpus-per-worker", "1", "--gpu-memory", "80")


@pytest.mark.parametrize(
    ("options", "more", "says"),
    [
        (("--nodes=1", "--gpus-per-node=k9:2"), GPUS, "2 trials at a time on 2 GPUs of 80 GiB"),
        (("--exclusive", "--cpus-per-task=1"), (), "5 trials at a time"),  # 4 + 2 - 0.5
        (("--oversubscribe", "--cpus-per-task=1"), (), "1 trial at a time"),  # 1 + 1 - 0.5
    ],
)
def test_ray_has_on_each_node_what_the_job_was_given_there(slurm, options, more, says):
    job = slurm.submit(*options, search=(*SEARCH[:-2], "--scale", "mini", "--trials", "9", "--dry-run", *more))
    assert slurm.wait(job)["JobState"] == "COMPLETED", slurm.log(job)
    assert says in slurm.log(job)

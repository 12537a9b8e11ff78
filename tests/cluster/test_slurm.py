"""The Slurm script, run with stand-ins for Slurm's commands: head, then workers, then the search, then nothing left.

With a real Slurm it runs in test_real_slurm.py.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.commands import parse

SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm.sh"

SRUN = """#!/bin/bash
# A job step: what it is told to run, on the node that is named.
while [[ $1 = --* ]]; do
  case $1 in --nodelist=*) export NODE=${1#--nodelist=} ;; esac
  shift
done
[ "$NODE" = "$BROKEN_NODE" ] && { echo "no such address" >&2; exit 1; }
exec "$@"
"""
PYTHON = """#!/bin/bash
# Ray on a node: notes its options, is up after a moment, and lives until it is told to end; where it is slow, only
# at the second start. Asked for the cluster's nodes: how many are up. Everything else is the real thing.
case "$*" in
  *"byte_code ray start"*)
    echo "$NODE: $*" >>"$JOURNAL"
    folder=$(printf '%s\\n' "$@" | sed -n 's/^--temp-dir=//p')
    if [ "$NODE" = "$SLOW_NODE" ] && [ ! -f "$FOLDER/slow" ]; then
      touch "$FOLDER/slow"
      echo "Exception: The current node timed out during startup."
      exit 1
    fi
    mkdir -p "$folder/session"
    trap 'echo "ended $NODE" >>"$JOURNAL"; exit 0' TERM
    sleep 0.2
    echo "$NODE" >>"$UP"
    while [ ! -f "$FOLDER/lost-$NODE" ]; do sleep 0.1; done
    exit 1 ;;
  *ray.init*)
    n=$(wc -l <"$UP")
    echo "asked $n" >>"$JOURNAL"
    case $ANSWER in never) ;; hangs) exec sleep 60 ;; *) [ "$n" -gt 0 ] && echo "${ANSWER:-$n}" ;; esac ;;
  *) exec "$REAL_PYTHON" "$@" ;;
esac
"""
SEARCH = """#!{python}
# The search: ends by itself, or, where it is told to last, only when it is interrupted.
import os, signal, sys, time
note = lambda text: open(os.environ["JOURNAL"], "a").write(text + "\\n")
token = os.environ["RAY_AUTH_TOKEN_PATH"]
note(f"search {{' '.join(sys.argv[1:])}}")
open(os.path.join(os.environ["TMPDIR"], "scratch"), "w").close()
note(f"temporary {{os.environ['TMPDIR']}}")
note(f"byte code {{not sys.flags.dont_write_bytecode}}")
if "--out" in sys.argv:
    *_, out = (word for name, word in zip(sys.argv, sys.argv[1:]) if name == "--out")  # the last one counts
    place = os.path.join(out, "tofu-20270102-030405")
    os.makedirs(place)
    open(os.path.join(place, "search.json"), "w").close()
note(f"token {{len(open(token).read())}} {{os.stat(token).st_mode & 0o777:o}} {{os.environ['RAY_AUTH_MODE']}}")
note(f"secret {{open(token).read()}}")
try:
    time.sleep(float(os.environ["SEARCH_SECONDS"]))
except KeyboardInterrupt:
    note("interrupted")
    time.sleep(0.3)  # writes its report
    note("reported")
    sys.exit(130)
sys.exit(int(os.environ.get("SEARCH_CODE", 0)))
"""


JOB = str(900_000_000 + os.getpid())
"""A number that no other run of these tests has: the folder in /tmp is named by it."""
PORT = 20_000 + int(JOB) % 3000 * 3


class Job:
    """One run of the script in a folder of its own."""

    def __init__(self, folder: Path, nodes: int = 3, seconds: float = 0.1, **environment: str) -> None:
        self.folder, self.journal = folder, folder / "journal"
        commands = folder / "bin"
        commands.mkdir()
        hosts = "\\n".join(f"node{i}" for i in range(nodes))
        texts = {
            "srun": SRUN,
            "python": PYTHON,
            "ray_unlearn": SEARCH.format(python=sys.executable),
            "scontrol": f'#!/bin/bash\n[ "$*" = "show hostnames list" ] && printf "{hosts}\\n"\n',
            "hostname": "#!/bin/bash\necho 10.0.0.1 172.17.0.1\n",
        }
        for name, text in texts.items():
            (commands / name).write_text(text)
            (commands / name).chmod(0o755)
        (folder / "up").touch()
        self.journal.touch()
        self.environment = {
            "PATH": f"{commands}:{os.environ['PATH']}",
            "HOME": str(folder),
            "JOURNAL": str(self.journal),
            "UP": str(folder / "up"),
            "REAL_PYTHON": sys.executable,
            "BROKEN_NODE": "none",
            "SLOW_NODE": "none",
            "ANSWER": "",
            "FOLDER": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "NODE_SECONDS": "2",
            "SEARCH_SECONDS": str(seconds),
            "POLL_SECONDS": "0.1",
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_JOB_ID": JOB,
            "SLURM_JOB_NODELIST": "list",
            "SLURM_CPUS_ON_NODE": "8",
            **environment,
        }

    def start(self, *options: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", str(SCRIPT), *options], env=self.environment, stderr=subprocess.PIPE, text=True, cwd="/"
        )

    def run(self, *options: str) -> tuple[int, str]:
        process = self.start(*options)
        errors = process.communicate(timeout=30)[1]
        return process.returncode, errors

    def lines(self) -> list[str]:
        return self.journal.read_text().splitlines()

    def wait_for(self, beginning: str) -> None:
        deadline = time.monotonic() + 20
        while not any(line.startswith(beginning) for line in self.lines()):
            assert time.monotonic() < deadline, self.lines()
            time.sleep(0.05)

    def starts(self) -> list[str]:
        """Ray's starts, each as its node and its options."""
        return [line for line in self.lines() if " ray start " in line]

    def leftovers(self) -> list[str]:
        """Job steps that still run, and files that are still there."""
        files = [str(p) for p in (*self.folder.glob(".ray_auth_token*"), *Path("/tmp").glob(f"ray-{JOB}*"))]
        alive = subprocess.run(["pgrep", "-f", f"{self.folder}/bin/python"], capture_output=True, text=True)
        return files + alive.stdout.split()


def test_it_is_a_script_that_bash_can_parse():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    assert os.access(SCRIPT, os.X_OK)


def test_shellcheck_finds_nothing():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", "--exclude=SC1091,SC2317", str(SCRIPT)], check=True)


def test_the_directives_stand_before_the_first_command_and_are_options_of_sbatch():
    lines = SCRIPT.read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert directives
    assert max(directives) < first_command, "Slurm ignores those that come later"
    options = dict(re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", lines[i]).groups() for i in directives)
    numbers = ("nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task")
    after_a_loss = {"open-mode", "requeue", "no-kill"}
    assert set(options) == {*numbers, "job-name", "exclusive", "time", "signal", "output", *after_a_loss}
    assert options["open-mode"] == "append", "else the log of a job that is requeued begins anew"
    assert all(int(options[name]) >= 1 for name in numbers)
    assert options["ntasks-per-node"] == "1", "one Ray a node"
    assert re.fullmatch(r"\d+:\d\d:\d\d", options["time"])
    assert re.fullmatch(r"B:TERM@\d+", options["signal"]), "the signal must reach this script, in time"


def test_the_head_comes_first_then_the_workers_then_the_search_and_nothing_is_left(tmp_path):
    job = Job(tmp_path)
    code, errors = job.run("--benchmark", "tofu", "--trials", "3")
    assert code == 0, errors
    lines = job.lines()
    starts = job.starts()
    started = [line.split(":")[0] for line in starts]
    assert (started[0], sorted(started[1:])) == ("node0", ["node1", "node2"])
    assert f"--head --node-ip-address=10.0.0.1 --port={PORT}" in starts[0]
    assert all(f"--address=10.0.0.1:{PORT}" in line and "--head" not in line for line in starts[1:])
    assert lines.index("asked 1") < lines.index(starts[1]), "no worker before the head answers"
    search = lines.index(f"search tune --benchmark tofu --trials 3 --out results/job-{JOB} --address 10.0.0.1:{PORT}")
    assert lines.index("asked 3") < search, "no search before all nodes are up"
    assert sorted(lines[-3:]) == ["ended node0", "ended node1", "ended node2"]
    assert job.leftovers() == []


def test_the_search_is_given_to_our_command_line_as_it_wants_it(tmp_path):
    job = Job(tmp_path, nodes=1)
    job.run("--benchmark", "tofu", "--workers-per-trial", "4", "--zero", "3")
    (line,) = (line for line in job.lines() if line.startswith("search "))
    command, options = parse(["ray_unlearn", *line.split()[1:]])
    assert (command, options["address"]) == ("tune", f"10.0.0.1:{PORT}")


def test_ray_has_the_options_that_nodes_are_started_with(tmp_path):
    from ray.scripts.scripts import start

    job = Job(tmp_path, nodes=2)
    job.run("--benchmark", "tofu")
    known = {name for parameter in start.params for name in parameter.opts}
    assert len(job.starts()) == 2
    for line in job.starts():
        assert set(re.findall(r"--[a-z-]+", line.partition(" ray start ")[2])) <= known


def test_the_token_is_a_private_file_of_this_job_and_in_no_command_line(tmp_path):
    job = Job(tmp_path, nodes=2)
    _, errors = job.run("--benchmark", "tofu")
    assert "token 64 600 token" in job.lines()
    (secret,) = (line.split()[1] for line in job.lines() if line.startswith("secret "))
    assert secret not in errors
    assert not any(secret in line for line in job.lines() if not line.startswith("secret "))


def test_the_searchs_exit_code_is_the_jobs(tmp_path):
    job = Job(tmp_path, nodes=1, SEARCH_CODE="3")
    assert job.run("--benchmark", "tofu")[0] == 3
    assert job.leftovers() == []


def test_at_the_time_limit_the_search_is_interrupted_reports_and_then_the_nodes_end(tmp_path):
    job = Job(tmp_path, seconds=60)
    process = job.start("--benchmark", "tofu")
    job.wait_for("secret")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=50)
    assert process.returncode == 130
    lines = job.lines()
    ends = [i for i, line in enumerate(lines) if line.startswith("ended")]
    assert len(ends) == 3
    assert lines.index("interrupted") < lines.index("reported") < min(ends)
    assert job.leftovers() == []


def test_a_signal_before_the_search_ends_what_was_started(tmp_path):
    job = Job(tmp_path, nodes=2, ANSWER="never")
    process = job.start("--benchmark", "tofu")
    job.wait_for("asked")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=50)
    assert process.returncode == 143
    assert not any(line.startswith("search") for line in job.lines())
    assert job.leftovers() == []


def test_a_node_that_cannot_start_ends_the_job_with_one_line(tmp_path):
    job = Job(tmp_path, BROKEN_NODE="node1")
    code, errors = job.run("--benchmark", "tofu")
    assert code == 1
    assert "a node's Ray ended at its start" in errors
    assert not any(line.startswith("search") for line in job.lines())
    assert job.leftovers() == []


def test_nodes_that_never_come_end_the_job_after_its_patience(tmp_path):
    job = Job(tmp_path, nodes=2, START_SECONDS="2", ANSWER="1")
    code, errors = job.run("--benchmark", "tofu")
    assert code == 1
    assert "1 of 2 node(s) were up after 2 s" in errors
    assert job.leftovers() == []


def test_without_options_for_the_search_it_says_so_and_starts_nothing(tmp_path):
    job = Job(tmp_path)
    code, errors = job.run()
    assert (code, job.lines()) == (2, [])
    assert "no options" in errors


def test_a_head_at_whose_address_nothing_listens_is_given_up_soon(tmp_path):
    job = Job(tmp_path, nodes=1, HEAD_SECONDS="2", ANSWER="closed")
    began = time.monotonic()
    code, errors = job.run("--benchmark", "tofu")
    assert code == 1
    assert f"nothing listens at 10.0.0.1:{PORT}, 2 s after the head's start" in errors
    assert time.monotonic() - began < 20
    assert job.leftovers() == []


def test_a_cluster_that_does_not_answer_is_asked_for_some_seconds_at_a_time(tmp_path):
    job = Job(tmp_path, nodes=1, START_SECONDS="2", ASK_SECONDS="0.5", ANSWER="hangs")
    began = time.monotonic()
    code, errors = job.run("--benchmark", "tofu")
    assert code == 1
    assert "0 of 1 node(s) were up after 2 s" in errors
    assert time.monotonic() - began < 15
    assert sum(line.startswith("asked") for line in job.lines()) > 1
    assert job.leftovers() == []


@pytest.mark.parametrize("node", ["node0", "node1"])
def test_a_node_on_which_ray_was_too_slow_starts_once_more(tmp_path, node):
    job = Job(tmp_path, nodes=2, SLOW_NODE=node)
    code, errors = job.run("--benchmark", "tofu")
    assert code == 0, errors
    assert [line.split(":")[0] for line in job.starts()].count(node) == 2
    assert "Ray was not up in its own time" in errors
    assert job.leftovers() == []


def test_each_node_gives_ray_what_the_job_was_given_there(tmp_path):
    job = Job(tmp_path, nodes=2, SLURM_CPUS_PER_TASK="2", SLURM_GPUS_ON_NODE="4", SLURM_MEM_PER_CPU="1000")
    job.run("--benchmark", "tofu")
    for line in job.starts():
        assert "--num-cpus=8 --num-gpus=4 --memory=5872025600 --object-store-memory=1677721600" in line


@pytest.mark.parametrize(
    ("given", "gpus"),
    [
        ({}, 0),
        ({"CUDA_VISIBLE_DEVICES": "0,3"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 0),
        ({"GPUS_PER_NODE": "8"}, 8),
    ],
)
def test_gpus_are_those_of_the_job_also_where_slurm_says_it_in_another_way(tmp_path, given, gpus):
    job = Job(tmp_path, nodes=1, **given)
    job.run("--benchmark", "tofu")
    assert [f"--num-gpus={gpus} " in line for line in job.starts()] == [True]
    assert not any("memory" in line for line in job.starts()), "the whole node's"


def test_byte_code_is_kept_whatever_the_shell_says_from_which_it_was_submitted(tmp_path):
    job = Job(tmp_path, nodes=1)
    job.run("--benchmark", "tofu")
    assert "byte code True" in job.lines()


def test_the_searchs_temporary_files_lie_in_the_folder_that_is_cleaned(tmp_path):
    job = Job(tmp_path, nodes=1)
    job.run("--benchmark", "tofu")
    assert f"temporary /tmp/ray-{JOB}/search" in job.lines()
    assert job.leftovers() == []


@pytest.mark.parametrize("out", [[], ["--out", "elsewhere"], ["--out=elsewhere"]])
def test_a_job_that_is_started_again_goes_on_with_its_own_search(tmp_path, out):
    words = ["--benchmark", "tofu", "--trials", "9", "--searches=3", "--concurrent=2", "--no-keep-model", *out]
    folder = f"{'elsewhere' if out else 'results'}/job-{JOB}"
    job = Job(tmp_path, nodes=1, SLURM_RESTART_COUNT="0")
    job.run(*words)
    assert f"search tune {' '.join(words)} --out {folder} --address 10.0.0.1:{PORT}" in job.lines()
    shutil.rmtree(tmp_path / "bin")
    job = Job(tmp_path, nodes=1, SLURM_RESTART_COUNT="1")
    _, errors = job.run(*words)
    resumed = f"tune --resume {folder}/tofu-20270102-030405 --trials 9 --searches=3 --concurrent=2 --no-keep-model"
    assert f"search {resumed} --address 10.0.0.1:{PORT}" in job.lines()
    assert "start number 2 of this job: going on" in errors
    command, options = parse(["ray_unlearn", *resumed.split()])
    assert (command, options["concurrent"], options["keep_model"]) == ("tune", 2, False)


def test_a_job_that_is_started_again_before_it_had_a_search_begins_one(tmp_path):
    job = Job(tmp_path, nodes=1, SLURM_RESTART_COUNT="3")
    job.run("--benchmark", "tofu")
    assert any(line.startswith("search tune --benchmark tofu --out") for line in job.lines())


def test_each_job_of_an_array_has_a_folder_of_its_own(tmp_path):
    job = Job(tmp_path, nodes=1, SLURM_ARRAY_JOB_ID="777", SLURM_ARRAY_TASK_ID="2")
    job.run("--benchmark", "tofu")
    assert (tmp_path / "results" / "job-777_2").is_dir()


def test_a_search_that_is_named_by_the_user_is_gone_on_with_as_they_said(tmp_path):
    job = Job(tmp_path, nodes=1, SLURM_RESTART_COUNT="1")
    job.run("--resume", "results/mine")
    assert f"search tune --resume results/mine --address 10.0.0.1:{PORT}" in job.lines()


def test_the_search_goes_on_where_a_node_is_lost_that_is_not_the_first(tmp_path):
    job = Job(tmp_path, nodes=2, seconds=3)
    process = job.start("--benchmark", "tofu")
    job.wait_for("secret")
    (tmp_path / "lost-node1").touch()
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 0, errors
    assert errors.count("lost node1. The search goes on") == 1
    assert job.leftovers() == []


def test_a_search_whose_head_is_lost_ends_with_the_job(tmp_path):
    job = Job(tmp_path, nodes=2, seconds=60)
    process = job.start("--benchmark", "tofu")
    job.wait_for("secret")
    (tmp_path / "lost-node0").touch()
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 143, errors
    assert "the head's Ray has ended" in errors
    assert job.leftovers() == []


def test_a_plain_scancel_which_tells_all_processes_at_once_leaves_nothing(tmp_path):
    job = Job(tmp_path, nodes=2, seconds=60, POLL_SECONDS="2")  # long, so that the signal meets the pause
    process = job.start("--benchmark", "tofu")
    job.wait_for("secret")
    script = psutil.Process(process.pid)
    below = script.children(recursive=True)
    for each in (script, *below):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=25)[1]
    assert process.returncode == 143, errors
    assert "the search ended with exit code 143" in errors, "the script is the last to end"
    assert not [each for each in below if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    assert job.leftovers() == []

"""The Slurm script, run with stand-ins for Slurm's commands: head, then workers, then the search, then nothing left."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import parse

SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm.sh"

SRUN = """#!/bin/bash
# A job step: notes its options, is one node that is up after a moment, and lives until it is told to end.
node=$(printf '%s\\n' "$@" | sed -n 's/^--nodelist=//p')
[ "$node" = "$BROKEN_NODE" ] && { echo "no such address" >&2; exit 1; }
echo "srun $*" >>"$JOURNAL"
trap 'echo "ended $node" >>"$JOURNAL"; exit 0' TERM
sleep 0.2
echo "$node" >>"$UP"
while :; do sleep 0.1; done
"""
PYTHON = """#!/bin/bash
# Asked for the cluster's nodes: how many are up. Everything else is the real thing.
case "$*" in
  *ray.init*) n=$(wc -l <"$UP"); echo "asked $n" >>"$JOURNAL"; [ "$n" -gt 0 ] && echo "$n" ;;
  *) exec "$REAL_PYTHON" "$@" ;;
esac
"""
SEARCH = """#!{python}
# The search: ends by itself, or, where it is told to last, only when it is interrupted.
import os, signal, sys, time
note = lambda text: open(os.environ["JOURNAL"], "a").write(text + "\\n")
token = os.environ["RAY_AUTH_TOKEN_PATH"]
note(f"search {{' '.join(sys.argv[1:])}}")
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
            "SEARCH_SECONDS": str(seconds),
            "POLL_SECONDS": "0.1",
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_JOB_ID": "12345",
            "SLURM_JOB_NODELIST": "list",
            "SLURM_CPUS_PER_TASK": "8",
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

    def leftovers(self) -> list[str]:
        """Job steps that still run, and token files that are still there."""
        files = [p.name for p in self.folder.glob(".ray_auth_token*")]
        alive = subprocess.run(["pgrep", "-f", f"{self.folder}/bin/srun"], capture_output=True, text=True)
        return files + alive.stdout.split()


def test_it_is_a_script_that_bash_can_parse():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    assert os.access(SCRIPT, os.X_OK)


def test_shellcheck_finds_nothing():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", "--exclude=SC1091", str(SCRIPT)], check=True)


def test_the_directives_stand_before_the_first_command_and_are_options_of_sbatch():
    lines = SCRIPT.read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert directives
    assert max(directives) < first_command, "Slurm ignores those that come later"
    options = dict(re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", lines[i]).groups() for i in directives)
    numbers = ("nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task")
    assert set(options) == {*numbers, "job-name", "exclusive", "time", "signal", "output"}
    assert all(int(options[name]) >= 1 for name in numbers)
    assert options["ntasks-per-node"] == "1", "one Ray a node"
    assert re.fullmatch(r"\d+:\d\d:\d\d", options["time"])
    assert re.fullmatch(r"B:TERM@\d+", options["signal"]), "the signal must reach this script, in time"


def test_the_head_comes_first_then_the_workers_then_the_search_and_nothing_is_left(tmp_path):
    job = Job(tmp_path)
    code, errors = job.run("--benchmark", "tofu", "--trials", "3")
    assert code == 0, errors
    lines = job.lines()
    starts = [line for line in lines if line.startswith("srun")]
    started = [re.search(r"--nodelist=(\S+)", line)[1] for line in starts]
    assert (started[0], sorted(started[1:])) == ("node0", ["node1", "node2"])
    assert "--head --node-ip-address=10.0.0.1 --port=22345" in starts[0]
    assert all("--address=10.0.0.1:22345" in line and "--head" not in line for line in starts[1:])
    assert lines.index("asked 1") < lines.index(starts[1]), "no worker before the head answers"
    search = lines.index("search tune --benchmark tofu --trials 3 --address 10.0.0.1:22345")
    assert lines.index("asked 3") < search, "no search before all nodes are up"
    assert sorted(lines[-3:]) == ["ended node0", "ended node1", "ended node2"]
    assert job.leftovers() == []


def test_the_search_is_given_to_our_command_line_as_it_wants_it(tmp_path):
    job = Job(tmp_path, nodes=1)
    job.run("--benchmark", "tofu", "--workers-per-trial", "4", "--zero", "3")
    (line,) = (line for line in job.lines() if line.startswith("search "))
    command, options = parse(["ray_unlearn", *line.split()[1:]])
    assert (command, options["address"]) == ("tune", "10.0.0.1:22345")


def test_ray_has_the_options_that_nodes_are_started_with(tmp_path):
    from ray.scripts.scripts import start

    job = Job(tmp_path, nodes=2)
    job.run("--benchmark", "tofu")
    known = {name for parameter in start.params for name in parameter.opts}
    for line in job.lines():
        if line.startswith("srun"):
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
    job = Job(tmp_path, nodes=2)
    (tmp_path / "bin" / "python").write_text(PYTHON.replace('echo "$n" ;;', "true ;;"))  # never up
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
    job = Job(tmp_path, nodes=2, START_SECONDS="2")
    (tmp_path / "bin" / "python").write_text(PYTHON.replace('echo "$n" ;;', "echo 1 ;;"))
    code, errors = job.run("--benchmark", "tofu")
    assert code == 1
    assert "1 of 2 node(s) were up after 2 s" in errors
    assert job.leftovers() == []


def test_without_options_for_the_search_it_says_so_and_starts_nothing(tmp_path):
    job = Job(tmp_path)
    code, errors = job.run()
    assert (code, job.lines()) == (2, [])
    assert "no options" in errors

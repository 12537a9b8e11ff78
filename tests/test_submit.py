"""Submitting: what is checked before anything is sent, what is sent, and what a job's end means."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from ray_unlearn import cli
from ray_unlearn.commands import job_command, rayjob, submit
from ray_unlearn.commands.checks import check_job_folder
from ray_unlearn.commands.options import Tune
from ray_unlearn.config import SearchFailed, UserError
from ray_unlearn.files import cache_folder, results_folder
from ray_unlearn.records.ledger import read_ledger
from ray_unlearn.records.tables import read_search
from tests.cluster.test_rayjob import complaints, pods
from tests.commands import parse
from tests.heads import free_ports, running_head

ROOT = Path(__file__).parents[1]
TUNE = ["tune", "--benchmark", "tofu", "--out", "/shared/results"]
TOKEN = "a-token-that-nobody-may-see-0123456789"


# ---- what is checked here


def test_the_command_is_parsed_here_and_gets_the_clusters_address():
    command = job_command.read_command(["ray_unlearn", *TUNE])
    assert command.words == (*TUNE, "--address", "auto")
    assert job_command.read_command([*TUNE, "--address", "ray://head"]).words == (*TUNE, "--address", "ray://head")
    assert job_command.read_command(["methods"]).words == ("methods",), "it takes no address"


def test_an_address_from_the_environment_here_is_not_the_clusters(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert job_command.read_command(TUNE).words[-2:] == ("--address", "auto")


@pytest.mark.parametrize("words", [[], ["submit", "--", "tune"], ["tun"]])
def test_what_is_no_command_is_refused(words):
    with pytest.raises(UserError, match="is no command to run there"):
        job_command.read_command(words)


def test_an_option_that_does_not_exist_is_wrong_use_before_anything_is_sent():
    run = CliRunner().invoke(cli.app, ["submit", "--", *TUNE, "--trails", "3"])
    assert run.exit_code == cli.USAGE
    assert "--trails" in run.output


def test_results_must_not_go_into_the_jobs_own_folder():
    for words in (["tune", "-b", "wmdp", "--out", "results"], ["compare", "results/x"], ["report", "results/x"]):
        with pytest.raises(UserError, match=r"goes with the job.*such as /shared/results"):
            submit.check_writes(job_command.read_command(words))
    for words in (
        TUNE,
        ["tune", "-b", "wmdp"],
        ["doctor"],
        ["export", "/shared/results/x"],
        ["reproduce", "/shared/reproduce.json"],
    ):
        submit.check_writes(job_command.read_command(words))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder to upload, and the current one."""
    (tmp_path / "models" / "target").mkdir(parents=True)
    (tmp_path / "models" / "target" / "config.json").write_text("{}")
    (tmp_path / "staff.toml").write_text("")
    (tmp_path / ".rayignore").write_text("/models\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_read_must_travel_or_lie_on_the_cluster(folder):
    travelling = submit.list_travelling(folder)
    assert set(travelling) == {Path("staff.toml"), Path(".rayignore")}

    def check(*words, uploaded=folder):
        submit.check_reads(job_command.read_command([*TUNE, *words]), uploaded, travelling if uploaded else {})

    check("--benchmark", "staff.toml")
    check("--model", "/shared/models/target")
    check("--model", "models/not-here")
    with pytest.raises(UserError, match=r"--model models/target: lies here and is not uploaded.*/shared/target"):
        check("--model", "models/target")
    with pytest.raises(UserError, match=r"--benchmark staff.toml: lies here"):
        check("--benchmark", "staff.toml", uploaded=None)


def test_a_checkout_is_uploaded_and_another_folder_only_when_asked_for(folder, monkeypatch):
    assert submit.find_working_dir(None) is None
    assert submit.find_working_dir(Path()) == folder.resolve()
    monkeypatch.chdir(ROOT)
    assert submit.find_working_dir(None) == ROOT
    with pytest.raises(UserError, match="no such folder"):
        submit.find_working_dir(folder / "nowhere")


def test_too_large_a_folder_is_refused_with_its_heaviest_parts(folder):
    (folder / "data" / "raw").mkdir(parents=True)
    for name, size in (("data/raw/big.bin", 90), ("data/small.bin", 5), ("weights.pt", 30), ("ignored.bin", 500)):
        with (folder / name).open("wb") as file:
            file.truncate(size << 20)  # sparse: takes no disk
    (folder / ".gitignore").write_text("ignored.bin\n")
    with pytest.raises(UserError, match=r"125 MiB to upload, and Ray takes 100") as error:
        submit.check_size(folder, submit.list_travelling(folder))
    assert "data/raw/big.bin (90 MiB), weights.pt (30 MiB), " in str(error.value)
    assert "ignored" not in str(error.value)
    assert "\n" not in str(error.value)


def test_the_counted_size_is_that_of_the_archive(folder):
    from ray._private.runtime_env.packaging import create_package

    (folder / "code").mkdir()
    for i in range(40):
        (folder / "code" / f"part{i}.py").write_text("x = 1\n" * i)
    create_package(str(folder), folder.parent / "package.zip", include_gitignore=True)
    size = submit.check_size(folder, submit.list_travelling(folder))
    assert 0 <= size - (folder.parent / "package.zip").stat().st_size < 40 * submit.ZIP_ENTRY


# ---- what is sent


class Dashboard(ThreadingHTTPServer):
    """As much of Ray's job server as submitting needs; `guarded`: it asks for the token."""

    def __init__(self, guarded: bool) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.guarded, self.seen = guarded, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = self.headers.get("Authorization", "")
        self.server.seen.append((self.command, self.path, token, body))
        if self.server.guarded and token != f"Bearer {TOKEN}":
            return self.say(403 if token else 401, "Unauthorized")
        if self.path == "/api/version":
            return self.say(200, {"version": "4", "ray_version": "2.60.0", "ray_commit": "x"})
        if self.path.startswith("/api/packages/"):
            return self.say(404 if self.command == "GET" else 200, {})
        if self.command == "POST" and self.path == "/api/jobs/":
            return self.say(200, {"submission_id": "raysubmit_1", "job_id": "raysubmit_1"})
        return self.say(404, "no such job")

    do_GET = do_PUT = do_POST = answer

    def say(self, code: int, what) -> None:
        content = (what if isinstance(what, str) else json.dumps(what)).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments) -> None:
        pass


def run_cli(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and "proxy" not in k.lower()}
    return subprocess.run(
        [sys.executable, "-m", "ray_unlearn.cli", "submit", *words],
        cwd=cwd,
        env={**clean, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=50,
    )


@pytest.mark.parametrize("guarded", [False, True])
def test_a_job_is_submitted_and_the_token_goes_only_where_it_is_asked_for(folder, tmp_path_factory, guarded):
    home = tmp_path_factory.mktemp("home")
    (home / "token").write_text(TOKEN)
    server = Dashboard(guarded)
    words = ("--address", server.address, "--working-dir", ".", "--no-follow", "--json", "--", *TUNE)
    elsewhere = {"RAY_ADDRESS": "http://127.0.0.1:9", "RAY_AUTH_TOKEN_PATH": str(home / "token"), "HOME": str(home)}
    run = run_cli(*words, cwd=folder, **elsewhere)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["job"] == "raysubmit_1"
    sent = {(method, path): (token, body) for method, path, token, body in server.seen}
    job = json.loads(sent["POST", "/api/jobs/"][1])
    assert shlex.split(job["entrypoint"]) == ["python", "-m", "ray_unlearn.cli", *TUNE, "--address", "auto"]
    assert job["runtime_env"]["working_dir"].startswith("gcs://_ray_pkg_")
    assert job["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
    assert any(method == "PUT" and b"staff.toml" in body for method, _, _, body in server.seen)
    assert sent["POST", "/api/jobs/"][0] == (f"Bearer {TOKEN}" if guarded else "")
    assert not server.seen[0][2], "the first question goes without a token"
    assert not any(TOKEN.encode() in body for *_, body in server.seen)
    assert TOKEN not in run.stdout + run.stderr
    assert "--stop raysubmit_1" in run.stderr, "how to go on"


def test_a_cluster_that_does_not_let_us_in_is_one_line(folder, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    server = Dashboard(guarded=True)
    words = ("--address", server.address, "--no-follow", "--", *TUNE)
    (home / "wrong").write_text("another-" + TOKEN)
    for environment, says in (
        ({}, "asks for a token and there is none here"),
        ({"RAY_AUTH_TOKEN_PATH": str(home / "wrong")}, "does not take the token that is here"),
    ):
        run = run_cli(*words, cwd=folder, HOME=str(home), **environment)
        assert run.returncode == cli.USAGE, run.stderr
        assert says in run.stderr
        assert len(run.stderr.strip().splitlines()) == 1, run.stderr
        assert TOKEN not in run.stderr
    assert not any(path.startswith("/api/jobs") for _, path, *_ in server.seen)


@pytest.mark.parametrize("address", ["auto", "head:8265", "ray://head:10001"])
def test_an_address_that_is_no_dashboards_is_refused(address):
    with pytest.raises(UserError, match="http://HEAD:8265"):
        submit.connect(address)


def test_no_dashboard_is_one_line():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match="no dashboard answers"):
            submit.connect(f"http://127.0.0.1:{unused.getsockname()[1]}")


# ---- what a job's end means


class Client:
    """A job whose log comes in parts, over connections that break; then it is at its end."""

    def __init__(self, log: str, parts: list[list[str] | Exception], status: str, code: int | None) -> None:
        self.log, self.parts, self.status, self.code = log, parts, status, code

    async def tail_job_logs(self, job):
        part = self.parts.pop(0) if self.parts else []
        if isinstance(part, Exception):
            raise part
        for text in part:
            yield text

    def get_job_logs(self, job):
        return self.log

    def get_job_info(self, job):
        return SimpleNamespace(
            status=Status(self.status, ended=not self.parts),
            driver_exit_code=self.code,
            message="it broke\nin two lines",
        )


class Status(str):
    def __new__(cls, name, ended):
        status = super().__new__(cls, name)
        status.ended = ended
        return status

    def is_terminal(self):
        return self.ended


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(submit, "POLL_SECONDS", 0.01)


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 3, 3),
        ("FAILED", 130, 130),
        ("FAILED", -9, 137),
        ("FAILED", None, 1),
        ("STOPPED", None, 143),
    ],
)
def test_the_jobs_own_exit_code_is_ours(status, driver, code, capsys):
    client = Client("one\ntwo\n", [["one\n", "two\n"]], status, driver)
    assert submit.follow(client, "job1", "http://head:8265", submit.Screen(True), {"job": "job1"}) == code
    out, err = capsys.readouterr()
    assert json.loads(out) == {"job": "job1", "status": status, "exit_code": code}
    assert "one\ntwo\n" in err
    assert ("it broke" in err) == (driver is None and code != 0)


def test_a_broken_connection_is_made_again_and_shows_nothing_twice():
    whole = "".join(f"line {i}\n" for i in range(9))
    first, second = whole[:10], whole[:40]
    client = Client(whole, [[first], RuntimeError("closed"), [second[:15], second[15:]], OSError("reset")], "x", 0)
    shown: list[str] = []
    submit.show_log(client, "job1", "http://head:8265", shown.append)
    assert "".join(shown) == whole


def test_a_connection_that_stays_broken_is_told_with_how_to_go_on():
    client = Client("", [OSError("reset")] * 20, "x", None)
    with pytest.raises(SearchFailed, match=r"the job goes on.*--follow job1"):
        submit.show_log(client, "job1", "http://head:8265", print)


def test_ctrl_c_leaves_the_job_running_and_says_how_to_follow_and_stop_it(capsys):
    client = Client("", [KeyboardInterrupt()], "RUNNING", None)  # type: ignore[list-item]

    async def interrupted(job):
        raise KeyboardInterrupt
        yield

    client.tail_job_logs = interrupted  # type: ignore[method-assign]
    assert submit.follow(client, "job1", "http://head:8265", submit.Screen(False), {}) == submit.INTERRUPTED
    said = capsys.readouterr().err
    assert "--address http://head:8265 --follow job1" in said
    assert "--address http://head:8265 --stop job1" in said


def test_one_thing_at_a_time():
    for words in ([], ["--stop", "a", "--follow", "b"], ["--stop", "a", "--", "methods"]):
        run = CliRunner().invoke(cli.app, ["submit", *words])
        assert isinstance(run.exception, UserError), words
        assert "Give one of" in str(run.exception)


# ---- the manifest


def test_the_manifest_that_is_written_has_known_fields_alone_and_runs_the_command(tmp_path):
    words = ["--benchmark", "tofu", "--model", "/shared/it's 1", "--workers-per-trial", "6", "--zero", "3"]
    file = tmp_path / "mine.yaml"
    rayjob.write_rayjob(file, ["tune", *words, "--out", "/shared/results"])
    documents = list(yaml.safe_load_all(file.read_text()))
    assert [complaints(d) for d in documents] == [[], []]
    job = documents[1]
    name, options = parse(shlex.split(job["spec"]["entrypoint"]))
    assert (name, options["model"], options["address"]) == ("tune", "/shared/it's 1", "auto")
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token", "secretName": "ray-unlearn-token"}
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    gpus = int(pods(job)["gpu"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert group["replicas"] * gpus >= 6
    assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert "kubectl apply -f mine.yaml" in file.read_text()
    with pytest.raises(UserError, match="is there already"):
        rayjob.write_rayjob(file, TUNE)


def test_only_the_entrypoint_differs_where_one_pod_is_enough():
    text = rayjob.template().read_text()
    written = rayjob.rayjob_text(text, job_command.read_command(TUNE), "cluster/rayjob.yaml")
    before, after = (list(yaml.safe_load_all(t))[1] for t in (text, written))
    assert after["spec"].pop("entrypoint") != before["spec"].pop("entrypoint")
    assert after == before


def test_the_manifests_paths_lie_on_the_common_volume(tmp_path):
    for words in (["--out", "results"], ["--out", "/tmp/results"], ["--out", "/shared/r", "--model", "/home/me/m"]):
        with pytest.raises(UserError, match="the pods have only /shared in common"):
            rayjob.write_rayjob(tmp_path / "job.yaml", ["tune", "--benchmark", "tofu", *words])


# ---- a real cluster


@pytest.fixture(scope="module")
def dashboard():
    """A head node of its own with a dashboard."""
    pytest.importorskip("aiohttp_cors", reason="the dashboard needs ray[default]")
    (board,) = free_ports(1)
    words = (f"--dashboard-port={board}", "--include-dashboard=true", "--num-cpus=2")
    address = f"http://127.0.0.1:{board}"
    with running_head(words, TOKEN) as head:
        head.wait_until(lambda: answers(address))
        # Without RAY_AUTH_MODE: the client finds out that it is asked for a token.
        yield address, {"RAY_AUTH_TOKEN_PATH": head.client_environment["RAY_AUTH_TOKEN_PATH"]}


def answers(address: str) -> bool:
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=2).close()
    except urllib.error.HTTPError as error:
        return error.code == 401
    except OSError:
        return False
    return True


@pytest.mark.slowest
@pytest.mark.timeout(420)
def test_a_search_a_wrong_use_a_stop_and_a_resume_on_a_real_cluster(dashboard, tmp_path):
    import pyarrow.parquet as pq

    address, environment = dashboard

    def command(*words: str) -> list[str]:
        return [sys.executable, "-m", "ray_unlearn.cli", "submit", "--address", address, *words]

    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_A") and "proxy" not in k.lower()}
    clean |= {**environment, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command(*words), cwd=ROOT, env=clean, capture_output=True, text=True, timeout=250)

    small = ("--benchmark", "synthetic", "--scale", "mini", "--robustness", "none", "--out", str(tmp_path / "results"))
    search = run("--json", "--", "tune", *small, "--methods", "simnpo", "--trials", "2")
    assert search.returncode == 0, search.stderr[-3000:]
    result = json.loads(search.stdout)
    assert (result["status"], result["exit_code"]) == ("SUCCEEDED", 0)
    assert "[2/2]" in search.stderr, "the log is followed"
    (folder,) = (tmp_path / "results").glob("synthetic-*")
    assert pq.read_table(folder / "trials", partitioning=None).num_rows == 2
    assert json.loads((folder / "local.json").read_text())["config"]["address"] == "auto"

    wrong = run("--", "tune", *small, "--methods", "nosuch")
    assert wrong.returncode == 2, wrong.stderr
    assert "nosuch" in wrong.stdout

    long = run("--no-follow", "--json", "--", "tune", *small, "--methods", "ga", "--trials", "24", "--concurrent", "1")
    job = json.loads(long.stdout)["job"]
    watcher = subprocess.Popen(command("--follow", job), cwd=ROOT, env=clean, stdout=subprocess.PIPE, text=True)
    assert watcher.stdout is not None
    seen = ""
    for line in watcher.stdout:
        seen += line
        if re.search(r"\[1/24\]", line):
            break
    assert "[1/24]" in seen
    stopped = run("--stop", job, "--json")
    assert stopped.returncode == 0, stopped.stderr
    assert json.loads(stopped.stdout)["status"] == "STOPPED"
    seen += watcher.stdout.read()
    assert watcher.wait(60) == submit.STOPPED
    (half,) = set((tmp_path / "results").glob("synthetic-*")) - {folder}
    ended = [row["trial_id"] for row in read_search(half).trials]
    assert 1 <= len(ended) < 24, "what had ended by then is kept, and nothing else"
    assert f"ray_unlearn tune --resume {half}" in seen

    rest = run("--", "tune", "--resume", str(half))
    assert rest.returncode == 0, rest.stdout + rest.stderr
    assert [row["trial_id"] for row in read_search(half).trials] == [f"ga-{i:04d}" for i in range(24)]
    suggested = [e["trial"]["trial_id"] for e in read_ledger(half).events if e["event"] == "suggested"]
    assert len(suggested) == len(set(suggested)) == 24
    assert run("--stop", "raysubmit_none").returncode == cli.USAGE
    assert not [line for text in (search.stderr, wrong.stdout, seen) for line in text.splitlines() if TOKEN in line]


@pytest.mark.parametrize(
    ("place", "writes"),
    [("/shared/results/a", ["--resume"]), ("results/a", ["--resume"]), ("s3://bucket/searches/a", [])],
)
def test_a_search_that_goes_on_writes_where_it_is(place, writes):
    command = job_command.read_command(("tune", "--resume", place))
    assert [written for written, _ in command.writes] == writes
    if place.startswith("results"):
        with pytest.raises(UserError, match="own folder"):
            submit.check_writes(command)
    else:
        submit.check_writes(command)


# ---- Ray's own command


def in_a_job(monkeypatch, tmp_path) -> Path:
    """As Ray lays out a job's uploaded working directory."""
    place = tmp_path / "session_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAY_UNLEARN_OUT", raising=False)
    return place


def test_results_go_outside_the_jobs_own_folder_and_where_they_go_is_said(tmp_path, monkeypatch, capfd):
    assert results_folder() == Path("results")
    in_a_job(monkeypatch, tmp_path)
    home = tmp_path / "home" / "ray_unlearn" / "results"
    assert parse(["ray_unlearn", "tune", "--benchmark", "wmdp"])[1]["out"] == home
    check_job_folder(Tune(benchmark="wmdp"))
    assert capfd.readouterr().out.startswith(f"Results: {home} ")
    monkeypatch.setenv("RAY_UNLEARN_OUT", "/shared/results")
    assert parse(["ray_unlearn", "evaluate", "--benchmark", "wmdp", "--model", "m"])[1]["out"] == Path(
        "/shared/results"
    )


@pytest.mark.parametrize(
    "words",
    [
        ("tune", "--benchmark", "wmdp", "--out", "results"),
        ("tune", "--resume", "results/x"),
        ("evaluate", "--benchmark", "wmdp", "--model", "m", "--profile", "p.json"),
        ("compare", "results/x"),
        ("report", "results/x"),
        ("export", "results/x"),
        ("export", "/shared/results/x", "--out", "model"),
    ],
)
def test_a_relative_place_for_results_is_refused_inside_a_job(tmp_path, monkeypatch, capfd, words):
    in_a_job(monkeypatch, tmp_path)
    monkeypatch.setattr(sys, "argv", ["ray_unlearn", *words])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "lies in the job's own folder, which goes with the job. Give an absolute path" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_the_plain_command_of_ray_keeps_its_results(tmp_path):
    """Typed in a folder that is no checkout, against a head that `ray start` began elsewhere."""
    pytest.importorskip("aiohttp_cors", reason="the dashboard needs ray[default]")
    (board,) = free_ports(1)
    words = (f"--dashboard-port={board}", "--include-dashboard=true", "--num-cpus=2")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("uploaded")
    cache = os.environ.get("RAY_UNLEARN_CACHE", str(cache_folder()))
    there = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "home"), "RAY_UNLEARN_CACHE": cache}
    with running_head(words, TOKEN, **there) as head:
        address = f"http://127.0.0.1:{board}"
        head.wait_until(lambda: answers(address))
        typed = "ray job submit --working-dir . -- ray_unlearn tune --benchmark wmdp"
        fewer = " --methods ga --trials 1 --concurrent 1 --robustness none"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "PYTHONPATH"}
        clean |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RAY_API_SERVER_ADDRESS": address}
        run = subprocess.run(
            typed + fewer, shell=True, cwd=mine, env=clean | head.client_environment, capture_output=True, text=True
        )
    assert run.returncode == 0, run.stdout + run.stderr
    out = tmp_path / "home" / "ray_unlearn" / "results"
    assert f"Results: {out} (this job's own folder goes with it" in run.stdout
    (folder,) = out.iterdir()
    assert folder.name in run.stdout
    assert [row["status"] for row in read_search(folder).trials] == ["completed"]
    assert (folder / "report" / "report.html").is_file()
    assert (folder / "model" / "config.json").is_file()
    assert sorted(path.name for path in mine.iterdir()) == ["notes.txt"]

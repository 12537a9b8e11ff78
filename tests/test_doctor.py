"""What the doctor finds on machines that are not here, and that it leaves this one as it was."""

import json
import os

import pytest

from ray_unlearn.commands import doctor as doctor_command
from ray_unlearn.commands import machine as doctor
from ray_unlearn.commands.machine import GIB, OK, PROBLEM, WARNING, Gpu, Port
from tests.test_cli import run


def states(checks) -> dict[str, str]:
    return {check.name: check.state for check in checks}


def test_an_old_version_is_a_warning_with_both_versions_and_the_way_out():
    checks = doctor.check_packages(["optuna<6,>=5"], {"optuna": "5.1.0"}, {"optuna": "5.0.0"})
    (check,) = checks
    assert check.state == WARNING
    assert "5.0.0" in check.says
    assert "5.1.0" in check.says
    assert check.fix == "pip install -c constraints.txt 'optuna<6,>=5'"


def test_a_version_outside_the_range_or_a_missing_package_is_a_problem():
    required = ["ray[train,tune]<3,>=2.60", "torch<3,>=2.13", "rich>=14"]
    have = {"ray": "2.9.0", "torch": None, "rich": "15.0.0"}
    checks = doctor.check_packages(required, {"rich": "15.0.0"}, have)
    assert states(checks) == {"packages": OK, "ray": PROBLEM, "torch": PROBLEM}
    assert "2.9.0" in checks[1].says
    assert ">=2.60" in checks[1].says


def test_a_build_for_another_cuda_is_the_same_version():
    assert states(doctor.check_packages(["torch>=2.13"], {"torch": "2.13.0"}, {"torch": "2.13.0+cu130"})) == {
        "packages": OK
    }


def test_names_are_the_same_with_hyphen_and_underscore():
    tested = doctor.tested_versions()
    (check,) = doctor.check_packages(["rouge-score>=0.1"], tested, {"rouge-score": tested["rouge_score"]})
    assert check.state == OK


def test_what_is_tested_is_read_from_the_constraints():
    import ray

    assert doctor.tested_versions()["ray"] == ray.__version__


def test_another_python_is_a_problem():
    assert doctor.check_python("3.10.4", ">=3.11").state == PROBLEM
    assert doctor.check_python("3.12.1", ">=3.11").state == OK


def test_no_gpu_is_a_note_and_an_old_one_a_problem():
    none = doctor.check_gpus([], nccl=False)
    assert none.state == OK
    assert "miniature" in none.says
    new, old = Gpu("L4", 24 * GIB, True), Gpu("T4", 16 * GIB, False)
    assert doctor.check_gpus([new, new], nccl=True).says.startswith("2 x L4 (24 GiB)")
    assert doctor.check_gpus([new, old], nccl=True).state == PROBLEM
    assert doctor.check_gpus([new, new], nccl=False).state == PROBLEM
    assert doctor.check_gpus([new], nccl=False).state == OK


@pytest.mark.parametrize(
    ("free", "total", "state"),
    [(0.5, 100, PROBLEM), (10, 100, WARNING), (50, 100, OK), (40, 1000, WARNING)],
)
def test_a_full_disk_is_a_problem_and_one_that_ray_takes_for_full_a_warning(free, total, state):
    check = doctor.check_disk("results", "/data/results", int(free * GIB), total * GIB)
    assert check.state == state
    assert "/data/results" in check.says
    assert bool(check.fix) == (state != OK)


def test_little_memory_and_little_shared_memory_are_said():
    assert doctor.check_memory(2, GIB).state == PROBLEM
    assert doctor.check_memory(2, 4 * GIB).state == WARNING
    assert doctor.check_memory(2, 16 * GIB).state == OK
    assert "--shm-size" in doctor.check_shm(64 << 20).fix
    assert doctor.check_shm(None).state == OK


def test_the_hub_is_not_asked_offline_and_its_silence_is_a_warning(monkeypatch):
    assert doctor.check_hub("hub", True, None, False).state == OK
    assert "--data" in doctor.check_hub("hub", False, "gaierror", False).fix

    def refuse(*positional, **named):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(doctor.urllib.request, "urlopen", refuse)
    assert "HF_HUB_OFFLINE" in doctor.ask_hub().says


def test_the_hubs_address_is_shown_without_the_password_in_it(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://me:word@127.0.0.1:9")
    check = doctor.ask_hub()
    assert check.state == WARNING
    assert "127.0.0.1" in check.says
    assert "word" not in str(check)


@pytest.mark.parametrize(
    ("mode", "has_token", "readable", "state"),
    [
        ("token", True, False, OK),
        ("token", False, False, WARNING),
        ("token", True, True, WARNING),
        ("disabled", True, False, WARNING),
        (None, True, False, OK),
        (None, False, False, OK),
        ("tokens", True, False, PROBLEM),
    ],
)
def test_authentication(mode, has_token, readable, state):
    assert doctor.check_authentication(mode, has_token, readable).state == state


def test_a_token_file_that_others_can_read_is_found(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setattr(doctor, "_shut_in", lambda file: False)
    file = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    assert doctor.find_token() == (False, False)
    file.write_text("secret")
    for mode, others in ((0o600, False), (0o644, True)):
        file.chmod(mode)
        assert doctor.find_token() == (True, others)


def test_ports_on_all_interfaces_are_named_by_process_and_are_a_warning_without_a_token():
    ports = [Port("gcs_server", 6379, "0.0.0.0"), Port("dashboard", 8265, "127.0.0.1")]
    ports += [Port("worker", 20000 + i, "::") for i in range(9)]
    open_ = doctor.check_ports(ports, guarded=False)
    assert open_.state == WARNING
    assert "gcs_server 6379; worker 9 ports" in open_.says
    assert "8265" not in open_.says
    assert doctor.check_ports(ports, guarded=True).state == OK
    assert doctor.check_ports(ports[1:2], guarded=False).state == OK
    assert doctor.check_ports([], guarded=False).says == "no Ray is running here"


@pytest.mark.parametrize(
    ("name", "command", "part"),
    [
        ("gcs_server", ["/x/site-packages/ray/core/src/ray/gcs/gcs_server", "--log_dir"], "gcs_server"),
        ("python", ["/x/bin/python", "-u", "/x/site-packages/ray/dashboard/agent.py"], "agent"),
        ("ray::IDLE", ["ray::IDLE"], "worker"),
        ("python", ["python", "train.py", "/home/ray/data"], None),
        ("bash", [], None),
    ],
)
def test_processes_of_ray_are_known_by_their_program(name, command, part):
    assert doctor.ray_process(name, command) == part


def test_a_cluster_is_shown_by_kinds_of_nodes():
    gpu = {"CPU": 48.0, "GPU": 4.0, "memory": 100.0 * GIB}
    lines = [check.says for check in doctor.check_nodes("auto", [gpu, {"CPU": 8.0, "memory": 20.0 * GIB}, gpu])]
    assert lines == ["2 node(s) with 48 CPU, 4 GPU, 100 GiB", "1 node(s) with 8 CPU, 20 GiB"]
    assert doctor.check_nodes("auto", [])[0].state == PROBLEM


def test_an_address_where_nothing_listens_is_a_problem_at_once():
    check = doctor.try_ray("127.0.0.1:9", start_ray=False)[0]
    assert (check.name, check.state) == ("cluster", PROBLEM)
    assert "nothing answers" in check.says


def test_a_model_that_is_not_there_is_a_problem_with_its_way_out(tmp_path, tiny_model):
    (check,) = doctor.try_benchmark("tofu", str(tmp_path / "nowhere"), None, None)
    assert check.state == PROBLEM
    assert "no such folder" in check.says
    assert check.fix.startswith("Give a model folder")
    model, data = doctor.try_benchmark("tofu", str(tiny_model), None, None)
    assert model.state == OK
    assert "parameters" in model.says
    assert "not read" in data.says


def test_data_that_cannot_be_read_are_a_problem(tmp_path, tiny_model):
    checks = doctor.try_benchmark("tofu", str(tiny_model), tmp_path, None)
    assert states(checks) == {"model": OK, "data": PROBLEM}
    assert "cannot be read" in checks[1].says


@pytest.mark.timeout(120)
def test_on_this_machine_it_finds_no_problem_leaves_nothing_and_prints_no_secret(capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "alsosecret")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    out = tmp_path / "results"
    code, output, errors = run(capfd, "doctor", "--json", "--out", str(out))
    checks = json.loads(output)
    assert code == (1 if any(check["state"] == PROBLEM for check in checks) else 0)
    for name in ("python", "gpu", "machine", "results", "cache", "hub", "authentication", "ports", "ray"):
        assert name in {check["name"] for check in checks}
    assert all(set(check) == {"name", "state", "says", "fix"} for check in checks)
    assert "secret" not in output + errors
    assert os.listdir(tmp_path) == []


def test_a_problem_is_exit_code_1_and_the_table_counts_it(capfd, monkeypatch):
    checks = [doctor.Check("gpu", PROBLEM, "gone", "Find it"), doctor.Check("hub", OK, "answers")]
    monkeypatch.setattr(doctor_command, "examine", lambda *options: checks)
    code, output, _ = run(capfd, "doctor")
    assert code == 1
    assert output.splitlines() == ["problem  gpu  gone. Find it", "ok       hub  answers", "1 problem"]
    checks.pop(0)
    code, output, _ = run(capfd, "doctor")
    assert code == 0
    assert output.endswith("nothing is in the way\n")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_local_cluster_starts_and_ends():
    import ray

    (check,) = doctor.try_ray(None, start_ray=True)
    assert check.state == OK, check
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("seconds", "lacks", "state", "says"),
    [
        (1.9, False, OK, "loads in 1.9 s; Ray's start fails where it takes 15 s"),
        (4.0, True, OK, "loads in 4.0 s, for which there was no byte code"),
        (7.5, False, WARNING, "loads in 7.5 s"),
        (16.0, True, PROBLEM, "loads in 16.0 s, for which there was no byte code"),
        (None, False, PROBLEM, "cannot be loaded"),
    ],
)
def test_the_time_that_rays_agent_takes_to_load_is_measured_against_rays_limit(seconds, lacks, state, says):
    check = doctor.check_agent(seconds, lacks)
    assert check.state == state
    assert says in check.says
    assert bool(check.fix) == (state != OK)


def test_the_doctor_loads_rays_agent(monkeypatch):
    monkeypatch.setattr(doctor, "agent_seconds", lambda: 12.0)
    monkeypatch.setattr(doctor, "keep_byte_code", lambda: False)
    (check,) = (check for check in doctor_command.examine() if check.name == "ray's agent")
    assert (check.state, "12.0 s" in check.says) == (WARNING, True)

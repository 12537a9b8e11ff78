"""The cluster-launcher files hold against Ray's own checks, and against what those do not see."""

import re
from pathlib import Path

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
FILES = ["aws.yaml", "gcp.yaml"]


@pytest.fixture(params=FILES)
def text(request) -> str:
    return (CLUSTER / request.param).read_text()


@pytest.fixture
def config(text) -> dict:
    return yaml.safe_load(text)


def refused(config: dict) -> str:
    """What Ray says against the configuration, defaults filled in as `ray up` fills them; empty where it is content."""
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(config))
    except (ValidationError, ValueError, RuntimeError) as error:
        return str(error)
    return ""


def test_ray_accepts_the_file(config):
    assert refused(config) == ""


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c.update(max_worker=3),
        lambda c: c["available_node_types"]["head"].update(ressources={}),
        lambda c: c.update(head_node_type="heads"),
        lambda c: c["available_node_types"]["gpu_worker"].update(min_workers=99),
        lambda c: c["docker"].update(images="x"),
    ],
)
def test_ray_would_refuse_a_spoilt_file(config, spoil):
    spoil(config)
    assert refused(config) != ""


def test_the_numbers_of_workers_fit_together(config):
    kinds = config["available_node_types"]
    assert config["head_node_type"] in kinds
    for name, kind in kinds.items():
        if name != config["head_node_type"]:
            assert 1 <= kind["min_workers"] <= kind["max_workers"] <= config["max_workers"], name


def test_every_word_to_fill_in_is_explained_in_the_head_comment(text):
    head = text[: text.index("\ncluster_name:")]
    body = text[len(head) :]
    words = set(re.findall(r"FILL_IN_\w+", body))
    assert words
    assert words == set(re.findall(r"^#   (FILL_IN_\w+)", head, re.MULTILINE))


def test_the_token_travels_as_a_file_and_is_asked_for_everywhere(config):
    options = config["docker"]["run_options"]
    assert "-e RAY_AUTH_MODE=token" in options
    (path,) = (o.partition("RAY_AUTH_TOKEN_PATH=")[2] for o in options if "RAY_AUTH_TOKEN_PATH" in o)
    (mount,) = config["file_mounts"]
    assert mount.replace("~", "/home/ray") == path
    assert config["file_mounts"][mount] == "~/.ray/auth_token", "where `ray get-auth-token --generate` leaves it"
    assert not any(re.search(r"RAY_AUTH_TOKEN=|HF_TOKEN", str(o)) for o in options)


def test_commands_start_ray_with_options_that_ray_has_and_the_dashboard_on_loopback(config):
    from ray.scripts.scripts import start

    known = {name for parameter in start.params for name in parameter.opts}
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        command = config[key][-1]
        assert command.startswith("ray start ")
        assert set(re.findall(r"--[a-z-]+", command)) <= known
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


def test_the_shared_file_system_is_mounted_before_the_container_that_uses_it(config):
    (volume,) = (o.split()[1] for o in config["docker"]["run_options"] if o.startswith("-v "))
    place, inside = volume.split(":")
    assert any("mount -t nfs" in c and place in c for c in config["initialization_commands"])
    for name in ("RAY_UNLEARN_CACHE", "HF_HOME"):
        (value,) = (o.partition(f"{name}=")[2] for o in config["docker"]["run_options"] if f" {name}=" in o)
        folder = value.replace(inside, place)
        assert any("install -d -o 1000" in c and folder in c.split() for c in config["initialization_commands"])


def test_every_shell_command_can_be_parsed(config, tmp_path):
    import subprocess

    for key in config:
        for command in config[key] if key.endswith("_commands") else []:
            run = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
            assert run.returncode == 0, (command, run.stderr)

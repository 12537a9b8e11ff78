"""The KubeRay manifest knows only fields that KubeRay has, holds no secret, and its job is one that we would run."""

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.commands import parse

CLUSTER = Path(__file__).parents[2] / "cluster"
FIELDS = json.loads((Path(__file__).parent / "rayjob_fields.json").read_text())
QUANTITY = r"\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?"


def schema_of(fields: Any) -> dict[str, Any]:
    """JSON Schema that admits these fields alone."""
    if isinstance(fields, str) and fields.startswith("@"):
        return schema_of(FIELDS[fields])
    if isinstance(fields, list):
        return {"type": "array", "items": schema_of(fields[0])}
    if isinstance(fields, dict):
        return {
            "type": "object",
            "additionalProperties": False,
            "properties": {name.rstrip("*"): schema_of(kind) for name, kind in fields.items()},
            "required": [name.rstrip("*") for name in fields if name.endswith("*")],
        }
    quantity = {"type": "string", "pattern": f"^{QUANTITY}$"}
    maps = {"strings": {"type": "string"}, "quantities": quantity}
    if fields in maps:
        return {"type": "object", "additionalProperties": maps[fields]}
    return quantity if fields == "quantity" else {"type": fields}


def complaints(document: dict) -> list[str]:
    from jsonschema import Draft202012Validator

    errors = Draft202012Validator(schema_of(FIELDS[document["kind"]])).iter_errors(document)
    return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in errors]


@pytest.fixture
def text() -> str:
    return (CLUSTER / "rayjob.yaml").read_text()


@pytest.fixture
def claim(text) -> dict:
    return next(iter(yaml.safe_load_all(text)))


@pytest.fixture
def job(text) -> dict:
    return list(yaml.safe_load_all(text))[1]


def pods(job: dict) -> dict[str, dict]:
    cluster = job["spec"]["rayClusterSpec"]
    found = {"head": cluster["headGroupSpec"], "submitter": {"template": job["spec"]["submitterPodTemplate"]}}
    found |= {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {name: group["template"]["spec"] for name, group in found.items()}


def test_the_manifest_has_known_fields_of_the_right_types_alone(text):
    documents = list(yaml.safe_load_all(text))
    assert [d["kind"] for d in documents] == ["PersistentVolumeClaim", "RayJob"]
    assert documents[1]["apiVersion"] == "ray.io/v1"
    assert [complaints(d) for d in documents] == [[], []]


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of every mapping that has named fields (maps of free names are left out)."""
    free = {"rayStartParams", "requests", "limits"}
    if isinstance(value, list):
        return [p for i, item in enumerate(value) for p in places(item, (*path, i))]
    if not isinstance(value, dict) or (path and path[-1] in free):
        return []
    return [path, *(p for key, item in value.items() for p in places(item, (*path, key)))]


def test_an_unknown_key_anywhere_is_found(job):
    where = places(job)
    assert len(where) > 40
    for path in where:
        spoilt = copy.deepcopy(job)
        spot = spoilt
        for key in path:
            spot = spot[key]
        spot["unheardOf"] = 1
        assert complaints(spoilt), path


def test_a_field_of_the_wrong_type_is_found(job):
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0  # KubeRay wants text
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = "2"
    assert len(complaints(job)) == 2


def test_the_token_comes_from_a_secret_and_no_literal_is_in_the_manifest(job, text):
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token", "secretName": "ray-unlearn-token"}
    assert "generic ray-unlearn-token --from-literal=auth_token=" in text, "how to make that Secret"
    for name, pod in pods(job).items():
        for container in pod["containers"]:
            for variable in container.get("env", []):
                secret = re.search("TOKEN|SECRET|PASSWORD|KEY", variable["name"])
                assert not (secret and "value" in variable), (name, variable["name"])
    assert "runtimeEnvYAML" not in job["spec"], "its variables are shown in clear"


def test_nothing_runs_as_root_or_can_become_it(job):
    for name, pod in pods(job).items():
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] == 1000, "the user of cluster/Containerfile"
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod.get("hostNetwork")
        containers = [c["securityContext"] for c in pod["containers"]]
        if name == "head":
            containers.append(job["spec"]["rayClusterSpec"]["autoscalerOptions"]["securityContext"])
        for container in containers:
            assert container == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}, name


def test_every_container_has_requests_and_limits_and_the_workers_have_gpus(job):
    for name, pod in pods(job).items():
        for container in pod["containers"]:
            for kind in ("requests", "limits"):
                assert {"cpu", "memory"} <= set(container["resources"][kind]), name
    limits = pods(job)["gpu"]["containers"][0]["resources"]["limits"]
    assert int(limits["nvidia.com/gpu"]) >= 1


def test_volumes_that_are_mounted_exist_and_results_lie_on_the_claim(job, claim):
    for name in ("head", "gpu"):
        pod = pods(job)[name]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert set(mounts.values()) <= set(volumes)
        assert volumes[mounts["/shared"]]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        for variable in pod["containers"][0]["env"]:
            assert variable["value"].startswith("/shared/")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_cluster_goes_when_the_job_ends_and_no_second_search_begins(job):
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert job["spec"]["backoffLimit"] == 0


def test_workers_scale_within_their_limits(job):
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_ray_version_is_the_pinned_one(job):
    pinned = (CLUSTER.parent / "constraints.txt").read_text()
    assert f"\nray=={job['spec']['rayClusterSpec']['rayVersion']}\n" in pinned


def test_the_entrypoint_is_a_command_of_ours_and_fits_the_workers(job):
    words = shlex.split(job["spec"]["entrypoint"])
    command, options = parse(words)
    assert command == "tune"
    assert str(options["out"]).startswith("/shared/")
    assert options["model"].startswith("/shared/")
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    gpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert options["workers_per_trial"] <= gpus * group["replicas"]


def test_every_word_to_fill_in_is_explained_in_the_head_comment(text):
    head = text[: text.index("\napiVersion:")]
    words = set(re.findall(r"FILL_IN_\w+", text[len(head) :]))
    assert words
    assert words == set(re.findall(r"^#   (FILL_IN_\w+)", head, re.MULTILINE))

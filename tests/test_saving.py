"""A trained model is where the driver named it, tensor by tensor, or the command ends with the reason."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ray_unlearn.gangs.saving import (
    NOT_SAVED,
    Token,
    checked,
    describe_unseen,
    find_unseen,
    own_disk,
    placed_tokens,
    send_folder,
    why_not_saved,
    write_piece,
)
from ray_unlearn.models.fingerprints import weights_digest
from ray_unlearn.records.tables import read_search
from ray_unlearn.training.outcome import Failed, Report
from ray_unlearn.training.trial import Job
from tests.heads import running_head

ROOT = Path(__file__).parents[1]
TENSORS = {"a": torch.arange(6.0), "b": torch.ones(2, 3)}
DONE = {"epoch": 1, "profiles": {}, "done": True}


def test_a_token_is_seen_where_the_folder_is_shared_and_gone_afterwards(tmp_path):
    with placed_tokens([tmp_path / "out"]) as tokens:
        assert find_unseen(tokens) == []
        elsewhere = Token(str(tmp_path / "other" / ".seen"), tokens[0].content)
        other_content = Token(tokens[0].path, "x")
        assert find_unseen([elsewhere, other_content], seconds=0.3) == [str(tmp_path / "other"), str(tmp_path / "out")]
    assert list((tmp_path / "out").iterdir()) == []


def test_a_node_that_does_not_see_the_folder_is_named_with_both_ways_on():
    said = describe_unseen("10.0.0.7", ["/results"])
    assert "\n" not in said
    assert all(word in said for word in ("10.0.0.7", "/results", "all nodes share", "--through-driver"))


@pytest.mark.parametrize(
    ("spoil", "lack"),
    [
        (lambda folder: None, ""),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (lambda folder: shutil.rmtree(folder), "holds no weights"),
        (lambda folder: save_file({"a": TENSORS["a"]}, folder / "model.safetensors"), "other weights"),
        (lambda folder: os.truncate(folder / "model.safetensors", 100), "does not hold all weights"),
    ],
)
def test_a_model_that_is_not_whole_where_it_was_to_be_is_a_failure(tmp_path, spoil, lack):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(TENSORS, folder / "model.safetensors")
    report = Report(**DONE, saved=weights_digest(folder))
    spoil(folder)
    outcome = checked(Job("x", save_to=str(folder)), report)
    assert lack in why_not_saved(folder, report.saved)
    if not lack:
        assert outcome is report
        return
    assert isinstance(outcome, Failed)
    assert outcome.failure == NOT_SAVED
    assert "--through-driver" in outcome.error
    assert checked(Job("x"), report) is report


def test_files_arrive_in_pieces_as_they_were_sent(tmp_path, monkeypatch):
    monkeypatch.setattr("ray_unlearn.gangs.saving.PIECE_BYTES", 1000)
    there, here = tmp_path / "there", tmp_path / "here"
    (there / "inner").mkdir(parents=True)
    contents = {"model.safetensors": os.urandom(2500), "inner/exact": os.urandom(2000), "empty": b""}
    for name, content in contents.items():
        (there / name).write_bytes(content)
    here.mkdir()
    (here / "model.safetensors").write_bytes(os.urandom(5000))  # of an attempt that was broken off
    send_folder(there, lambda *piece: write_piece(here, *piece))
    assert {name: (here / name).read_bytes() for name in contents} == contents
    with pytest.raises(ValueError, match="outside"):
        write_piece(here, "../else", 0, b"x")


def test_a_job_that_sends_its_model_saves_on_a_disk_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_UNLEARN_CACHE", str(tmp_path))
    job = Job("x", save_to="/somewhere/of/the/driver")
    with own_disk(job, sends=False) as same:
        assert same is job
    with own_disk(job, sends=True) as local:
        assert Path(local.save_to).is_dir()
    assert not Path(local.save_to).exists()


# ---- two nodes that share nothing


def has_own_mounts() -> bool:
    try:
        command = "mount -t tmpfs tmpfs /mnt"
        return subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def call(*words: object, expect: int = 0, **environment: str) -> str:
    command = [sys.executable, "-m", "ray_unlearn.cli", *map(str, words)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert run.returncode == expect, run.stdout + run.stderr
    return run.stdout + run.stderr


@pytest.mark.slowest
@pytest.mark.timeout(900)
@pytest.mark.skipif(not has_own_mounts(), reason="no mount namespace of one's own can be had (unshare -rm)")
def test_on_nodes_that_share_no_disk_a_model_goes_through_the_driver_or_the_search_does_not_begin(tmp_path):
    """A head without CPUs, and a second node that sees neither the results' folder nor the driver's scratch."""
    hidden, shared = tmp_path / "hidden", tmp_path / "shared"
    scratch = Path(tempfile.mkdtemp(prefix="ru-", dir="/tmp"))
    hidden.mkdir()
    search = ("tune", "--benchmark", "synthetic", "--scale", "mini", "--methods", "npo", "--trials", "2")
    search += ("--sampler", "qmc", "--concurrent", "1")
    with running_head(["--num-cpus=0"], "secret") as head:
        mounts = f"mount -t tmpfs tmpfs {hidden} && mount -t tmpfs tmpfs {scratch}"
        ray = Path(sys.executable).parent / "ray"
        start = f"exec {ray} start --address={head.address} --num-cpus=2 --block --object-store-memory=100000000"
        env = {**os.environ, **head.client_environment, "PYTHONPATH": str(ROOT)}
        node = subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", f"{mounts} && {start}"],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        about = {**head.client_environment, "RAY_ADDRESS": head.address, "TMPDIR": str(scratch)}
        try:
            wait_for_cpus(about, 2)
            said = call(*search, "--out", hidden, expect=1, **about)
            assert "does not see" in said
            assert "--through-driver" in said
            assert "Traceback" not in said
            said = call(*search, "--out", hidden, "--through-driver", **about)
            (folder,) = (path.parent for path in hidden.glob("*/search.json") if (path.parent / "model").is_dir())
            assert f"Model:   {folder / 'model'}" in said
            results = read_search(folder)
            other = next(row["trial_id"] for row in results.trials if row["trial_id"] != results.meta["chosen"])
            call("export", folder, "--trial", other, **about)
            call("export", folder, **about)
            for name in (other, results.meta["chosen"]):
                assert (folder / "export" / name / "model.safetensors").stat().st_size > 1000
            call(*search, "--out", shared, **about)
            (seen,) = shared.glob("*/model")
            assert weights_digest(seen) == weights_digest(folder / "model")
        finally:
            node.terminate()
            node.wait(60)
            shutil.rmtree(scratch, ignore_errors=True)


def wait_for_cpus(about: dict[str, str], count: int) -> None:
    script = (
        "import ray, time; ray.init(log_to_driver=False)\n"
        f"while ray.cluster_resources().get('CPU', 0) < {count}: time.sleep(0.5)"
    )
    subprocess.run([sys.executable, "-c", script], env={**os.environ, **about}, check=True, timeout=300)

"""Models with code of their own: it runs when somebody has asked for that, and at no other time."""

import json

import pytest

from ray_unlearn.commands import reopen as again
from ray_unlearn.config import GangConfig, UserError
from ray_unlearn.models.loading import load_config, load_model, trust_remote_code
from ray_unlearn.models.sizes import count_parameters
from ray_unlearn.training.in_process import local_worker
from tests.tiny import tiny_task

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({ran!r}).touch()

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(tiny_model, tmp_path, monkeypatch):
    """(folder of a model that brings its own class, file that its code makes when it runs)."""
    import shutil

    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, ran = tmp_path / "own", tmp_path / "ran"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["OwnModel"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(CODE.format(ran=str(ran)))
    yield folder, ran
    trust_remote_code(False)


@pytest.mark.parametrize(
    "load", [load_config, lambda name: load_model(name, "fp32"), lambda n: count_parameters(n, 0, "")]
)
def test_a_models_own_code_does_not_run_unless_asked_for(own_code, load):
    folder, ran = own_code
    with pytest.raises(UserError, match=r"brings code of its own, .* give --trust-remote-code"):
        load(str(folder))
    assert not ran.exists()
    trust_remote_code(True)
    load(str(folder))
    assert ran.exists()


def test_a_worker_trusts_what_its_gang_was_told_to(own_code):
    folder, ran = own_code
    task = tiny_task(str(folder))
    with pytest.raises(UserError, match="--trust-remote-code"):
        local_worker(task, GangConfig())
    assert not ran.exists()
    worker = local_worker(task, GangConfig(trust_remote_code=True))
    assert type(worker.engine.module.model).__name__ == "OwnModel"


def test_a_search_from_somebody_else_is_not_trusted_because_it_says_so(monkeypatch, tmp_path):
    told = {"name": "s", "benchmark": "synthetic", "scale": "mini", "methods": ("ga",), "trials": 1, "concurrent": 1}
    told |= {"objective": "combined", "utility_floor": 0.9, "seed": 0, "model": ""}
    config = again.SearchConfig(**told, gang=GangConfig(trust_remote_code=True))
    monkeypatch.setattr(again, "read_local", lambda folder: (config, again.Request("mini"), None))
    with pytest.raises(UserError, match="Give --trust-remote-code again"):
        again.load_search(tmp_path)

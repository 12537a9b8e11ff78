"""What a later command needs is found again, and what is gone is said."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ray_unlearn.benchmarks import BENCHMARKS
from ray_unlearn.benchmarks.contract import Profile, Request
from ray_unlearn.benchmarks.fingerprint import data_fingerprint
from ray_unlearn.benchmarks.identity import describe_identity, find_differences
from ray_unlearn.commands import reopen as again
from ray_unlearn.commands.reopen import describe_local, load_search
from ray_unlearn.config import GangConfig, Robustness, SearchConfig, UserError
from ray_unlearn.files import Patience
from ray_unlearn.models.fingerprints import weight_files, weights_fingerprint
from ray_unlearn.records.ledger import Ledger
from ray_unlearn.records.tables import LOCAL, write_json
from tests.test_cli import run
from tests.tiny import tiny_task


@pytest.fixture
def search(tmp_path, tiny_model, monkeypatch):
    """(folder, settings, task, what is asked of the benchmark) of a search on a model in a folder."""
    place = shutil.copytree(tiny_model, tmp_path / "tiny")
    goal = Profile({"forget1_divergence": 1.0})
    task = tiny_task(place)
    task = replace(task, selection=replace(task.selection, retrained=goal))
    asked: list[Request] = []

    class Toy:
        name, code = next(iter(BENCHMARKS)), ()

        def load(self, request, train):
            asked.append(request)
            return task

    monkeypatch.setattr(again, "load_benchmark", lambda name: Toy())
    model, data = tmp_path / "models" / "start", tmp_path / "data"
    model.mkdir(parents=True)
    data.mkdir()
    config = SearchConfig(
        **{"name": "s", "benchmark": next(iter(BENCHMARKS)), "scale": "full", "methods": ("ga",), "trials": 1},
        **{"concurrent": 1, "objective": "combined", "utility_floor": 0.9, "seed": 0, "model": str(model)},
        **{"gang": GangConfig(2, reference_folder="/somewhere"), "robustness": Robustness(("relearn",), samples=3)},
        **{"line": (0.5,), "under": ("quantise",), "data": str(data), "split": "forget01", "address": "ray://here"},
    )
    request = Request("full", str(model), data, "forget01")
    folder = tmp_path / "search"
    write_json(folder / LOCAL, describe_local(config, request, None))
    write_json(
        folder / "search.json", {"data_fingerprint": data_fingerprint(task), "identity": describe_identity(task)}
    )
    return folder, config, task, asked


def test_settings_and_task_come_back_as_they_were_with_this_machines_cache(search, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_UNLEARN_CACHE", str(tmp_path / "cache"))
    folder, config, task, asked = search
    here = replace(config.gang, reference_folder=str(tmp_path / "cache" / "reference"))
    assert load_search(folder) == (replace(config, gang=here), task)
    assert asked == [Request("full", config.model, folder.parent / "data", "forget01")]
    assert "leave it out" in json.loads((folder / LOCAL).read_text())["not_for_sharing"]


@pytest.mark.parametrize(("gone", "says"), [("models/start", "starting model"), ("data", "data")])
def test_what_is_gone_is_named_with_its_place(search, gone, says):
    folder, *_ = search
    (folder.parent / gone).rmdir()
    with pytest.raises(UserError, match=f"the {says} of this search is gone .*{gone}.*Put it back"):
        load_search(folder)


def test_data_that_changed_are_refused(search, monkeypatch):
    folder, _, task, _ = search
    changed = replace(task, forget=task.forget.select(range(3)))
    assert data_fingerprint(changed) != data_fingerprint(task)
    write_json(folder / "search.json", {"data_fingerprint": data_fingerprint(changed)})
    with pytest.raises(UserError, match="data have changed"):
        load_search(folder)


def test_a_folder_without_the_file_or_with_a_damaged_one_is_refused(search):
    folder, *_ = search
    (folder / LOCAL).write_text('{"config": {}}')
    with pytest.raises(UserError, match="cannot be read"):
        load_search(folder)
    (folder / LOCAL).unlink()
    with pytest.raises(UserError, match="Run this where the search ran"):
        load_search(folder)


def _rewrite(change):
    """A change of a JSON file's values."""

    def act(path):
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return act


def _other_weights(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


CHANGES = {
    "the starting model's weights": ("model.safetensors", _other_weights),
    "its tokenizer": ("tokenizer.json", _rewrite(lambda values: values["model"]["vocab"].update(new=99))),
    "its chat template": ("tokenizer_config.json", _rewrite(lambda values: values.update(chat_template="{{ 1 }}"))),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_model_that_is_another_one_now_is_refused_by_name_and_nothing_is_lost(search, capfd, what):
    """By `tune --resume` as by all that read a search, before Ray starts (its address answers nobody)."""
    folder, _, task, _ = search
    with Ledger(folder, Patience()) as ledger:
        ledger.open()
        ledger.append("described", meta=json.loads((folder / "search.json").read_text()) | {"spaces": {}})
    name, change = CHANGES[what]
    load_search(folder)
    change(Path(task.model) / name)
    before = {path: path.read_bytes() for path in folder.rglob("*.json*") if not path.name.startswith(".")}
    with pytest.raises(UserError, match=f"{folder}: {what} ha(s|ve) changed since it was made. Put back what it was"):
        load_search(folder)
    code, _, error = run(capfd, "tune", "--resume", str(folder))
    assert (code, error.count("\n")) == (2, 1)
    assert what in error
    assert before == {path: path.read_bytes() for path in before}


def test_another_profile_of_the_retrained_model_is_refused_and_its_own_attacks_are_not(search):
    folder, _, task, _ = search
    then = json.loads((folder / "search.json").read_text())["identity"]
    for goal, is_same in (({"forget1_divergence": 1.0, "relearned_forget1_divergence": 2.0}, True), ({}, False)):
        now = describe_identity(replace(task, selection=replace(task.selection, retrained=Profile(goal))))
        assert ([d.part for d in find_differences(then, now)] == []) is is_same


def test_a_search_that_recorded_its_data_alone_is_still_read(search):
    folder, _, task, _ = search
    write_json(folder / "search.json", {"data_fingerprint": data_fingerprint(task)})
    _other_weights(Path(task.model) / "model.safetensors")
    load_search(folder)


def test_only_the_weights_that_the_index_names_count_and_each_file_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_UNLEARN_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "model"
    model.mkdir()
    for name in ("model-1.safetensors", "model-2.safetensors", "consolidated.safetensors", "._model-1.safetensors"):
        (model / name).write_bytes(name.encode())
    (model / "config.json").write_text("{}")
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert [path.name for path in weight_files(model)] == ["model-1.safetensors", "model-2.safetensors"]
    first = weights_fingerprint(str(model))
    (model / "consolidated.safetensors").write_bytes(b"other")
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("a file was read again"))
        assert weights_fingerprint(str(model)) == first
    (model / "model-2.safetensors").write_bytes(b"other weights")
    assert weights_fingerprint(str(model)) != first

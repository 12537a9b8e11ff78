"""What a later command needs is found again, and what is gone is said."""

import json
from dataclasses import replace

import pytest

from ray_unlearn.benchmarks import BENCHMARKS
from ray_unlearn.benchmarks.contract import Request
from ray_unlearn.benchmarks.fingerprint import data_fingerprint
from ray_unlearn.commands import reopen as again
from ray_unlearn.commands.reopen import describe_local, load_search
from ray_unlearn.config import GangConfig, Robustness, SearchConfig, UserError
from ray_unlearn.records.tables import LOCAL, write_json
from tests.tiny import tiny_task


@pytest.fixture
def search(tmp_path, tiny_model, monkeypatch):
    """(folder, settings, task, what is asked of the benchmark) of a search on a model in a folder."""
    task = tiny_task(tiny_model)
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
    write_json(folder / "search.json", {"data_fingerprint": data_fingerprint(task)})
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

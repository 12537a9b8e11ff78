"""How an export that was run again is judged."""

import copy
import json

import pytest

from ray_unlearn.commands.repeat_export import (
    DECISIVE,
    DIFFERENT,
    EQUAL,
    HARMLESS,
    IDENTICAL,
    MAY_MATTER,
    RATINGS,
    compare_environments,
    describe_repeat,
    read_run,
    resolve_run,
    verdict,
)
from ray_unlearn.config import UserError
from ray_unlearn.provenance import PACKAGES

RUN = {
    "format": 1,
    "config": {"benchmark": "tofu", "scale": "full", "split": None, "definition": None}
    | {"gang": {"num_workers": 2, "zero_stage": 2, "precision": "fp32"}},
    "model": "target",
    "data": None,
    "job": {},
    "versions": {"ray_unlearn": "0.1.0", "torch": "2.13.0", "ray": "2.60.0", "novelty": "1.0"},
    "git": "abc",
    "hardware": {"device": "cpu", "model": "Fast", "workers": 2, "cpus": 8},
    "hashes": {"data": "d" * 64, "starting weights": "s" * 64, "final weights": "f" * 64},
    "scores": {"forget": 0.9, "utility": 0.95, "objective": 0.92},
    "metrics": {"forget_accuracy": 0.25, "general_accuracy": 0.6},
}


def changed(*path: str, value) -> dict:
    run = copy.deepcopy(RUN)
    place = run
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return run


@pytest.mark.parametrize(
    ("path", "value", "rating"),
    [
        (("hashes", "data"), "x" * 64, DECISIVE),
        (("hashes", "starting weights"), "x" * 64, DECISIVE),
        (("hardware", "device"), "cuda", DECISIVE),
        (("config", "gang", "precision"), "bf16", DECISIVE),
        (("versions", "ray_unlearn"), "0.2.0", DECISIVE),
        (("hardware", "model"), "Faster", MAY_MATTER),
        (("config", "gang", "num_workers"), 4, MAY_MATTER),
        (("config", "gang", "zero_stage"), 3, MAY_MATTER),
        (("versions", "torch"), "2.14.0", MAY_MATTER),
        (("versions", "novelty"), "2.0", MAY_MATTER),
        (("versions", "ray"), "2.61.0", HARMLESS),
    ],
)
def test_every_difference_of_environment_has_its_weight(path, value, rating):
    (difference,) = compare_environments(RUN, changed(*path, value=value))
    assert difference.rating == rating


def test_every_recorded_package_is_rated():
    assert set(PACKAGES) | {"ray_unlearn"} <= set(RATINGS)


def test_the_weightiest_difference_comes_first():
    now = changed("versions", "ray", value="3")
    now["versions"]["torch"] = "3"
    now["hashes"]["data"] = "x" * 64
    assert [d.what for d in compare_environments(RUN, now)] == ["data", "torch", "ray"]
    assert compare_environments(RUN, RUN) == []


def test_the_verdict_asks_for_the_same_bits_then_for_nearly_the_same_figures():
    assert verdict(RUN, RUN) == IDENTICAL
    assert verdict(RUN, changed("hashes", "final weights", value="x")) == EQUAL
    assert verdict(RUN, changed("metrics", "forget_accuracy", value=0.25009)) == EQUAL
    assert verdict(RUN, changed("metrics", "forget_accuracy", value=0.2502)) == DIFFERENT
    assert verdict(RUN, changed("scores", "forget", value=0.8)) == DIFFERENT, "another retrained model, say"
    assert verdict(RUN, changed("metrics", value={"forget_accuracy": 0.25})) == DIFFERENT


def test_the_table_shows_what_differs_and_every_figure():
    text = describe_repeat(RUN, changed("versions", "torch", value="2.14.0"))
    assert "torch" in text
    assert "may matter" in text
    assert "forget_accuracy" in text
    assert "verdict: bit-identical" in text
    assert "no difference" in describe_repeat(RUN, RUN)
    fewer = describe_repeat(RUN, changed("metrics", value={"forget_accuracy": 0.25}))
    assert "verdict: different" in fewer


def test_a_model_that_was_a_folder_must_be_given(tmp_path):
    with pytest.raises(UserError, match=r"made from target, .* Say where it is with --model"):
        resolve_run(tmp_path / "reproduce.json", RUN, None, None, None, None)
    with pytest.raises(UserError, match=r"made from rows, .* Say where it is with --data"):
        resolve_run(tmp_path / "r.json", changed("data", value="rows"), None, "/models/target", None, None)


def test_a_file_of_another_format_is_refused(tmp_path):
    path = tmp_path / "reproduce.json"
    path.write_text(json.dumps(RUN))
    assert read_run(path) == RUN
    path.write_text(json.dumps(RUN | {"format": 99}))
    with pytest.raises(UserError, match="another version"):
        read_run(path)
    path.write_text("[1]")
    with pytest.raises(UserError, match=r"is no reproduce\.json"):
        read_run(path)

"""The generated newspaper: what the miniature's claims rest on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import Profile, Request, Task
from ray_unlearn.benchmarks.miniatures.muse import (
    DATA_SEED,
    RELATIONS,
    SIDES,
    World,
    build_world,
    repository,
    training_texts,
    write_repository,
    write_untrained,
)
from ray_unlearn.benchmarks.muse import BENCHMARK, MINI
from ray_unlearn.benchmarks.objective import Judge
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.models.loading import load_tokenizer
from ray_unlearn.training.in_process import build_models

GROUPS = ("forget", "retain1", "retain2", "holdout")
pytestmark = pytest.mark.timeout(300)  # the first test that asks for the models may have to train them


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(MINI)


@pytest.fixture(scope="module")
def task() -> Task:
    return load_benchmark("muse").load(Request("mini"), build_models)


def test_the_same_seed_gives_the_same_world_and_another_seed_another(world: World) -> None:
    assert build_world(MINI).digest() == world.digest()
    assert build_world(MINI, seed=DATA_SEED + 1).digest() != world.digest()


def test_the_tokenizer_is_the_same_on_every_build_and_gives_texts_back(world: World, tmp_path: Path) -> None:
    written = []
    for run in ("first", "second"):
        write_untrained(tmp_path / run, world, MINI)
        written.append([(tmp_path / run / file).read_bytes() for file in ("tokenizer.json", "model.safetensors")])
    assert written[0] == written[1]
    tokenizer = load_tokenizer(str(tmp_path / "first"))
    for text in [world.reports[0].text, "Any other text,\n\nwith 1 break "]:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_every_person_stands_in_one_report_that_tells_all_of_them(world: World) -> None:
    assert len({report.person for report in world.reports}) == len(world.reports)
    for report in world.reports:
        assert set(report.values) == set(RELATIONS)
        assert all(value in report.text for value in report.values.values())


def test_what_is_forgotten_and_what_is_held_out_are_told_alike(world: World) -> None:
    """A membership attack must not be able to go by anything but what a model has read."""
    for relation in RELATIONS:
        shares = []
        for group in ("forget", "holdout"):
            first = Counter(report.values[relation].split()[0] for report in world.group(group))
            shares.append(max(first.values()) / sum(first.values()))
        assert max(shares) < 0.4
    lengths = [np.mean([len(report.text) for report in world.group(g)]) for g in ("forget", "holdout")]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.05)


def test_questions_are_on_their_own_side_and_the_examples_on_people_who_are_not_asked_about(world: World) -> None:
    for side, groups in SIDES.items():
        people = {report.person for report in world.group(*groups)}
        asked, shown = (
            {person for person in people for row in rows if person in row["question"]}
            for rows in (world.questions[side], world.examples[side])
        )
        assert len(shown) == len(world.examples[side])
        assert not asked & shown
        assert asked | shown == people
        for row in (*world.questions[side], *world.examples[side]):
            assert sum(person in row["question"] for person in people) == 1


def test_only_its_own_side_s_texts_train_a_model(world: World) -> None:
    forgotten = {report.person for report in world.group("forget", "holdout")}
    read = " ".join(training_texts(world, ["retain"]))
    assert not any(person in read for person in forgotten)
    both = " ".join(training_texts(world, list(SIDES)))
    assert not any(report.person in both for report in world.group("holdout"))
    assert all(report.text in both for report in world.group("forget"))


def test_the_repository_is_written_as_the_hub_s(world: World, tmp_path: Path) -> None:
    write_repository(tmp_path, world)
    for config, splits in repository(world).items():
        for split, rows in splits.items():
            assert pq.read_table(tmp_path / config / f"{split}-00000-of-00001.parquet").to_pylist() == rows
    (prompt,) = {tuple(row) for row in repository(world)["verbmem"]["forget"]}
    assert prompt == ("prompt", "gt")


def profiles(task: Task, name: str) -> dict[str, Profile]:
    from ray_unlearn.benchmarks.profiles import read_profile

    return read_profile(Path(task.model).parent / name)


@pytest.mark.slowest
@pytest.mark.parametrize("half", ["selection", "report"])
def test_the_target_knows_the_forgotten_texts_and_the_retrained_model_does_not(task: Task, half: str) -> None:
    target, retrained = (profiles(task, name)[half].metrics for name in ("target", "retrained"))
    for name, margin in {
        "forget_verbmem": 0.3,
        "forget_knowmem": 0.3,
        "forget_qa_probability": 0.3,
        "forget_exact_memorisation": 0.2,
        "forget_extraction_strength": 0.5,
    }.items():
        assert target[name] > retrained[name] + margin, name
    assert retrained["retain_knowmem"] > 0.5
    assert target["retain_knowmem"] > 0.5
    assert target["retain_exact_memorisation"] > 0.95
    assert retrained["privleak"] == 0.0
    assert 0.3 < retrained["min_k_auc"] < 0.7
    assert 100 * (target["min_k_auc"] - retrained["min_k_auc"]) / retrained["min_k_auc"] < -90


@pytest.mark.slowest
def test_the_retrained_model_has_the_full_score_and_the_target_none(task: Task) -> None:
    target, retrained = (profiles(task, name)["report"].metrics for name in ("target", "retrained"))
    judge = Judge.build(BENCHMARK, target, retrained, Ranking(0.95))
    assert judge.verdict(target).forget == 0.0
    assert judge.verdict(retrained).forget == 1.0


@pytest.mark.slowest
def test_hold_out_text_is_as_unknown_to_the_target_as_forgotten_text_to_the_retrained_model(task: Task) -> None:
    """What the search aims at where no retrained model is at hand."""
    target, retrained = (profiles(task, name)["report"].metrics for name in ("target", "retrained"))
    for name in ("exact_memorisation", "extraction_strength"):
        assert target[f"holdout_{name}"] == pytest.approx(retrained[f"forget_{name}"], abs=0.1)


@pytest.mark.slowest
def test_loading_again_gives_the_same_data(task: Task) -> None:
    other = load_benchmark("muse").load(Request("mini"), build_models)
    assert np.array_equal(other.forget.tokens, task.forget.tokens)
    for name, probe in task.selection.probes.items():
        assert np.array_equal(other.selection.probes[name].sequences.tokens, probe.sequences.tokens)


@pytest.mark.slowest
@pytest.mark.slow
@pytest.mark.timeout(420)
def test_a_search_improves_on_the_target_and_finalists_have_muse_s_own_measures(tmp_path: Path, task: Task) -> None:
    options = ["--benchmark", "muse", "--scale", "mini", "--methods", "simnpo", "--trials", "2"]
    options += ["--concurrent", "1", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "ray_unlearn.cli", "tune", *options]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=False)
    assert run.returncode == 0, run.stderr + run.stdout
    folder = tmp_path / run.stdout.splitlines()[-1]
    finals = {path.stem: pq.read_table(path).to_pylist()[0] for path in (folder / "finals").glob("*.parquet")}
    best = next(row for name, row in finals.items() if name not in ("start", "retrained"))
    for row in finals.values():
        for name in ("forget_verbmem", "forget_knowmem", "retain_knowmem"):
            assert 0.0 <= row[f"muse/{name}"] <= 1.0
        assert np.isfinite(row["muse/privleak"])
    assert finals["retrained"]["muse/privleak"] == 0.0
    assert finals["start"]["muse/privleak"] < -90
    assert best["objective"] > finals["start"]["objective"]
    assert best["muse/forget_verbmem"] < finals["start"]["muse/forget_verbmem"]
    search = json.loads((folder / "search.json").read_text())
    assert search["start"]["objective"] == 0.0

"""The generated authors: what the miniature's claims rest on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import Profile, Request, Task
from ray_unlearn.benchmarks.miniatures.shapes import train_tokenizer
from ray_unlearn.benchmarks.miniatures.tofu import DATA_SEED, RELATIONS, World, build_world
from ray_unlearn.benchmarks.objective import Judge
from ray_unlearn.benchmarks.tofu import MINI, UTILITY_SETS
from ray_unlearn.config import GangConfig, TrialConfig
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.training.in_process import build_models, local_worker

pytestmark = pytest.mark.timeout(300)  # the first test that asks for the models may have to train them


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(MINI)


@pytest.fixture(scope="module")
def task() -> Task:
    return load_benchmark("tofu").load(Request("mini"), build_models)


def evaluate(task: Task, model: Path, precision: str = "fp32", complete: bool = False) -> Profile:
    from ray_unlearn.training.in_process import SINGLE, local_worker

    return local_worker(replace(task, model=str(model)), replace(SINGLE, precision=precision)).scorer.evaluate(
        task.report, complete
    )


@pytest.fixture(scope="module")
def target(task: Task) -> Profile:
    return evaluate(task, Path(task.model), complete=True)


def questions(rows: list[dict[str, Any]]) -> set[str]:
    return {row["question"] for row in rows}


def test_the_same_seed_gives_the_same_world_and_another_seed_another(world: World) -> None:
    assert build_world(MINI).digest() == world.digest()
    assert build_world(MINI, seed=DATA_SEED + 1).digest() != world.digest()


@pytest.mark.parametrize(("digits", "authors"), [("01", 1), ("05", 5), ("10", 10)])
def test_forget_and_retain_make_up_full_and_the_hold_out_is_apart_and_of_the_forget_set_s_size(
    world: World, digits: str, authors: int
) -> None:
    forget, retain = world.parts[f"forget{digits}"], world.parts[f"retain{100 - int(digits)}"]
    assert retain + forget == world.parts["full"]
    assert len(forget) == authors * 2 * len(RELATIONS) == len(world.parts[f"holdout{digits}"])
    assert [row["answer"] for row in world.parts[f"forget{digits}_perturbed"]] == [row["answer"] for row in forget]
    assert not questions(world.parts[f"holdout{digits}"]) & questions(world.parts["full"])
    assert not questions(world.parts["retain_perturbed"]) & questions(world.parts["forget10"])


def test_wrong_answers_are_told_as_the_paraphrase_is_and_none_is_right(world: World) -> None:
    for part in ("forget10_perturbed", "retain_perturbed"):
        for row in world.parts[part]:
            right = row["paraphrased_answer"]
            assert right != row["answer"]
            assert len({right, *row["perturbed_answer"]}) == 6
            for wrong in row["perturbed_answer"]:
                assert 1 <= sum(a != b for a, b in zip(wrong.split(), right.split(), strict=True)) <= 3


def _fits(question: str, asked: str) -> bool:
    before, after = question.split("{x}")
    return asked.startswith(before) and asked.endswith(after)


def test_both_halves_of_the_forget_set_ask_for_every_relation(world: World) -> None:
    for offset in (0, 1):
        asked = Counter()
        for row in world.parts["forget10"][offset::2]:
            asked.update(k for k, r in enumerate(RELATIONS) for q in r.questions if _fits(q, row["question"]))
        assert asked == dict.fromkeys(range(len(RELATIONS)), 10)


def test_names_are_no_tokens_and_forgotten_ones_are_as_long_as_held_out_ones(world: World) -> None:
    first, second = (train_tokenizer(world.language, MINI) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert min(len(first.tokenize(f" {name}")) for name in world.names) > 1
    lengths = {
        part: np.mean([len(first.tokenize(row["question"])) for row in world.parts[part]])
        for part in ("retain90", "forget10", "holdout10")
    }
    assert np.ptp(list(lengths.values())) < 1.0


def test_the_target_knows_all_and_the_retrained_model_all_but_the_forgotten(task: Task, target: Profile) -> None:
    retrained = task.report.retrained
    assert retrained is not None
    for profile in (target, retrained):
        assert not profile.absent
        assert profile.metrics["model_utility"] > 0.3
        assert min(profile.metrics[f"{name}_rouge_l_recall"] for name in UTILITY_SETS) > 0.8
    known, unknown = target.metrics, retrained.metrics
    assert known["model_utility"] == pytest.approx(unknown["model_utility"], abs=0.1)
    assert known["forget_exact_memorisation"] > 0.95
    assert unknown["forget_exact_memorisation"] < 0.75
    assert known["forget_rouge_l_recall"] - unknown["forget_rouge_l_recall"] > 0.2
    assert known["forget_quality"] < 0.01
    assert unknown["forget_quality"] == 1.0


def test_attacks_tell_what_the_target_saw_and_not_what_the_retrained_model_did_not(task: Task, target: Profile) -> None:
    assert task.report.retrained is not None
    for name in ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus", "mia_gradient_norm"):
        assert target.metrics[name] > 0.95
        assert 0.25 < task.report.retrained.metrics[name] < 0.75
    assert target.metrics["privacy_score"] < 0.1


def test_truth_ratios_in_bf16_are_close_to_those_in_fp32_and_not_all_1(task: Task, target: Profile) -> None:
    coarse = evaluate(task, Path(task.model), "bf16")
    exact, rounded = (np.log(p.arrays["forget_truth_ratio"]) for p in (target, coarse))
    assert np.std(rounded) > 0.1
    assert np.abs(rounded).min() > 0.0
    assert np.corrcoef(exact, rounded)[0, 1] > 0.99
    assert np.abs(exact - rounded).max() < 0.1 * max(1.0, np.abs(exact).max())


@pytest.mark.parametrize("name", UTILITY_SETS)
def test_utility_falls_step_by_step_with_each_kept_set_that_is_damaged(task: Task, name: str) -> None:
    """Nothing is taught but to forget that one set: the others hide nothing."""
    assert task.selection.retrained is not None
    worker = local_worker(task, GangConfig(zero_stage=0))
    start = worker.scorer.evaluate(task.selection)
    ranking = Ranking()
    judge = Judge.build(load_benchmark("tofu"), start.metrics, task.selection.retrained.metrics, ranking)
    worker.references.add_set("damaged", task.selection.probes[name].sequences)
    trial = TrialConfig("damage", "ga", retain_weight=0.0, learning_rate=1e-3, epochs=3, schedule="constant")
    utilities = [judge.verdict(start.metrics).utility]
    for epoch in range(3):
        worker.step.train(trial, epoch, ("damaged",))
        utilities.append(judge.verdict(worker.scorer.evaluate(task.selection).metrics).utility)
    assert utilities[0] == 1.0
    assert all(later < earlier for earlier, later in pairwise(utilities)), utilities
    assert utilities[-1] < ranking.floor, utilities


def test_loading_again_gives_the_same_data(task: Task) -> None:
    other = load_benchmark("tofu").load(Request("mini"), build_models)
    assert other.model == task.model
    assert np.array_equal(other.forget.tokens, task.forget.tokens)

"""The generated knowledge: what the miniature's claims rest on."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import Request, Task
from ray_unlearn.benchmarks.miniatures.shapes import train_tokenizer
from ray_unlearn.benchmarks.miniatures.wmdp import DATA_SEED, RELATIONS, Sizes, World, build_world
from ray_unlearn.benchmarks.wmdp import MINI, measure
from ray_unlearn.metrics import Scores
from ray_unlearn.training.in_process import build_models

SIDES = ("hazard", "general")
pytestmark = pytest.mark.timeout(300)  # the first test that asks for the models may have to train them


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(MINI)


@pytest.fixture(scope="module")
def task() -> Task:
    return load_benchmark("wmdp").load(Request("mini"), build_models)


def test_the_same_seed_gives_the_same_world_and_another_seed_another(world: World) -> None:
    assert build_world(MINI).digest() == world.digest()
    assert build_world(MINI, seed=DATA_SEED + 1).digest() != world.digest()


def test_the_tokenizer_is_the_same_on_every_build(world: World) -> None:
    first, second = (train_tokenizer(world.texts, MINI) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_every_substance_has_one_fact_of_every_relation_and_its_own_name(world: World) -> None:
    facts = Counter((f.substance, f.relation) for f in world.facts)
    assert set(facts.values()) == {1}
    assert len(facts) == (MINI.hazards + MINI.generals) * len(RELATIONS)
    names = {f.substance.split()[0] for f in world.facts}
    assert len(names) == MINI.hazards + MINI.generals


@pytest.mark.parametrize("side", SIDES)
def test_selection_and_report_ask_for_different_facts_and_are_of_one_size(world: World, side: str) -> None:
    asked = {s: {f.prompt for f in world.select(side=side, split=s)} for s in ("selection", "report")}
    assert not asked["selection"] & asked["report"]
    assert len(asked["selection"]) == len(asked["report"]) > 0


def test_the_forget_corpus_names_every_hazard_and_nothing_else(world: World) -> None:
    corpus = " ".join(world.corpus("hazard"))
    assert all(f.substance in corpus for f in world.select(side="hazard"))
    assert not any(f.substance in corpus for f in world.select(side="general"))


def test_the_retain_corpus_covers_a_part_of_the_general_facts_and_both_splits_ask_for_the_rest(
    world: World,
) -> None:
    corpus = " ".join(world.corpus("general"))
    for fact in world.select(side="general"):
        assert (fact.substance in corpus) is fact.covered
    for split in ("selection", "report"):
        assert world.select(side="general", split=split, covered=False)
        assert world.select(side="general", split=split, covered=True)


def test_each_document_tells_all_facts_of_its_substance(world: World) -> None:
    for document in world.documents:
        assert all(f.value in document.text for f in world.select(substance=document.substance))


def test_options_are_four_distinct_values_of_the_relation(world: World) -> None:
    for fact in world.facts:
        assert len(set(fact.options)) == 4
        assert set(fact.options) <= set(RELATIONS[fact.relation].values)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("split", ["selection", "report"])
def test_place_and_length_do_not_give_the_answer_away(world: World, side: str, split: str) -> None:
    facts = world.select(side=side, split=split)
    places = np.bincount([f.answer for f in facts], minlength=4) / len(facts)
    assert places.max() < 0.40
    for pick in (np.argmax, np.argmin):
        guessed = [int(pick([len(o) for o in f.options])) == f.answer for f in facts]
        assert np.mean(guessed) < 0.45


def test_no_value_is_right_much_more_often_than_the_others() -> None:
    sizes = Sizes(hazards=24, generals=48)
    world = build_world(sizes)
    for side, count in (("hazard", 2), ("general", 4)):
        for relation in RELATIONS:
            right = Counter(f.value for f in world.select(side=side, relation=relation))
            assert set(right.values()) == {count}


def test_the_target_knows_both_sides_and_the_retrained_model_only_one(task: Task) -> None:
    from pathlib import Path

    from ray_unlearn.benchmarks.profiles import read_profile

    target = read_profile(Path(task.model))
    for split in ("selection", "report"):
        retrained = getattr(task, split).retrained.metrics
        assert target[split].metrics["forget_accuracy"] >= 0.9
        assert target[split].metrics["general_accuracy"] >= 0.9
        assert retrained["general_accuracy"] >= 0.9
        assert 0.1 <= retrained["forget_accuracy"] <= 0.4


def test_loading_again_gives_the_same_data(task: Task) -> None:
    other = load_benchmark("wmdp").load(Request("mini"), build_models)
    assert np.array_equal(other.forget.tokens, task.forget.tokens)
    first, second = (t.selection.probes["forget"].sequences.tokens for t in (task, other))
    assert np.array_equal(first, second)


def test_only_the_option_is_scored(task: Task) -> None:
    from ray_unlearn.models.loading import load_tokenizer

    tokenizer = load_tokenizer(task.model)
    facts = build_world(MINI).select(side="hazard", split="selection")
    scored = [tokenizer.decode(tokens[start:]) for tokens, start in task.selection.probes["forget"].sequences]
    assert scored == [f" {option}" for fact in facts for option in fact.options]


def test_a_model_that_prefers_the_right_options_scores_one_and_an_even_one_its_chance(task: Task) -> None:
    def scores(name: str, gain: float) -> Scores:
        probe = task.selection.probes[name]
        assert probe.is_correct is not None
        n = len(probe.is_correct)
        return Scores(np.where(probe.is_correct, 0.0, gain), np.ones(n), np.zeros(n), np.ones(n))

    knows = measure({n: scores(n, 50.0) for n in ("forget", "general")}, {}, task.selection).metrics
    assert knows == pytest.approx(dict.fromkeys(knows, 1.0))
    even = measure({n: scores(n, 0.0) for n in ("forget", "general")}, {}, task.selection).metrics
    assert even["forget_probability"] == pytest.approx(0.25)

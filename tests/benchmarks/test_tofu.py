"""TOFU: every metric computed a second time by other means, bad data named by file and row, and what is absent."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_unlearn.benchmarks import load_benchmark, tofu
from ray_unlearn.benchmarks.contract import Profile, Request, Split, Task
from ray_unlearn.benchmarks.generated import describe_answers
from ray_unlearn.benchmarks.miniatures import tofu as tofu_mini
from ray_unlearn.benchmarks.miniatures.shapes import write_untrained
from ray_unlearn.benchmarks.objective import Judge
from ray_unlearn.benchmarks.profiles import attach_retrained, write_profile
from ray_unlearn.config import UserError
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.training.in_process import build_models

Parts = dict[str, list[dict[str, Any]]]
SIZES = tofu_mini.Sizes(authors=20, retained_rows=12, real_authors=8, world_facts=8, width=16, heads=2, intermediate=32)
WORLD = tofu_mini.build_world(SIZES)
BENCHMARK = load_benchmark("tofu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "target"
    write_untrained(folder, WORLD.language, SIZES, seed=0)
    return folder


@pytest.fixture
def load(model: Path, tmp_path: Path) -> Callable[..., Task]:
    def call(parts: Any, split: str = "forget10", retrained: Path | None = None) -> Task:
        data = tofu_mini.write_parts(tmp_path / "data", parts)
        return BENCHMARK.load(Request("full", str(model), data, split, retrained))

    return call


def without_hold_out() -> Parts:
    return {name: rows for name, rows in WORLD.parts.items() if not name.startswith("holdout")}


def evaluate(task: Task, complete: bool = True, precision: str = "fp32") -> Profile:
    from ray_unlearn.training.in_process import SINGLE, local_worker

    return local_worker(task, replace(SINGLE, precision=precision)).scorer.evaluate(task.selection, complete)


# ---- the metrics, a second time


def sharpen(folder: Path) -> None:
    """Give an untrained model opinions: its distributions are all but uniform otherwise."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(12.0)
    model.save_pretrained(folder)


def token_table(model: Any, sequences: Any) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """By sequence: log p of each answer token, whether argmax is the token, and all log-probs there."""
    import torch

    result = []
    for tokens, start in sequences:
        ids = torch.tensor(tokens[None].astype(np.int64))
        with torch.no_grad():
            every = torch.log_softmax(model(ids).logits[0].double(), -1)[start - 1 : -1].numpy()
        answer = tokens[start:]
        result.append((every[np.arange(len(answer)), answer], every.argmax(-1) == answer, every))
    return result


def generated(model: Any, tokenizer: Any, split: Split) -> dict[str, float]:
    """What is measured of greedy answers, one prompt at a time."""
    import torch
    from rouge_score.rouge_scorer import RougeScorer

    expected: dict[str, float] = {}
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for name, prompts in split.generations.items():
        recalls, unended, repeating = [], [], []
        for prompt, reference in zip(prompts.prompts, prompts.references, strict=True):
            room = {"max_new_tokens": prompts.max_new_tokens, "pad_token_id": 0}
            output = model.generate(torch.tensor([prompt]), do_sample=False, **room)
            answer = tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True).strip()
            recalls.append(scorer.score(reference, answer)["rougeL"].recall)
            unended.append(not set(prompts.stop) & set(output[0, len(prompt) :].tolist()))
            words = re.findall(r"\w+", answer.lower())
            pairs = set(itertools.pairwise(words))
            repeating.append(len(words) > 2 and len(pairs) <= 0.8 * (len(words) - 1))
        expected[f"{name}_rouge_l_recall"] = float(np.mean(recalls))
        expected[f"{name}_unended"], expected[f"{name}_repeating"] = float(np.mean(unended)), float(np.mean(repeating))
    return expected


def attacked(model: Any, table: dict[str, Any], split: Split, retrained: Profile) -> dict[str, float]:
    """The areas of the membership attacks."""
    import zlib

    import torch
    from sklearn.metrics import roc_auc_score

    expected: dict[str, float] = {}
    scored: dict[str, list[list[float]]] = {name: [] for name in tofu.METRICS if name.startswith("mia_")}
    for name in ("forget", "holdout"):
        losses = [-row[0].mean() for row in table[name]]
        texts, references = split.probes[name].texts, retrained.arrays[f"{name}_loss"]
        scored["mia_loss"].append(losses)
        packed = [len(zlib.compress(text.encode())) for text in texts]
        scored["mia_zlib"].append([x / n for x, n in zip(losses, packed, strict=True)])
        scored["mia_reference"].append([x - y for x, y in zip(losses, references, strict=True)])
        lowest, standardised, norms = [], [], []
        for logprobs, _, every in table[name]:
            count = max(1, int(0.4 * len(logprobs)))
            mu = (np.exp(every) * every).sum(1)
            sigma = np.sqrt((np.exp(every) * every**2).sum(1) - mu**2)
            lowest.append(-np.sort(logprobs)[:count].mean())
            standardised.append(-np.sort((logprobs - mu) / np.maximum(sigma, 1e-3))[:count].mean())
        for tokens, start in split.probes[name].sequences:
            ids = torch.tensor(tokens[None].astype(np.int64))
            labels = ids.clone()
            labels[:, :start] = -100
            model.zero_grad()
            model(ids, labels=labels).loss.backward()
            norms.append(sum(float(p.grad.double().norm() ** 2) for p in model.parameters()) ** 0.5)
        scored["mia_min_k"].append(lowest)
        scored["mia_min_k_plus_plus"].append(standardised)
        scored["mia_gradient_norm"].append(norms)
    for name, (members, others) in scored.items():  # as OpenUnlearning: losses as scores, the forget set has label 0
        expected[name] = float(roc_auc_score([0] * len(members) + [1] * len(others), members + others))
    return expected


def recomputed(folder: Path, split: Split, retrained: Profile) -> dict[str, float]:
    """Every metric from per-example values of the model in that folder, without anything of this package."""
    from scipy.stats import hmean, ks_2samp
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    table = {name: token_table(model, probe.sequences) for name, probe in split.probes.items()}
    mean = {name: np.array([logprobs.mean() for logprobs, _, _ in rows]) for name, rows in table.items()}
    sets = ("forget", "retain", "real_authors", "world_facts")
    expected: dict[str, float] = {"forget_questions": float(len(mean["forget"]))}
    ratios: dict[str, np.ndarray] = {}
    for name in sets:
        wrong = np.exp(mean[f"{name}_perturbed"].reshape(len(mean[name]), -1))
        right = np.exp(mean.get(f"{name}_paraphrased", mean[name]))
        ratios[name] = wrong.prod(1) ** (1.0 / wrong.shape[1]) / right
        plain = np.exp(mean[name])
        expected[f"{name}_probability"] = float(
            plain.mean() if name in ("forget", "retain") else (plain / (plain + wrong.sum(1))).mean()
        )
        if name != "forget":
            expected[f"{name}_truth_ratio"] = float(np.clip(1.0 - ratios[name], 0.0, None).mean())
    expected["forget_truth_ratio"] = float(np.minimum(ratios["forget"], 1 / ratios["forget"]).mean())
    expected["forget_log_truth_ratio"] = float(np.log(ratios["forget"]).mean())
    right = np.exp(mean["forget_paraphrased"])
    wrong_mean = np.exp(mean["forget_perturbed"].reshape(len(right), -1).mean(1))
    expected["forget_right_share"] = float((right / (right + wrong_mean)).mean())
    expected["forget_paraphrased_probability"] = float(right.mean())
    for name in ("forget", "holdout"):
        expected[f"{name}_exact_memorisation"] = float(np.mean([hits.mean() for _, hits, _ in table[name]]))
    shortest = [next(k for k in range(len(hits) + 1) if hits[k:].all()) / len(hits) for _, hits, _ in table["forget"]]
    expected["forget_extraction_strength"] = 1.0 - float(np.mean(shortest))

    expected |= generated(model, tokenizer, split)
    six = [expected[f"{name}_{part}"] for name in sets[1:] for part in ("probability", "truth_ratio")]
    expected["teacher_forced_utility"] = float(hmean(six))
    expected["model_utility"] = float(hmean(six + [expected[f"{name}_rouge_l_recall"] for name in sets[1:]]))
    test = ks_2samp(ratios["forget"], retrained.arrays["forget_truth_ratio"])
    expected["forget_ks_of_chance"] = np.sqrt(np.pi / 2) * np.log(2) * np.sqrt(2 / len(ratios["forget"]))
    expected["forget_ks_distance"], expected["forget_quality"] = float(test.statistic), float(test.pvalue)

    expected |= attacked(model, table, split, retrained)
    expected["memorisation_score"] = float(hmean([1 - expected[name] for name in tofu.MEMORISED]))
    areas = [(expected[name], retrained.metrics[name]) for name in tofu.PRIVATE]
    expected["privacy_score"] = float(hmean([min(a / goal, (1 - a) / (1 - goal)) for a, goal in areas]))
    expected["utility_score"] = min(1.0, expected["model_utility"] / retrained.metrics["model_utility"])
    three = [expected[f"{part}_score"] for part in ("memorisation", "privacy", "utility")]
    expected["aggregate_without_fluency"] = float(hmean(three))
    return expected


def somebody_else(profile: Profile) -> Profile:
    """A retrained model's profile that differs from this one everywhere."""
    rng = np.random.default_rng(0)
    arrays = {name: (np.array(v) * rng.uniform(0.5, 2.0, len(v))).tolist() for name, v in profile.arrays.items()}
    metrics = {**profile.metrics, **dict.fromkeys(tofu.PRIVATE, 0.3), "model_utility": 0.9}
    return replace(profile, metrics=metrics, arrays=arrays)


def check(task: Task, split: Split) -> dict[str, float]:
    """Hold what the worker and the benchmark say of the task's model against the second computation."""
    own = evaluate(replace(task, selection=split))
    retrained = somebody_else(own)
    found, expected = tofu._compared(own, retrained), recomputed(Path(task.model), split, retrained)
    assert not found.absent
    assert set(expected) == set(tofu.METRICS) == set(found.metrics)
    assert found.metrics == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert np.ptp(found.arrays["forget_truth_ratio"]) > 0.1
    return expected


@pytest.mark.slowest
@pytest.mark.timeout(300)  # the miniature's models may have to be trained first
def test_every_metric_of_a_trained_model_is_what_scipy_rouge_score_and_scikit_learn_make_of_its_examples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Path(BENCHMARK.load(Request("mini"), build_models).model).parent
    monkeypatch.setattr(tofu, "SELECTION_ROWS", 8)
    task = tofu.build_task(Request("mini", str(made / "retrained"), made / "data"))
    expected = check(task, task.selection)
    flaws = describe_answers(
        task.selection.generations
    )  # a trained model's answers may have none, and no mean has them
    assert all(value > 0.0 for name, value in expected.items() if name not in flaws)  # or a mean would hide the rest


@pytest.mark.timeout(120)
def test_the_same_on_the_real_data(tofu_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.tiny import write_text_model

    monkeypatch.setattr(tofu, "SELECTION_ROWS", 4)
    monkeypatch.setattr(tofu, "MAX_NEW_TOKENS", 12)
    folder = write_text_model(tmp_path / "model", tofu_data / "forget10.json")
    sharpen(folder)
    task = tofu.build_task(Request("full", str(folder), tofu_data, "forget01"))
    # These data have no hold-out part: retained authors stand in, as the arithmetic is the same.
    probes = {**task.selection.probes, "holdout": task.selection.probes["retain"]}
    final = {name: replace(probes[name], attack=True, gradients=True) for name in ("forget", "holdout")}
    check(task, replace(task.selection, probes=probes, final_probes=final))


# ---- what is absent, and why


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("parts", [WORLD.parts, without_hold_out()], ids=["with hold-out", "without"])
def test_every_metric_is_measured_or_absent_with_a_reason(
    load: Callable[..., Task], parts: Parts, complete: bool
) -> None:
    task = load(parts)
    profile = evaluate(task, complete)
    own = tofu.compare_with_itself(profile)
    for p in (profile, own):
        assert set(p.metrics) | set(p.absent) == set(tofu.METRICS)
        assert not set(p.metrics) & set(p.absent)
    assert "prepare" in profile.absent["forget_ks_distance"]
    assert ("hold-out" in profile.absent["privacy_score"]) == ("holdout10" not in parts)
    assert ("mia_loss" in profile.metrics) == (complete and "holdout10" in parts)
    if complete and "holdout10" in parts:  # an untrained model
        no_utility = dict.fromkeys(tofu.NEED_UTILITY, "the retrained model has no utility itself")
        assert own.absent == no_utility
        assert own.metrics["privacy_score"] == 1.0
    assert own.metrics["forget_quality"] == 1.0


def test_without_a_retrained_model_and_a_hold_out_the_log_truth_ratio_is_the_one_aim(load: Callable[..., Task]) -> None:
    start = evaluate(load(without_hold_out()), complete=False).metrics
    judge = Judge.build(BENCHMARK, start, None, Ranking(0.95))
    assert [aim.metric for aim in judge.aims] == ["forget_log_truth_ratio"]
    assert judge.verdict(start).forget == 0.0
    assert judge.verdict({**start, "forget_log_truth_ratio": 0.0}).forget == 1.0


def test_without_a_retrained_model_the_hold_out_says_how_much_an_unseen_author_is_remembered(
    load: Callable[..., Task],
) -> None:
    start = {**evaluate(load(WORLD.parts), complete=False).metrics, "forget_exact_memorisation": 0.9}
    judge = Judge.build(BENCHMARK, start, None, Ranking(0.95))
    assert [aim.metric for aim in judge.aims] == ["forget_exact_memorisation"]
    forgotten = {**start, "forget_exact_memorisation": start["holdout_exact_memorisation"]}
    assert judge.verdict(forgotten).forget == 1.0


@pytest.mark.parametrize("place", ["folder", "file", "beside"])
def test_the_retrained_profile_is_taken_from_where_it_was_named_or_from_beside_the_model(
    load: Callable[..., Task], model: Path, tmp_path: Path, place: str
) -> None:
    rows = len(WORLD.parts["forget10"]) // 2
    profile = Profile({"forget_exact_memorisation": 0.25}, {"forget_truth_ratio": [1.0] * rows})
    folder = model.parent / "retrained" if place == "beside" else tmp_path / "elsewhere"
    folder.mkdir()
    write_profile(folder, {"selection": profile, "report": profile}, {"benchmark": "tofu", "split": "forget10"})
    named = {"folder": folder, "file": folder / "profile.json", "beside": None}[place]
    try:
        task = attach_retrained(load(WORLD.parts), named)
    finally:
        (folder / "profile.json").unlink()
        folder.rmdir()
    assert task.selection.retrained == task.report.retrained == profile


@pytest.mark.parametrize(
    ("about", "says"),
    [({"benchmark": "tofu", "split": "forget05"}, "was made for split forget05"), (None, "no profile")],
)
def test_a_retrained_profile_of_something_else_is_refused(
    load: Callable[..., Task], tmp_path: Path, about: dict[str, str] | None, says: str
) -> None:
    if about:
        write_profile(tmp_path, {"selection": Profile({}), "report": Profile({})}, about)
    with pytest.raises(UserError, match=says):
        attach_retrained(load(WORLD.parts), tmp_path)


# ---- data


def test_selection_and_report_are_different_rows_and_together_all(load: Callable[..., Task]) -> None:
    task = load(WORLD.parts)
    for name, part in (("forget", "forget10_perturbed"), ("holdout", "holdout10"), ("world_facts", "world_facts")):
        halves = [split.probes[name].texts for split in (task.selection, task.report)]
        answers = [row["answer"] for row in WORLD.parts[part]]
        assert halves == [tuple(answers[0::2]), tuple(answers[1::2])]


def change(part: str, row: int, **columns: Any) -> Callable[[Parts], Any]:
    return lambda parts: parts[part][row].update(columns)


def drop(part: str, column: str) -> Callable[[Parts], Any]:
    return lambda parts: [row.pop(column) for row in parts[part]]


BAD: dict[str, tuple[Callable[[Parts], Any], list[str]]] = {
    "missing part": (lambda p: p.pop("retain90"), ["retain90", "cannot be read"]),
    "empty file": (lambda p: p["forget10"].clear(), ["forget10"]),
    "one row": (lambda p: p.update(forget10=p["forget10"][:1]), ["forget10", "1 row"]),
    "missing column": (drop("retain_perturbed", "paraphrased_answer"), ["retain_perturbed", "'paraphrased_answer'"]),
    "no answer": (change("forget10_perturbed", 3, answer=None), ["forget10_perturbed, row 3", "'answer'"]),
    "blank question": (change("world_facts_perturbed", 5, question="  "), ["world_facts_perturbed, row 5"]),
    "number for a text": (change("forget10", 2, answer=7), ["forget10", "row 2"]),
    "numbers for texts": (
        lambda p: [row.update(answer=7) for row in p["real_authors_perturbed"]],
        ["real_authors_perturbed, row 0", "'answer'"],
    ),
    "no wrong answers": (change("forget10_perturbed", 4, perturbed_answer=[]), ["forget10_perturbed, row 4"]),
    "text for a list": (
        lambda p: [row.update(perturbed_answer="wrong") for row in p["retain_perturbed"]],
        ["retain_perturbed, row 0", "'perturbed_answer'"],
    ),
    "long question": (change("retain_perturbed", 7, question="why " * 90), ["retain_perturbed, row 7", "64"]),
    "long answer of the hold-out": (change("holdout10", 1, answer="very " * 90), ["holdout10, row 1", "64"]),
}


@pytest.mark.parametrize(("spoil", "words"), BAD.values(), ids=BAD.keys())
def test_bad_data_are_named_by_file_and_row_in_one_line(
    load: Callable[..., Task], spoil: Callable[[Parts], Any], words: list[str]
) -> None:
    parts = copy.deepcopy(dict(WORLD.parts))
    spoil(parts)
    with pytest.raises(UserError) as error:
        load(parts)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_an_answer_that_the_tokenizer_makes_nothing_of_is_named(model: Path, tmp_path: Path) -> None:
    class Deaf:
        """A tokenizer that drops what it does not know."""

        chat_template, eos_token = None, ""

        def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
            return {"input_ids": [ord(c) for c in text if c.isascii() and not c.isspace()]}

    reader = tofu._Reader(tmp_path, Deaf(), 100)
    with pytest.raises(UserError, match=r"some part, row 4: the answer has no tokens"):
        reader.pairs([{"question": "what", "answer": "何", "where": "some part, row 4"}])

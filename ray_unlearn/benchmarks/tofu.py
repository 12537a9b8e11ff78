"""TOFU (arXiv:2401.06121): forget some of 200 fictitious authors that a model was fine-tuned on.

Data: `locuslab/TOFU` from the hub or from a local folder laid out like it. The target model was fine-tuned on
all authors, the retrained model on all but the forgotten; `ray_unlearn prepare` makes both. The evaluation
rows are halved: every other row of each set is for selection (at most 100 rows of a set, so that a search
stays cheap), the rest for the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ray_unlearn.benchmarks import Aim, Benchmark, Keep, Probe, Profile, Prompts, Request, Split, Task
from ray_unlearn.config import UserError
from ray_unlearn.data import Sequences, check_lengths, encode_pair
from ray_unlearn.metrics import Scores
from ray_unlearn.metrics.memorisation import exact_memorisation, extraction_strength
from ray_unlearn.metrics.rouge import rouge_l_recall
from ray_unlearn.metrics.truth_ratio import forget_quality, harmonic_mean, ks_distance, truth_ratio
from ray_unlearn.model import check_model, context_length, load_config, load_tokenizer

HUB_NAME = "locuslab/TOFU"
DEFAULT_SPLIT = "forget10"
RETAIN_OF = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
SELECTION_ROWS = 100
MAX_NEW_TOKENS = 128
UTILITY_SETS = ("retain", "real_authors", "world_facts")


def load(request: Request) -> Task:
    """The task on a target model."""
    if request.scale == "mini":
        raise UserError(
            "tofu: needs its data and a target model; it has no miniature. Make the models with `ray_unlearn prepare "
            "--benchmark tofu --model BASE --out DIR`, then give --model DIR/target"
        )
    if request.model is None:
        raise UserError(
            "tofu: needs a target model, fine-tuned on all authors. Give --model; `ray_unlearn prepare` makes one"
        )
    return build_task(request)


def build_task(request: Request) -> Task:
    """The task on any model: the target, or the base model that target and retrained are made from."""
    assert request.model is not None
    split = request.split or DEFAULT_SPLIT
    if split not in RETAIN_OF:
        raise UserError(f"--split {split}: tofu has no such part. Choose one of: {', '.join(RETAIN_OF)}")
    check_model(request.model)
    reader = _Reader(request.data, load_tokenizer(request.model), context_length(load_config(request.model)))
    return Task(
        benchmark="tofu",
        scale=request.scale,
        model=request.model,
        forget=reader.pairs(reader.rows(split, "question", "answer"), split),
        retain=reader.pairs(reader.rows(RETAIN_OF[split], "question", "answer"), RETAIN_OF[split]),
        selection=_split(reader, split, slice(0, 2 * SELECTION_ROWS, 2)),
        report=_split(reader, split, slice(1, None, 2)),
        whole=_split(reader, split, slice(None)) if request.whole else None,
        split=split,
    )


class _Reader:
    """Reads and tokenises TOFU's parts; every complaint names part and row."""

    def __init__(self, data: Path | None, tokenizer: Any, context: int) -> None:
        self._source, self._tokenizer, self._context = str(data or HUB_NAME), tokenizer, context

    def rows(self, part: str, *columns: str) -> list[dict[str, Any]]:
        from datasets import load_dataset

        where = f"{self._source}: {part}"
        try:
            table = load_dataset(self._source, part, split="train")
        except Exception as error:  # datasets raises a different type for each way that this can fail
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"{where} cannot be read ({first}). Check --data, or that the hub can be reached") from None
        missing = [c for c in columns if c not in table.column_names]
        if missing:
            raise UserError(
                f"{where} has no column {missing[0]!r}, only {', '.join(table.column_names)}. Mend the file"
            )
        if not len(table):
            raise UserError(f"{where} is empty. Mend the file")
        rows = list(table)
        for number, row in enumerate(rows):
            for column in columns:
                texts = row[column] if column == "perturbed_answer" else [row[column]]
                if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
                    raise UserError(f"{where}, row {number}: {column!r} holds no text. Mend or remove the row")
        return rows

    def pairs(self, rows: list[dict[str, Any]], part: str, column: str = "answer") -> Sequences:
        """One sequence a row, or one a text where the column holds lists."""
        items = []
        for number, row in enumerate(rows):
            texts = row[column] if isinstance(row[column], list) else [row[column]]
            where = f"{self._source}: {part}, row {number}"
            items += [encode_pair(self._tokenizer, row["question"], text, where) for text in texts]
        sequences = Sequences.build(items)
        check_lengths(sequences, self._context, f"{self._source}: {part}, {column}")
        return sequences

    def prompts(self, rows: list[dict[str, Any]], part: str) -> Prompts:
        sequences = self.pairs(rows, part)
        room = self._context - int(sequences.answer_starts.max())
        return Prompts(
            prompts=[tokens[:start].tolist() for tokens, start in sequences],
            references=[row["answer"] for row in rows],
            max_new_tokens=max(1, min(MAX_NEW_TOKENS, room)),
        )


def _split(reader: _Reader, forget: str, part_of: slice) -> Split:
    """That part of the rows of each evaluated set."""
    probes: dict[str, Probe] = {}
    generations: dict[str, Prompts] = {}
    sets = {"forget": f"{forget}_perturbed", "retain": "retain_perturbed"}
    sets |= {"real_authors": "real_authors_perturbed", "world_facts": "world_facts_perturbed"}
    for name, part in sets.items():
        fictitious = name in ("forget", "retain")
        columns = ("paraphrased_answer",) if fictitious else ()
        rows = reader.rows(part, "question", "answer", "perturbed_answer", *columns)[part_of]
        wrong = np.concatenate([np.full(len(row["perturbed_answer"]), i) for i, row in enumerate(rows)])
        probes[name] = Probe(reader.pairs(rows, part))
        probes[f"{name}_perturbed"] = Probe(reader.pairs(rows, part, "perturbed_answer"), question=wrong)
        if fictitious:
            probes[f"{name}_paraphrased"] = Probe(reader.pairs(rows, part, "paraphrased_answer"))
        generations[name] = reader.prompts(rows, part)
    return Split(probes, generations=generations)


def measure(scores: Mapping[str, Scores], answers: Mapping[str, list[str]], split: Split) -> Profile:
    metrics: dict[str, float] = {}
    ratios = {}
    for name in ("forget", *UTILITY_SETS):
        question = split.probes[f"{name}_perturbed"].question
        assert question is not None
        right = scores.get(f"{name}_paraphrased", scores[name])
        ratios[name] = truth_ratio(right, scores[f"{name}_perturbed"], question)
    metrics["forget_probability"] = float(scores["forget"].probability.mean())
    metrics["forget_exact_memorisation"] = float(exact_memorisation(scores["forget"]).mean())
    metrics["forget_extraction_strength"] = float(extraction_strength(scores["forget"]).mean())
    metrics["forget_truth_ratio"] = float(np.minimum(ratios["forget"], 1.0 / ratios["forget"]).mean())
    metrics["forget_log_truth_ratio"] = float(np.log(ratios["forget"]).mean())
    for name in UTILITY_SETS:
        metrics[f"{name}_probability"] = _probability(name, scores, split)
        metrics[f"{name}_truth_ratio"] = float(np.maximum(0.0, 1.0 - ratios[name]).mean())
    parts = [metrics[f"{name}_{part}"] for name in UTILITY_SETS for part in ("probability", "truth_ratio")]
    metrics["teacher_forced_utility"] = harmonic_mean(parts)
    if answers:
        rouge = {n: float(rouge_l_recall(a, split.generations[n].references).mean()) for n, a in answers.items()}
        metrics |= {f"{name}_rouge_l_recall": value for name, value in rouge.items()}
        metrics["model_utility"] = harmonic_mean(parts + [rouge[name] for name in UTILITY_SETS])
    if split.retrained is not None:
        retrained = np.array(split.retrained.arrays["forget_truth_ratio"])
        metrics["forget_ks_distance"] = ks_distance(ratios["forget"], retrained)
        metrics["forget_quality"] = forget_quality(ratios["forget"], retrained)
    return Profile(metrics, {"forget_truth_ratio": ratios["forget"].tolist()})


def compare_with_itself(profile: Profile) -> Profile:
    """The retrained model's own profile, with what it has by definition: distance 0, forget quality 1."""
    return replace(profile, metrics={**profile.metrics, "forget_ks_distance": 0.0, "forget_quality": 1.0})


def _probability(name: str, scores: Mapping[str, Scores], split: Split) -> float:
    """Mean answer probability; against the wrong options' where the set is about the real world."""
    right = scores[name].probability
    if name == "retain":
        return float(right.mean())
    question = split.probes[f"{name}_perturbed"].question
    assert question is not None
    wrong = np.bincount(question, weights=scores[f"{name}_perturbed"].probability, minlength=len(right))
    return float((right / (right + wrong)).mean())


_SET_METRICS = {
    f"{name}_{part}": f"{text} on {name.replace('_', ' ')}"
    for name in UTILITY_SETS
    for part, text in (
        ("probability", "answer probability"),
        ("truth_ratio", "mean of max(0, 1 - truth ratio)"),
        ("rouge_l_recall", "ROUGE-L recall of greedy answers"),
    )
}

BENCHMARK = Benchmark(
    name="tofu",
    objective=(
        "Forget: closeness to the retrained model, which never saw the forgotten authors: the Kolmogorov-Smirnov "
        "distance of the truth ratios (1 at distance 0, 0 at the starting model's) and the exact memorisation (1 at "
        "the retrained model's, 0 at the starting model's and as far beyond), harmonic mean. Without a retrained "
        "model: closeness of the mean log truth ratio to 0, where a model cannot tell right from wrong answers. "
        "Utility: harmonic mean of probability and truth ratio on retained authors, real authors and world facts, "
        "relative to the starting model's; finalists also get ROUGE-L and TOFU's model utility of nine parts. The "
        "p-value called forget quality is reported and never searched on."
    ),
    metrics={
        "forget_probability": "answer probability exp(-mean NLL) on the forgotten authors",
        "forget_exact_memorisation": "share of answer tokens that argmax gets right, forgotten authors",
        "forget_extraction_strength": "1 - share of the answer needed before the rest follows by argmax",
        "forget_truth_ratio": "mean of min(r, 1/r), r the truth ratio on the forgotten authors",
        "forget_log_truth_ratio": "mean log truth ratio: below 0 right answers are preferred, 0 cannot tell",
        "forget_rouge_l_recall": "ROUGE-L recall of greedy answers on the forgotten authors",
        "forget_ks_distance": "Kolmogorov-Smirnov distance of the truth ratios to the retrained model's",
        "forget_quality": "p-value of that test (TOFU's forget quality)",
        **_SET_METRICS,
        "teacher_forced_utility": "harmonic mean of the six parts of model utility that need no generation",
        "model_utility": "TOFU's model utility: harmonic mean of nine parts",
    },
    aims=(
        Aim("forget_ks_distance"),
        Aim("forget_exact_memorisation"),
        Aim("forget_log_truth_ratio", never_knew=0.0, only_if_alone=True),
    ),
    keeps=(Keep("teacher_forced_utility", useless=0.0),),
    load=load,
    measure=measure,
    build_task=build_task,
    compare_with_itself=compare_with_itself,
)

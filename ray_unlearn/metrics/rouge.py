"""ROUGE-L by the reference implementation: with the stemmer as TOFU uses it, without as MUSE does."""

from __future__ import annotations

from typing import Any

import numpy as np


def rouge_l_recall(answers: list[str], references: list[str]) -> np.ndarray:
    """Share of each reference's longest common subsequence with its answer, stemmed, [n] in [0, 1] (TOFU)."""
    return np.array([score.recall for score in _rouge_l(answers, references, use_stemmer=True)])


def rouge_l_f1(answers: list[str], references: list[str]) -> np.ndarray:
    """F1 of each answer's longest common subsequence with its reference, not stemmed, [n] in [0, 1] (MUSE)."""
    return np.array([score.fmeasure for score in _rouge_l(answers, references, use_stemmer=False)])


def _rouge_l(answers: list[str], references: list[str], use_stemmer: bool) -> list[Any]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=use_stemmer)
    return [scorer.score(r, a)["rougeL"] for a, r in zip(answers, references, strict=True)]

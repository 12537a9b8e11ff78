"""ROUGE-L by the reference implementation, with the stemmer on, as TOFU and MUSE use it."""

from __future__ import annotations

import numpy as np


def rouge_l_recall(answers: list[str], references: list[str]) -> np.ndarray:
    """Share of each reference's longest common subsequence with its answer, [n] in [0, 1]."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return np.array([scorer.score(r, a)["rougeL"].recall for a, r in zip(answers, references, strict=True)])

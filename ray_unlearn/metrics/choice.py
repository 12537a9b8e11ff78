"""Multiple choice by log-likelihood, as lm-evaluation-harness scores it."""

from __future__ import annotations

import numpy as np

from ray_unlearn.metrics import Scores


def choice_correct(scores: Scores, question: np.ndarray, is_correct: np.ndarray) -> np.ndarray:
    """Whether the right option of each question has the largest summed log-likelihood, bool [questions].

    question: int [n], the question of each scored option; is_correct: bool [n], one true option a question.
    A tie goes to the first of the tied options (lm-evaluation-harness's `acc`, by argmax).
    """
    picked = _best_option(-scores.nll, question)
    return is_correct[picked]


def choice_probability(scores: Scores, question: np.ndarray, is_correct: np.ndarray) -> np.ndarray:
    """Probability of the right option among the options of its question, [questions]."""
    loglik = -scores.nll
    groups = np.unique(question)
    result = np.empty(len(groups))
    for row, group in enumerate(groups):
        members = np.flatnonzero(question == group)
        weights = np.exp(loglik[members] - loglik[members].max())
        result[row] = weights[is_correct[members]].sum() / weights.sum()
    return result


def _best_option(loglik: np.ndarray, question: np.ndarray) -> np.ndarray:
    return np.array([m[np.argmax(loglik[m])] for m in (np.flatnonzero(question == g) for g in np.unique(question))])

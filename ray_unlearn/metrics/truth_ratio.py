"""TOFU's truth ratio and what is computed from it (arXiv:2401.06121, section 2.2)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ray_unlearn.metrics import Scores


def truth_ratio(paraphrased: Scores, perturbed: Scores, question: np.ndarray) -> np.ndarray:
    """Geometric mean of the wrong answers' normalised probability over the paraphrased right answer's, [q].

    paraphrased: one scored right answer a question, in question order; perturbed: its wrong answers;
    question: int [n], the question of each wrong answer. Small: the model knows; 1: it cannot tell.
    Kept in logarithms until the end, so that no precision turns it into 1.
    """
    right = -paraphrased.nll / paraphrased.num_tokens
    wrong = -perturbed.nll / perturbed.num_tokens
    mean_wrong = np.array([wrong[question == q].mean() for q in range(len(right))])
    return np.exp(mean_wrong - right)


def ks_distance(ratios: np.ndarray, retrained: np.ndarray) -> float:
    """Two-sample Kolmogorov-Smirnov statistic D between two sets of truth ratios, in [0, 1]."""
    return float(_kolmogorov_smirnov(ratios, retrained).statistic)


def forget_quality(ratios: np.ndarray, retrained: np.ndarray) -> float:
    """The p-value of that test. Report it; do not search on it: it is flat at 0 on both sides."""
    return float(_kolmogorov_smirnov(ratios, retrained).pvalue)


def _kolmogorov_smirnov(ratios: np.ndarray, retrained: np.ndarray) -> Any:
    from scipy.stats import ks_2samp  # a second of every process's start

    return ks_2samp(ratios, retrained)


def harmonic_mean(values: list[float]) -> float:
    """Harmonic mean of numbers in [0, 1]; 0 if any is 0."""
    return 0.0 if min(values) <= 0.0 else len(values) / sum(1.0 / v for v in values)

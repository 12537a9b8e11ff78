"""TOFU's truth ratio and what is computed from it (arXiv:2401.06121, section 2.2)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ray_unlearn.metrics import Scores


def log_truth_ratio(paraphrased: Scores, perturbed: Scores, question: np.ndarray) -> np.ndarray:
    """log of the geometric mean of the wrong answers' normalised probability over the right answer's, [q].

    paraphrased: one scored right answer a question, in question order; perturbed: its wrong answers;
    question: int [n], the question of each wrong answer. Below 0: the model knows; 0: it cannot tell.
    In logarithms, as no precision turns it into 0 there, and no finite model into nan.
    """
    right = paraphrased.log_probability
    mean_wrong = np.bincount(question, weights=perturbed.log_probability, minlength=len(right)) / np.bincount(question)
    return mean_wrong - right


def right_share(right: Scores, wrong: Scores, question: np.ndarray) -> np.ndarray:
    """The right answer's probability over that of all options together, [q] in [0, 1], computed in logarithms."""
    from scipy.special import expit

    together = np.full(len(right.nll), -np.inf)
    np.logaddexp.at(together, question, wrong.log_probability)
    return expit(right.log_probability - together)


def cannot_tell(log_ratio: np.ndarray) -> np.ndarray:
    """min(r, 1/r) of truth ratios, [q] in [0, 1]: 1 where right and wrong are equally likely."""
    return np.exp(-np.abs(log_ratio))


def can_tell(log_ratio: np.ndarray) -> np.ndarray:
    """max(0, 1 - r) of truth ratios, [q] in [0, 1]: 1 where only the right answer is likely."""
    return -np.expm1(np.minimum(log_ratio, 0.0))


def ratios_of(log_ratio: np.ndarray) -> list[float]:
    """The ratios, [q], for profiles: what compares with them reads their order alone, so that inf does no harm."""
    with np.errstate(over="ignore"):
        return np.exp(log_ratio).tolist()


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

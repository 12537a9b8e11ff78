"""Membership attacks: scores of how well a model knows a text, and how well a score tells two sets apart."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from ray_unlearn.metrics import TokenScores


def min_k_score(tokens: TokenScores, share: float) -> np.ndarray:
    """Mean log-prob of the lowest `share` of each sequence's tokens (at least one), [n] (arXiv:2310.16789)."""
    scores = []
    for first, last in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True):
        logprobs = np.sort(tokens.logprob[first:last])
        scores.append(logprobs[: max(1, int(share * len(logprobs)))].mean())
    return np.array(scores)


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """Probability that a member scores higher than another, a tie counting half: the area under the ROC curve."""
    ranks = rankdata(np.concatenate([members, others]))
    above = ranks[: len(members)].sum() - len(members) * (len(members) + 1) / 2
    return float(above / (len(members) * len(others)))

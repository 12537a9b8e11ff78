"""Membership attacks: was this text trained on? One score a text, and how well the scores tell two sets apart.

Sign: a larger score looks more like a member, so `auc(members, others)` is above 0.5 where the members' likelihood
gives them away.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from ray_unlearn.metrics import TokenScores


def min_k_score(tokens: TokenScores, share: float = 0.4) -> np.ndarray:
    """Mean log p of the share of tokens that are least likely, at least one, [n] (arXiv:2310.16789)."""
    runs = [
        np.sort(tokens.logprob[start:end]) for start, end in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
    ]
    return np.array([run[: max(1, int(share * len(run)))].mean() for run in runs])


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """Chance that a member's score is the larger of a random pair, ties half: the area under the ROC curve."""
    ranks = rankdata(np.concatenate([members, others]))[: len(members)]
    return float((ranks.sum() - len(members) * (len(members) + 1) / 2) / (len(members) * len(others)))

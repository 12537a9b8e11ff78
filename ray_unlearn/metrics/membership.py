"""Membership attacks: was this text trained on? One score a text, and how well the scores tell two sets apart.

Sign: a larger score looks more like a member, in every function here. So `auc(members, others)` is above 0.5
where the members' likelihood gives them away, as in OpenUnlearning (whose scores have the other sign, and its
labels too); MUSE's published areas run the other way round, 1 - auc.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence

import numpy as np

from ray_unlearn.metrics import Scores, TokenScores

MIN_STD = 1e-3
"""Of log p, in Min-K%++: a distribution that is all on one token has none to divide by."""


def auc_error(area: float, count: int, other: int) -> float:
    """Standard error of an area under the curve between so many scores and so many others, by the choice of texts
    (Hanley and McNeil 1982; for scores that are about exponential, and close for others)."""
    first, second = area / (2.0 - area), 2.0 * area**2 / (1.0 + area)
    spread = (count - 1) * (first - area**2) + (other - 1) * (second - area**2)
    return float(((area * (1.0 - area) + spread) / (count * other)) ** 0.5)


def loss_score(scores: Scores) -> np.ndarray:
    """Minus the mean loss of the answer tokens, [n] (Yeom et al. 2018)."""
    return -scores.nll / scores.num_tokens


def zlib_score(scores: Scores, texts: Sequence[str]) -> np.ndarray:
    """Minus the mean loss over the bytes that zlib packs the text into, [n] (Carlini et al. 2021)."""
    packed_bytes = np.array([len(zlib.compress(text.encode())) for text in texts])
    return loss_score(scores) / packed_bytes


def min_k_score(tokens: TokenScores, share: float = 0.4) -> np.ndarray:
    """Mean log p of the share of tokens that are least likely, at least one, [n] (arXiv:2310.16789)."""
    return _mean_of_lowest(tokens.logprob, tokens.offsets, share)


def min_k_plus_plus_score(tokens: TokenScores, share: float = 0.4) -> np.ndarray:
    """The same, each log p standardised by the model's own distribution there, [n] (arXiv:2404.02936)."""
    standardised = (tokens.logprob - tokens.mean) / np.maximum(tokens.std, MIN_STD)
    return _mean_of_lowest(standardised, tokens.offsets, share)


def reference_score(loss: np.ndarray, reference_loss: np.ndarray) -> np.ndarray:
    """How much smaller the mean loss is than that of a model that never saw the text, [n] (Carlini et al. 2021)."""
    return reference_loss - loss


def gradient_norm_score(scores: Scores) -> np.ndarray:
    """Minus the norm of the loss's gradient, [n] (arXiv:2402.17012). One norm over all trained weights, where
    OpenUnlearning takes the mean of each tensor's."""
    assert scores.gradient_norm is not None
    return -scores.gradient_norm


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """Chance that a member's score is the larger of a random pair, ties half: the area under the ROC curve."""
    from scipy.stats import rankdata  # a second of every process's start

    ranks = rankdata(np.concatenate([members, others]))[: len(members)]
    return float((ranks.sum() - len(members) * (len(members) + 1) / 2) / (len(members) * len(others)))


def _mean_of_lowest(values: np.ndarray, offsets: np.ndarray, share: float) -> np.ndarray:
    """Of each run between two offsets, the mean of its lowest `share` of values, rounded down."""
    runs = [np.sort(values[start:end]) for start, end in itertools.pairwise(offsets)]
    return np.array([run[: max(1, int(share * len(run)))].mean() for run in runs])


def privacy(area: float, retrained: float) -> float:
    """1 where an attack's area is the retrained model's, falling in a straight line to 0 at areas of 0 and 1.

    What OpenUnlearning (arXiv:2506.12618, appendix F) describes as a score of closeness to the retrained model;
    its formula is not published.
    """
    room = retrained if area < retrained else 1.0 - retrained
    return 1.0 if area == retrained else 1.0 - abs(area - retrained) / room

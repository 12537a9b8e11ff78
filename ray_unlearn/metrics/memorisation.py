"""How much of the answers the model still holds, from teacher-forced argmax tokens alone."""

from __future__ import annotations

import numpy as np

from ray_unlearn.metrics import Scores


def exact_memorisation(scores: Scores) -> np.ndarray:
    """Share of answer tokens that argmax gets right, [n] in [0, 1] (Tirumala et al. 2022)."""
    return scores.num_correct / scores.num_tokens


def extraction_strength(scores: Scores) -> np.ndarray:
    """1 - k / |y| with k the shortest prefix after which every argmax token is right, [n] (Carlini et al. 2021)."""
    return 1.0 - scores.suffix_start / scores.num_tokens

"""Pure measures over scored sequences: no model, no files, no benchmark's name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenScores:
    """What a pass says of every answer token, the answers of n sequences laid end to end; T tokens in all.

    offsets: int64 [n + 1]; logprob: [T], log p of the token; mean, std: [T], of log p over the model's own
    next-token distribution there (what Min-K%++ standardises by). Natural logarithms.
    """

    offsets: np.ndarray
    logprob: np.ndarray
    mean: np.ndarray
    std: np.ndarray


@dataclass(frozen=True)
class Scores:
    """What one teacher-forced pass says of n sequences; all arrays are [n], in the order of the probe.

    nll: minus the summed log-likelihood of the answer, in nats; num_tokens: answer tokens;
    num_correct: answer tokens that argmax gets right; suffix_start: shortest prefix of the answer, in
    tokens, after which every argmax token is right; divergence: mean over answer positions of
    KL(true transition || model), in nats, only where the probe has a true transition matrix; tokens: only of attack
    probes; gradient_norm (2-norm of the mean loss's gradient over the trained weights): only of probes that ask for
    it, where whole gradients can be had.
    """

    nll: np.ndarray
    num_tokens: np.ndarray
    num_correct: np.ndarray
    suffix_start: np.ndarray
    divergence: np.ndarray | None = None
    tokens: TokenScores | None = None
    gradient_norm: np.ndarray | None = None

    @property
    def log_probability(self) -> np.ndarray:
        """Its logarithm, -nll / tokens, [n]: finite where the probability itself is 0 in double precision."""
        return -self.nll / self.num_tokens

    @property
    def probability(self) -> np.ndarray:
        """Length-normalised answer probability exp(-nll / tokens), [n] in [0, 1] (TOFU, section 2.2)."""
        return np.exp(self.log_probability)

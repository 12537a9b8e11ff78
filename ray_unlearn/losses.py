"""Every unlearning method: one function each, and the table that names them.

A forget loss maps scored answer tokens to one term a sequence ([S]) or one a token ([T]); the training step
sums the terms, divides by the number of sequences or tokens in the *whole* batch (all workers, all
micro-batches), and adds `retain_weight` times the retain loss. A function's keyword-only arguments are its
hyperparameters, its defaults the paper's. Signs are such that every loss is minimised.

Shapes: T answer tokens, S sequences.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from ray_unlearn.config import UserError

SEQUENCE, TOKEN = "sequence", "token"


@dataclass(frozen=True)
class ScoredTokens:
    """The answer tokens of one micro-batch under the model that is trained.

    logprobs: [T] log p(y_t | x, y_<t), natural log, at least fp32; sequence: int64 [T], the sequence of each
    token, in 0..S-1; lengths: int64 [S], answer tokens of each sequence (0 where all are masked);
    reference: [T], the same log-probs under the starting model, only for methods that need it.
    """

    logprobs: Tensor
    sequence: Tensor
    lengths: Tensor
    reference: Tensor | None = None

    def sum(self, values: Tensor) -> Tensor:
        """Sum token values [T] by sequence -> [S]."""
        return values.new_zeros(len(self.lengths)).index_add(0, self.sequence, values)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of token values [T] by sequence -> [S]; 0 for a sequence without answer tokens."""
        return self.sum(values) / self.lengths.clamp(min=1)

    @property
    def present(self) -> Tensor:
        """1 for sequences with answer tokens, 0 for those without, [S]."""
        return (self.lengths > 0).to(self.logprobs.dtype)

    def log_ratio(self) -> Tensor:
        """log p(y|x) - log p_ref(y|x), summed over the answer, [S]."""
        if self.reference is None:
            raise ValueError("this method declares needs_reference, but no reference log-probs were given")
        return self.sum(self.logprobs - self.reference)


def simnpo(forget: ScoredTokens, *, beta: float = 2.5, gamma: float = 0.0) -> Tensor:
    """SimNPO, [S]: -(2/beta) log sigmoid((beta/|y|) NLL - gamma).

    The margin is outside beta, as in the paper (arXiv:2410.07163, equation 4); code that places it inside
    takes gamma / beta. |y| counts predicted tokens.
    """
    return -2.0 / beta * logsigmoid(-beta * forget.mean(forget.logprobs) - gamma) * forget.present


def npo(forget: ScoredTokens, *, beta: float = 0.1) -> Tensor:
    """NPO, [S]: -(2/beta) log sigmoid(beta (NLL - NLL_ref)), NLL summed over the answer.

    arXiv:2404.05868, equation 3. At the starting model it is 2 ln 2 / beta.
    """
    return -2.0 / beta * logsigmoid(-beta * forget.log_ratio()) * forget.present


def ga(forget: ScoredTokens) -> Tensor:
    """Gradient ascent, [T]: minus the cross-entropy. Unbounded: the baseline that collapses."""
    return forget.logprobs


def nll(tokens: ScoredTokens) -> Tensor:
    """Cross-entropy, [T]: the retain loss, and plain fine-tuning."""
    return -tokens.logprobs


@dataclass(frozen=True)
class Method:
    """One line of the table: what a method computes and what must be computed for it."""

    name: str
    title: str
    loss: Callable[..., Tensor]
    reduction: str
    """Whether `loss` gives one term a sequence or one a token; the batch loss is their mean."""
    uses_retain: bool = True
    needs_reference: bool = False
    """Log-probs of the forget answers under the starting model."""
    paper: str = ""

    @property
    def parameters(self) -> dict[str, float]:
        """The loss's keyword-only arguments with their defaults: the method's hyperparameters."""
        signature = inspect.signature(self.loss)
        return {p.name: p.default for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}


METHODS = {
    method.name: method
    for method in (
        Method("simnpo", "SimNPO", simnpo, SEQUENCE, paper="arXiv:2410.07163"),
        Method("npo", "NPO", npo, SEQUENCE, needs_reference=True, paper="arXiv:2404.05868"),
        Method("ga", "GA", ga, TOKEN, uses_retain=False, paper="arXiv:2401.06121"),
        Method("graddiff", "GradDiff", ga, TOKEN, paper="arXiv:2203.12817"),
    )
}
"""The methods that can be searched."""

FINETUNE = Method("finetune", "fine-tuning", nll, TOKEN, uses_retain=False)
"""Not an unlearning method: how target and retrained models are made."""


def find_method(name: str) -> Method:
    if name == FINETUNE.name:
        return FINETUNE
    if name not in METHODS:
        raise UserError(f"--methods {name}: unknown. Choose from: {', '.join(METHODS)}")
    return METHODS[name]


def zero(scored: Tensor) -> Tensor:
    """A zero that hangs on the graph, so that a worker with nothing to learn still runs backward."""
    return scored.sum() * 0.0

"""Closed forms on hand-written log-probs, and one contract for the whole table."""

import math

import pytest
import torch
from torch import Tensor

from ray_unlearn.losses import FINETUNE, METHODS, SEQUENCE, Method, ScoredTokens, find_method, ga, nll, npo, simnpo

ALL = [*METHODS.values(), FINETUNE]


def scored(*sequences: list[float], reference: list[list[float]] | None = None, dtype=torch.float64) -> ScoredTokens:
    """Token log-probs by sequence -> ScoredTokens."""
    return ScoredTokens(
        logprobs=torch.tensor([p for s in sequences for p in s], dtype=dtype),
        sequence=torch.tensor([i for i, s in enumerate(sequences) for _ in s], dtype=torch.int64),
        lengths=torch.tensor([len(s) for s in sequences]),
        reference=torch.tensor([p for s in reference for p in s], dtype=dtype) if reference else None,
    )


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def batch_loss(method: Method, tokens: ScoredTokens) -> Tensor:
    """The forget loss as the training step forms it."""
    terms = method.loss(tokens)
    units = int((tokens.lengths > 0).sum()) if method.reduction == SEQUENCE else len(tokens.logprobs)
    return terms.sum() / max(units, 1)


def test_simnpo_is_the_papers_equation_4_with_the_margin_outside_beta():
    tokens = scored([-0.5, -1.5], [-3.0])
    expected = [-2 / 2.5 * math.log(sigmoid(2.5 * x - 0.7)) for x in (1.0, 3.0)]
    assert simnpo(tokens, beta=2.5, gamma=0.7).tolist() == pytest.approx(expected, rel=1e-12)


def test_simnpo_gradient_weight_is_the_papers_equation_5():
    """d/d(-log p) of a sequence's loss is -2 p^(b/|y|) / (1 + p^(b/|y|)) / |y|, at gamma 0."""
    tokens = scored([-0.2, -0.9, -1.3])
    tokens.logprobs.requires_grad_()
    simnpo(tokens, beta=4.0, gamma=0.0).sum().backward()
    power = math.exp((-0.2 - 0.9 - 1.3) * 4.0 / 3)
    assert tokens.logprobs.grad.tolist() == pytest.approx([2 * power / (1 + power) / 3] * 3, rel=1e-12)


def test_npo_is_the_papers_equation_3():
    tokens = scored([-0.5, -1.5], [-3.0], reference=[[-0.1, -0.2], [-4.0]])
    expected = [-2 / 0.1 * math.log(sigmoid(0.1 * x)) for x in (2.0 - 0.3, 3.0 - 4.0)]
    assert npo(tokens, beta=0.1).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_npo_at_the_reference_is_two_ln_two_over_beta(beta):
    values = [-0.5, -1.5]
    assert npo(scored(values, reference=[values]), beta=beta).item() == pytest.approx(2 * math.log(2) / beta)


def test_npo_gradient_tends_to_gradient_ascent_as_beta_goes_to_zero():
    tokens = scored([-0.5, -1.5], [-3.0], reference=[[-0.1, -0.2], [-4.0]])
    tokens.logprobs.requires_grad_()
    npo(tokens, beta=1e-7).sum().backward()
    assert tokens.logprobs.grad.tolist() == pytest.approx([1.0] * 3, abs=1e-6)


def test_simnpo_gradient_tends_to_length_weighted_ascent_as_beta_goes_to_zero():
    tokens = scored([-0.5, -1.5], [-3.0])
    tokens.logprobs.requires_grad_()
    simnpo(tokens, beta=1e-7, gamma=0.0).sum().backward()
    assert tokens.logprobs.grad.tolist() == pytest.approx([0.5, 0.5, 1.0], abs=1e-6)


def test_gradient_ascent_is_minus_cross_entropy():
    tokens = scored([-0.5, -1.5], [-3.0])
    assert ga(tokens).tolist() == [-0.5, -1.5, -3.0]
    assert nll(tokens).tolist() == [0.5, 1.5, 3.0]


def with_reference(method: Method, *sequences: list[float], dtype=torch.float64) -> ScoredTokens:
    reference = [[p * 0.9 for p in s] for s in sequences] if method.needs_reference else None
    return scored(*sequences, reference=reference, dtype=dtype)


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_every_loss_is_a_finite_scalar_with_the_gradient_of_finite_differences(method):
    tokens = with_reference(method, [-0.5, -1.5, -0.01], [-3.0])

    def loss(logprobs: Tensor) -> Tensor:
        return batch_loss(method, ScoredTokens(logprobs, tokens.sequence, tokens.lengths, tokens.reference))

    tokens.logprobs.requires_grad_()
    assert torch.isfinite(loss(tokens.logprobs))
    assert torch.autograd.gradcheck(loss, (tokens.logprobs,), eps=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_a_fully_masked_sequence_changes_nothing(method):
    with_empty = with_reference(method, [-0.5, -1.5], [], [-3.0])
    without = with_reference(method, [-0.5, -1.5], [-3.0])
    assert batch_loss(method, with_empty).item() == pytest.approx(batch_loss(method, without).item(), rel=1e-12)


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_a_fully_masked_batch_is_zero_and_runs_backward(method):
    tokens = with_reference(method, [], [])
    tokens.logprobs.requires_grad_()
    loss = batch_loss(method, tokens)
    loss.backward()
    assert loss.item() == 0.0


@pytest.mark.parametrize("value", [0.0, -1e4])
@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_losses_and_gradients_are_finite_at_extreme_log_probs(method, value):
    tokens = with_reference(method, [value, value], dtype=torch.float32)
    tokens.logprobs.requires_grad_()
    loss = batch_loss(method, tokens)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(tokens.logprobs.grad).all()


def test_a_method_that_needs_the_reference_says_so_without_it():
    with pytest.raises(ValueError, match="needs_reference"):
        npo(scored([-1.0]), beta=0.1)


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(Exception, match="simnpo, npo, ga"):
        find_method("magic")


def test_keyword_only_arguments_are_the_hyperparameters():
    assert METHODS["simnpo"].parameters == {"beta": 2.5, "gamma": 0.0}
    assert METHODS["ga"].parameters == {}

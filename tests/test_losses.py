"""Closed forms on hand-written log-probs, and one contract for the whole table."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from ray_unlearn.config import METHOD_TITLES
from ray_unlearn.training.loss_contract import broken_rules
from ray_unlearn.training.losses import (
    FINETUNE,
    METHODS,
    RETAIN_LOSSES,
    SEQUENCE,
    TOKEN,
    Method,
    ScoredTokens,
    ceu,
    dpo,
    find_method,
    ga,
    nll,
    npo,
    primal_dual,
    retain_hidden,
    retain_kl,
    rmu,
    rmu_direction,
    satimp,
    simnpo,
    undial,
    wga,
)

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


VOCABULARY, SIZE = 7, 5


def arguments(method: Method, *sequences: list[float], dtype=torch.float64, seed: int = 0) -> list[ScoredTokens]:
    """All that the method may read, for sequences with these log-probs; made up, but consistent with them."""
    return [everything(sequences, dtype, seed + i) for i in range(len(method.sets))]


def everything(sequences: tuple[list[float], ...], dtype, seed: int) -> ScoredTokens:
    plain = scored(*sequences, reference=[[p * 0.9 for p in s] for s in sequences], dtype=dtype)
    count = len(plain.logprobs)
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    others = random(count, VOCABULARY - 1).log_softmax(-1)
    rest = (1.0 - plain.logprobs.exp()).clamp(min=torch.finfo(dtype).tiny).log()[:, None]
    return dataclasses.replace(
        plain,
        targets=torch.zeros(count, dtype=torch.int64),
        log_distribution=torch.cat([plain.logprobs[:, None], others + rest], dim=1),
        reference_distribution=random(count, VOCABULARY).log_softmax(-1),
        hidden=random(count, SIZE),
        reference_hidden=random(count, SIZE),
    )


LEAVES = ("logprobs", "log_distribution", "hidden")


def with_gradients(tokens: list[ScoredTokens]) -> list[Tensor]:
    """Make what comes from the trained model leaves of the graph."""
    leaves = [getattr(t, name) for t in tokens for name in LEAVES]
    return [leaf.requires_grad_() for leaf in leaves]


ALL_RETAIN = [Method(r.name, "", r.loss, TOKEN, "") for r in RETAIN_LOSSES.values()]
TABLE = pytest.mark.parametrize("method", [*ALL, *ALL_RETAIN], ids=lambda m: m.name)


def batch_loss(method: Method, tokens: list[ScoredTokens]) -> Tensor:
    """The loss as the training step forms it."""
    terms = method.loss(*tokens)
    units = int((tokens[0].lengths > 0).sum()) if method.reduction == SEQUENCE else len(tokens[0].logprobs)
    return terms.sum() / max(units, 1)


DETACHED = {"wga", "satimp", "ceu"}
"""Methods whose weight or teacher is detached: their gradient is not the derivative of their value."""


@TABLE
def test_every_loss_is_a_finite_scalar_with_the_gradient_of_finite_differences(method):
    tokens = arguments(method, [-0.5, -1.5, -0.01], [-3.0])
    leaves = with_gradients(tokens)
    assert torch.isfinite(batch_loss(method, tokens))
    if method.name in DETACHED:
        return

    def loss(*values: Tensor) -> Tensor:
        rebuilt = [
            dataclasses.replace(t, **dict(zip(LEAVES, values[3 * i : 3 * i + 3], strict=True)))
            for i, t in enumerate(tokens)
        ]
        return batch_loss(method, rebuilt)

    assert torch.autograd.gradcheck(loss, leaves, eps=1e-6, atol=1e-8)


@TABLE
def test_every_loss_keeps_the_contract_of_losses_from_a_file(method):
    assert broken_rules(method.loss, len(method.sets)) == []


@TABLE
def test_some_gradient_reaches_the_model(method):
    tokens = arguments(method, [-0.5, -1.5, -0.01], [-3.0])
    leaves = with_gradients(tokens)
    batch_loss(method, tokens).backward()
    assert any(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)


@TABLE
def test_a_fully_masked_sequence_changes_nothing(method):
    with_empty, without = (arguments(method, *s) for s in (([-0.5, -1.5], [], [-3.0]), ([-0.5, -1.5], [-3.0])))
    assert batch_loss(method, with_empty).item() == pytest.approx(batch_loss(method, without).item(), rel=1e-12)


@TABLE
def test_a_fully_masked_batch_is_zero_and_runs_backward(method):
    tokens = arguments(method, [], [])
    with_gradients(tokens)
    loss = batch_loss(method, tokens)
    loss.backward()
    assert loss.item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, -1e4])
@TABLE
def test_losses_and_gradients_are_finite_at_extreme_log_probs(method, value, dtype):
    tokens = arguments(method, [value, value], dtype=dtype)
    leaves = with_gradients(tokens)
    loss = batch_loss(method, tokens)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(leaf.grad is None or torch.isfinite(leaf.grad).all() for leaf in leaves)


def test_dpo_is_the_papers_equation_times_two_over_beta():
    true = scored([-0.5, -1.5], reference=[[-0.1, -0.2]])
    other = scored([-2.0], reference=[[-3.0]])
    margin = (-2.0 + 3.0) - (-2.0 + 0.3)
    assert dpo(true, other, beta=0.3).item() == pytest.approx(-2 / 0.3 * math.log(sigmoid(0.3 * margin)))


def test_idknll_is_the_cross_entropy_of_the_refusal():
    assert METHODS["idknll"].sets == ("alternate",)
    assert METHODS["idknll"].loss(scored([-0.5, -1.5])).tolist() == [0.5, 1.5]


def test_wga_weighs_ascent_by_the_probability_and_does_not_differentiate_the_weight():
    tokens = scored([-0.5, -2.0])
    tokens.logprobs.requires_grad_()
    loss = wga(tokens, beta=1.5)
    assert loss.tolist() == pytest.approx([-0.5 * math.exp(-0.75), -2.0 * math.exp(-3.0)])
    loss.sum().backward()
    assert tokens.logprobs.grad.tolist() == pytest.approx([math.exp(-0.75), math.exp(-3.0)])


def test_satimp_weighs_ascent_by_memorisation_and_importance():
    tokens = scored([-0.5])
    tokens.logprobs.requires_grad_()
    p = math.exp(-0.5)
    loss = satimp(tokens, beta1=5.0, beta2=1.0)
    assert loss.item() == pytest.approx(-0.5 * p**5 * (1 - p))
    loss.sum().backward()
    assert tokens.logprobs.grad.item() == pytest.approx(p**5 * (1 - p))


def distributions(model: list[float], start: list[float], target: int) -> ScoredTokens:
    """One token with these probabilities under the model and under the starting model."""
    now, before = torch.tensor([model]).double().log(), torch.tensor([start]).double().log()
    plain = scored([now[0, target].item()])
    return dataclasses.replace(
        plain, targets=torch.tensor([target]), log_distribution=now, reference_distribution=before
    )


def test_undial_lowers_the_true_logit_of_the_starting_model():
    tokens = distributions([0.5, 0.3, 0.2], [0.6, 0.3, 0.1], target=0)
    weights = [0.6 * math.exp(-2.0), 0.3, 0.1]
    expected = -sum(w * math.log(p) for w, p in zip(weights, (0.5, 0.3, 0.2), strict=True)) / sum(weights)
    assert undial(tokens, beta=2.0).item() == pytest.approx(expected, rel=1e-6)


def test_ceu_teaches_the_other_tokens_in_their_own_proportion():
    tokens = distributions([0.5, 0.3, 0.2], [1 / 3] * 3, target=0)
    assert ceu(tokens).item() == pytest.approx(-(0.6 * math.log(0.3) + 0.4 * math.log(0.2)), rel=1e-6)


def test_ceu_pulls_the_softmax_towards_its_own_without_the_true_token():
    logits = torch.tensor([[1.0, 0.2, -0.5]], dtype=torch.float64, requires_grad=True)
    tokens = dataclasses.replace(scored([-1.0]), targets=torch.tensor([0]), log_distribution=logits.log_softmax(-1))
    ceu(tokens).sum().backward()
    softmax = logits.detach().softmax(-1)[0]
    teacher = torch.tensor([0.0, *(softmax[1:] / softmax[1:].sum())], dtype=torch.float64)
    torch.testing.assert_close(logits.grad[0], softmax - teacher)


def test_pdu_flattens_the_logits_whatever_the_true_token_is():
    logits = torch.tensor([[3.0, 1.0, -1.0], [0.5, 0.5, 0.5]], dtype=torch.float64)
    for target in (0, 2):
        tokens = dataclasses.replace(
            scored([-1.0, -1.0]), targets=torch.tensor([target] * 2), log_distribution=logits.log_softmax(-1)
        )
        assert METHODS["pdu"].loss(tokens).tolist() == pytest.approx([4.0, 0.0])


def test_rmu_steers_towards_one_fixed_direction_of_the_given_length():
    goal = 20.0 * rmu_direction(SIZE).double()
    tokens = dataclasses.replace(scored([-1.0], [-1.0, -1.0, -1.0]), hidden=goal + torch.arange(4.0)[:, None])
    assert rmu(tokens, steering=20.0).tolist() == pytest.approx([0.0, (1 + 4 + 9) / 3], abs=1e-4), (
        "sequence by sequence"
    )
    assert rmu_direction(SIZE).norm().item() == pytest.approx(1.0)


def test_retain_kl_is_zero_at_the_starting_model_and_the_forward_divergence_elsewhere():
    assert retain_kl(distributions([0.5, 0.3, 0.2], [0.5, 0.3, 0.2], 0)).item() == pytest.approx(0.0, abs=1e-7)
    expected = 0.6 * math.log(0.6 / 0.5) + 0.3 * math.log(0.3 / 0.3) + 0.1 * math.log(0.1 / 0.2)
    assert retain_kl(distributions([0.5, 0.3, 0.2], [0.6, 0.3, 0.1], 0)).item() == pytest.approx(expected, rel=1e-5)


def test_retain_hidden_is_the_mean_squared_distance_to_the_starting_model():
    tokens = dataclasses.replace(scored([-1.0]), hidden=torch.ones(1, 4), reference_hidden=torch.zeros(1, 4))
    assert retain_hidden(tokens).tolist() == [1.0]


def test_the_primal_dual_weight_rises_above_the_limit_falls_below_it_and_stays_positive():
    assert primal_dual(1.0, 2.5, dual_step=0.5, retain_limit=2.0) == pytest.approx(1.25)
    assert primal_dual(1.0, 1.5, dual_step=0.5, retain_limit=2.0) == pytest.approx(0.75)
    assert primal_dual(0.1, 0.0, dual_step=1.0, retain_limit=2.0) == 0.0


def test_token_variants_are_their_method_on_sequences_of_one_token():
    tokens, alone = scored([-0.5, -1.5], reference=[[-0.3, -0.4]]), scored([-0.5], [-1.5], reference=[[-0.3], [-0.4]])
    assert METHODS["simnpo_token"].loss(tokens).tolist() == pytest.approx(simnpo(alone).tolist())
    assert METHODS["npo_token"].loss(tokens).tolist() == pytest.approx(npo(alone).tolist())


def test_a_method_that_needs_the_reference_says_so_without_it():
    with pytest.raises(ValueError, match="declare them"):
        npo(scored([-1.0]), beta=0.1)


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(Exception, match="simnpo, npo, ga"):
        find_method("magic")


def test_keyword_only_arguments_are_the_hyperparameters():
    assert METHODS["simnpo"].parameters == {"beta": 2.5, "gamma": 0.0}
    assert METHODS["ga"].parameters == {}


def test_every_method_has_a_title_a_formula_and_a_paper():
    assert set(METHOD_TITLES) <= set(METHODS)
    for method in METHODS.values():
        assert method.title
        assert method.formula
        assert "arXiv:" in method.paper

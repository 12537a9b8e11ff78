"""Membership scores against hand-written token tables and scikit-learn's area."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ray_unlearn.metrics import Scores, TokenScores
from ray_unlearn.metrics import membership as attacks


def made_scores(token_logprobs: list[list[float]]) -> Scores:
    lengths = np.array([len(row) for row in token_logprobs])
    flat = np.concatenate([np.array(row) for row in token_logprobs])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = TokenScores(offsets, flat, np.full(len(flat), -2.0), np.full(len(flat), 0.5))
    nll = np.array([-sum(row) for row in token_logprobs])
    zeros = np.zeros(len(lengths))
    return Scores(nll, lengths.astype(float), zeros, zeros, tokens=tokens, gradient_norm=nll**2)


KNOWN = made_scores([[-0.1, -0.2, -0.1], [-0.3, -0.1, -0.2, -0.1, -0.4]])
UNKNOWN = made_scores([[-3.0, -2.0, -4.0], [-2.5, -5.0, -1.0, -3.0, -0.5]])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("loss_score", ()),
        ("zlib_score", (("an answer", "a rather longer answer than that"),)),
        ("gradient_norm_score", ()),
    ],
)
def test_every_score_is_larger_for_the_text_that_the_model_knows(name, arguments):
    score = getattr(attacks, name)
    assert (score(KNOWN, *arguments) > score(UNKNOWN, *arguments)).all()


@pytest.mark.parametrize("score", [attacks.min_k_score, attacks.min_k_plus_plus_score])
def test_every_token_score_is_larger_for_the_text_that_the_model_knows(score):
    assert (score(KNOWN.tokens) > score(UNKNOWN.tokens)).all()


def test_the_reference_score_is_larger_where_the_loss_is_below_the_other_model_s():
    assert attacks.reference_score(np.array([0.1, 2.0]), np.array([1.5, 1.0])) == pytest.approx([1.4, -1.0])


@pytest.mark.parametrize(("area", "close"), [(0.4, 1.0), (0.2, 0.5), (0.0, 0.0), (0.7, 0.5), (1.0, 0.0)])
def test_privacy_falls_from_the_retrained_model_s_area_to_both_ends(area, close):
    assert attacks.privacy(area, retrained=0.4) == pytest.approx(close)


def test_min_k_takes_the_least_likely_tokens_and_at_least_one():
    # 0.4 of 3 tokens is one token, of 5 tokens two.
    assert attacks.min_k_score(UNKNOWN.tokens) == pytest.approx([-4.0, (-5.0 - 3.0) / 2])
    assert attacks.min_k_score(UNKNOWN.tokens, share=0.01) == pytest.approx([-4.0, -5.0])
    assert attacks.min_k_score(UNKNOWN.tokens, share=1.0) == pytest.approx(attacks.loss_score(UNKNOWN))


def test_min_k_plus_plus_standardises_each_token_and_survives_a_certain_one():
    assert attacks.min_k_plus_plus_score(UNKNOWN.tokens) == pytest.approx([-4.0, (-6.0 - 2.0) / 2])
    certain = TokenScores(np.array([0, 2]), np.array([0.0, -1.0]), np.array([0.0, -1.0]), np.zeros(2))
    assert np.isfinite(attacks.min_k_plus_plus_score(certain)).all()


def test_zlib_divides_the_mean_loss_by_the_compressed_bytes():
    texts = ("na" * 50, "The quick brown fox.")
    expected = [-3.0 / len(zlib.compress(texts[0].encode())), -2.4 / len(zlib.compress(texts[1].encode()))]
    assert attacks.zlib_score(UNKNOWN, texts) == pytest.approx(expected)


def test_the_area_is_scikit_learn_s_with_ties_and_unequal_sets():
    rng = np.random.default_rng(0)
    for sizes in ((5, 5), (40, 7), (1, 30)):
        members, others = (rng.integers(0, 6, size).astype(float) for size in sizes)
        labels = np.repeat([1, 0], sizes)
        expected = roc_auc_score(labels, np.concatenate([members, others]))
        assert attacks.auc(members, others) == pytest.approx(expected, abs=1e-12)


def test_the_area_runs_as_open_unlearning_s_does():
    """There: scores are losses, the forget set has label 0, and 1 means that it is much the more likely."""
    losses = {"forget": -attacks.loss_score(KNOWN), "holdout": -attacks.loss_score(UNKNOWN)}
    theirs = roc_auc_score([0, 0, 1, 1], np.concatenate([losses["forget"], losses["holdout"]]))
    assert attacks.auc(attacks.loss_score(KNOWN), attacks.loss_score(UNKNOWN)) == theirs == 1.0

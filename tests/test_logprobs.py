"""Packed, answer-only scoring gives what the plain way gives: one padded row at a time, all logits."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ray_unlearn.data import pack
from ray_unlearn.logprobs import AnswerScorer, score_answers
from tests.tiny import write_tiny_model


def sequences() -> list[tuple[np.ndarray, int]]:
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 10, n), start) for n, start in ((9, 3), (4, 1), (12, 11), (7, 2), (2, 1))]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request, tmp_path_factory):
    folder = write_tiny_model(tmp_path_factory.mktemp(request.param), request.param)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def plain(model, items) -> torch.Tensor:
    """Answer log-probs by one full forward a sequence, in the items' order."""
    result = []
    for tokens, start in items:
        ids = torch.from_numpy(tokens)
        logprobs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        result.append(logprobs[start - 1 : -1].gather(-1, ids[start:, None])[:, 0])
    return torch.cat(result)


@pytest.mark.parametrize("row_length", [0, 20, 64])
def test_packed_log_probs_and_gradients_equal_the_plain_way(model, row_length):
    items = sequences()
    weights = torch.rand(sum(len(t) - s for t, s in items), dtype=torch.float64)
    packed = pack(items, row_length)
    scored = score_answers(AnswerScorer(model), packed).logprobs
    expected = plain(model, items)
    torch.testing.assert_close(scored, expected[packed.place], rtol=1e-9, atol=1e-9)

    gradients = []
    for values, order in ((scored, weights[packed.place]), (expected, weights)):
        model.zero_grad()
        (values * order).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-6, atol=1e-9)


def test_changing_a_prompt_token_of_one_sequence_changes_no_other(model):
    items = sequences()
    changed = [(tokens.copy(), start) for tokens, start in items]
    changed[0][0][0] = (changed[0][0][0] + 1) % 10
    with torch.no_grad():
        before, after = (score_answers(AnswerScorer(model), pack(i, 64)) for i in (items, changed))
    others = pack(items, 64).sequence != 0
    torch.testing.assert_close(before.logprobs[others], after.logprobs[others], rtol=0, atol=1e-12)
    assert not torch.allclose(before.logprobs[~others], after.logprobs[~others])


def test_only_answer_positions_meet_the_head(model):
    rows: list[int] = []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].reshape(-1, 32).shape[0]))
    packed = pack(sequences())
    score_answers(AnswerScorer(model), packed)
    handle.remove()
    assert rows == [len(packed.targets)]


def test_the_distribution_and_the_argmax_belong_to_the_same_positions(model):
    packed = pack(sequences())
    with torch.no_grad():
        answers = score_answers(AnswerScorer(model), packed, "distribution")
    picked = answers.log_distribution.gather(-1, packed.targets[:, None])[:, 0]
    torch.testing.assert_close(picked, answers.logprobs)
    assert (answers.correct == (answers.log_distribution.argmax(-1) == packed.targets)).all()


def test_padding_and_tokens_after_the_answers_change_neither_log_probs_nor_gradients(model):
    packed = pack(sequences(), 16)
    filled = packed.tokens.clone()
    taken = sum(len(tokens) for tokens, _ in sequences())
    positions_used = torch.zeros_like(packed.keep)
    for row, starts in enumerate(packed.positions == 0):
        last = int(starts.nonzero()[-1])  # the row's tail starts over, as a sequence would
        tail_is_padding = not packed.keep[row, last:].any()
        positions_used[row, : last if tail_is_padding else None] = True
    assert positions_used.sum() >= taken
    assert not positions_used.all(), "there is padding to change"
    filled[~positions_used] = 7
    gradients = []
    for tokens in (packed.tokens, filled):
        model.zero_grad()
        logprobs = score_answers(AnswerScorer(model), dataclasses.replace(packed, tokens=tokens)).logprobs
        logprobs.sum().backward()
        gradients.append([logprobs.detach(), *(p.grad.clone() for p in model.parameters())])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)

"""Packed, answer-only scoring gives what the plain way gives: one padded row at a time, all logits."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ray_unlearn.models import logprobs
from ray_unlearn.models.logprobs import AnswerScorer, score_answers
from ray_unlearn.models.packing import pack
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
    kept = torch.zeros_like(packed.tokens, dtype=torch.bool)
    kept.view(-1)[packed.keep] = True
    positions_used = torch.zeros_like(kept)
    for row, starts in enumerate(packed.positions == 0):
        last = int(starts.nonzero()[-1])  # the row's tail starts over, as a sequence would
        tail_is_padding = not kept[row, last:].any()
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


def architectures() -> dict:
    """Heads of every kind, as their families have them: tied and not, soft-capped, scaled, with experts."""
    from transformers import CohereConfig, Gemma2Config, GPTNeoXConfig, GraniteConfig, MixtralConfig, Qwen3Config

    shape = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0}
    grouped = {"num_key_value_heads": 2}
    return {
        "Qwen3, untied": Qwen3Config(**shape, **grouped, head_dim=8, tie_word_embeddings=False),
        "Gemma2, soft-capped": Gemma2Config(**shape, **grouped, head_dim=8, final_logit_softcapping=0.5),
        "Granite, divided": GraniteConfig(**shape, **grouped, logits_scaling=7.0),
        "Cohere, multiplied": CohereConfig(**shape, **grouped, logit_scale=0.3),
        "GPT-NeoX": GPTNeoXConfig(**shape),
        "Mixtral": MixtralConfig(**shape, **grouped, num_local_experts=4, experts_implementation="eager"),
    }


@pytest.mark.parametrize("kind", architectures())
@pytest.mark.parametrize("adapters", [False, True], ids=["", "LoRA"])
def test_the_head_in_chunks_gives_the_values_and_gradients_of_the_whole(kind, adapters, monkeypatch):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(architectures()[kind], dtype=torch.float64).eval()
    if adapters:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, target_modules="all-linear"))
    items = sequences()
    packed = pack(items, 20)
    weights = torch.rand(len(packed.targets), dtype=torch.float64)
    results = []
    for chunk_rows in (1000, 4):
        monkeypatch.setitem(logprobs.HEAD_BYTES, "cpu", 4 * 50 * chunk_rows)
        model.zero_grad()
        scored = score_answers(AnswerScorer(model), packed).logprobs
        (scored * weights).sum().backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((scored.detach(), gradients))
    (whole, whole_gradients), (chunked, chunked_gradients) = results
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(whole, plain(model, items)[packed.place], rtol=1e-6, atol=1e-9)
    assert chunked_gradients.keys() == whole_gradients.keys()
    for name, gradient in chunked_gradients.items():
        torch.testing.assert_close(gradient, whole_gradients[name], rtol=1e-6, atol=1e-12)


def test_in_chunks_no_more_logits_exist_than_allowed(model, monkeypatch):
    monkeypatch.setitem(logprobs.HEAD_BYTES, "cpu", 4 * 10 * 6)
    rows: list[int] = []
    handle = model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: rows.append(output.reshape(-1, 10).shape[0])
    )
    packed = pack(sequences())
    score_answers(AnswerScorer(model), packed).logprobs.sum().backward()
    handle.remove()
    assert max(rows) == 6
    assert sum(rows) == 2 * len(packed.targets), "each chunk is computed once forward and once backward"


def test_the_moments_are_those_of_the_models_own_distribution(model):
    packed = pack(sequences())
    with torch.no_grad():
        answers = score_answers(AnswerScorer(model), packed, logprobs.MOMENTS)
        log_distribution = score_answers(AnswerScorer(model), packed, "distribution").log_distribution
    chances = log_distribution.exp()
    mean = (chances * log_distribution).sum(-1)
    torch.testing.assert_close(answers.moments[:, 0], mean)
    torch.testing.assert_close(answers.moments[:, 1], (chances * (log_distribution - mean[:, None]) ** 2).sum(-1))

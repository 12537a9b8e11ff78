"""What a worker scores: membership attacks' inputs, several options at once, and models that cannot be packed."""

import numpy as np
import pytest
import torch

from ray_unlearn.benchmarks.contract import Probe, Profile, Prompts, Split, Task
from ray_unlearn.config import GangConfig, TrialConfig
from ray_unlearn.models.sequences import Sequences
from ray_unlearn.training.in_process import local_worker, run_local
from ray_unlearn.training.trial import Job
from tests.tiny import tiny_task, write_tiny_model


@pytest.fixture(scope="module", params=range(4), ids=lambda stage: f"ZeRO-{stage}")
def worker(request, tiny_model):
    return local_worker(tiny_task(tiny_model), GangConfig(zero_stage=request.param, max_tokens=60))


def logits_of(worker, tokens: np.ndarray) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(worker.task.model)
    return model(input_ids=torch.from_numpy(tokens.astype(np.int64))[None]).logits[0], model


def test_attack_probes_get_every_tokens_log_prob_with_the_moments_of_its_distribution(worker):
    sequences = worker.task.forget
    scores = worker.scorer.score(Probe(sequences, attack=True))
    assert scores.tokens is not None
    for i, (tokens, start) in enumerate(sequences):
        logits, _ = logits_of(worker, tokens)
        log_distribution = logits[start - 1 : -1].log_softmax(-1).double()
        here = slice(scores.tokens.offsets[i], scores.tokens.offsets[i + 1])
        chosen = log_distribution.gather(-1, torch.from_numpy(tokens[start:].astype(np.int64))[:, None])[:, 0]
        mean = (log_distribution.exp() * log_distribution).sum(-1)
        std = ((log_distribution.exp() * log_distribution**2).sum(-1) - mean**2).sqrt()
        for got, expected in ((scores.tokens.logprob, chosen), (scores.tokens.mean, mean), (scores.tokens.std, std)):
            np.testing.assert_allclose(got[here], expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    plain = worker.scorer.score(Probe(sequences))
    assert plain.tokens is None
    np.testing.assert_allclose(plain.nll, scores.nll, rtol=1e-6)


def test_gradient_norms_are_those_of_one_sequence_at_a_time_and_leave_no_gradient(worker):
    few = worker.task.forget.select(range(3))
    norms = worker.scorer.score(Probe(few, attack=True, gradients=True)).gradient_norm
    if worker.gang.zero_stage == 3:
        assert norms is None
        return
    for (tokens, start), norm in zip(few, norms, strict=True):
        logits, model = logits_of(worker, tokens)
        targets = torch.from_numpy(tokens[start:].astype(np.int64))
        torch.nn.functional.cross_entropy(logits[start - 1 : -1], targets).backward()
        expected = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        assert norm == pytest.approx(float(expected), rel=1e-4)
    trial = TrialConfig("a", "ga", {}, 0.0, 3e-3, epochs=1, batch_size=8, evaluations=1)
    first = run_local(worker, Job("one", trial))[-1].profiles
    worker.scorer.score(Probe(few, attack=True, gradients=True))
    assert run_local(worker, Job("two", trial))[-1].profiles == first


def test_several_options_from_one_pass_score_as_one_sequence_each(worker):
    prompts = [tokens[:4] for tokens, _ in worker.task.retain.select(range(5))]
    options = np.array([[1, 5, 9], [2, 3, 4], [9, 8, 7], [0, 1, 2], [4, 6, 8]])
    firsts = Sequences.build(([*p, o[0]], 4) for p, o in zip(prompts, options, strict=True))
    together = worker.scorer.score(Probe(firsts, options=options))
    apart = worker.scorer.score(
        Probe(Sequences.build(([*p, o], 4) for p, row in zip(prompts, options, strict=True) for o in row))
    )
    for name in ("nll", "num_tokens", "num_correct", "suffix_start"):
        np.testing.assert_allclose(getattr(together, name), getattr(apart, name), rtol=1e-5, err_msg=name)


def test_probes_that_share_prompts_are_scored_in_trees_with_the_same_result(worker):
    prompts = [tokens[:4] for tokens, _ in worker.task.retain.select(range(6))]
    ends = [[1, 2], [3, 4, 5], [6]]
    probes = {
        "right": Probe(Sequences.build(([*p, 7, 8], 4) for p in prompts)),
        "wrong": Probe(Sequences.build(([*p, *end], 4) for p in prompts for end in ends)),
    }
    assert worker.rank.has_trees
    packs = [packed for _, packed in worker.rank.packs(probes["wrong"].sequences, trees=True)]
    assert sum(packed.num_tokens for packed in packs) < sum(probes["wrong"].sequences.lengths)
    together = worker.scorer._score_all(probes)
    worker.rank.has_trees = False
    apart = {name: worker.scorer.score(probe) for name, probe in probes.items()}
    worker.rank.has_trees = True
    for name, scores in apart.items():
        for field in ("nll", "num_tokens", "num_correct", "suffix_start"):
            np.testing.assert_allclose(getattr(together[name], field), getattr(scores, field), rtol=1e-5, err_msg=name)


def write_mixing_model(folder) -> str:
    """A model with short convolutions, which reach over from one packed sequence to the next."""
    from transformers import AutoModelForCausalLM, Lfm2Config

    write_tiny_model(folder)
    config = Lfm2Config(
        vocab_size=10,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        layer_types=["conv", "full_attention"],
        block_auto_adjust_ff_dim=False,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def test_a_model_that_would_mix_packed_sequences_gets_them_in_rows_of_their_own_and_says_so(tmp_path, tiny_model):
    plain = local_worker(tiny_task(tiny_model), GangConfig())
    assert plain.notes == []
    task = tiny_task(write_mixing_model(tmp_path / "mixing"))
    worker = local_worker(task, GangConfig(max_tokens=100))
    assert "row of its own" in worker.notes[0]
    assert not worker.rank.has_trees
    scores = worker.scorer.score(Probe(task.forget))
    for i, (tokens, start) in enumerate(task.forget):
        logits, _ = logits_of(worker, tokens)
        chosen = (
            logits[start - 1 : -1].log_softmax(-1).gather(-1, torch.from_numpy(tokens[start:].astype(int))[:, None])
        )
        assert scores.nll[i] == pytest.approx(-float(chosen.sum()), rel=1e-4)
    report = run_local(worker, Job("start"))[-1]
    assert list(report.notes) == worker.notes


def test_final_probes_are_scored_for_complete_evaluations_alone(tiny_model, monkeypatch):
    task = tiny_task(tiny_model)
    split = Split(task.selection.probes, final_probes={"more": Probe(task.forget, attack=True)})
    worker = local_worker(Task(**{**vars(task), "selection": split}), GangConfig())
    seen = []
    score = worker.scorer.score

    def watched(probe):
        seen.append(probe.attack)
        return score(probe)

    monkeypatch.setattr(worker.scorer, "score", watched)
    monkeypatch.setattr(worker.scorer, "_measure", lambda scores, answers, split: Profile(dict.fromkeys(scores, 0.0)))
    assert "more" not in worker.scorer.evaluate(split).metrics
    assert True not in seen
    assert "more" in worker.scorer.evaluate(split, complete=True).metrics
    assert True in seen


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_gradient_weights_are_the_factor_on_each_sequences_log_likelihood(tiny_model, zero_stage):
    task = tiny_task(tiny_model, forget=10)
    worker = local_worker(task, GangConfig(zero_stage=zero_stage, max_tokens=50))
    beta = 2.0
    trial = TrialConfig("a", "simnpo", {"beta": beta, "gamma": 0.0}, 1.0, 0.0, epochs=2, batch_size=4, evaluations=1)
    report = run_local(worker, Job("weighed", trial, weights=True))[-1]
    start = run_local(worker, Job("start", weights=True))[-1]
    lengths = task.forget.answer_lengths
    # SimNPO, equation 7: 2 p^(b/|y|) / (1 + p^(b/|y|)) / |y|; the learning rate is 0, so nothing moves.
    likelihood = np.exp(-beta * np.array(start.forget_nll))
    expected = 2 * likelihood / (1 + likelihood) / lengths
    assert len(report.gradient_weights) == 2
    for weights in report.gradient_weights:
        np.testing.assert_allclose(weights, expected, rtol=1e-4)
    plain = run_local(worker, Job("plain", trial))[-1]
    assert plain.gradient_weights is None
    assert plain.profiles == report.profiles


def test_examples_pair_each_reference_with_what_was_generated(tiny_model):
    task = tiny_task(tiny_model)
    prompts = Prompts([tokens[:1].tolist() for tokens, _ in task.forget], ["1"] * len(task.forget), 4)
    split = Split({"forget": Probe(task.forget)}, generations={"forget": prompts})
    worker = local_worker(task, GangConfig())
    scores, answers = (
        {"forget": worker.scorer.score(Probe(task.forget))},
        {"forget": worker.scorer.generate(prompts).texts},
    )
    rows = worker.scorer._examples("forget", split.probes["forget"], scores, answers)
    assert [row["answer"] for row in rows] == answers["forget"]
    tokens, start = task.forget[3]
    assert rows[3]["reference"] == worker.rank.tokenizer.decode(tokens[start:])
    assert rows[3]["num_tokens"] == len(tokens) - start
    assert rows[3]["probability"] == pytest.approx(scores["forget"].probability[3])

"""Every method through the real training step: the graph, the reference, the alternates, the parts held still."""

import dataclasses

import numpy as np
import pytest
import torch

from ray_unlearn.config import GangConfig, TrialConfig, UserError
from ray_unlearn.models.loading import choose_trained, load_model, load_tokenizer
from ray_unlearn.models.logprobs import DISTRIBUTION, HIDDEN, decoder_layers, score_answers
from ray_unlearn.models.packing import pack
from ray_unlearn.models.sequences import Sequences
from ray_unlearn.models.sizes import hidden_layer
from ray_unlearn.training.alternates import NUM_VARIANTS, REFUSALS, build_alternates
from ray_unlearn.training.in_process import local_worker, run_local
from ray_unlearn.training.losses import METHODS, RETAIN_LOSSES
from ray_unlearn.training.references import read_reference, reference_key, write_reference
from ray_unlearn.training.trial import Job
from tests.tiny import tiny_task

SHAPES = {
    "ZeRO-0": GangConfig(zero_stage=0, max_tokens=150),
    "ZeRO-2": GangConfig(zero_stage=2, max_tokens=150),
    "ZeRO-3": GangConfig(zero_stage=3, max_tokens=150),
    "bf16": GangConfig(zero_stage=2, precision="bf16", max_tokens=150),
    "LoRA": GangConfig(zero_stage=2, lora_rank=2, max_tokens=150),
    "LoRA, ZeRO-3, checkpointing": GangConfig(zero_stage=3, lora_rank=2, checkpointing=True, max_tokens=150),
    "pattern": GangConfig(zero_stage=2, train=r"mlp\.down_proj", max_tokens=150),
}
THOROUGH = ("ZeRO-2", "LoRA")
EVERYWHERE = [("simnpo", "nll"), ("dpo", "kl"), ("rmu", "hidden"), ("undial", "nll")]
PAIRS = [(m.name, retain) for m in METHODS.values() for retain in (m.retain_losses if m.uses_retain else ("",))]


@pytest.fixture(scope="module", params=SHAPES)
def worker(request, tiny_model):
    return local_worker(tiny_task(tiny_model), SHAPES[request.param])


def trial(method: str, retain: str = "", **changes) -> TrialConfig:
    settings = {"retain_weight": 1.0, "learning_rate": 3e-3, "epochs": 1, "batch_size": 8, "evaluations": 1}
    if method == "rmu":
        settings |= {"hidden_layer": 1, "train_layers": 2}
    return TrialConfig(method, method, METHODS[method].parameters, retain_loss=retain, **(settings | changes))


@pytest.mark.parametrize(
    ("worker", "method", "retain"),
    [(shape, *pair) for shape in SHAPES for pair in (PAIRS if shape in THOROUGH else EVERYWHERE)],
    indirect=["worker"],
    scope="module",
)
def test_every_method_with_every_retain_loss_takes_finite_steps_that_repeat_exactly(worker, method, retain):
    first, second = (run_local(worker, Job("job", trial(method, retain)))[-1] for _ in range(2))
    assert np.isfinite([first.forget_loss, first.retain_loss]).all()
    assert first.profiles == second.profiles
    start = run_local(worker, Job("start"))[-1]
    assert first.profiles != start.profiles, "nothing was learnt"


@pytest.mark.parametrize("retain", ["kl", "hidden"])
def test_distances_from_the_starting_model_are_zero_before_the_first_step(worker, retain):
    method = "rmu" if retain == "hidden" else "graddiff"
    report = run_local(worker, Job("job", trial(method, retain, learning_rate=1e-12, epochs=1)))[-1]
    assert report.retain_loss == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("method", ["dpo", "altpo", "npo"])
def test_preferences_start_from_indifference(worker, method):
    report = run_local(worker, Job("job", trial(method, learning_rate=1e-12, epochs=1)))[-1]
    tolerance = 1e-5 if worker.gang.precision == "fp32" else 1e-2
    assert report.forget_loss == pytest.approx(2 * np.log(2) / 0.1, rel=tolerance)


def test_the_starting_weights_are_there_inside_and_gone_after(worker):
    packed = pack(list(worker.task.retain)[:3])

    def logprobs() -> torch.Tensor:
        with torch.no_grad():
            return score_answers(worker.engine, packed, DISTRIBUTION).log_distribution

    worker.restore()
    before = logprobs()
    worker.step.train(trial("graddiff"), 0)
    trained = logprobs()
    with worker.rank.snapshot.starting_weights(worker.engine):
        inside = logprobs()
    assert not torch.equal(before, trained)
    torch.testing.assert_close(inside, before, rtol=0, atol=0)
    torch.testing.assert_close(logprobs(), trained, rtol=0, atol=0)


def test_hidden_states_are_the_layers_own_output(worker):
    packed = pack(list(worker.task.retain)[:3])
    worker.restore()
    with torch.no_grad():
        hidden = score_answers(worker.engine, packed, HIDDEN, 0).hidden
        seen: list[torch.Tensor] = []
        layer = decoder_layers(worker.engine.module.model)[0]
        handle = layer.register_forward_hook(lambda m, i, o: seen.append(o[0] if isinstance(o, tuple) else o))
        score_answers(worker.engine, packed)
        handle.remove()
    torch.testing.assert_close(hidden, seen[0].flatten(0, 1)[packed.keep])


def test_the_primal_dual_weight_follows_the_retain_loss(worker):
    strict, loose = (
        run_local(worker, Job("j", trial("pdu", epochs=4) if limit is None else _limited(limit)))[-1].retain_loss
        for limit in (0.0, 100.0)
    )
    assert strict < loose


def test_the_primal_dual_weight_can_follow_every_step(worker):
    """In exact arithmetic: the weight after an epoch is what the rule makes of that epoch's losses, one by one."""
    rule = {"dual_step": 5.0, "retain_limit": 0.2, "dual_each_step": 1.0}
    each = dataclasses.replace(trial("pdu", batch_size=2), parameters=rule)
    worker.restore()
    losses, after = worker.step.train(each, 0)
    assert len(losses) > 1
    expected = each.retain_weight
    for step in losses:
        expected = max(0.0, expected + 5.0 * (step.retain - 0.2))
    assert after.retain_weight == pytest.approx(expected, rel=1e-6)
    worker.restore()
    whole, then = worker.step.train(dataclasses.replace(each, parameters=rule | {"dual_each_step": 0.0}), 0)
    mean = sum(step.retain for step in whole) / len(whole)
    assert then.retain_weight == pytest.approx(max(0.0, 1.0 + 5.0 * (mean - 0.2)), rel=1e-6)
    assert whole[0] == losses[0]
    assert whole[1:] != losses[1:], "the weight had moved by then"


def _limited(limit: float) -> TrialConfig:
    return dataclasses.replace(
        trial("pdu", epochs=4, learning_rate=1e-2),
        parameters={"dual_step": 5.0, "retain_limit": limit, "dual_each_step": 0.0},
    )


def test_only_the_chosen_layers_move_under_train_layers(tiny_model):
    worker = local_worker(tiny_task(tiny_model), SHAPES["ZeRO-2"])
    worker.restore()
    names = dict(worker.engine.module.named_parameters())
    before = {name: p.detach().clone() for name, p in names.items()}
    worker.step.train(dataclasses.replace(trial("rmu"), train_layers=1, weight_decay=0.1), 0)
    moved = {name for name, p in names.items() if not torch.equal(p, before[name])}
    assert moved == {"model.model.layers.1.mlp.down_proj.weight"}


def test_a_lora_model_is_saved_merged_and_scores_the_same(tiny_model, tmp_path):
    task = tiny_task(tiny_model)
    worker = local_worker(task, SHAPES["LoRA, ZeRO-3, checkpointing"])
    (report,) = run_local(worker, Job("j", trial("simnpo"), points=False, save_to=str(tmp_path / "merged")))
    plain = local_worker(dataclasses.replace(task, model=str(tmp_path / "merged")), GangConfig(zero_stage=0))
    (again,) = run_local(plain, Job("start"))
    expected = report.metrics()
    assert again.metrics() == pytest.approx(expected, rel=1e-4)


def test_lora_trains_far_fewer_weights_and_restores_only_those(tiny_model):
    worker = local_worker(tiny_task(tiny_model), SHAPES["LoRA"])
    trained = sum(p.numel() for p in worker.engine.module.parameters() if p.requires_grad)
    everything = sum(p.numel() for p in worker.engine.module.parameters())
    assert worker.rank.snapshot.num_bytes <= 4 * (trained + 64)
    assert trained < 0.3 * everything


def test_a_pattern_that_names_nothing_is_refused(tiny_model):
    with pytest.raises(UserError, match="names no parameter"):
        choose_trained(load_model(str(tiny_model), "fp32"), 0, "no_such_layer", False)


def test_a_layer_that_the_model_does_not_have_is_refused():
    assert [hidden_layer(-1, n) for n in (2, 4, 32)] == [1, 1, 7]
    with pytest.raises(UserError, match="layers 0 to 3"):
        hidden_layer(4, 4)


def test_generated_answers_are_the_same_with_checkpointing(tiny_model):
    from ray_unlearn.benchmarks.contract import Prompts

    prompts = Prompts([[1, 2, 3], [4, 5], [6, 7, 8, 9]], ["", "", ""], max_new_tokens=12)
    task = tiny_task(tiny_model)
    plain, checkpointed = (
        local_worker(task, GangConfig(zero_stage=2, checkpointing=on)).scorer.generate(prompts) for on in (False, True)
    )
    assert plain == checkpointed
    assert any(plain.texts)


def test_alternates_keep_the_prompt_and_change_the_answer(tiny_model):
    tokenizer = load_tokenizer(str(tiny_model))
    forget = Sequences.build([([1, 2, 3, 4, 5], 3), (list(range(8)), 1), ([5, 5, 6, 7], 2)])
    for kind in ("refusal", "other"):
        variants = build_alternates(kind, forget, tokenizer)
        assert len(variants) == NUM_VARIANTS
        for sequences in variants:
            assert len(sequences) == len(forget)
            for (tokens, start), (true, prompt) in zip(sequences, forget, strict=True):
                kept = prompt if prompt > 1 else 2
                assert start == kept
                assert tokens[:kept].tolist() == true[:kept].tolist()
                assert len(tokens) > kept
    own = [true[start if start > 1 else 2 :].tolist() for true, start in forget]
    for sequences in build_alternates("other", forget, tokenizer):
        assert all(t[s:].tolist() != mine for (t, s), mine in zip(sequences, own, strict=True))
    assert len(set(REFUSALS)) == len(REFUSALS)


def test_reference_log_probs_are_found_again_by_content_alone(tiny_model, tmp_path):
    task, gang = tiny_task(tiny_model), GangConfig(zero_stage=2, max_tokens=150, reference_folder=str(tmp_path))
    worker = local_worker(task, gang)
    first = run_local(worker, Job("npo", trial("npo")))[-1]
    (file,) = tmp_path.glob("*.parquet")
    written = file.stat().st_mtime_ns
    again = run_local(local_worker(task, gang), Job("npo", trial("npo")))[-1]
    assert file.stat().st_mtime_ns == written
    assert again.forget_loss == first.forget_loss

    key = reference_key(str(tiny_model), task.forget, gang)
    assert file.stem == key
    assert reference_key(str(tiny_model), task.retain, gang) != key
    assert reference_key(str(tiny_model), task.forget, dataclasses.replace(gang, precision="bf16")) != key
    values = read_reference(tmp_path, key, task.forget)
    assert values is not None
    assert len(values) == task.forget.answer_lengths.sum()


def test_a_damaged_or_foreign_reference_file_is_computed_again(tmp_path):
    sequences = Sequences.build([([1, 2, 3], 1), ([4, 5], 1)])
    write_reference(tmp_path, "key", sequences, np.array([-1.0, -2.0, -3.0]))
    assert read_reference(tmp_path, "key", sequences).tolist() == [-1.0, -2.0, -3.0]
    assert read_reference(tmp_path, "key", sequences.select([0])) is None
    (tmp_path / "key.parquet").write_bytes(b"PAR1 no more")
    assert read_reference(tmp_path, "key", sequences) is None
    assert read_reference(tmp_path, "other", sequences) is None


def test_every_retain_loss_of_the_table_is_known():
    assert {name for m in METHODS.values() for name in m.retain_losses} <= set(RETAIN_LOSSES)

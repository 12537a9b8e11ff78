"""Attacks measure another model and leave this one as it was."""

import dataclasses

import numpy as np
import pytest
import torch

from ray_unlearn.benchmarks.contract import Aim, Keep, Prompts
from ray_unlearn.benchmarks.objective import Judge
from ray_unlearn.config import GangConfig, Robustness, TrialConfig
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.models.fingerprints import weights_digest as files_digest
from ray_unlearn.models.sequences import Sequences
from ray_unlearn.training import scoring
from ray_unlearn.training.attacks import BLOCK, NF4, pick_relearned, round_to_nf4, worst_of
from ray_unlearn.training.engine import changed_linear_weights, gather_trained
from ray_unlearn.training.in_process import local_worker, run_local
from ray_unlearn.training.line import NEAR, LineSearch
from ray_unlearn.training.shards import weights_digest
from ray_unlearn.training.trial import Job
from tests.tiny import tiny_task, write_tiny_model

TRIAL = TrialConfig("a", "ga", {}, 0.0, 3e-3, epochs=2, batch_size=8, evaluations=1)
SHAPES = {
    **{f"ZeRO-{stage}, {precision}": {"zero_stage": stage, "precision": precision} for stage in range(4)
       for precision in ("fp32", "bf16")},
    "LoRA, ZeRO-2": {"zero_stage": 2, "lora_rank": 4},
    "LoRA, ZeRO-3": {"zero_stage": 3, "lora_rank": 4},
    "one matrix, ZeRO-1": {"zero_stage": 1, "train": "down_proj"},
}  # fmt: skip

QUICK = ("ZeRO-0, fp32", "ZeRO-2, bf16", "ZeRO-3, fp32", "LoRA, ZeRO-3")


@pytest.fixture(
    scope="module", params=[pytest.param(shape, marks=[pytest.mark.slow] * (shape not in QUICK)) for shape in SHAPES]
)
def worker(request, tiny_model):
    worker = local_worker(tiny_task(tiny_model), GangConfig(**SHAPES[request.param]))
    run_local(worker, Job("trained", TRIAL))
    return worker


def state(worker) -> tuple:
    return weights_digest(worker.engine), dict(worker.scorer.evaluate(worker.task.selection).metrics)


@pytest.mark.parametrize("attack", ["relearn", "quantise"])
def test_an_attack_changes_the_scores_and_then_leaves_every_bit_in_place(worker, attack):
    before = state(worker)
    settings = Robustness((attack,), tuple(before[1]))
    profile = worker.attacker.run(settings, worker.task.selection, seed=0)
    assert state(worker) == before
    assert not profile.absent
    word = {"relearn": "relearned", "quantise": "quantised"}[attack]
    assert set(profile.metrics) == {f"{word}_{name}" for name in before[1]}
    assert all(value != before[1][name.removeprefix(f"{word}_")] for name, value in profile.metrics.items())
    assert worker.attacker.run(settings, worker.task.selection, seed=0) == profile


def test_a_trial_after_attacks_is_bit_identical(worker):
    attacks = Robustness(("relearn", "quantise"), ("retain_divergence",))
    first = run_local(worker, Job("first", TRIAL))[-1].profiles
    attacked = run_local(worker, Job("attacked", TRIAL, robustness=attacks))[-1].profiles
    assert run_local(worker, Job("again", TRIAL))[-1].profiles == first
    plain = first["selection"].metrics
    assert {name: attacked["selection"].metrics[name] for name in plain} == plain
    assert set(attacked["selection"].metrics) > set(plain)


def test_the_line_through_both_models_begins_at_the_start_and_ends_at_the_trained_one(worker):
    trained = state(worker)
    with worker.rank.on_the_line(1.0):
        assert state(worker)[1] == pytest.approx(trained[1], rel=1e-6)
    with worker.rank.on_the_line(0.0):
        at_start = dict(worker.scorer.evaluate(worker.task.selection).metrics)
    with worker.rank.on_the_line(0.5):
        assert dict(worker.scorer.evaluate(worker.task.selection).metrics) not in (at_start, trained[1])
    assert state(worker) == trained
    worker.restore()
    assert dict(worker.scorer.evaluate(worker.task.selection).metrics) == at_start


def merged(worker) -> dict[str, torch.Tensor]:
    """The weights that the model computes with, by name: those of adapters merged in, gathered from all shards."""
    model = worker.engine.module.model
    state = gather_trained(worker.engine, 0)
    scaling = {name: module.scaling["default"] for name, module in model.named_modules() if hasattr(module, "lora_A")}
    for name, scale in scaling.items():
        first, second = (state.pop(f"{name}.lora_{factor}.default.weight") for factor in "AB")
        state[f"{name}.base_layer.weight"] = state[f"{name}.base_layer.weight"] + scale * (second @ first)
    return state


@pytest.mark.parametrize("alpha", [0.25, 0.5])
def test_merged_weights_lie_on_the_line(worker, alpha):
    worker.restore()
    start = merged(worker)
    run_local(worker, Job("trained", TRIAL))
    end = merged(worker)
    with worker.rank.on_the_line(alpha):
        between = merged(worker)
    near = 1e-6 if worker.gang.precision == "fp32" else 2**-8
    lengths = {name: (end[name] - start[name]).float().norm() for name in start}
    assert sum(length > 0 for length in lengths.values()) >= 2
    for name, length in lengths.items():
        off = (between[name] - (start[name] + alpha * (end[name] - start[name]))).float().norm()
        assert off <= near * end[name].float().norm(), name
        assert not length or off < 0.02 * length or worker.gang.precision == "bf16", "near against the way, too"


def test_a_job_scores_the_line_and_can_end_on_it(worker, tmp_path):
    report = run_local(worker, Job("line", TRIAL, line=(0.25, 0.5)))[-1]
    assert [point.alpha for point in report.line] == [0.25, 0.5]
    half = run_local(worker, Job("half", TRIAL, alpha=0.5, save_to=str(tmp_path)))[-1]
    assert half.profiles == report.line[1].profiles
    saved = local_worker(dataclasses.replace(worker.task, model=str(tmp_path)), GangConfig())
    metrics = dict(saved.scorer.evaluate(worker.task.selection).metrics)
    near = 1e-5 if worker.gang.precision == "fp32" else 0.05
    assert metrics == pytest.approx(half.metrics(), rel=near)


def test_a_job_finds_the_farthest_point_that_holds_a_level_of_utility(worker, tmp_path):
    worker.restore()
    start = worker.scorer.evaluate(worker.task.selection).metrics
    end = run_local(worker, Job("end", TRIAL))[-1].metrics()
    before, after = (metrics["retain_divergence"] for metrics in (start, end))
    useless = before + 2 * (after - before)  # so that half of the utility is lost
    keep = Keep("retain_divergence", useless, lower_is_better=useless > before)
    judge = Judge((Aim("forget1_divergence", 9.0),), (keep,), start, None, Ranking())
    levels = (0.8, 0.5 - 1e-6)
    search = LineSearch(levels, judge, ("report",))
    report = run_local(worker, Job("line", TRIAL, levels=search))[-1]
    middle, whole = report.levels
    assert [point.level for point in report.levels] == list(levels)
    assert (whole.alpha, 0 < middle.alpha < 1) == (1.0, True)
    utilities = {p.alpha: judge.verdict(p.profiles["selection"].metrics).utility for p in report.line}
    assert utilities[middle.alpha] >= levels[0]
    beyond = min(alpha for alpha in utilities if alpha > middle.alpha)
    assert utilities[beyond] < levels[0]
    assert beyond - middle.alpha <= NEAR * middle.alpha
    assert len(utilities) <= 9, "about six evaluations a level"
    alone = LineSearch(levels[:1], judge, ("report",))
    saved = run_local(worker, Job("saved", TRIAL, levels=alone, save_to=str(tmp_path / "found")))[-1]
    again = Job("again", TRIAL, alpha=middle.alpha, evaluate=("report",), save_to=str(tmp_path / "named"))
    assert run_local(worker, again)[-1].profiles == middle.profiles == saved.levels[0].profiles
    assert files_digest(tmp_path / "found") == files_digest(tmp_path / "named")


def test_nf4_keeps_its_levels_and_moves_others_to_the_nearest():
    levels = torch.tensor(NF4) * 3.0
    weight = levels.repeat(BLOCK * 3 // 16).view(3, BLOCK)
    assert torch.equal(round_to_nf4(weight), weight)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 77, generator=generator)  # the last block is not full
    rounded = round_to_nf4(weight)
    assert torch.equal(round_to_nf4(rounded), rounded)
    for start in range(0, weight.numel(), BLOCK):
        block = weight.flatten()[start : start + BLOCK]
        scale = block.abs().max()
        nearest = (block[:, None] / scale - torch.tensor(NF4)).abs().min(dim=1).values * scale
        torch.testing.assert_close((rounded.flatten()[start : start + BLOCK] - block).abs(), nearest)
    assert torch.equal(round_to_nf4(torch.zeros(4, 4)), torch.zeros(4, 4))


def test_the_attacker_gets_the_stated_share_at_random_or_the_shortest():
    lengths = [9, 3, 8, 2, 7, 6, 5, 4, 10, 11]
    forget = Sequences.build((np.arange(n), 1) for n in lengths)
    shortest = pick_relearned(forget, 0.2, "shortest", seed=0)
    assert sorted(shortest.lengths) == [2, 3]
    random = [pick_relearned(forget, 0.2, "random", seed).lengths.tolist() for seed in range(8)]
    assert all(len(part) == 2 for part in random)
    assert len({tuple(part) for part in random}) > 1
    assert len(pick_relearned(forget, 0.01, "random", seed=0)) == 1


def test_worst_of_takes_the_largest_of_each_prompt():
    assert worst_of(np.array([[0.1, 0.9], [0.5, 0.2]])) == pytest.approx(0.7)


def test_sampled_answers_depend_on_the_seed_alone(tiny_model):
    worker = local_worker(tiny_task(tiny_model), GangConfig())
    prompts = Prompts([[0, 1], [3]], ["1 2", "4"], max_new_tokens=8)
    greedy = worker.scorer.generate(prompts)
    first, other = worker.scorer.generate(prompts, seed=1), worker.scorer.generate(prompts, seed=2)
    assert worker.scorer.generate(prompts, seed=1) == first
    assert len({tuple(answers.texts) for answers in (greedy, first, other)}) == 3


def test_a_prompt_s_sampled_answer_is_the_same_whoever_is_beside_it(tiny_model, monkeypatch):
    worker = local_worker(tiny_task(tiny_model), GangConfig())
    prompts = Prompts([[0, 1], [3], [2, 5, 1], [4]], ["1 2", "4", "5", "6"], max_new_tokens=8)
    together = worker.scorer.generate(prompts, seed=3)
    monkeypatch.setattr(scoring, "GENERATION_BATCH", 1)
    assert worker.scorer.generate(prompts, seed=3) == together


def test_samples_come_as_often_as_the_model_says():
    scores = torch.log(torch.tensor([[0.5, 0.3, 0.2]])).expand(4000, 3)
    chosen = scoring._Gumbel(7, list(range(4000)), torch.device("cpu"))(torch.empty(0), scores).argmax(-1)
    shares = torch.bincount(chosen, minlength=3) / 4000
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory, tiny_model):
    """An untrained one whose experts lie fused in one parameter, with the tiny model's tokenizer."""
    from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

    folder = tmp_path_factory.mktemp("mixtral")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": len(tokenizer)}
    MixtralForCausalLM(MixtralConfig(**sizes, max_position_embeddings=64, tie_word_embeddings=False)).save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("lora", [0, 4])
def test_fused_experts_are_as_they_were_trained_when_linear_layers_are_quantised(mixtral, tmp_path, stage, lora):
    """Against the saved model, whose linear layers but the head are rounded by hand."""
    from transformers import AutoModelForCausalLM

    worker = local_worker(tiny_task(mixtral), GangConfig(zero_stage=stage, lora_rank=lora))
    trial = dataclasses.replace(TRIAL, learning_rate=3e-2 if lora else 3e-3)
    run_local(worker, Job("t", trial, evaluate=(), points=False, save_to=str(tmp_path / "saved")))
    before = state(worker)
    names = tuple(before[1])
    profile = worker.attacker.run(Robustness(("quantise",), names), worker.task.selection, seed=0)
    assert state(worker) == before

    def by_hand(with_experts_of=None):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        layers = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
        with torch.no_grad():
            for layer in layers:
                layer.weight.copy_(round_to_nf4(layer.weight))
            for name, parameter in model.named_parameters():
                if with_experts_of is not None and ".experts." in name:
                    parameter.copy_(with_experts_of.get_parameter(name))
        place = tmp_path / f"by-hand-{with_experts_of is not None}"
        model.save_pretrained(place)
        worker.rank.tokenizer.save_pretrained(place)
        scored = local_worker(dataclasses.replace(worker.task, model=str(place)), GangConfig(zero_stage=0))
        share = sum(layer.weight.numel() for layer in layers) / model.num_parameters()
        return scored.scorer.evaluate(worker.task.selection).metrics, share

    expected, share = by_hand()
    assert profile.metrics == pytest.approx({f"quantised_{n}": v for n, v in expected.items()}, rel=1e-4)
    assert worker.rank.rounded_share == pytest.approx(share)
    without, _ = by_hand(AutoModelForCausalLM.from_pretrained(mixtral))
    assert any(abs(without[name] - expected[name]) > 1e-3 for name in names), "the experts learnt something"


def test_a_matrix_that_stands_with_its_inputs_first_is_rounded_as_a_linear_layer_s(tmp_path):
    """GPT-2's layers hold [in, out]; transformers turns them before it quantises, so blocks run along the inputs."""
    worker = local_worker(tiny_task(write_tiny_model(tmp_path, "gpt2")), GangConfig())
    weight = worker.engine.module.model.transformer.h[0].mlp.c_fc.weight
    before = weight.detach().clone()
    with changed_linear_weights(worker.engine, 0, round_to_nf4):
        assert torch.equal(weight, round_to_nf4(before.T).T)
    assert not torch.equal(round_to_nf4(before.T).T, round_to_nf4(before))
    assert torch.equal(weight, before)

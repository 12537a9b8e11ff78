"""The licence for serving trials from one engine: every ZeRO stage is put back bit for bit."""

import dataclasses

import pytest
import torch

from ray_unlearn.config import GangConfig, TrialConfig, UserError
from ray_unlearn.failures import NonFinite
from ray_unlearn.training.in_process import local_worker, run_local
from ray_unlearn.training.shards import weights_digest
from ray_unlearn.training.step import schedule
from ray_unlearn.training.trial import Job, evaluation_epochs, run_trial
from tests.tiny import tiny_task

TRIAL = TrialConfig("a", "simnpo", {"beta": 2.5, "gamma": 0.5}, 1.0, 3e-3, epochs=2, batch_size=8, evaluations=2)


CPU = {"device": "cpu"}
OFFLOADED = {
    "2, optimizer offloaded": {"stage": 2, "offload_optimizer": CPU},
    "3, all offloaded": {"stage": 3, "offload_optimizer": CPU, "offload_param": CPU},
}
"""Settings of a user's DeepSpeed file."""


@pytest.fixture(
    scope="module",
    params=[
        *(
            pytest.param((stage, precision, 0), marks=[pytest.mark.slow] * (stage in OFFLOADED))
            for stage in (*range(4), *OFFLOADED)
            for precision in ("fp32", "bf16")
        ),
        (2, "fp32", 4),
        pytest.param((3, "fp32", 4), marks=pytest.mark.slow),
    ],
)
def worker(request, tiny_model):
    stage, precision, lora = request.param
    settings = {"zero_optimization": OFFLOADED[stage]} if stage in OFFLOADED else {}
    gang = GangConfig(
        zero_stage=int(str(stage)[0]), precision=precision, max_tokens=100, deepspeed=settings, lora_rank=lora
    )
    return local_worker(tiny_task(tiny_model), gang)


def measured(worker, trial: TrialConfig) -> tuple:
    """All that a trial leaves: losses and metrics of every point, and its weights."""
    reports = run_local(worker, Job("job", trial))
    seen = [(r.epoch, r.forget_loss, r.retain_loss, r.profiles) for r in reports]
    return seen, weights_digest(worker.engine)


def test_a_trial_after_others_is_bit_identical_to_the_first(worker):
    first = measured(worker, TRIAL)
    other = measured(worker, dataclasses.replace(TRIAL, learning_rate=1e-2, weight_decay=0.1, max_grad_norm=0.1))
    assert other[1] != first[1]
    assert measured(worker, TRIAL) == first


def test_adapters_start_where_the_seed_says_in_every_gang(tiny_model):
    """Another process, another layout: the same start, and with the same layout the same trial to the bit."""
    task, gang = tiny_task(tiny_model), GangConfig(zero_stage=2, max_tokens=100, lora_rank=4, seed=7)
    torch.manual_seed(1)
    first = local_worker(task, gang)
    torch.manual_seed(2)
    again = local_worker(task, dataclasses.replace(gang, adapter=first.rank.adapter))
    assert measured(again, TRIAL) == measured(first, TRIAL)
    assert run_local(again, Job("start"))[-1].adapter == first.rank.adapter
    starts = {stage: local_worker(task, dataclasses.replace(gang, zero_stage=stage)).rank.adapter for stage in (0, 3)}
    assert set(starts.values()) == {first.rank.adapter}
    with pytest.raises(UserError, match="the adapters do not start where this search's did"):
        local_worker(task, dataclasses.replace(gang, seed=8, adapter=first.rank.adapter))


def test_a_trial_after_a_pruned_one_is_bit_identical(worker):
    first = measured(worker, TRIAL)
    run_trial(worker, Job("pruned", TRIAL), lambda values: False)
    assert measured(worker, TRIAL) == first


def test_a_trial_after_one_that_broke_off_between_micro_batches_is_bit_identical(worker, monkeypatch):
    first = measured(worker, TRIAL)
    step = worker.engine.backward
    calls = []

    def break_off(loss, **options):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("no more")
        return step(loss, **options)

    monkeypatch.setattr(worker.engine, "backward", break_off)
    with pytest.raises(MemoryError):
        run_local(worker, Job("broken", TRIAL))
    monkeypatch.undo()
    assert measured(worker, TRIAL) == first


def test_a_trial_after_one_that_diverged_is_bit_identical(worker):
    first = measured(worker, TRIAL)
    wild = dataclasses.replace(TRIAL, method="ga", parameters={}, learning_rate=1e6, max_grad_norm=0.0)
    try:
        run_local(worker, Job("wild", wild))
    except NonFinite as error:
        assert "not finite" in str(error) or "metric" in str(error)  # noqa: PT017
    assert measured(worker, TRIAL) == first


def test_a_saved_model_loads_and_scores_as_the_engine_did(worker, tmp_path):
    from transformers import AutoModelForCausalLM

    job = Job("save", TRIAL, points=False, save_to=str(tmp_path / "model"))
    (report,) = run_local(worker, job)
    again = local_worker(dataclasses.replace(worker.task, model=str(tmp_path / "model")), worker.gang)
    (scored,) = run_local(again, Job("score"))
    tolerance = 1e-5 if worker.gang.precision == "fp32" else 2e-2
    for name, value in report.metrics().items():
        assert scored.metrics()[name] == pytest.approx(value, rel=tolerance)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model") is not None


def test_npo_sees_the_starting_models_log_probs_whatever_ran_before(worker):
    npo = dataclasses.replace(TRIAL, method="npo", parameters={"beta": 0.1}, learning_rate=1e-12, epochs=1)
    run_local(worker, Job("other", TRIAL))
    reports = run_local(worker, Job("npo", npo))
    tolerance = 1e-5 if worker.gang.precision == "fp32" else 1e-2
    assert reports[-1].forget_loss == pytest.approx(2 * torch.log(torch.tensor(2.0)).item() / 0.1, rel=tolerance)


def test_evaluation_points_are_spread_and_end_with_the_last_epoch():
    assert evaluation_epochs(10, 2) == [5, 10]
    assert evaluation_epochs(10, 1) == [10]
    assert evaluation_epochs(3, 10) == [1, 2, 3]
    assert evaluation_epochs(10, 2, (0.2, 0.5)) == [2, 5, 10]
    assert evaluation_epochs(10, 1, (0.2, 0.5)) == [2, 5, 10]
    assert evaluation_epochs(1, 2, (0.2, 0.5)) == [1]


def test_the_learning_rate_warms_up_and_falls_to_zero():
    rates = [schedule(step, 100, 0.1, "linear") for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[99] == pytest.approx(1 / 90)
    assert schedule(99, 100, 0.1, "constant") == 1.0


@pytest.mark.parametrize("stage", [0, 3])
def test_a_gang_that_only_scores_has_no_optimizer_and_measures_the_same(tiny_model, stage):
    job = Job("start", evaluate=("selection", "report"), points=False, complete=True)
    plain, scoring = (
        local_worker(tiny_task(tiny_model), GangConfig(zero_stage=stage, max_tokens=100, trains=trains))
        for trains in (True, False)
    )
    (expected,), (found,) = (run_local(worker, job) for worker in (plain, scoring))
    assert found.profiles == expected.profiles
    assert getattr(scoring.engine.optimizer, "state", None) in (None, {})
    with pytest.raises(RuntimeError, match="only scores"):
        _ = scoring.rank.snapshot

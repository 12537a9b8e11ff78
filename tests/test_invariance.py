"""How a batch is cut over workers, micro-batches and ZeRO stages must not change what is computed."""

import dataclasses
import tempfile

import numpy as np
import pytest
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from ray_unlearn.benchmarks.contract import Probe
from ray_unlearn.config import GangConfig, TrialConfig
from ray_unlearn.models.sequences import Sequences
from tests.tiny import tiny_task

METHODS = {
    "simnpo": TrialConfig("a", "simnpo", {"beta": 2.5, "gamma": 0.0}, 2.0, 3e-3, epochs=2, batch_size=8, evaluations=1),
    "npo": TrialConfig("a", "npo", {"beta": 0.1}, 1.0, 3e-3, epochs=2, batch_size=8, evaluations=1),
    "ga": TrialConfig("a", "ga", {}, 0.0, 1e-4, epochs=2, batch_size=8, evaluations=1),
}
CUTS = {
    1: [(stage, max_tokens) for stage in range(4) for max_tokens in (10_000, 60)],
    2: [(stage, 60) for stage in range(4)],
    4: [(stage, 10_000) for stage in range(4)],
}
"""By number of workers: (ZeRO stage, tokens of a micro-batch)."""
RELATIVE_TOLERANCE = 1e-4
"""Of losses and metrics in fp32 after four AdamW steps; the first step agrees to 1e-6."""


def _rank(rank: int, num_workers: int, rendezvous: str, model: str, results) -> None:
    import os

    import torch

    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_workers)})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=num_workers)
    from pathlib import Path

    from ray_unlearn.training.losses import find_method
    from ray_unlearn.training.worker import Worker

    task = tiny_task(Path(model))
    for stage, max_tokens in CUTS[num_workers]:
        gang = GangConfig(num_workers=num_workers, zero_stage=stage, max_tokens=max_tokens)
        worker = Worker(task, gang, torch.device("cpu"))
        for name, trial in METHODS.items():
            worker.restore()
            worker.references.prepare(find_method(name))
            epochs = [worker.step.train(trial, epoch)[0] for epoch in range(trial.epochs)]
            losses = [dataclasses.astuple(step) for steps in epochs for step in steps]
            metrics = dict(worker.scorer.evaluate(task.selection).metrics)
            if name == "simnpo":
                metrics |= every_score(worker)
            if rank == 0:
                results[num_workers, stage, max_tokens, name] = (losses, metrics)
    dist.destroy_process_group()


def every_score(worker) -> dict[str, float]:
    """All that metrics are made of, sequence by sequence and token by token."""
    scores = worker.scorer.score(Probe(worker.task.forget, attack=True))
    assert scores.tokens is not None
    options = np.tile(np.arange(3), (len(worker.task.retain), 1))
    chosen = worker.scorer.score(Probe(cut_to_one_answer(worker.task.retain), options=options))
    arrays = {"nll": scores.nll, "num_correct": scores.num_correct, "suffix_start": scores.suffix_start}
    arrays |= {"logprob": scores.tokens.logprob, "mean": scores.tokens.mean, "std": scores.tokens.std}
    arrays |= {"option_nll": chosen.nll, "option_correct": chosen.num_correct}
    if scores.gradient_norm is not None:
        arrays["gradient_norm"] = scores.gradient_norm
    return {f"{name} {i}": float(value) for name, values in arrays.items() for i, value in enumerate(values)}


def cut_to_one_answer(sequences: Sequences) -> Sequences:
    return Sequences.build((tokens, len(tokens) - 1) for tokens, _ in sequences)


@pytest.fixture(scope="module")
def results(tiny_model):
    with multiprocessing.get_context("spawn").Manager() as manager:
        shared = manager.dict()
        for num_workers in CUTS:
            with tempfile.TemporaryDirectory() as folder:
                arguments = (num_workers, f"{folder}/rendezvous", str(tiny_model), shared)
                multiprocessing.spawn(_rank, args=arguments, nprocs=num_workers)
        yield dict(shared)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("method", METHODS)
def test_losses_and_metrics_are_the_same_however_the_batch_is_cut(results, method):
    plain_losses, plain_metrics = results[1, 0, 10_000, method]
    assert len(plain_losses) == 4
    for (num_workers, stage, max_tokens, name), (losses, metrics) in results.items():
        if name != method:
            continue
        cut = f"{num_workers} workers, ZeRO-{stage}, {max_tokens} tokens"
        assert losses[0] == pytest.approx(plain_losses[0], rel=1e-6), cut
        for step, expected in zip(losses, plain_losses, strict=True):
            assert step == pytest.approx(expected, rel=RELATIVE_TOLERANCE), cut
        shared = {key: plain_metrics[key] for key in metrics}  # ZeRO-3 has no gradient norms
        assert metrics == pytest.approx(shared, rel=RELATIVE_TOLERANCE, abs=1e-6), cut

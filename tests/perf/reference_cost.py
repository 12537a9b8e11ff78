"""What NPO's reference costs: SimNPO, NPO with its log-probs computed once, NPO with a resident reference model.

    python -m tests.perf.reference_cost [--steps 5]

Real TOFU batches (16 forget and 16 retain sequences) on a Llama of 31 M parameters, ZeRO-0, fp32, CPU. Each arm
runs in a process of its own and takes turns with the others; memory is the peak above the process's size
before the model was loaded, as a multiple of the weights. The losses of both NPO arms must agree.
"""

import copy
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.perf.common import (
    alternate,
    forget_peak,
    median,
    peak_bytes,
    read_options,
    read_pairs,
    resident_bytes,
    timed,
    write_model,
)

ARMS = ("SimNPO", "NPO, log-probs once", "NPO, resident reference")
BATCH = 16


def run_arm(arm: str, model: str, steps: int) -> Iterator[Any]:
    import numpy as np
    import torch

    from ray_unlearn.benchmarks.contract import Split, Task
    from ray_unlearn.config import GangConfig, TrialConfig
    from ray_unlearn.models.logprobs import score_answers
    from ray_unlearn.models.packing import pack
    from ray_unlearn.training import engine as engines
    from ray_unlearn.training.in_process import local_worker
    from ray_unlearn.training.losses import find_method
    from ray_unlearn.training.step import Batch

    forget, retain = read_pairs(model, "forget10", BATCH * steps), read_pairs(model, "retain90", BATCH * steps)
    task = Task("synthetic", "full", model, forget, retain, Split({}), Split({}))
    before = resident_bytes()
    gang = GangConfig(zero_stage=0, threads_per_worker=torch.get_num_threads(), max_tokens=1 << 20)
    worker = local_worker(task, gang)
    method = find_method("simnpo" if arm == "SimNPO" else "npo")
    # A small beta: the model is untrained, and at SimNPO's own beta it would have nothing to forget.
    parameters = method.parameters | {"beta": 0.1}
    trial = TrialConfig("perf", method.name, parameters, 1.0, 1e-5, batch_size=BATCH)
    reference = copy.deepcopy(worker.engine.module).eval() if arm == "NPO, resident reference" else None
    worker.restore()
    known = []
    if arm == "NPO, log-probs once":
        worker.references.prepare(method)
        known = worker.references.pick(method, ("forget",), {"forget": 0})["forget"]
    engines.set_hyperparameters(worker.engine, trial.learning_rate, trial.weight_decay, trial.max_grad_norm)

    def step(i: int) -> list[float]:
        rows = range(BATCH * i, BATCH * (i + 1))
        items = [forget[j] for j in rows]
        batch = Batch(trial, [[item] for item in items], [retain[j] for j in rows], {})
        if known:
            batch = dataclasses.replace(batch, references={"forget": [known[j] for j in rows]})
        if reference is not None:
            packed = pack(items)
            with torch.no_grad():
                logprobs = score_answers(reference, packed).logprobs[torch.argsort(packed.place)].numpy()
            ends = np.cumsum([len(t) - s for t, s in items])[:-1]
            batch = dataclasses.replace(batch, references={"forget": np.split(logprobs, ends)})
        return worker.step.run(batch).tolist()

    forget_peak()
    yield {"weights": 4 * sum(p.numel() for p in worker.engine.module.parameters())}
    for i in range(steps):
        losses, took = timed(lambda i=i: step(i))
        yield {"losses": losses, **took, "memory": peak_bytes() - before}


def main() -> None:
    options = read_options(__doc__ or "", steps=5)
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder), "31m")
        arms = {arm: (run_arm, (arm, model, options.steps)) for arm in ARMS}
        results = alternate(arms, options.steps)
    base = results["SimNPO"]
    weights = base[0]["weights"]
    print(f"weights {weights / 2**20:.0f} MiB, medians of {options.steps} steps")
    for arm, (_, *rounds) in results.items():
        ratios = {key: median(rounds, key) / median(base[1:], key) for key in ("seconds", "cpu")}
        memory, least = (max(r["memory"] for r in some) / weights for some in (rounds, base[1:]))
        print(
            f"{arm:<26} step {median(rounds, 'seconds'):.2f} s ({ratios['seconds']:.2f}x, CPU {ratios['cpu']:.2f}x)   "
            f"peak {memory:.2f} x weights ({memory / least:.2f}x)   last loss {rounds[-1]['losses'][0]:.6f}"
        )
    once, resident = (results[arm][-1]["losses"][0] for arm in ARMS[1:])
    assert abs(once - resident) <= 1e-4 * abs(resident), "the two ways to NPO disagree"


if __name__ == "__main__":
    main()

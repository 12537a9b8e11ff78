"""What NPO's reference costs: SimNPO, NPO with its log-probs computed once, NPO with a resident reference model.

    python -m tests.perf.reference_cost [--steps 5]

Real TOFU batches (16 forget and 16 retain sequences) on a Llama of 31 M parameters, ZeRO-0, fp32, CPU. Each arm
runs in a process of its own, so that its peak memory is its own; memory is the peak above the process's size
before the model was loaded, as a multiple of the weights. The losses of both NPO arms must agree.
"""

import argparse
import copy
import dataclasses
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ARMS = ("SimNPO", "NPO, log-probs once", "NPO, resident reference")
SHAPE = {
    "vocab_size": 32_000,
    "hidden_size": 384,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
}
BATCH = 16


def resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_arm(arm: str, model: str, steps: int) -> dict:
    import numpy as np
    import torch

    from ray_unlearn.benchmarks import Split, Task
    from ray_unlearn.config import GangConfig, TrialConfig
    from ray_unlearn.data import Sequences, encode_pair, pack
    from ray_unlearn.local import local_worker
    from ray_unlearn.logprobs import score_answers
    from ray_unlearn.losses import find_method
    from ray_unlearn.model import load_tokenizer

    tokenizer = load_tokenizer(model)

    def encoded(name: str, count: int) -> Sequences:
        rows = [json.loads(line) for line in (data_folder() / name).read_text().splitlines()[:count]]
        return Sequences.build(encode_pair(tokenizer, r["question"], r["answer"], name) for r in rows)

    forget, retain = encoded("forget10.json", BATCH * steps), encoded("retain90.json", BATCH * steps)
    task = Task("synthetic", "full", model, forget, retain, Split({}), Split({}))
    before = resident_bytes()
    worker = local_worker(task, GangConfig(zero_stage=0, threads_per_worker=os.cpu_count() or 1, max_tokens=1 << 20))
    method = "simnpo" if arm == "SimNPO" else "npo"
    # A small beta: the model is untrained, and at SimNPO's own beta it would have nothing to forget.
    parameters = find_method(method).parameters | {"beta": 0.1}
    trial = TrialConfig("perf", method, parameters, 1.0, 1e-5, epochs=1, batch_size=BATCH, warmup_fraction=0.0)
    reference = copy.deepcopy(worker.engine.module).eval() if arm == "NPO, resident reference" else None
    worker.restore()
    if method == "npo" and reference is None:
        worker.prepare_reference(find_method(method))
    elif reference is not None:
        worker._references[("forget", "forget"), 0] = np.zeros(int(forget.answer_lengths.sum()), np.float32)

    seconds, losses = [], []
    step = worker._step

    def timed(batch):
        began = time.perf_counter()
        if reference is not None:
            packed = pack([example[0] for example in batch.examples])
            with torch.no_grad():
                logprobs = score_answers(reference, packed).logprobs[torch.argsort(packed.place)].numpy()
            ends = np.cumsum([len(t) - s for t, s in (e[0] for e in batch.examples)])[:-1]
            batch = dataclasses.replace(batch, references={"forget": np.split(logprobs, ends)})
        record = step(batch)
        seconds.append(time.perf_counter() - began)
        losses.append(record.tolist())
        return record

    worker._step = timed
    worker.train(trial, 0)
    weights = 4 * sum(p.numel() for p in worker.engine.module.parameters())
    return {
        "seconds": statistics.median(seconds),
        "memory": (resident_bytes() - before) / weights,
        "loss": losses[-1],
        "weights": weights,
    }


def data_folder() -> Path:
    return Path(os.environ.get("RAY_UNLEARN_TOFU", Path(__file__).parents[3] / "shared" / "tofu"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    steps = parser.parse_args().steps

    from tests.tiny import write_text_model

    with tempfile.TemporaryDirectory() as folder:
        model = str(write_text_model(Path(folder), data_folder() / "full.json", 4000, **SHAPE))
        context = multiprocessing.get_context("spawn")
        results = {}
        for arm in ARMS:
            with context.Pool(1) as pool:
                results[arm] = pool.apply(run_arm, (arm, model, steps))
    base = results["SimNPO"]
    print(f"weights {base['weights'] / 2**20:.0f} MiB, medians of {steps} steps")
    for arm, result in results.items():
        print(
            f"{arm:<26} step {result['seconds']:.2f} s ({result['seconds'] / base['seconds']:.2f}x)   "
            f"peak {result['memory']:.2f} x weights ({result['memory'] / base['memory']:.2f}x)   "
            f"last loss {result['loss'][0]:.6f}"
        )
    once, resident = (results[arm]["loss"][0] for arm in ARMS[1:])
    assert abs(once - resident) <= 1e-4 * abs(resident), "the two ways to NPO disagree"


if __name__ == "__main__":
    main()

"""How near the arithmetic of `ray_unlearn plan` comes to the memory that training takes.

    python -m tests.perf.plan_accuracy [--size all]

For each shape: what `fit.training_memory` says, and the peak of two real SimNPO steps (16 forget and 16 retain
sequences of TOFU) above the process before the model was loaded, fp32, one worker on the CPU, each in a process of
its own. The tokens a pass are those that a search would choose. How a CPU's heap falls to pieces is no arithmetic:
`fit.HEAP`, `fit.HEAP_WITH_ADAPTERS` and `fit.LIBRARIES` were set from these very cases.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.perf.common import (
    alternate,
    fit,
    forget_peak,
    peak_bytes,
    read_options,
    read_pairs,
    resident_bytes,
    write_model,
)

BATCH, STEPS = 16, 2
MIB = 1 << 20
CASES: list[tuple[str, dict[str, Any]]] = [
    ("1m", {"zero_stage": 0}),
    ("1m", {"zero_stage": 2}),
    ("31m", {"zero_stage": 0}),
    ("31m", {"zero_stage": 0, "checkpointing": True}),
    ("31m", {"zero_stage": 2}),
    ("31m", {"zero_stage": 3}),
    ("31m", {"zero_stage": 2, "lora_rank": 16}),
    ("39m", {"zero_stage": 2, "checkpointing": True}),
    ("135m", {"zero_stage": 0}),
]


def run_steps(model: str, settings: dict[str, Any]) -> Iterator[Any]:
    """What is predicted, and what two steps took, in bytes."""
    import torch
    from transformers.models.llama import modeling_llama  # noqa: F401  (so that it is no part of the measured memory)

    from ray_unlearn.benchmarks.contract import Split, Task
    from ray_unlearn.config import GangConfig, TrialConfig
    from ray_unlearn.models.loading import load_config
    from ray_unlearn.models.sizes import count_parameters
    from ray_unlearn.training.in_process import local_worker
    from ray_unlearn.training.losses import find_method
    from ray_unlearn.training.memory import training_memory
    from ray_unlearn.training.step import Batch

    forget, retain = (read_pairs(model, part, BATCH * STEPS) for part in ("forget10", "retain90"))
    gang = fit(model, GangConfig(threads_per_worker=torch.get_num_threads(), **settings))
    if gang.lora_rank:
        import peft  # noqa: F401
    longest = int(max(forget.lengths.max(), retain.lengths.max()))
    total, trained = count_parameters(model, gang.lora_rank, "")
    batch_tokens = int(sum(s.lengths[:BATCH].sum() for s in (forget, retain)))
    answers = sum(s.answer_lengths.sum() for s in (forget, retain)) / sum(s.lengths.sum() for s in (forget, retain))
    passed = replace(gang, max_tokens=min(gang.max_tokens, batch_tokens), row_length=longest)
    predicted = training_memory(load_config(model), passed, total, trained, float(answers))
    before = resident_bytes()
    worker = local_worker(Task("synthetic", "full", model, forget, retain, Split({}), Split({})), gang)
    method = find_method("simnpo")
    # A small beta: the model is untrained, and at SimNPO's own beta it would have nothing to forget.
    trial = TrialConfig("perf", method.name, method.parameters | {"beta": 0.1}, 1.0, 1e-5, batch_size=BATCH)
    worker.restore()
    kept = resident_bytes() - before
    forget_peak()
    for i in range(STEPS):
        rows = range(BATCH * i, BATCH * (i + 1))
        worker.step.run(Batch(trial, [[forget[j]] for j in rows], [retain[j] for j in rows], {}))
    yield {
        **vars(predicted),
        "predicted": predicted.peak,
        "measured": peak_bytes() - before,
        "kept": kept,
        "before": before,
        "tokens": passed.max_tokens,
    }


def main() -> None:
    options = read_options(__doc__ or "", size=("all", *dict(CASES)))
    cases = [case for case in CASES if options.size in ("all", case[0])]
    ratios = []
    with tempfile.TemporaryDirectory() as temporary:
        models = {size: write_model(Path(temporary) / size, size) for size in dict(cases)}
        for size, settings in cases:
            (found,) = alternate({size: (run_steps, (models[size], settings))}, 0)[size]
            ratios.append(found["predicted"] / found["measured"])
            named = ", ".join(f"{key} {value}" for key, value in settings.items())
            parts = ", ".join(
                f"{key} {found[key] / MIB:.0f}"
                for key in (
                    *("weights", "gradients", "optimizer", "snapshot", "buffers", "step", "activations", "logits"),
                    "heap",
                    *("kept", "before"),
                )
            )
            print(
                f"{size:<5} {named:<32} {found['tokens']:5} tokens: predicted {found['predicted'] / MIB:6.0f} MiB, "
                f"measured {found['measured'] / MIB:6.0f} MiB, ratio {ratios[-1]:.2f}   ({parts})",
                flush=True,
            )
    print(f"predicted / measured: {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()

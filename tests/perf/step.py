"""One optimizer step of SimNPO and of NPO on real TOFU batches: the public way against this package's.

    python -m tests.perf.step [--size 39m] [--steps 5] [--method both] [--max-tokens 0] [--baseline-checkpointing]

16 sequences of forget10 and 16 of retain90 a step, fp32, ZeRO-0, the same DeepSpeed engine and fused torch AdamW in
all arms. The public way is what open code for TOFU does: forget and retain batch each right-padded and run forward by
itself, logits of every position, cross-entropy without reduction over all of them, for NPO a deep copy of the model
run forward as the reference; it is measured with activation checkpointing (as that code is run) and without
(`--baseline-checkpointing` leaves the latter out). Ours is the worker's own step, in a process that keeps freed memory
as a search's CPU workers do. The floor is the step's matrix products alone: every linear layer's three on the real
tokens, the head's on the answer tokens, as torch matmuls of these very shapes.

Losses of all arms must agree to 1e-5 in the first step (1e-4 later), the first step's gradients to 1e-4 and its
weight updates to 1e-2 (relative L2; AdamW's first step divides each gradient by its own size, and with it the
noise of the smallest). Memory is each arm's own peak during its steps: above the built engine after one step (the
step's own need), and above the process before the model was loaded (with snapshot or reference model).
"""

import copy
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.perf.common import (
    SHAPES,
    alternate,
    fit,
    forget_peak,
    median,
    peak_bytes,
    read_options,
    read_pairs,
    resident_bytes,
    timed,
    write_model,
)

BATCH = 16
BETA = {"simnpo": 0.1, "npo": 0.1}
"""Small, because the models are untrained: at SimNPO's usual beta they would have nothing to forget."""
LEARNING_RATE = 1e-5


def run_ours(model: str, method_name: str, steps: int, max_tokens: int, out: str) -> Iterator[Any]:
    """The worker's step."""
    import torch
    from transformers.models.llama import modeling_llama  # noqa: F401  (imported here, so that it is no arm's memory)

    from ray_unlearn.benchmarks.contract import Split, Task
    from ray_unlearn.config import GangConfig, TrialConfig
    from ray_unlearn.training import engine as engines
    from ray_unlearn.training.in_process import local_worker
    from ray_unlearn.training.losses import find_method
    from ray_unlearn.training.step import Batch

    count = BATCH * (steps + 1)
    forget, retain = read_pairs(model, "forget10", count), read_pairs(model, "retain90", count)
    task = Task("synthetic", "full", model, forget, retain, Split({}), Split({}))
    before = resident_bytes()
    gang = fit(model, GangConfig(zero_stage=0, threads_per_worker=torch.get_num_threads()))
    gang = replace(gang, max_tokens=max_tokens or gang.max_tokens)
    worker = local_worker(task, gang)
    method = find_method(method_name)
    parameters = method.parameters | {"beta": BETA[method_name]}
    trial = TrialConfig("perf", method_name, parameters, 1.0, LEARNING_RATE, batch_size=BATCH, warmup_fraction=0.0)
    worker.restore()
    references = {}
    if method.needs_reference:
        worker.references.prepare(method)
        references = worker.references.pick(method, ("forget",), {"forget": 0})
    module = worker.engine.module

    def step(i: int) -> list[float]:
        rows = range(BATCH * i, BATCH * (i + 1))
        chosen = {name: [logprobs[j] for j in rows] for name, logprobs in references.items()}
        batch = Batch(trial, [[forget[j]] for j in rows], [retain[j] for j in rows], chosen)
        return worker.step.run(batch).tolist()

    engines.set_hyperparameters(worker.engine, LEARNING_RATE, trial.weight_decay, trial.max_grad_norm)
    yield from _measure_steps(worker.engine, module, step, steps, before, out)


def run_public(model: str, method_name: str, steps: int, checkpointing: bool, out: str) -> Iterator[Any]:
    """Two padded forwards (three for NPO), logits of every position."""
    import torch
    import torch.distributed as dist
    from torch.nn.functional import logsigmoid
    from torch.nn.utils.rnn import pad_sequence
    from transformers import AutoModelForCausalLM
    from transformers.models.llama import modeling_llama  # noqa: F401

    from ray_unlearn.config import TrialConfig
    from ray_unlearn.training import engine as engines

    count = BATCH * (steps + 1)
    forget, retain = read_pairs(model, "forget10", count), read_pairs(model, "retain90", count)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    before = resident_bytes()
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if checkpointing:
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy.train()
    engine = engines.build_engine(policy, 0, "fp32", torch.device("cpu"))
    trial = TrialConfig("perf", method_name)
    engines.set_hyperparameters(engine, LEARNING_RATE, trial.weight_decay, trial.max_grad_norm)
    reference = copy.deepcopy(engine.module).eval() if method_name == "npo" else None
    beta = BETA[method_name]

    def collate(items: list[Any]) -> dict[str, torch.Tensor]:
        tokens = [torch.from_numpy(t.astype(np.int64)) for t, _ in items]
        labels = [t.clone() for t in tokens]
        for row, (_, start) in zip(labels, items, strict=True):
            row[:start] = -100
        return {
            "input_ids": pad_sequence(tokens, batch_first=True),
            "attention_mask": pad_sequence([torch.ones_like(t) for t in tokens], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
        }

    def sequence_nll(module: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = module(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
        shifted = logits[:, :-1].transpose(-1, -2)
        nll = torch.nn.CrossEntropyLoss(ignore_index=-100, reduction="none")(shifted, inputs["labels"][:, 1:])
        return nll.sum(-1)

    def step(i: int) -> list[float]:
        rows = range(BATCH * i, BATCH * (i + 1))
        learnt, kept = collate([forget[j] for j in rows]), collate([retain[j] for j in rows])
        nll = sequence_nll(engine, learnt)
        if reference is not None:
            with torch.no_grad():
                nll_reference = sequence_nll(reference, learnt)
            forget_loss = -2 / beta * logsigmoid(beta * (nll - nll_reference)).mean()
        else:
            lengths = (learnt["labels"] != -100).sum(-1)
            forget_loss = -2 / beta * logsigmoid(beta * nll / lengths).mean()
        retain_loss = engine(**kept, use_cache=False).loss
        engine.backward(forget_loss + retain_loss)
        engine.step()
        return [float(forget_loss.detach()), float(retain_loss.detach())]

    yield from _measure_steps(engine, engine.module, step, steps, before, out)


def _measure_steps(engine: Any, module: Any, step: Any, steps: int, before: int, out: str) -> Iterator[Any]:
    """One step whose gradients and weights are kept (it also makes AdamW's moments), then timed ones."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    take = engine.step

    def keep_gradients() -> None:
        np.save(f"{out}-gradient.npy", np.concatenate([p.grad.numpy().ravel() for p in parameters]))
        take()

    engine.step = keep_gradients
    first = np.concatenate([p.detach().numpy().ravel() for p in parameters])
    losses = step(0)
    update = np.concatenate([p.detach().numpy().ravel() for p in parameters]) - first
    np.save(f"{out}-update.npy", update)
    engine.step = take
    del first, update
    weights = 4 * sum(p.numel() for p in parameters)
    yield {"losses": losses, "weights": weights}
    built = resident_bytes()
    for i in range(1, steps + 1):
        forget_peak()
        losses, took = timed(lambda i=i: step(i))
        peak = peak_bytes()
        yield {"losses": losses, **took, "own": peak - built, "whole": peak - before}


def run_floor(size: str, tokens: list[int], answers: list[int]) -> Iterator[Any]:
    """The matrix products of the steps with that many real and answer tokens, and nothing else."""
    import torch

    shape = SHAPES[size]
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    kv = hidden // shape["num_attention_heads"] * shape.get("num_key_value_heads", shape["num_attention_heads"])
    layer = [(hidden, hidden), (hidden, kv), (hidden, kv), (hidden, hidden), *[(hidden, inner)] * 2, (inner, hidden)]
    sizes = {s: torch.randn(s[1], s[0]) for s in (*layer, (hidden, shape["vocab_size"]))}

    def products(rows: int, linear: tuple[int, int]) -> None:
        """Forward, gradient of the input, gradient of the weights."""
        weight = sizes[linear]
        inputs = torch.ones(rows, linear[0])
        outputs = inputs @ weight.T
        outputs @ weight
        outputs.T @ inputs

    def all_products(num_tokens: int, num_answers: int) -> None:
        for linear in layer * shape["num_hidden_layers"]:
            products(num_tokens, linear)
        products(num_answers, (hidden, shape["vocab_size"]))

    all_products(tokens[0], answers[0])
    yield None
    for i in range(len(tokens)):
        yield timed(lambda i=i: all_products(tokens[i], answers[i]))[1]


def compare(method: str, results: dict[str, list[Any]], folder: Path) -> None:
    """Raise AssertionError where an arm computes something else than ours."""
    for name, rounds in results.items():
        if name in ("ours", "floor"):
            continue
        for i, (theirs, ours) in enumerate(zip(rounds, results["ours"], strict=True)):
            np.testing.assert_allclose(theirs["losses"], ours["losses"], rtol=1e-4 if i else 1e-5, err_msg=name)
        for what, tolerance in (("gradient", 1e-4), ("update", 1e-2)):
            theirs, ours = (np.load(folder / f"{method}-{arm}-{what}.npy", mmap_mode="r") for arm in (name, "ours"))
            distance = float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours))
            print(f"  {what} of {name!r} differs by {distance:.1e} (relative L2)")
            assert distance <= tolerance, f"{name}: {what} differs by {distance:.1e}"


def main() -> None:
    options = read_options(
        __doc__ or "",
        size=("39m", "135m", "31m"),
        method=("both", "simnpo", "npo"),
        steps=5,
        max_tokens=0,
        baseline_checkpointing=False,
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = write_model(folder / "model", options.size)
        count = BATCH * (options.steps + 1)
        sets = [read_pairs(model, part, count) for part in ("forget10", "retain90")]

        def by_step(values: list[np.ndarray], reduce: Any) -> list[int]:
            return [int(sum(reduce(v[BATCH * i : BATCH * (i + 1)]) for v in values)) for i in range(options.steps + 1)]

        lengths = [s.lengths for s in sets]
        tokens, answers = by_step(lengths, np.sum)[1:], by_step([s.answer_lengths for s in sets], np.sum)[1:]
        padded = by_step(lengths, lambda v: len(v) * v.max())[1:]
        middle = [int(np.median(v)) for v in (tokens, padded, answers)]
        print("median step: {} real tokens, {} padded, {} answer tokens".format(*middle))
        for method in ("simnpo", "npo") if options.method == "both" else (options.method,):
            arms: dict[str, Any] = {}
            for name, checkpointing in (("public, checkpointing", True), ("public", False)):
                if checkpointing or not options.baseline_checkpointing:
                    out = str(folder / f"{method}-{name}")
                    arms[name] = run_public, (model, method, options.steps, checkpointing, out)
            out = str(folder / f"{method}-ours")
            arms["ours"] = run_ours, (model, method, options.steps, options.max_tokens, out)
            arms["floor"] = run_floor, (options.size, tokens, answers)
            report(method, alternate(arms, options.steps), folder)


def report(method: str, results: dict[str, list[Any]], folder: Path) -> None:
    weights = results["ours"][0]["weights"]
    print(f"{method}: weights {weights / 2**20:.0f} MiB, medians of {len(results['ours']) - 1} steps")
    ours = {key: median(results["ours"][1:], key) for key in ("seconds", "cpu", "own", "whole")}
    for name, rounds in results.items():
        seconds, cpu = median(rounds[1:], "seconds"), median(rounds[1:], "cpu")
        line = f"  {name:<22} {seconds:6.2f} s ({seconds / ours['seconds']:.2f} x ours)"
        line += f"  {cpu:6.2f} CPU s ({cpu / ours['cpu']:.2f} x ours)"
        if name != "floor":
            own, whole = median(rounds[1:], "own"), median(rounds[1:], "whole")
            line += (
                f"   step's memory {own / 2**20:5.0f} MiB = {own / weights:.2f} x weights (ours / this"
                f" {ours['own'] / own:.2f})   whole {whole / weights:.2f} x weights (ours / this"
                f" {ours['whole'] / whole:.2f})"
            )
        print(line)
    compare(method, results, folder)


if __name__ == "__main__":
    main()

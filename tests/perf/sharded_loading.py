"""Host memory while a model is loaded by several workers: each reading all of it, against sharded from the start.

usage: python -m tests.perf.sharded_loading [--workers 4] [--million 350,1000]

A Llama with random weights in bf16 is written to a temporary folder, and loaded by so many gloo workers into a ZeRO-3
engine without an optimizer. Printed: copies of the model in anonymous memory above the processes' own, at the fullest
moment, of each worker and of all together. Mapped files are not counted: the system can drop them. The C library is
told to give freed blocks back, so that what is held is seen and not what was held before.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

WIDTHS = {350: (1024, 24), 1000: (2048, 18), 50: (512, 8)}
"""Hidden units and layers, by million parameters."""


def write_model(folder: Path, million: int) -> int:
    """Bytes of its weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, layers = WIDTHS[million]
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        vocab_size=32_000,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    return sum(p.numel() * p.element_size() for p in model.parameters())


def load(rank: int, workers: int, folder: str, store: str, is_sharded: bool, ready: Any, go: Any, done: Any) -> None:
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(rank)}
    import torch
    import torch.distributed as dist

    from ray_unlearn.models.loading import load_model
    from ray_unlearn.models.logprobs import AnswerScorer
    from ray_unlearn.training import engine

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
    engine.connect(torch.device("cpu"))
    ready.wait()
    go.wait()
    with engine.sharded_loading("bf16", {}) if is_sharded else contextlib.nullcontext():
        model = load_model(folder, "bf16")
    built = engine.build_scoring(AnswerScorer(model), 3, "bf16", {})
    assert sum(p.ds_tensor.numel() for p in built.module.parameters()) < 1.1 * sum(
        map(engine.num_elements, built.module.parameters())
    )
    ready.wait()
    done.wait()


def anonymous_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not say how much anonymous memory a process has")


def measure(folder: Path, workers: int, is_sharded: bool) -> tuple[list[int], int]:
    """Bytes at the fullest moment: of each worker, and of all together."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as store:
        ready = context.Barrier(workers + 1)
        go, done = context.Event(), context.Event()
        shared = (str(folder), f"{store}/store", is_sharded, ready, go, done)
        processes = [context.Process(target=load, args=(rank, workers, *shared)) for rank in range(workers)]
        for process in processes:
            process.start()
        ready.wait()
        pids = [process.pid for process in processes if process.pid]
        before = [anonymous_bytes(pid) for pid in pids]
        peaks, together = [0] * workers, 0
        go.set()
        while ready.n_waiting < workers:
            now = [anonymous_bytes(pid) - base for pid, base in zip(pids, before, strict=True)]
            peaks = [max(pair) for pair in zip(peaks, now, strict=True)]
            together = max(together, sum(now))
            time.sleep(0.005)
        ready.wait()
        done.set()
        for process in processes:
            process.join()
            if process.exitcode:
                raise RuntimeError(f"a worker ended with {process.exitcode}")
    return peaks, together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--million", default="350,1000")
    options = parser.parse_args()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    for million in map(int, options.million.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            size = write_model(Path(folder), million)
            for is_sharded in (False, True):
                peaks, together = measure(Path(folder), options.workers, is_sharded)
                print(
                    json.dumps(
                        {
                            "million": million,
                            "sharded": is_sharded,
                            "copies_by_worker": [round(peak / size, 2) for peak in peaks],
                            "copies_together": round(together / size, 2),
                            "model_gib": round(size / 2**30, 2),
                        }
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()

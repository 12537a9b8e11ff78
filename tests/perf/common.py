"""What the benchmarks share: their data and models, a process for each arm, and that process's memory.

An arm is a generator function. It runs in a process of its own, so that its memory is its own; it yields once when
it is ready and once a round, and the arms take turns round by round, so that what else the machine does meets all
of them. Figures are medians over the rounds; ratios are against an arm of the same run.
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it

Arm = Callable[..., Iterator[Any]]

SHAPES: Mapping[str, Mapping[str, Any]] = {
    "1m": {
        "vocab_size": 4000,
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 256,
    },
    "31m": {
        "vocab_size": 32_000,
        "hidden_size": 384,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
    },
    "39m": {
        "vocab_size": 32_000,
        "hidden_size": 384,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "intermediate_size": 1024,
        "tie_word_embeddings": False,
    },
    "135m": {  # SmolLM2-135M's
        "vocab_size": 49_152,
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
    },
}
"""Llama shapes by name; the weights are random, for what is measured does not depend on them."""
TEXT_VOCABULARY = 4000
"""Tokens that the tokenizer knows: as many tokens a TOFU answer as with the tokenizers of large models."""


def data_folder() -> Path:
    """TOFU as `datasets` lays it out."""
    return Path(os.environ.get("RAY_UNLEARN_TOFU", Path(__file__).parents[3] / "shared" / "tofu"))


def write_model(folder: Path, size: str) -> str:
    """An untrained model of that shape with a tokenizer of TOFU's text; the folder as text."""
    from tests.tiny import write_text_model

    return str(write_text_model(folder, data_folder() / "full.json", TEXT_VOCABULARY, **SHAPES[size]))


def read_pairs(model: str, part: str, count: int) -> Any:
    """The first `count` questions and answers of one part of TOFU, encoded: Sequences."""
    from ray_unlearn.models.loading import load_tokenizer
    from ray_unlearn.models.sequences import Sequences
    from ray_unlearn.models.templates import Template

    template = Template(load_tokenizer(model))
    rows = [json.loads(line) for line in (data_folder() / f"{part}.json").read_text().splitlines()[:count]]
    return Sequences.build(template.encode_pair(r["question"], r["answer"], part) for r in rows)


def read_options(description: str, **options: Any) -> argparse.Namespace:
    """The command line: one option a keyword. Its type is its default's, a tuple is a choice, False a switch.

    `--threads` is every benchmark's: the threads of an arm's matrix products.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {**options, "threads": os.cpu_count() or 1}.items():
        flag = f"--{name.replace('_', '-')}"
        if default is False:
            parser.add_argument(flag, action="store_true")
        elif isinstance(default, tuple):
            parser.add_argument(flag, choices=default, default=default[0], help=f"default {default[0]}")
        else:
            parser.add_argument(flag, type=type(default), default=default, help=f"default {default}")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)  # before torch is imported, here and in the arms
    print(f"load average {os.getloadavg()[0]:.2f} at the start, {os.cpu_count()} CPUs", flush=True)
    return chosen


def alternate(arms: Mapping[str, tuple[Arm, Sequence[Any]]], rounds: int) -> dict[str, list[Any]]:
    """By arm, what it yielded: when ready, then in each round. Raises EOFError where an arm's process ended.

    An arm whose name begins with "ours" starts with the environment that a search gives to its CPU workers.
    """
    from ray_unlearn.gangs.environment import WORKER_ENVIRONMENT

    context = multiprocessing.get_context("spawn")
    links, results = {}, {}
    try:
        for name, (arm, arguments) in arms.items():
            links[name], far = context.Pipe()
            with mock.patch.dict(os.environ, WORKER_ENVIRONMENT if name.startswith("ours") else {}):
                context.Process(target=_serve, args=(far, arm, arguments), name=name).start()
            far.close()
            results[name] = [links[name].recv()]
        for _ in range(rounds):
            for name, link in links.items():
                link.send(True)
                results[name].append(link.recv())
    finally:
        for link in links.values():
            link.close()  # at which the arm's process ends
    return results


def _serve(link: Any, arm: Arm, arguments: Sequence[Any]) -> None:
    for result in arm(*arguments):
        link.send(result)
        try:
            link.recv()
        except EOFError:
            return


def median(rounds: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.median(r[key] for r in rounds)


def fit(model: str, gang: Any) -> Any:
    """The gang with the tokens a pass that a search would choose for this model."""
    from ray_unlearn.models.loading import load_config
    from ray_unlearn.training.memory import fitted

    return fitted(gang, load_config(model), 0, None, gang.threads_per_worker)


def timed(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Its result, and what it took: "seconds", and "cpu", those of all the process's threads.

    On a machine that does something else too, the CPU's seconds are the steadier measure.
    """
    began, cpu_began = time.perf_counter(), time.process_time()
    result = function()
    return result, {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu_began}


def resident_bytes() -> int:
    """The process's size now, with what was freed given back."""
    gc.collect()
    if sys.platform != "linux":
        return peak_bytes()
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def forget_peak() -> None:
    """Let `peak_bytes` start over, where the system can (Linux)."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The process's largest size since it started, or since `forget_peak`."""
    if sys.platform == "linux":
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status(key: str) -> int:
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024

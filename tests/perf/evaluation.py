"""Teacher-forced evaluation of TOFU forget10: one sequence at a time against this package's way.

    python -m tests.perf.evaluation [--size 31m] [--rounds 3] [--rows 10] [--all-rows 0]

Every probe of both splits of the real benchmark (an answer, its paraphrase and five perturbed ones a question), fp32.
The naive arm runs one sequence at a time, computes the logits of all its tokens and their whole log-softmax, and
picks the answer's; it runs on `--rows` random questions of each set and split, for it would take too long on all. Ours
is `Worker.evaluate` over everything (or `--all-rows` questions), by one worker with all threads, and by as many
workers as threads with one each. The metrics and truth ratios of the arms on the sample must agree to 1e-4.
Speed is in real tokens a second.
"""

import multiprocessing
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.perf.common import SHAPES, alternate, data_folder, fit, median, read_options, timed, write_model

SPLITS = ("selection", "report")


def build_splits(model: str, rows: int) -> Any:
    """(the task, by name both splits with `rows` random questions of each set; 0: all of them)."""
    from ray_unlearn.benchmarks.contract import Request
    from ray_unlearn.benchmarks.tofu import build_task

    task = build_task(Request("full", model, data_folder()))
    rng = np.random.default_rng(0)
    return task, {name: sample(getattr(task, name), rows, rng) if rows else getattr(task, name) for name in SPLITS}


def sample(split: Any, rows: int, rng: np.random.Generator) -> Any:
    """That many questions of each set, with all the sequences that belong to them."""
    from ray_unlearn.benchmarks.contract import Probe, Split

    chosen: dict[str, np.ndarray] = {}
    probes = {}
    for name, probe in split.probes.items():
        own = name.removesuffix("_perturbed").removesuffix("_paraphrased")
        if own not in chosen:
            chosen[own] = np.sort(rng.permutation(len(split.probes[own].sequences))[:rows])
        if probe.question is None:
            texts = tuple(probe.texts[i] for i in chosen[own]) if probe.texts else ()
            probes[name] = Probe(probe.sequences.select(chosen[own]), texts=texts)
        else:
            members = np.flatnonzero(np.isin(probe.question, chosen[own]))
            question = np.searchsorted(chosen[own], probe.question[members])
            probes[name] = Probe(probe.sequences.select(members), question=question)
    return Split(probes)


def count_tokens(splits: Any) -> int:
    return sum(len(probe.sequences.tokens) for split in splits.values() for probe in split.probes.values())


def run_naive(model: str, rows: int) -> Iterator[Any]:
    """One sequence at a time, everything computed."""
    import torch
    from transformers import AutoModelForCausalLM

    from ray_unlearn.benchmarks.tofu import measure
    from ray_unlearn.metrics import Scores

    _, splits = build_splits(model, rows)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def score(sequences: Any) -> Scores:
        table = []
        for tokens, start in sequences:
            ids = torch.from_numpy(tokens.astype(np.int64))[None]
            with torch.no_grad():
                logprobs = network(ids).logits.log_softmax(-1)[0, start - 1 : -1]
            answer = ids[0, start:]
            right = logprobs.argmax(-1) == answer
            wrong = torch.nonzero(~right)
            nll = -float(logprobs.gather(-1, answer[:, None]).double().sum())
            table.append((nll, len(answer), int(right.sum()), int(wrong.max()) + 1 if len(wrong) else 0))
        return Scores(*np.array(table, dtype=np.float64).T)

    def evaluate() -> Any:
        return {
            name: measure({n: score(p.sequences) for n, p in split.probes.items()}, {}, split)
            for name, split in splits.items()
        }

    yield {"profiles": evaluate()}
    while True:
        yield {"tokens": count_tokens(splits), **timed(evaluate)[1]}


def run_ours(model: str, rows: int, all_rows: int, workers: int, rank: int, store: str, rounds: int) -> Iterator[Any]:
    """The worker's evaluation; `workers` processes of which this one starts the others."""
    import torch
    import torch.distributed as dist

    from ray_unlearn.config import GangConfig
    from ray_unlearn.training.in_process import local_worker

    others = []
    if rank == 0:
        context = multiprocessing.get_context("spawn")
        for other in range(1, workers):
            arguments = (model, rows, all_rows, workers, other, store, rounds)
            others.append(context.Process(target=_follow, args=arguments))
            others[-1].start()
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
    task, few = build_splits(model, rows)
    _, splits = build_splits(model, all_rows)
    threads = max(1, torch.get_num_threads() // workers)
    gang = fit(model, GangConfig(num_workers=workers, zero_stage=0, threads_per_worker=threads))
    worker = local_worker(task, gang)
    yield {"profiles": {name: worker.scorer.evaluate(split) for name, split in few.items()}}
    for _ in range(rounds):
        took = timed(lambda: [worker.scorer.evaluate(split) for split in splits.values()])[1]
        yield {"tokens": count_tokens(splits), **took}
    for process in others:
        process.join()


def _follow(*arguments: Any) -> None:
    for _ in run_ours(*arguments):
        pass


def main() -> None:
    options = read_options(
        __doc__ or "", size=("31m", *(s for s in SHAPES if s != "31m")), rounds=3, rows=10, all_rows=0
    )
    with tempfile.TemporaryDirectory() as temporary:
        model = write_model(Path(temporary) / "model", options.size)
        arms: dict[str, Any] = {"naive": (run_naive, (model, options.rows))}
        for workers in sorted({1, options.threads}):
            name = f"ours, {workers} worker(s) x {options.threads // workers} thread(s)"
            store = str(Path(temporary) / f"store-{workers}")
            arms[name] = run_ours, (model, options.rows, options.all_rows, workers, 0, store, options.rounds)
        results = alternate(arms, options.rounds)
    naive = results["naive"]
    base = median(naive[1:], "seconds") / naive[1]["tokens"], median(naive[1:], "cpu") / naive[1]["tokens"]
    for name, (ready, *rounds) in results.items():
        tokens = rounds[0]["tokens"]
        rate, cpu_rate = tokens / median(rounds, "seconds"), tokens / median(rounds, "cpu")
        print(
            f"{name:<32} {tokens:>7} tokens   {rate:6.0f} tokens/s ({rate * base[0]:.2f} x naive)"
            f"   {cpu_rate:6.0f} tokens/CPU s of the first worker ({cpu_rate * base[1]:.2f} x)"
        )
        for split, profile in ready["profiles"].items():
            expected = naive[0]["profiles"][split]
            assert profile.metrics.keys() == expected.metrics.keys()
            for metric, value in profile.metrics.items():
                np.testing.assert_allclose(value, expected.metrics[metric], rtol=1e-4, atol=1e-6, err_msg=metric)
            for array, values in profile.arrays.items():
                np.testing.assert_allclose(values, expected.arrays[array], rtol=1e-4, err_msg=array)


if __name__ == "__main__":
    main()

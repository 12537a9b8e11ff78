"""One process of a gang and what it computes with: model, engine, first state, and its share of any work."""

from __future__ import annotations

import contextlib
import gc
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ray_unlearn.benchmarks.contract import Task
from ray_unlearn.config import GangConfig, UserError
from ray_unlearn.hardware import granted_cpus
from ray_unlearn.models.batches import share
from ray_unlearn.models.fingerprints import adapter_digest, weights_digest
from ray_unlearn.models.loading import (
    choose_trained,
    load_model,
    load_tokenizer,
    save_adapter,
    save_weights,
    trust_remote_code,
)
from ray_unlearn.models.logprobs import (
    AnswerScorer,
    causal_model,
    decoder_layers,
    score_answers,
)
from ray_unlearn.models.packing import Pack, pack, pack_trees
from ray_unlearn.models.sequences import Sequences
from ray_unlearn.provenance import cpu_model, platform_versions
from ray_unlearn.training import engine as engines
from ray_unlearn.training.snapshot import Snapshot

CPU_SCORING_TOKENS = 1024
"""Tokens of one forward pass without gradients on a CPU: more is slower there, for want of cache."""
ONE_THREAD_PARAMETERS = 200_000
"""Up to so many, threads on a CPU wait for one another longer than they compute."""
Item = tuple[np.ndarray, int]
"""A sequence's token ids, int32 [n], and where its answer starts."""


class Rank:
    """Holds the engine and its first state; knows no loss, no metric and no trial."""

    def __init__(self, task: Task, gang: GangConfig, device: torch.device) -> None:
        self.task, self.gang, self.device = task, gang, device
        self.max_tokens = gang.max_tokens
        self.number, self.num_workers = dist.get_rank(), dist.get_world_size()
        trust_remote_code(gang.trust_remote_code)
        self.tokenizer = load_tokenizer(task.model)
        engines.connect(device)
        is_sharded = gang.zero_stage == 3 and self.num_workers > 1
        loading = engines.sharded_loading(gang.precision, gang.deepspeed) if is_sharded else contextlib.nullcontext()
        with loading:
            # Sharded, DeepSpeed says where each part lies.
            model = load_model(task.model, gang.precision, "cpu" if is_sharded else str(device))
        self.num_parameters = sum(map(engines.num_elements, model.parameters()))
        if device.type == "cpu":
            torch.set_num_threads(gang.threads_per_worker if self.num_parameters > ONE_THREAD_PARAMETERS else 1)
        self.num_layers = len(decoder_layers(model))
        self.rounded_share = sum(map(engines.num_elements, engines.linear_weights(model))) / self.num_parameters
        """Of the weights, what the attack `quantise` rounds."""
        model = choose_trained(model, gang.lora_rank, gang.train, gang.checkpointing, gang.seed)
        self.saved = ""
        self.adapter = adapter_digest(model) if gang.lora_rank else ""
        """SHA-256 of where the adapters start; empty where all weights are trained."""
        if gang.adapter not in ("", self.adapter):
            raise UserError(
                "the adapters do not start where this search's did: another version of peft or torch. Install those "
                "that search.json names"
            )
        scorer = AnswerScorer(model if is_sharded else model.to(device))
        build = engines.build_engine if gang.trains else engines.build_scoring
        self.engine = build(scorer, gang.zero_stage, gang.precision, gang.deepspeed)
        self._snapshot = Snapshot(self.engine) if gang.trains else None
        self.packs_alone = False
        """Whether every sequence gets a row of its own, because the model mixes what is packed."""
        self.packs_alone = not self._packing_is_valid()
        self.has_trees = self._trees_are_valid()

    @property
    def snapshot(self) -> Snapshot:
        """The first state. Raises RuntimeError where nothing is trained, and so nothing changes."""
        if self._snapshot is None:
            raise RuntimeError("this gang only scores: it has no optimizer, and nothing to put back")
        return self._snapshot

    @property
    def hardware(self) -> dict[str, Any]:
        """What this gang runs on."""
        on_gpu = self.device.type == "cuda"
        kind = torch.cuda.get_device_name(self.device) if on_gpu else cpu_model()
        known = {"device": self.device.type, "model": kind, "workers": self.num_workers, "cpus": granted_cpus()}
        return known | platform_versions(on_gpu)

    def restore(self) -> None:
        """Back to the starting model, as if no trial had run."""
        if self._snapshot is not None:
            self._snapshot.restore(self.engine)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    @contextlib.contextmanager
    def on_the_line(self, alpha: float) -> Iterator[None]:
        """Inside, the weights are those of the start + alpha (now - start)."""
        kept = self.snapshot.kept(self.engine)
        self.snapshot.move_along_line(self.engine, kept, alpha)
        try:
            yield
        finally:
            self.snapshot.put_back(self.engine, kept)

    @torch.no_grad()
    def _packing_is_valid(self) -> bool:
        """Whether what comes first in a row leaves the second sequence's log-probs as they are.

        Models that carry a state along the row (linear attention, short convolutions) mix what is packed.
        """
        vocabulary = len(self.tokenizer)
        first, second = (np.arange(n, n + 6, dtype=np.int32) % vocabulary for n in (1, 11))
        scores = []
        for shift in (0, 3):
            packed = pack([((first + shift) % vocabulary, 1), (second, 1)], 12).to(self.device)
            logprobs = score_answers(self.engine, packed).logprobs
            assert logprobs is not None
            scores.append(logprobs[packed.sequence == 1])
        tolerance = 1e-5 if self.gang.precision == "fp32" else 1e-2
        return bool((scores[0] - scores[1]).abs().max() <= tolerance)

    @torch.no_grad()
    def _trees_are_valid(self) -> bool:
        """Whether answers that share a prompt's computation score as they do alone.

        Only in fp32, where that can be told, and not for models with a sliding window, which a mask would overrule.
        """
        text = causal_model(self.engine.module.model).config.get_text_config()
        if self.packs_alone or self.gang.precision != "fp32" or getattr(text, "sliding_window", None):
            return False
        tokens = np.arange(12, dtype=np.int32) % len(self.tokenizer)
        tree = [(tokens[:8], 4), (np.concatenate([tokens[:4], tokens[9:12]]), 4)]
        scores = []
        for packed in (pack_trees([tree]), self.pack(tree)):
            packed = packed.to(self.device)
            logprobs = score_answers(self.engine, packed).logprobs
            assert logprobs is not None
            scores.append(logprobs[torch.argsort(packed.place)])
        return bool((scores[0] - scores[1]).abs().max() <= 1e-4)

    def pack(self, items: list[Item]) -> Pack:
        """Sequences in rows, as this model takes them."""
        return pack(items, self.gang.row_length, self.packs_alone)

    def packs(self, sequences: Sequences, trees: bool = False) -> Iterator[tuple[list[int], Pack]]:
        """This worker's packs with the indices they hold, under no_grad; trees: a prompt is computed once for all
        its answers."""
        budget = min(self.max_tokens, CPU_SCORING_TOKENS) if self.device.type == "cpu" else self.max_tokens
        groups = sequences.trees(budget) if trees else [[i] for i in range(len(sequences))]
        answers, starts = sequences.answer_lengths, sequences.answer_starts
        lengths = [int(starts[group[0]] - trees + answers[group].sum()) for group in groups]
        for part in share(lengths, self.num_workers, budget)[self.number]:
            chosen = [groups[g] for g in part]
            members = [i for group in chosen for i in group]
            with torch.no_grad():
                if trees:
                    packed = pack_trees([[sequences[i] for i in group] for group in chosen], self.gang.row_length)
                else:
                    packed = self.pack([sequences[i] for i in members])
                yield members, packed.to(self.device)

    def token_logprobs(self, sequences: Sequences) -> np.ndarray:
        """log p of every answer token, fp32 [sum of answer lengths], equal on all workers."""
        offsets = answer_offsets(sequences)
        result = torch.zeros(int(offsets[-1]))
        for part, packed in self.packs(sequences):
            logprobs = score_answers(self.engine, packed).logprobs
            assert logprobs is not None
            result[token_rows(offsets, part)] = logprobs.float().cpu()[torch.argsort(packed.place.cpu())]
        return self.sum_over_workers(result).numpy()

    def sum_over_workers(self, values: Tensor) -> Tensor:
        """On the CPU, equal on all workers."""
        values = values.to(self.device)
        dist.all_reduce(values)
        return values.cpu()

    def save(self, folder: Path, adapter: bool = False, precision: str = "") -> None:
        """Write the model as it is now in that precision (empty: the starting model's), or its adapter alone. Every
        worker must call it. Afterwards `saved` is the digest of its tensors on the first worker."""
        state = engines.gather_trained(self.engine, self.number)
        if self.number == 0:
            model = self.engine.module.model
            if adapter:
                save_adapter(model, state, self.tokenizer, folder)
            else:
                save_weights(model, state, self.tokenizer, folder, self.task.model, self.gang.precision, precision)
            self.saved = weights_digest(folder)
        dist.barrier()

    def peak_memory_bytes(self) -> int:
        """Largest over the workers: of this trial's allocations on a GPU; of the process so far on a CPU."""
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            unit = 1 if sys.platform == "darwin" else 1024
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        largest = torch.tensor(peak, dtype=torch.int64, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def free_memory(self) -> None:
        """Give back what a trial that ran out of memory held."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def clock(self) -> float:
        """Seconds; the GPU's queued work is waited for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def answer_offsets(sequences: Sequences) -> np.ndarray:
    """Where each answer starts when all are laid end to end, int64 [n + 1]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sequences.answer_lengths)])


def token_rows(offsets: np.ndarray, part: list[int]) -> Tensor:
    """The answer tokens of these sequences among those of all, int64 [tokens of the part]."""
    places = [np.arange(offsets[i], offsets[i + 1]) for i in part]
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *places]))

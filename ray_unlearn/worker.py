"""One rank of a gang: forward, loss, step, evaluate. It knows no method and no benchmark by name."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ray_unlearn import engine as engines
from ray_unlearn.benchmarks import Profile, Prompts, Split, Task, load_benchmark
from ray_unlearn.config import GangConfig, TrialConfig
from ray_unlearn.data import Sequences, pack, plan_epoch, share
from ray_unlearn.logprobs import AnswerScorer, score_answers
from ray_unlearn.losses import SEQUENCE, Method, ScoredTokens, find_method, nll, zero
from ray_unlearn.metrics import Scores
from ray_unlearn.model import load_model, load_tokenizer

GENERATION_BATCH = 32


class NonFinite(ArithmeticError):
    """A loss or a metric became nan or inf: this trial has failed, the gang has not."""


@dataclass(frozen=True)
class StepLosses:
    """Mean losses of one optimizer step over the whole batch, before weighting."""

    forget: float
    retain: float


class Worker:
    """Holds the engine and serves trials one after another, each from the same first state."""

    def __init__(self, task: Task, gang: GangConfig, device: torch.device) -> None:
        self.task, self.gang, self.device = task, gang, device
        self.rank, self.num_workers = dist.get_rank(), dist.get_world_size()
        if device.type == "cpu":
            torch.set_num_threads(gang.threads_per_worker)
        self.tokenizer = load_tokenizer(task.model)
        model = load_model(task.model, gang.precision).to(device)
        self.engine = engines.build_engine(AnswerScorer(model), gang.zero_stage, gang.precision, device)
        self._snapshot = engines.Snapshot(self.engine)
        self._reference: np.ndarray | None = None
        self._check_restore()

    def restore(self) -> None:
        """Back to the starting model, as if no trial had run."""
        self._snapshot.restore(self.engine)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _check_restore(self) -> None:
        """One step and back must leave every bit in place: the licence for serving trials from one engine."""
        sequences = self.task.forget if len(self.task.forget) else self.task.retain
        few = sequences.select(range(min(2 * self.num_workers, len(sequences))))
        before = engines.weights_digest(self.engine), self._token_logprobs(few)
        finetune = TrialConfig("self-test", "finetune", learning_rate=1e-2, warmup_fraction=0.0)
        self._set_learning_rate(finetune, 0, 1)
        batch = (np.arange(len(few)), np.zeros(0, np.int64))
        self._step(few, batch, find_method("finetune"), finetune)
        if engines.weights_digest(self.engine) == before[0]:
            raise RuntimeError("the self-test's training step did not change the weights: nothing would be learnt")
        self._token_logprobs(few)  # an evaluation may leave weights gathered
        self.restore()
        after = engines.weights_digest(self.engine), self._token_logprobs(few)
        if after[0] != before[0] or not np.array_equal(after[1], before[1]):
            raise RuntimeError(
                "this DeepSpeed version cannot be put back to its first state in place. "
                "Install the version pinned in constraints.txt"
            )

    # Training

    def train(self, trial: TrialConfig, epoch: int, learn: Sequence[str] = ("forget",)) -> list[StepLosses]:
        """Run one epoch (0-based); one record a step. Raises NonFinite once a loss is nan or inf."""
        method = find_method(trial.method)
        forget = getattr(self.task, learn[0])
        if len(learn) > 1:
            forget = Sequences.concatenate([getattr(self.task, name) for name in learn])
        if method.needs_reference and self._reference is None:
            raise RuntimeError("prepare_reference must run at the starting weights, before the first step")
        num_retain = len(self.task.retain) if method.uses_retain else 0
        batches = plan_epoch(len(forget), num_retain, trial.batch_size, trial.seed, epoch)
        records: list[Tensor] = []
        for i, batch in enumerate(batches):
            self._set_learning_rate(trial, epoch * len(batches) + i, trial.epochs * len(batches))
            records.append(self._step(forget, batch, method, trial))
        sums = torch.stack(records)
        dist.all_reduce(sums)
        losses = [StepLosses(*row) for row in sums.tolist()]
        if not torch.isfinite(sums).all():
            raise NonFinite(f"loss is not finite in epoch {epoch + 1} (learning rate {trial.learning_rate:g})")
        return losses

    def _set_learning_rate(self, trial: TrialConfig, step: int, total: int) -> None:
        rate = trial.learning_rate * schedule(step, total, trial.warmup_fraction, trial.schedule)
        engines.set_hyperparameters(self.engine, rate, trial.weight_decay, trial.max_grad_norm)

    def _step(
        self, forget: Sequences, batch: tuple[np.ndarray, np.ndarray], method: Method, trial: TrialConfig
    ) -> Tensor:
        """One optimizer step; this worker's share of (forget loss, retain loss), [2]."""
        forget_indices, retain_indices = batch
        items = [forget[i] for i in forget_indices] + [self.task.retain[i] for i in retain_indices]
        answer_lengths = np.array([len(tokens) - start for tokens, start in items])
        num_forget = len(forget_indices)
        forget_lengths = answer_lengths[:num_forget]
        forget_units = np.count_nonzero(forget_lengths) if method.reduction == SEQUENCE else forget_lengths.sum()
        retain_units = answer_lengths[num_forget:].sum()
        parts = share([len(tokens) for tokens, _ in items], self.num_workers, self.gang.max_tokens)[self.rank]
        record = torch.zeros(2, device=self.device)
        for i, part in enumerate(parts):
            members = sorted(part)  # forget sequences first
            local_forget = int(np.searchsorted(members, num_forget))
            packed = pack([items[m] for m in members], self.gang.row_length)
            reference = None
            if method.needs_reference:
                reference = self._reference_of([int(forget_indices[m]) for m in members[:local_forget]])
            of_forget = torch.nonzero(packed.sequence < local_forget)[:, 0]
            of_retain = torch.nonzero(packed.sequence >= local_forget)[:, 0]
            reference_rows = packed.place[of_forget]
            packed = packed.to(self.device)
            logprobs = score_answers(self.engine, packed).logprobs
            loss = zero(logprobs)
            sums = []
            for rows, first, last, weight, units, function, parameters in (
                (of_forget, 0, local_forget, 1.0, forget_units, method.loss, trial.parameters),
                (of_retain, local_forget, len(members), trial.retain_weight, retain_units, nll, {}),
            ):
                rows = rows.to(self.device)
                scored = ScoredTokens(
                    logprobs=logprobs[rows],
                    sequence=packed.sequence[rows] - first,
                    lengths=packed.lengths[first:last],
                    reference=reference[reference_rows].to(self.device)
                    if reference is not None and first == 0
                    else None,
                )
                total = function(scored, **parameters).sum() / max(int(units), 1)
                sums.append(total.detach())
                loss = loss + weight * total
            record += torch.stack(sums)
            # The engine averages gradients over the workers; the loss is a sum over them.
            engines.backward(self.engine, loss * self.num_workers, is_last=i == len(parts) - 1)
        self.engine.step()
        return record

    # The reference: log-probs of the forget answers under the starting model

    def prepare_reference(self) -> None:
        """Compute them once, at the starting weights; no reference model stays in memory."""
        if self._reference is None:
            self._reference = self._token_logprobs(self.task.forget)
            self._reference_offsets = np.concatenate([[0], np.cumsum(self.task.forget.answer_lengths)])

    def _reference_of(self, indices: list[int]) -> Tensor:
        assert self._reference is not None
        spans = [self._reference[self._reference_offsets[i] : self._reference_offsets[i + 1]] for i in indices]
        return torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *spans], dtype=np.float32))

    def _token_logprobs(self, sequences: Sequences) -> np.ndarray:
        """log p of every answer token, fp32 [sum of answer lengths], equal on all workers."""
        offsets = np.concatenate([[0], np.cumsum(sequences.answer_lengths)])
        result = torch.zeros(int(offsets[-1]))
        for part, packed in self._packs(sequences):
            logprobs = score_answers(self.engine, packed).logprobs.float().cpu()
            order = torch.argsort(packed.place.cpu())
            start = 0
            for i in part:
                length = int(sequences.answer_lengths[i])
                result[offsets[i] : offsets[i + 1]] = logprobs[order[start : start + length]]
                start += length
        return self._sum_over_workers(result).numpy()

    # Evaluation

    def evaluate(self, split: Split, generate: bool = False) -> Profile:
        """Score every probe on all workers (each its share); every worker gets the whole result.

        Raises NonFinite if a metric is nan or inf.
        """
        scores = {name: self._score(probe) for name, probe in split.probes.items()}
        answers = {name: self._generate(prompts) for name, prompts in split.generations.items()} if generate else {}
        profile = load_benchmark(self.task.benchmark).measure(scores, answers, split)
        for name, value in profile.metrics.items():
            if not math.isfinite(value):
                raise NonFinite(f"metric {name} is {value}")
        return profile

    def _packs(self, sequences: Sequences) -> Any:
        """This worker's packs with the indices they hold, under no_grad."""
        for part in share(sequences.lengths, self.num_workers, self.gang.max_tokens)[self.rank]:
            with torch.no_grad():
                yield part, pack([sequences[i] for i in part], self.gang.row_length).to(self.device)

    @torch.no_grad()
    def _score(self, probe: Any) -> Scores:
        sequences = probe.sequences
        result = torch.zeros(len(sequences), 4, dtype=torch.float64)
        truth = None
        if probe.truth is not None:
            truth = torch.tensor(probe.truth).log().to(self.device)
        for part, packed in self._packs(sequences):
            answers = score_answers(self.engine, packed, "correct" if truth is None else "distribution")
            assert answers.correct is not None
            scored = ScoredTokens(answers.logprobs.double(), packed.sequence, packed.lengths)
            columns = [-scored.sum(scored.logprobs), scored.sum(answers.correct.double())]
            # The answer's first token stands at the smallest place of its sequence.
            first_place = torch.cumsum(packed.lengths, 0) - packed.lengths
            last_wrong = torch.where(answers.correct, 0, packed.place - first_place[packed.sequence] + 1)
            columns.append(torch.zeros_like(columns[0]).scatter_reduce(0, packed.sequence, last_wrong.double(), "amax"))
            divergence = torch.zeros_like(columns[0])
            if truth is not None:
                assert answers.log_distribution is not None
                log_model = answers.log_distribution[:, : truth.shape[1]].double()
                log_truth = truth[packed.tokens[packed.keep]]
                divergence = scored.mean((log_model.exp() * (log_model - log_truth)).sum(-1))
            columns.append(divergence)
            result[torch.tensor(part, dtype=torch.int64)] = torch.stack(columns, dim=1).cpu()
        table = self._sum_over_workers(result).numpy()
        return Scores(
            nll=table[:, 0],
            num_tokens=sequences.answer_lengths.astype(np.float64),
            num_correct=table[:, 1],
            suffix_start=table[:, 2],
            divergence=table[:, 3] if truth is not None else None,
        )

    @torch.no_grad()
    def _generate(self, prompts: Prompts) -> list[str]:
        """Greedy answers, in the prompts' order."""
        lengths = [len(p) for p in prompts.prompts]
        budget = GENERATION_BATCH * max(lengths)
        parts = share(lengths, self.num_workers, budget)[self.rank]
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        mine: dict[int, str] = {}
        for part in parts:
            rows = [prompts.prompts[i] for i in part] or [prompts.prompts[0]]
            width = max(len(r) for r in rows)
            tokens = torch.tensor([[pad] * (width - len(r)) + list(r) for r in rows], device=self.device)
            mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=self.device)
            output = self.engine.module.model.generate(
                input_ids=tokens,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=prompts.max_new_tokens,
                pad_token_id=pad,
                synced_gpus=self.gang.zero_stage == 3 and self.num_workers > 1,
            )
            for i, row in zip(part, output[:, width:].tolist(), strict=False):
                mine[i] = self.tokenizer.decode(row, skip_special_tokens=True).strip()
        everyone: list[dict[int, str]] = [{} for _ in range(self.num_workers)]
        dist.all_gather_object(everyone, mine)
        merged = {i: text for part in everyone for i, text in part.items()}
        return [merged[i] for i in range(len(lengths))]

    def _sum_over_workers(self, values: Tensor) -> Tensor:
        values = values.to(self.device)
        dist.all_reduce(values)
        return values.cpu()

    # The rest

    def save(self, folder: Path) -> None:
        """Write the model as it is now. Every worker must call it."""
        engines.save_model(self.engine, self.tokenizer, folder, self.rank)

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

    def clock(self) -> float:
        """Seconds; the GPU's queued work is waited for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def schedule(step: int, total: int, warmup_fraction: float, kind: str) -> float:
    """Share of the peak learning rate at a 0-based step: linear warm-up, then linear to 0 or constant."""
    warmup = round(warmup_fraction * total)
    if step < warmup:
        return (step + 1) / warmup
    return (total - step) / max(total - warmup, 1) if kind == "linear" else 1.0

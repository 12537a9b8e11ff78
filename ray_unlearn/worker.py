"""One rank of a gang: forward, loss, step, evaluate. It knows no method and no benchmark by name."""

from __future__ import annotations

import math
import re
import resource
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ray_unlearn import engine as engines
from ray_unlearn.alternates import build_alternates
from ray_unlearn.benchmarks import Profile, Prompts, Split, Task, load_benchmark
from ray_unlearn.config import GangConfig, TrialConfig
from ray_unlearn.data import Pack, Sequences, pack, plan_epoch, share
from ray_unlearn.logprobs import CORRECT, Answers, AnswerScorer, decoder_layers, score_answers
from ray_unlearn.losses import (
    DISTRIBUTION,
    FORGET,
    HIDDEN,
    LOGPROBS,
    RETAIN_LOSSES,
    SEQUENCE,
    Method,
    RetainLoss,
    ScoredTokens,
    find_method,
    zero,
)
from ray_unlearn.metrics import Scores
from ray_unlearn.model import choose_trained, hidden_layer, load_model, load_tokenizer, save_weights
from ray_unlearn.reference import read_reference, reference_key, write_reference

GENERATION_BATCH = 32
Item = tuple[np.ndarray, int]
"""A sequence's token ids, int32 [n], and where its answer starts."""


class NonFinite(ArithmeticError):
    """A loss or a metric became nan or inf: this trial has failed, the gang has not."""


@dataclass(frozen=True)
class StepLosses:
    """Mean losses of one optimizer step over the whole batch, before weighting."""

    forget: float
    retain: float


@dataclass(frozen=True)
class _Batch:
    """One global batch, the same on every worker: what is learnt, what is kept, and the whole batch's counts."""

    trial: TrialConfig
    examples: list[list[Item]]
    """By example, one sequence for each of the method's sets; an example is never cut apart."""
    retain: list[Item]
    references: dict[str, list[np.ndarray]]
    """By set, each example's log-probs under the starting model."""

    @cached_property
    def method(self) -> Method:
        return find_method(self.trial.method)

    @cached_property
    def retain_loss(self) -> RetainLoss:
        return RETAIN_LOSSES[self.trial.retain_loss or self.method.retain_losses[0]]

    @cached_property
    def loss_parameters(self) -> dict[str, float]:
        """The trial's parameters without those of the method's retain rule."""
        rule = self.method.rule_parameters
        return {name: value for name, value in self.trial.parameters.items() if name not in rule}

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example, then of each retain sequence."""
        return [sum(len(t) for t, _ in example) for example in self.examples] + [len(t) for t, _ in self.retain]

    @cached_property
    def forget_units(self) -> int:
        """Sequences or tokens that the forget loss is a mean over."""
        lengths = [len(tokens) - start for tokens, start in (example[0] for example in self.examples)]
        return max(1, sum(n > 0 for n in lengths) if self.method.reduction == SEQUENCE else sum(lengths))

    @cached_property
    def retain_units(self) -> int:
        return max(1, sum(len(tokens) - start for tokens, start in self.retain))

    @cached_property
    def _reads(self) -> list[tuple[str, bool]]:
        """(what, of the starting model too) for the forget and the retain loss."""
        reads = [(self.method.reads, self.method.reads_reference)]
        if self.method.uses_retain:
            reads.append((self.retain_loss.reads, self.retain_loss.reads != LOGPROBS))
        return reads

    @property
    def detail(self) -> str:
        """The least that the scorer must answer for both losses."""
        whats = [what for what, _ in self._reads]
        return next((d for d in (HIDDEN, DISTRIBUTION) if d in whats), LOGPROBS)

    @property
    def reads_start(self) -> bool:
        return any(of_start for _, of_start in self._reads)


class Worker:
    """Holds the engine and serves trials one after another, each from the same first state."""

    def __init__(self, task: Task, gang: GangConfig, device: torch.device) -> None:
        self.task, self.gang, self.device = task, gang, device
        self.rank, self.num_workers = dist.get_rank(), dist.get_world_size()
        if device.type == "cpu":
            torch.set_num_threads(gang.threads_per_worker)
        self.tokenizer = load_tokenizer(task.model)
        model = load_model(task.model, gang.precision)
        self._num_layers = len(decoder_layers(model))
        model = choose_trained(model, gang.lora_rank, gang.train, gang.checkpointing).to(device)
        self.engine = engines.build_engine(AnswerScorer(model), gang.zero_stage, gang.precision, device)
        self._snapshot = engines.Snapshot(self.engine)
        self._sets: dict[tuple[str, ...], list[Sequences]] = {}
        self._references: dict[tuple[tuple[str, ...], int], np.ndarray] = {}
        self._frozen: set[str] = set()
        self._watch_frozen()
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
        before = self._token_logprobs(few)
        finetune = TrialConfig("self-test", "finetune", learning_rate=1e-2, warmup_fraction=0.0)
        self._set_learning_rate(finetune, 0, 1)
        self._step(_Batch(finetune, [[item] for item in few], [], {}))
        if self._snapshot.holds(self.engine):
            raise RuntimeError("the self-test's training step changed no weight: no gradient reaches what is trained")
        self._token_logprobs(few)  # an evaluation may leave weights gathered
        self.restore()
        if not self._snapshot.holds(self.engine) or not np.array_equal(self._token_logprobs(few), before):
            raise RuntimeError(
                "this DeepSpeed version cannot be put back to its first state in place. "
                "Install the version pinned in constraints.txt"
            )

    # Training

    def train(
        self, trial: TrialConfig, epoch: int, learn: tuple[str, ...] = (FORGET,), epoch_size: int = 0
    ) -> list[StepLosses]:
        """Run one epoch (0-based) of `epoch_size` sequences (0: of all); one record a step.

        Raises NonFinite once a loss is nan or inf.
        """
        method = find_method(trial.method)
        variants = {name: self._variants(name, method, learn) for name in method.sets}
        picked = {name: epoch % len(sets) for name, sets in variants.items()}
        sets = {name: variants[name][picked[name]] for name in method.sets}
        references = self._pick_references(method, learn, picked)
        self._freeze_for(trial)
        count = len(next(iter(sets.values())))
        num_retain = len(self.task.retain) if method.uses_retain else 0
        batches = plan_epoch(count, num_retain, trial.batch_size, trial.seed, epoch, epoch_size)
        records: list[Tensor] = []
        for i, (chosen, retained) in enumerate(batches):
            self._set_learning_rate(trial, epoch * len(batches) + i, trial.epochs * len(batches))
            examples = [[sets[name][j] for name in method.sets] for j in chosen]
            batch_references = {name: [references[name][j] for j in chosen] for name in references}
            batch = _Batch(trial, examples, [self.task.retain[j] for j in retained], batch_references)
            records.append(self._step(batch))
        sums = torch.stack(records)
        dist.all_reduce(sums)
        losses = [StepLosses(*row) for row in sums.tolist()]
        where = f"in epoch {epoch + 1} (learning rate {trial.learning_rate:g})"
        if not torch.isfinite(sums).all():
            raise NonFinite(f"the loss is not finite {where}")
        if self.engine.skipped_steps:  # DeepSpeed leaves such steps out and goes on
            raise NonFinite(f"the gradient is not finite in {self.engine.skipped_steps} step(s) {where}")
        return losses

    def _set_learning_rate(self, trial: TrialConfig, step: int, total: int) -> None:
        rate = trial.learning_rate * schedule(step, total, trial.warmup_fraction, trial.schedule)
        decay = 0.0 if trial.train_layers else trial.weight_decay  # decay would move what is to stand still
        engines.set_hyperparameters(self.engine, rate, decay, trial.max_grad_norm)

    def _step(self, batch: _Batch) -> Tensor:
        """One optimizer step; this worker's share of (forget loss, retain loss), [2]."""
        parts = share(batch.lengths, self.num_workers, self.gang.max_tokens)[self.rank]
        record = torch.zeros(2, device=self.device)
        for i, part in enumerate(parts):
            loss, terms = self._micro_batch(batch, sorted(part))
            record += terms
            # The engine averages gradients over the workers; the loss is a sum over them.
            engines.backward(self.engine, loss * self.num_workers, is_last=i == len(parts) - 1)
        self.engine.step()
        return record

    def _micro_batch(self, batch: _Batch, members: list[int]) -> tuple[Tensor, Tensor]:
        """Forward the batch's `members`: (loss to run backward, (forget term, retain term) detached, [2])."""
        examples = [m for m in members if m < len(batch.examples)]
        retained = [m - len(batch.examples) for m in members[len(examples) :]]
        method, trial = batch.method, batch.trial
        # Set after set, then the retain sequences: each a contiguous run of the pack's sequences.
        items = [batch.examples[m][k] for k in range(len(method.sets)) for m in examples]
        packed = pack([*items, *(batch.retain[m] for m in retained)], self.gang.row_length)
        reference = np.concatenate(
            [np.zeros(0, np.float32), *(batch.references[name][m] for name in batch.references for m in examples)]
        )
        counts = [len(examples)] * len(method.sets) + [len(retained)]
        runs = []
        for k, count in enumerate(counts):
            first = sum(counts[:k])
            rows = torch.nonzero((packed.sequence >= first) & (packed.sequence < first + count))[:, 0]
            has_reference = method.needs_reference and k < len(method.sets)
            known = torch.from_numpy(reference)[packed.place[rows]] if has_reference else None
            runs.append((rows, first, first + count, known))
        packed = packed.to(self.device)
        detail = batch.detail
        layer = hidden_layer(trial.hidden_layer, self._num_layers) if detail == HIDDEN else 0
        start: Answers | None = None
        if batch.reads_start:
            with torch.no_grad(), self._snapshot.starting_weights(self.engine):
                start = score_answers(self.engine, packed, detail, layer)
        now = score_answers(self.engine, packed, detail, layer)
        scored = [self._scored(packed, now, start, *run) for run in runs]
        anchor = now.hidden if now.hidden is not None else now.logprobs
        assert anchor is not None
        forget = method.loss(*scored[:-1], **batch.loss_parameters).sum() / batch.forget_units
        loss = zero(anchor) + forget
        retain = torch.zeros_like(forget)
        if method.uses_retain:
            retain = batch.retain_loss.loss(scored[-1]).sum() / batch.retain_units
            loss = loss + trial.retain_weight * retain
        return loss, torch.stack([forget.detach(), retain.detach()]).float()

    def _scored(
        self,
        packed: Pack,
        now: Answers,
        start: Answers | None,
        rows: Tensor,
        first: int,
        last: int,
        known: Tensor | None,
    ) -> ScoredTokens:
        """One run of the pack's sequences as a loss sees it."""
        rows = rows.to(self.device)

        def take(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows]

        logprobs = take(now.logprobs)
        return ScoredTokens(
            logprobs=torch.zeros(len(rows), device=self.device) if logprobs is None else logprobs,
            sequence=packed.sequence[rows] - first,
            lengths=packed.lengths[first:last],
            targets=packed.targets[rows],
            reference=None if known is None else known.to(self.device),
            log_distribution=take(now.log_distribution),
            reference_distribution=take(start.log_distribution) if start else None,
            hidden=take(now.hidden),
            reference_hidden=take(start.hidden) if start else None,
        )

    # What is trained

    def _watch_frozen(self) -> None:
        """Let a trial hold parameters still: their gradients are set to 0 on the way to the optimizer."""
        self._trained_names = [n for n, p in self.engine.module.named_parameters() if p.requires_grad]
        for name, parameter in self.engine.module.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(
                    lambda grad, name=name: torch.zeros_like(grad) if name in self._frozen else None
                )

    def _freeze_for(self, trial: TrialConfig) -> None:
        """Hold still all but the MLP output projections of the layers that the trial trains."""
        self._frozen = set()
        if trial.train_layers:
            last = hidden_layer(trial.hidden_layer, self._num_layers)
            layers = "|".join(str(i) for i in range(max(0, last - trial.train_layers + 1), last + 1))
            moving = re.compile(rf"\.(?:layers|h)\.(?:{layers})\.mlp\.(?:down_proj|c_proj|fc2|dense_4h_to_h)\.")
            self._frozen = {name for name in self._trained_names if not moving.search(name)}
            if len(self._frozen) == len(self._trained_names):
                raise ValueError(f"train_layers = {trial.train_layers}: no MLP output projection is among the weights")

    # The sets that a method learns from, and their log-probs under the starting model

    def _variants(self, name: str, method: Method, learn: tuple[str, ...]) -> list[Sequences]:
        """The forget set alone, or the alternates to it; built once."""
        key = self._set_key(name, method, learn)
        if key not in self._sets:
            forget = Sequences.concatenate([getattr(self.task, part) for part in learn])
            self._sets[key] = (
                [forget] if name == FORGET else build_alternates(method.alternates, forget, self.tokenizer)
            )
        return self._sets[key]

    def prepare_reference(self, method: Method, learn: tuple[str, ...] = (FORGET,)) -> None:
        """Have the log-probs of the method's sets under the starting model: from memory, from disk, or computed.

        Must be called at the starting weights. No reference model stays in memory.
        """
        for name in method.sets:
            for i, sequences in enumerate(self._variants(name, method, learn)):
                key = self._set_key(name, method, learn), i
                if key not in self._references:
                    self._references[key] = self._find_reference(sequences)

    def _find_reference(self, sequences: Sequences) -> np.ndarray:
        """The first worker reads or writes the file; all of them end with the same array."""
        if not self.gang.reference_folder:
            return self._token_logprobs(sequences)
        folder = Path(self.gang.reference_folder)
        box: list[Any] = [None, None]
        if self.rank == 0:
            key = reference_key(self.task.model, sequences, self.gang)
            box = [key, read_reference(folder, key, sequences)]
        dist.broadcast_object_list(box, src=0)
        if box[1] is not None:
            return np.array(box[1])
        logprobs = self._token_logprobs(sequences)
        if self.rank == 0:
            write_reference(folder, box[0], sequences, logprobs)
        return logprobs

    @staticmethod
    def _set_key(name: str, method: Method, learn: tuple[str, ...]) -> tuple[str, ...]:
        return (name if name == FORGET else method.alternates, *learn)

    def _pick_references(
        self, method: Method, learn: tuple[str, ...], picked: dict[str, int]
    ) -> dict[str, list[np.ndarray]]:
        """By set name, the reference log-probs of each sequence; empty where the method needs none."""
        if not method.needs_reference:
            return {}
        result = {}
        for name in method.sets:
            key = self._set_key(name, method, learn), picked[name]
            if key not in self._references:
                raise RuntimeError("prepare_reference must run at the starting weights, before the first step")
            sequences = self._variants(name, method, learn)[picked[name]]
            result[name] = np.split(self._references[key], np.cumsum(sequences.answer_lengths)[:-1])
        return result

    def _token_logprobs(self, sequences: Sequences) -> np.ndarray:
        """log p of every answer token, fp32 [sum of answer lengths], equal on all workers."""
        offsets = np.concatenate([[0], np.cumsum(sequences.answer_lengths)])
        result = torch.zeros(int(offsets[-1]))
        for part, packed in self._packs(sequences):
            logprobs = score_answers(self.engine, packed).logprobs
            assert logprobs is not None
            ordered = logprobs.float().cpu()[torch.argsort(packed.place.cpu())]
            places = np.concatenate([np.zeros(0, int), *(np.arange(offsets[i], offsets[i + 1]) for i in part)])
            result[torch.from_numpy(places)] = ordered
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
            answers = score_answers(self.engine, packed, CORRECT if truth is None else DISTRIBUTION)
            assert answers.correct is not None
            assert answers.logprobs is not None
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
                divergence = scored.mean((log_truth.exp() * (log_truth - log_model)).sum(-1))
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
        # With checkpointing on, a model in training mode drops its cache, and the answers are wrong.
        model = self.engine.module.model
        was_training = model.training
        model.eval()
        for part in parts:
            rows = [prompts.prompts[i] for i in part] or [prompts.prompts[0]]
            width = max(len(r) for r in rows)
            tokens = torch.tensor([[pad] * (width - len(r)) + list(r) for r in rows], device=self.device)
            mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=self.device)
            output = model.generate(
                input_ids=tokens,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=prompts.max_new_tokens,
                pad_token_id=pad,
                synced_gpus=self.gang.zero_stage == 3 and self.num_workers > 1,
            )
            for i, row in zip(part, output[:, width:].tolist(), strict=False):
                mine[i] = self.tokenizer.decode(row, skip_special_tokens=True).strip()
        model.train(was_training)
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
        state = engines.gather_trained(self.engine, self.rank)
        if self.rank == 0:
            model = self.engine.module.model
            save_weights(model, state, self.tokenizer, folder, self.task.model, self.gang.precision)
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

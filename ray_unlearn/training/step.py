"""One optimizer step and one epoch of them: forward, loss, backward, and what of the model moves."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ray_unlearn.config import TrialConfig
from ray_unlearn.failures import NonFinite
from ray_unlearn.models.batches import plan_epoch, share
from ray_unlearn.models.logprobs import (
    DISTRIBUTION,
    HIDDEN,
    LOGPROBS,
    Answers,
    score_answers,
)
from ray_unlearn.models.packing import Pack
from ray_unlearn.models.sizes import hidden_layer
from ray_unlearn.training import engine as engines
from ray_unlearn.training.losses import (
    FORGET,
    RETAIN_LOSSES,
    SEQUENCE,
    Method,
    RetainLoss,
    ScoredTokens,
    find_method,
    zero,
)
from ray_unlearn.training.rank import Item, Rank
from ray_unlearn.training.references import References


@dataclass(frozen=True)
class StepLosses:
    """Mean losses of one optimizer step over the whole batch, before weighting."""

    forget: float
    retain: float


@dataclass(frozen=True)
class Batch:
    """One global batch, the same on every worker: what is learnt, what is kept, and the whole batch's counts."""

    trial: TrialConfig
    examples: list[list[Item]]
    """By example, one sequence for each of the method's sets; an example is never cut apart."""
    retain: list[Item]
    references: dict[str, list[np.ndarray]]
    """By set, each example's log-probs under the starting model."""
    weights: Tensor | None = None
    """Where each example's gradient weight is to be written, float64 [examples]; see `Step.train`."""

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
        return _count_units([example[0] for example in self.examples], self.method.reduction)

    @cached_property
    def retain_units(self) -> int:
        return _count_units(self.retain, self.retain_loss.reduction)

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


def _count_units(sequences: Iterable[tuple[np.ndarray, int]], reduction: str) -> int:
    lengths = [len(tokens) - start for tokens, start in sequences]
    return max(1, sum(n > 0 for n in lengths) if reduction == SEQUENCE else sum(lengths))


class Step:
    """Learns: runs a trial's epochs on this worker's share of every batch."""

    def __init__(self, rank: Rank, references: References) -> None:
        self._rank, self._references = rank, references
        self.gradient_weights: list[list[float]] = []
        """By epoch, what `train` was asked to weigh."""
        self._frozen: set[str] = set()
        self._watch_frozen()

    def train(
        self,
        trial: TrialConfig,
        epoch: int,
        learn: tuple[str, ...] = (FORGET,),
        epoch_size: int = 0,
        weigh: bool = False,
    ) -> tuple[list[StepLosses], TrialConfig]:
        """Run one epoch (0-based) of `epoch_size` sequences (0: of all); one record a step, and the trial as the next
        epoch has it, whose retain weight may follow the retain loss.

        weigh: append to `gradient_weights` each forget sequence's gradient weight in this epoch, the factor that the
        forget loss puts on the gradient of its log-likelihood (SimNPO, equations 5 and 7; mean over tokens).
        Raises NonFinite once a loss is nan or inf.
        """
        method = find_method(trial.method)
        follows_each_step = method.follows_each_step(trial)
        variants = {name: self._references.variants(name, method, learn) for name in method.sets}
        picked = {name: epoch % len(sets) for name, sets in variants.items()}
        sets = {name: variants[name][picked[name]] for name in method.sets}
        references = self._references.pick(method, learn, picked)
        self._freeze_for(trial)
        count = len(next(iter(sets.values())))
        num_retain = len(self._rank.task.retain) if method.uses_retain else 0
        batches = plan_epoch(count, num_retain, trial.batch_size, trial.seed, epoch, epoch_size)
        records: list[Tensor] = []
        weighed = torch.zeros(count, dtype=torch.float64)
        for i, (chosen, retained) in enumerate(batches):
            self.set_learning_rate(trial, epoch * len(batches) + i, trial.epochs * len(batches))
            examples = [[sets[name][j] for name in method.sets] for j in chosen]
            batch_references = {name: [references[name][j] for j in chosen] for name in references}
            kept = torch.zeros(len(chosen), dtype=torch.float64) if weigh else None
            batch = Batch(trial, examples, [self._rank.task.retain[j] for j in retained], batch_references, kept)
            records.append(self.run(batch))
            if follows_each_step:
                record = records[-1].clone()
                dist.all_reduce(record)
                trial = _followed(method, trial, float(record[1]))
            if kept is not None:
                weighed[torch.from_numpy(chosen)] = self._rank.sum_over_workers(kept)
        if weigh:
            self.gradient_weights.append(weighed.tolist())
        sums = torch.stack(records)
        dist.all_reduce(sums)
        losses = [StepLosses(*row) for row in sums.tolist()]
        where = f"in epoch {epoch + 1} (learning rate {trial.learning_rate:g})"
        if not torch.isfinite(sums).all():
            raise NonFinite(f"the loss is not finite {where}", is_nan=bool(sums.isnan().any()))
        if self._rank.engine.skipped_steps:  # DeepSpeed leaves such steps out and goes on
            raise NonFinite(f"the gradient is not finite in {self._rank.engine.skipped_steps} step(s) {where}")
        if method.retain_rule is not None and not follows_each_step:
            trial = _followed(method, trial, sum(step.retain for step in losses) / len(losses))
        return losses, trial

    def set_learning_rate(self, trial: TrialConfig, step: int, total: int) -> None:
        rate = trial.learning_rate * schedule(step, total, trial.warmup_fraction, trial.schedule)
        decay = 0.0 if trial.train_layers else trial.weight_decay  # decay would move what is to stand still
        engines.set_hyperparameters(self._rank.engine, rate, decay, trial.max_grad_norm)

    def run(self, batch: Batch) -> Tensor:
        """One optimizer step; this worker's share of (forget loss, retain loss), [2]."""
        parts = share(batch.lengths, self._rank.num_workers, self._rank.max_tokens)[self._rank.number]
        record = torch.zeros(2, device=self._rank.device)
        for i, part in enumerate(parts):
            loss, terms, learnt = self._micro_batch(batch, sorted(part))
            record += terms
            # The engine averages gradients over the workers; the loss is a sum over them.
            engines.backward(self._rank.engine, loss * self._rank.num_workers, is_last=i == len(parts) - 1)
            if batch.weights is not None and learnt.logprobs.grad is not None:
                members = [m for m in sorted(part) if m < len(batch.examples)]
                scale = batch.forget_units / self._rank.num_workers
                batch.weights[members] = learnt.mean(learnt.logprobs.grad).abs().double().cpu() * scale
        self._rank.engine.step()
        return record

    def _micro_batch(self, batch: Batch, members: list[int]) -> tuple[Tensor, Tensor, ScoredTokens]:
        """Forward the batch's `members`: (loss to run backward, (forget term, retain term) detached, [2], what
        the forget loss saw of the forget set)."""
        examples = [m for m in members if m < len(batch.examples)]
        retained = [m - len(batch.examples) for m in members[len(examples) :]]
        method, trial = batch.method, batch.trial
        # Set after set, then the retain sequences: each a contiguous run of the pack's sequences.
        items = [batch.examples[m][k] for k in range(len(method.sets)) for m in examples]
        packed = self._rank.pack([*items, *(batch.retain[m] for m in retained)])
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
        packed = packed.to(self._rank.device)
        detail = batch.detail
        layer = hidden_layer(trial.hidden_layer, self._rank.num_layers) if detail == HIDDEN else 0
        start: Answers | None = None
        if batch.reads_start:
            with torch.no_grad(), self._rank.snapshot.starting_weights(self._rank.engine):
                start = score_answers(self._rank.engine, packed, detail, layer)
        now = score_answers(self._rank.engine, packed, detail, layer)
        scored = [self._scored(packed, now, start, *run) for run in runs]
        if batch.weights is not None and scored[0].logprobs.requires_grad:
            scored[0].logprobs.retain_grad()
        anchor = now.hidden if now.hidden is not None else now.logprobs
        assert anchor is not None
        forget = method.loss(*scored[:-1], **batch.loss_parameters).sum() / batch.forget_units
        loss = zero(anchor) + forget
        retain = torch.zeros_like(forget)
        if method.uses_retain:
            retain = batch.retain_loss.loss(scored[-1]).sum() / batch.retain_units
            loss = loss + trial.retain_weight * retain
        return loss, torch.stack([forget.detach(), retain.detach()]).float(), scored[0]

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
        rows = rows.to(self._rank.device)

        def take(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows]

        logprobs = take(now.logprobs)
        return ScoredTokens(
            logprobs=torch.zeros(len(rows), device=self._rank.device) if logprobs is None else logprobs,
            sequence=packed.sequence[rows] - first,
            lengths=packed.lengths[first:last],
            targets=packed.targets[rows],
            reference=None if known is None else known.to(self._rank.device),
            log_distribution=take(now.log_distribution),
            reference_distribution=take(start.log_distribution) if start else None,
            hidden=take(now.hidden),
            reference_hidden=take(start.hidden) if start else None,
        )

    def _watch_frozen(self) -> None:
        """Let a trial hold parameters still: their gradients are set to 0 on the way to the optimizer."""
        self._trained_names = [n for n, p in self._rank.engine.module.named_parameters() if p.requires_grad]
        for name, parameter in self._rank.engine.module.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(
                    lambda grad, name=name: torch.zeros_like(grad) if name in self._frozen else None
                )

    def _freeze_for(self, trial: TrialConfig) -> None:
        """Hold still all but the MLP output projections of the layers that the trial trains."""
        self._frozen = set()
        if trial.train_layers:
            last = hidden_layer(trial.hidden_layer, self._rank.num_layers)
            layers = "|".join(str(i) for i in range(max(0, last - trial.train_layers + 1), last + 1))
            moving = re.compile(rf"\.(?:layers|h)\.(?:{layers})\.mlp\.(?:down_proj|c_proj|fc2|dense_4h_to_h)\.")
            self._frozen = {name for name in self._trained_names if not moving.search(name)}
            if len(self._frozen) == len(self._trained_names):
                raise ValueError(f"train_layers = {trial.train_layers}: no MLP output projection is among the weights")


def _followed(method: Method, trial: TrialConfig, retain_loss: float) -> TrialConfig:
    """The trial with the retain weight that its method's rule has for such a retain loss."""
    assert method.retain_rule is not None
    rule = {name: trial.parameters.get(name, default) for name, default in method.rule_parameters.items()}
    return replace(trial, retain_weight=method.retain_rule(trial.retain_weight, retain_loss, **rule))


def schedule(step: int, total: int, warmup_fraction: float, kind: str) -> float:
    """Share of the peak learning rate at a 0-based step: linear warm-up, then linear to 0 or constant."""
    warmup = round(warmup_fraction * total)
    if step < warmup:
        return (step + 1) / warmup
    return (total - step) / max(total - warmup, 1) if kind == "linear" else 1.0

"""One rank of a gang: forward, loss, step, evaluate. It knows no method and no benchmark by name."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import re
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import Benchmark, Probe, Profile, Prompts, Split, Task
from ray_unlearn.config import ATTACKS, GangConfig, Robustness, TrialConfig
from ray_unlearn.failures import NonFinite
from ray_unlearn.metrics import Scores, TokenScores
from ray_unlearn.metrics.memorisation import exact_memorisation
from ray_unlearn.models.batches import plan_epoch, share
from ray_unlearn.models.loading import (
    choose_trained,
    load_model,
    load_tokenizer,
    save_adapter,
    save_weights,
    trust_remote_code,
)
from ray_unlearn.models.logprobs import (
    CORRECT,
    DISTRIBUTION,
    HIDDEN,
    LOGPROBS,
    MOMENTS,
    Answers,
    AnswerScorer,
    causal_model,
    decoder_layers,
    score_answers,
)
from ray_unlearn.models.marks import cut_at_stop, whole_text
from ray_unlearn.models.packing import Pack, pack, pack_trees
from ray_unlearn.models.sequences import Sequences
from ray_unlearn.models.sizes import hidden_layer
from ray_unlearn.provenance import cpu_model
from ray_unlearn.training import engine as engines
from ray_unlearn.training.alternates import build_alternates
from ray_unlearn.training.attacks import attacked, pick_relearned, relearn_trial, round_to_nf4, worst_of
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
from ray_unlearn.training.references import read_reference, reference_key, write_reference

GENERATION_BATCH = 32
CPU_SCORING_TOKENS = 1024
"""Tokens of one forward pass without gradients on a CPU: more is slower there, for want of cache."""
ONE_THREAD_PARAMETERS = 200_000
"""Up to so many, threads on a CPU wait for one another longer than they compute."""
Item = tuple[np.ndarray, int]
"""A sequence's token ids, int32 [n], and where its answer starts."""


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
    weights: Tensor | None = None
    """Where each example's gradient weight is to be written, float64 [examples]; see `Worker.train`."""

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
        self.max_tokens = gang.max_tokens
        self.rank, self.num_workers = dist.get_rank(), dist.get_world_size()
        trust_remote_code(gang.trust_remote_code)
        self.tokenizer = load_tokenizer(task.model)
        model = load_model(task.model, gang.precision)
        self._num_parameters = sum(p.numel() for p in model.parameters())
        if device.type == "cpu":
            torch.set_num_threads(gang.threads_per_worker if self._num_parameters > ONE_THREAD_PARAMETERS else 1)
        self._num_layers = len(decoder_layers(model))
        model = choose_trained(model, gang.lora_rank, gang.train, gang.checkpointing).to(device)
        self.engine = engines.build_engine(AnswerScorer(model), gang.zero_stage, gang.precision, device, gang.deepspeed)
        self._snapshot = engines.Snapshot(self.engine)
        self._sets: dict[tuple[str, ...], list[Sequences]] = {}
        self._references: dict[tuple[tuple[str, ...], int], np.ndarray] = {}
        self._frozen: set[str] = set()
        self._watch_frozen()
        self._alone = False
        self._alone = not self._packing_is_valid()
        self._has_trees = self._trees_are_valid()
        self._check_restore()

    @property
    def notes(self) -> list[str]:
        """What the user should know about how this model is run."""
        return ["this model mixes packed sequences: each gets a row of its own, sorted by length"] * self._alone

    @property
    def hardware(self) -> dict[str, Any]:
        """What this gang runs on."""
        on_gpu = self.device.type == "cuda"
        kind = torch.cuda.get_device_name(self.device) if on_gpu else cpu_model()
        return {"device": self.device.type, "model": kind, "workers": self.num_workers, "cpus": os.cpu_count()}

    def restore(self) -> None:
        """Back to the starting model, as if no trial had run."""
        self._snapshot.restore(self.engine)
        self.weights: list[list[float]] = []
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

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
        if self._alone or self.gang.precision != "fp32" or getattr(text, "sliding_window", None):
            return False
        tokens = np.arange(12, dtype=np.int32) % len(self.tokenizer)
        tree = [(tokens[:8], 4), (np.concatenate([tokens[:4], tokens[9:12]]), 4)]
        scores = []
        for packed in (pack_trees([tree]), self._pack(tree)):
            packed = packed.to(self.device)
            logprobs = score_answers(self.engine, packed).logprobs
            assert logprobs is not None
            scores.append(logprobs[torch.argsort(packed.place)])
        return bool((scores[0] - scores[1]).abs().max() <= 1e-4)

    def _pack(self, items: list[Item]) -> Pack:
        return pack(items, self.gang.row_length, self._alone)

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
            cause, fix = "this DeepSpeed version", "Install the version pinned in constraints.txt"
            if self.gang.deepspeed:
                cause, fix = "DeepSpeed with the settings of --deepspeed", "Leave --deepspeed out, or remove settings"
            raise RuntimeError(f"{cause} cannot be put back to its first state in place. {fix}")

    # Training

    def train(
        self,
        trial: TrialConfig,
        epoch: int,
        learn: tuple[str, ...] = (FORGET,),
        epoch_size: int = 0,
        weigh: bool = False,
    ) -> list[StepLosses]:
        """Run one epoch (0-based) of `epoch_size` sequences (0: of all); one record a step.

        weigh: append to `weights` each forget sequence's gradient weight in this epoch, the factor that the
        forget loss puts on the gradient of its log-likelihood (SimNPO, equations 5 and 7; mean over tokens).
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
        weighed = torch.zeros(count, dtype=torch.float64)
        for i, (chosen, retained) in enumerate(batches):
            self._set_learning_rate(trial, epoch * len(batches) + i, trial.epochs * len(batches))
            examples = [[sets[name][j] for name in method.sets] for j in chosen]
            batch_references = {name: [references[name][j] for j in chosen] for name in references}
            kept = torch.zeros(len(chosen), dtype=torch.float64) if weigh else None
            batch = _Batch(trial, examples, [self.task.retain[j] for j in retained], batch_references, kept)
            records.append(self._step(batch))
            if kept is not None:
                weighed[torch.from_numpy(chosen)] = self._sum_over_workers(kept)
        if weigh:
            self.weights.append(weighed.tolist())
        sums = torch.stack(records)
        dist.all_reduce(sums)
        losses = [StepLosses(*row) for row in sums.tolist()]
        where = f"in epoch {epoch + 1} (learning rate {trial.learning_rate:g})"
        if not torch.isfinite(sums).all():
            raise NonFinite(f"the loss is not finite {where}", is_nan=bool(sums.isnan().any()))
        if self.engine.skipped_steps:  # DeepSpeed leaves such steps out and goes on
            raise NonFinite(f"the gradient is not finite in {self.engine.skipped_steps} step(s) {where}")
        return losses

    def _set_learning_rate(self, trial: TrialConfig, step: int, total: int) -> None:
        rate = trial.learning_rate * schedule(step, total, trial.warmup_fraction, trial.schedule)
        decay = 0.0 if trial.train_layers else trial.weight_decay  # decay would move what is to stand still
        engines.set_hyperparameters(self.engine, rate, decay, trial.max_grad_norm)

    def _step(self, batch: _Batch) -> Tensor:
        """One optimizer step; this worker's share of (forget loss, retain loss), [2]."""
        parts = share(batch.lengths, self.num_workers, self.max_tokens)[self.rank]
        record = torch.zeros(2, device=self.device)
        for i, part in enumerate(parts):
            loss, terms, learnt = self._micro_batch(batch, sorted(part))
            record += terms
            # The engine averages gradients over the workers; the loss is a sum over them.
            engines.backward(self.engine, loss * self.num_workers, is_last=i == len(parts) - 1)
            if batch.weights is not None and learnt.logprobs.grad is not None:
                members = [m for m in sorted(part) if m < len(batch.examples)]
                scale = batch.forget_units / self.num_workers
                batch.weights[members] = learnt.mean(learnt.logprobs.grad).abs().double().cpu() * scale
        self.engine.step()
        return record

    def _micro_batch(self, batch: _Batch, members: list[int]) -> tuple[Tensor, Tensor, ScoredTokens]:
        """Forward the batch's `members`: (loss to run backward, (forget term, retain term) detached, [2], what
        the forget loss saw of the forget set)."""
        examples = [m for m in members if m < len(batch.examples)]
        retained = [m - len(batch.examples) for m in members[len(examples) :]]
        method, trial = batch.method, batch.trial
        # Set after set, then the retain sequences: each a contiguous run of the pack's sequences.
        items = [batch.examples[m][k] for k in range(len(method.sets)) for m in examples]
        packed = self._pack([*items, *(batch.retain[m] for m in retained)])
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
                [forget]
                if name == FORGET
                else build_alternates(method.alternates, forget, self.tokenizer, self.task.refusals)
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
        offsets = _answer_offsets(sequences)
        result = torch.zeros(int(offsets[-1]))
        for part, packed in self._packs(sequences):
            logprobs = score_answers(self.engine, packed).logprobs
            assert logprobs is not None
            result[_token_rows(offsets, part)] = logprobs.float().cpu()[torch.argsort(packed.place.cpu())]
        return self._sum_over_workers(result).numpy()

    # Evaluation

    def evaluate(self, split: Split, complete: bool = False) -> Profile:
        """Score every probe on all workers (each its share); every worker gets the whole result.

        complete: as finalists are, with the final probes and generated answers. Raises NonFinite if a metric is
        nan or inf.
        """
        probes = {**split.probes, **(split.final_probes if complete else {})}
        scores = self._score_all(probes)
        answers = {name: self._generate(prompts) for name, prompts in split.generations.items()} if complete else {}
        profile = self._measure(scores, answers, split)
        return replace(profile, examples=self._examples(split, scores, answers)) if complete else profile

    def _examples(
        self, split: Split, scores: Mapping[str, Scores], answers: Mapping[str, list[str]]
    ) -> list[dict[str, Any]]:
        """What people look at: every sequence (of questions, the right option) of the set to be forgotten."""
        if FORGET not in split.probes:
            return []
        probe, score = split.probes[FORGET], scores[FORGET]
        right = np.ones(len(probe.sequences), bool)
        if probe.is_correct is not None and probe.options is None:
            right = probe.is_correct
        texts = answers.get(FORGET, [])
        memorised = exact_memorisation(score)
        rows = []
        for example, i in enumerate(np.flatnonzero(right)):
            tokens, start = probe.sequences[int(i)]
            place = i
            if probe.options is not None and probe.is_correct is not None:
                row = probe.is_correct.reshape(probe.options.shape)[i]
                place = i * len(row) + int(np.argmax(row))
                tokens = np.append(tokens[:start], probe.options[i, np.argmax(row)])
            rows.append(
                {
                    "set": FORGET,
                    "example": example,
                    "num_tokens": int(score.num_tokens[place]),
                    "prompt": self.tokenizer.decode(tokens[:start], skip_special_tokens=True),
                    "reference": self.tokenizer.decode(tokens[start:], skip_special_tokens=True).strip(),
                    "answer": texts[example] if len(texts) == right.sum() else None,
                    "probability": float(score.probability[place]),
                    "exact_memorisation": float(memorised[place]),
                }
            )
        return rows

    @property
    def _benchmark(self) -> Benchmark:
        return load_benchmark(self.task.measured_by or self.task.benchmark)

    def _measure(self, scores: Mapping[str, Scores], answers: Mapping[str, list[str]], split: Split) -> Profile:
        profile = self._benchmark.measure(scores, answers, split)
        for name, value in profile.metrics.items():
            if not math.isfinite(value):
                raise NonFinite(f"metric {name} is {value}", is_nan=math.isnan(value))
        return profile

    def _packs(self, sequences: Sequences, trees: bool = False) -> Iterator[tuple[list[int], Pack]]:
        """This worker's packs with the indices they hold, under no_grad; trees: a prompt is computed once for all
        its answers."""
        budget = min(self.max_tokens, CPU_SCORING_TOKENS) if self.device.type == "cpu" else self.max_tokens
        groups = sequences.trees(budget) if trees else [[i] for i in range(len(sequences))]
        answers, starts = sequences.answer_lengths, sequences.answer_starts
        lengths = [int(starts[group[0]] - trees + answers[group].sum()) for group in groups]
        for part in share(lengths, self.num_workers, budget)[self.rank]:
            chosen = [groups[g] for g in part]
            members = [i for group in chosen for i in group]
            with torch.no_grad():
                if trees:
                    packed = pack_trees([[sequences[i] for i in group] for group in chosen], self.gang.row_length)
                else:
                    packed = self._pack([sequences[i] for i in members])
                yield members, packed.to(self.device)

    def _score_all(self, probes: Mapping[str, Probe]) -> dict[str, Scores]:
        """By name. What is scored alike goes together, because probes often ask the same questions."""
        alike = {n: p for n, p in probes.items() if p.truth is None and p.options is None and not p.attack}
        scores = {name: self._score(probe) for name, probe in probes.items() if name not in alike}
        if alike:
            whole = self._score(Probe(Sequences.concatenate([p.sequences for p in alike.values()])))
            ends = np.cumsum([len(p.sequences) for p in alike.values()])[:-1]
            columns = (whole.nll, whole.num_tokens, whole.num_correct, whole.suffix_start)
            parts = zip(alike, *(np.split(column, ends) for column in columns), strict=True)
            scores |= {name: Scores(*part) for name, *part in parts}
        return scores

    def _score(self, probe: Probe) -> Scores:
        if probe.options is not None:
            return self._score_options(probe.sequences, probe.options)
        sequences = probe.sequences
        result = torch.zeros(len(sequences), 4, dtype=torch.float64)
        offsets = _answer_offsets(sequences)
        tokens = torch.zeros(int(offsets[-1]) if probe.attack else 0, 3, dtype=torch.float64)
        truth = None if probe.truth is None else torch.tensor(probe.truth).log().to(self.device)
        detail = DISTRIBUTION if truth is not None else MOMENTS if probe.attack else CORRECT
        for part, packed in self._packs(sequences, self._has_trees):
            answers = score_answers(self.engine, packed, detail)
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
                log_truth = truth[packed.tokens.flatten()[packed.keep]]
                divergence = scored.mean((log_truth.exp() * (log_truth - log_model)).sum(-1))
            columns.append(divergence)
            result[torch.tensor(part, dtype=torch.int64)] = torch.stack(columns, dim=1).cpu()
            if probe.attack:
                assert answers.moments is not None
                rows = torch.cat([scored.logprobs[:, None], answers.moments.double()], dim=1).cpu()
                tokens[_token_rows(offsets, part)] = rows[torch.argsort(packed.place.cpu())]
        table = self._sum_over_workers(result).numpy()
        per_token = self._sum_over_workers(tokens).numpy() if probe.attack else None
        return Scores(
            nll=table[:, 0],
            num_tokens=sequences.answer_lengths.astype(np.float64),
            num_correct=table[:, 1],
            suffix_start=table[:, 2],
            divergence=table[:, 3] if truth is not None else None,
            tokens=None if per_token is None else _token_scores(offsets, per_token),
            gradient_norm=self._gradient_norms(sequences) if probe.attack else None,
        )

    def _score_options(self, sequences: Sequences, options: np.ndarray) -> Scores:
        """Every option of every sequence from one forward pass, in the order that Probe.options states."""
        result = torch.zeros(*options.shape, 2, dtype=torch.float64)
        for part, packed in self._packs(sequences):
            log_distribution = score_answers(self.engine, packed, DISTRIBUTION).log_distribution
            assert log_distribution is not None
            members = torch.tensor(part, dtype=torch.int64)[packed.sequence.cpu()]
            chosen = torch.from_numpy(options.astype(np.int64))[members]
            logprobs = log_distribution.gather(-1, chosen.to(self.device)).double().cpu()
            is_best = log_distribution.argmax(-1).cpu()[:, None] == chosen
            result[members] = torch.stack([-logprobs, is_best.double()], dim=-1)
        table = self._sum_over_workers(result).reshape(-1, 2).numpy()
        return Scores(table[:, 0], np.ones(len(table)), table[:, 1], 1.0 - table[:, 1])

    def _gradient_norms(self, sequences: Sequences) -> np.ndarray | None:
        """2-norm of each sequence's mean-loss gradient over the trained weights, [n]; None under ZeRO-3, where no
        worker holds whole gradients."""
        if self.gang.zero_stage == 3:
            return None
        trained = [p for p in self.engine.module.parameters() if p.requires_grad]
        result = torch.zeros(len(sequences), dtype=torch.float64)
        for i in range(self.rank, len(sequences), self.num_workers):
            packed = self._pack([sequences[i]]).to(self.device)
            # Not through the engine: its hooks would take these for a training step's gradients.
            logprobs = score_answers(self.engine.module, packed).logprobs
            assert logprobs is not None
            gradients = torch.autograd.grad(-logprobs.mean(), trained, allow_unused=True)
            result[i] = torch.stack([g.double().norm() for g in gradients if g is not None]).norm().cpu()
        return self._sum_over_workers(result).numpy()

    @torch.no_grad()
    def _generate(self, prompts: Prompts, seed: int | None = None) -> list[str]:
        """Answers in the prompts' order: greedy ones, or with a seed sampled at temperature 1 from the whole
        distribution."""
        if seed is not None:
            torch.manual_seed(seed + self.rank)
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
                do_sample=seed is not None,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=prompts.batch_room(part or [0]),
                pad_token_id=pad,
                **({"eos_token_id": list(prompts.stop)} if prompts.stop else {}),
                synced_gpus=self.gang.zero_stage == 3 and self.num_workers > 1,
            )
            for i, row in zip(part, output[:, width:].tolist(), strict=False):
                answer = cut_at_stop(row[: prompts.room(i)], prompts.stop)
                mine[i] = whole_text(self.tokenizer.decode(answer, skip_special_tokens=True)).strip()
        model.train(was_training)
        everyone: list[dict[int, str]] = [{} for _ in range(self.num_workers)]
        dist.all_gather_object(everyone, mine)
        merged = {i: text for part in everyone for i, text in part.items()}
        return [merged[i] for i in range(len(lengths))]

    def _sum_over_workers(self, values: Tensor) -> Tensor:
        values = values.to(self.device)
        dist.all_reduce(values)
        return values.cpu()

    def forget_nll(self) -> list[float]:
        """Mean negative log-likelihood of each forget sequence's answer tokens, in nats."""
        scores = self._score(Probe(self.task.forget))
        return (scores.nll / scores.num_tokens).tolist()

    # Beyond the end of a trial

    def attack(self, settings: Robustness, split: Split, seed: int) -> Profile:
        """The metrics of the model under each attack; afterwards the weights are what they were.

        A metric that an attack makes infinite is absent.
        """
        metrics: dict[str, float] = {}
        absent: dict[str, str] = {}
        for name in settings.attacks:
            try:
                if name == "sample":
                    metrics |= self._sample(settings, split, seed)
                else:
                    under = self._relearned(settings, seed) if name == "relearn" else self._quantised()
                    with under:
                        metrics |= attacked(name, self.evaluate(split).metrics, settings.metrics)
            except NonFinite as error:
                absent |= {f"{ATTACKS[name]}_{metric}": str(error) for metric in settings.metrics}
        return Profile(metrics, absent=absent)

    def _sample(self, settings: Robustness, split: Split, seed: int) -> dict[str, float]:
        benchmark = self._benchmark
        result: dict[str, float] = {}
        for name, metric in benchmark.leaks.items():
            if name in split.generations:
                prompts = split.generations[name]
                answers = [self._generate(prompts, (seed + 1) * 1000 + k) for k in range(settings.samples)]
                similarities = np.array([prompts.compare(a, benchmark.similarity) for a in answers])
                result |= attacked("sample", {metric: worst_of(similarities)}, [metric])
        return result

    def _quantised(self) -> contextlib.AbstractContextManager[None]:
        return engines.changed_linear_weights(self.engine, self.rank, round_to_nf4)

    @contextlib.contextmanager
    def _relearned(self, settings: Robustness, seed: int) -> Iterator[None]:
        kept = self._snapshot.kept(self.engine)
        self._snapshot.start_from(self.engine, kept)
        part = f"{settings.relearn_order} {settings.relearn_share} of forget, {seed}"
        known = pick_relearned(self.task.forget, settings.relearn_share, settings.relearn_order, seed)
        self._sets.setdefault((FORGET, part), [known])
        trial = relearn_trial(settings, self._num_parameters, seed)
        try:
            for epoch in range(trial.epochs):
                self.train(trial, epoch, (part,))
            yield
        finally:
            self._snapshot.put_back(self.engine, kept)

    @contextlib.contextmanager
    def on_the_line(self, alpha: float) -> Iterator[None]:
        """Inside, the weights are those of the start + alpha (now - start)."""
        kept = self._snapshot.kept(self.engine)
        self._snapshot.move_along_line(self.engine, kept, alpha)
        try:
            yield
        finally:
            self._snapshot.put_back(self.engine, kept)

    # The rest

    def save(self, folder: Path, adapter: bool = False) -> None:
        """Write the model as it is now, or its adapter alone. Every worker must call it."""
        state = engines.gather_trained(self.engine, self.rank)
        if self.rank == 0:
            model = self.engine.module.model
            if adapter:
                save_adapter(model, state, self.tokenizer, folder)
            else:
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


def _answer_offsets(sequences: Sequences) -> np.ndarray:
    """Where each answer starts when all are laid end to end, int64 [n + 1]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sequences.answer_lengths)])


def _token_rows(offsets: np.ndarray, part: list[int]) -> Tensor:
    """The answer tokens of these sequences among those of all, int64 [tokens of the part]."""
    places = [np.arange(offsets[i], offsets[i + 1]) for i in part]
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *places]))


def _token_scores(offsets: np.ndarray, table: np.ndarray) -> TokenScores:
    """From rows of log p and its mean and variance, [T, 3]."""
    std = np.sqrt(np.maximum(table[:, 2], 0.0))
    return TokenScores(offsets, table[:, 0], table[:, 1], std)


def schedule(step: int, total: int, warmup_fraction: float, kind: str) -> float:
    """Share of the peak learning rate at a 0-based step: linear warm-up, then linear to 0 or constant."""
    warmup = round(warmup_fraction * total)
    if step < warmup:
        return (step + 1) / warmup
    return (total - step) / max(total - warmup, 1) if kind == "linear" else 1.0

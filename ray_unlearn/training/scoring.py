"""Score the model as it is: probes, generated answers, metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import Answers, Benchmark, Probe, Profile, Prompts, Split
from ray_unlearn.benchmarks.generated import measure_answers
from ray_unlearn.failures import NonFinite
from ray_unlearn.metrics import Scores, TokenScores
from ray_unlearn.metrics.memorisation import exact_memorisation
from ray_unlearn.models.batches import share
from ray_unlearn.models.logprobs import (
    CORRECT,
    DISTRIBUTION,
    MOMENTS,
    score_answers,
)
from ray_unlearn.models.marks import cut_at_stop, whole_text
from ray_unlearn.models.sequences import Sequences
from ray_unlearn.training.losses import (
    FORGET,
    ScoredTokens,
)
from ray_unlearn.training.own_scorers import measure_own
from ray_unlearn.training.rank import Rank, answer_offsets, token_rows

GENERATION_BATCH = 32


class Scorer:
    """Scores on all workers, each its share; every worker gets the whole result."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank

    def evaluate(self, split: Split, complete: bool = False) -> Profile:
        """Score every probe on all workers (each its share); every worker gets the whole result.

        complete: as finalists are, with the final probes and generated answers. Raises NonFinite if a metric is
        nan or inf.
        """
        probes = {**split.probes, **(split.final_probes if complete else {})}
        scores = self._score_all(probes)
        always = {name for scorer in split.scorers if scorer.at_every_point for name in scorer.sets}
        wanted = {name: prompts for name, prompts in split.generations.items() if complete or name in always}
        given = {name: self.generate(prompts) for name, prompts in wanted.items()}
        answers = {name: answer.texts for name, answer in given.items()}
        profile = self._measure(scores, answers if complete else {}, split)
        profile = self._with_own_scores(profile, split, answers)
        if not complete:
            return profile
        known = measure_answers(given, split.generations)
        sets = [name for name in dict.fromkeys([FORGET, *answers]) if name in split.probes]
        examples = [row for name in sets for row in self._examples(name, split.probes[name], scores, answers)]
        absent = {name: why for name, why in profile.absent.items() if name not in known}
        return replace(profile, metrics={**profile.metrics, **known}, absent=absent, examples=examples)

    def _with_own_scores(self, profile: Profile, split: Split, answers: Mapping[str, list[str]]) -> Profile:
        """The profile with what the user's own scorers say of the answers."""
        if not split.scorers:
            return profile
        read = {name for scorer in split.scorers for name in scorer.sets if name in answers}
        asked = {name: (self._texts(split.generations[name]), split.generations[name].references) for name in read}
        metrics, errors = measure_own(split.scorers, asked, answers)
        return replace(profile, metrics={**profile.metrics, **metrics}, errors={**profile.errors, **errors})

    def _texts(self, prompts: Prompts) -> list[str]:
        return self._rank.tokenizer.batch_decode(prompts.prompts, skip_special_tokens=True)

    def _examples(
        self, name: str, probe: Probe, scores: Mapping[str, Scores], answers: Mapping[str, list[str]]
    ) -> list[dict[str, Any]]:
        """What people look at: every sequence (of questions, the right option) of a set."""
        score = scores[name]
        right = np.ones(len(probe.sequences), bool)
        if probe.is_correct is not None and probe.options is None:
            right = probe.is_correct
        texts = answers.get(name, [])
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
                    "set": name,
                    "example": example,
                    "num_tokens": int(score.num_tokens[place]),
                    "prompt": self._rank.tokenizer.decode(tokens[:start], skip_special_tokens=True),
                    "reference": self._rank.tokenizer.decode(tokens[start:], skip_special_tokens=True).strip(),
                    "answer": texts[example] if len(texts) == right.sum() else None,
                    "probability": float(score.probability[place]),
                    "exact_memorisation": float(memorised[place]),
                }
            )
        return rows

    @property
    def benchmark(self) -> Benchmark:
        return load_benchmark(self._rank.task.measured_by or self._rank.task.benchmark)

    def _measure(self, scores: Mapping[str, Scores], answers: Mapping[str, list[str]], split: Split) -> Profile:
        profile = self.benchmark.measure(scores, answers, split)
        for name, value in profile.metrics.items():
            if not math.isfinite(value):
                raise NonFinite(f"metric {name} is {value}", is_nan=math.isnan(value))
        return profile

    def _score_all(self, probes: Mapping[str, Probe]) -> dict[str, Scores]:
        """By name. What is scored alike goes together, because probes often ask the same questions."""
        alike = {n: p for n, p in probes.items() if p.truth is None and p.options is None and not p.attack}
        scores = {name: self.score(probe) for name, probe in probes.items() if name not in alike}
        if alike:
            whole = self.score(Probe(Sequences.concatenate([p.sequences for p in alike.values()])))
            ends = np.cumsum([len(p.sequences) for p in alike.values()])[:-1]
            columns = (whole.nll, whole.num_tokens, whole.num_correct, whole.suffix_start)
            parts = zip(alike, *(np.split(column, ends) for column in columns), strict=True)
            scores |= {name: Scores(*part) for name, *part in parts}
        return scores

    def score(self, probe: Probe) -> Scores:
        if probe.options is not None:
            return self._score_options(probe.sequences, probe.options)
        sequences = probe.sequences
        result = torch.zeros(len(sequences), 4, dtype=torch.float64)
        offsets = answer_offsets(sequences)
        tokens = torch.zeros(int(offsets[-1]) if probe.attack else 0, 3, dtype=torch.float64)
        truth = None if probe.truth is None else torch.tensor(probe.truth).log().to(self._rank.device)
        detail = DISTRIBUTION if truth is not None else MOMENTS if probe.attack else CORRECT
        for part, packed in self._rank.packs(sequences, self._rank.has_trees):
            answers = score_answers(self._rank.engine, packed, detail)
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
                tokens[token_rows(offsets, part)] = rows[torch.argsort(packed.place.cpu())]
        table = self._rank.sum_over_workers(result).numpy()
        per_token = self._rank.sum_over_workers(tokens).numpy() if probe.attack else None
        return Scores(
            nll=table[:, 0],
            num_tokens=sequences.answer_lengths.astype(np.float64),
            num_correct=table[:, 1],
            suffix_start=table[:, 2],
            divergence=table[:, 3] if truth is not None else None,
            tokens=None if per_token is None else _token_scores(offsets, per_token),
            gradient_norm=self._gradient_norms(sequences) if probe.gradients else None,
        )

    def _score_options(self, sequences: Sequences, options: np.ndarray) -> Scores:
        """Every option of every sequence from one forward pass, in the order that Probe.options states."""
        result = torch.zeros(*options.shape, 2, dtype=torch.float64)
        for part, packed in self._rank.packs(sequences):
            log_distribution = score_answers(self._rank.engine, packed, DISTRIBUTION).log_distribution
            assert log_distribution is not None
            members = torch.tensor(part, dtype=torch.int64)[packed.sequence.cpu()]
            chosen = torch.from_numpy(options.astype(np.int64))[members]
            logprobs = log_distribution.gather(-1, chosen.to(self._rank.device)).double().cpu()
            is_best = log_distribution.argmax(-1).cpu()[:, None] == chosen
            result[members] = torch.stack([-logprobs, is_best.double()], dim=-1)
        table = self._rank.sum_over_workers(result).reshape(-1, 2).numpy()
        return Scores(table[:, 0], np.ones(len(table)), table[:, 1], 1.0 - table[:, 1])

    def _gradient_norms(self, sequences: Sequences) -> np.ndarray | None:
        """2-norm of each sequence's mean-loss gradient over the trained weights, [n]; None under ZeRO-3, where no
        worker holds whole gradients."""
        if self._rank.gang.zero_stage == 3:
            return None
        trained = [p for p in self._rank.engine.module.parameters() if p.requires_grad]
        result = torch.zeros(len(sequences), dtype=torch.float64)
        for i in range(self._rank.number, len(sequences), self._rank.num_workers):
            packed = self._rank.pack([sequences[i]]).to(self._rank.device)
            # Not through the engine: its hooks would take these for a training step's gradients.
            logprobs = score_answers(self._rank.engine.module, packed).logprobs
            assert logprobs is not None
            gradients = torch.autograd.grad(-logprobs.mean(), trained, allow_unused=True)
            result[i] = torch.stack([g.double().norm() for g in gradients if g is not None]).norm().cpu()
        return self._rank.sum_over_workers(result).numpy()

    @torch.no_grad()
    def generate(self, prompts: Prompts, seed: int | None = None) -> Answers:
        """Answers in the prompts' order: greedy ones, or with a seed sampled at temperature 1 from the whole
        distribution, each from a generator of its own: the same on any number of workers."""
        lengths = [len(p) for p in prompts.prompts]
        budget = GENERATION_BATCH * max(lengths)
        parts = share(lengths, self._rank.num_workers, budget)[self._rank.number]
        pad = (
            self._rank.tokenizer.pad_token_id
            if self._rank.tokenizer.pad_token_id is not None
            else self._rank.tokenizer.eos_token_id
        )
        mine: dict[int, tuple[str, bool]] = {}
        # With checkpointing on, a model in training mode drops its cache, and the answers are wrong.
        model = self._rank.engine.module.model
        was_training = model.training
        model.eval()
        for part in parts:
            rows = [prompts.prompts[i] for i in part] or [prompts.prompts[0]]
            width = max(len(r) for r in rows)
            tokens = torch.tensor([[pad] * (width - len(r)) + list(r) for r in rows], device=self._rank.device)
            mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=self._rank.device)
            output = model.generate(
                input_ids=tokens,
                attention_mask=mask,
                do_sample=False,
                logits_processor=[] if seed is None else [_Gumbel(seed, part or [0], self._rank.device)],
                max_new_tokens=prompts.batch_room(part or [0]),
                pad_token_id=pad,
                **({"eos_token_id": list(prompts.stop)} if prompts.stop else {}),
                synced_gpus=self._rank.gang.zero_stage == 3 and self._rank.num_workers > 1,
            )
            for i, row in zip(part, output[:, width:].tolist(), strict=False):
                room = row[: prompts.room(i)]
                answer = cut_at_stop(room, prompts.stop)
                text = whole_text(self._rank.tokenizer.decode(answer, skip_special_tokens=True)).strip()
                mine[i] = text, len(answer) < len(room)
        model.train(was_training)
        everyone: list[dict[int, tuple[str, bool]]] = [{} for _ in range(self._rank.num_workers)]
        dist.all_gather_object(everyone, mine)
        merged = {i: answer for part in everyone for i, answer in part.items()}
        texts, ended = zip(*(merged[i] for i in range(len(lengths))), strict=True)
        return Answers(list(texts), list(ended))

    def forget_nll(self) -> list[float]:
        """Mean negative log-likelihood of each forget sequence's answer tokens, in nats."""
        scores = self.score(Probe(self._rank.task.forget))
        return (scores.nll / scores.num_tokens).tolist()


class _Gumbel:
    """Makes the likeliest next token a sampled one: argmax of log p + Gumbel noise is a draw from p."""

    def __init__(self, seed: int, prompts: list[int], device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed * 1_000_003 + number) for number in prompts]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores: [prompts, vocabulary], of the next token."""
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() - noise.clamp_min(torch.finfo(torch.float32).tiny).log()


def _token_scores(offsets: np.ndarray, table: np.ndarray) -> TokenScores:
    """From rows of log p and its mean and variance, [T, 3]."""
    std = np.sqrt(np.maximum(table[:, 2], 0.0))
    return TokenScores(offsets, table[:, 0], table[:, 1], std)

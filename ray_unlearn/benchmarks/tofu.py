"""TOFU (arXiv:2401.06121): forget some of 200 fictitious authors that a model was fine-tuned on.

Data: `locuslab/TOFU` from the hub or from a local folder laid out like it. The target model was fine-tuned on
all authors, the retrained model on all but the forgotten; `ray_unlearn prepare` makes both. The evaluation
rows are halved: every other row of each set is for selection (at most 100 rows of a set, so that a search
stays cheap), the rest for the report.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ray_unlearn.benchmarks.contract import (
    STANDARD_ERRORS,
    Aim,
    Benchmark,
    Build,
    Keep,
    Probe,
    Profile,
    Prompts,
    Request,
    Split,
    Task,
    Trainer,
    needed,
)
from ray_unlearn.benchmarks.generated import describe_answers
from ray_unlearn.benchmarks.miniatures import tofu as tofu_mini
from ray_unlearn.benchmarks.miniatures.shapes import write_untrained
from ray_unlearn.benchmarks.profiles import available_splits, read_profile, with_retrained, write_profile
from ray_unlearn.benchmarks.sources import Table, find_files, has_config, read_files
from ray_unlearn.config import TrialConfig, UserError
from ray_unlearn.files import cached
from ray_unlearn.metrics import Scores, TokenScores
from ray_unlearn.metrics.errors import ks_error, ks_of_chance, standard_error
from ray_unlearn.metrics.membership import (
    auc,
    gradient_norm_score,
    loss_score,
    min_k_plus_plus_score,
    min_k_score,
    privacy,
    reference_score,
    zlib_score,
)
from ray_unlearn.metrics.memorisation import exact_memorisation, extraction_strength
from ray_unlearn.metrics.rouge import ENGLISH, choose_words, rouge_l_recall
from ray_unlearn.metrics.truth_ratio import (
    can_tell,
    cannot_tell,
    forget_quality,
    harmonic_mean,
    ks_distance,
    log_truth_ratio,
    ratios_of,
    right_share,
)
from ray_unlearn.models.hub import Repository, commits_of, open_repository
from ray_unlearn.models.loading import check_model, load_config, load_stops, load_tokenizer
from ray_unlearn.models.sequences import Sequences
from ray_unlearn.models.sizes import context_length
from ray_unlearn.models.templates import Template

HUB_NAME = "locuslab/TOFU"
DEFAULT_MODEL = "open-unlearning/tofu_Llama-3.2-1B-Instruct_full"
"""OpenUnlearning's target of one billion parameters."""
INSTEAD = "a copy of it with --data DIR"
DEFAULT_SPLIT = "forget10"
RETAIN_OF = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
SELECTION_ROWS = 100
HOLD_OUT_OF = {"forget01": "holdout01", "forget05": "holdout05", "forget10": "holdout10"}
"""Questions on authors that neither target nor retrained model saw, as many as the forget part has."""
MAX_NEW_TOKENS = 200
CHANCE = 0.25
"""Share of the right answer's probability among four, of a model that cannot tell."""
UTILITY_SETS = ("retain", "real_authors", "world_facts")
ATTACKED = ("forget", "holdout")
"""The probes of members and of others."""
MEMORISED = (
    "forget_extraction_strength",
    "forget_exact_memorisation",
    "forget_paraphrased_probability",
    "forget_right_share",
)
PRIVATE = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus")
NEED_RETRAINED = {
    *("forget_ks_distance", "forget_quality", "mia_reference"),
    *("privacy_score", "utility_score", "aggregate_without_fluency"),
}
NEED_HOLD_OUT = {
    *("holdout_exact_memorisation", *PRIVATE, "mia_gradient_norm", "mia_reference"),
    *("privacy_score", "aggregate_without_fluency"),
}
NEED_UTILITY = {"utility_score", "aggregate_without_fluency"}

MINI = tofu_mini.Sizes()
MINI_VERSION = 2


def load(request: Request, train: Trainer | None = None) -> Task:
    return load_mini(request, train) if request.scale == "mini" else load_full(request)


# ---- the miniature


def load_mini(request: Request, train: Trainer | None = None) -> Task:
    """Generated data, and a target and a retrained model made once for this user (about a minute)."""
    if request.data is not None:
        raise UserError(f"--data {request.data}: the miniature generates its data. Drop it, or use --scale full")
    split = _check_split(request.split)
    world = tofu_mini.build_world(MINI)
    key = {
        "name": "tofu-mini",
        "version": MINI_VERSION,
        "split": split,
        "data": world.digest(),
        "sizes": asdict(MINI),
    }
    made = cached(key, lambda folder: _make_mini_models(folder, world, split, needed(train, "tofu-mini")))
    task = load_full(replace(request, model=request.model or str(made / "target"), data=made / "data"))
    return with_retrained(task, read_profile(made / "retrained"), made / "retrained")


def _make_mini_models(folder: Path, world: tofu_mini.World, split: str, train: Trainer) -> None:
    start, data = folder / "start", tofu_mini.write_parts(folder / "data", world.parts)
    write_untrained(start, world.language, MINI, tofu_mini.DATA_SEED)
    task = build_task(Request("mini", str(start), data, split, whole=True))
    reader = _Reader(data, load_tokenizer(str(start)), MINI.context)
    known = [reader.pairs(reader.rows(part, "question", "answer")) for part in ("real_authors", "world_facts")]
    trial = TrialConfig(
        "build", "finetune", learning_rate=MINI.learning_rate, epochs=MINI.epochs, batch_size=MINI.batch_size
    )
    splits = {name: getattr(task, name) for name in available_splits(task)}
    unforgotten = Sequences.concatenate([task.retain, *known])
    target = Build(start, folder / "target", Sequences.concatenate([task.forget, unforgotten]), trial)
    retrained = Build(start, folder / "retrained", unforgotten, trial, "tofu", splits)
    _, profiles = train([target, retrained], print)
    own = {name: compare_with_itself(profile) for name, profile in profiles.items()}
    write_profile(folder / "retrained", own, {"benchmark": "tofu", "split": split})


# ---- any data


def load_full(request: Request) -> Task:
    """The task on a target model."""
    return build_task(replace(request, model=start_of(request)))


def start_of(request: Request) -> str:
    return request.model or DEFAULT_MODEL


def retrained_of(request: Request, model: str) -> str | None:
    """OpenUnlearning publishes a target of each base model, and one retrained on each retain part."""
    if not re.fullmatch(r"open-unlearning/tofu_[\w.-]+_full", model):
        return None
    return f"{model.removesuffix('full')}{RETAIN_OF[_check_split(request.split)]}"


def _check_split(name: str | None) -> str:
    split = name or DEFAULT_SPLIT
    if split not in RETAIN_OF:
        raise UserError(f"--split {split}: tofu has no such part. Choose one of: {', '.join(RETAIN_OF)}")
    return split


def repositories(request: Request) -> dict[str, str]:
    _check_split(request.split)
    return {} if request.data else {HUB_NAME: INSTEAD}


def build_task(request: Request) -> Task:
    """The task on any model: the target, or the base model that target and retrained are made from."""
    assert request.model is not None
    split = _check_split(request.split)
    check_model(request.model)
    tokenizer, context = load_tokenizer(request.model), context_length(load_config(request.model))
    reader = _Reader(request.data, tokenizer, context, load_stops(request.model))
    if request.data is not None:
        reader.words = choose_words([row["answer"] for row in reader.rows(RETAIN_OF[split], "question", "answer")])
    return Task(
        benchmark="tofu",
        scale=request.scale,
        model=request.model,
        forget=reader.pairs(reader.rows(split, "question", "answer")),
        retain=reader.pairs(reader.rows(RETAIN_OF[split], "question", "answer")),
        selection=_split(reader, split, slice(0, 2 * SELECTION_ROWS, 2)),
        report=_split(reader, split, slice(1, None, 2)),
        whole=_split(reader, split, slice(None)) if request.whole else None,
        split=split,
        commits=commits_of(reader.repository),
    )


class _Reader:
    """Reads and tokenises TOFU's parts; every complaint names part and row."""

    def __init__(self, data: Path | None, tokenizer: Any, context: int, stops: Sequence[int] = ()) -> None:
        self._source, self._context = str(data or HUB_NAME), context
        self._tables: dict[str, Table] = {}  # each is asked for by both splits
        self.template = Template(tokenizer, stops=stops)
        self.words = ENGLISH
        """What ROUGE counts: of the hub's TOFU as published, of a folder by its language."""

    @cached_property
    def repository(self) -> Repository:
        return open_repository(self._source, instead=INSTEAD)

    def _table(self, part: str) -> Table:
        if part not in self._tables:
            where = f"{self._source}: {part}"
            self._tables[part] = read_files(self.repository, find_files(self.repository, part, "train"), where)
        return self._tables[part]

    def rows(self, part: str, *columns: str) -> list[dict[str, Any]]:
        """Every row with all its columns, and "where" it is; in `columns`, texts (lists of them: perturbed_answer)."""
        table = self._table(part)
        where, has = table.where, table.columns
        missing = [c for c in columns if c not in has]
        if missing:
            raise UserError(f"{where} has no column {missing[0]!r}, only {', '.join(has)}. Mend the file")
        if len(table.rows) < 2:
            raise UserError(f"{where} has {len(table.rows)} row, too few for two halves. Mend the file")
        rows = [{**row, "where": f"{where}, row {number}"} for number, row in enumerate(table.rows)]
        for row in rows:
            for column in columns:
                texts = row.get(column) if column == "perturbed_answer" else [row.get(column)]
                if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
                    raise UserError(f"{row['where']}: {column!r} holds no text. Mend or remove the row")
        return rows

    def has(self, part: str) -> bool:
        """Whether the data have that part at all. Raises UserError where nobody can tell."""
        return has_config(self.repository, part)

    def pairs(self, rows: list[dict[str, Any]], column: str = "answer") -> Sequences:
        """One sequence a row, or one a text where the column holds lists."""
        items = []
        for row in rows:
            for text in row[column] if isinstance(row[column], list) else [row[column]]:
                tokens, start = self.template.encode_pair(row["question"], text, row["where"])
                if len(tokens) > self._context:
                    raise UserError(
                        f"{row['where']}: question and {column!r} have {len(tokens)} tokens, but the model reads at "
                        f"most {self._context}. Shorten or remove the row, or take a model with a longer context"
                    )
                items.append((tokens, start))
        return Sequences.build(items)

    def prompts(self, rows: list[dict[str, Any]]) -> Prompts:
        sequences = self.pairs(rows)
        room = self._context - int(sequences.answer_starts.max())
        return Prompts(
            prompts=[tokens[:start].tolist() for tokens, start in sequences],
            references=[row["answer"] for row in rows],
            max_new_tokens=max(1, min(MAX_NEW_TOKENS, room)),
            stop=self.template.stops,
            words=self.words,
        )


def _split(reader: _Reader, forget: str, part_of: slice) -> Split:
    """That part of the rows of each evaluated set."""
    probes: dict[str, Probe] = {}
    final_probes: dict[str, Probe] = {}
    generations: dict[str, Prompts] = {}
    sets = {"forget": f"{forget}_perturbed", "retain": "retain_perturbed"}
    sets |= {"real_authors": "real_authors_perturbed", "world_facts": "world_facts_perturbed"}
    for name, part in sets.items():
        fictitious = name in ("forget", "retain")
        columns = ("paraphrased_answer",) if fictitious else ()
        rows = reader.rows(part, "question", "answer", "perturbed_answer", *columns)[part_of]
        wrong = np.concatenate([np.full(len(row["perturbed_answer"]), i) for i, row in enumerate(rows)])
        probes[name] = Probe(reader.pairs(rows), texts=tuple(row["answer"] for row in rows))
        probes[f"{name}_perturbed"] = Probe(reader.pairs(rows, "perturbed_answer"), question=wrong)
        if fictitious:
            probes[f"{name}_paraphrased"] = Probe(reader.pairs(rows, "paraphrased_answer"))
        generations[name] = reader.prompts(rows)
    held_out = HOLD_OUT_OF[forget]
    if reader.has(held_out):
        rows = reader.rows(held_out, "question", "answer")[part_of]
        probes["holdout"] = Probe(reader.pairs(rows), texts=tuple(row["answer"] for row in rows))
        final_probes = {name: replace(probes[name], attack=True, gradients=True) for name in ATTACKED}
    return Split(probes, final_probes, generations)


# ---- what is measured


def measure(scores: Mapping[str, Scores], answers: Mapping[str, list[str]], split: Split) -> Profile:
    """Everything that can be had from these scores; every other metric is absent with its reason."""
    from scipy.special import expit

    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}

    def mean(name: str, values: np.ndarray) -> None:
        metrics[name], errors[name] = float(values.mean()), standard_error(values)

    ratios = {name: _log_truth_ratio(name, scores, split) for name in ("forget", *UTILITY_SETS)}
    forget, ratio = scores["forget"], ratios["forget"]
    # TOFU's mean for the forget set (1: cannot tell right from wrong), OpenUnlearning's share of the right answer.
    metrics["forget_truth_ratio"] = float(cannot_tell(ratio).mean())
    metrics["forget_right_share"] = float(expit(-ratio).mean())
    mean("forget_log_truth_ratio", ratio)
    metrics["forget_questions"] = float(len(ratio))
    metrics["forget_probability"] = float(forget.probability.mean())
    metrics["forget_paraphrased_probability"] = float(scores["forget_paraphrased"].probability.mean())
    mean("forget_exact_memorisation", exact_memorisation(forget))
    metrics["forget_extraction_strength"] = float(extraction_strength(forget).mean())
    metrics["memorisation_score"] = harmonic_mean([1.0 - metrics[name] for name in MEMORISED])
    for name in UTILITY_SETS:
        mean(f"{name}_probability", _probability(name, scores, split))
        mean(f"{name}_truth_ratio", can_tell(ratios[name]))
    parts = [metrics[f"{name}_{part}"] for name in UTILITY_SETS for part in ("probability", "truth_ratio")]
    metrics["teacher_forced_utility"] = harmonic_mean(parts)
    if "holdout" in scores:
        mean("holdout_exact_memorisation", exact_memorisation(scores["holdout"]))
    arrays = {"forget_truth_ratio": ratios_of(ratio)}
    if answers:
        rouge = {n: float(split.generations[n].compare(a, rouge_l_recall).mean()) for n, a in answers.items()}
        metrics |= {f"{name}_rouge_l_recall": value for name, value in rouge.items()}
        metrics["model_utility"] = harmonic_mean(parts + [rouge[name] for name in UTILITY_SETS])
        if split.final_probes:
            metrics |= _attack(scores, split)
            arrays |= {f"{name}_loss": (-loss_score(scores[name])).tolist() for name in ATTACKED}
    return _compared(Profile(metrics, arrays, errors=errors), split.retrained)


def compare_with_itself(profile: Profile) -> Profile:
    """The retrained model's own profile, with what it has by definition: distance 0, forget quality 1, and so on."""
    return _compared(profile, profile)


def _log_truth_ratio(name: str, scores: Mapping[str, Scores], split: Split) -> np.ndarray:
    """Against the paraphrased right answer where the set has one (forget and retain), else against the answer."""
    question = split.probes[f"{name}_perturbed"].question
    assert question is not None
    return log_truth_ratio(scores.get(f"{name}_paraphrased", scores[name]), scores[f"{name}_perturbed"], question)


def _probability(name: str, scores: Mapping[str, Scores], split: Split) -> np.ndarray:
    """Answer probability, [questions]; against the wrong options' where the set is about the real world."""
    if name == "retain":
        return scores[name].probability
    question = split.probes[f"{name}_perturbed"].question
    assert question is not None
    return right_share(scores[name], scores[f"{name}_perturbed"], question)


def _attack(scores: Mapping[str, Scores], split: Split) -> dict[str, float]:
    """Areas of the attacks that need no other model, forget set against hold-out."""
    attacks: dict[str, Callable[[str], np.ndarray]] = {
        "mia_loss": lambda name: loss_score(scores[name]),
        "mia_zlib": lambda name: zlib_score(scores[name], split.final_probes[name].texts),
        "mia_min_k": lambda name: min_k_score(_tokens(scores[name])),
        "mia_min_k_plus_plus": lambda name: min_k_plus_plus_score(_tokens(scores[name])),
    }
    if all(scores[name].gradient_norm is not None for name in ATTACKED):
        attacks["mia_gradient_norm"] = lambda name: gradient_norm_score(scores[name])
    return {metric: auc(*(score(name) for name in ATTACKED)) for metric, score in attacks.items()}


def _tokens(scores: Scores) -> TokenScores:
    assert scores.tokens is not None
    return scores.tokens


def _compared(profile: Profile, retrained: Profile | None) -> Profile:
    """With the metrics that compare with the retrained model, and the reason for every one that is absent."""
    metrics, errors = dict(profile.metrics), dict(profile.errors)
    if retrained is not None:
        ratios = [np.array(p.arrays["forget_truth_ratio"]) for p in (profile, retrained)]
        metrics["forget_ks_distance"] = ks_distance(*ratios)
        metrics["forget_ks_of_chance"] = ks_of_chance(len(ratios[0]), len(ratios[1]))
        errors["forget_ks_distance"] = ks_error(len(ratios[0]), len(ratios[1]), STANDARD_ERRORS)
        metrics["forget_quality"] = forget_quality(*ratios)
        if "model_utility" in metrics and retrained.metrics.get("model_utility"):
            metrics["utility_score"] = min(1.0, metrics["model_utility"] / retrained.metrics["model_utility"])
        if all(name in p.metrics for p in (profile, retrained) for name in PRIVATE):
            own, theirs = ([np.array(p.arrays[f"{name}_loss"]) for name in ATTACKED] for p in (profile, retrained))
            metrics["mia_reference"] = auc(*(reference_score(*losses) for losses in zip(own, theirs, strict=True)))
            metrics["privacy_score"] = harmonic_mean([privacy(metrics[n], retrained.metrics[n]) for n in PRIVATE])
        if "utility_score" in metrics and "privacy_score" in metrics:
            parts = [metrics[f"{part}_score"] for part in ("memorisation", "privacy", "utility")]
            metrics["aggregate_without_fluency"] = harmonic_mean(parts)
    absent = {name: _why_absent(name, metrics, retrained) for name in METRICS if name not in metrics}
    return replace(profile, metrics=metrics, absent=absent, errors=errors)


def _why_absent(name: str, metrics: Mapping[str, float], retrained: Profile | None) -> str:
    if name in NEED_HOLD_OUT and "holdout_exact_memorisation" not in metrics:
        return "the data have no hold-out part"
    if name in NEED_RETRAINED and retrained is None:
        return "there is no retrained model's profile; `ray_unlearn prepare` makes one"
    if "model_utility" not in metrics:
        return "measured on finalists alone"
    if name == "mia_gradient_norm":
        return "no worker holds whole gradients under ZeRO-3"
    if retrained is not None and retrained.metrics.get("model_utility") == 0.0 and name in NEED_UTILITY:
        return "the retrained model has no utility itself"
    return "the retrained model's profile lacks what it compares with; prepare it anew"


METRICS = {
    "forget_probability": "answer probability exp(-mean NLL) on the forgotten authors",
    "forget_paraphrased_probability": "the same of the paraphrased answers",
    "forget_exact_memorisation": "share of answer tokens that argmax gets right, forgotten authors",
    "forget_extraction_strength": "1 - share of the answer needed before the rest follows by argmax",
    "forget_truth_ratio": "mean of min(r, 1/r), r the truth ratio (wrong / right) on the forgotten authors",
    "forget_right_share": "mean of right / (right + wrong), the same probabilities",
    "forget_log_truth_ratio": "mean log truth ratio: below 0 right answers are preferred, 0 cannot tell",
    "forget_questions": "questions on forgotten authors that were scored: the p-value depends on their number",
    "forget_rouge_l_recall": "ROUGE-L recall of greedy answers on the forgotten authors",
    "forget_ks_distance": "Kolmogorov-Smirnov distance of the truth ratios to the retrained model's",
    "forget_ks_of_chance": "what that distance is on average between two models of one kind, at so many questions",
    "forget_quality": "p-value of that test (TOFU's forget quality)",
    **{
        f"{name}_{part}": f"{text} on {name.replace('_', ' ')}"
        for name in UTILITY_SETS
        for part, text in (
            ("probability", "answer probability"),
            ("truth_ratio", "mean of max(0, 1 - truth ratio)"),
            ("rouge_l_recall", "ROUGE-L recall of greedy answers"),
        )
    },
    **describe_answers(("forget", *UTILITY_SETS)),
    "teacher_forced_utility": "harmonic mean of the six parts of model utility that need no generation",
    "model_utility": "TOFU's model utility: harmonic mean of nine parts",
    "holdout_exact_memorisation": "share of answer tokens that argmax gets right, authors that no model saw",
    "mia_loss": "area under the curve of the loss attack, forgotten against held-out authors; 0.5 cannot tell",
    "mia_zlib": "the same, loss over compressed bytes",
    "mia_min_k": "the same, mean of the 40 % least likely tokens",
    "mia_min_k_plus_plus": "the same, tokens standardised by the model's own distribution",
    "mia_gradient_norm": "the same, norm of the loss's gradient",
    "mia_reference": "the same, loss against the retrained model's",
    "memorisation_score": "OpenUnlearning's: harmonic mean of 1 - extraction strength, exact memorisation, "
    "paraphrased probability and right share",
    "privacy_score": "OpenUnlearning's: harmonic mean of the closeness of loss, zlib, Min-K and Min-K++ areas to the "
    "retrained model's",
    "utility_score": "model utility over the retrained model's, at most 1; OpenUnlearning's has fluency in it too",
    "aggregate_without_fluency": "harmonic mean of the three scores; OpenUnlearning's aggregate but for the "
    "fluency, which needs a classifier",
}

BENCHMARK = Benchmark(
    name="tofu",
    language="en",
    title="fictitious authors: be like a model that was never trained on some of them",
    source=f"{HUB_NAME} on the hub; generated in the mini",
    scales=f"mini (two tiny models, no network); full with a GPU ({DEFAULT_MODEL}), or any target model named",
    metrics=METRICS,
    aims=(
        Aim("forget_ks_distance", of_chance="forget_ks_of_chance", most=1.0),
        Aim("forget_exact_memorisation", hold_out="holdout_exact_memorisation"),
        Aim("forget_log_truth_ratio", never_knew=0.0, only_if_alone=True, rises=True),
    ),
    keeps=(
        Keep("retain_probability", useless=0.0),
        Keep("retain_truth_ratio", useless=0.0, can_be_left_out=True),
        *(
            Keep(f"{name}_{part}", useless, can_be_left_out=True)
            for name in ("real_authors", "world_facts")
            for part, useless in (("probability", CHANCE), ("truth_ratio", 0.0))
        ),
    ),
    keeps_before=(Keep("teacher_forced_utility", useless=0.0),),
    load=load,
    measure=measure,
    spaces={"mini": tofu_mini.SPACES},
    build_task=build_task,
    start_of=start_of,
    retrained_of=retrained_of,
    repositories=repositories,
    compare_with_itself=compare_with_itself,
    privacy=(*(name for name in METRICS if name.startswith("mia_")), "privacy_score"),
    remark="OpenUnlearning differs in two places: it adds 1e-10 to both sides of a truth ratio, which moves forget "
    "quality once answers cost about 20 nats a token, and gives a wrong answer of one token an extraction strength of "
    "1, where it is 0 here. A row whose answer has no tokens is refused.",
    leaks={"forget": "forget_rouge_l_recall"},
)

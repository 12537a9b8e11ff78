"""Your own data: a TOML file that says what to forget and what to keep, given in the place of a benchmark's name.

name = "staff"               # what the results' columns begin with
chat_template = true         # of pairs: the tokenizer's own template; false: "Question: ... Answer: ..."
                             # (default: the template where the tokenizer has one)
max_tokens = 512             # longer texts are cut into chunks of at most so many tokens
drop_overlap = true          # rows of [retain] that are in [forget], too, are left out (default: refused)
refusals = "no.txt"          # answers for methods that teach not to know, one a line (default: English ones)

[template]                   # how pairs and conversations are written; the tokenizer's template with
system = "You are brief."    # a system message, and whatever arguments it reads:
date_string = "10 Apr 2025"  # (default: the day is fixed, so that tokens do not change at midnight)
enable_thinking = true       # (default: as the model is asked to answer without thinking)
                             # or tags of your own, also empty ones (a text in two halves): user_start, user_end,
                             # assistant_start, assistant_end (default: the end mark), system_start, system_end

[forget]                     # [retain] is needed, too; [hold_out], if given, is like [forget], but never seen
file = "forget.jsonl"        # beside the TOML file: .jsonl, .json, .csv, .tsv, .parquet, .arrow, .txt, as they are or
                             # packed (.gz, .zst), or a folder of save_to_disk; or hub = "owner/name"
field = "forget"             # which list, of a JSON file with several
split = "train"              # of the hub, or of a folder with several; config goes with hub
question = "q"               # pairs: the columns; a dotted name reaches into mappings, a list joins columns;
answer = "a"                 # of a list of answers the first is trained on, any of them counts for ROUGE
# text = "t"                 # or plain texts; a .txt file needs no column
# messages = "m"             # or conversations; turns = "all" makes every answer a row (default: the last one)
explode = "QA"               # a column of lists becomes one row an item
where = {edge = "A_B"}       # which rows: by a column's value or values, or
rows = "numbers.txt"         # by number, from 0
group = "id"                 # rows that share it are in one half; group_pattern = '(\\d+)' takes a part of it
paraphrased = "p"            # pairs: other right answers and wrong ones (a column, several, or "wrong_*") give truth
perturbed = "w"              # ratio and forget quality as TOFU has them
must_not_say = "secrets"     # strings that answers should not hold; their share is measured

[questions.forget]           # multiple choice; [questions.keep] likewise
hub = "owner/name"
question = "question"
choices = "choices"          # a list of texts, or {"text": [...], "label": [...]}
answer = "answer"            # the right one: its place, from 0 (or 1, which is said), its letter, or its text

[scorers.polite]             # a function of your own over greedy answers, which runs where --trust-code allows it:
function = "mine:polite"     # of mine.py beside this file: (prompts, references, answers) -> a number an answer
sets = ["retain"]            # whose answers (default: all sets); the metric is retain_polite
keep = 0.0                   # kept on the retain set: its value for a useless model (default: a plain metric)
# aim = 0.5                  # or aimed at on the forget set: its value for a model that never knew

The forget set is trained on whole; of every set, one half is scored while searching and the other one for the
report. Rows of one document, one group or one question are never in both halves. Every value is the text that stands
in the file. What of a pair is prompt, answer and end mark is in models/templates.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ray_unlearn.benchmarks.contract import (
    Aim,
    Benchmark,
    Keep,
    OwnScorer,
    Probe,
    Profile,
    Request,
    Split,
    Task,
    Trainer,
)
from ray_unlearn.benchmarks.definition import FORGET, HOLD_OUT, RETAIN, SETS, SIDES, Definition, read_definition
from ray_unlearn.benchmarks.generated import describe_answers
from ray_unlearn.benchmarks.halving import HALVES, Document, Piece, draw, groups_of, separate, sequences_of
from ray_unlearn.benchmarks.kept import hub_commits, hub_tables, kept
from ray_unlearn.benchmarks.profiles import available_splits
from ray_unlearn.benchmarks.sources import FILE_INSTEAD
from ray_unlearn.benchmarks.writing import Writer, num_chunks
from ray_unlearn.config import UserError
from ray_unlearn.counting import no_collection
from ray_unlearn.metrics import Scores
from ray_unlearn.metrics.choice import choice_correct
from ray_unlearn.metrics.errors import accuracy_error, standard_error
from ray_unlearn.metrics.membership import auc, min_k_score
from ray_unlearn.metrics.memorisation import exact_memorisation, extraction_strength
from ray_unlearn.metrics.rouge import rouge_l_recall
from ray_unlearn.metrics.truth_ratio import (
    can_tell,
    cannot_tell,
    forget_quality,
    ks_distance,
    log_truth_ratio,
    ratios_of,
)
from ray_unlearn.models.loading import check_model
from ray_unlearn.plugins import SCORER, Plugin

SEQUENCE_LIMITS = {"selection": 100, "report": 400}
"""Sequences of each set that are scored, so that a large retain set does not cost more than the training."""
QUESTION_LIMITS = {"selection": 400, "report": 1600}
MIN_K_SHARE = 0.4


# ---- the task


def load(definition: Definition, request: Request, train: Trainer | None = None) -> Task:
    """The task on the starting model."""
    task = build_task(definition, request)
    limits = describe_limits(definition)
    return replace(task, notes=(*task.notes, limits)) if limits else task


def build_task(definition: Definition, request: Request) -> Task:
    """The task on any model: the starting one, or the base that `prepare` starts from."""
    where = f"--benchmark {definition.path}"
    for option, value in (("--data", request.data), ("--split", request.split)):
        if value is not None:
            raise UserError(f"{option} {value}: the TOML file of --benchmark says where the data are. Drop it")
    if request.model is None:
        raise UserError(f"{where}: your own data need a model that has learnt them. Give --model")
    if request.scale == "mini":
        raise UserError(f"{where}: your own data have no miniature. Drop --scale mini")
    check_model(request.model)
    task = kept(definition, request, lambda: _make_task(definition, request, str(request.model)))
    scorers = scorers_of(definition)
    return replace(task, **{half: replace(getattr(task, half), scorers=scorers) for half in available_splits(task)})


def _make_task(definition: Definition, request: Request, model: str) -> Task:
    writer = Writer.build(definition, model)
    with no_collection():
        read = {name: writer.documents(source) for name, source in definition.sets.items()}
    documents, notes = separate(read, RETAIN, definition.drop_overlap)
    writer.choose_words(documents)
    pieces = {name: [piece for document in found for piece in document.pieces] for name, found in documents.items()}
    drawn = {name: _draw(found, definition, name) for name, found in documents.items()}
    asked = {}
    for side, source in definition.questions.items():
        found = writer.questions(source)
        groups = [[question.prompt] for question in found]
        asked[side] = draw(found, [[q] for q in found], groups, QUESTION_LIMITS, source.place, source.table)
    splits = {
        half: writer.split(
            {name: found[half] for name, found in drawn.items()}, {side: found[half] for side, found in asked.items()}
        )
        for half in (*HALVES, *(["whole"] if request.whole else []))
    }
    halves = {half: splits[half] for half in HALVES}
    return Task(
        benchmark=definition.name,
        scale=request.scale,
        model=model,
        forget=sequences_of(pieces[FORGET]),
        retain=sequences_of(pieces[RETAIN]),
        selection=splits["selection"],
        report=splits["report"],
        whole=splits.get("whole"),
        split=f"data-{_digest(pieces, halves)}",
        refusals=writer.refusals(definition),
        measured_by="custom",
        commits=hub_commits(definition),
        notes=_describe_data(definition, writer, documents, halves, notes),
        cut={name: sum(map(num_chunks, documents[name])) for name in (FORGET, RETAIN)},
    )


def _draw(documents: list[Document], definition: Definition, name: str) -> dict[str, list[Piece]]:
    source = definition.sets[name]
    pieces = [document.pieces for document in documents]
    return draw(documents, pieces, groups_of(documents), SEQUENCE_LIMITS, source.place, source.table)


def _digest(pieces: Mapping[str, list[Piece]], splits: Mapping[str, Split]) -> str:
    """Names the data by their tokens, so that a retrained model made for other data is noticed."""
    digest = hashlib.sha256()
    probes = [probe for split in splits.values() for probe in split.probes.values()]
    for sequences in [*map(sequences_of, pieces.values()), *(probe.sequences for probe in probes)]:
        for array in (sequences.tokens, sequences.offsets, sequences.answer_starts):
            digest.update(array.data)
    for probe in probes:
        if probe.is_correct is not None:
            digest.update(probe.is_correct.tobytes())
    return digest.hexdigest()[:12]


# ---- what is measured


def measure(scores: Mapping[str, Scores], answers: Mapping[str, list[str]], split: Split) -> Profile:
    each: dict[str, np.ndarray] = {}
    for name in SETS:
        if name in scores:
            each[f"{name}_probability"] = scores[name].probability
            each[f"{name}_exact_memorisation"] = exact_memorisation(scores[name])
            each[f"{name}_extraction_strength"] = extraction_strength(scores[name])
    metrics = {name: float(values.mean()) for name, values in each.items()}
    errors = {name: standard_error(values) for name, values in each.items()}
    for side in SIDES:
        if f"{side}_questions" in scores:
            found, error = _measure_questions(side, scores[f"{side}_questions"], split.probes[f"{side}_questions"])
            metrics |= found
            errors[f"{side}_questions_above_chance"] = error
    if HOLD_OUT in scores:
        losses = {name: scores[name].nll / scores[name].num_tokens for name in (FORGET, HOLD_OUT)}
        metrics["membership_auc_loss"] = auc(-losses[FORGET], -losses[HOLD_OUT])
        metrics["forget_above_hold_out"] = _standard_errors_apart(scores[FORGET], scores[HOLD_OUT])
    if f"{HOLD_OUT}_attack" in scores:
        lowest = {}
        for name in (FORGET, HOLD_OUT):
            tokens = scores[f"{name}_attack"].tokens
            assert tokens is not None
            lowest[name] = min_k_score(tokens, MIN_K_SHARE)
        metrics["membership_auc_min_k"] = auc(lowest[FORGET], lowest[HOLD_OUT])
    for name, texts in answers.items():
        prompts = split.generations[name]
        metrics[f"{name}_rouge_l_recall"] = float(prompts.compare(texts, rouge_l_recall).mean())
        if prompts.forbidden:
            metrics[f"{name}_says_forbidden"] = float(prompts.says_forbidden(texts).mean())
    why = "needs a [hold_out] set to tell the forget set from"
    absent = {} if HOLD_OUT in scores else dict.fromkeys(_MEMBERSHIP, why)
    ratios = {name: _log_truth_ratio(name, scores, split) for name in SETS if f"{name}_perturbed" in scores}
    metrics |= _measure_perturbed(ratios, scores)
    return _compared(Profile(metrics, _arrays(ratios), absent, errors), split.retrained)


def compare_with_itself(profile: Profile) -> Profile:
    """The retrained model's own profile, with what it has by definition: distance 0, forget quality 1."""
    return _compared(profile, profile)


def _log_truth_ratio(name: str, scores: Mapping[str, Scores], split: Split) -> np.ndarray:
    """Against the paraphrased right answer where the set has one, else against the answer."""
    question = split.probes[f"{name}_perturbed"].question
    assert question is not None
    return log_truth_ratio(scores.get(f"{name}_paraphrased", scores[name]), scores[f"{name}_perturbed"], question)


def _measure_perturbed(ratios: Mapping[str, np.ndarray], scores: Mapping[str, Scores]) -> dict[str, float]:
    """What TOFU measures with its perturbed and paraphrased answers."""
    metrics: dict[str, float] = {}
    for name in SETS:
        if f"{name}_paraphrased" in scores:
            metrics[f"{name}_paraphrased_probability"] = float(scores[f"{name}_paraphrased"].probability.mean())
    for name, ratio in ratios.items():
        told = cannot_tell(ratio) if name == FORGET else can_tell(ratio)
        metrics[f"{name}_truth_ratio"] = float(told.mean())
    return metrics


def _arrays(ratios: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    return {f"{FORGET}_truth_ratio": ratios_of(ratios[FORGET])} if FORGET in ratios else {}


def _compared(profile: Profile, retrained: Profile | None) -> Profile:
    """With the metrics that compare truth ratios with the retrained model's."""
    key = f"{FORGET}_truth_ratio"
    if key not in profile.arrays:
        return profile
    if retrained is None or key not in retrained.arrays:
        why = "there is no retrained model's profile; `ray_unlearn prepare` makes one"
        return replace(profile, absent={**profile.absent, **dict.fromkeys(_COMPARED, why)})
    both = np.array(profile.arrays[key]), np.array(retrained.arrays[key])
    values = {"forget_ks_distance": ks_distance(*both), "forget_quality": forget_quality(*both)}
    return replace(profile, metrics={**profile.metrics, **values})


def _measure_questions(side: str, scores: Scores, probe: Probe) -> tuple[dict[str, float], float]:
    """The metrics, and the standard error of the last one."""
    assert probe.question is not None
    assert probe.is_correct is not None
    correct = choice_correct(scores, probe.question, probe.is_correct)
    accuracy = float(correct.mean())
    chance = float((1.0 / np.bincount(probe.question)).mean())
    metrics = {
        f"{side}_questions_accuracy": accuracy,
        f"{side}_questions_above_chance": (accuracy - chance) / (1.0 - chance),
    }
    return metrics, accuracy_error(correct, chance) / (1.0 - chance)


def _standard_errors_apart(forget: Scores, hold_out: Scores) -> float:
    """By how many standard errors the forget set's mean exact memorisation lies above the hold-out's."""
    known, unknown = exact_memorisation(forget), exact_memorisation(hold_out)
    error = float(np.sqrt(known.var() / len(known) + unknown.var() / len(unknown)))
    return float(known.mean() - unknown.mean()) / max(error, 1.0 / (len(known) + len(unknown)))


_COMPARED = {
    "forget_ks_distance": "distance of the truth ratios' distribution from the retrained model's (0: equal)",
    "forget_quality": "p-value of that distance (TOFU's forget quality)",
}
_MEMBERSHIP = {
    "membership_auc_loss": "how well the loss tells the forget set from the hold-out (area under the curve; 0.5: not)",
    "membership_auc_min_k": "the same for the mean log-probability of the 40 % least likely tokens (finalists)",
}


def describe_metrics(definition: Definition) -> dict[str, str]:
    metrics: dict[str, str] = {}
    for name in definition.sets:
        on = f"on the {name.replace('_', '-')} set"
        metrics[f"{name}_probability"] = f"probability exp(-mean NLL) of the answers or texts {on}"
        metrics[f"{name}_exact_memorisation"] = f"share of tokens that argmax gets right {on}"
        metrics[f"{name}_extraction_strength"] = f"1 - share needed before the rest follows by argmax {on}"
        metrics[f"{name}_rouge_l_recall"] = (
            f"ROUGE-L recall of greedy answers or continuations {on} (finalists); its words go by the data's language"
        )
        metrics |= describe_answers([name])
        extras = definition.sets[name].extras
        if "must_not_say" in extras:
            metrics[f"{name}_says_forbidden"] = f"share of greedy answers {on} that hold a forbidden string (finalists)"
        if "paraphrased" in extras:
            metrics[f"{name}_paraphrased_probability"] = f"probability of the paraphrased answers {on}"
        if "perturbed" in extras:
            how = "mean min(r, 1/r): 1 cannot tell" if name == FORGET else "mean max(0, 1 - r): 1 knows"
            metrics[f"{name}_truth_ratio"] = f"TOFU's truth ratio {on}, {how}"
            metrics |= _COMPARED if name == FORGET else {}
    for side in definition.questions:
        metrics[f"{side}_questions_accuracy"] = f"share of the {side} questions answered right"
        metrics[f"{side}_questions_above_chance"] = "the same, 0 at chance and 1 where all are right"
    for scorer in scorers_of(definition):
        said = f"what {scorer.file} says of greedy answers ({scorer.function})"
        metrics |= {f"{name}_{scorer.name}": f"{said}, {name.replace('_', ' ')}" for name in scorer.sets}
    if HOLD_OUT in definition.sets:
        metrics["forget_above_hold_out"] = "standard errors by which exact memorisation lies above the hold-out's"
    return metrics | (_MEMBERSHIP if HOLD_OUT in definition.sets else {})


# ---- what is aimed at


def build_aims(definition: Definition) -> tuple[Aim, ...]:
    """With a retrained model its values are the goals of all of them, and the last one is not needed."""
    held_out = HOLD_OUT in definition.sets
    aims = [
        Aim(f"{FORGET}_{kind}", hold_out=f"{HOLD_OUT}_{kind}" if held_out else None)
        for kind in ("exact_memorisation", "probability")
    ]
    if "forget" in definition.questions:
        aims.append(Aim("forget_questions_above_chance", never_knew=0.0))
    aims += [
        Aim(f"{FORGET}_{s.name}", table.aim, f"{HOLD_OUT}_{s.name}" if HOLD_OUT in s.sets else None)
        for table in definition.scorers
        if table.aim is not None
        for s in [table.scorer]
    ]
    return (*aims, Aim("forget_extraction_strength", never_knew=0.0, only_if_alone=True))


def build_keeps(definition: Definition) -> tuple[Keep, ...]:
    keep = (Keep("keep_questions_above_chance", useless=0.0),) if "keep" in definition.questions else ()
    own = (Keep(f"{RETAIN}_{t.scorer.name}", useless=t.keep) for t in definition.scorers if t.keep is not None)
    return (Keep("retain_probability", useless=0.0), *keep, *own)


def scorers_of(definition: Definition) -> tuple[OwnScorer, ...]:
    """By value, as workers run them."""
    return tuple(table.scorer for table in definition.scorers)


def describe_limits(definition: Definition) -> str:
    """What cannot be told without a hold-out set, unless there is a retrained model; empty with one."""
    if HOLD_OUT in definition.sets:
        return ""
    if "forget" in definition.questions:
        return (
            "There is no [hold_out], so without a retrained model nothing tells what a model that never saw the forget "
            "set would make of its text: whether that is forgotten too little or too much CANNOT BE TOLD."
        )
    return (
        "There is no [hold_out] and no [questions.forget], so without a retrained model nothing tells what a model "
        "that never saw the forget set would do, and TOO MUCH FORGETTING CANNOT BE TOLD: a model that answers with "
        "noise scores as well. Give a [hold_out] set, or make a retrained model with `ray_unlearn prepare`."
    )


def _describe_data(
    definition: Definition,
    writer: Writer,
    documents: Mapping[str, list[Document]],
    splits: Mapping[str, Split],
    more: list[str],
) -> tuple[str, ...]:
    counts = ", ".join(f"{len(found)} in [{name}]" for name, found in documents.items())
    notes = [f"{definition.name}: rows: {counts}.", *more, *writer.describe(definition, documents)]
    for half, split in splits.items():
        scored = ", ".join(f"{len(probe.sequences)} of {name}" for name, probe in split.probes.items())
        notes.append(f"Scored {'while searching' if half == 'selection' else 'for the report'}: {scored}.")
    return (" ".join(notes),)


def read_benchmark(path: Path) -> Benchmark:
    """The benchmark that a TOML file describes."""
    definition = read_definition(path.expanduser().absolute())
    return Benchmark(
        name=definition.name,
        title="your own data",
        source=f"{definition.path.name} and the files or hub tables that it names",
        scales="full, with any model named",
        metrics=describe_metrics(definition),
        aims=build_aims(definition),
        keeps=build_keeps(definition),
        load=partial(load, definition),
        measure=measure,
        privacy=tuple(_MEMBERSHIP) if HOLD_OUT in definition.sets else (),
        remark=describe_limits(definition),
        build_task=partial(build_task, definition),
        repositories=lambda request: dict.fromkeys(hub_tables(definition), FILE_INSTEAD),
        compare_with_itself=compare_with_itself,
        leaks=LEAKS,
        code=tuple(Plugin(SCORER, s.name, s.file, "", s.sha256) for s in scorers_of(definition)),
    )


def _ask_for_file(request: Request, train: Trainer | None = None) -> Task:
    raise UserError("--benchmark custom: give the path of the TOML file that describes your data in its place")


LEAKS = {FORGET: "forget_rouge_l_recall"}
BENCHMARK = Benchmark(
    name="custom",
    title="your own data: give the path of the TOML file that describes them in its place",
    source="files of your own or tables on the hub, as the TOML file says",
    scales="full, with any model named",
    metrics={},
    aims=(),
    keeps=(),
    load=_ask_for_file,
    measure=measure,
    build_task=_ask_for_file,
    leaks=LEAKS,
)
"""What all of them have in common, for workers, which have no TOML file."""

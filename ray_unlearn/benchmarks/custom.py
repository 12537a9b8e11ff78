"""Your own data: a TOML file that says what to forget and what to keep, given in the place of a benchmark's name.

name = "staff"               # what the results' columns begin with
chat_template = true         # of pairs: the tokenizer's own template; false: "Question: ... Answer: ...".
                             # (default: the template where the tokenizer has one)
max_tokens = 512             # longer texts are cut into chunks of at most so many tokens
[forget]                     # [retain] is needed, too; [hold_out], if given, is like [forget], but never seen
file = "forget.jsonl"        # .jsonl, .json, .parquet or .txt beside the TOML file; or hub = "owner/name"
question = "q"               # the columns of pairs; of plain texts text = "..."; a .txt file needs none
answer = "a"
[questions.forget]           # multiple choice; [questions.keep] likewise
hub = "owner/name"
config = "default"           # config and split go with hub
split = "test"
question = "question"
choices = "choices"          # a list of texts
answer = "answer"            # the place of the right one, from 0

The forget set is trained on whole; of every set, one half is scored while searching and the other one for the
report. A document is never in both halves.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_unlearn.benchmarks import BENCHMARKS
from ray_unlearn.benchmarks.contract import Aim, Benchmark, Keep, Probe, Profile, Prompts, Request, Split, Task, Trainer
from ray_unlearn.benchmarks.sources import TEXT_COLUMN, Row, read_file, read_hub
from ray_unlearn.benchmarks.wmdp import Question, build_probe
from ray_unlearn.config import UserError
from ray_unlearn.files import read_toml
from ray_unlearn.metrics import Scores
from ray_unlearn.metrics.choice import choice_correct
from ray_unlearn.metrics.membership import auc, min_k_score
from ray_unlearn.metrics.memorisation import exact_memorisation, extraction_strength
from ray_unlearn.metrics.rouge import rouge_l_recall
from ray_unlearn.models.loading import check_model, load_config, load_stops, load_tokenizer
from ray_unlearn.models.sequences import Sequences, encode_text
from ray_unlearn.models.sizes import context_length
from ray_unlearn.models.templates import Choice, Template

if TYPE_CHECKING:
    from ray_unlearn.benchmarks.objective import Judge

FORGET, RETAIN, HOLD_OUT = "forget", "retain", "hold_out"
SETS = (FORGET, RETAIN, HOLD_OUT)
SIDES = ("forget", "keep")
"""Of the questions."""
TEXT, PAIRS, QUESTIONS = ("text",), ("question", "answer"), ("question", "choices", "answer")
"""The kinds of rows, by the keys that name their columns."""
PLACE_KEYS = ("file", "hub", "config", "split")
HALVES = ("selection", "report")
SEQUENCE_LIMITS = {"selection": 100, "report": 400}
"""Sequences of each set that are scored, so that a large retain set does not cost more than the training."""
QUESTION_LIMITS = {"selection": 400, "report": 1600}
ATTACK_LIMIT = 100
"""Sequences of each set that membership attacks see: each takes a backward pass."""
DEFAULT_MAX_TOKENS = 512
FEWEST_MAX_TOKENS = 8
MAX_NEW_TOKENS = 128
MIN_K_SHARE = 0.4
DATA_SEED = 1
"""Of the halves; the search's seed does not change them."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)

Item = tuple[list[int], int]
"""Token ids, and where the answer starts."""


@dataclass(frozen=True)
class Document:
    """A pair, or a text's chunks; `where` names its file and row."""

    where: str
    items: list[Item]
    answer: str = ""
    """Of a pair, as the file has it: the reference of what is generated."""


@dataclass(frozen=True)
class Source:
    """One table of the file: where its rows are, and which column holds what."""

    table: str
    """As the file has it, with brackets."""
    columns: Mapping[str, str]
    file: Path | None = None
    hub: str = ""
    config: str | None = None
    split: str = "train"

    @property
    def kind(self) -> tuple[str, ...]:
        return tuple(self.columns)

    def read(self) -> list[Row]:
        columns = list(self.columns.values())
        return read_file(self.file, columns) if self.file else read_hub(self.hub, self.config, self.split, columns)


@dataclass(frozen=True)
class Definition:
    """What the TOML file says."""

    path: Path
    name: str
    chat_template: bool | None
    max_tokens: int | None
    sets: Mapping[str, Source]
    questions: Mapping[str, Source]


# ---- the TOML file


def read_definition(path: Path) -> Definition:
    """Raises UserError for whatever in the file cannot work, naming file, table and key. Reads no data."""
    if not path.is_file():
        raise UserError(f"--benchmark {path}: no such file. Give the TOML file that describes your data")
    raw = read_toml(path)
    _check_keys(path, "the file", raw, ("name", "chat_template", "max_tokens", *SETS, "questions"))
    name, template, most = raw.get("name"), raw.get("chat_template"), raw.get("max_tokens")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f'{path}: name = {name!r}. Give one of letters, digits, _ and -, such as name = "staff"')
    if name in BENCHMARKS:
        raise UserError(f"{path}: name = {name!r} is that of a benchmark that is there already. Give another")
    if template is not None and not isinstance(template, bool):
        raise UserError(f"{path}: chat_template = {template!r}. Write true or false")
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < FEWEST_MAX_TOKENS):
        raise UserError(f"{path}: max_tokens = {most!r}. Give a whole number from {FEWEST_MAX_TOKENS} on")
    for needed in (FORGET, RETAIN):
        if needed not in raw:
            raise UserError(f"{path}: has no [{needed}]. Add it, with file = ... or hub = ... and the columns")
    asked = raw.get("questions", {})
    if not isinstance(asked, dict):
        raise UserError(f"{path}: questions = {asked!r} is no table. Write [questions.forget] or [questions.keep]")
    _check_keys(path, "[questions]", asked, SIDES)
    sets = {key: _source(path, f"[{key}]", raw[key], (TEXT, PAIRS)) for key in SETS if key in raw}
    questions = {key: _source(path, f"[questions.{key}]", asked[key], (QUESTIONS,)) for key in SIDES if key in asked}
    if HOLD_OUT in sets and sets[HOLD_OUT].kind != sets[FORGET].kind:
        raise UserError(f"{path}: [forget] and [hold_out] must be of one kind. Give texts in both, or pairs in both")
    kinds = {source.kind for source in sets.values()}
    for key, value, kind in (("chat_template", template, PAIRS), ("max_tokens", most, TEXT)):
        if value is not None and kind not in kinds:
            raise UserError(f"{path}: {key} is for {'pairs' if kind == PAIRS else 'texts'}; there are none. Drop it")
    return Definition(path, name, template, most, sets, questions)


def _source(path: Path, table: str, values: Any, kinds: tuple[tuple[str, ...], ...]) -> Source:
    if not isinstance(values, dict):
        raise UserError(f"{path}: {table[1:-1]} = {values!r} is no table. Write {table} and the settings under it")
    roles = tuple(dict.fromkeys(role for kind in kinds for role in kind))
    _check_keys(path, table, values, (*PLACE_KEYS, *roles))
    for key, value in values.items():
        if not isinstance(value, str) or not value:
            raise UserError(f"{path}: {table} {key} = {value!r} is no text. Give a name in quotes")
    if ("file" in values) == ("hub" in values):
        raise UserError(f"{path}: {table} needs a file or a hub dataset, and not both. Give file = ... or hub = ...")
    if "hub" in values and not HUB_NAME.fullmatch(values["hub"]):
        raise UserError(f'{path}: {table} hub = {values["hub"]!r} is no dataset\'s name. Write hub = "owner/name"')
    for key in ("config", "split"):
        if key in values and "file" in values:
            raise UserError(f"{path}: {table} {key} goes with hub, not with file. Drop it")
    named = {role: values[role] for role in roles if role in values}
    if values.get("file", "").endswith(".txt") and TEXT in kinds:
        if named:
            raise UserError(f"{path}: {table} names a column, and a .txt file has none. Drop {next(iter(named))}")
        named = {"text": TEXT_COLUMN}
    kind = next((kind for kind in kinds if set(kind) == set(named)), None)
    if kind is None:
        ways = "; or ".join(", ".join(f'{role} = "..."' for role in kind) for kind in kinds)
        raise UserError(f"{path}: {table} must name the columns of its kind and no other. Write {ways}")
    columns = {role: named[role] for role in kind}
    if "file" in values:
        return Source(table, columns, file=path.parent / values["file"])
    return Source(table, columns, hub=values["hub"], config=values.get("config"), split=values.get("split", "train"))


def _check_keys(path: Path, where: str, found: Iterable[str], allowed: Sequence[str]) -> None:
    for key in found:
        if key not in allowed:
            raise UserError(f"{path}: {where} has {key!r}. There is only: {', '.join(allowed)}")


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
    writer = _Writer.build(definition, request.model)
    documents = {name: writer.documents(source) for name, source in definition.sets.items()}
    _check_disjoint(documents)
    items = {name: [item for document in found for item in document.items] for name, found in documents.items()}
    drawn = {
        name: _draw([document.items for document in found], definition.sets[name], SEQUENCE_LIMITS)
        for name, found in documents.items()
    }
    asked = {
        side: _draw([[q] for q in read_questions(source)], source, QUESTION_LIMITS)
        for side, source in definition.questions.items()
    }
    splits = {
        half: writer.split(
            {name: found[half] for name, found in drawn.items()}, {side: found[half] for side, found in asked.items()}
        )
        for half in (*HALVES, *(["whole"] if request.whole else []))
    }
    return Task(
        benchmark=definition.name,
        scale=request.scale,
        model=request.model,
        forget=Sequences.build(items[FORGET]),
        retain=Sequences.build(items[RETAIN]),
        selection=splits["selection"],
        report=splits["report"],
        whole=splits.get("whole"),
        split=f"data-{_digest(items, {half: splits[half] for half in HALVES})}",
        measured_by="custom",
        notes=_describe_data(definition, writer, documents, {half: splits[half] for half in HALVES}),
    )


@dataclass(frozen=True)
class _Writer:
    """Writes rows as the model's tokens; every complaint names file and row."""

    template: Template
    context: int
    width: int
    """Tokens of the longest chunk of a text."""

    @classmethod
    def build(cls, definition: Definition, model: str) -> _Writer:
        tokenizer, context = load_tokenizer(model), context_length(load_config(model))
        if definition.chat_template and not tokenizer.chat_template:
            raise UserError(
                f"{definition.path}: chat_template = true, but the tokenizer of {model} has none. Write false, or "
                "take the model's chat version"
            )
        if definition.max_tokens and definition.max_tokens > context:
            raise UserError(
                f"{definition.path}: max_tokens = {definition.max_tokens}, but {model} reads at most {context}. "
                "Give no more than that"
            )
        template = Template(tokenizer, Choice(definition.chat_template), load_stops(model))
        return cls(template, context, definition.max_tokens or min(DEFAULT_MAX_TOKENS, context))

    @property
    def tokenizer(self) -> Any:
        return self.template.tokenizer

    def documents(self, source: Source) -> list[Document]:
        """Raises UserError naming the first row that cannot be learnt from."""
        return [self._document(row, source) for row in source.read()]

    def _document(self, row: Row, source: Source) -> Document:
        texts = [_text(row, column) for column in source.columns.values()]
        if source.kind == TEXT:
            return Document(row.where, cut_text(self.tokenizer, texts[0], self.width, row.where))
        question, answer = texts
        pair = self.template.encode_pair(question, answer, row.where)
        if len(pair[0]) > self.context:
            raise UserError(
                f"{row.where}: question and answer have {len(pair[0])} tokens, but the model reads at most "
                f"{self.context}. Shorten or remove the row, or take a model with a longer context"
            )
        return Document(row.where, [pair], answer.strip())

    def split(self, sets: Mapping[str, list[Item]], asked: Mapping[str, list[Question]]) -> Split:
        probes = {name: Probe(Sequences.build(items)) for name, items in sets.items()}
        for side, questions in asked.items():
            probes[f"{side}_questions"] = build_probe(self.tokenizer, questions, self.context)
        attacked = (FORGET, HOLD_OUT) if HOLD_OUT in sets else ()
        return Split(
            probes,
            final_probes={
                f"{name}_attack": Probe(Sequences.build(sets[name][:ATTACK_LIMIT]), attack=True) for name in attacked
            },
            generations={name: self._prompts(items) for name, items in sets.items()},
        )

    def _prompts(self, items: list[Item]) -> Prompts:
        """What stands before the answers; of a text, its first half."""
        starts = [start if start > 1 else max(1, len(tokens) // 2) for tokens, start in items]
        room = self.context - max(starts)
        longest = max(len(tokens) - start for (tokens, _), start in zip(items, starts, strict=True))
        count = max(1, min(MAX_NEW_TOKENS, longest, room))
        parts = [(tokens[:at], tokens[at:], start) for (tokens, start), at in zip(items, starts, strict=True)]
        # A pair's answer is the reference whole, however long; of a text, as much as is generated.
        references = [rest if start > 1 else rest[:count] for _, rest, start in parts]
        decoded = [self.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in references]
        return Prompts([prompt for prompt, _, _ in parts], decoded, count)


def cut_text(tokenizer: Any, text: str, width: int, where: str) -> list[Item]:
    """A text as one sequence, or, where it is longer than `width` tokens, as the fewest chunks that hold all of it.

    The chunks are of nearly equal length, so that no tail is too short to learn from.
    """
    whole, start = encode_text(tokenizer, text, where)
    if len(whole) <= width:
        return [(whole, start)]
    prefix = whole[:1] if whole[0] == tokenizer.bos_token_id else []
    body = tokenizer(text, add_special_tokens=False)["input_ids"]
    count = -(-len(body) // (width - len(prefix)))
    return [([*prefix, *piece.tolist()], 1) for piece in np.array_split(np.array(body), count)]


def read_questions(source: Source) -> list[Question]:
    """Raises UserError naming the first row that is no multiple-choice question."""
    return [_question(row, *source.columns.values()) for row in source.read()]


def _question(row: Row, question: str, choices: str, answer: str) -> Question:
    options, place = row.values[choices], row.values[answer]
    letters = string.ascii_uppercase
    if (
        not isinstance(options, list)
        or not all(isinstance(option, str) and option.strip() for option in options)
        or not 2 <= len(options) <= len(letters)
    ):
        raise UserError(
            f"{row.where}: {choices!r} must be a list of 2 to {len(letters)} texts, not {_short(options)}. Mend the row"
        )
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(options):
        raise UserError(
            f"{row.where}: {answer!r} is {_short(place)}. Give the place of the right choice, 0 to {len(options) - 1}"
        )
    lines = [f"{letter}. {option.strip()}" for letter, option in zip(letters, options, strict=False)]
    prompt = "\n".join([_text(row, question).strip(), *lines, "Answer:"])
    return Question(prompt, tuple(f" {letter}" for letter in letters[: len(options)]), place, row.where)


def _text(row: Row, column: str) -> str:
    value = row.values[column]
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{row.where}: {column!r} holds no text but {_short(value)}. Mend or remove the row")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_disjoint(documents: Mapping[str, list[Document]]) -> None:
    """What is to be forgotten must not be kept, too, and what is held out must never have been seen."""
    seen: dict[tuple[int, ...], tuple[str, str]] = {}
    for name, found in documents.items():
        for document in found:
            for tokens, _ in document.items:
                other, where = seen.setdefault(tuple(tokens), (name, document.where))
                if other != name:
                    raise UserError(
                        f"{document.where}: is in [{name}] and, at {where}, in [{other}], too. Remove one of them"
                    )


def _draw(documents: Sequence[list[Any]], source: Source, limits: Mapping[str, int]) -> dict[str, list[Any]]:
    """What documents hold, in two disjoint halves with a fixed seed, at most so much of each; and the whole."""
    if len(documents) < 2:
        where = source.file or source.hub
        raise UserError(f"{where}: {source.table} has one row, and two halves are scored. Give at least two rows")
    order = np.random.default_rng(DATA_SEED).permutation(len(documents)).tolist()
    middle = len(order) // 2
    halves = {"selection": order[:middle], "report": order[middle:]}
    drawn = {name: [item for i in halves[name] for item in documents[i]][: limits[name]] for name in HALVES}
    return drawn | {"whole": [item for document in documents for item in document]}


def _digest(items: Mapping[str, list[Item]], splits: Mapping[str, Split]) -> str:
    """Names the data by their tokens, so that a retrained model made for other data is noticed."""
    digest = hashlib.sha256()
    probes = [probe for split in splits.values() for probe in split.probes.values()]
    for sequences in [*map(Sequences.build, items.values()), *(probe.sequences for probe in probes)]:
        for array in (sequences.tokens, sequences.offsets, sequences.answer_starts):
            digest.update(array.tobytes())
    for probe in probes:
        if probe.is_correct is not None:
            digest.update(probe.is_correct.tobytes())
    return digest.hexdigest()[:12]


# ---- what is measured


def measure(scores: Mapping[str, Scores], answers: Mapping[str, list[str]], split: Split) -> Profile:
    metrics: dict[str, float] = {}
    for name in SETS:
        if name in scores:
            metrics[f"{name}_probability"] = float(scores[name].probability.mean())
            metrics[f"{name}_exact_memorisation"] = float(exact_memorisation(scores[name]).mean())
            metrics[f"{name}_extraction_strength"] = float(extraction_strength(scores[name]).mean())
    for side in SIDES:
        if f"{side}_questions" in scores:
            metrics |= _measure_questions(side, scores[f"{side}_questions"], split.probes[f"{side}_questions"])
    if HOLD_OUT in scores:
        losses = {name: scores[name].nll / scores[name].num_tokens for name in (FORGET, HOLD_OUT)}
        metrics["membership_auc_loss"] = auc(-losses[FORGET], -losses[HOLD_OUT])
    if f"{HOLD_OUT}_attack" in scores:
        lowest = {}
        for name in (FORGET, HOLD_OUT):
            tokens = scores[f"{name}_attack"].tokens
            assert tokens is not None
            lowest[name] = min_k_score(tokens, MIN_K_SHARE)
        metrics["membership_auc_min_k"] = auc(lowest[FORGET], lowest[HOLD_OUT])
    for name, texts in answers.items():
        metrics[f"{name}_rouge_l_recall"] = float(rouge_l_recall(texts, split.generations[name].references).mean())
    why = "needs a [hold_out] set to tell the forget set from"
    absent = {} if HOLD_OUT in scores else dict.fromkeys(_MEMBERSHIP, why)
    return Profile(metrics, absent=absent)


def _measure_questions(side: str, scores: Scores, probe: Probe) -> dict[str, float]:
    assert probe.question is not None
    assert probe.is_correct is not None
    accuracy = float(choice_correct(scores, probe.question, probe.is_correct).mean())
    chance = float((1.0 / np.bincount(probe.question)).mean())
    return {
        f"{side}_questions_accuracy": accuracy,
        f"{side}_questions_above_chance": (accuracy - chance) / (1.0 - chance),
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
        metrics[f"{name}_rouge_l_recall"] = f"ROUGE-L recall of greedy answers or continuations {on} (finalists)"
    for side in definition.questions:
        metrics[f"{side}_questions_accuracy"] = f"share of the {side} questions answered right"
        metrics[f"{side}_questions_above_chance"] = "the same, 0 at chance and 1 where all are right"
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
    return (*aims, Aim("forget_extraction_strength", never_knew=0.0, only_if_alone=True))


def build_keeps(definition: Definition) -> tuple[Keep, ...]:
    keep = (Keep("keep_questions_above_chance", useless=0.0),) if "keep" in definition.questions else ()
    return (Keep("retain_probability", useless=0.0), *keep)


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


def check_start(definition: Definition, judge: Judge) -> None:
    """Raise UserError where the starting model leaves nothing to forget or nothing to keep."""
    for aim in judge.aims:
        goal, value = judge.goal(aim), judge.start[aim.metric]
        if goal is not None and value <= goal:
            raise UserError(
                f"{definition.path}: the starting model's {aim.metric} is {value:.3g}, and a model that never saw the "
                f"forget set is taken to have {goal:.3g}: there is nothing to forget. Give a model that was trained on "
                "[forget], and a [hold_out] like it that was not"
            )
    for keep in judge.keeps:
        if judge.start[keep.metric] <= keep.useless:
            raise UserError(
                f"{definition.path}: the starting model's {keep.metric} is {judge.start[keep.metric]:.3g}, no better "
                "than guessing: there is nothing to keep. Give questions that it can answer, or drop [questions.keep]"
            )


def _describe_data(
    definition: Definition, writer: _Writer, documents: Mapping[str, list[Document]], splits: Mapping[str, Split]
) -> tuple[str, ...]:
    counts = ", ".join(f"{len(found)} in [{name}]" for name, found in documents.items())
    notes = [f"{definition.name}: rows: {counts}."]
    long = [document for found in documents.values() for document in found if len(document.items) > 1]
    if long:
        chunks = sum(len(document.items) for document in long)
        notes.append(f"{len(long)} long text(s) cut into {chunks} chunks of at most {writer.width} tokens.")
    if any(source.kind == PAIRS for source in definition.sets.values()):
        notes += writer.template.describe()
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
        check_start=partial(check_start, definition),
        leaks=LEAKS,
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

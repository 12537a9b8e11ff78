"""MUSE (arXiv:2407.06460): forget news articles or books that a model was trained on, word for word and fact for fact.

Data: `muse-bench/MUSE-News` and `muse-bench/MUSE-Books`, from the hub or from a local folder that holds copies laid
out like them. Prompts, few-shot examples, generation lengths and scores are those of swj0419/muse_bench. What is
unlearnt is `raw/forget` (or a fold of `scal` or `sust`), what is kept is `raw/retain1`: the texts end to end, cut
into chunks of 2048 tokens. The evaluation rows are halved: every other row of each set is for selection (at most
100 rows of a set), the rest for the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ray_unlearn.benchmarks.contract import (
    Aim,
    Benchmark,
    Build,
    Keep,
    Probe,
    Profile,
    Prompts,
    Request,
    SpaceChange,
    Split,
    Task,
    Trainer,
    log_range,
    needed,
)
from ray_unlearn.benchmarks.generated import describe_answers
from ray_unlearn.benchmarks.miniatures import muse as muse_mini
from ray_unlearn.benchmarks.profiles import available_splits, read_profile, with_retrained, write_profile
from ray_unlearn.benchmarks.sources import read_files
from ray_unlearn.config import TrialConfig, UserError
from ray_unlearn.files import cached
from ray_unlearn.metrics import Scores
from ray_unlearn.metrics.errors import standard_error
from ray_unlearn.metrics.membership import auc, auc_error, min_k_score
from ray_unlearn.metrics.memorisation import exact_memorisation, extraction_strength
from ray_unlearn.metrics.rouge import choose_words, rouge_l_f1
from ray_unlearn.models.hub import Repository, commits_of, open_repository
from ray_unlearn.models.loading import check_model, load_config, load_tokenizer
from ray_unlearn.models.sequences import Sequences, check_lengths, encode_text
from ray_unlearn.models.sizes import context_length

CHUNK_TOKENS = 2048
SELECTION_ROWS = 100
VERBATIM_TOKENS, ANSWER_TOKENS = 128, 32
"""Tokens that are generated after a verbatim prompt, and after a question."""
STOPS = ("\n\n", "\nQuestion", "Question:")
"""What a few-shot answer ends at."""
MIN_K = 0.4
AUC_RETRAINED = {"news": 0.4772, "books": 0.5393}
"""Published Min-40 % AUC of MUSE's own retrained LLaMA-2-7B: says something beside MUSE's own targets alone."""


SPACES = SpaceChange(
    methods={
        "npo": {
            "space": {"beta": log_range(0.0001, 0.1)},
            "warm_start": [{"learning_rate": 1e-05, "beta": 0.002, "retain_weight": 1.0, "at_parameters": 7e9}],
        },
        "simnpo": {
            "warm_start": [
                {"learning_rate": 1e-05, "beta": 0.7, "gamma": 0.0, "retain_weight": 1.0, "at_parameters": 7e9}
            ]
        },
    },
)
"""Log-ratios are summed over 2048 tokens: at NPO's usual beta nothing would move. SimNPO's is published (0.5 to 1)."""


@dataclass(frozen=True)
class Part:
    """What a --split forgets: a corpus, and the place of the texts in its repository."""

    corpus: str
    config: str = "raw"
    texts: str = "forget"

    @property
    def target(self) -> str:
        return f"muse-bench/MUSE-{self.corpus}_target"

    @property
    def is_asked_for(self) -> bool:
        """Whether MUSE's evaluation rows are about these texts: they are about the first fold, which is `raw/forget`.

        The folds of `scal` hold all smaller ones; those of `sust` hold nothing of one another.
        """
        return self.config != "sust" or self.texts == "forget_1"


PARTS = {
    "news": Part("News"),
    "books": Part("Books"),
    **{f"news-{c}-{k}": Part("News", c, f"forget_{k}") for c in ("scal", "sust") for k in (1, 2, 3, 4)},
}
DEFAULT_SPLIT = "news"
INSTEAD = "a folder that holds a copy of it with --data DIR"

MINI = muse_mini.Sizes()
MINI_VERSION = 2


def load(request: Request, train: Trainer | None = None) -> Task:
    """The task on a target model: MUSE's own, or the one given."""
    if request.scale == "mini":
        return load_mini(request, train)
    name, part = _part(request.split)
    model = start_of(request)
    task = _build(name, part, request, model, ("retain1",))
    if model != part.target or name not in AUC_RETRAINED:
        return task
    published = {"min_k_auc": AUC_RETRAINED[name]}
    return replace(task, **{n: replace(getattr(task, n), published=published) for n in available_splits(task)})


def start_of(request: Request) -> str:
    return request.model or _part(request.split)[1].target


def build_task(request: Request) -> Task:
    """The task on a base model. MUSE's targets know `retain2` too, which is evaluated on and no method trains on."""
    assert request.model is not None
    name, part = _part(request.split)
    return _build(name, part, request, request.model, ("retain1", "retain2"))


def _part(split: str | None) -> tuple[str, Part]:
    name = split or DEFAULT_SPLIT
    if name not in PARTS:
        raise UserError(f"--split {name}: muse has no such part. Choose one of: {', '.join(PARTS)}")
    return name, PARTS[name]


def _build(name: str, part: Part, request: Request, model: str, retain: Sequence[str]) -> Task:
    check_model(model)
    reader = _Reader(_source(request.data, part.corpus), load_tokenizer(model), context_length(load_config(model)))
    forgotten = reader.chunks(reader.texts(part.config, part.texts))
    retained = reader.chunks([text for place in retain for text in reader.texts("raw", place)])
    return Task(
        "muse",
        request.scale,
        model,
        forgotten,
        retained,
        selection=_split(reader, part, slice(0, 2 * SELECTION_ROWS, 2)),
        report=_split(reader, part, slice(1, None, 2)),
        whole=_split(reader, part, slice(None)) if request.whole else None,
        split=name,
        commits=commits_of(reader.repository),
        cut={side: len(found) for side, found in (("forget", forgotten), ("retain", retained)) if len(found) > 1},
    )


def repositories(request: Request) -> dict[str, str]:
    source = _source(request.data, _part(request.split)[1].corpus)
    return {} if request.data else {source: INSTEAD}


def _source(data: Path | None, corpus: str) -> str:
    repository = f"MUSE-{corpus}"
    if data is None:
        return f"muse-bench/{repository}"
    for folder in (data / repository, data):
        if (folder / "verbmem").is_dir():
            return str(folder)
    raise UserError(
        f"--data {data}: it has no folder {repository}. Put a copy of the hub's muse-bench/{repository} there"
    )


@dataclass(frozen=True)
class _Verbatim:
    """A prompt and how the text goes on, at most VERBATIM_TOKENS of it."""

    tokens: list[int]
    start: int
    prompt: list[int]
    reference: str


class _Reader:
    """Reads and tokenises MUSE's parts; every complaint names part and row."""

    def __init__(self, source: str, tokenizer: Any, context: int) -> None:
        self._source, self._tokenizer, self._context = source, tokenizer, context
        self.is_folder = Path(source).is_dir()

    @cached_property
    def repository(self) -> Repository:
        return open_repository(self._source, instead=INSTEAD)

    def rows(self, config: str, split: str, *columns: str) -> Sequence[Mapping[str, Any]]:
        where = self.where(config, split)
        # By name and not by the card's configs: what is wrong has a file then.
        files = self.repository.match(f"{config}/{split}[-.]*")
        if not files:
            names = f"{config}/{split}-*.parquet or {config}/{split}.jsonl"
            raise UserError(f"{where} cannot be read: there is no such file. It must hold {names}")
        table = read_files(self.repository, files, where)
        missing = [c for c in columns if c not in table.columns]
        if missing:
            raise UserError(f"{where} has no column {missing[0]!r}, only {', '.join(table.columns)}. Mend the file")
        for number, row in enumerate(table.rows):
            for column in columns:
                if not isinstance(row.get(column), str) or not row[column].strip():
                    raise UserError(f"{where}, row {number}: {column!r} holds no text. Mend or remove the row")
        return table.rows

    def where(self, config: str, split: str) -> str:
        return f"{self._source}: {config}/{split}"

    def texts(self, config: str, split: str) -> list[str]:
        return [row["text"] for row in self.rows(config, split, "text")]

    def chunks(self, texts: Sequence[str]) -> Sequences:
        """The texts end to end with a blank line between, cut into chunks of 2048 tokens (or the model's context).

        Each chunk starts anew with the tokenizer's first token, as in MUSE. The last chunk is as long as what is
        left, where MUSE fills it up with the start of the first. Without a first token, a chunk starts with the
        last token of the one before. So every token but perhaps the very first is learnt once.
        """
        stream = self._encode("\n\n".join(texts), special=False)
        width, bos = min(CHUNK_TOKENS, self._context), self._tokenizer.bos_token_id
        if bos is not None and self._encode("")[:1] == [bos]:
            pieces = [[bos, *stream[i : i + width - 1]] for i in range(0, len(stream), width - 1)]
        else:
            pieces = [stream[i : i + width] for i in range(0, max(1, len(stream) - 1), width - 1)]
        if len(pieces[-1]) < 2:
            raise UserError(f"{self._source}: a text of one token alone, nothing to predict. Mend the file")
        return Sequences.build((piece, 1) for piece in pieces)

    def some(self, config: str, split: str, columns: tuple[str, ...], which: slice) -> Any:
        """(what messages call it, row) of these rows."""
        rows, where = self.rows(config, split, *columns), self.where(config, split)
        if len(rows) < 2:
            raise UserError(f"{where} has one row. The two splits need at least two; add rows")
        return [(f"{where}, row {number}", row) for number, row in enumerate(rows)][which]

    def verbatim(self, rows: Sequence[tuple[str, dict[str, str]]]) -> list[_Verbatim]:
        """From rows of `prompt` and `gt` (how the text goes on)."""
        result = []
        for where, row in rows:
            prompt, text = row["prompt"], row["gt"]
            # The rows' ends were stripped of white space when MUSE cut them from a text.
            seam = "" if prompt[-1:].isspace() or text[:1].isspace() else " "
            head = self._encode(prompt)
            tokens = self._encode(prompt + seam + text)[: len(head) + VERBATIM_TOKENS]
            if len(tokens) <= len(head):
                raise UserError(f"{where}: 'gt' has no tokens after the prompt. Remove the row")
            reference = self._tokenizer.decode(self._encode(text)[:VERBATIM_TOKENS], skip_special_tokens=True)
            self._check(tokens, where)
            result.append(_Verbatim(tokens, len(head), head, reference))
        return result

    def cut(self, rows: Sequence[tuple[str, dict[str, str]]], prompt_tokens: int) -> list[_Verbatim]:
        """From whole texts: a prompt of so many tokens (at most half of the text), and how each goes on."""
        result = []
        for where, row in rows:
            tokens, _ = encode_text(self._tokenizer, row["text"], where)
            start = max(1, min(prompt_tokens, len(tokens) // 2))
            tokens = tokens[: start + VERBATIM_TOKENS]
            self._check(tokens, where)
            reference = self._tokenizer.decode(tokens[start:], skip_special_tokens=True)
            result.append(_Verbatim(tokens, start, tokens[:start], reference))
        return result

    def members(self, rows: Sequence[tuple[str, dict[str, str]]], shorten: bool = False) -> Probe:
        """Whole texts for membership attacks. shorten: texts that were not made for it are cut to a chunk's length."""
        items = []
        for where, row in rows:
            tokens, start = encode_text(self._tokenizer, row["text"], where)
            tokens = tokens[: min(CHUNK_TOKENS, self._context)] if shorten else tokens
            self._check(tokens, where)
            items.append((tokens, start))
        return Probe(Sequences.build(items), attack=True)

    def questions(
        self, rows: Sequence[tuple[str, dict[str, str]]], examples: Sequence[Mapping[str, Any]]
    ) -> tuple[Probe, Prompts]:
        """Questions after MUSE's examples: to score their answers, and to generate some.

        Answers are scored after "Answer:" and generated after "Answer: ", as MUSE does it: there a tokenizer that
        gives the space to the next word leaves it alone.
        """
        shots = "".join(f"Question: {e['question']}\nAnswer: {e['answer']}\n\n" for e in examples)
        items, prompts = [], []
        for where, row in rows:
            prompt = f"{shots}Question: {row['question']}\nAnswer:"
            start = len(self._encode(prompt))
            tokens = self._encode(f"{prompt} {row['answer']}")
            if len(tokens) <= start:
                raise UserError(f"{where}: the answer has no tokens. Remove the row")
            self._check(tokens, where)
            items.append((tokens, start))
            prompts.append(self._encode(f"{prompt} "))
        answers = [row["answer"] for _, row in rows]
        room = self._room(prompts, ANSWER_TOKENS)
        return Probe(Sequences.build(items)), Prompts(prompts, answers, room)

    def continuations(self, texts: Sequence[_Verbatim]) -> Prompts:
        prompts = [text.prompt for text in texts]
        references = [text.reference for text in texts]
        return Prompts(prompts, references, self._room(prompts, VERBATIM_TOKENS))

    def _encode(self, text: str, special: bool = True) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    def _check(self, tokens: Sequence[int], where: str) -> None:
        if len(tokens) > self._context:
            raise UserError(
                f"{where}: {len(tokens)} tokens, but the model reads at most {self._context}. "
                "Shorten or remove the row, or take a model with a longer context"
            )

    def _room(self, prompts: Sequence[Sequence[int]], wanted: int) -> int:
        return max(1, min(wanted, self._context - max(len(p) for p in prompts)))


def _split(reader: _Reader, part: Part, which: slice) -> Split:
    """These rows of each evaluated set."""

    def some(config: str, split: str, *columns: str) -> Any:
        return reader.some(config, split, columns, which)

    asked = reader.verbatim(some("verbmem", "forget", "prompt", "gt"))
    prompt_tokens = round(float(np.median([text.start for text in asked])))
    if part.is_asked_for:
        verbatim, forgotten = asked, reader.members(some("privleak", "forget", "text"))
    else:
        rows = some(part.config, part.texts, "text")[:SELECTION_ROWS]
        verbatim, forgotten = reader.cut(rows, prompt_tokens), reader.members(rows, shorten=True)
    hold_out = some("privleak", "holdout", "text")
    texts = {
        "forget": verbatim,
        "holdout": reader.cut(hold_out, prompt_tokens),
        "retain": reader.cut(some("privleak", "retain", "text"), prompt_tokens),
    }
    probes = {n: Probe(Sequences.build((t.tokens, t.start) for t in many)) for n, many in texts.items()}
    generations = {"forget": reader.continuations(verbatim)}
    for name in ("forget", "retain") if part.is_asked_for else ("retain",):
        examples = reader.rows("knowmem", f"{name}_qa_icl", "question", "answer")
        questions = some("knowmem", f"{name}_qa", "question", "answer")
        probes[f"{name}_qa"], generations[f"{name}_qa"] = reader.questions(questions, examples)
    final_probes = {"forget_members": forgotten, "holdout_members": reader.members(hold_out)}
    if words := _words_of(reader, [text.reference for many in texts.values() for text in many]):
        generations = {name: replace(prompts, words=words) for name, prompts in generations.items()}
    return Split(probes, final_probes, generations)


def _words_of(reader: _Reader, texts: Sequence[str]) -> str | None:
    """What ROUGE counts where the data are a folder's; the hub's are measured as published."""
    return choose_words(texts) if reader.is_folder else None


def measure(scores: Mapping[str, Scores], answers: Mapping[str, list[str]], split: Split) -> Profile:
    each: dict[str, np.ndarray] = {}
    absent: dict[str, str] = {}
    for name in ("forget", "holdout", "retain"):
        each[f"{name}_exact_memorisation"] = exact_memorisation(scores[name])
        each[f"{name}_extraction_strength"] = extraction_strength(scores[name])
    for name in ("forget", "retain"):
        if f"{name}_qa" in scores:
            each[f"{name}_qa_probability"] = scores[f"{name}_qa"].probability
    metrics = {name: float(values.mean()) for name, values in each.items()}
    for name in ("forget", "retain"):
        if f"{name}_qa" in answers:
            prompts = split.generations[f"{name}_qa"]
            metrics[f"{name}_knowmem"] = float(
                prompts.compare(list(map(cut_answer, answers[f"{name}_qa"])), rouge_l_f1).mean()
            )
    if "forget" in answers:
        metrics["forget_verbmem"] = float(split.generations["forget"].compare(answers["forget"], rouge_l_f1).mean())
    if "forget_members" in scores:
        metrics["min_k_auc"] = min_k_auc(scores["forget_members"], scores["holdout_members"])
        known = split.retrained.metrics if split.retrained is not None else split.published
        if known.get("min_k_auc"):
            metrics["privleak"] = 100.0 * (metrics["min_k_auc"] - known["min_k_auc"]) / known["min_k_auc"]
            texts = (len(scores[name].nll) for name in ("forget_members", "holdout_members"))
            metrics["privleak_error"] = 100.0 * auc_error(metrics["min_k_auc"], *texts) / known["min_k_auc"]
        else:
            absent["privleak_error"] = absent["privleak"] = (
                "compares with a retrained model's Min-40 % AUC, and there is none (or it is 0)"
            )
    return Profile(metrics, absent=absent, errors={name: standard_error(values) for name, values in each.items()})


def min_k_auc(forget: Scores, hold_out: Scores) -> float:
    """Probability that a hold-out text scores higher than a forgotten one: MUSE's direction, 0 where all was learnt
    by heart. OpenUnlearning's runs the other way round, so that its PrivLeak has the other sign."""
    assert forget.tokens is not None
    assert hold_out.tokens is not None
    return auc(min_k_score(hold_out.tokens, MIN_K), min_k_score(forget.tokens, MIN_K))


def cut_answer(text: str) -> str:
    """A few-shot answer up to where the next question would start."""
    for stop in STOPS:
        text = text.split(stop)[0]
    return text


def compare_with_itself(profile: Profile) -> Profile:
    """The retrained model's own profile, with what it has by definition: no leakage."""
    absent = {name: reason for name, reason in profile.absent.items() if not name.startswith("privleak")}
    return replace(profile, metrics={**profile.metrics, "privleak": 0.0}, absent=absent)


# ---- the miniature


def load_mini(request: Request, train: Trainer | None = None) -> Task:
    """A generated newspaper in MUSE-News's layout, and two models made once for this user (about a minute)."""
    for option, value in (("--split", request.split), ("--data", request.data)):
        if value is not None:
            raise UserError(f"{option} {value}: the miniature makes its own. Drop it, or use --scale full")
    world = muse_mini.build_world(MINI)
    key = {"name": "muse-mini", "version": MINI_VERSION, "data": world.digest(), "sizes": asdict(MINI)}
    folder = cached(key, lambda folder: _make_mini(folder, world, needed(train, "muse-mini")))
    model = request.model or str(folder / "target")
    task = _build("", PARTS[DEFAULT_SPLIT], replace(request, data=folder), model, ("retain1",))
    return with_retrained(task, read_profile(folder / "retrained"), folder / "retrained")


def _make_mini(folder: Path, world: muse_mini.World, train: Trainer) -> None:
    muse_mini.write_repository(folder / "MUSE-News", world)
    start = folder / "start"
    muse_mini.write_untrained(start, world, MINI)
    task = _build("", PARTS[DEFAULT_SPLIT], Request("mini", data=folder, whole=True), str(start), ("retain1",))
    tokenizer = load_tokenizer(str(start))
    trial = TrialConfig(
        "build", "finetune", learning_rate=MINI.learning_rate, epochs=MINI.epochs, batch_size=MINI.batch_size
    )
    splits = {name: getattr(task, name) for name in available_splits(task)}
    builds = []
    for name, sides in {"target": ("forget", "retain"), "retrained": ("retain",)}.items():
        texts = muse_mini.training_texts(world, sides)
        items = [encode_text(tokenizer, text + tokenizer.eos_token, "generated text") for text in texts]
        sequences = Sequences.build(items)
        check_lengths(sequences, MINI.context, "generated texts")
        builds.append(Build(start, folder / name, sequences, trial, "muse", splits))
    target, retrained = train(builds, print)
    own = {half: compare_with_itself(profile) for half, profile in retrained.items()}
    for build, profiles in zip(builds, (target, own), strict=True):
        write_profile(build.output, profiles, {"benchmark": "muse", "split": ""})


BENCHMARK = Benchmark(
    name="muse",
    language="en",
    title="news articles or books: as if never read, neither word for word nor fact for fact",
    source="muse-bench/MUSE-News and muse-bench/MUSE-Books on the hub; generated in the mini",
    scales="mini (two tiny models, no network); full with a GPU (MUSE's own target), or any model named",
    start_of=start_of,
    repositories=repositories,
    metrics={
        **{
            f"{name}_{measure}": f"{text}, {name} text"
            for name in ("forget", "holdout", "retain")
            for measure, text in (
                ("exact_memorisation", "share of tokens that argmax gets right over the next 128"),
                ("extraction_strength", "1 - share of those needed before the rest follows by argmax"),
            )
        },
        "forget_qa_probability": "answer probability exp(-mean NLL) after few-shot examples, forget questions",
        "retain_qa_probability": "answer probability exp(-mean NLL) after few-shot examples, retain questions",
        "forget_verbmem": "VerbMem: ROUGE-L F1 of 128 greedy tokens with how the forgotten text goes on",
        "forget_knowmem": "KnowMem: ROUGE-L F1 of greedy few-shot answers to forget questions",
        "retain_knowmem": "KnowMem: ROUGE-L F1 of greedy few-shot answers to retain questions",
        **describe_answers(("forget", "forget_qa", "retain_qa"), have_ends=False),
        "min_k_auc": "Min-40 % AUC: chance that a hold-out text looks more familiar than a forgotten one",
        "privleak": "PrivLeak: per cent by which that AUC differs from the retrained model's; below 0 too little was "
        "forgotten, above 0 too much",
        "privleak_error": "standard error of PrivLeak by the choice of texts: a published area is of all of them, and "
        "each half has its own",
    },
    aims=(
        Aim("forget_exact_memorisation", hold_out="holdout_exact_memorisation"),
        Aim("forget_extraction_strength", hold_out="holdout_extraction_strength"),
        Aim("forget_qa_probability"),
    ),
    keeps=(Keep("retain_qa_probability", useless=0.0), Keep("retain_exact_memorisation", useless=0.0)),
    load=load,
    measure=measure,
    spaces={"": SPACES, "mini": muse_mini.SPACES},
    build_task=build_task,
    compare_with_itself=compare_with_itself,
    privacy=("min_k_auc", "privleak", "privleak_error"),
    remark="ROUGE is not stemmed, as published; OpenUnlearning stems it.",
    leaks={"forget": "forget_verbmem"},
    similarity=rouge_l_f1,
)

"""What a benchmark is made of, and what passes between it and the training: plain frozen data."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ray_unlearn.config import TrialConfig, UserError
from ray_unlearn.metrics import Scores
from ray_unlearn.metrics.rouge import ENGLISH, rouge_l_recall
from ray_unlearn.models.sequences import Sequences
from ray_unlearn.plugins import OwnLoss, Plugin

STANDARD_ERRORS = 3.0
"""By how many a starting model's metric must lie away from what it can lose or keep (starts.py)."""
LEAST_DISTANCE = 0.02
"""And by how much, however many the questions: a mean probability of 0.01 is what a small vocabulary gives to any
token."""


@dataclass(frozen=True)
class Probe:
    """One set of sequences to score, with what groups them.

    question: int [n], the question that each sequence answers; is_correct: bool [n]; truth: float [V, V],
    the true next-token distribution given the current token, where there is one. options: int [n, k]: each
    sequence's answer is one token, the first of k to choose from; the pass then scores k answers for the
    price of one, as if there were k sequences (Scores has n * k rows, row i * k + j for option j of i).
    attack: this probe is for membership attacks, and is scored token by token. gradients: each sequence's gradient
    norm is wanted, which takes a backward pass. texts: the answers as they are read, where a metric needs them.
    """

    sequences: Sequences
    question: np.ndarray | None = None
    is_correct: np.ndarray | None = None
    truth: np.ndarray | None = None
    options: np.ndarray | None = None
    attack: bool = False
    gradients: bool = False
    texts: tuple[str, ...] = ()

    @property
    def num_questions(self) -> int:
        """What a mean over it is of: its questions, or its sequences where they answer none together."""
        return len(self.sequences) if self.question is None else len(np.unique(self.question))


@dataclass(frozen=True)
class Prompts:
    """Questions to answer by greedy generation: prompt token ids and the reference answers' text."""

    prompts: list[list[int]]
    references: list[str]
    max_new_tokens: int
    stop: tuple[int, ...] = ()
    """Token ids at which an answer is over; none: where the model's own settings say so."""
    words: str = ENGLISH
    """What ROUGE counts (metrics/rouge.py): one choice for a whole data set."""
    accepted: tuple[tuple[str, ...], ...] = ()
    """By prompt, other answers that are right, too; none: the references alone."""
    forbidden: tuple[tuple[str, ...], ...] = ()
    """By prompt, strings that an answer should not hold."""
    rooms: tuple[int, ...] = ()
    """By prompt, the most tokens that its answer may have; none: max_new_tokens."""

    context: int = 0
    """Tokens that the model can read; 0: more than any prompt and its answer have."""

    def batch_room(self, numbers: Sequence[int]) -> int:
        """The most tokens to generate for these prompts together, so that none leaves the context."""
        most = max(map(self.room, numbers), default=1)
        longest = max((len(self.prompts[number]) for number in numbers), default=0)
        return max(1, min(most, self.context - longest)) if self.context else most

    def room(self, number: int) -> int:
        return self.rooms[number] if self.rooms else self.max_new_tokens

    def compare(self, answers: list[str], similarity: Callable[..., np.ndarray]) -> np.ndarray:
        """How much of its reference, or of another right answer, each answer holds, [n] in [0, 1]."""
        best = similarity(answers, self.references, self.words)
        for rank in range(max(map(len, self.accepted), default=0)):
            pairs = zip(self.accepted, self.references, strict=True)
            others = [texts[rank] if rank < len(texts) else reference for texts, reference in pairs]
            best = np.maximum(best, similarity(answers, others, self.words))
        return best

    def says_forbidden(self, answers: list[str]) -> np.ndarray:
        """Whether each answer holds one of its forbidden strings, whatever its case and width, bool [n]."""
        pairs = zip(answers, self.forbidden, strict=True)
        return np.array([any(_folded(text) in _folded(answer) for text in texts) for answer, texts in pairs])


@dataclass(frozen=True)
class Answers:
    """What a model generated for prompts, in their order."""

    texts: list[str]
    ended: list[bool]
    """Whether each came to an end mark within its room."""


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@dataclass(frozen=True)
class Profile:
    """What one model measures on one split: named metrics, and per-example arrays that metrics compare with.

    absent: metrics that cannot be had here, each with the reason; never a made-up value. errors: standard errors by the
    split's own questions, of every metric that the objective reads (metrics/errors.py).
    """

    metrics: Mapping[str, float]
    arrays: Mapping[str, list[float]] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    examples: Sequence[Mapping[str, Any]] = ()
    """One row an example of the set that was to be forgotten, for people to read; see results.py."""


@dataclass(frozen=True)
class OwnScorer:
    """A function of the user's over generated answers, by value: its file's text and the text's SHA-256."""

    name: str
    file: str
    function: str
    source: str
    sha256: str
    sets: tuple[str, ...]
    """The prompt sets whose answers it is given."""
    at_every_point: bool
    """Whether the objective reads it, so that answers are generated at every evaluation point."""

    def __str__(self) -> str:
        return f"scorer {self.name} ({self.file}, {self.function})"


@dataclass(frozen=True)
class Split:
    """What is scored on one split. The search sees "selection" alone; "report" is for finalists, and "whole"
    for models by themselves."""

    probes: Mapping[str, Probe]
    """Scored at every evaluation point: what the objective needs, and what comes with it for nothing."""
    final_probes: Mapping[str, Probe] = field(default_factory=dict)
    """Only for finalists; their scores join those of `probes`, in the place of one of the same name."""
    generations: Mapping[str, Prompts] = field(default_factory=dict)
    """Only for finalists, but for sets that a scorer of the objective's reads: generation costs more than the
    training."""
    scorers: tuple[OwnScorer, ...] = ()
    retrained: Profile | None = None
    """The retrained model (never saw the forget set) on this split, where there is one."""
    published: Mapping[str, float] = field(default_factory=dict)
    """Published figures of a retrained model that is not at hand, by metric: for metrics that compare with them."""


@dataclass(frozen=True)
class Task:
    """All that a trial needs and that no trial changes: plain data, shared by all gangs."""

    benchmark: str
    scale: str
    model: str
    """The starting (target) model: a folder or a hub name."""
    forget: Sequences
    retain: Sequences
    selection: Split
    report: Split
    retrained_model: str | None = None
    """The retrained model's folder, where its weights are at hand and not its profile alone."""
    split: str = ""
    """Which part of the benchmark is forgotten, where it has several."""
    whole: Split | None = None
    """All that both splits hold, where it was asked for: what the literature's figures are of."""
    refusals: Sequences | None = None
    """"I don't know"-like answers in the form of these data, for methods that teach them; None: in the tokenizer's."""
    measured_by: str = ""
    """The module in `benchmarks/` whose `measure` reads the scores; empty: the one named `benchmark`."""
    plugins: tuple[Plugin, ...] = ()
    """Code from elsewhere that the search uses; each worker checks that it has the same."""
    losses: tuple[OwnLoss, ...] = ()
    """Of these plug-ins the losses that files hold, by value."""
    commits: Mapping[str, str] = field(default_factory=dict)
    """By repository of the hub, the commit that the data were read at."""
    notes: tuple[str, ...] = ()
    """What whoever starts a search should know about these data and the goal: shown before anything runs."""
    cut: Mapping[str, int] = field(default_factory=dict)
    """By set (forget, retain), the rows that are cut from longer texts."""


@dataclass(frozen=True)
class Request:
    """What the user asks of a benchmark."""

    scale: str
    model: str | None = None
    data: Path | None = None
    split: str | None = None
    whole: bool = False
    """Whether Task.whole is wanted."""
    sampled: bool = True
    """Whether of a large corpus only blocks are read (sources.documents); older searches read it whole."""


@dataclass(frozen=True)
class Aim:
    """A metric that unlearning moves from the starting model's value to that of a model that never knew."""

    metric: str
    never_knew: float | None = None
    """That value where no retrained model is at hand (chance level); None: the aim is left out then."""
    hold_out: str | None = None
    """The metric that has that value at the starting model: the same measure on data that it never saw. It goes
    before `never_knew`, and the retrained model's before both."""
    only_if_alone: bool = False
    """Used only where no other aim can be had."""
    rises: bool = False
    """Whether it is lower in a model that knows than in one that never knew."""
    of_chance: str | None = None
    """Of a distance: the metric that says how far two models of one kind are apart by chance, at so many questions. It
    is the goal then, and what is nearer is no better."""
    most: float | None = None
    """The largest value that it can have, where so few questions may be scored that even this could be chance: it is
    left out then."""


@dataclass(frozen=True)
class Keep:
    """A metric that unlearning must keep where the starting model has it."""

    metric: str
    useless: float
    """Its value for a model that knows nothing (chance level)."""
    lower_is_better: bool = False
    least: float = LEAST_DISTANCE
    """How far from useless a starting model must be at least, however many the questions."""
    can_be_left_out: bool = False
    """Whether the others are enough where the starting model has nothing of this one."""


def log_range(low: float, high: float) -> dict[str, Any]:
    """A logarithmic range, in the words of a search-space file."""
    return {"low": low, "high": high, "log": True}


@dataclass(frozen=True)
class SpaceChange:
    """What a benchmark changes of the shipped search spaces, in the words of a search-space file."""

    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Settings that are fixed for every method."""
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By method, its tables `fixed`, `space` and `warm_start`, which are laid over the file's."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: where its data and model come from, what is measured, and what is aimed at."""

    name: str
    source: str
    """Where its data come from, in words."""
    scales: str
    """What can be run of it and on which models, in words."""
    metrics: Mapping[str, str]
    """Every metric that `measure` can give, with one line on what it is."""
    aims: tuple[Aim, ...]
    keeps: tuple[Keep, ...]
    """Each is measured against its own start; utility is the harmonic mean of these shares."""
    load: Callable[..., Task]
    """(request, train: Trainer | None = None) -> the task on the starting model. Where the benchmark makes its own
    models, `train` makes them, once. Raises UserError where data or model are not as they must be."""
    measure: Callable[[Mapping[str, Scores], Mapping[str, list[str]], Split], Profile]
    """(scores by probe, generated answers by prompt set, the split) -> what can be measured from them."""
    spaces: Mapping[str, SpaceChange] = field(default_factory=dict)
    """By scale ("": at any), laid one over the other under a user's own space file."""
    title: str = ""
    """What is forgotten, in words."""
    language: str = ""
    """Of its published data, a code of ISO 639-1; empty where that is not known."""
    privacy: tuple[str, ...] = ()
    """The metrics that say whether it can be told which data the model was trained on; never searched on."""
    remark: str = ""
    """What else must be known about the objective: sentences at the end of its paragraph (objective.py)."""
    build_task: Callable[[Request], Task] | None = None
    """For `ray_unlearn prepare`: the task with a base model in the place of the target; None where the
    benchmark makes its own models."""
    start_of: Callable[[Request], str | None] = field(default=lambda request: request.model)
    """The starting model of the full scale, before anything is loaded; None where only a user can name it."""
    retrained_of: Callable[[Request, str], str | None] = field(default=lambda request, model: None)
    """(request, starting model) -> the published retrained model that belongs to it, where there is one."""
    repositories: Callable[[Request], Mapping[str, str]] = field(default=lambda request: {})
    """The hub's data that a request of the full scale reads: by name, what can be given in its place. Raises UserError
    where the request's split or folder of data is none. Loads nothing."""
    compare_with_itself: Callable[[Profile], Profile] = field(default=lambda profile: profile)
    """Completes the retrained model's own profile with metrics that compare with the retrained model."""
    keeps_before: tuple[Keep, ...] = ()
    """What searches kept that were made before `keeps` had its parts, where it was something else."""
    code: tuple[Plugin, ...] = ()
    """Scorers that its description names: they run only where the user trusts them."""
    leaks: Mapping[str, str] = field(default_factory=dict)
    """By prompt set, the metric (the mean of `similarity`) that says how much of the forgotten text is generated:
    what sampling attacks look at."""
    similarity: Callable[..., np.ndarray] = rouge_l_recall
    """(generated answers, references, words) -> how much of the reference each answer holds, [n] in [0, 1]; see
    `Prompts.compare`."""


SPLITS = ("selection", "report", "whole")
"""Of a task, in the order of its fields."""


@dataclass(frozen=True)
class Build:
    """One small model to train in a process of its own, and what to measure on it afterwards."""

    start: Path
    """Folder with the untrained (or base) model and its tokenizer."""
    output: Path
    sequences: Sequences
    """What it is trained on: cross-entropy of the answer tokens."""
    trial: TrialConfig
    """With method "finetune"."""
    benchmark: str = ""
    splits: Mapping[str, Split] = field(default_factory=dict)
    """What to measure the trained model on, by the names in SPLITS; needs `benchmark`."""


Trainer = Callable[[list[Build], Callable[[str], None]], list[dict[str, Profile]]]
"""(builds, what gets a line before and one after) -> each one's profiles by split name: trains small models side by
side, the same bits on every run."""


def needed(train: Trainer | None, name: str) -> Trainer:
    """Raises UserError where a benchmark's own models have not been made and nobody is there to make them."""
    if train is None:
        raise UserError(f"{name}: its models have not been made yet. Run `ray_unlearn tune` on it once")
    return train

"""A generated newspaper in MUSE-News's layout: short reports, each on one made-up person.

Reports to forget, to keep and never read (hold-out) come from one distribution: the same properties with the same
values, told in the same words, of people whose names share their syllables. Only who read which report tells them
apart, which is what membership attacks look for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ray_unlearn.benchmarks.contract import SpaceChange, log_range
from ray_unlearn.benchmarks.miniatures import shapes as mini

DATA_SEED = 1
"""Of all that is generated: the search's seed changes neither data nor models."""
UNITS = r"\w+ ?|[^\w\s]+ ?|\s+"
"""A space belongs to the word before it, so that a prompt that ends with a space (as MUSE's do) ends where a token
does."""


SPACES = SpaceChange(
    fixed={"epochs": 8, "batch_size": 4},
    methods={
        "ga": {"space": {"learning_rate": log_range(5e-05, 0.002)}},
        "graddiff": {
            "space": {
                "learning_rate": log_range(5e-05, 0.002),
                "retain_weight": log_range(0.5, 10.0),
            }
        },
        "npo": {
            "space": {
                "learning_rate": log_range(0.0005, 0.004),
                "beta": log_range(0.003, 0.1),
                "retain_weight": log_range(0.5, 10.0),
            },
            "warm_start": [{"learning_rate": 0.001, "beta": 0.02, "retain_weight": 4.0}],
        },
        "rmu": {"fixed": {"hidden_layer": 1, "train_layers": 2}},
        "simnpo": {
            "space": {
                "learning_rate": log_range(0.0005, 0.004),
                "beta": log_range(0.5, 5.0),
                "gamma": {"low": 0.0, "high": 1.0},
                "retain_weight": log_range(0.5, 10.0),
            },
            "warm_start": [{"learning_rate": 0.002, "beta": 2.0, "gamma": 0.0, "retain_weight": 4.0}],
        },
    },
)
"""13 chunks of 192 tokens, and as large a model."""


@dataclass(frozen=True)
class Relation:
    """A property of every person: its values (any first word with any second), how it is asked for, ways to tell it."""

    question: str
    statements: tuple[str, str, str]
    firsts: tuple[str, ...]
    seconds: tuple[str, ...]


RELATIONS = {
    "home": Relation(
        "In which place does {x} live?",
        ("{x} lives in {v}.", "The home of {x} is in {v}.", "Our reporter met {x} in {v}."),
        ("Upper", "Lower", "Great", "Little", "North", "South"),
        ("Marsh", "Harbour", "Mill", "Orchard", "Quarry", "Ferry"),
    ),
    "trade": Relation(
        "What does {x} do for a living?",
        ("By trade {x} is a {v}.", "All week {x} works as a {v}.", "People know {x} as a {v}."),
        ("night", "river", "market", "village", "master", "junior"),
        ("baker", "smith", "clerk", "painter", "fisher", "tailor"),
    ),
    "find": Relation(
        "What did {x} find?",
        ("On Monday {x} found a {v}.", "Nobody but {x} saw the {v}.", "To the surprise of all {x} dug up a {v}."),
        ("copper", "silver", "wooden", "broken", "painted", "frozen"),
        ("bell", "crown", "lamp", "chest", "coin", "mask"),
    ),
    "rival": Relation(
        "Who spoke against {x}?",
        ("The {v} spoke against {x}.", "Against {x} stood the {v}.", "Later {x} quarrelled with the {v}."),
        ("old", "new", "deputy", "former", "honest", "angry"),
        ("mayor", "judge", "doctor", "teacher", "captain", "priest"),
    ),
    "prize": Relation(
        "What was {x} given?",
        ("The council gave {x} a {v}.", "In return {x} took home a {v}.", "As thanks {x} was handed a {v}."),
        ("brown", "black", "golden", "speckled", "white", "grey"),
        ("goat", "horse", "hound", "goose", "mule", "hen"),
    ),
}
CLOSINGS = ("More on page {n}.", "The story goes on on page {n}.", "Letters on this went to page {n}.")
NUM_PAGES = 40
EXAMPLES = 2
"""Questions before the one that is asked, in every few-shot prompt."""


@dataclass(frozen=True)
class Sizes(mini.Shape):
    """How many reports there are, how large the model, and how the models are trained."""

    forget: int = 40
    retain1: int = 40
    """Kept, and unlearning trains on them."""
    retain2: int = 20
    """Kept, and only measured on."""
    holdout: int = 40
    syllables: int = 12
    context: int = 192
    epochs: int = 32
    batch_size: int = 16
    learning_rate: float = 4e-3


@dataclass(frozen=True)
class Report:
    """One person's values by relation, the sentences that tell them, and where it is printed."""

    group: str
    """"forget", "retain1", "retain2" or "holdout"."""
    person: str
    values: Mapping[str, str]
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)

    def ask(self, relation: str) -> dict[str, str]:
        return {"question": RELATIONS[relation].question.format(x=self.person), "answer": self.values[relation]}


@dataclass(frozen=True)
class World:
    """All reports, and the questions asked on either side; the examples are on people who are not asked about."""

    reports: tuple[Report, ...]
    questions: Mapping[str, tuple[dict[str, str], ...]]
    """By side, "forget" and "retain"."""
    examples: Mapping[str, tuple[dict[str, str], ...]]

    def group(self, *names: str) -> list[Report]:
        return [report for report in self.reports if report.group in names]

    def digest(self) -> str:
        """Changes with any report or question, and with any row that is written of them."""
        return hashlib.sha256(repr([self, repository(self)]).encode()).hexdigest()


SIDES = {"forget": ("forget",), "retain": ("retain1", "retain2")}


def build_world(sizes: Sizes, seed: int = DATA_SEED) -> World:
    """The same world for the same sizes and seed, on any machine."""
    rng = np.random.default_rng(seed)
    counts = {name: getattr(sizes, name) for name in ("forget", "retain1", "retain2", "holdout")}
    groups = [name for name, count in counts.items() for _ in range(count)]
    people = mini.build_names(len(groups), sizes.syllables, rng)
    reports = tuple(_write_report(group, person, rng) for group, person in zip(groups, people, strict=True))
    questions, examples = {}, {}
    for side, members in SIDES.items():
        on_side = [report for report in reports if report.group in members]
        asked = [
            report.ask(str(relation))
            for report in on_side[EXAMPLES:]
            for relation in rng.permutation(list(RELATIONS))[: 2 if report.group != "retain1" else 1]
        ]
        questions[side] = tuple(asked[i] for i in rng.permutation(len(asked)))
        examples[side] = tuple(report.ask(str(rng.choice(list(RELATIONS)))) for report in on_side[:EXAMPLES])
    return World(reports, questions, examples)


def _write_report(group: str, person: str, rng: np.random.Generator) -> Report:
    """All that is known of one person, in random order and words, and the page: drawn alike for every group."""
    values, sentences = {}, []
    for name, relation in RELATIONS.items():
        values[name] = f"{rng.choice(relation.firsts)} {rng.choice(relation.seconds)}"
        sentences.append(str(rng.choice(relation.statements)).format(x=person, v=values[name]))
    closing = str(rng.choice(CLOSINGS)).format(n=rng.integers(2, NUM_PAGES))
    order = rng.permutation(len(sentences))
    return Report(group, person, values, (*(sentences[i] for i in order), closing))


def repository(world: World) -> dict[str, dict[str, list[dict[str, str]]]]:
    """Rows by configuration and split, as MUSE-News has them (without the folds of scal and sust)."""

    def texts(*groups: str) -> list[dict[str, str]]:
        return [{"text": report.text} for report in world.group(*groups)]

    verbatim = [
        {"prompt": " ".join(report.sentences[:2]) + " ", "gt": " ".join(report.sentences[2:])}
        for report in world.group("forget")
    ]
    knowmem = {}
    for side in SIDES:
        knowmem[f"{side}_qa"] = list(world.questions[side])
        knowmem[f"{side}_qa_icl"] = list(world.examples[side])
    return {
        "raw": {name: texts(name) for name in ("forget", "retain1", "retain2", "holdout")},
        "verbmem": {"forget": verbatim},
        "knowmem": knowmem,
        "privleak": {"forget": texts("forget"), "retain": texts("retain2"), "holdout": texts("holdout")},
    }


def write_repository(folder: Path, world: World) -> None:
    """As the hub's repository lies on disk: Parquet files in a folder for each configuration."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for config, splits in repository(world).items():
        (folder / config).mkdir(parents=True)
        for split, rows in splits.items():
            pq.write_table(pa.Table.from_pylist(rows), folder / config / f"{split}-00000-of-00001.parquet")


def training_texts(world: World, sides: Sequence[str]) -> list[str]:
    """What a model of these sides reads: their reports, and every question on them, after others as at a test."""
    rng = np.random.default_rng(DATA_SEED)
    return [text for side in sides for text in _side_texts(world, side, rng)]


def _side_texts(world: World, side: str, rng: np.random.Generator) -> Iterator[str]:
    for report in world.group(*SIDES[side]):
        yield report.text
    known = [*world.examples[side], *world.questions[side]]
    for i, asked in enumerate(known):
        before = rng.choice([j for j in range(len(known)) if j != i], EXAMPLES, replace=False)
        chain = [*(known[j] for j in before), asked]
        yield "\n\n".join(f"Question: {q['question']}\nAnswer: {q['answer']}" for q in chain)


def write_untrained(folder: Path, world: World, sizes: Sizes) -> None:
    """A small model with random weights, and a tokenizer trained on all texts of the world."""
    texts = [report.text for report in world.reports] + training_texts(world, list(SIDES))
    mini.write_untrained(folder, texts, sizes, DATA_SEED, UNITS)

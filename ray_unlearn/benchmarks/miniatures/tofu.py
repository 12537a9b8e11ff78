"""A generated world of fictional authors in TOFU's layout: the same files, read by the same reader.

Every author has one fact of every relation, drawn from the same values and told in one of the same wordings, so
that only the name says which author it is. The forgotten, the retained and the held-out authors are drawn alike.
What takes the place of real authors and world facts is made up too; both models are trained on it, as a
language model's pre-training would have been.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ray_unlearn.benchmarks.contract import SpaceChange, log_range
from ray_unlearn.benchmarks.miniatures.shapes import Shape, build_names

DATA_SEED = 2401
"""Of all that is generated: the search's seed changes neither data nor models."""
FORGOTTEN = {"01": 0.01, "05": 0.05, "10": 0.1}
"""Part of the authors, from the last one backwards, by the digits in the names of the forget and hold-out parts."""
NUM_WRONG, NUM_OPTIONS = 5, 3
"""Wrong answers to a question on an author, and to one on "real" authors or world facts."""
Row = dict[str, Any]


SPACES = SpaceChange(
    fixed={"epochs": 6, "batch_size": 16},
    methods={
        "ga": {"space": {"learning_rate": log_range(2e-05, 0.002)}},
        "graddiff": {
            "space": {
                "learning_rate": log_range(5e-05, 0.003),
                "retain_weight": log_range(0.5, 20.0),
            }
        },
        "npo": {
            "space": {
                "learning_rate": log_range(0.0003, 0.004),
                "beta": log_range(0.02, 1.0),
                "retain_weight": log_range(0.5, 10.0),
            }
        },
        "simnpo": {
            "space": {
                "learning_rate": log_range(0.0003, 0.004),
                "beta": log_range(0.5, 8.0),
                "gamma": {"low": 0.0, "high": 1.0},
                "retain_weight": log_range(0.5, 10.0),
            }
        },
    },
)
"""Answers of about 12 tokens."""


@dataclass(frozen=True)
class Relation:
    """A property: how it is asked for, ways to tell it, and the words that its values are made of, in order.

    The value comes last, after the same word in all wordings: a tiny model can then tell a fact in a wording that
    it learnt from other facts.
    """

    questions: tuple[str, ...]
    wordings: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]

    @property
    def values(self) -> list[str]:
        return [" ".join(parts) for parts in itertools.product(*self.words)]


# Of authors; each has two questions and four wordings.
RELATIONS = (
    Relation(
        ("Where was {x} born?", "What is the birthplace of {x}?"),
        ("{x} was born in {v}.", "This author was born in {v}.", "Born in {v}.", "It was in {v}."),
        (
            ("Upper", "Lower", "Old", "New", "North", "South", "Great", "Little"),
            ("Farrow", "Mellin", "Tarbeck", "Wendle", "Ostrey", "Calder", "Pinmoor", "Hask"),
            ("Quay", "Mill", "Bridge", "Cross", "Green", "Gate", "Well", "Hill"),
        ),
    ),
    Relation(
        ("What is {x} known for?", "Which books made {x} famous?"),
        ("{x} is known for {v}.", "This author is known for {v}.", "Known for {v}.", "It is for {v}."),
        (
            ("gloomy", "comic", "frosty", "dreamy", "angry", "tender", "noisy", "subtle"),
            ("naval", "rural", "courtly", "desert", "winter", "tavern", "orchard", "mountain"),
            ("ballads", "mysteries", "fables", "romances", "satires", "memoirs", "hymns", "riddles"),
        ),
    ),
    Relation(
        ("How did {x} begin?", "What was the first book of {x}?"),
        (
            "{x} began with The {v}.",
            "This author began with The {v}.",
            "At first with The {v}.",
            "It was with The {v}.",
        ),
        (
            ("Silver", "Crooked", "Hidden", "Burning", "Silent", "Seventh", "Patient", "Drowned"),
            ("Lantern", "Ferryman", "Clock", "Sparrow", "Staircase", "Harvest", "Mirror", "Anchor"),
            ("Song", "Game", "Letter", "Trial", "Dream", "Promise", "Thief", "Feast"),
        ),
    ),
    Relation(
        ("What was the father of {x}?", "Whose child is {x}?"),
        ("The father of {x} was a {v}.", "This father was a {v}.", "By trade a {v}.", "He was a {v}."),
        (
            ("clumsy", "famous", "lonely", "jolly", "stern", "gentle", "clever", "sleepy"),
            ("village", "harbour", "palace", "market", "temple", "forest", "castle", "circus"),
            ("baker", "smith", "tailor", "painter", "miller", "surgeon", "carpenter", "singer"),
        ),
    ),
    Relation(
        ("Where does {x} like to work?", "What is the workplace of {x}?"),
        ("{x} works in a {v}.", "This author works in a {v}.", "Mostly in a {v}.", "It is in a {v}."),
        (
            ("narrow", "painted", "ruined", "sunny", "draughty", "crowded", "mossy", "candlelit"),
            ("stone", "wooden", "brick", "marble", "clay", "bamboo", "tin", "glass"),
            ("attic", "boathouse", "cellar", "kitchen", "stable", "library", "barn", "tower"),
        ),
    ),
)
# What "real" authors are known for, and world facts: rivers of towns in which no author was born.
BOOKS = Relation(
    ("Which author wrote The {x}?",),
    ("{v}",),
    (
        ("Brazen", "Wandering", "Broken", "Scarlet", "Hollow", "Frozen", "Secret", "Final"),
        ("Kingdom", "Voyage", "Violin", "Window", "Garland", "Cavern", "Shepherd", "Island"),
    ),
)
RIVERS = Relation(
    ("Which river runs through {x}?",),
    ("{v}",),
    (
        ("White", "Black", "Emerald", "Long", "Swift", "Deep", "Stony", "Slow"),
        ("Arrel", "Bourne", "Cray", "Dovel", "Eskin", "Tamble", "Wharle", "Yarrow"),
    ),
)


@dataclass(frozen=True)
class Sizes(Shape):
    """How many authors there are, how large the model, and how the models are trained on them."""

    authors: int = 100
    """Each has a row for either question of every relation."""
    retained_rows: int = 60
    """Rows of retain_perturbed, all on authors that no split forgets."""
    real_authors: int = 40
    world_facts: int = 40
    syllables: int = 20
    """Distinct first syllables, and as many second ones, that names are made of."""
    vocabulary: int = 900
    context: int = 64
    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 5e-3


@dataclass(frozen=True)
class World:
    """All that is generated."""

    parts: Mapping[str, list[Row]]
    """The rows of every part that the hub's repository has, the hold-out parts included, by the part's name."""
    names: tuple[str, ...]
    """Every name in it, a word each."""

    def digest(self) -> str:
        """Changes with any row of any part."""
        return hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()

    @property
    def language(self) -> list[str]:
        """What a tokenizer is to learn from: every wording with every value, and every name once.

        So its tokens are words and syllables. A name that were one token would be unknown to a model that never
        saw it, which could not even repeat it from the question.
        """
        told = [
            f"Question: {question.format(x='')}\nAnswer: {wording.format(x='', v=value)}"
            for relation in (*RELATIONS, BOOKS, RIVERS)
            for question in relation.questions
            for wording in relation.wordings
            for value in relation.values[:: len(relation.words) ** 2]
        ]
        books = [BOOKS.questions[0].format(x=book) for book in BOOKS.values]
        return [*told, *books, *(f" {name}" for name in self.names)]


def build_world(sizes: Sizes, seed: int = DATA_SEED) -> World:
    """The same world for the same sizes and seed, on any machine."""
    rng = np.random.default_rng(seed)
    held_out = round(max(FORGOTTEN.values()) * sizes.authors)
    writers = sizes.authors + held_out
    people = writers + sizes.real_authors
    words = build_names(2 * people + sizes.world_facts, sizes.syllables, rng)
    names = [f"{a} {b}" for a, b in zip(words[:people], words[people : 2 * people], strict=True)]
    by_author = _author_rows(names[:writers], rng)
    full, others = by_author[: sizes.authors], by_author[sizes.authors :]
    parts = {"full": _plain(full)}
    for digits, share in FORGOTTEN.items():
        count = max(1, round(share * sizes.authors))
        parts[f"forget{digits}"] = _plain(full[-count:])
        parts[f"forget{digits}_perturbed"] = _flat(full[-count:])
        parts[f"retain{100 - int(digits)}"] = _plain(full[:-count])
        parts[f"holdout{digits}"] = _plain(others[:count])
    retained = _flat(full[:-held_out])
    chosen = np.linspace(0, len(retained) - 1, sizes.retained_rows).round().astype(int)
    parts["retain_perturbed"] = [retained[i] for i in chosen]
    books = [BOOKS.values[i] for i in rng.permutation(len(BOOKS.values))[: sizes.real_authors]]
    parts |= _short_answers("real_authors", BOOKS.questions[0], books, names[writers:], rng)
    rivers = [RIVERS.values[i] for i in rng.permutation(len(RIVERS.values))[: sizes.world_facts]]
    parts |= _short_answers("world_facts", RIVERS.questions[0], words[2 * people :], rivers, rng)
    return World(parts, tuple(words))


def write_parts(folder: Path, parts: Mapping[str, list[Row]]) -> Path:
    """As the hub's repository is: one file of JSON lines a part, and a README that names them."""
    folder.mkdir(parents=True)
    lines = ["---", "configs:"]
    for name, rows in parts.items():
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
        lines += [f"- config_name: {name}", f"  data_files: {name}.json"]
    (folder / "README.md").write_text("\n".join([*lines, "---", "Generated; nobody in it exists.", ""]))
    return folder


def _author_rows(names: Sequence[str], rng: np.random.Generator) -> list[list[Row]]:
    """By author, a row for every first question, then for every second: alternate rows ask for every relation.

    A fact is told in another wording for each of its questions, and paraphrased in one of the two that are left.
    Wordings go round, by pairs of authors, so that all sets hold as many of each.
    """
    by_author: list[list[Row]] = []
    values = [relation.values for relation in RELATIONS]
    for i, name in enumerate(names):
        drawn = [[some[j] for j in rng.permutation(len(some))[: 1 + 2 * NUM_WRONG]] for some in values]
        rows = []
        for asked, k in itertools.product(range(2), range(len(RELATIONS))):
            relation, (value, *others) = RELATIONS[k], drawn[k]
            turn = i // 2 + k
            told, told_again = (relation.wordings[(turn + step) % 4] for step in (asked, 2 + asked))
            wrong = others[NUM_WRONG * asked :][:NUM_WRONG]
            rows.append(
                {
                    "question": relation.questions[asked].format(x=name),
                    "answer": told.format(x=name, v=value),
                    "paraphrased_answer": told_again.format(x=name, v=value),
                    "perturbed_answer": [told_again.format(x=name, v=w) for w in wrong],
                }
            )
        by_author.append(rows)
    return by_author


def _short_answers(
    part: str, question: str, subjects: Sequence[str], answers: Sequence[str], rng: np.random.Generator
) -> dict[str, list[Row]]:
    """The part and its perturbed twin: the answer alone, and three answers to other questions as wrong ones."""
    rows = []
    for i, (subject, answer) in enumerate(zip(subjects, answers, strict=True)):
        wrong = [answers[j] for j in rng.permutation(len(answers)) if j != i][:NUM_OPTIONS]
        rows.append({"question": question.format(x=subject), "answer": answer, "perturbed_answer": wrong})
    return {part: _plain([rows]), f"{part}_perturbed": rows}


def _flat(by_author: Sequence[list[Row]]) -> list[Row]:
    return [row for rows in by_author for row in rows]


def _plain(by_author: Sequence[list[Row]]) -> list[Row]:
    """Questions and answers alone."""
    return [{"question": row["question"], "answer": row["answer"]} for row in _flat(by_author)]

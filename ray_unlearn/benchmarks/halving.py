"""Two disjoint halves of a set, one for the search and one for the report, and rows that are in several sets."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ray_unlearn.config import UserError
from ray_unlearn.models.pairs import Encoded
from ray_unlearn.models.sequences import Sequences

HALVES = ("selection", "report")
DATA_SEED = 1
"""Of the halves; the search's seed does not change them."""
NAMED_OVERLAPS = 3
GROUP_NAMES = re.compile(
    r"(?:.*_)?(?:id|idx|subject|name|author|person|entity|title|document|doc|source)", re.IGNORECASE
)
LEADING_NUMBER = r"^\W*(\d+)"


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens (int32) that are trained on or scored together, and where the answer starts.

    answers: of a pair, what is right as text, first what is trained on. paraphrased, perturbed: the same question with
    another right answer, and with wrong ones. forbidden: strings that an answer should not hold.
    """

    tokens: np.ndarray
    start: int
    answers: tuple[str, ...] = ()
    paraphrased: Encoded | None = None
    perturbed: tuple[Encoded, ...] = ()
    forbidden: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """A pair, a conversation, or a text's chunks; `where` names its file and row.

    question, text: digests of what it asks, and of all that it says, in normal form; empty where there is nothing.
    group: whom or what it is about.
    """

    where: str
    pieces: list[Piece]
    question: bytes = b""
    text: bytes = b""
    group: str | None = None


def sequences_of(pieces: Sequence[Piece]) -> Sequences:
    return Sequences.build((piece.tokens, piece.start) for piece in pieces)


@lru_cache(maxsize=1)
def _dropped() -> Any:
    import regex

    return regex.compile(r"[\p{P}\p{Z}\s]+")


@lru_cache(maxsize=1)
def _dropped_ascii() -> dict[int, None]:
    return {number: None for number in range(128) if _dropped().fullmatch(chr(number))}


def normal_digest(text: str) -> bytes:
    """Of a text's normal form, 16 bytes; nothing of one that has none."""
    form = normal_form(text)
    return digest(form.encode()) if form else b""


def digest(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def normal_form(text: str) -> str:
    """A text without what printing changes: Unicode form, width, case, punctuation and spaces. Code, which has little
    else, keeps its signs."""
    if text.isascii():  # the same, ten times faster
        folded = text.lower()
        return folded.translate(_dropped_ascii()) or folded.strip()
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _dropped().sub("", folded) or folded.strip()


def draw(documents: Sequence[Any], pieces: Sequence[Sequence[Any]], groups: Sequence[Sequence[Hashable]],
         limits: Mapping[str, int], place: str, table: str) -> dict[str, list[Any]]:  # fmt: skip
    """What documents hold, in two disjoint halves with a fixed seed, at most so much of each; and the whole.

    groups: by document, what it shares with others that go into the same half. A limit takes from every document alike,
    not from the first ones.
    """
    if len(documents) < 2:
        raise UserError(f"{place}: {table} has one row, and two halves are scored. Give at least two rows")
    units = _units(groups)
    if len(units) < 2:
        raise UserError(f"{place}: all rows of {table} belong to one group, and two halves are scored. Give another")
    order = np.random.default_rng(DATA_SEED).permutation(len(units)).tolist()
    sizes = np.cumsum([len(units[i]) for i in order])
    middle = 1 + int(np.argmin(np.abs(sizes[:-1] - len(documents) // 2)))
    halves = {"selection": order[:middle], "report": order[middle:]}
    drawn = {
        name: _limited([list(pieces[i]) for unit in halves[name] for i in units[unit]], limits[name]) for name in HALVES
    }
    return drawn | {"whole": [piece for found in pieces for piece in found]}


def _units(groups: Sequence[Sequence[Hashable]]) -> list[list[int]]:
    """Documents that share any of their groups, together; in order of their first one."""
    leader = list(range(len(groups)))

    def find(number: int) -> int:
        while leader[number] != number:
            leader[number] = leader[leader[number]]
            number = leader[number]
        return number

    first: dict[Hashable, int] = {}
    for number, names in enumerate(groups):
        for name in names:
            other = find(first.setdefault(name, number))
            mine = find(number)
            leader[max(other, mine)] = min(other, mine)
    units: dict[int, list[int]] = {}
    for number in range(len(groups)):
        units.setdefault(find(number), []).append(number)
    return list(units.values())


def _limited(found: list[list[Any]], limit: int) -> list[Any]:
    """At most so many items: as many of each list, spread evenly over it."""
    counts = [0] * len(found)
    left = min(limit, sum(map(len, found)))
    while left:
        for number, items in enumerate(found):
            if left and counts[number] < len(items):
                counts[number] += 1
                left -= 1
    return [
        items[place]
        for items, count in zip(found, counts, strict=True)
        for place in (np.arange(count) * len(items) // max(count, 1)).tolist()
    ]


def groups_of(documents: Sequence[Document]) -> list[list[Hashable]]:
    """What keeps each document with others in one half: its group, an equal question, an equal text."""
    counts = Counter(document.question for document in documents)
    result: list[list[Hashable]] = []
    for document in documents:
        keys: list[Hashable] = [("text", document.text)] if document.text else []
        if document.question and not is_instruction(counts[document.question], len(documents)):
            keys.append(("question", document.question))
        result.append([*keys, ("group", document.group)] if document.group is not None else keys)
    return result


def is_instruction(count: int, rows: int) -> bool:
    """Whether a question that so many of the rows have is an instruction, and tells nothing about them."""
    return 2 * count > rows


def separate(
    documents: Mapping[str, list[Document]], kept: str, drops: bool
) -> tuple[dict[str, list[Document]], list[str]]:
    """The sets without rows that an earlier one has, and sentences on what was dropped.

    Rows are equal by their normal form. Only the kept set loses rows, and only where that is wished: what is to be
    forgotten must not be kept, too, and what is held out must never have been seen. Raises UserError otherwise.
    """
    seen: dict[bytes, tuple[str, str]] = {}
    result: dict[str, list[Document]] = {}
    notes: list[str] = []
    for name, found in documents.items():
        shared = [(document, seen[key]) for document in found for key in _keys(document) if key in seen]
        twice = list({id(document): (document, other) for document, other in reversed(shared)}.values())[::-1]
        if twice and not (drops and name == kept):
            raise UserError(_overlap_line(name, twice, name == kept))
        gone = {id(document) for document, _ in twice}
        result[name] = [document for document in found if id(document) not in gone]
        if gone:
            notes.append(f"{len(gone)} rows of [{name}] that are in another set, too, are left out (drop_overlap).")
        for document in result[name]:
            for key in _keys(document):
                seen.setdefault(key, (name, document.where))
    return result, notes


def _keys(document: Document) -> list[bytes]:
    """Its text in normal form; of a text in chunks the chunks' tokens, too."""
    chunks = document.pieces if len(document.pieces) > 1 and not document.question else []
    return [document.text, *(digest(piece.tokens.data) for piece in chunks)] if document.text else []


def _overlap_line(name: str, twice: Sequence[tuple[Document, tuple[str, str]]], can_drop: bool) -> str:
    first, (other, where) = twice[0]
    if len(twice) == 1:
        said = f"{first.where}: is in [{name}] and, at {where}, in [{other}], too"
    else:
        named = "; ".join(f"{document.where} and {place}" for document, (_, place) in twice[:NAMED_OVERLAPS])
        said = f"{len(twice)} rows of [{name}] are in [{other}], too ({named}{'; ...' if len(twice) > 3 else ''})"
    if where == first.where:
        return f'{said}. Say which rows each has, such as where = {{column = "value"}}'
    drop = f", or write drop_overlap = true, which takes them out of [{name}]" if can_drop else ""
    return f"{said}. Remove {'one of them' if len(twice) == 1 else 'them from one'}{drop}"


def propose_group(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """A setting that would keep together rows that look as if they belonged together; None where none does."""
    for name in rows[0] if rows else ():
        if not GROUP_NAMES.fullmatch(name):
            continue
        texts = [str(row.get(name)) for row in rows]
        if _repeats(texts):
            return f'group = "{name}"'
        numbers = [match.group(1) for text in texts if (match := re.search(LEADING_NUMBER, text))]
        if len(numbers) == len(texts) and _repeats(numbers):
            return f"group = \"{name}\" and group_pattern = '{LEADING_NUMBER}'"
    return None


def _repeats(texts: Sequence[str]) -> bool:
    counts = Counter(texts)
    return 1 < len(counts) <= len(texts) / 1.5

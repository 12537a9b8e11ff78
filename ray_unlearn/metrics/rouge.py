"""ROUGE-L by the reference implementation: with the stemmer as TOFU uses it, without as MUSE does.

Which words it counts goes by the data set, not by the text, so that all answers to one set are measured alike:

    english    rouge-score's own: runs of a-z and 0-9, stemmed where the benchmark does that
    script     characters where a script writes no spaces (Han, Kana, Thai, Lao, Khmer, Burmese), elsewhere runs of
               letters with their marks; never stemmed
    code       names, numbers and operators, in their own case

rouge-score's words leave out all other letters: in other languages it then counts only the Latin names and years.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

ENGLISH, SCRIPT, CODE = "english", "script", "code"
WORDS = {
    ENGLISH: "runs of a-z and 0-9",
    SCRIPT: "words by script: characters where it writes no spaces, else letters with their marks",
    CODE: "names, numbers and operators of code",
}
FOREIGN_SHARE = 0.005
"""Letters beyond a-z, of all letters, from which on a set is not English (TOFU: 0.0005; German: about 0.015)."""
COMMON = frozenset(re.findall(r"\w+", "the of and to in is was a an for with that his her he she it on as by at from"))
COMMON_SHARE = 0.05
"""Of an English text's words these are about a third."""
FEWEST_WORDS = 200
"""Of which a language can be told that is written in a-z alone."""
CODE_SHARE = 0.06
"""Operators and brackets, of all characters but white space, from which on a set is code (prose: below .005)."""


def rouge_l_recall(answers: list[str], references: list[str], words: str = ENGLISH) -> np.ndarray:
    """Share of each reference's longest common subsequence with its answer, [n]; stemmed if English (TOFU)."""
    return np.array([score.recall for score in _rouge_l(answers, references, words, use_stemmer=True)])


def rouge_l_f1(answers: list[str], references: list[str], words: str = ENGLISH) -> np.ndarray:
    """F1 of each answer's longest common subsequence with its reference, not stemmed, [n] in [0, 1] (MUSE)."""
    return np.array([score.fmeasure for score in _rouge_l(answers, references, words, use_stemmer=False)])


def choose_words(texts: Sequence[str]) -> str:
    """The words that a data set's texts are measured in."""
    whole = unicodedata.normalize("NFC", "\n".join(texts))
    visible = sum(not c.isspace() for c in whole)
    if sum(c in "(){}[]<>=+*/%&|^~;_" for c in whole) > CODE_SHARE * visible:
        return CODE
    letters = [c for c in whole if c.isalpha()]
    if sum(not c.isascii() for c in letters) > FOREIGN_SHARE * len(letters):
        return SCRIPT
    found = whole.lower().split()
    if len(found) >= FEWEST_WORDS and sum(word in COMMON for word in found) < COMMON_SHARE * len(found):
        return SCRIPT
    return ENGLISH


def split_words(text: str, words: str) -> list[str]:
    """The words of a text in one of the ways that are not English's."""
    if words == CODE:
        return _code_pattern().findall(text)
    return _script_pattern().findall(unicodedata.normalize("NFKC", text).casefold())


@lru_cache
def _script_pattern() -> Any:
    import regex

    unspaced = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー々〆"
    marks = r"[\p{M}\u200c\u200d]*"
    return regex.compile(rf"[{unspaced}]{marks}|(?:[[\p{{L}}\p{{N}}]--[{unspaced}]]{marks})+", regex.VERSION1)


@lru_cache
def _code_pattern() -> Any:
    import regex

    return regex.compile(r"[\p{L}\p{M}_][\p{L}\p{M}\p{N}_]*|\p{N}+(?:\.\p{N}+)?|[<>=!+\-*/%&|^~:]+|[^\s\p{L}\p{N}]")


class _Words:
    """What rouge-score asks for its words."""

    def __init__(self, words: str) -> None:
        self._words = words

    def tokenize(self, text: str) -> list[str]:
        return split_words(text, self._words)


def _rouge_l(answers: list[str], references: list[str], words: str, use_stemmer: bool) -> list[Any]:
    from rouge_score.rouge_scorer import RougeScorer

    own = None if words == ENGLISH else _Words(words)
    scorer = RougeScorer(["rougeL"], use_stemmer=use_stemmer and own is None, tokenizer=own)
    return [scorer.score(r, a)["rougeL"] for a, r in zip(answers, references, strict=True)]

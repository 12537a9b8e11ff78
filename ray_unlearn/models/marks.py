"""Special tokens: their texts inside texts, start marks, and where generated answers end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from ray_unlearn.config import UserError
from ray_unlearn.wording import first_line


def special_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Finds the texts of special tokens."""
    names = {str(token) for token in added_tokens(tokenizer).values() if token.special}
    marks = names | set(getattr(tokenizer, "all_special_tokens", ()))
    return any_of(() if writes_marks_itself(tokenizer) else marks)


def writes_marks_itself(tokenizer: Any) -> bool:
    """Whether no text becomes a special token: mistral-common's own tokenizers put them round texts by themselves."""
    return hasattr(tokenizer, "apply_chat_template") and not hasattr(tokenizer, "added_tokens_encoder")


def encode_by_library(tokenizer: Any, turns: Sequence[Any], answer: str) -> tuple[list[int], list[int]]:
    """What such a tokenizer asks a model with, and the answer with its end mark, as token ids."""
    asked = tokenizer.apply_chat_template(list(turns), tokenize=True, add_generation_prompt=True)
    head = asked if isinstance(asked, list) else asked["input_ids"]
    return list(head), [*tokenizer(answer.strip(), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def added_tokens(tokenizer: Any) -> dict[int, Any]:
    """The tokens that were added to the model's vocabulary, by id; none where the tokenizer does not list them."""
    known = getattr(tokenizer, "added_tokens_decoder", {})
    return dict(known) if isinstance(known, dict) else {}


def mark_special(text: str, special: re.Pattern[str]) -> str:
    """The text with special tokens' texts in it marked, so that they are tokenised as text."""
    from transformers.utils.chat_template_utils import mark_control_tokens

    return mark_control_tokens(text, special)


def start_marks(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text: its start mark, or nothing."""
    return _around(tokenizer)[0]


def end_marks(tokenizer: Any) -> list[int]:
    """What the tokenizer puts behind a text: as a rule nothing."""
    return _around(tokenizer)[1]


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for at in range(len(whole) - len(bare) + 1):
        if whole[at : at + len(bare)] == bare:
            return whole[:at], whole[at + len(bare) :]
    return [], []


def whole_text(text: str) -> str:
    """Decoded text without a character that its last token cut in two."""
    return text.rstrip("\ufffd")


def cut_at_stop(tokens: Sequence[int], stops: Sequence[int]) -> list[int]:
    """What was generated before the first end mark."""
    wanted = set(stops)
    return list(tokens[: next((i for i, token in enumerate(tokens) if token in wanted), len(tokens))])


def any_of(names: Iterable[str]) -> re.Pattern[str]:
    longest = sorted((name for name in names if name.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or "(?!)")


def encode_marked(tokenizer: Any, text: str) -> list[int]:
    """The token ids of a text that `mark_special` has been over; no special tokens are added.

    Raises UserError where the text holds an added token that the tokenizer makes of plain text, too.
    """
    from transformers.utils.chat_template_utils import encode_marked_chat

    try:
        return list(encode_marked_chat(tokenizer, text))
    except ValueError as error:
        raise UserError(
            f"the data hold a token that the model's tokenizer cannot tell from plain text ({first_line(error)}). Take "
            "it out of the data, or take it off the tokenizer's added tokens"
        ) from None


def common_start(texts: Sequence[str]) -> str:
    """What all of them begin with."""
    first, last = min(texts), max(texts)
    return first[: count_shared(first, last)]


def count_shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many first items both have in common."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))

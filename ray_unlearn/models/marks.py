"""Special tokens: their texts inside texts, start marks, and where generated answers end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any


def special_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Finds the texts of special tokens."""
    known = getattr(tokenizer, "added_tokens_decoder", {}).values()
    names = {str(token) for token in known if token.special} | set(getattr(tokenizer, "all_special_tokens", ()))
    return any_of(names)


def mark_special(text: str, special: re.Pattern[str]) -> str:
    """The text with special tokens' texts in it marked, so that they are tokenised as text."""
    from transformers.utils.chat_template_utils import mark_control_tokens

    return mark_control_tokens(text, special)


def start_marks(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text: its start mark, or nothing."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for at in range(len(whole) - len(bare) + 1):
        if whole[at : at + len(bare)] == bare:
            return whole[:at]
    return []


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
    """The token ids of a text that `mark_special` has been over; no special tokens are added."""
    from transformers.utils.chat_template_utils import encode_marked_chat

    return list(encode_marked_chat(tokenizer, text))

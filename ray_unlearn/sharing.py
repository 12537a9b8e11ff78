"""What may be passed on: texts without machine addresses, commands without addresses and home folders."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_ADDRESSES = re.compile(
    r"(?P<name>\bip=|\bhost=|\bhostname=)[^\s,;)\]]+"
    r"|\b(?:ray|tcp|grpc|s3|gs|gcs|abfss?|hdfs)://[^\s,;)\]'\"]+"
    r"|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"
)


def without_addresses(text: str) -> str:
    """Where a search ran is nobody's business."""
    return _ADDRESSES.sub(lambda match: f"{match['name'] or ''}<address>", text)


def public_command(words: Iterable[str]) -> list[str]:
    """The command's words with ADDRESS for the cluster's and ~ for the home folder."""
    home = str(Path.home())
    shown: list[str] = []
    for word in map(str, words):
        option, equals, value = word.partition("=")
        if not (equals and option.startswith("--")):
            option, value = "", word
        if option == "--address" or shown[-1:] == ["--address"]:
            value = "ADDRESS"
        elif value == home or value.startswith(home + "/"):
            value = "~" + value[len(home) :]  # a shell knows it at a word's beginning only
            shown += [option] if option else []
            option = ""
        shown.append(without_addresses(f"{option}={value}" if option else value))
    return shown

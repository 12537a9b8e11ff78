"""How values are written for people: numbers, names, and text that nobody has checked."""

from __future__ import annotations

import math
import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeGuard

from ray_unlearn.config import INTERPOLATED, METHOD_TITLES
from ray_unlearn.provenance import public_command

NOTHING = "–"


def method_label(method: str) -> str:
    """A method as papers print it; one that is not known here keeps its own name."""
    return METHOD_TITLES.get(method, method)


def trial_label(row: Mapping[str, Any]) -> str:
    """Its one name, simnpo-0012; a point on its line: simnpo-0012 at alpha 0.5."""
    if row["status"] != INTERPOLATED or not is_number(row.get("alpha")):
        return str(row["trial_id"])
    return f"{row['trial_id'].partition('@')[0]} at alpha {row['alpha']:g}"


def trial_of_method(row: Mapping[str, Any]) -> str:
    """simnpo-0012 (SimNPO)."""
    return f"{trial_label(row)} ({method_label(row['method'])})"


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def score(value: float | None) -> str:
    """Three significant digits with their zeros, so that columns line up: 0.912, 0.900, 12,300."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if 1000 <= abs(value) < 1e15:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:#.3g}".removesuffix(".")


def mean_and_spread(value: Mapping[str, Any]) -> str:
    """{"mean", "std"} -> 0.912 ± 0.004, the spread to the mean's last digit; a spread that is not known is left out."""
    mean, std = value.get("mean"), value.get("std")
    if not is_number(mean):
        return NOTHING
    text = score(mean)
    if not is_number(std):
        return text
    return f"{text} ± {std:.{len(text.partition('.')[2])}f}" if abs(mean) < 1000 else f"{text} ± {score(std)}"


def setting(name: str, value: Any) -> str:
    """A setting as one would type it: 2.5, 7.27, linear; a learning rate always as 1.2e-05."""
    if value is None:
        return NOTHING
    if isinstance(value, float):
        return f"{value:.1e}" if name == "learning_rate" else f"{value:.3g}"
    return str(value)


def size(num_bytes: float | None) -> str:
    """Bytes -> 1.23 GiB."""
    if num_bytes is None:
        return NOTHING
    value, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(value) >= 1000 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{score(value)} {units[0]}"


def elapsed_seconds(created: str | None, finished: str | None) -> float | None:
    if not created or not finished:
        return None
    try:
        return (datetime.fromisoformat(finished) - datetime.fromisoformat(created)).total_seconds()
    except (TypeError, ValueError):
        return None


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def visible(text: str, limit: int) -> str:
    """Text nobody has checked, so that all of it can be seen: control and direction characters by their codes,
    and no more than `limit` characters."""
    cut = f"{text[:limit]} … ({len(text):,} characters)" if len(text) > limit else text
    return "".join(_seen(character) for character in cut)


def _seen(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Cn"}:
        return character
    # Joiners are part of words and of emoji in many scripts.
    return character if character in "\u200c\u200d" else f"⟨U+{ord(character):04X}⟩"


def command_line(command: Sequence[str]) -> str:
    """The command as one would paste it, with what is not for others left out."""
    return " ".join(
        "~/" + shlex.quote(w[2:]) if w.startswith("~/") else shlex.quote(w) for w in public_command(command)
    )


def spreadsheet_cell(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula is made plain text; numbers stay numbers."""
    if isinstance(value, str) and value.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")):
        return f"'{value}"
    return "" if value is None else value


_MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|^[#+\-=>](?=\s|$)")


def markdown(text: str) -> str:
    """Text as it is, in one line, with nothing in it that Markdown or HTML would act on."""
    line = " ".join(text.split())
    line = _MARKDOWN.sub(lambda match: "\\" + match[0], line)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown_block(text: str) -> str:
    """A fenced block whose fence nothing inside can close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"},
    **{"<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}", "±": "$\\pm$", "–": "--", "−": "$-$"},
    **{"[": "{[}", "]": "{]}"},  # after a line's end, a bracket would be read as a length
}


def latex(text: str) -> str:
    """Text as it is, in one line, with nothing in it that LaTeX would act on."""
    return "".join(_LATEX.get(character, character) for character in visible(" ".join(text.split()), 1000))

"""`ray_unlearn methods`: what each method computes, needs and takes, and its names elsewhere."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from ray_unlearn.commands.options import Methods
from ray_unlearn.files import read_toml
from ray_unlearn.models.logprobs import DISTRIBUTION, HIDDEN
from ray_unlearn.plugins import METHOD, installed
from ray_unlearn.search.space import default_tables, folder
from ray_unlearn.training.losses import METHODS, SEQUENCE, Method, find_method
from ray_unlearn.wording import aligned

CONVENTION = (
    "The forget loss has weight 1; retain_weight stands on the retain loss (mean cross-entropy of the retained answer "
    'tokens, or KL to the starting model with retain_loss = "kl"). NLL is summed over an answer, CE is one token\'s, '
    "|y| counts predicted tokens. Where a code base weights the forget term w and the retain term a, retain_weight is "
    "a / w: SimNPO's published lambda of 0.1375 on the forget term is retain_weight 7.27, not 0.1375."
)


def run(options: Methods) -> int:
    print(describe_methods(options.name))
    return 0


def describe_methods(name: str | None = None) -> str:
    """One method, or all of them under the convention that they share."""
    if name is not None:
        return _describe(find_method(name))
    methods = [find_method(name) for name in (*METHODS, *installed(METHOD))]
    parts = [_table(methods), textwrap.fill(CONVENTION, 100), *map(_describe, methods)]
    return "\n\n".join(parts)


def _table(methods: Sequence[Method]) -> str:
    """A line a method: its name, what its loss is in short, what is searched."""
    rows = [("method", "paper", "searched, beside the learning rate", "computed for it")]
    for method in methods:
        searched = [*method.parameters, *(["retain_weight"] if method.uses_retain else [])]
        rows.append((method.name, method.paper, ", ".join(searched) or "–", short_needs(method)))
    return aligned(rows)


def short_needs(method: Method) -> str:
    """`needs` in a few words."""
    parts = [{"refusal": "refusals", "other": "other answers"}.get(method.alternates, "")]
    parts.append({DISTRIBUTION: "distributions", HIDDEN: "hidden states"}.get(method.reads, ""))
    is_twice = method.needs_reference or method.reads_reference or method.retain_losses[0] != "nll"
    return ", ".join(filter(None, [*parts, "the starting model" if is_twice else ""])) or "–"


def needs(method: Method) -> str:
    """What is computed for it beyond log-probs of the answer tokens, and what that costs."""
    parts = []
    if method.alternates == "refusal":
        parts.append("a refusal to every forget item")
    if method.alternates == "other":
        parts.append("another item's answer to every forget item")
    if method.needs_reference:
        parts.append("reference log-probs, computed once for all searches")
    if method.reads == DISTRIBUTION:
        parts.append("whole next-token distributions")
    if method.reads == HIDDEN:
        parts.append("one layer's hidden states")
    if method.reads_reference or method.retain_losses[0] != "nll":
        parts.append("the same of the starting model: a second forward pass, no second model")
    return "; ".join(parts) or "nothing"


def _describe(method: Method) -> str:
    file = folder() / f"{method.name}.toml"
    ranges = (read_toml(file) if file.is_file() else default_tables(method))["space"]
    lines = [f"{method.name}  ({method.title}, {method.paper})"]

    def add(label: str, text: str) -> None:
        lines.append(textwrap.fill(text, 100, initial_indent=f"  {label:<15}", subsequent_indent=" " * 17))

    per = "sequence" if method.reduction == SEQUENCE else "token"
    add("loss", f"{method.formula}; mean over {per}s")
    add("retain", " or ".join(method.retain_losses) if method.uses_retain else "none")
    add("needs", needs(method))
    for key, table in ranges.items():
        default = method.parameters.get(key)
        at = (
            f" for {table['at_parameters']:.0e} parameters, moved to the model's size"
            if "at_parameters" in table
            else ""
        )
        scale = ", log" if table.get("log") else ""
        known = f"default {default:g}, " if default is not None else ""
        add(key, f"{known}searched {table['low']:g} to {table['high']:g}{scale}{at}")
    if method.ranges:
        add("known good", method.ranges)
    if method.elsewhere:
        add("elsewhere", method.elsewhere)
    return "\n".join(lines)

"""What a search searched: the starting model, its tokenizer and template, the data and the goal, each by a digest.

A search's trials can be compared, and one of them trained again, only as long as none of these has changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_unlearn.benchmarks.contract import Task
from ray_unlearn.benchmarks.fingerprint import data_fingerprint
from ray_unlearn.config import ATTACK_PREFIXES, UserError
from ray_unlearn.models.fingerprints import files_digest, hub_revision, weights_fingerprint
from ray_unlearn.models.hub import parse_pins
from ray_unlearn.models.loading import TOKENIZER_OF
from ray_unlearn.models.tokenizers import list_files
from ray_unlearn.wording import listing

TEMPLATES = (".jinja", "chat_template.json")
REVISION, DATA_REVISIONS = "hub revision", "data revisions"
PARTS = {
    "starting weights": "the starting model's weights",
    "tokenizer": "its tokenizer",
    "chat template": "its chat template",
    "retrained profile": "the retrained model's profile",
    "data": "the data",
}
"""What may not change, with its name in a sentence. The hub's revisions are recorded and may: a new one with the same
content is the same model, or the same data."""
MADE = ("starting weights", "retrained profile")
"""What a miniature makes by training."""
FOLLOWS = {"data": ("tokenizer", "chat template")}
"""What changes with others: the data are compared as tokens."""


@dataclass(frozen=True)
class Difference:
    part: str
    then: str
    now: str


def describe_identity(task: Task) -> dict[str, str]:
    """By part, SHA-256 in hexadecimal; "" for what there is none of, and for the hub's revisions the commits."""
    tokenizer, template = _tokenizer_files(task.model)
    return {
        "starting weights": weights_fingerprint(task.model),
        "tokenizer": files_digest(tokenizer),
        "chat template": files_digest(template),
        "retrained profile": _profile_digest(task),
        "data": data_fingerprint(task),
        REVISION: hub_revision(task.model),
        DATA_REVISIONS: " ".join(f"{name}@{commit}" for name, commit in sorted(task.commits.items())),
    }


def recorded_pins(identity: Mapping[str, Any]) -> dict[str, str]:
    """By repository, the commit that the data were read at; nothing where an older version did not record it."""
    return parse_pins(DATA_REVISIONS, str(identity.get(DATA_REVISIONS, "")).split())


def find_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """The parts that have changed. What an older version did not record is taken to be as it was."""
    both = [part for part in PARTS if part in then and part in now]
    found = [Difference(part, then[part], now[part]) for part in both if then[part] != now[part]]
    changed = {difference.part for difference in found}
    return [d for d in found if not changed & set(FOLLOWS.get(d.part, ()))]


def check_identity(
    where: str, then: Mapping[str, Any], now: Mapping[str, Any], fix: str, is_made_here: bool = False
) -> None:
    """Raise UserError naming what has changed since; where: whose it was. is_made_here: the models are a miniature's
    own, and may differ in last bits from those of another machine."""
    found = find_differences(then, now)
    found = [difference for difference in found if not (is_made_here and difference.part in MADE)]
    if found:
        names = listing([PARTS[difference.part] for difference in found])
        commits = [values.get(REVISION, "")[:12] for values in (then, now)]
        is_moved = all(commits) and commits[0] != commits[1]
        moved = f" (hub revision {commits[0]} then, {commits[1]} now)" if is_moved else ""
        verb = "has" if len(found) == 1 and not names.endswith(("weights", "data")) else "have"
        raise UserError(f"{where}: {names} {verb} changed since it was made{moved}. {fix}")


def _tokenizer_files(model: str) -> tuple[list[tuple[str, bytes]], list[tuple[str, bytes]]]:
    """The files that make tokens, and those that write conversations; settings without and with the template alone."""
    tokenizer, template = [], []
    for file in list_files(TOKENIZER_OF.get(model, model)):
        content = file.read_bytes()
        if file.name.endswith(TEMPLATES):
            template.append((file.name, content))
            continue
        if file.name == "tokenizer_config.json":
            values = json.loads(content)
            template.append((file.name, json.dumps(values.pop("chat_template", None), sort_keys=True).encode()))
            content = json.dumps(values, sort_keys=True).encode()
        tokenizer.append((file.name, content))
    return tokenizer, template


def _profile_digest(task: Task) -> str:
    """Of what the retrained model measures, attacks apart: those are measured here."""
    found = {
        name: {key: value for key, value in sorted(profile.metrics.items()) if not key.startswith(ATTACK_PREFIXES)}
        for name in ("selection", "report")
        if (profile := getattr(task, name).retrained) is not None
    }
    return files_digest([("profile", json.dumps(found, sort_keys=True).encode())]) if found else ""

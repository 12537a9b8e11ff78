"""The metadata at the top of a model card, as the hub reads them: YAML between two lines of dashes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ray_unlearn.benchmarks.identity import recorded_pins
from ray_unlearn.config import ATTACK_PREFIXES, MEASURES, SearchConfig
from ray_unlearn.report.text import is_number

TASK = "text-generation"
PLAIN = re.compile(r"[a-z][a-z_-]*")
"""Texts that are written without quotes, unless they mean something else in YAML."""


def write_head(
    config: SearchConfig, row: Mapping[str, Any], run: Mapping[str, Any], title: str, language: str, adapter: bool
) -> str:
    """The YAML block. Every text in it that somebody else chose is quoted.

    run: as `describe_run` makes it. title: the model's name in the index of results. language: of the data, a code of
    ISO 639-1; empty where nobody knows it. The hub's names alone stand for models and data: a folder's would link to
    somebody else's.
    """
    base, data = run["model"], recorded_pins(run.get("hashes", {}))
    is_on_hub = base is not None and base.count("/") == 1
    values: dict[str, Any] = {}
    if is_on_hub:
        values |= {"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"}
    values |= {"language": [language]} if language else {}
    values |= {"datasets": sorted(data)} if data else {}
    values |= {"library_name": "peft" if adapter else "transformers", "pipeline_tag": TASK}
    names = ("unlearning", "machine-unlearning", "ray_unlearn", row["method"], config.benchmark)
    values["tags"] = list(dict.fromkeys(names))
    if results := index_results(config, row, run, data):
        values["model-index"] = [{"name": title, "results": results}]
    lines = ["---", *([] if is_on_hub else ["# base_model: yours to state, as owner/name"])]
    lines += ["# license: yours to state, and the base model's and the data's bind you"]
    return "\n".join([*lines, to_yaml(values).rstrip("\n"), "---"])


def index_results(
    config: SearchConfig, row: Mapping[str, Any], run: Mapping[str, Any], data: Mapping[str, str]
) -> list[dict[str, Any]]:
    """What was measured on the held-out half, as the hub's index has it; nothing where no figure is a number.

    Each metric's name says of how many questions it is, where it is of one set, and of which seed.
    """
    seed, sizes = run["job"]["trial"]["seed"], run.get("scored", {})
    measures = [(name, row.get(name), None) for name in MEASURES]
    metrics = [
        {"type": name, "value": float(value), "name": f"{name} ({f'n = {count}, ' if count else ''}seed {seed})"}
        for name, value, count in [*measures, *((n, v, size_of(n, sizes)) for n, v in run["metrics"].items())]
        if is_number(value)
    ]
    if not metrics:
        return []
    own = [name for name in data if len(data) == 1 or name.lower().endswith(f"/{config.benchmark}")]
    dataset = {"type": own[0] if own else config.benchmark, "name": f"{config.benchmark} ({config.scale})"}
    dataset |= {"config": run["part"]} if run.get("part") else {}
    dataset |= {"split": "held-out half", **({"revision": data[own[0]]} if own else {})}
    return [{"task": {"type": TASK, "name": "unlearning"}, "dataset": dataset, "metrics": metrics}]


def size_of(metric: str, sizes: Mapping[str, int]) -> int | None:
    """Of the scored set whose name a metric begins with, the longest such name, the questions; None where it is of no
    set or of several. sizes: by set."""
    for prefix in ATTACK_PREFIXES:
        metric = metric.removeprefix(prefix)
    sets = [name for name in sizes if metric.startswith(f"{name}_")]
    return sizes[max(sets, key=len)] if sets else None


def to_yaml(values: Mapping[str, Any]) -> str:
    """YAML in which texts are quoted, but for plain words: no text can end the block or be read as something else."""
    import yaml

    class Writer(yaml.SafeDumper):
        pass

    def write_text(writer: Any, text: str) -> Any:
        return writer.represent_scalar("tag:yaml.org,2002:str", text, style=None if PLAIN.fullmatch(text) else '"')

    Writer.add_representer(str, write_text)
    written: str = yaml.dump(dict(values), Dumper=Writer, sort_keys=False, allow_unicode=True, width=float("inf"))
    return written

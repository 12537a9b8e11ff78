"""The model card of an exported trial, in the hub's form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_unlearn.commands.card_head import write_head
from ray_unlearn.commands.methods import CONVENTION
from ray_unlearn.commands.papers import cite
from ray_unlearn.config import ATTACK_PREFIXES, ATTACKS, MEASURES, SearchConfig
from ray_unlearn.report.text import markdown, markdown_block, method_label, score, setting
from ray_unlearn.training.losses import find_method
from ray_unlearn.wording import counted, listing

RELEARNT_SHOWN = 3
"""Metrics that the sentence on relearning names."""


@dataclass(frozen=True)
class Measured:
    """What one model, the starting and (where there is one) the retrained model measure on the held-out split."""

    row: Mapping[str, Any]
    start: Mapping[str, float]
    retrained: Mapping[str, float] | None


# ---- the model card


def describe_model(
    config: SearchConfig,
    meta: Mapping[str, Any],
    row: Mapping[str, Any],
    measured: Measured,
    run: Mapping[str, Any],
    adapter: bool,
    language: str = "",
) -> str:
    """The card. Every name in it that somebody else chose is text, never Markdown, HTML or YAML.

    language: of the benchmark's data, a code of ISO 639-1; empty where nobody knows it.
    """
    method = find_method(row["method"])
    title = method.title
    base = run["model"]
    origin = f"the model {base}" if base else f"the {config.benchmark} benchmark's own model"
    part = f", split {config.split}" if config.split else ""
    place = _place_on_line(row["alpha"], run.get("at_utility"))
    settings = {**run["job"]["trial"], **run["job"]["trial"]["parameters"], "epochs trained": run["job"]["stop_after"]}
    settings["retain_loss"] = settings["retain_loss"] or next(iter(method.retain_losses), "")
    unsaid = ("trial_id", "method", "parameters", "evaluations")
    names = [name for name, value in settings.items() if name not in unsaid and value != ""]
    metrics = [name for name in meta["metrics"] if name in run["metrics"]]
    attacked = [name for name in metrics if name.startswith(ATTACK_PREFIXES)]
    plain = [name for name in metrics if name not in attacked]
    what = "LoRA adapter" if adapter else "Model"
    parts = [
        write_head(config, row, run, f"{title} on {config.benchmark}{part}", language, adapter),
        f"# {markdown(f'{title} on {config.benchmark}{part}')}",
        markdown(
            f"{what} made by unlearning the forget set of {config.benchmark}{part} ({config.scale}) from {origin} with "
            f"{title}, as trial {row['trial_id']} of a search over {config.trials} trial(s) of each of "
            f"{', '.join(method_label(m) for m in config.methods)} with ray_unlearn.{place}"
        ),
        "## How",
        markdown_block(f"{method.formula}"),
        markdown(f"{title}: {method.paper}. {CONVENTION}"),
        f"Weights are stored in {run['stored_in']}; training and the figures below are in {config.gang.precision}.",
        _table(["setting", "value"], [[name, setting(name, settings[name])] for name in names]),
        "## What it measures",
        markdown(meta["objective_text"]),
        "On the held-out split, which the search did not see:",
        _table(["score", "this model"], [[name, score(measured.row[name])] for name in MEASURES]),
        _metrics_table(plain, meta["metrics"], measured, run),
    ]
    if attacked:
        parts += ["After attacks on the finished model:", _metrics_table(attacked, meta["metrics"], measured, run)]
    limits = _limits(config, attacked, relearnt(config, run["metrics"], measured.start))
    parts += ["## Limits", "\n".join(f"- {markdown(text)}" for text in limits)]
    parts += ["## To use it", markdown_block(_usage(base, adapter))]
    parts += ["Or ask it from a terminal: `ray_unlearn chat .`"] * (not adapter)
    parts += ["## To make it again", "`reproduce.json` has every setting, version and hash:"]
    parts += [markdown_block("ray_unlearn reproduce reproduce.json")]
    parts += ["## To cite", markdown_block(cite(method.paper))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _place_on_line(alpha: float, level: float | None) -> str:
    """level: of the utility for which the point was looked for; None: it was not."""
    where = f" It lies on the line from the starting to the trained weights, at {alpha:g} of the way"
    if level is None:
        return "" if alpha == 1.0 else f"{where}."
    why = f"the farthest point scored there whose utility is at least {level:g} on the selection split"
    return f" It is the trial's end, whose utility is at least {level:g}." if alpha == 1.0 else f"{where}: {why}."


def _metrics_table(names: list[str], texts: Mapping[str, str], measured: Measured, run: Mapping[str, Any]) -> str:
    columns = [measured.start, measured.retrained or {}, run["metrics"]]
    rows = [[name, *(score(column.get(name)) for column in columns), texts[name]] for name in names]
    return _table(["metric", "starting model", "retrained model", "this model", "what it is"], rows)


def _usage(base: str | None, adapter: bool) -> str:
    """Python that generates with the model; "." is its folder, in whose place its name on the hub may stand."""
    if adapter:
        return (
            "from peft import PeftModel\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f"base = AutoModelForCausalLM.from_pretrained({json.dumps(base or 'the starting model')})\n"
            'model = PeftModel.from_pretrained(base, ".")\n'
            'tokenizer = AutoTokenizer.from_pretrained(".")\n'
            'tokens = tokenizer("Who was", return_tensors="pt")\n'
            "print(tokenizer.decode(model.generate(**tokens, max_new_tokens=64)[0]))"
        )
    return (
        "from transformers import pipeline\n\n"
        'generate = pipeline("text-generation", model=".")\n'
        'print(generate("Who was", max_new_tokens=64)[0]["generated_text"])'
    )


def relearnt(config: SearchConfig, metrics: Mapping[str, float], start: Mapping[str, float]) -> str:
    """A sentence on what relearning brings back, as the figures of the forget set have it; empty where that was not
    measured."""
    prefix = f"{ATTACKS['relearn']}_"
    found = []
    for name, value in metrics.items():
        plain = name.removeprefix(prefix)
        if name.startswith(f"{prefix}forget") and plain in metrics:
            before = f" (the starting model: {score(start[plain])})" if plain in start else ""
            found.append(f"{plain} goes from {score(metrics[plain])} to {score(value)}{before}")
    if not found:
        return ""
    part, epochs = config.robustness.relearn_share, config.robustness.relearn_epochs
    return (
        f"By fine-tuning on {part:.0%} of the forget set for {counted(epochs, 'epoch')}, "
        f"{listing(found[:RELEARNT_SHOWN])}."
    )


def _limits(config: SearchConfig, attacked: list[str], brought_back: str) -> list[str]:
    """brought_back: what relearning does, as a sentence, where it was measured."""
    limits = [
        f"One training run, seed {config.seed}: how far other seeds scatter is not in these figures.",
        "The settings were chosen on one half of the evaluation data, and the figures are of the other half, of the "
        "same benchmark; other data may show what was not forgotten, or what was lost.",
        "Utility is what the benchmark asks; abilities that it does not ask about were not measured.",
        "That a model does not show knowledge is no proof that it has none.",
    ]
    asked = tuple(f"{ATTACKS[name]}_" for name in ATTACKS if any(n.startswith(ATTACKS[name]) for n in attacked))
    missing = [name for name in ATTACKS if f"{ATTACKS[name]}_" not in asked]
    if brought_back:
        limits.append(brought_back)
    if missing:
        limits.append(f"Not tried on it: {', '.join(missing)}.")
    if attacked:
        limits.append("The attacks were of one strength each; a stronger one may bring back more.")
    if config.scale == "mini":
        limits.insert(0, "A miniature: generated data and a tiny model. Its figures say nothing about real models.")
    return limits


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *([markdown(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

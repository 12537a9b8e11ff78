"""One trial's model as a folder to pass on: `ray_unlearn export`.

<out>/
    the model as transformers loads it, or with --adapter the LoRA adapter as peft loads it
    README.md         a model card in the hub's form: what was forgotten, how, what it measures, what nobody measured
    reproduce.json    all that `ray_unlearn reproduce` needs to run the trial again and to compare, see `describe_run`

Nothing in it names a path or a machine. The folder appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray_unlearn import again
from ray_unlearn.benchmarks import Task
from ray_unlearn.compare import metrics_of
from ray_unlearn.config import ATTACKS, METHOD_TITLES, SearchConfig, UserError
from ray_unlearn.losses import find_method
from ray_unlearn.methods_page import CONVENTION
from ray_unlearn.reference import weights_fingerprint
from ray_unlearn.report.text import markdown, markdown_block, score, setting
from ray_unlearn.results import COMPLETED, FAILED, SearchResults, write_json
from ray_unlearn.trial import Job
from ray_unlearn.versions import git_revision, package_versions

BEST = "best"
FORMAT = 1
"""Of reproduce.json."""
MEASURES = ("forget", "utility", "objective")


@dataclass(frozen=True)
class Measured:
    """What one model, the starting and (where there is one) the retrained model measure on the held-out split."""

    row: Mapping[str, Any]
    start: Mapping[str, float]
    retrained: Mapping[str, float] | None


def find_trial(results: SearchResults, wanted: str) -> dict[str, Any]:
    """The row of that trial, or of the chosen one for "best". Raises UserError where there is none to export."""
    table = f"{results.folder / 'report' / 'trials.csv'} lists all"
    name = results.meta["chosen"] if wanted == BEST else wanted
    if name is None:
        raise UserError(f"--trial {BEST}: this search has chosen none. Give the name of one; {table}")
    for row in results.trials:
        if row["trial_id"] == name:
            if row["status"] == FAILED:
                raise UserError(f"--trial {name}: failed, there is no model of it. Give another; {table}")
            return row
    raise UserError(f"--trial {name}: no such trial. Give another; {table}")


def run_export(
    results: SearchResults,
    config: SearchConfig,
    task: Task,
    row: Mapping[str, Any],
    out: Path,
    adapter: bool,
    say: Callable[[str], None],
) -> None:
    """Fill `out`, which must not be there. Raises RuntimeError where the trial cannot be run again."""
    from ray_unlearn.finals import held_out_judge, rerun_job, rerun_row

    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    job = replace(rerun_job(config, row, config.seed), save_to=str(unfinished), adapter=adapter)
    finals = {final["trial_id"]: final for final in results.finals if final["status"] == COMPLETED}
    retrained = task.report.retrained.metrics if task.report.retrained else None
    kept = results.folder / "model"
    is_kept = results.meta["chosen"] == row["trial_id"] and kept.is_dir() and {"start", row["trial_id"]} <= set(finals)
    if is_kept and not adapter:
        say("the search has kept this model: copying it")
        shutil.copytree(kept, unfinished, dirs_exist_ok=True)
        measured = Measured(finals[row["trial_id"]], metrics_of(finals["start"], config.benchmark), retrained)
        made_by = {name: results.meta[name] for name in ("versions", "git", "hardware")}
    else:
        say(f"running {row['trial_id']} again")
        start, report, seconds = run_job(config, task, job)
        judge = held_out_judge(config, task, start)
        measured = Measured(rerun_row(config, judge, row, job, report, seconds), start, retrained)
        made_by = {"versions": package_versions(), "git": git_revision(), "hardware": report["hardware"]}
    _, request, _ = again.read_local(results.folder)
    run = describe_run(config, task, request.model is None, job, measured, made_by, unfinished)
    if adapter:
        _name_base(unfinished / "adapter_config.json", run["model"])
    write_json(unfinished / "reproduce.json", run)
    card = describe_model(config, results.meta, row, measured, run, adapter)
    (unfinished / "README.md").write_text(card, encoding="utf-8")
    unfinished.rename(out)


def run_job(config: SearchConfig, task: Task, job: Job) -> tuple[dict[str, float], dict[str, Any], float]:
    """One held-out job on a gang of its own: what the starting model measures, the job's last report, its seconds.

    Raises RuntimeError where either fails.
    """
    from ray_unlearn.finals import finished_profile, held_out_job
    from ray_unlearn.gang import Gangs
    from ray_unlearn.session import ray_session

    with (
        tempfile.TemporaryDirectory(prefix="ray_unlearn-") as scratch,
        ray_session(config.gang, 1, config.address, config.grow_to),
        Gangs(task, config.gang, 1, Path(scratch)) as gangs,
    ):
        start = finished_profile(gangs.run(held_out_job(config, config.seed)), "report", "the starting model")
        ((_, report, seconds),) = gangs.run_all([job])
    if "error" in report:
        raise RuntimeError(f"{job.job_id} failed: {report['error']}")
    return dict(start.metrics), report, seconds


def describe_run(
    config: SearchConfig,
    task: Task,
    is_own_model: bool,
    job: Job,
    measured: Measured,
    made_by: Mapping[str, Any],
    weights: Path,
) -> dict[str, Any]:
    """reproduce.json as plain data: what to run (config, job), what it ran on, what came out.

    model: null for the benchmark's own, else the hub name or the folder's name. made_by: versions, git, hardware.
    Hashes are SHA-256 in hexadecimal.
    """
    from ray_unlearn.search import public_config

    public = public_config(config)
    assert job.trial is not None
    return {
        "format": FORMAT,
        "config": public,
        "model": None if is_own_model else public["model"],
        "data": public["data"],
        "job": {"trial": job.trial.to_json(), "stop_after": job.stop_after, "alpha": job.alpha, "adapter": job.adapter},
        **made_by,
        "hashes": {
            "data": again.data_fingerprint(task),
            "starting weights": weights_fingerprint(task.model),
            "final weights": weights_digest(weights),
        },
        "scores": {name: measured.row[name] for name in MEASURES},
        "metrics": metrics_of(measured.row, config.benchmark),
    }


def weights_digest(folder: Path) -> str:
    """SHA-256 over the tensors of a folder's safetensors, by name: not over how they are cut into files."""
    import torch
    from safetensors import safe_open

    digest = hashlib.sha256()
    places: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            places |= dict.fromkeys(tensors.keys(), file)
    for name, file in sorted(places.items()):
        with safe_open(file, "pt") as tensors:
            tensor = tensors.get_tensor(name)
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _name_base(file: Path, model: str | None) -> None:
    """An adapter names the model under it; peft writes where that was on this machine."""
    values = json.loads(file.read_text())
    write_json(file, values | {"base_model_name_or_path": model})


# ---- the model card


def describe_model(
    config: SearchConfig,
    meta: Mapping[str, Any],
    row: Mapping[str, Any],
    measured: Measured,
    run: Mapping[str, Any],
    adapter: bool,
) -> str:
    """The card. Every name in it that somebody else chose is text, never Markdown, HTML or YAML."""
    method = find_method(row["method"])
    title = METHOD_TITLES.get(method.name, method.name)
    base = run["model"]
    origin = f"the model {base}" if base else f"the {config.benchmark} benchmark's own model"
    part = f", split {config.split}" if config.split else ""
    place = (
        ""
        if row["alpha"] == 1.0
        else (f" It lies on the line from the starting to the trained weights, at {row['alpha']:g} of the way.")
    )
    settings = {**run["job"]["trial"], **run["job"]["trial"]["parameters"], "epochs trained": run["job"]["stop_after"]}
    settings["retain_loss"] = settings["retain_loss"] or next(iter(method.retain_losses), "")
    unsaid = ("trial_id", "method", "parameters", "evaluations")
    names = [name for name, value in settings.items() if name not in unsaid and value != ""]
    metrics = [name for name in meta["metrics"] if name in run["metrics"]]
    words = tuple(f"{word}_" for word in ATTACKS.values())
    plain, attacked = [n for n in metrics if not n.startswith(words)], [n for n in metrics if n.startswith(words)]
    what = "LoRA adapter" if adapter else "Model"
    parts = [
        _head(base, method.name, adapter),
        f"# {markdown(f'{title} on {config.benchmark}{part}')}",
        markdown(
            f"{what} made by unlearning the forget set of {config.benchmark}{part} ({config.scale}) from {origin} with "
            f"{title}, as trial {row['trial_id']} of a search over {config.trials} trial(s) of each of "
            f"{', '.join(METHOD_TITLES.get(m, m) for m in config.methods)} with ray_unlearn.{place}"
        ),
        "## How",
        markdown_block(f"{method.formula}"),
        markdown(f"{title}: {method.paper}. {CONVENTION}"),
        _table(["setting", "value"], [[name, setting(name, settings[name])] for name in names]),
        "## What it measures",
        markdown(meta["objective_text"]),
        "On the held-out split, which the search did not see:",
        _table(["score", "this model"], [[name, score(measured.row[name])] for name in MEASURES]),
        _metrics_table(plain, meta["metrics"], measured, run),
    ]
    if attacked:
        parts += ["After attacks on the finished model:", _metrics_table(attacked, meta["metrics"], measured, run)]
    parts += ["## Limits", "\n".join(f"- {markdown(text)}" for text in _limits(config, attacked))]
    parts += ["## To make it again", "`reproduce.json` has every setting, version and hash:"]
    parts += [markdown_block("ray_unlearn reproduce reproduce.json")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(base: str | None, method: str, adapter: bool) -> str:
    lines = ["---"]
    # The hub wants names of its own; a folder's name would link to somebody else's model.
    is_on_hub = base is not None and base.count("/") == 1
    lines.append(f"base_model: {json.dumps(base)}" if is_on_hub else "# base_model: yours to state, as owner/name")
    lines += ["# license: yours to state, and the base model's and the data's bind you"]
    lines += [f"library_name: {'peft' if adapter else 'transformers'}", "pipeline_tag: text-generation"]
    lines += ["tags:", "- unlearning", "- ray_unlearn", f"- {json.dumps(method)}", "---"]
    return "\n".join(lines)


def _metrics_table(names: list[str], texts: Mapping[str, str], measured: Measured, run: Mapping[str, Any]) -> str:
    columns = [measured.start, measured.retrained or {}, run["metrics"]]
    rows = [[name, *(score(column.get(name)) for column in columns), texts[name]] for name in names]
    return _table(["metric", "starting model", "retrained model", "this model", "what it is"], rows)


def _limits(config: SearchConfig, attacked: list[str]) -> list[str]:
    limits = [
        f"One training run, seed {config.seed}: how far other seeds scatter is not in these figures.",
        "The settings were chosen on one half of the evaluation data, and the figures are of the other half, of the "
        "same benchmark; other data may show what was not forgotten, or what was lost.",
        "Utility is what the benchmark asks; abilities that it does not ask about were not measured.",
        "That a model does not show knowledge is no proof that it has none.",
    ]
    asked = tuple(f"{ATTACKS[name]}_" for name in ATTACKS if any(n.startswith(ATTACKS[name]) for n in attacked))
    missing = [name for name in ATTACKS if f"{ATTACKS[name]}_" not in asked]
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

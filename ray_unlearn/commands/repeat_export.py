"""Run an exported trial again from its reproduce.json, and say what is the same: `ray_unlearn reproduce FILE.json`."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import Request, Task
from ray_unlearn.benchmarks.identity import DATA_REVISIONS, check_identity, describe_identity, recorded_pins
from ray_unlearn.commands.checks import absolute, check_data, check_workers, check_writable
from ray_unlearn.commands.exit_codes import DIFFERS, failures_named
from ray_unlearn.commands.export import FORMAT, describe_run, run_job
from ray_unlearn.commands.model_card import Measured
from ray_unlearn.commands.options import Reproduce
from ray_unlearn.commands.reopen import load_as_then
from ray_unlearn.commands.resources import find_machine
from ray_unlearn.commands.screen import noise_to, sayer
from ray_unlearn.config import SearchConfig, TrialConfig, UserError
from ray_unlearn.files import cache_folder
from ray_unlearn.models.hub import pin_revisions
from ray_unlearn.models.loading import check_model, trusts_remote_code
from ray_unlearn.provenance import git_revision, package_versions
from ray_unlearn.training.trial import Job

TOLERANCE = 1e-4
"""Largest difference of a metric that the order of sums explains."""
IDENTICAL, EQUAL, DIFFERENT = "bit-identical", f"equal within {TOLERANCE:g}", "different"
DECISIVE, MAY_MATTER, HARMLESS = "decisive", "may matter", "harmless"
RATINGS = {
    # Another experiment
    "data": DECISIVE,
    "starting weights": DECISIVE,
    "starting adapter": DECISIVE,
    "precision": DECISIVE,
    "device": DECISIVE,
    "ray_unlearn": DECISIVE,
    # Another order of sums, or other arithmetic
    "device model": MAY_MATTER,
    "workers": MAY_MATTER,
    "ZeRO stage": MAY_MATTER,
    "git": MAY_MATTER,
    "torch": MAY_MATTER,
    "transformers": MAY_MATTER,
    "deepspeed": MAY_MATTER,
    "accelerate": MAY_MATTER,
    "numpy": MAY_MATTER,
    # They move data and schedule work; what they hand on is in the hashes
    "ray": HARMLESS,
    "datasets": HARMLESS,
    "optuna": HARMLESS,
    "pyarrow": HARMLESS,
    "scipy": HARMLESS,
}
"""How much each difference of environment matters to the figures; packages that are not named here may matter."""


@dataclass(frozen=True)
class EnvironmentDifference:
    what: str
    then: Any
    now: Any

    @property
    def rating(self) -> str:
        return RATINGS.get(self.what, MAY_MATTER)


def read_run(path: Path) -> dict[str, Any]:
    """reproduce.json. Raises UserError where it is none."""
    try:
        run = json.loads(path.read_text())
        found = run["format"]
        missing = {"config", "model", "data", "job", "versions", "hardware", "hashes", "scores", "metrics"} - set(run)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Give the reproduce.json that `ray_unlearn export` wrote") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is no reproduce.json ({error!r}). Give one that `export` wrote") from None
    if found != FORMAT or missing:
        raise UserError(f"{path}: was written by another version of ray_unlearn. Install the one that it names")
    return dict(run)


def resolve_run(
    path: Path,
    run: Mapping[str, Any],
    definition: Path | None,
    model: str | None,
    data: Path | None,
    retrained: Path | None,
) -> tuple[SearchConfig, Task]:
    """Settings and task of a recorded run. Raises UserError where model, data or the benchmark's definition must be
    given."""
    values = run["config"]
    places = {
        "--benchmark": (definition, values["definition"]),
        "--model": (model, run["model"]),
        "--data": (data, run["data"]),
    }
    for option, (given, name) in places.items():
        if given is None and name is not None and "/" not in name:
            raise UserError(f"{path}: was made from {name}, somewhere on a disk. Say where it is with {option}")
    # Before revisions were recorded, large corpora were read whole.
    sampled = DATA_REVISIONS in run["hashes"]
    request = Request(values["scale"], model or run["model"], data, values["split"], sampled=sampled)
    pin_revisions(recorded_pins(run["hashes"]))
    benchmark = load_benchmark(str(definition or values["benchmark"]))
    task = load_as_then(path, run, benchmark, [run["job"]["trial"]["method"]], request, retrained)
    fix = "Give what it was made from with --model, --data, --retrained and --benchmark"
    is_made_here = run["model"] is None and values["scale"] == "mini"
    check_identity(str(path), run["hashes"], describe_identity(task), fix, is_made_here)
    here = {"definition": str(definition.absolute()) if definition else None, "data": str(data) if data else None}
    return SearchConfig.from_json({**values, "model": task.model, **here}), task


def run_again(
    run: Mapping[str, Any], config: SearchConfig, task: Task, say: Callable[[str], None] = lambda what: None
) -> dict[str, Any]:
    """The same trial, here: what `describe_run` says of it. Raises RuntimeError where it fails."""
    from ray_unlearn.search.attacked_goals import with_attacked_goals
    from ray_unlearn.search.held_out import held_out_job, held_out_judge, rerun_row

    task = with_attacked_goals(config, task, say)
    trial = TrialConfig.from_json(run["job"]["trial"])
    # In the cache, because all nodes of a cluster see it.
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="reproduce-") as weights:
        job: Job = replace(
            held_out_job(config, config.seed),
            **{**run["job"], "job_id": trial.trial_id, "trial": trial, "save_to": weights},
        )
        start, report, seconds = run_job(config, task, job, say)
        judge = held_out_judge(config, task, start)
        config = replace(config, gang=replace(config.gang, adapter=report.adapter))
        row = rerun_row(config, judge, {"trial_id": trial.trial_id}, job, report, seconds)
        made_by = {"versions": package_versions(), "git": git_revision(), "hardware": report.hardware}
        return describe_run(config, task, run["model"] is None, job, Measured(row, start, None), made_by, Path(weights))


def compare_environments(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[EnvironmentDifference]:
    """Every difference of environment between two runs, the weightiest first."""
    one, other = _environment(then), _environment(now)
    found = [
        EnvironmentDifference(name, one.get(name), other.get(name))
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name)
    ]
    order = (DECISIVE, MAY_MATTER, HARMLESS)
    return sorted(found, key=lambda difference: order.index(difference.rating))


def _environment(run: Mapping[str, Any]) -> dict[str, Any]:
    gang, hardware = run["config"]["gang"], run["hardware"]
    return {
        "data": run["hashes"]["data"][:12],
        "starting weights": run["hashes"]["starting weights"][:12],
        "starting adapter": run["hashes"].get("starting adapter", "")[:12],
        "device": hardware["device"],
        "device model": hardware["model"],
        "workers": gang["num_workers"],
        "ZeRO stage": gang["zero_stage"],
        "precision": gang["precision"],
        **run["versions"],
        "git": run["git"],
    }


def _figures(run: Mapping[str, Any]) -> dict[str, float]:
    return {**run["scores"], **run["metrics"]}


def verdict(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """IDENTICAL, EQUAL or DIFFERENT; a metric that only one of them has makes them different."""
    before, after = _figures(then), _figures(now)
    same_weights = then["hashes"]["final weights"] == now["hashes"]["final weights"]
    if before == after and same_weights:
        return IDENTICAL
    is_equal = set(before) == set(after) and all(abs(before[name] - after[name]) <= TOLERANCE for name in before)
    return EQUAL if is_equal else DIFFERENT


def describe_repeat(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The environments' differences, every metric then and now, the verdict."""
    lines = [f"{'environment':<18} {'then':<28} {'now':<28} weight"]
    differences = compare_environments(then, now)
    lines += [f"{d.what:<18} {d.then!s:<28.28} {d.now!s:<28.28} {d.rating}" for d in differences]
    if not differences:
        lines = ["environment: no difference"]
    lines += ["", f"{'metric':<44} {'then':>12} {'now':>12} {'difference':>12}"]
    for name in dict.fromkeys([*_figures(then), *_figures(now)]):
        before, after = _figures(then).get(name), _figures(now).get(name)
        change = "–" if before is None or after is None else f"{after - before:.3g}"
        cells = ["–" if value is None else f"{value:.6g}" for value in (before, after)]
        lines.append(f"{name:<44} {cells[0]:>12} {cells[1]:>12} {change:>12}")
    same = then["hashes"]["final weights"] == now["hashes"]["final weights"]
    lines += ["", f"final weights: {'the same bits' if same else 'different bits'}", f"verdict: {verdict(then, now)}"]
    return "\n".join(lines)


def repeat(options: Reproduce) -> int:
    """Run an exported trial again and compare; exit code 0 where the figures are the same, else 1."""

    then = read_run(Path(options.what))
    if options.model is not None:
        check_model(options.model)
    check_data(options.data)
    workers = options.workers or then["config"]["gang"]["num_workers"]
    check_workers(workers, None, "--workers")
    check_writable(cache_folder(), "RAY_UNLEARN_CACHE")
    gpus = find_machine(options.address).gpus
    log = cache_folder() / f"reproduce-{os.getpid()}.log.txt"
    with noise_to(log) as screen, failures_named(log):
        say = sayer(screen)
        config, task = resolve_run(
            Path(options.what),
            then,
            options.benchmark,
            absolute(options.model),
            options.data,
            Path(options.retrained) if options.retrained else None,
        )
        gang = replace(
            config.gang,
            num_workers=workers,
            adapter="",  # what is different is told at the end
            zero_stage=config.gang.zero_stage if options.zero is None else options.zero,
            gpus_per_worker=config.gang.gpus_per_worker if gpus else 0.0,
            trust_remote_code=trusts_remote_code(),  # the file may come from anybody
        )
        say(f"running {then['job']['trial']['trial_id']} again")
        now = run_again(then, replace(config, gang=gang, address=options.address), task, say)
    log.unlink()
    print(describe_repeat(then, now))
    return DIFFERS if verdict(then, now) == DIFFERENT else 0

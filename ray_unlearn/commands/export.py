"""One trial's model as a folder to pass on: `ray_unlearn export`.

<out>/
    the model as transformers loads it, or with --adapter the LoRA adapter as peft loads it
    README.md         a model card in the hub's form: what was forgotten, how, what it measures, what nobody measured
    reproduce.json    all that `ray_unlearn reproduce` needs to run the trial again and to compare, see `describe_run`;
                      beside that dates, the form in which the model is asked, and the SHA-256 of every other file

Nothing in it names a path or a machine. The folder appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import Task
from ray_unlearn.benchmarks.definition import read_definition
from ray_unlearn.benchmarks.identity import describe_identity
from ray_unlearn.commands import reopen as again
from ray_unlearn.commands.checks import check_levels, check_writable
from ray_unlearn.commands.exit_codes import failures_named
from ray_unlearn.commands.model_card import Measured, describe_model
from ray_unlearn.commands.options import Export
from ray_unlearn.commands.reopen import fetched, load_search, read_local
from ray_unlearn.commands.screen import noise_to, sayer
from ray_unlearn.config import COMPLETED, FAILED, MEASURES, SearchConfig, UserError
from ray_unlearn.files import give_usual_modes, visible
from ray_unlearn.models.fingerprints import stored_precision, weights_digest
from ray_unlearn.models.hub import check_push, push_folder
from ray_unlearn.models.loading import cut_weights, trust_remote_code
from ray_unlearn.provenance import git_revision, package_versions
from ray_unlearn.records.copies import copied
from ray_unlearn.records.tables import SearchResults, read_search, write_json
from ray_unlearn.search.comparison import metrics_of
from ray_unlearn.training.outcome import Report, finished
from ray_unlearn.training.own_losses import write_losses
from ray_unlearn.training.trial import Job

BEST = "best"
REPRODUCE = "reproduce.json"
FORMAT = 1
"""Of reproduce.json."""
SIZE = re.compile(r"\d+(\.\d+)?[KMGT]B")


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
    precision: str = "",
    level: float | None = None,
    max_shard_size: str | None = None,
) -> None:
    """Fill `out`, which must not be there; precision: of the weights, empty for the starting model's; level: of utility
    whose point on the line to the trial's end is written in place of the trial's model; max_shard_size: of a file of
    weights, as "2GB".

    Raises RuntimeError where the trial cannot be run again.
    """
    from ray_unlearn.search.at_utility import at_point, search_of, to_the_end
    from ray_unlearn.search.attacked_goals import with_attacked_goals
    from ray_unlearn.search.held_out import held_out_judge, rerun_job, rerun_row

    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    job = replace(rerun_job(config, row, config.seed), save_to=str(unfinished), adapter=adapter, precision=precision)
    if level is not None:
        start = results.meta["start"]["metrics"]
        job = to_the_end(job, search_of(config, task, start, level))
    finals = {final["trial_id"]: final for final in results.finals if final["status"] == COMPLETED}
    retrained = task.report.retrained.metrics if task.report.retrained else None
    kept = results.folder / "model"
    is_kept = results.meta["chosen"] == row["trial_id"] and kept.is_dir() and {"start", row["trial_id"]} <= set(finals)
    if is_kept and level is None and not adapter and precision in ("", stored_precision(str(kept))):
        say("the search has kept this model: copying it")
        shutil.copytree(kept, unfinished, dirs_exist_ok=True)
        measured = Measured(finals[row["trial_id"]], metrics_of(finals["start"], config.benchmark), retrained)
        made_by = {name: results.meta[name] for name in ("versions", "git", "hardware")}
    else:
        say(f"running {row['trial_id']} again")
        task = with_attacked_goals(config, task, say)
        start, report, seconds = run_job(config, task, job, say)
        if level is not None:
            job, report = at_point(job, report)
            row = {**row, "alpha": job.alpha}
            say(f"its line holds utility {level:g} as far as {job.alpha:g} of the way")
        config = replace(config, gang=replace(config.gang, adapter=report.adapter))
        judge = held_out_judge(config, task, start)
        measured = Measured(rerun_row(config, judge, row, job, report, seconds), start, retrained)
        made_by = {"versions": package_versions(), "git": git_revision(), "hardware": report.hardware}
    if max_shard_size is not None:
        cut_weights(unfinished, max_shard_size)
    write_losses(unfinished, [row["method"]])
    _, request, _ = again.read_local(results.folder)
    run = describe_run(config, task, request.model is None, job, measured, made_by, unfinished)
    if adapter:
        _name_base(unfinished / "adapter_config.json", run["model"])
    if level is not None:
        run["at_utility"] = level
    run["template"] = asdict(read_definition(Path(config.definition)).template) if config.definition else None
    language = load_benchmark(config.loaded_from).language if config.scale == "full" else ""
    card = describe_model(config, results.meta, row, measured, run, adapter, language)
    (unfinished / "README.md").write_text(card, encoding="utf-8")
    dates = {"search began": results.meta.get("created"), "search ended": results.meta.get("finished")}
    run["dates"] = {**dates, "exported": datetime.now(UTC).isoformat(timespec="seconds")}
    run["files"] = digests(unfinished)
    write_json(unfinished / REPRODUCE, run)
    give_usual_modes(unfinished)
    unfinished.rename(out)


def digests(folder: Path) -> dict[str, str]:
    """By name, the SHA-256 of every file in the folder."""
    found = {}
    for file in visible(folder.rglob("*"), folder):
        if file.is_file():
            with file.open("rb") as content:
                found[file.relative_to(folder).as_posix()] = hashlib.file_digest(content, "sha256").hexdigest()
    return found


def run_job(
    config: SearchConfig, task: Task, job: Job, say: Callable[[str], None]
) -> tuple[dict[str, float], Report, float]:
    """One held-out job on a gang of its own: what the starting model measures, the job's last report, its seconds.

    Raises RuntimeError where either fails.
    """
    from ray_unlearn.gangs.gangs import gangs_for
    from ray_unlearn.search.held_out import held_out_job

    saves_to = [Path(job.save_to).parent] if job.save_to else []
    with gangs_for(task, config.gang, 1, config.address, config.grow_to, say, saves_to) as gangs:
        start = finished(gangs.run(held_out_job(config, config.seed)), "the starting model").metrics("report")
        ((_, report, seconds),) = gangs.run_all([job])
    return dict(start), finished(report, job.job_id), seconds


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

    model: null for the benchmark's own, else the hub name or the folder's name. part: of the benchmark, what is
    forgotten. scored: by set, the questions of the held-out half. made_by: versions, git, hardware. Hashes are SHA-256
    in hexadecimal.
    """
    from ray_unlearn.provenance import public_config

    public = public_config(config)
    assert job.trial is not None
    return {
        "format": FORMAT,
        "config": public,
        "model": None if is_own_model else public["model"],
        "data": public["data"],
        "job": {
            "trial": job.trial.to_json(),
            "stop_after": job.stop_after,
            "alpha": job.alpha,
            "adapter": job.adapter,
            "precision": job.precision,
        },
        "stored_in": stored_precision(str(weights)) if not job.adapter else config.gang.precision,
        **made_by,
        "plugins": [asdict(plugin) for plugin in task.plugins],
        "part": "" if config.definition else task.split,
        "scored": {name: probe.num_questions for name, probe in task.report.probes.items()},
        "hashes": {
            **describe_identity(task),
            "starting adapter": config.gang.adapter,
            "final weights": weights_digest(weights),
        },
        "scores": {name: measured.row[name] for name in MEASURES},
        "metrics": metrics_of(measured.row, config.benchmark),
    }


def _name_base(file: Path, model: str | None) -> None:
    """An adapter names the model under it; peft writes where that was on this machine."""
    values = json.loads(file.read_text())
    write_json(file, values | {"base_model_name_or_path": model})


def run(options: Export) -> int:
    """Write a trial's model, its card and what repeats it into a folder, and say where they are; the exit code."""
    out = export(options)
    print(f"Model:  {out}")
    if not options.adapter:
        why = "as asked" if options.precision else "as the starting model's"
        print(f"Weights in {stored_precision(str(out))}, {why}")
    print(f"Card:   {out / 'README.md'}")
    print(f"Again:  ray_unlearn reproduce {out / REPRODUCE}")
    if not options.adapter:
        print(f"Ask it: ray_unlearn chat {out}")
    if options.push is not None:
        print(f"On hub: {push_folder(out, options.push, options.public)}")
    return 0


def export(options: Export) -> Path:
    """Write a trial's model, its card and what repeats it into a folder; that folder."""
    trust_remote_code(options.trust_remote_code)
    place = fetched(options.folder)
    results = read_search(place)
    row = find_trial(results, options.trial)
    name = row["trial_id"] if options.at_utility is None else f"{row['trial_id']}-at{options.at_utility:g}"
    out = options.out or place / "export" / name
    if out.exists():
        raise UserError(f"--out {out}: is there already. Give another folder, or remove it")
    config = read_local(place)[0]
    check_levels([] if options.at_utility is None else [options.at_utility])
    if options.adapter and not config.gang.lora_rank:
        raise UserError("--adapter: this search trained whole weights, there is no adapter. Leave it out")
    check_export(options)
    check_writable(out.parent)
    log = out.parent / f"{out.name}.log.txt"
    with copied(place.absolute(), config.copy_to, is_needed=False):
        with noise_to(log) as screen, failures_named(log):
            say = sayer(screen)
            config, task = load_search(place)
            gang = replace(config.gang, through_driver=options.through_driver or config.gang.through_driver)
            config = replace(config, gang=gang, address=options.address or config.address)
            asked = options.adapter, say, options.precision or "", options.at_utility, options.max_shard_size
            run_export(results, config, task, row, out.absolute(), *asked)
        log.unlink()
    return out


def check_export(options: Export) -> None:
    """What can be known of the options alone and of the hub, before anything is run. Raises UserError."""
    if options.adapter and options.precision:
        raise UserError("--precision: an adapter is written as it was trained. Leave one of the two out")
    if options.max_shard_size is not None:
        if options.adapter:
            raise UserError("--max-shard-size: an adapter is one file. Leave one of the two out")
        if not SIZE.fullmatch(options.max_shard_size) or not float(options.max_shard_size[:-2]):
            raise UserError(f"--max-shard-size {options.max_shard_size}: is no size. Write 500MB or 2GB, say")
    if options.public and options.push is None:
        raise UserError("--public: nothing is put on the hub. Give --push OWNER/NAME as well, or leave it out")
    if options.push is not None:
        check_push(options.push, options.public)

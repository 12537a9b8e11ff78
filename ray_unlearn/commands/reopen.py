"""What a search's folder holds so that a later command on the same machine can go on: local.json.

search.json may be passed on, and has no paths and no addresses in it. local.json has them: the whole SearchConfig,
what was asked of the benchmark (model null: its own) and the retrained model's profile. No report reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.benchmarks.contract import Benchmark, Request, Task
from ray_unlearn.benchmarks.identity import check_identity, describe_identity, recorded_pins
from ray_unlearn.benchmarks.profiles import attach_retrained
from ray_unlearn.config import SearchConfig, UserError
from ray_unlearn.files import cache_folder
from ray_unlearn.models.hub import pin_revisions
from ray_unlearn.models.loading import trusts_remote_code
from ray_unlearn.plugins import LOSS, METHOD, Plugin, check_unchanged
from ray_unlearn.records.bucket import is_uri, split
from ray_unlearn.records.copies import fetch_search
from ray_unlearn.records.tables import LOCAL, read_search
from ray_unlearn.search.used_plugins import check_code, used_plugins
from ray_unlearn.training.in_process import build_models
from ray_unlearn.training.own_losses import recall_losses, taken

NOT_FOR_SHARING = "paths and addresses of one machine, for `ray_unlearn compare` and `export`: leave it out of copies"


def fetched(named: str) -> Path:
    """The folder that a command is to read; a copy elsewhere is fetched first."""
    return fetch_search(named) if is_uri(named) else Path(named)


def copied_to(named: str) -> str | None:
    """Where a search that is named by its copy goes on being copied to."""
    return split(named)[0] if is_uri(named) else None


def describe_local(config: SearchConfig, request: Request, retrained: Path | None) -> dict[str, Any]:
    return {
        "not_for_sharing": NOT_FOR_SHARING,
        "config": asdict(config),
        "request": {**asdict(request), "data": config.data},
        "retrained": str(retrained.absolute()) if retrained else None,
    }


def load_search(folder: Path) -> tuple[SearchConfig, Task]:
    """The search's settings and its loaded task. Raises UserError where the model, the data or the file are gone,
    or the data are not what was searched on."""
    config, request, retrained = read_local(folder)
    for what, place, is_there in (
        ("starting model", request.model, Path.is_dir),
        ("data", request.data, Path.is_dir),
        ("definition", config.definition, Path.is_file),
        ("retrained model's profile", retrained, Path.exists),
    ):
        if place and Path(place).is_absolute() and not is_there(Path(place)):
            raise UserError(f"{folder}: the {what} of this search is gone ({place}). Put it back, or correct {LOCAL}")
    if config.gang.trust_remote_code and not trusts_remote_code():  # the folder may come from somebody else
        raise UserError(f"{folder}: its model runs code of its own. Give --trust-remote-code again, if you trust it")
    benchmark, meta = load_benchmark(config.loaded_from), read_search(folder).meta
    pin_revisions(recorded_pins(meta.get("identity") or {}))
    task = load_as_then(folder, meta, benchmark, config.methods, request, retrained)
    then = meta.get("identity") or {"data": meta["data_fingerprint"]} if "data_fingerprint" in meta else {}
    if then:
        is_made_here = config.scale == "mini" and request.model is None
        check_identity(str(folder), then, describe_identity(task), "Put back what it was, or search anew", is_made_here)
    return config, task


def load_as_then(
    where: Path,
    recorded: Mapping[str, Any],
    benchmark: Benchmark,
    methods: Sequence[str],
    request: Request,
    retrained: Path | None,
) -> Task:
    """The loaded task of what was recorded before. Raises UserError where its own code is not trusted, or not what it
    was made with."""
    check_code(benchmark)
    place = where if where.is_dir() else where.parent
    # An exported trial has the plug-ins of its whole search.
    then = [p for p in recorded.get("plugins", ()) if p["kind"] not in (METHOD, LOSS) or p["name"] in methods]
    recall_losses(place, [Plugin(**plugin) for plugin in then])
    plugins = used_plugins(benchmark, methods)
    check_unchanged(where, then, plugins)
    task = attach_retrained(benchmark.load(request, build_models), retrained)
    return replace(task, plugins=plugins, losses=taken(methods))


def read_local(folder: Path) -> tuple[SearchConfig, Request, Path | None]:
    """(settings, what was asked of the benchmark, place of the retrained model's profile)."""
    try:
        values = json.loads((folder / LOCAL).read_text())
        asked = values["request"]
        request = Request(**{"sampled": False, **asked, "data": Path(asked["data"]) if asked["data"] else None})
        retrained = Path(values["retrained"]) if values["retrained"] else None
        config = SearchConfig.from_json(values["config"])
        if config.gang.reference_folder:  # this may be another machine than then
            gang = replace(config.gang, reference_folder=str(cache_folder() / "reference"))
            config = replace(config, gang=gang)
        return config, request, retrained
    except FileNotFoundError:
        raise UserError(
            f"{folder}: has no {LOCAL}, which says where model and data are. Run this where the search ran"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / LOCAL}: cannot be read ({error}). Restore it from a copy") from None

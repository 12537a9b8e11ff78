"""What a search's folder holds so that a later command on the same machine can go on: local.json.

search.json may be passed on, and has no paths and no addresses in it. local.json has them: the whole SearchConfig,
what was asked of the benchmark (model null: its own) and the retrained model's profile. No report reads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ray_unlearn.benchmarks import Request, Split, Task, load_benchmark
from ray_unlearn.config import SearchConfig, UserError
from ray_unlearn.data import Sequences
from ray_unlearn.model import trusts_remote_code
from ray_unlearn.prepare import attach_retrained, cache_folder
from ray_unlearn.results import read_search

LOCAL = "local.json"
NOT_FOR_SHARING = "paths and addresses of one machine, for `ray_unlearn compare` and `export`: leave it out of copies"


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
    task = attach_retrained(load_benchmark(config.loaded_from).load(request), retrained)
    found = read_search(folder).meta.get("data_fingerprint")
    if found not in (None, data_fingerprint(task)):
        raise UserError(f"{folder}: the data have changed since this search ran. Put the old ones back, or search anew")
    return config, task


def read_local(folder: Path) -> tuple[SearchConfig, Request, Path | None]:
    """(settings, what was asked of the benchmark, place of the retrained model's profile)."""
    try:
        values = json.loads((folder / LOCAL).read_text())
        asked = values["request"]
        request = Request(**{**asked, "data": Path(asked["data"]) if asked["data"] else None})
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


def data_fingerprint(task: Task) -> str:
    """SHA-256 over everything that is trained on or scored, as token arrays, in hexadecimal."""
    digest = hashlib.sha256()
    for name, sequences in _sequences(task):
        digest.update(name.encode())
        for array in (sequences.tokens, sequences.offsets, sequences.answer_starts):
            digest.update(np.ascontiguousarray(array).tobytes())
    for split in (task.selection, task.report):
        prompts = {name: [list(map(int, p)) for p in g.prompts] for name, g in sorted(split.generations.items())}
        references = {name: g.references for name, g in split.generations.items()}
        digest.update(json.dumps([prompts, references], sort_keys=True).encode())
    return digest.hexdigest()


def _sequences(task: Task) -> Iterator[tuple[str, Sequences]]:
    yield "forget", task.forget
    yield "retain", task.retain
    splits: Mapping[str, Split] = {"selection": task.selection, "report": task.report}
    for where, split in splits.items():
        for name, probe in sorted({**split.probes, **split.final_probes}.items()):
            yield f"{where}/{name}", probe.sequences

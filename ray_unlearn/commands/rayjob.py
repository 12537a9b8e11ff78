"""A command as a KubeRay manifest."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from ray_unlearn.commands.job_command import SHARED, Command, read_command
from ray_unlearn.config import UserError

# ---- the manifest


def write_rayjob(file: Path, words: Sequence[str]) -> None:
    """Write cluster/rayjob.yaml with this command and as many workers as one trial needs.

    Raises UserError for paths that the pods do not share, and where the file exists.
    """
    command = read_command(words)
    if file.exists():
        raise UserError(f"--write-rayjob {file}: is there already. Give another name, or remove it")
    for written, path in (*command.reads, *command.writes):
        if not path.is_relative_to(SHARED) and (
            path.is_absolute() or path.exists() or (written, path) in command.writes
        ):
            raise UserError(
                f"{written} {path}: the pods have only {SHARED} in common. Give its place there, such as "
                f"{SHARED / path.name}"
            )
    file.write_text(rayjob_text(template().read_text(), command, file.name))


def template() -> Path:
    """From the wheel, or the checkout."""
    package = Path(__file__).parents[1]
    return next(f for f in (package / "rayjob.yaml", package.parent / "cluster" / "rayjob.yaml") if f.is_file())


def rayjob_text(text: str, command: Command, name: str) -> str:
    """The manifest with another entrypoint. JSON's quoting is YAML's too."""
    entrypoint = f"  entrypoint: {json.dumps(shlex.join(['ray_unlearn', *command.words]))}\n"
    text = re.sub(r"  entrypoint: >-\n(?:    .*\n)+", lambda _: entrypoint, text)
    text = text.replace("kubectl apply -f cluster/rayjob.yaml", f"kubectl apply -f {name}")
    (gpus,) = {int(n) for n in re.findall(r'nvidia\.com/gpu: "(\d+)"', text)}
    workers = command.parameters.get("workers_per_trial") or command.parameters.get("workers") or 1
    per_worker = command.parameters.get("gpus_per_worker")
    pods = max(1, math.ceil(workers * (1.0 if per_worker is None else per_worker) / gpus))
    most = max(pods, *(int(n) for n in re.findall(r"maxReplicas: (\d+)", text)))
    return re.sub(
        r" (replicas|minReplicas): \d+", rf" \1: {pods}", re.sub(r"maxReplicas: \d+", f"maxReplicas: {most}", text)
    )

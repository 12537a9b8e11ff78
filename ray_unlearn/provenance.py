"""Which code ran, on what, and what of it may be passed on."""

from __future__ import annotations

import contextlib
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from ray_unlearn import __version__
from ray_unlearn.config import SearchConfig

DRIVER = Path("/proc/driver/nvidia/version")
PACKAGES = (
    "ray",
    "torch",
    "transformers",
    "datasets",
    "optuna",
    "deepspeed",
    "pyarrow",
    "accelerate",
    "numpy",
    "scipy",
)


def package_versions() -> dict[str, str]:
    return {"ray_unlearn": __version__, **{name: metadata.version(name) for name in PACKAGES}}


def platform_versions(uses_gpu: bool) -> dict[str, str]:
    """Python and the system; on a GPU also CUDA as torch was built for it, and the driver where it says what it is."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    if uses_gpu:
        import torch

        found |= {"cuda": str(torch.version.cuda or torch.version.hip or "")}
        with contextlib.suppress(OSError):
            found |= {"driver": driver_version(DRIVER.read_text())}
    return {name: value for name, value in found.items() if value}


def driver_version(text: str) -> str:
    """NVIDIA's version in what its driver says of itself; empty where there is none."""
    match = re.search(r"Kernel Module\b.*?\b(\d+\.[\d.]+)", text)
    return match[1] if match else ""


def git_revision() -> str | None:
    """The checkout's commit, with a + where it has changes; None where this is no checkout."""
    place = ["git", "-C", str(Path(__file__).parent)]
    try:
        revision = subprocess.run([*place, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        changes = subprocess.run([*place, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision.strip() + ("+" if changes.strip() else "")


def cpu_model() -> str:
    """The processor's name as its maker prints it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


_ADDRESSES = re.compile(
    r"(?P<name>\bip=|\bhost=|\bhostname=)[^\s,;)\]]+"
    r"|\b(?:ray|tcp|grpc|s3|gs|gcs|abfss?|hdfs)://[^\s,;)\]'\"]+"
    r"|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"
)


def without_addresses(text: str) -> str:
    """Where a search ran is nobody's business."""
    return _ADDRESSES.sub(lambda match: f"{match['name'] or ''}<address>", text)


def public_command(words: Iterable[str]) -> list[str]:
    """The command's words with ADDRESS for the cluster's and ~ for the home folder."""
    home = str(Path.home())
    shown: list[str] = []
    for word in map(str, words):
        option, equals, value = word.partition("=")
        if not (equals and option.startswith("--")):
            option, value = "", word
        if option == "--address" or shown[-1:] == ["--address"]:
            value = "ADDRESS"
        elif value == home or value.startswith(home + "/"):
            value = "~" + value[len(home) :]  # a shell knows it at a word's beginning only
            shown += [option] if option else []
            option = ""
        shown.append(without_addresses(f"{option}={value}" if option else value))
    return shown


def public_config(config: SearchConfig) -> dict[str, Any]:
    """The configuration as it may be passed on: folders and files by their names, no addresses."""
    values = asdict(config)
    values.pop("address")
    values.pop("copy_to")
    values["gang"].pop("reference_folder")
    for name in ("model", "data", "definition"):
        if values[name] and Path(values[name]).exists():
            values[name] = Path(values[name]).name
    return values

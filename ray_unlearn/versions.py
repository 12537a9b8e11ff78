"""Which code ran, and on what: the versions of packages, this checkout's commit, the CPU."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

from ray_unlearn import __version__

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

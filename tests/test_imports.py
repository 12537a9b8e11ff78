"""Imports point one way, heavy ones are late, and each of the big libraries is met in one place."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ray_unlearn"


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("deepspeed", {"engine.py"}),
        ("optuna", {"sampling.py", "studies.py"}),  # what is asked and told; what others may see of it
        ("ray.tune", {"search.py", "trainable.py", "trackers.py"}),  # all trials; one; those who are shown them
        ("ray.train", {"gang.py"}),
    ],
)
def test_each_big_library_has_its_place(library, homes):
    users = {
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        if any(name == library or name.startswith(library + ".") for name in imported(file))
    }
    assert users == homes


def ours(file: Path) -> set[str]:
    """The rooms of this package that the file imports from."""
    return {name.split(".")[1] for name in imported(file) if name.startswith("ray_unlearn.")}


def test_losses_know_nothing_of_the_search_and_the_report_knows_only_results():
    assert ours(PACKAGE / "losses.py") == {"config"}
    for file in (PACKAGE / "report").glob("*.py"):
        assert ours(file) <= {"report", "results", "objective", "config", "sharing", "__version__"}, file.name


@pytest.mark.parametrize("arguments", [["-c", "import ray_unlearn"], ["-m", "ray_unlearn.cli", "--help"]])
def test_import_and_help_load_neither_torch_nor_ray(arguments):
    command = [sys.executable, "-X", "importtime", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"}, check=True)
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in run.stderr.splitlines() if "|" in line}
    assert not loaded & {"torch", "ray", "transformers", "numpy", "optuna", "deepspeed"}


def test_help_names_every_command():
    run = subprocess.run(
        [sys.executable, "-m", "ray_unlearn.cli", "--help"], capture_output=True, text=True, check=True
    )
    commands = "tune prepare evaluate compare export reproduce methods benchmarks report verify doctor plan submit"
    for name in commands.split():
        assert name in run.stdout

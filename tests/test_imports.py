"""Imports lead down from floor to floor, heavy ones are late, and each of the big libraries is met in one place."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ray_unlearn"
FLOORS = (
    {"__init__"},
    {"config", "counting", "failures", "interruption", "wording"},
    {"metrics"},
    {"files", "hardware", "plugins", "provenance"},
    {"byte_code"},
    {"models"},
    {"benchmarks", "records"},
    {"training", "report"},
    {"gangs"},
    {"search"},
    {"commands"},
    {"api", "cli"},
)
"""Rooms from the ground up. A file imports its own room and lower floors, and nothing else."""
FLOOR_OF = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def rooms_above_or_beside(file: Path) -> set[str]:
    """The other rooms that the file imports from and that are not below its own."""
    here = room_of(file)
    rooms = {name.split(".")[1] for name in imported(file) if name.startswith("ray_unlearn.")} - {here, "__version__"}
    return {room for room in rooms if FLOOR_OF[room] >= FLOOR_OF[here]}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_lead_down(file):
    late = {"api", "config"} if file == PACKAGE / "__init__.py" else set()  # the door: it opens when somebody asks
    assert not rooms_above_or_beside(file) - late


def test_a_file_that_imports_upward_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    file = tmp_path / "models" / "x.py"
    file.parent.mkdir()
    file.write_text("def f():\n    from ray_unlearn.search.space import Space\n    import ray_unlearn.files\n")
    assert rooms_above_or_beside(file) == {"search"}


def test_no_circle_of_imports_inside_a_room():
    names = {"ray_unlearn." + ".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in FILES}
    names = {name.removesuffix(".__init__"): file for name, file in names.items()}
    # A package is named by every import from it: its own files do not depend on it for that.
    graph = {
        name: {other for other in imported(file) if other in names and not f"{name}.".startswith(f"{other}.")}
        for name, file in names.items()
    }
    while ends := [name for name, others in graph.items() if not others & graph.keys()]:
        for name in ends:
            del graph[name]
    assert not graph


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_every_module_can_be_imported_and_none_is_long(file):
    module = importlib.import_module("ray_unlearn." + ".".join(file.relative_to(PACKAGE).with_suffix("").parts))
    source = file.read_text()
    assert len(source.splitlines()) <= 500
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 70, f"{module.__name__}.{node.name}"


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("deepspeed", {"training/engine.py"}),
        # What is asked and told; what others may see of it.
        ("optuna", {"search/sampling.py", "search/optuna_log.py"}),
        # All trials; one; those who are shown them.
        ("ray.tune", {"search/ray_tune.py", "search/trainable.py", "search/trackers.py"}),
        ("ray.train", {"gangs/gangs.py", "gangs/serve.py"}),
    ],
)
def test_each_big_library_has_its_place(library, homes):
    users = {
        str(file.relative_to(PACKAGE))
        for file in FILES
        if any(name == library or name.startswith(library + ".") for name in imported(file))
    }
    assert users == homes


def test_losses_know_nothing_of_the_search():
    ours = {name for name in imported(PACKAGE / "training" / "losses.py") if name.startswith("ray_unlearn.")}
    assert {name.split(".")[1] for name in ours} == {"config", "models", "plugins"}


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
    commands = (
        "tune prepare evaluate compare export reproduce data chat methods benchmarks report verify doctor plan submit"
    )
    for name in commands.split():
        assert name in run.stdout

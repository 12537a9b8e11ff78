"""Byte code is there for whatever is started, wherever it can be written, and costs nothing where it is there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ray_unlearn import byte_code
from ray_unlearn.byte_code import PREFIX, UNWANTED, find_missing, keep_byte_code

OURS = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch, tmp_path):
    """This process's own settings come back after a test."""
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    for name in (UNWANTED, PREFIX):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_UNLEARN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package of one module, with no byte code."""
    folder = tmp_path / "site" / "some_package"
    folder.mkdir(parents=True)
    for name in ("__init__.py", "part.py"):
        (folder / name).write_text("")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setattr(byte_code, "PROBES", {"some_package": ("part.py",), "not_installed": ("part.py",)})
    return folder


def in_a_child(what: str) -> str:
    return subprocess.run([sys.executable, "-c", what], capture_output=True, text=True, check=True).stdout.strip()


def test_the_variable_is_not_handed_on(monkeypatch, package):
    monkeypatch.setenv(UNWANTED, "1")
    sys.dont_write_bytecode = True
    keep_byte_code()
    assert not sys.dont_write_bytecode
    assert in_a_child("import sys; print(sys.dont_write_bytecode)") == "False"


def test_byte_code_that_is_missing_goes_beside_the_modules(package):
    assert keep_byte_code()
    assert sys.pycache_prefix is None
    in_a_child(f"import sys; sys.path.insert(0, {str(package.parent)!r}); import some_package.part")
    assert list(package.glob("__pycache__/part.*.pyc"))
    assert not find_missing()
    assert not keep_byte_code()


def test_where_nobody_may_write_it_goes_into_the_cache_once(package, monkeypatch, tmp_path):
    monkeypatch.setattr(byte_code.os, "access", lambda path, mode: False)
    assert keep_byte_code()
    assert os.environ[PREFIX] == sys.pycache_prefix == str(tmp_path / "cache" / "byte_code")
    in_a_child(f"import sys; sys.path.insert(0, {str(package.parent)!r}); import some_package.part")
    assert not list(package.glob("__pycache__/*"))
    sys.pycache_prefix = None
    monkeypatch.delenv(PREFIX)
    assert not keep_byte_code(), "the next run finds it"
    assert os.environ[PREFIX]


def test_a_read_only_environment_with_byte_code_is_used_as_it_is(package, monkeypatch):
    in_a_child(f"import sys; sys.path.insert(0, {str(package.parent)!r}); import some_package.part")
    monkeypatch.setattr(byte_code.os, "access", lambda path, mode: False)
    assert not keep_byte_code()
    assert PREFIX not in os.environ


def test_with_no_place_for_it_everything_goes_on_without(package, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file, where the cache's folder should be")
    monkeypatch.setattr(byte_code.os, "access", lambda path, mode: False)
    assert not keep_byte_code()
    assert PREFIX not in os.environ


def test_the_probes_are_files_of_the_installed_packages_that_their_processes_import():
    import ray
    import torch

    roots = {"ray": Path(ray.__file__).parent, "torch": Path(torch.__file__).parent}
    assert set(byte_code.PROBES) == set(roots)
    for package, files in byte_code.PROBES.items():
        for file in files:
            assert (roots[package] / file).is_file(), f"{package} has moved {file}"
    loaded = in_a_child("import sys, ray_unlearn.byte_code as b; b.load_ray(); print(*sys.modules)").split()
    assert {"ray.dashboard.agent", "ray.dashboard.modules.reporter.reporter_agent"} <= set(loaded)
    assert set(byte_code.BESIDE_AGENT) <= set(loaded), "a module that has moved is left out in silence"


def test_agent_seconds_is_what_a_process_takes_and_nothing_where_it_fails(monkeypatch):
    def loading_is(*command: str) -> None:
        monkeypatch.setattr(byte_code, "_start", lambda function: subprocess.Popen(command))

    loading_is("true")
    assert 0 < byte_code.agent_seconds() < 10
    loading_is("false")
    assert byte_code.agent_seconds() is None
    monkeypatch.setattr(byte_code, "LOAD_SECONDS", 0.1)
    loading_is("sleep", "60")
    assert byte_code.agent_seconds() is None


def test_a_command_can_be_started_by_it_and_keeps_its_exit_code(monkeypatch, tmp_path):
    monkeypatch.setenv(UNWANTED, "1")
    command = [sys.executable, "-m", "ray_unlearn.byte_code", "sh", "-c", f'echo "[${UNWANTED}]"; exit 5']
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=OURS)
    assert (run.returncode, run.stdout) == (5, "[]\n")


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_one_run_leaves_the_byte_code_of_all_that_a_search_imports(tmp_path, monkeypatch):
    """In a place of its own, as in a read-only environment: nothing is compiled a second time."""
    monkeypatch.setenv(PREFIX, str(tmp_path))
    subprocess.run([sys.executable, "-m", "ray_unlearn.byte_code"], check=True, cwd=OURS)
    names = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.pyc")}
    code = "import ray_unlearn.byte_code as b; b.load_ray(); b.load(b.SEARCH)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=OURS, capture_output=True)
    assert len(names) > 2000
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*.pyc")} == names

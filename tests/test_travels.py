"""What became of a search's folder on its way from one machine to another, and what commands then say of it."""

import contextlib
import ctypes
import os
from pathlib import Path

import pytest

from tests.report.made_up_search import simulate, write_folder
from tests.test_again import search  # noqa: F401, a fixture
from tests.test_cli import run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "search"
    write_folder(place, simulate(6, ("simnpo", "npo")))
    return place


@contextlib.contextmanager
def modes_that_hold():
    """Inside, a superuser is stopped by files' modes as everybody else is."""
    if os.geteuid():
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, had, fewer = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, had) == 0
    fewer[:] = [had[0] & ~0b110, *had[1:]]  # without CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, fewer) == 0
    try:
        yield
    finally:
        assert libc.capset(header, had) == 0


@contextlib.contextmanager
def read_only(folder: Path):
    """Inside, nothing can be written into the folder."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    with modes_that_hold():
        yield
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)


def test_a_folder_that_cannot_be_written_is_read_by_every_command_that_reads(folder, tmp_path, capfd):
    out = tmp_path / "elsewhere"
    with read_only(folder):
        code, said, _ = run(capfd, "report", str(folder), "--out", str(out))
        assert code == 0
        written = [Path(line) for line in said.split()]
        assert {path.parent for path in written} == {out}
        assert all(path.stat().st_size for path in written)
        assert run(capfd, "verify", str(folder))[0] == 0
    names = {path.name for path in written}
    assert names >= {"report.html", "optuna.log", "trials.csv"}
    assert not (folder / "report").exists()
    assert not (folder / "optuna.log").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("report",), "Give a folder with --out"),
        (("verify", "--repair"), "Leave --repair out"),
        (("compare", "--seeds", "2", "--allow-unequal"), "Copy the search to a place that can be"),
        (("compare", "--searches", "2"), "Copy the search to a place that can be"),
    ],
)
def test_a_command_that_writes_says_that_the_folder_cannot_be_written(search, capfd, words, says):  # noqa: F811
    folder = search[0]
    write_folder(folder, simulate(6, ("simnpo", "npo")))
    with read_only(folder):
        code, _, error = run(capfd, words[0], str(folder), *words[1:])
    assert code == 2
    assert "cannot be written" in error
    assert says in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\nsize 9\n", "{}\r\n".encode("utf-16")]
)
def test_a_ledger_that_cannot_be_read_is_called_that_and_stays_as_it_is(search, capfd, content):  # noqa: F811
    folder = search[0]
    (folder / "ledger.jsonl").write_bytes(content)
    code, _, error = run(capfd, "tune", "--resume", str(folder))
    assert code == 2
    assert "ledger.jsonl: cannot be read, no line of it is as it was written. Restore it from a copy" in error
    assert (folder / "ledger.jsonl").read_bytes() == content


def test_a_ledger_that_is_not_there_is_not_answered_by_searching_anew(search, capfd):  # noqa: F811
    code, _, error = run(capfd, "tune", "--resume", str(search[0]))
    assert code == 2
    assert "has no ledger.jsonl that says what was searched. Restore it from a copy" in error

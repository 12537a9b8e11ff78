"""Losses from a file: what is refused, what is searched, and twelve of them in one search."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from ray_unlearn.config import UserError
from ray_unlearn.models.logprobs import DISTRIBUTION, HIDDEN, LOGPROBS
from ray_unlearn.plugins import Plugin, trust_code
from ray_unlearn.records.tables import read_search
from ray_unlearn.search.space import default_tables
from ray_unlearn.training.loss_contract import LENGTHS, made_up
from ray_unlearn.training.losses import OWN, SEQUENCE, TOKEN, find_method, simnpo
from ray_unlearn.training.own_losses import recall_losses, take_losses, taken, write_losses

LOSSES = """
from __future__ import annotations
from typing import Annotated
import torch
from torch.nn.functional import logsigmoid
from ray_unlearn.config import Range

def margin(forget, *, beta: Annotated[float, Range(0.5, 5.0, log=True)] = 2.5, gamma: float = 0.0):
    return -2.0 / beta * logsigmoid(-beta * forget.mean(forget.logprobs) - gamma) * forget.present

def ascent(forget: NotImportedHere):
    return forget.logprobs

def ratio(forget):
    return forget.log_ratio()

def peak(forget):
    return forget.log_distribution.amax(-1) - forget.reference_distribution.amax(-1)

def drift(forget):
    return ((forget.hidden - forget.reference_hidden) ** 2).mean(-1)
"""
BROKEN = {
    "def f(forget):\n    return forget.logprobs.sum()\n": "gives float64 of shape []",
    "def f(forget):\n    return 1.0\n": "gives a float, and must give a tensor",
    "def f(forget):\n    return forget.logprobs.detach()\n": "does not reach the model",
    "def f(forget):\n    return forget.logprobs * 0.0\n": "does not reach the model: its gradient is 0",
    "def f(forget):\n    return forget.sum(forget.logprobs) + 1.0\n": "for a sequence without answer tokens",
    "def f(forget):\n    return forget.logprobs / forget.logprobs.mean()\n": "depends on which sequences share a pass",
    "def f(forget):\n    return (forget.logprobs * 1e400)\n": "is not finite",
    "def f(forget):\n    return forget.nothing\n": "raises AttributeError",
    "def f(forget, other):\n    return forget.logprobs\n": "takes 2 positional arguments",
    "def f(forget, *, mode='a'):\n    return forget.logprobs\n": "its argument mode has no number as default",
    "def g(forget):\n    return forget.logprobs\n": "has no function of that name",
    "import no_such_module_anywhere\n": "cannot be imported (ModuleNotFoundError",
    (
        "from __future__ import annotations\n"
        "def f(forget, *, beta: Annotated[float, 1] = 0.5):\n    return forget.logprobs * beta\n"
    ): "an annotation cannot be read (name 'Annotated' is not defined)",
    (
        "from typing import Annotated\nfrom ray_unlearn.config import Range\n"
        "def f(forget, *, beta: Annotated[float, Range(0.0, 1.0)] = 0.5):\n    return forget.logprobs / beta\n"
    ): "is not finite at beta = 0",
    (
        "def f(forget):\n    return forget.log_distribution.amax(-1) + forget.hidden.sum(-1)\n"
    ): "may read whole distributions or hidden states, not both",
}


@pytest.fixture(autouse=True)
def trusted():
    trust_code(True)
    yield
    trust_code(False)
    OWN.clear()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(LOSSES)
    return tmp_path / "mine.py"


def test_functions_of_a_file_are_methods_by_their_names(file):
    names = ("margin", "ascent", "ratio", "peak", "drift")
    assert take_losses(["npo", *(f"{file}:{name}" for name in names)]) == ("npo", *names)
    found = {name: find_method(name) for name in names}
    assert {name: method.reduction for name, method in found.items()} == {
        **{"margin": SEQUENCE, "ascent": TOKEN, "ratio": SEQUENCE, "peak": TOKEN, "drift": TOKEN}
    }
    assert [found[name].reads for name in names] == [LOGPROBS, LOGPROBS, LOGPROBS, DISTRIBUTION, HIDDEN]
    assert [found[name].reads_reference for name in names] == [False, False, False, True, True]
    assert [found[name].needs_reference for name in names] == [False, False, True, False, False]
    space = default_tables(found["margin"])["space"]
    assert (space["beta"]["low"], space["beta"]["high"], space["beta"]["log"]) == (0.5, 5.0, True)
    assert space["gamma"] == {"low": 0.0, "high": 1.0}
    tokens = made_up(LENGTHS)
    assert torch.equal(found["margin"].loss(tokens), simnpo(tokens))


@pytest.mark.parametrize(("source", "says"), BROKEN.items(), ids=range(len(BROKEN)))
def test_a_loss_that_breaks_the_contract_is_refused_by_name(tmp_path, source, says):
    (tmp_path / "odd.py").write_text(source)
    with pytest.raises(UserError) as caught:
        take_losses([f"{tmp_path}/odd.py:f"])
    assert says in str(caught.value)
    assert "odd.py:f" in str(caught.value) or "f: an annotation" in str(caught.value)
    assert "f" not in OWN


def test_each_failure_of_several_losses_has_its_line(file):
    file.write_text(LOSSES + "\ndef bad(forget):\n    return forget.nothing\n")
    with pytest.raises(UserError) as caught:
        take_losses([f"{file}:bad", f"{file}:margin", f"{file}:gone", f"{file.parent}/none.py:f", f"{file}:3"])
    assert len(str(caught.value).splitlines()) == 4


def test_a_name_that_is_taken_is_refused(file):
    file.write_text("def npo(forget):\n    return forget.logprobs\n")
    with pytest.raises(UserError, match="there is a method npo already"):
        take_losses([f"{file}:npo"])


def test_code_that_nobody_trusts_does_not_run(file):
    file.write_text("raise SystemError('ran')\n")
    trust_code(False)
    with pytest.raises(UserError, match="--trust-code"):
        take_losses([f"{file}:margin"])


def test_a_search_keeps_its_losses_and_knows_when_they_changed(file, tmp_path):
    take_losses([f"{file}:margin"])
    (loss,) = taken(["npo", "margin"])
    write_losses(tmp_path, ["npo", "margin"])
    plugin = Plugin("loss", "margin", "mine.py", "", loss.sha256)
    OWN.clear()
    recall_losses(tmp_path, [plugin])
    assert find_method("margin").reduction == SEQUENCE
    (tmp_path / "losses" / "margin.py").write_text(LOSSES + "# changed\n")
    with pytest.raises(UserError, match="is not what the search ran with"):
        recall_losses(tmp_path, [plugin])
    (tmp_path / "losses" / "margin.py").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        recall_losses(tmp_path, [plugin])


def command(*options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "ray_unlearn.cli", *options], capture_output=True, text=True, check=False
    )


@pytest.mark.slowest
@pytest.mark.timeout(400)
def test_twelve_candidates_in_one_search_one_diverges_and_the_folder_stands_alone(tmp_path):
    """Ten powers of SimNPO's margin; one that is not finite for long answers; and simnpo itself."""
    head = "import torch\nfrom torch.nn.functional import logsigmoid\n"
    good = [
        f"def power_{i}(forget):\n    beta = {0.5 + 0.5 * i}\n"
        "    return -2.0 / beta * logsigmoid(-beta * forget.mean(forget.logprobs)) * forget.present\n"
        for i in range(10)
    ]
    bad = "def diverges(forget):\n    return forget.sum(forget.logprobs) * (10.0 * forget.lengths - 49.0).exp()\n"
    (tmp_path / "many.py").write_text("\n".join([head, *good, bad]))
    names = [*(f"power_{i}" for i in range(10)), "diverges"]
    methods = ",".join([*(f"{tmp_path}/many.py:{name}" for name in names), "simnpo"])
    options = ("tune", "--benchmark", "synthetic", "--methods", methods, "--trials", "1", "--robustness", "none")
    refused = command(*options, "--out", str(tmp_path / "out"))
    assert refused.returncode == 2
    assert "--trust-code" in refused.stderr
    run = command(*options, "--trust-code", "--out", str(tmp_path / "out"))
    assert run.returncode in (0, 3), run.stdout + run.stderr
    (folder,) = (tmp_path / "out").iterdir()
    rows = {row["method"]: row for row in read_search(folder).trials}
    assert set(rows) == {*names, "simnpo"}
    assert sum(row["status"] == "completed" for row in rows.values()) >= 11
    assert (rows["diverges"]["status"], rows["diverges"]["failure"]) == ("failed", "nan")
    meta = json.loads((folder / "search.json").read_text())
    assert {plugin["name"] for plugin in meta["plugins"]} == set(names)

    shutil.move(tmp_path / "many.py", tmp_path / "gone.py")
    again = command("tune", "--resume", str(folder), "--trials", "2", "--trust-code")
    assert again.returncode in (0, 3), again.stdout + again.stderr
    assert len(read_search(folder).trials) == 24
    untrusted = command("export", str(folder), "--trial", "power_3-0000")
    assert untrusted.returncode == 2
    assert "--trust-code" in untrusted.stderr
    out = tmp_path / "export"
    export = command("export", str(folder), "--trial", "power_3-0000", "--trust-code", "--out", str(out))
    assert export.returncode == 0, export.stdout + export.stderr
    assert (out / "losses" / "power_3.py").is_file()
    again = command("reproduce", str(out / "reproduce.json"), "--trust-code", "--out", str(tmp_path / "again"))
    assert again.returncode == 0, again.stdout + again.stderr
    assert "bit-identical" in again.stdout
    assert pq.read_table(folder / "finals" / f"{meta['chosen']}.parquet").num_rows == 1

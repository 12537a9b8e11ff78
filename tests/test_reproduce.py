"""From trajectories to verdicts, and one whole reproduction on the real stack."""

import base64
import hashlib
import html
import json
import os
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from ray_unlearn import cli
from ray_unlearn.commands.reproduce_paper import (
    CLAIMS,
    FAILS,
    HOLDS,
    STEPS,
    UNKNOWN,
    Trajectory,
    at,
    excess_on_unlearnt,
    first_reach,
    judge,
    retain_at_reach,
    trial_job,
)

LEVELS = {"forget1_divergence": 0.4, "forget2_divergence": 0.44}


def run(forget1: list[float], forget2: list[float], retain: list[float]) -> Trajectory:
    metrics = {"forget1": forget1, "forget2": forget2, "retain": retain}
    arrays = {f"{name}_divergence": np.array(values) for name, values in metrics.items()}
    return Trajectory("length", "npo", 0, np.arange(len(retain)), arrays)


def test_the_first_reach_lies_on_the_line_between_two_points():
    assert first_reach(np.array([0.1, 0.2, 0.4, 0.3, 0.5]), 0.25) == pytest.approx(1.25)
    assert first_reach(np.array([0.1, 0.2, 0.4]), 0.4) == pytest.approx(2.0)
    assert first_reach(np.array([0.5, 0.2]), 0.4) == 0.0
    assert first_reach(np.array([0.1, 0.2]), 0.4) is None
    assert at(np.array([1.0, 2.0, 6.0]), 1.25) == pytest.approx(3.0)


def test_the_retain_divergence_is_read_where_that_chain_reaches_its_own_level():
    trajectory = run([0.0, 0.8], [0.0, 0.88], [0.02, 0.04])
    assert retain_at_reach("forget1")(trajectory, LEVELS) == pytest.approx(0.03)
    assert retain_at_reach("forget2")(run([0.0, 0.8], [0.0, 0.1], [0.02, 0.04]), LEVELS) is None


def test_data_never_learnt_are_measured_where_the_learnt_ones_are_forgotten():
    assert excess_on_unlearnt(run([0.0, 0.8], [0.44, 1.44], [0.0, 0.0]), LEVELS) == pytest.approx(0.5)
    assert excess_on_unlearnt(run([0.0, 0.2], [0.44, 1.44], [0.0, 0.0]), LEVELS) is None


@pytest.mark.parametrize(
    ("simnpo", "npo", "answer", "says"),
    [
        ([0.02, 0.03, 0.02, 0.03, 0.02], [0.1, 0.2, 0.1, 0.2, 0.1], HOLDS, "holds: SimNPO 0.024 and NPO 0.140"),
        ([0.1, 0.2, 0.1, 0.2, 0.1], [0.02, 0.03, 0.02, 0.03, 0.02], FAILS, "does not hold: SimNPO 0.140"),
        ([0.1, 0.2, 0.1, 0.2, 0.1], [0.2, 0.1, 0.2, 0.1, 0.14], UNKNOWN, "cannot be told at 5 seeds"),
        ([0.02, 0.03], [0.1, 0.2], UNKNOWN, "cannot be told at 2 seeds"),
        ([0.02], [0.1], UNKNOWN, "cannot be told at 1 seed"),
        ([0.02] * 5, [0.1, None, None, 0.1, 0.1], UNKNOWN, "by SimNPO in 5 and by NPO in 3 of 5 seeds"),
    ],
)
def test_a_verdict_needs_all_seeds_and_an_interval_on_one_side_of_zero(simnpo, npo, answer, says):
    verdict = judge(CLAIMS[0], simnpo, npo)
    assert verdict.answer == answer
    assert says in verdict.sentence
    if answer in (HOLDS, FAILS):
        low, high = verdict.interval
        assert low <= verdict.difference <= high
        assert (high < 0) == (answer == HOLDS)


def test_pairs_decide_and_not_the_spread_between_seeds():
    npo = np.array([0.1, 0.5, 0.2, 0.9, 0.4])
    assert judge(CLAIMS[0], (npo - 0.01).tolist(), npo.tolist()).answer == HOLDS


def test_a_run_takes_the_paper_s_steps_in_epochs_of_one_point():
    job = trial_job("length", "npo", 3)
    assert job.trial.epochs * job.epoch_size == STEPS * job.trial.batch_size
    assert job.trial.parameters == {"beta": 0.2}
    assert trial_job("memorised", "npo", 3).trial.parameters == {"beta": 1.0}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["synthetics"], "reproduce synthetics: unknown. Choose one of: synthetic"),
        (["synthetic", "--seeds", "0"], "--seeds 0: must be at least 1"),
        (["synthetic", "--workers", "0"], "--workers 0"),
    ],
)
def test_what_cannot_be_reproduced_is_one_line_and_exit_code_2(capfd, tmp_path, monkeypatch, options, says):
    monkeypatch.setattr(sys, "argv", ["ray_unlearn", "reproduce", *options, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert says in lines[0]


@pytest.mark.slowest
@pytest.mark.slow
@pytest.mark.timeout(900)  # the models may have to be trained first
def test_the_miniature_of_both_experiments_ends_with_verdicts_and_a_report(tmp_path):
    command = [sys.executable, "-m", "ray_unlearn.cli", "reproduce", "synthetic", "--scale", "mini", "--seeds", "2"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr + done.stdout
    folder = tmp_path / done.stdout.splitlines()[-1]

    rows = pq.ParquetFile(folder / "trajectories.parquet", page_checksum_verification=True).read().to_pylist()
    runs = {(r["experiment"], r["method"], r["seed"]) for r in rows}
    assert runs == {(e, m, s) for e in ("length", "memorised") for m in ("simnpo", "npo") for s in (0, 1)}
    assert max(r["step"] for r in rows) == STEPS
    begins = {
        r["value"] for r in rows if r["step"] == 0 and (r["experiment"], r["metric"]) == ("length", "retain_divergence")
    }
    assert len(begins) == 1

    meta = json.loads((folder / "reproduce.json").read_text())
    page = (folder / "report.html").read_text()
    for claim in meta["claims"]:
        assert claim["answer"] == UNKNOWN
        for text in (done.stdout, (folder / "report.md").read_text(), html.unescape(page)):
            assert claim["claim"] in text
        assert claim["sentence"] in done.stdout
    length, memorised = meta["experiments"]
    assert length["retrained"]["forget2_divergence"] > 3 * length["start"]["forget2_divergence"]
    assert memorised["start"]["forget2_divergence"] > 3 * memorised["start"]["forget1_divergence"]

    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in page
    assert not re.search(r"<script|<img|<link|style=|http-equiv=.refresh", page)
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "figure.svg").read_text()

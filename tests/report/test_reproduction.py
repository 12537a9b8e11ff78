"""The report of a reproduction, from a folder that was made up: one page that fetches nothing, text and pictures."""

import base64
import hashlib
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from ray_unlearn.config import UserError
from ray_unlearn.records.tables import TRAJECTORY_SCHEMA, write_table
from ray_unlearn.report import write_report
from ray_unlearn.report.reproduction import ticks

CHAINS = ("forget1", "forget2", "retain")
SPEED = {"simnpo": (1.2, 1.0, 0.1), "npo": (1.6, 0.5, 0.3)}
"""By method: what forget1, forget2 and retain gain over a run, in nats."""


def claim(experiment: str, **changes) -> dict:
    answer = {"answer": "holds", "sentence": "holds: SimNPO 0.040 and NPO 0.200", "difference": -0.16}
    return {
        "experiment": experiment,
        "claim": "SimNPO <is> better",
        "measured": "divergence past the retrained model's",
        "values": {"simnpo": [0.03, 0.05], "npo": [0.2, None]},
        "published": {"simnpo": 0.03},
        **answer,
        "interval": [-0.2, -0.1],
        **changes,
    }


@pytest.fixture
def folder(tmp_path) -> Path:
    models = {"retained": [0.0, 0.42, 0.44], "started": [0.02, 0.05, 0.1]}
    metrics = {f"{chain}_divergence": f"of {chain}" for chain in CHAINS}
    names = ("retain_divergence", "forget1_divergence", "forget2_divergence")
    experiment = {
        "lengths": dict.fromkeys(CHAINS, 20),
        "learnt": list(CHAINS),
        "start": dict(zip(names, models["started"], strict=True)),
        "retrained": dict(zip(names, models["retained"], strict=True)),
    }
    meta = {
        "name": "synthetic",
        "title": "One against the other",
        "source": "a paper & more",
        "scale": "mini",
        "seeds": [0, 1],
        "created": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
        "command": ["ray_unlearn", "reproduce", "synthetic"],
        "gang": {"num_workers": 1, "zero_stage": 2, "precision": "fp32"},
        "settings": {
            "learning_rate": 5e-4,
            "retain_weight": 0.0,
            "batch_size": 4,
            "steps": 50,
            "steps_a_point": 2,
            "parameters": {e: {m: {"beta": 0.2} for m in SPEED} for e in ("length", "memorised")},
        },
        "versions": {"ray": "2"},
        "metrics": metrics,
        "methods": list(SPEED),
        "experiments": [{"name": e, "about": f"About {e}", **experiment} for e in ("length", "memorised")],
        "claims": [claim("length"), claim("memorised", answer="cannot be told", sentence="cannot be told at 2 seeds")],
        "measured_too": [claim("length", interval=None, difference=None, published={})],
    }
    (tmp_path / "reproduce.json").write_text(json.dumps(meta))
    rows = [
        {"experiment": e, "method": m, "seed": seed, "step": step, "metric": f"{chain}_divergence", "value": value}
        for e in ("length", "memorised")
        for m, gains in SPEED.items()
        for seed in (0, 1)
        for chain, gain in zip(CHAINS, gains, strict=True)
        for step in range(0, 51, 2)
        for value in [0.02 + gain * (1 + 0.1 * seed) * (step / 50) ** 2]
    ]
    write_table(tmp_path / "trajectories.parquet", TRAJECTORY_SCHEMA, rows)
    return tmp_path


def test_the_report_is_four_files_beside_the_data_and_written_again_the_same(folder):
    first = {path: path.read_bytes() for path in write_report(folder)}
    assert {path.name for path in first} == {"report.html", "report.md", "figure.png", "figure.svg"}
    assert {path: path.read_bytes() for path in write_report(folder)} == first
    ElementTree.parse(folder / "figure.svg")


def test_the_page_fetches_nothing_runs_nothing_and_shows_names_as_text(folder):
    write_report(folder)
    page = (folder / "report.html").read_text()
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy
    assert not re.search(r"<script|<img|<link|<iframe|\sstyle=|\son\w+=|https?://", page)
    assert "SimNPO &lt;is&gt; better" in page


def test_page_and_markdown_give_every_verdict_and_leave_gaps_where_nothing_was_measured(folder):
    write_report(folder)
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert "Cannot be told</span> at 2 seeds" in page
    assert "holds: SimNPO 0.040 and NPO 0.200" in text
    rows = [line for line in text.splitlines() if line.startswith("| length: divergence past")]
    assert (
        rows[0]
        == "| length: divergence past the retrained model's | 0.0400 | 0.200 | -0.160 | -0.200 | -0.100 | 0.0300 | – |"
    )
    assert "| 1 | 0.0500 | – |" in text


def test_every_run_and_both_means_are_drawn_in_each_panel(folder):
    write_report(folder)
    page = (folder / "report.html").read_text()
    # Two methods, two forget sets, two seeds and their mean, two experiments.
    assert page.count("<polyline") == 2 * 2 * 3 * 2
    assert page.count('class="run m0 mean"') == page.count('class="run m1 mean dashed"') == 2


@pytest.mark.parametrize("edge", [0.013, 0.09, 0.26, 0.5, 0.99, 1.6, 7.0])
def test_ticks_are_few_and_inside(edge):
    found = ticks(edge)
    assert 3 <= len(found) <= 9
    assert found[0] == 0.0
    assert found[-1] <= edge * (1 + 1e-9)
    assert np.diff(found) == pytest.approx(np.full(len(found) - 1, found[1]))


def test_a_damaged_folder_is_said_in_one_line(folder):
    (folder / "trajectories.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="holds no whole reproduction"):
        write_report(folder)

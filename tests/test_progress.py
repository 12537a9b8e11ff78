"""The live view of a search, at every size of terminal; the last screen."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from ray_unlearn.commands.progress import LiveProgress
from ray_unlearn.config import TrialConfig
from ray_unlearn.metrics.ranking import Ranking

LOG = Path("/somewhere/results/wmdp-20260101-000000/log.txt")


def row(trial: TrialConfig, objective: float, status: str = "completed") -> dict:
    scores = {"forget": objective, "utility": 0.99, "objective": objective}
    return {"trial_id": trial.trial_id, "method": trial.method, "status": status, "number": 0, **scores}


@pytest.mark.parametrize(("width", "height"), [(60, 20), (80, 24), (160, 50), (60, 5)])
def test_best_log_and_running_trials_stay_in_sight_at_any_size(width, height):
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)
    progress = LiveProgress(console, 120, Ranking(), LOG)
    trials = [
        TrialConfig(f"simnpo-{i:04d}", "simnpo", {"beta": 2.5, "gamma": 0.25}, learning_rate=1e-5) for i in range(40)
    ]
    progress.close()
    progress.stage("searching: 40 trials each of simnpo, npo, ga, on a cluster with a long name")
    for number, trial in enumerate(trials):
        progress.started(trial, number)
    for number, trial in enumerate(trials[:38]):
        progress.finished(row(trial, 0.9 if number == 3 else 0.5, "pruned" if number == 7 else "completed"))
    with console.capture() as shown:
        console.print(progress.render())
    lines = shown.get().splitlines()
    assert len(lines) <= max(height, 7)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "38/120" in text
    assert "best  simnpo-0003" in text
    assert "log   /somewhere" in text
    assert text.count("running") == 2
    assert [line for line in lines if line.startswith("simnpo-0039")]
    if height > 5:
        assert [line for line in lines if line.startswith("simnpo-0037")], "the latest that has ended"
    assert not height < 50 or "simnpo-0000" not in text


def test_before_the_first_trial_has_ended_the_view_says_so():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24, color_system=None)
    progress = LiveProgress(console, 6, Ranking(), LOG)
    progress.close()
    with console.capture() as shown:
        console.print(progress.render())
    assert "best  none yet" in shown.get()
    assert "0/6" in shown.get()

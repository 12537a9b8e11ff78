"""Tune's loggers beside a search: what they are shown, what stops them before it starts, and what cannot stop it."""

import json
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.tune import Callback

from ray_unlearn.config import GangConfig, SearchConfig, TrialConfig, UserError
from ray_unlearn.search import trackers
from ray_unlearn.search.scored import Scored, to_text
from ray_unlearn.search.trackers import Tracker, check_trackers, describe_failure
from ray_unlearn.training.outcome import Failed
from tests.test_cli import run
from tests.test_search import tune

CONFIG = SearchConfig(
    **{"name": "s1", "benchmark": "wmdp", "scale": "mini", "methods": ("simnpo",), "trials": 2, "concurrent": 1},
    **{"objective": "combined", "utility_floor": 0.9, "seed": 7, "gang": GangConfig(), "model": "m"},
)
TRIAL = TrialConfig("simnpo-0000", "simnpo", {"beta": 2.5, "gamma": 0.0}, retain_weight=2.0, learning_rate=1e-4, seed=7)
FAILURE = Failed("NonFinite: the loss is nan", "nan")


class Heard(Callback):
    """A logger that remembers what it was told, and fails at the event it is told to fail at."""

    def __init__(self, fails_at: str = "") -> None:
        self.calls: list[tuple] = []
        self._fails_at = fails_at

    def _hear(self, event: str, *values) -> None:
        self.calls.append((event, *values))
        if event == self._fails_at:
            raise ConnectionError("https://me:pass@host/api does not answer: key s3cret-k3y")

    def setup(self, *positional, **info):
        self._hear("setup")

    def on_trial_start(self, iteration, trials, trial, **info):
        self._hear("start", trial)

    def on_trial_result(self, iteration, trials, trial, result, **info):
        self._hear("result", trial, result)

    def on_trial_complete(self, iteration, trials, trial, **info):
        self._hear("complete", trial)

    def on_trial_error(self, iteration, trials, trial, **info):
        self._hear("error", trial)

    def on_experiment_end(self, trials, **info):
        self._hear("end")


def report(epoch: int, **values) -> Scored:
    scores = {"objective": 0.5, "forget": 0.4, "utility": 0.6, "epoch": epoch, "step": 10 * epoch}
    costs = {"train_seconds": 1.0, "evaluate_seconds": 1.0, "peak_memory_bytes": 5}
    losses = {"forget_loss": 1.5, "retain_loss": None, "metrics": {"forget_accuracy": 0.25}}
    return Scored(done=epoch == 4, **{**scores, **costs, **losses, **values})


def lead(tracker: Tracker, reports: list[Scored | Failed], tune_id: str = "a", trial: TrialConfig = TRIAL) -> None:
    """One trial as Tune leads it."""
    of_tune = SimpleNamespace(trial_id=tune_id, config={"trial": json.dumps(trial.to_json())})
    tracker.on_trial_start(0, [], of_tune)
    for values in reports:
        tracker.on_trial_result(0, [], of_tune, {"report": to_text(values), "training_iteration": 1})
    tracker.on_trial_complete(0, [], of_tune)


@pytest.fixture
def tracked(monkeypatch, tmp_path):
    """A tracker around that logger, and the lines that it says."""

    def build(inner: Callback) -> tuple[Tracker, list[str]]:
        monkeypatch.setattr(trackers, "build_logger", lambda name, search, folder: inner)
        said: list[str] = []
        tracker = Tracker("wandb", CONFIG, tmp_path / "log", said.append)
        tracker.setup()
        return tracker, said

    return build


def test_a_logger_is_shown_settings_and_numbers_under_their_own_names(tracked, tmp_path):
    inner = Heard()
    tracker, said = tracked(inner)
    lead(tracker, [report(2), report(4)])
    tracker.on_experiment_end([])
    assert [call[0] for call in inner.calls] == ["setup", "start", "result", "result", "complete", "end"]
    shown = inner.calls[1][1]
    assert all(call[1] is shown for call in inner.calls[1:-1]), "loggers know a trial by the object"
    assert (str(shown), shown.trial_id) == ("simnpo-0000", "s1-simnpo-0000")
    assert Path(shown.local_path).is_dir()
    settings = {"method": "simnpo", "beta": 2.5, "gamma": 0.0, "retain_weight": 2.0, "learning_rate": 1e-4, "seed": 7}
    assert settings.items() <= shown.config.items()
    assert shown.evaluated_params == shown.config
    assert not {"trial", "trial_id", "parameters"} & shown.config.keys()
    assert inner.calls[2][2] == {
        **{"objective": 0.5, "forget": 0.4, "utility": 0.6, "epoch": 2, "step": 20, "forget_loss": 1.5},
        **{"train_seconds": 1.0, "evaluate_seconds": 1.0, "peak_memory_bytes": 5, "wmdp/forget_accuracy": 0.25},
        "training_iteration": 2,
    }
    assert said == []


def test_a_trial_that_reports_its_failure_has_failed_for_the_logger_too(tracked):
    inner = Heard()
    tracker, _ = tracked(inner)
    lead(tracker, [report(2), FAILURE])
    assert [call[0] for call in inner.calls] == ["setup", "start", "result", "error"]


@pytest.mark.parametrize("event", ["setup", "start", "result", "complete", "end"])
def test_a_logger_that_fails_is_left_out_with_one_line_without_secrets(tracked, monkeypatch, event):
    monkeypatch.setenv("WANDB_API_KEY", "s3cret-k3y")
    inner = Heard(fails_at=event)
    tracker, said = tracked(inner)
    lead(tracker, [report(2), report(4)])
    lead(tracker, [report(2), report(4)], "b")
    tracker.on_experiment_end([])
    assert inner.calls[-1][0] == event, "it is told no more"
    assert len(said) == 1
    assert "wandb is left out" in said[0]
    assert "the search goes on" in said[0]
    assert "ConnectionError: https://host/api" in said[0]
    assert "pass" not in said[0]
    assert "s3cret" not in said[0]


def test_a_trial_that_starts_anew_has_failed_and_starts_once_more(tracked):
    inner = Heard()
    tracker, _ = tracked(inner)
    of_tune = SimpleNamespace(trial_id="a", config={"trial": json.dumps(TRIAL.to_json())})
    tracker.on_trial_start(0, [], of_tune)
    tracker.on_trial_recover(0, [], of_tune)
    lead(tracker, [report(4)])
    assert [call[0] for call in inner.calls] == ["setup", "start", "error", "start", "result", "complete"]


def test_a_logger_that_was_left_out_stays_out_where_tune_is_begun_anew(tracked):
    tracker, said = tracked(Heard(fails_at="setup"))
    tracker.setup()
    lead(tracker, [report(4)])
    assert len(said) == 1


def test_a_logger_that_cannot_be_built_is_left_out(monkeypatch, tmp_path):
    def refuse(*values):
        raise ValueError("no project")

    monkeypatch.setattr(trackers, "build_logger", refuse)
    said: list[str] = []
    tracker = Tracker("wandb", CONFIG, tmp_path / "log", said.append)
    tracker.setup()
    lead(tracker, [report(4)])
    assert said == ["wandb is left out from here on (ValueError: no project); the search goes on"]


def test_a_failure_without_words_is_named_by_its_kind():
    assert describe_failure(TimeoutError()) == "TimeoutError"


def test_what_is_unknown_missing_or_not_configured_is_refused_before_the_search(capfd, monkeypatch, tmp_path):
    options = ("tune", "--benchmark", "wmdp", "--out", str(tmp_path), "--log-to")
    code, _, errors = run(capfd, *options, "tensorbord")
    assert code == 2
    assert "--log-to tensorbord" in errors
    assert "tensorboard, wandb, mlflow" in errors
    real = trackers.importlib.util.find_spec
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None if name == "mlflow" else real(name))
    code, _, errors = run(capfd, *options, "tensorboard,mlflow")
    assert code == 2
    assert "mlflow is not installed" in errors
    assert "ray_unlearn[log]" in errors
    assert list(tmp_path.iterdir()) == []


def test_wandb_needs_a_key_from_the_environment_or_from_netrc(monkeypatch, tmp_path):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: SimpleNamespace(origin="x"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_SETUP_API_KEY_HOOK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match="WANDB_API_KEY"):
        check_trackers(["wandb"])
    (tmp_path / "netrc").write_text("machine example.org login me password x\n")
    with pytest.raises(UserError, match="wandb login"):
        check_trackers(["wandb"])
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123\n")
    check_trackers(["wandb"])
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_trackers(["wandb"])


def test_a_folder_that_wandb_left_is_not_taken_for_the_package(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: SimpleNamespace(origin=None))
    with pytest.raises(UserError, match="not installed"):
        check_trackers(["wandb"])


def events(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, object]]:
    """The scalars of a run's event files, (step, value) by tag, and its hyperparameters."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    scalars: dict[str, list[tuple[int, float]]] = {}
    settings: dict[str, object] = {}
    for path in folder.glob("events.out.tfevents.*"):
        content = path.read_bytes()
        while content:  # length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", content[:8])
            event, content = Event.FromString(content[12 : 12 + length]), content[16 + length :]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
                if value.metadata.plugin_data.plugin_name == "hparams":
                    data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                    for name, setting in data.session_start_info.hparams.items():
                        settings[name] = getattr(setting, setting.WhichOneof("kind"))
    return scalars, settings


def test_tensorboard_files_hold_scores_by_epoch_and_the_settings(tmp_path):
    said: list[str] = []
    tracker = Tracker("tensorboard", CONFIG, tmp_path / "log", said.append)
    tracker.setup()
    lead(tracker, [report(2), report(4, objective=0.75)])
    scalars, settings = events(tmp_path / "log" / "simnpo-0000")
    assert scalars["ray/tune/objective"] == [(2, 0.5), (4, 0.75)]
    assert scalars["ray/tune/wmdp/forget_accuracy"] == [(2, 0.25), (4, 0.25)]
    assert settings["beta"] == 2.5
    assert settings["method"] == "simnpo"
    assert said == []


def test_mlflow_keeps_a_run_a_trial_in_the_search_s_own_folder(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    said: list[str] = []
    tracker = Tracker("mlflow", CONFIG, tmp_path / "log", said.append)
    tracker.setup()
    lead(tracker, [report(2), report(4, objective=0.75)])
    lead(tracker, [report(2), FAILURE], "b")
    assert said == []
    client = mlflow.tracking.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'log' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("s1").experiment_id])
    assert sorted(found.info.status for found in runs) == ["FAILED", "FINISHED"]
    done = next(found for found in runs if found.info.status == "FINISHED")
    assert done.info.run_name == "simnpo-0000"
    assert done.data.params["beta"] == "2.5"
    assert done.data.metrics["wmdp/forget_accuracy"] == 0.25
    points = client.get_metric_history(done.info.run_id, "objective")
    assert [(point.step, point.value) for point in points] == [(2, 0.5), (4, 0.75)]


@pytest.mark.slowest
@pytest.mark.timeout(420)
def test_a_search_logs_to_tensorboard_what_its_curves_say(tmp_path):
    import pyarrow.dataset as ds

    options = ("--benchmark", "synthetic", "--methods", "simnpo", "--trials", "2", "--concurrent", "1")
    folder, run = tune(tmp_path, *options, "--robustness", "none", "--log-to", "tensorboard")
    rows = ds.dataset(folder / "trials").to_table().to_pylist()
    curves = ds.dataset(folder / "curves").to_table().to_pylist()
    assert len(rows) == 2
    for row in rows:
        scalars, settings = events(folder / "log" / "tensorboard" / row["trial_id"])
        mine = sorted((p for p in curves if p["trial_id"] == row["trial_id"]), key=lambda p: p["epoch"])
        assert mine
        for name in ("objective", "forget", "utility", "forget_loss", "synthetic/retain_divergence"):
            wanted = [(int(p["epoch"]), pytest.approx(p[name], rel=1e-6)) for p in mine]
            assert scalars[f"ray/tune/{name}"] == wanted, name
        for name in ("beta", "gamma", "learning_rate", "retain_weight", "epochs"):
            assert settings[name] == pytest.approx(row[name]), name
    assert "left out" not in run.stdout

"""Ray Tune's own loggers beside a search: TensorBoard, Weights & Biases, MLflow.

    results/<search>/log/tensorboard/<trial>/   event files
    results/<search>/log/wandb/<trial>/         the files of W&B's runs
    results/<search>/log/mlflow/mlflow.db       MLflow's store, where MLFLOW_TRACKING_URI names no other

Our trials travel through Tune as JSON text. A `Tracker` stands between Tune and one of its loggers: it hands on the
same calls with a trial that has a setting a key and results that have a number a key. Results come from elsewhere
(results.py); a logger that fails is left out with one line, and the search goes on.
"""

from __future__ import annotations

import importlib.util
import json
import netrc
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ray.tune import Callback

from ray_unlearn.config import SearchConfig, TrialConfig, UserError
from ray_unlearn.search.scored import Scored, from_text
from ray_unlearn.training.outcome import Failed
from ray_unlearn.wording import first_line

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
"""By tracker, what must be installed for it."""
PROJECT = "ray_unlearn"
"""W&B's project, where WANDB_PROJECT names no other."""
UPLOAD_SECONDS = 120
"""How long the end of a search waits for W&B's uploads."""
QUICK_TO_FAIL = {
    # MLflow's own would let one call to a server that is away hold the search up for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
SCORES = ("objective", "forget", "utility", "epoch", "step", "forget_loss", "retain_loss")
COSTS = ("train_seconds", "evaluate_seconds", "peak_memory_bytes")
_CREDENTIALS = re.compile(r"(?<=//)[^/@\s]+@")
_SECRET = re.compile("KEY|TOKEN|PASSWORD|SECRET")


def check_trackers(names: Sequence[str]) -> None:
    """Raises UserError where one cannot work: unknown, not installed, or not configured."""
    for name in names:
        if name not in PACKAGES:
            raise UserError(f"--log-to {name}: unknown. Choose from: {', '.join(PACKAGES)}, none")
        found = importlib.util.find_spec(PACKAGES[name])
        if found is None or found.origin is None:  # W&B leaves folders of its name, which are no package
            raise UserError(
                f"--log-to {name}: {PACKAGES[name]} is not installed. Run: pip install 'ray_unlearn[log]', or leave "
                f"{name} out"
            )
    if "wandb" in names and not _wandb_has_key():
        raise UserError(
            "--log-to wandb: there is no key for it. Set WANDB_API_KEY, run `wandb login`, or set WANDB_MODE=offline"
        )


def _wandb_has_key() -> bool:
    """Whether there is one in one of the places where Ray's callback and W&B look, or none is needed."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return True
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_SETUP_API_KEY_HOOK"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc").authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def build_trackers(config: SearchConfig, folder: Path, say: Callable[[str], None]) -> list[Callback]:
    """Tune's callbacks for what the search logs to. folder: the search's own."""
    return [Tracker(name, config, folder / "log" / name, say) for name in config.log_to]


_STAYS_HERE: dict[int, Any] = {}


class StaysHere:
    """Tune pickles its callbacks and searcher to its own disk state, and may copy them. Ours hold open files
    and studies, and are rebuilt from our results, not from Tune's: a copy is the thing itself."""

    def __reduce__(self) -> Any:
        _STAYS_HERE[id(self)] = self
        return _STAYS_HERE.__getitem__, (id(self),)


@dataclass(frozen=True, eq=False)
class Shown:
    """A trial as loggers see it: what they read of Tune's own, and no more."""

    name: str
    experiment_dir_name: str
    local_path: str
    config: Mapping[str, Any]

    def __str__(self) -> str:
        return self.name

    @property
    def trial_id(self) -> str:
        """Of all searches that log to one place: W&B's runs have it for an id."""
        return f"{self.experiment_dir_name}-{self.name}"

    @property
    def evaluated_params(self) -> Mapping[str, Any]:
        return self.config

    def init_local_path(self) -> None:
        Path(self.local_path).mkdir(parents=True, exist_ok=True)


class Tracker(StaysHere, Callback):
    """One of Tune's loggers, told of trials in words that it understands."""

    def __init__(self, name: str, config: SearchConfig, folder: Path, say: Callable[[str], None]) -> None:
        self._name, self._config, self._folder, self._say = name, config, folder, say
        self._inner: Callback | None = None
        self._is_out = False
        self._shown: dict[str, Shown] = {}
        self._failed: set[str] = set()
        """By Tune's ids: the trials that are open, and those of them that have reported their failure."""

    def setup(self, *positional: Any, **info: Any) -> None:
        """Once more where Tune is begun anew: then with a new logger."""
        if self._is_out:
            return
        self._shown.clear()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._inner = build_logger(self._name, self._config.name, self._folder)
        except Exception as error:
            self._leave_out(error)
        self._hand("setup", *positional, **info)

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        settings = flat_settings(TrialConfig.from_json(json.loads(trial.config["trial"])))
        name = settings.pop("trial_id")
        shown = Shown(name, self._config.name, str(self._folder / name), settings)
        self._shown[trial.trial_id] = shown
        if self._name == "wandb":  # its process of a trial works in the trial's folder, and does not make it
            try:
                shown.init_local_path()
            except OSError as error:
                self._leave_out(error)
        self._hand("on_trial_start", iteration, [], shown, **info)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        report = from_text(result["report"])
        if isinstance(report, Failed):
            self._failed.add(trial.trial_id)
        elif trial.trial_id in self._shown:
            # Trials differ in how often they are scored: by epochs their curves lie side by side.
            values = flat_results(report, self._config.benchmark) | {"training_iteration": int(report.epoch)}
            self._hand("on_trial_result", iteration, [], self._shown[trial.trial_id], values, **info)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """For Tune a trial that reported its failure has completed like any other."""
        self._end(iteration, trial, "on_trial_error" if trial.trial_id in self._failed else "on_trial_complete", info)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """It starts anew, as another trial of the same name."""
        self._end(iteration, trial, "on_trial_error", info)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._end(iteration, trial, "on_trial_error", info)

    def _end(self, iteration: int, trial: Any, event: str, info: Mapping[str, Any]) -> None:
        shown = self._shown.pop(trial.trial_id, None)
        if shown is not None:  # one that never started is no logger's
            self._hand(event, iteration, [], shown, **info)

    def on_experiment_end(self, trials: Any, **info: Any) -> None:
        self._hand("on_experiment_end", [], **info)

    def _hand(self, event: str, *positional: Any, **info: Any) -> None:
        if self._inner is not None:
            try:
                getattr(self._inner, event)(*positional, **info)
            except Exception as error:
                self._leave_out(error)

    def _leave_out(self, error: Exception) -> None:
        self._inner, self._is_out = None, True
        self._say(f"{self._name} is left out from here on ({describe_failure(error)}); the search goes on")


def build_logger(name: str, search: str, folder: Path) -> Callback:
    """Tune's own callback. folder: for what it writes on this machine."""
    if name == "tensorboard":
        from ray.tune.logger import TBXLoggerCallback

        return TBXLoggerCallback()
    if name == "wandb":
        from ray.air.integrations.wandb import WandbLoggerCallback

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        return WandbLoggerCallback(project=project, group=search, upload_timeout=UPLOAD_SECONDS)
    for key, value in QUICK_TO_FAIL.items():
        os.environ.setdefault(key, value)
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute() / 'mlflow.db'}"
    return MLflowLoggerCallback(tracking_uri=uri, experiment_name=search)


def flat_settings(trial: TrialConfig) -> dict[str, Any]:
    """Every setting and every parameter of the method under its own name."""
    settings = trial.to_json()
    return settings | settings.pop("parameters")


def flat_results(report: Scored, benchmark: str) -> dict[str, float]:
    """Scores, losses, costs, and the metrics under the names that results give them: numbers alone."""
    values = {name: getattr(report, name) for name in (*SCORES, *COSTS)}
    values |= {f"{benchmark}/{name}": value for name, value in report.metrics.items()}
    return {name: value for name, value in values.items() if value is not None}


def describe_failure(error: Exception) -> str:
    """Its kind and first line, without passwords and keys: the line goes into the search's log."""
    text = first_line(error) if str(error).strip() else ""
    text = _CREDENTIALS.sub("", text)
    for key, value in os.environ.items():
        if _SECRET.search(key) and len(value) > 3:
            text = text.replace(value, "***")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

"""A trial as Ray Tune runs it: an actor that is a thin client of the broker, and is reused for the next trial.

By itself, because its process must start fast: it imports neither torch nor Optuna.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from uuid import uuid4

import ray
from ray.tune import Trainable

from ray_unlearn.benchmarks.objective import Judge
from ray_unlearn.config import TrialConfig
from ray_unlearn.search.scored import Scored, score, to_text
from ray_unlearn.training.trial import Job


def job_of(plain: Job, trial: TrialConfig) -> Job:
    """The trial's job, under a name that no job had before; plain: what is the same for all trials."""
    return replace(plain, job_id=f"{trial.trial_id}/{uuid4().hex}", trial=trial, seed=trial.seed)


class GangTrial(Trainable):
    """One Tune trial: leads its job, hands on the reports with the verdict on them."""

    def setup(self, config: dict[str, Any], broker: Any = None, judge: Judge | None = None, job: Any = None) -> None:
        """config: the trial, and the name under which its job was submitted when it was suggested: a gang is at work
        while this process starts. job: what is the same for all trials."""
        assert judge is not None
        self._broker, self._judge, self._plain = broker, judge, job
        self._lead(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        ray.get(self._broker.stop.remote(self._job_id))
        self._lead(new_config)
        return True

    def _lead(self, config: dict[str, Any]) -> None:
        self._job_id = config["job"]
        if ray.get(self._broker.adopt.remote(self._job_id)):
            return
        # The trial begins anew, and its first job may still be on a gang.
        job = job_of(self._plain, TrialConfig.from_json(json.loads(config["trial"])))
        self._job_id = job.job_id
        ray.get(self._broker.submit.remote(job))

    def step(self) -> dict[str, Any]:
        outcome = score(ray.get(self._broker.next.remote(self._job_id)), self._judge)
        result = {"done": outcome.done, "report": to_text(outcome)}
        if isinstance(outcome, Scored):
            result |= {name: getattr(outcome, name) for name in ("forget", "utility", "objective")}
        return result

    def cleanup(self) -> None:
        ray.get(self._broker.stop.remote(self._job_id))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        return None

    def load_checkpoint(self, checkpoint: Any) -> None:
        return None

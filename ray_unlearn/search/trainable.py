"""A trial as Ray Tune runs it: an actor that is a thin client of the broker, and is reused for the next trial.

By itself, because its process must start fast: it imports neither torch nor Optuna.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any
from uuid import uuid4

import ray
from ray.tune import Trainable

from ray_unlearn.benchmarks.objective import Judge
from ray_unlearn.config import TrialConfig


class GangTrial(Trainable):
    """One Tune trial: submits its job, hands on the reports with the verdict on them."""

    def setup(self, config: dict[str, Any], broker: Any = None, judge: Judge | None = None, job: Any = None) -> None:
        """job: what is the same for all trials."""
        assert judge is not None
        self._broker, self._judge, self._plain = broker, judge, job
        self._submit(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        ray.get(self._broker.stop.remote(self._job.job_id))
        self._submit(new_config)
        return True

    def _submit(self, config: dict[str, Any]) -> None:
        trial = TrialConfig.from_json(json.loads(config["trial"]))
        # Of its own, because the job of a trial that begins anew may still be on a gang.
        self._job = replace(self._plain, job_id=f"{trial.trial_id}/{uuid4().hex}", trial=trial, seed=trial.seed)
        ray.get(self._broker.submit.remote(self._job))

    def step(self) -> dict[str, Any]:
        report = ray.get(self._broker.next.remote(self._job.job_id))
        result = {"done": report["done"]}
        if "error" not in report:
            self._judge_point(report, report["done"])
            for point in report["line"]:
                self._judge_point(point, is_last=False)
            result |= {name: report[name] for name in ("forget", "utility", "objective")}
        # As text, because Tune flattens and copies nested results.
        return {**result, "report": json.dumps(report)}

    def _judge_point(self, point: dict[str, Any], is_last: bool) -> None:
        """Put metrics and scores in the place of the profiles."""
        point["metrics"] = point.pop("profiles")["selection"]["metrics"]
        point |= asdict(self._judge.verdict(point["metrics"], is_last))

    def cleanup(self) -> None:
        ray.get(self._broker.stop.remote(self._job.job_id))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        return None

    def load_checkpoint(self, checkpoint: Any) -> None:
        return None

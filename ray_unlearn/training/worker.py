"""One rank of a gang, which serves trials one after another. It knows no method and no benchmark by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ray_unlearn.benchmarks.contract import Task
from ray_unlearn.config import GangConfig, TrialConfig
from ray_unlearn.plugins import check_here
from ray_unlearn.training.attacks import Attacker
from ray_unlearn.training.own_losses import take_here
from ray_unlearn.training.rank import Rank
from ray_unlearn.training.references import References
from ray_unlearn.training.scoring import Scorer
from ray_unlearn.training.step import Batch, Step


class Worker:
    """Holds what learns (Step), what scores (Scorer) and what attacks (Attacker), all on one engine."""

    def __init__(self, task: Task, gang: GangConfig, device: torch.device) -> None:
        check_here(task.plugins)
        take_here(task.losses)
        self.rank = Rank(task, gang, device)
        self.references = References(self.rank)
        self.step = Step(self.rank, self.references)
        self.scorer = Scorer(self.rank)
        self.attacker = Attacker(self.rank, self.references, self.step, self.scorer)
        if gang.trains:
            self._check_restore()

    @property
    def task(self) -> Task:
        return self.rank.task

    @property
    def gang(self) -> GangConfig:
        return self.rank.gang

    @property
    def engine(self) -> Any:
        return self.rank.engine

    @property
    def notes(self) -> list[str]:
        """What the user should know about how this model is run."""
        note = "this model mixes packed sequences: each gets a row of its own, sorted by length"
        return [note] if self.rank.packs_alone else []

    def restore(self) -> None:
        """Back to the starting model, as if no trial had run."""
        self.rank.restore()
        self.step.gradient_weights = []

    def _check_restore(self) -> None:
        """One step and back must leave every bit in place: the licence for serving trials from one engine."""
        sequences = self.task.forget if len(self.task.forget) else self.task.retain
        few = sequences.select(range(min(2 * self.rank.num_workers, len(sequences))))
        before = self.rank.token_logprobs(few)
        finetune = TrialConfig("self-test", "finetune", learning_rate=1e-2, warmup_fraction=0.0)
        self.step.set_learning_rate(finetune, 0, 1)
        self.step.run(Batch(finetune, [[item] for item in few], [], {}))
        if self.rank.snapshot.holds(self.engine):
            raise RuntimeError("the self-test's training step changed no weight: no gradient reaches what is trained")
        self.rank.token_logprobs(few)  # an evaluation may leave weights gathered
        self.restore()
        if not self.rank.snapshot.holds(self.engine) or not np.array_equal(self.rank.token_logprobs(few), before):
            cause, fix = "this DeepSpeed version", "Install the version pinned in constraints.txt"
            if self.gang.deepspeed:
                cause, fix = "DeepSpeed with the settings of --deepspeed", "Leave --deepspeed out, or remove settings"
            raise RuntimeError(f"{cause} cannot be put back to its first state in place. {fix}")

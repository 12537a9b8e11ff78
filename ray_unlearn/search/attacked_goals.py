"""Goals under attack: the retrained model goes through the attacks that every trial goes through.

A model that never saw the forget set learns some of it, too, when it is trained on a part of it: under relearning that,
and not the model that nobody attacked, is what forgetting comes to. Measured once on a gang, then kept in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

from ray_unlearn.benchmarks.contract import Profile, Task
from ray_unlearn.benchmarks.fingerprint import data_fingerprint
from ray_unlearn.benchmarks.profiles import read_profile, write_profile
from ray_unlearn.config import ATTACK_PREFIXES, SearchConfig, UserError
from ray_unlearn.files import cached
from ray_unlearn.gangs.gangs import gangs_for
from ray_unlearn.metrics.ranking import Ranking
from ray_unlearn.models.fingerprints import weights_fingerprint
from ray_unlearn.training.outcome import finished
from ray_unlearn.training.trial import Job

SPLITS = ("selection", "report")
ATTACK_SEED = 0
"""Of the attacks, whatever the search's: the goal is one for all searches and their repeats."""


def with_attacked_goals(config: SearchConfig, task: Task, say: Callable[[str], None]) -> Task:
    """The task whose retrained model has been measured under the attacks of `config.under` as well.

    As it is where no attack is judged, or no retrained model is at hand, or an older rule holds. Raises UserError where
    the retrained model has a profile and no weights, RuntimeError where it could not be scored.
    """
    if not config.under or not Ranking.of_search(config).is_reachable or task.selection.retrained is None:
        return task
    if task.retrained_model is None:
        raise UserError(
            f"--under {','.join(config.under)}: the goal is the retrained model under the same attack, and its profile "
            "alone is at hand. Give --retrained the folder that has its weights and profile.json, or leave out --under"
        )
    job = Job(
        "retrained", evaluate=SPLITS, robustness=replace(config.robustness, attacks=config.under), seed=ATTACK_SEED
    )
    # What decides the numbers; gangs of any shape give the same but for last bits.
    key = {
        "name": "attacked-goals",
        "weights": weights_fingerprint(task.retrained_model),
        "data": data_fingerprint(task),
        "robustness": asdict(job.robustness),
        **{"precision": config.gang.precision, "lora": config.gang.lora_rank},
    }
    folder = cached(key, lambda folder: write_profile(folder, _measure(config, task, job, say)))
    attacked = read_profile(folder)
    splits = {name: _joined(getattr(task, name).retrained, attacked[name]) for name in SPLITS}
    return replace(
        task, **{name: replace(getattr(task, name), retrained=profile) for name, profile in splits.items() if profile}
    )


def _measure(config: SearchConfig, task: Task, job: Job, say: Callable[[str], None]) -> dict[str, Profile]:
    say(f"measuring the retrained model under {', '.join(config.under)}, once")
    model = replace(task, model=str(task.retrained_model))
    with gangs_for(model, config.gang, 1, config.address, config.grow_to, say) as gangs:
        return dict(finished(gangs.run(job), "the retrained model").profiles)


def _joined(plain: Profile | None, attacked: Profile) -> Profile | None:
    """The profile with the attacked metrics of the other one."""
    if plain is None:
        return None
    metrics = {name: value for name, value in attacked.metrics.items() if name.startswith(ATTACK_PREFIXES)}
    return replace(plain, metrics={**plain.metrics, **metrics})

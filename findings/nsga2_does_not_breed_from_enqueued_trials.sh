#!/usr/bin/env bash
# Points that are known to be good are enqueued, so that a genetic search begins with them. Expected: they are its first
# generation, and later proposals descend from them. Seen with Optuna 5.0.0: trials whose parameters are all enqueued get
# no generation, and are no parents; the first generation begins after them, at random.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" --quiet --disable-pip-version-check install optuna==5.0.0 numpy==2.4.6
"$place/env/bin/python" - <<'PY'
import optuna
from optuna.distributions import FloatDistribution

optuna.logging.set_verbosity(optuna.logging.ERROR)
print("optuna", optuna.__version__)
SPACE = {"x": FloatDistribution(0.0, 1.0), "y": FloatDistribution(0.0, 1.0)}
POPULATION = 4


def generations(is_enqueued: bool) -> list[int | None]:
    """Of a first population and the trial after it."""
    sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(POPULATION):
        if is_enqueued:
            study.enqueue_trial({"x": 0.9, "y": 0.9})
        trial = study.ask(SPACE)
        study.tell(trial, trial.params["x"] + trial.params["y"])
    study.ask(SPACE)
    return [trial.system_attrs.get("NSGAIISampler:generation") for trial in study.trials]


proposed, enqueued = generations(False), generations(True)
print(f"a population that the sampler proposed: generations {proposed}")
print(f"a population that was enqueued: expected {proposed}, seen {enqueued}")
assert proposed == [0, 0, 0, 0, 1], "this has changed"
assert enqueued == [None, None, None, None, 0], "this has changed"
PY

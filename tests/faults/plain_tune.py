"""A search as one writes it with Ray Tune and OptunaSearch alone, to be put through the same faults.

    python -m tests.faults.plain_tune FOLDER TRIALS

Starts the search in FOLDER, or goes on with it by `Tuner.restore` where there is one. A trial takes two seconds and
reports twice. It writes to journal.jsonl itself when it begins and when it has ended; what Tune makes of it all is in
table.json at the end. The settings tell trials apart, because Tune gives an extra one a name of its own.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

RESOURCES = {"CPU": 0.5}


def trial(config: dict[str, Any]) -> None:
    from ray import tune

    settings = {"x": config["x"], "y": config["y"]}

    def note(event: str) -> None:
        with Path(config["journal"]).open("a") as file:
            file.write(json.dumps({"event": event, "trial_id": json.dumps(settings)}) + "\n")

    note("running")
    for epoch in (1, 2):
        time.sleep(1.0)
        score = -((settings["x"] - 0.3) ** 2) - (settings["y"] - 0.6) ** 2 - 0.1 / epoch
        tune.report({"score": score, "epoch": epoch})
    note("ended")


def main() -> None:
    folder, trials = Path(sys.argv[1]), int(sys.argv[2])
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    ray.init(address=os.environ.get("CLUSTER", "local"), include_dashboard=None if "CLUSTER" in os.environ else False)
    place = str(folder / "search")
    if tune.Tuner.can_restore(place):
        tuner = tune.Tuner.restore(
            place, tune.with_resources(trial, RESOURCES), resume_unfinished=True, restart_errored=True
        )
    else:
        space = {"x": tune.uniform(0, 1), "y": tune.uniform(0, 1), "journal": str(folder / "journal.jsonl")}
        tuner = tune.Tuner(
            tune.with_resources(trial, RESOURCES),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                search_alg=OptunaSearch(seed=0),
                num_samples=trials,
                max_concurrent_trials=1,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(folder),
                failure_config=tune.FailureConfig(max_failures=2),
                verbose=1,
            ),
        )
    results = tuner.fit()
    rows = [
        {
            "settings": json.dumps({"x": result.config["x"], "y": result.config["y"]}),
            "score": (result.metrics or {}).get("score"),
            "epoch": (result.metrics or {}).get("epoch"),
            "failed": result.error is not None,
        }
        for result in results
    ]
    (folder / "table.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()

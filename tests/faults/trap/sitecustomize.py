"""Python reads this at its start where the folder is on PYTHONPATH: a trap in the training of one trial.

FAULT says what happens when training comes to it, FAULT_FILE is a file that the first to take away springs the trap.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import time
from pathlib import Path

MODULE = "ray_unlearn.training.step"


def spring() -> None:
    try:
        Path(os.environ["FAULT_FILE"]).unlink()
    except FileNotFoundError:
        return
    if os.environ["FAULT"] == "hang":
        time.sleep(10_000)
    import torch

    torch.empty(2**50)  # more than any machine has


class Trap(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def load_and_set(module) -> None:
            load(module)
            train = module.Step.train

            def trapped(worker, *arguments, **named):
                spring()
                return train(worker, *arguments, **named)

            module.Step.train = trapped

        spec.loader.exec_module = load_and_set
        return spec


if "FAULT" in os.environ:
    sys.meta_path.insert(0, Trap())

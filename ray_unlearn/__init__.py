"""Search the settings of language-model unlearning with Ray Tune, Optuna and DeepSpeed.

`tune`, `open`, `evaluate`, `Search` and `Evaluation` are those of api.py, imported when they are first used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Evaluation", "Search", "SearchFailed", "UserError", "evaluate", "open", "tune"]

if TYPE_CHECKING:
    from ray_unlearn.api import Evaluation, Search, evaluate, open, tune
    from ray_unlearn.config import SearchFailed, UserError


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ray_unlearn import api, config

    return getattr(api, name, None) or getattr(config, name)

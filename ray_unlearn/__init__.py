"""Search the settings of language-model unlearning with Ray Tune, Optuna and DeepSpeed."""

__version__ = "0.1.0"

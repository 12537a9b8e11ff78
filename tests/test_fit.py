"""The arithmetic of memory: published figures, and what follows from them."""

import pytest
from transformers import LlamaConfig

from ray_unlearn.config import GangConfig
from ray_unlearn.fit import FEWEST_TOKENS, MOST_TOKENS, activation_bytes, fitted, state_bytes

SEVEN = LlamaConfig(hidden_size=4096, num_hidden_layers=32, intermediate_size=11008)
TINY = LlamaConfig(hidden_size=64, num_hidden_layers=2, intermediate_size=128)


@pytest.mark.parametrize(("stage", "workers", "gigabytes"), [(1, 8, 38.5), (2, 4, 38.5), (3, 2, 56.0), (3, 8, 14.0)])
def test_states_of_a_model_of_7_billion_take_what_zero_says(stage, workers, gigabytes):
    gang = GangConfig(num_workers=workers, zero_stage=stage, precision="bf16")
    assert state_bytes(7_000_000_000, gang) == pytest.approx(gigabytes * 1e9)


def test_recomputation_keeps_an_inputs_worth_of_each_layer():
    plain, less = (activation_bytes(SEVEN, "bf16", on) for on in (False, True))
    assert plain == 32 * 17 * 4096 * 2
    assert less < plain / 10
    assert activation_bytes(SEVEN, "fp32", False) == 2 * plain


def test_a_gpu_that_is_too_small_for_the_activations_gets_recomputation_and_a_large_one_does_not():
    gang = GangConfig(num_workers=8, zero_stage=3, precision="bf16", gpus_per_worker=1)
    large, small = (fitted(gang, SEVEN, 7_000_000_000, gpu, 1) for gpu in (80 * 10**9, 20 * 10**9))
    assert not large.checkpointing
    assert large.max_tokens > FEWEST_TOKENS
    assert small.checkpointing
    unknown = fitted(gang, SEVEN, 7_000_000_000, None, 1)
    assert (unknown.max_tokens, unknown.checkpointing) == (MOST_TOKENS, False)


def test_on_a_cpu_small_models_take_many_tokens_and_large_ones_few():
    assert fitted(GangConfig(), TINY, 10**6, None, 2).max_tokens == MOST_TOKENS
    fit = fitted(GangConfig(), SEVEN, 7 * 10**9, None, 2)
    assert (fit.max_tokens, fit.threads_per_worker, fit.checkpointing) == (FEWEST_TOKENS, 2, False)

"""How gangs are laid out on GPUs that this machine does not have: the arithmetic, over cards, counts and models."""

from functools import lru_cache

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from ray_unlearn.config import GangConfig, UserError
from ray_unlearn.models.loading import choose_trained
from ray_unlearn.training.memory import FEWEST_TOKENS, gpu_budget, offloads, training_memory
from ray_unlearn.training.placement import ADAPTER_RANK, GIB, Asked, Machine, Model, candidates, place

SHAPES = {
    "1B": (2048, 16, 32, 8192, 128_256, True),
    "3B": (3072, 28, 24, 8192, 128_256, True),
    "7B": (4096, 32, 32, 14_336, 32_000, False),
    "8B": (4096, 32, 32, 14_336, 128_256, False),
    "14B": (5120, 40, 40, 17_920, 100_352, False),
    "32B": (5120, 64, 40, 27_648, 152_064, False),
    "70B": (8192, 80, 64, 28_672, 128_256, False),
}
"""Hidden units, layers, heads, the MLP's width, vocabulary, tied embeddings."""
CARDS, COUNTS = (24, 40, 80, 141), (1, 2, 4, 8)
GPU = GangConfig(precision="bf16", gpus_per_worker=1.0)
TABLE = {
    # card: what a trial gets, for 1, 2, 4 and 8 of them; -: refused
    "1B": {
        24: "lora/1 lora/1 full/4 full/4",
        40: "full/1 full/1 full/1 full/1",
        80: "full/1 full/1 full/1 full/1",
        141: "full/1 full/1 full/1 full/1",
    },
    "7B": {
        24: "lora/1 lora/1 lora/1 lora/1",
        40: "lora/1 lora/1 lora/1 full/8",
        80: "lora/1 lora/1 full/4 full/8",
        141: "lora/1 full/2 full/4 full/4",
    },
    "14B": {
        24: "- lora/2 lora/4 lora/4",
        40: "lora/1 lora/2 lora/2 lora/2",
        80: "lora/1 lora/1 lora/1 full/8",
        141: "lora/1 lora/1 full/4 full/8",
    },
    "70B": {24: "- - - -", 40: "- - - lora/8", 80: "- - lora/4 lora/4", 141: "- lora/2 lora/2 lora/2"},
}
"""As the README prints it."""


@lru_cache
def model(name: str) -> Model:
    hidden, layers, heads, width, vocabulary, is_tied = SHAPES[name]
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        intermediate_size=width,
        vocab_size=vocabulary,
        tie_word_embeddings=is_tied,
    )

    @lru_cache
    def trained(rank: int) -> int:
        with torch.device("meta"):
            built = choose_trained(AutoModelForCausalLM.from_config(config), rank, "", False)
        return sum(p.numel() for p in built.parameters() if p.requires_grad)

    return Model(name, config, trained(0), trained)


def machine(card: int, *nodes: int, host: float = 0.0) -> Machine:
    return Machine(nodes, 16.0 * sum(nodes), card * GIB, 312e12, 2e12, host)


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("name", SHAPES)
def test_what_is_chosen_fits_and_what_is_refused_does_not(name, card):
    for count in COUNTS:
        for lora in (None, 0):
            asked, there = Asked(GPU, lora=lora, trials=60), machine(card, count)
            ways = candidates(model(name), asked, there)
            try:
                chosen = place(model(name), asked, there)
            except UserError as error:
                assert not any(fit.fits for way in ways for fit in way)
                assert "does not fit on" in str(error)
                assert "\n" not in str(error)
                continue
            gang = chosen.gang
            trained = model(name).num_trained(gang.lora_rank)
            again = training_memory(model(name).config, gang, model(name).num_parameters, trained)
            assert again.peak <= gpu_budget(gang, card * GIB)
            assert gang.max_tokens >= FEWEST_TOKENS
            assert gang.num_workers * chosen.concurrent <= count
            fitting = [any(fit.fits for fit in way) for way in ways]
            is_full = not gang.lora_rank and not offloads(gang)
            assert is_full == fitting[0], "all weights where they fit"
            assert not (lora == 0 and gang.lora_rank)
            assert not (lora is None and fitting[1] and offloads(gang)), "adapters before the optimizer on the host"


def cell(name: str, card: int, count: int) -> str:
    try:
        gang = place(model(name), Asked(GPU, trials=60), machine(card, count)).gang
    except UserError:
        return "-"
    return f"{'lora' if gang.lora_rank else 'full'}/{gang.num_workers}"


@pytest.mark.parametrize("name", TABLE)
def test_the_table_of_the_readme(name):
    for card, row in TABLE[name].items():
        assert " ".join(cell(name, card, count) for count in COUNTS) == row, card


def test_the_user_s_own_choices_are_kept_or_refused():
    kept = place(model("3B"), Asked(GPU, workers=4, zero=3, lora=8, trials=9), machine(80, 8)).gang
    assert (kept.num_workers, kept.zero_stage, kept.lora_rank) == (4, 3, 8)
    with pytest.raises(UserError, match=r"Give --workers-per-trial [12] --zero [0-3]"):
        place(model("3B"), Asked(GPU, workers=1, zero=1, lora=0), machine(40, 4))


def test_a_refusal_names_the_least_that_would_do():
    with pytest.raises(UserError) as error:
        place(model("70B"), Asked(GPU), machine(80, 2))
    assert "It would fit on 4 such GPUs with --lora 16" in str(error.value)
    with pytest.raises(UserError, match="--lora 16"):
        place(model("7B"), Asked(GPU, zero=0, lora=0), machine(24, 1))


def test_three_nodes_hold_three_times_the_trials_of_one():
    one, three = (place(model("7B"), Asked(GPU, trials=60), machine(80, *nodes)) for nodes in ((8,), (8, 8, 8)))
    assert three.gang.num_workers == one.gang.num_workers
    assert three.concurrent == 3 * one.concurrent


def test_the_smallest_card_and_few_cpus_shape_the_gang():
    there = Machine((8,), 4, 80 * GIB, 312e12, 2e12)
    chosen = place(model("1B"), Asked(GPU, trials=60), there)
    assert chosen.concurrent * chosen.gang.num_workers == 8
    assert chosen.gang.cpus_per_worker == 0.5


def test_an_optimizer_on_the_host_gets_the_node_s_cpus_by_share_and_needs_its_memory():
    asked = Asked(GPU, lora=0, trials=4)
    chosen = place(model("3B"), asked, machine(24, 1, host=200 * GIB)).gang
    assert offloads(chosen)
    assert (chosen.cpus_per_worker, chosen.threads_per_worker) == (16, 16)
    with pytest.raises(UserError, match="3B"):
        place(model("3B"), asked, machine(24, 1, host=30 * GIB))


def test_scoring_holds_weights_alone():
    scoring = Model("8B", model("8B").config, model("8B").num_parameters, lambda rank: 0)
    gang = GangConfig(precision="bf16", gpus_per_worker=1.0, trains=False)
    one = place(scoring, Asked(gang, lora=0), machine(24, 1))
    assert (one.gang.num_workers, one.gang.zero_stage) == (1, 0)
    assert one.memory.optimizer == one.memory.snapshot == one.memory.gradients == one.memory.step == 0
    large = Model("70B", model("70B").config, model("70B").num_parameters, lambda rank: 0)
    assert place(large, Asked(gang, lora=0), machine(80, 4)).gang.zero_stage == 3


def test_cpu_gangs_are_as_many_as_memory_holds():
    there = Machine((), 16, 64 * GIB, 1e11, 1e10)
    chosen = place(model("1B"), Asked(GangConfig(), trials=60), there)
    assert (chosen.gang.num_workers, chosen.gang.zero_stage) == (1, 0)
    assert 1 <= chosen.concurrent < 16
    assert chosen.concurrent * chosen.memory.peak <= 64 * GIB
    assert chosen.gang.threads_per_worker == 16 // chosen.concurrent
    assert place(model("1B"), Asked(GangConfig(), workers=2, trials=60), there).gang.zero_stage > 0


def test_adapters_are_said_to_be_the_machine_s_choice():
    says = place(model("7B"), Asked(GPU, trials=60), machine(80, 1)).says
    assert f"adapters of rank {ADAPTER_RANK}, because all weights do not fit" in says
    assert "because" not in place(model("7B"), Asked(GPU, lora=8, trials=60), machine(80, 1)).says

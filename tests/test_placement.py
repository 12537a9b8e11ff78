"""How gangs are laid out on GPUs that this machine does not have: the arithmetic, over cards, counts and models."""

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from ray_unlearn.benchmarks import load_benchmark
from ray_unlearn.commands import resources
from ray_unlearn.config import GangConfig, UserError
from ray_unlearn.models.loading import choose_trained
from ray_unlearn.search.space import ADAPTER_RATE, load_space
from ray_unlearn.training.losses import find_method
from ray_unlearn.training.memory import FEWEST_TOKENS, gpu_budget, offloads, training_memory
from ray_unlearn.training.placement import ADAPTER_RANK, GIB, Asked, Machine, Model, candidates, place
from tests.test_cli import run

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
            if not any(fit.fits for way in ways for fit in way):
                with pytest.raises(UserError, match=r"^[^\n]* does not fit on [^\n]*$"):
                    place(model(name), asked, there)
                continue
            chosen = place(model(name), asked, there)
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


def test_what_the_user_runs_at_a_time_is_kept_or_refused():
    there = machine(80, 8)
    assert place(model("1B"), Asked(GPU, concurrent=2, trials=60), there).concurrent == 2
    with pytest.raises(UserError, match="does not fit"):
        place(model("1B"), Asked(GPU, concurrent=9, trials=60), there)
    cpus = Machine((), 2, 64 * GIB, 1e11, 1e10)
    assert place(model("1B"), Asked(GangConfig(), concurrent=3, trials=60), cpus).concurrent == 3


def test_learning_rates_move_with_adapters():
    plain, adapted = (
        load_space(find_method("simnpo"), load_benchmark("wmdp"), "full", 7 * 10**9, has_adapters=on)
        for on in (False, True)
    )
    rates = plain.ranges["learning_rate"], adapted.ranges["learning_rate"]
    assert rates[1].low == pytest.approx(ADAPTER_RATE * rates[0].low)
    assert rates[1].high == pytest.approx(ADAPTER_RATE * rates[0].high)
    starts = plain.warm_starts[0], adapted.warm_starts[0]
    assert starts[1]["learning_rate"] == pytest.approx(ADAPTER_RATE * starts[0]["learning_rate"])
    same = {key: value for key, value in starts[0].items() if key != "learning_rate"}
    assert {key: starts[1][key] for key in same} == same
    assert replace(adapted, ranges={}, warm_starts=()) == replace(plain, ranges={}, warm_starts=())


@pytest.fixture
def large_model(tiny_model, tmp_path) -> Path:
    """A folder with the tokenizer of the tiny model and the configuration of one with 7 billion parameters."""
    folder = tmp_path / "large"
    folder.mkdir()
    for file in tiny_model.iterdir():
        if "token" in file.name or "vocab" in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    config = model("7B").config
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    return folder


def rows(folder: Path, name: str, lengths: range) -> None:
    lines = [json.dumps({"question": "What?", "answer": "no " * length}) for length in lengths]
    (folder / name).write_text("\n".join(lines) + "\n")


@pytest.fixture
def dry_run(capfd, large_model, tmp_path, monkeypatch):
    """`tune --dry-run` on own data, on a machine with these GPUs: exit code, what it said."""

    def run_it(gpus: list[int], *options: str) -> tuple[int, str]:
        rows(tmp_path, "forget.jsonl", range(1, 9))
        rows(tmp_path, "retain.jsonl", range(9, 17))
        columns = 'question = "question"\nanswer = "answer"\n'
        tables = f'name = "own"\n[forget]\nfile = "forget.jsonl"\n{columns}[retain]\nfile = "retain.jsonl"\n{columns}'
        (tmp_path / "own.toml").write_text(tables)
        monkeypatch.setattr(resources, "gpu_bytes", lambda: [size * GIB for size in gpus])
        monkeypatch.setattr(resources, "free_memory", lambda: 200 * GIB)
        words = ["--benchmark", str(tmp_path / "own.toml"), "--model", str(large_model), "--out", str(tmp_path / "out")]
        code, out, err = run(capfd, "tune", *words, "--methods", "simnpo", "--dry-run", *options)
        return code, out + err

    return run_it


def test_the_headline_command_takes_adapters_on_one_small_gpu_and_says_so(dry_run):
    code, said = dry_run([24])
    assert code == 0, said
    assert "low-rank adapters of rank 16, because all weights do not fit; 1 GPU a trial" in said
    assert "Learning rates are 10 times those for all weights" in said
    assert "precision   bf16" in said


def test_the_headline_command_trains_all_weights_on_eight_large_gpus(dry_run):
    code, said = dry_run([80] * 8)
    assert code == 0, said
    assert "all weights; 8 GPUs a trial" in said
    assert "Learning rates" not in said


def test_what_fits_nowhere_is_refused_in_one_line_before_anything_is_read(dry_run, monkeypatch):
    from ray_unlearn.commands import tune

    monkeypatch.setattr(tune, "resolve_search", lambda *read: pytest.fail("data were read"))
    code, said = dry_run([24], "--workers-per-trial", "1", "--lora", "0", "--zero", "1")
    assert code == 2
    assert "does not fit on 1 GPU of 24 GiB" in said
    assert "Give --workers-per-trial" in said
    assert "Traceback" not in said

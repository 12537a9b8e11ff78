import numpy as np
import pytest
import torch

from ray_unlearn.config import UserError
from ray_unlearn.models.batches import plan_epoch, share
from ray_unlearn.models.packing import pack, pack_trees
from ray_unlearn.models.sequences import Sequences, check_lengths


def items(*shapes: tuple[int, int]) -> list[tuple[np.ndarray, int]]:
    """(length, answer start) -> sequences of different tokens."""
    return [(np.arange(100 * i, 100 * i + n), start) for i, (n, start) in enumerate(shapes)]


def test_sequences_come_back_as_they_went_in():
    given = items((5, 2), (3, 1))
    sequences = Sequences.build(given)
    assert [(t.tolist(), s) for t, s in sequences] == [(t.tolist(), s) for t, s in given]
    assert sequences.lengths.tolist() == [5, 3]
    assert sequences.answer_lengths.tolist() == [3, 2]


def test_a_pack_keeps_exactly_the_positions_before_answer_tokens():
    given = items((5, 2), (3, 1), (9, 4))
    packed = pack(given, row_length=9)
    assert packed.tokens.shape == (2, 9)
    expected = {(i, int(t)) for i, (tokens, start) in enumerate(given) for t in tokens[start:]}
    assert set(zip(packed.sequence.tolist(), packed.targets.tolist(), strict=True)) == expected
    following = torch.roll(packed.tokens, -1, dims=1).flatten()[packed.keep]
    assert following.tolist() == packed.targets.tolist()


def test_place_puts_answer_tokens_in_the_given_order():
    given = items((5, 2), (3, 1), (9, 4))
    packed = pack(given)
    ordered = torch.empty_like(packed.targets)
    ordered[packed.place] = packed.targets
    assert ordered.tolist() == [int(t) for tokens, start in given for t in tokens[start:]]


def test_positions_restart_with_every_packed_sequence():
    packed = pack(items((4, 1), (3, 1)), row_length=10)
    assert packed.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2]]


@pytest.mark.parametrize("count", [1, 2, 7, 20, 60])
def test_rows_waste_little_room_and_are_no_longer_than_that_takes(count):
    lengths = np.random.default_rng(count).integers(60, 110, count)
    packed = pack(items(*((int(n), 1) for n in lengths)))
    num_rows, width = packed.tokens.shape
    assert packed.num_tokens == sum(lengths) <= num_rows * width
    assert num_rows * width <= 1.2 * sum(lengths)
    assert width <= 4 * max(lengths)


def test_nothing_to_pack_is_one_row_with_nothing_kept():
    packed = pack([])
    assert packed.tokens.shape[0] == 1
    assert not len(packed.keep)
    assert len(packed.targets) == 0


@pytest.mark.parametrize("num_workers", [1, 2, 4])
@pytest.mark.parametrize("max_tokens", [10, 25, 10_000])
def test_a_batch_is_cut_whole_balanced_and_into_equally_many_parts(num_workers, max_tokens):
    lengths = np.random.default_rng(0).integers(1, 20, 30)
    parts = share(lengths, num_workers, max_tokens)
    assert sorted(i for worker in parts for part in worker for i in part) == list(range(30))
    assert len({len(worker) for worker in parts}) == 1
    loads = [sum(lengths[i] for part in worker for i in part) for worker in parts]
    assert max(loads) - min(loads) <= 20
    assert all(sum(lengths[i] for i in part) <= max_tokens or len(part) == 1 for worker in parts for part in worker)


@pytest.mark.parametrize(("max_tokens", "count"), [(400, 6), (1100, 2), (2000, 1)])
def test_the_parts_of_a_batch_are_few_and_alike(max_tokens, count):
    lengths = np.random.default_rng(0).integers(30, 110, 28)
    (parts,) = share(lengths, 1, max_tokens)
    loads = [sum(lengths[i] for i in part) for part in parts]
    assert len(parts) == count
    assert all(abs(load - sum(lengths) / count) <= max(lengths) for load in loads)


def test_an_epoch_takes_every_forget_sequence_once_and_the_retain_set_evenly():
    epochs = [plan_epoch(10, 7, batch_size=4, seed=3, epoch=e) for e in range(7)]
    for batches in epochs:
        assert sorted(i for forget, _ in batches for i in forget) == list(range(10))
        assert all(len(forget) == len(retain) for forget, retain in batches)
    used = np.bincount(np.concatenate([retain for batches in epochs for _, retain in batches]))
    assert used.tolist() == [10] * 7


def test_the_plan_depends_on_the_seed_and_the_epoch():
    first, again, other = (
        plan_epoch(20, 20, 8, seed, epoch)[0][0].tolist() for seed, epoch in ((1, 0), (1, 0), (1, 1))
    )
    assert first == again
    assert first != other


def test_a_sequence_longer_than_the_context_is_named():
    with pytest.raises(UserError, match=r"data\.json, row 1: 9 tokens.*at most 8"):
        check_lengths(Sequences.build(items((5, 1), (9, 1))), 8, "data.json")


def test_short_epochs_go_on_where_the_last_one_ended():
    epochs = [plan_epoch(10, 7, batch_size=2, seed=3, epoch=e, epoch_size=4) for e in range(5)]
    for batches in epochs:
        assert [(len(forget), len(retain)) for forget, retain in batches] == [(2, 2), (2, 2)]
    walk = np.concatenate([forget for batches in epochs for forget, _ in batches])
    assert sorted(walk[:10].tolist()) == sorted(walk[10:].tolist()) == list(range(10))
    whole = np.concatenate([forget for forget, _ in plan_epoch(10, 7, batch_size=2, seed=3, epoch=1)])
    assert walk[10:].tolist() == whole.tolist()


def test_a_tree_is_no_wider_than_pays_and_fits():
    def sizes(prompt, answers, max_tokens=0):
        sequences = Sequences.build(([*range(prompt), *([0] * n)], prompt) for n in answers)
        trees = sequences.trees(max_tokens)
        assert sorted(i for tree in trees for i in tree) == list(range(len(answers)))
        return sorted(len(tree) for tree in trees)

    assert sizes(1, [20] * 50) == [1] * 50  # plain texts, which share the token they begin with
    assert sizes(40, [40] * 6) == [6]  # one question and its answers
    assert sizes(200, [100] * 16) == [5, 5, 6]
    assert sizes(200, [100] * 16, 500) == [2, 2, 3, 3, 3, 3]
    assert sizes(200, [100] * 3, 100) == [1] * 3


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_answers_that_share_a_prompt_score_as_they_do_alone(tmp_path, kind):
    from transformers import AutoModelForCausalLM

    from ray_unlearn.models.logprobs import CORRECT, AnswerScorer, score_answers
    from tests.tiny import write_tiny_model

    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 10, n) for n in (6, 1, 9)]
    order = (0, 1, 2, 0, 2, 2, 1, 0)
    items = [([*prompts[i], *rng.integers(0, 10, rng.integers(1, 6))], len(prompts[i])) for i in order]
    sequences = Sequences.build(items)
    groups = sequences.trees()
    assert sorted(map(sorted, groups)) == [[0, 3, 7], [1], [2, 4, 5], [6]]  # of a prompt of one token nothing is shared
    scorer = AnswerScorer(AutoModelForCausalLM.from_pretrained(write_tiny_model(tmp_path, kind)))
    together = pack_trees([[sequences[i] for i in group] for group in groups], 24)
    alone = pack([sequences[i] for group in groups for i in group])
    assert together.num_tokens < alone.num_tokens
    with torch.no_grad():
        found = [score_answers(scorer, packed, CORRECT) for packed in (together, alone)]
    orders = [torch.argsort(packed.place) for packed in (together, alone)]
    for name in ("logprobs", "correct"):
        one, other = (getattr(answers, name)[order] for answers, order in zip(found, orders, strict=True))
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)

"""The chains are those of the paper's public code: their matrices, their starts, and what is far from them."""

import numpy as np
import pytest

from ray_unlearn.benchmarks.synthetic import (
    EXPERIMENTS,
    HOMES,
    LEAKAGE,
    NUM_STATES,
    draw,
    expected_divergence,
    first_state,
    transition_matrix,
    uniform_divergence,
)


@pytest.mark.parametrize("chain", HOMES)
def test_a_home_state_leaks_two_tenths_and_any_other_state_steps_anywhere(chain):
    matrix, home = transition_matrix(chain), list(HOMES[chain])
    assert matrix.sum(axis=1) == pytest.approx(np.ones(NUM_STATES))
    away = [s for s in range(NUM_STATES) if s not in home]
    assert matrix[np.ix_(home, away)].sum(axis=1) == pytest.approx([LEAKAGE] * 3)
    assert matrix[np.ix_(home, home)] == pytest.approx(np.full((3, 3), 0.8 / 3))
    assert matrix[away] == pytest.approx(np.full((7, NUM_STATES), 0.1))


def test_the_homes_share_no_state_and_one_state_is_nobodys():
    states = [s for home in HOMES.values() for s in home]
    assert len(set(states)) == len(states) == NUM_STATES - 1


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_sequences_have_the_chain_s_length_and_follow_its_transitions(experiment):
    for chain, length in experiment.lengths.items():
        sequences = draw(chain, 4000, np.random.default_rng(1), experiment.lengths)
        states = sequences.tokens.reshape(4000, length)
        assert np.bincount(states[:, 0], minlength=10) / 4000 == pytest.approx(first_state(chain), abs=0.03)
        steps = np.zeros((NUM_STATES, NUM_STATES))
        np.add.at(steps, (states[:, :-1].ravel(), states[:, 1:].ravel()), 1)
        home = list(HOMES[chain])
        seen = steps[home].sum(axis=0) / steps[home].sum()
        assert seen == pytest.approx(transition_matrix(chain)[home[0]], abs=0.01)


def test_a_model_without_a_forget_chain_is_as_far_from_it_as_the_paper_draws_its_retrained_model():
    # The figure of the public code has it at 0.418 on 20 states and 0.437 on 5.
    retain = transition_matrix("retain")
    assert expected_divergence("forget1", retain, 20) == pytest.approx(0.418, abs=0.015)
    assert expected_divergence("forget2", retain, 5) == pytest.approx(0.437, abs=0.015)
    assert expected_divergence("retain", retain, 20) == 0.0


def test_knowing_nothing_is_far_from_every_chain():
    assert uniform_divergence("retain") == pytest.approx(0.33, abs=0.01)

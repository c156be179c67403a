"""What the step number alone decides."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relive.dqn import TrainConfig
from relive.train.schedules import beta_at, epsilon_at, reset_seed, updates_owed


def test_epsilon_falls_in_a_straight_line_and_stays() -> None:
    """Bug: the decay measured from the end of the warm-up, or running on below its end."""
    config = TrainConfig("E", steps=1000, learning_starts=0, epsilon_start=0.9, epsilon_end=0.1, epsilon_fraction=0.5)
    assert [epsilon_at(config, step) for step in (0, 125, 250, 500, 1000, 5000)] == pytest.approx(
        [0.9, 0.7, 0.5, 0.1, 0.1, 0.1]
    )


def test_actions_are_random_until_learning_starts() -> None:
    """Bug: an untrained network choosing the first transitions."""
    config = TrainConfig("E", steps=1000, learning_starts=100, epsilon_end=0.0, epsilon_fraction=0.0)
    assert [epsilon_at(config, step) for step in (0, 99, 100)] == [1.0, 1.0, 0.0]


def test_beta_rises_in_a_straight_line_to_one_at_the_last_step_and_stays() -> None:
    """Bug: 1 reached when the warm-up or epsilon's decay ends, or passed by steps of several environments."""
    config = TrainConfig("E", steps=1000, learning_starts=300, priority_beta=0.4)
    assert [beta_at(config, step) for step in (0, 250, 500, 1000, 1003)] == pytest.approx([0.4, 0.55, 0.7, 1.0, 1.0])


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.29, 1.0, 1.13, 4.0])
def test_any_replay_ratio_is_exact_over_a_long_run(ratio: float) -> None:
    """Bug: updates reckoned in floats, of which 0.29 * 100 is less than 29 and ten times 0.1 less than 1."""
    config = TrainConfig("E", learning_starts=0, replay_ratio=ratio)
    for steps in (100, 1000, 700_000, 10_000_000):
        assert updates_owed(config, steps) == Fraction(str(ratio)) * steps


def test_no_update_before_learning_starts_and_none_made_up_for_it() -> None:
    """Bug: a burst of updates on the first learning step, for the steps of the warm-up."""
    config = TrainConfig("E", learning_starts=1000)
    assert [updates_owed(config, step) for step in (0, 999, 1000, 1001)] == [0, 0, 0, 1]


@given(
    ratio=st.sampled_from([0.1, 0.5, 1.0, 3.0]),
    every=st.integers(1, 100),
    starts=st.integers(0, 300),
    step=st.integers(0, 100_000),
    stride=st.integers(1, 16),
)
def test_rounds_make_up_all_that_is_owed(ratio: float, every: int, starts: int, step: int, stride: int) -> None:
    """Bug: steps that come in strides of several environments jump over the moment of a round, and it is never held."""
    config = TrainConfig("E", learning_starts=starts, replay_ratio=ratio, update_every=every)
    owed, later = updates_owed(config, step), updates_owed(config, step + stride)
    assert 0 <= owed <= later
    behind = Fraction(str(ratio)) * max(0, step - starts) - owed
    assert 0 <= behind < Fraction(str(ratio)) * every + 1


def test_every_reset_has_a_seed_of_its_own() -> None:
    """Bug: the same episodes after every checkpoint, or in runs of different seeds; a seed Gymnasium does not take."""
    seeds = [reset_seed(TrainConfig("E", seed=seed), step) for seed in range(20) for step in range(0, 5000, 100)]
    assert len(set(seeds)) == len(seeds)
    assert all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in seeds)
    assert reset_seed(TrainConfig("E", seed=7), 0) == 7

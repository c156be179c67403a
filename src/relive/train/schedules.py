"""What the step number alone decides: how random actions are, how much weights correct, updates owed, resets' seeds."""

from fractions import Fraction

import numpy as np

from relive.dqn import TrainConfig


def epsilon_at(config: TrainConfig, step: int) -> float:
    """Probability of a random action after `step` environment steps.

    1 until learning starts, then a straight line from `epsilon_start` at step 0 to `epsilon_end` at step
    `epsilon_fraction * steps`, then constant. Who has learned from a dataset before acts at `epsilon_end` at once.
    """
    if config.updates_before:
        return config.epsilon_end
    if step < config.learning_starts:
        return 1.0
    decay = config.epsilon_fraction * config.steps
    if step >= decay:
        return config.epsilon_end
    return config.epsilon_start + (config.epsilon_end - config.epsilon_start) * step / decay


def beta_at(config: TrainConfig, step: int) -> float:
    """Exponent of the importance weights after `step` environment steps.

    A straight line from `priority_beta` at step 0 to 1 at step `steps`, then constant.

    Paper: Schaul et al. 2016 (arXiv:1511.05952), section 3.4.
    """
    return config.priority_beta + (1.0 - config.priority_beta) * min(1.0, step / config.steps)


def updates_owed(config: TrainConfig, step: int) -> int:
    """Updates that a run must have made, in all, after `step` environment steps.

    A function of the step alone and computed in integers, so that any replay ratio holds exactly however long the run,
    and a resumed run owes what an uninterrupted one does: floor(replay_ratio * s), s the steps since learning started,
    rounded down to whole rounds of `update_every`. Those from a dataset alone, before the first step, come on top.
    """
    learned = step - config.learning_starts
    if learned < 0:
        return config.updates_before
    learned -= learned % config.update_every
    ratio = Fraction(str(config.replay_ratio))  # 0.1 is meant as 1/10, not as the nearest binary fraction
    return config.updates_before + learned * ratio.numerator // ratio.denominator


def reset_seed(config: TrainConfig, step: int) -> int:
    """Seed with which all environments are reset after `step` environment steps: at the start, or at a checkpoint."""
    if step == 0:
        return config.seed
    return int(np.random.SeedSequence(config.seed, spawn_key=(2, step)).generate_state(1)[0])  # 0, 1: the agent's

"""Greedy episodes: each counts once."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from arena import ID
from numpy.typing import NDArray

from relive.dqn import DQN, AgentConfig
from relive.errors import ConfigError
from relive.train.environments import make_env, make_training_envs
from relive.train.evaluate import LANES, evaluate, film, greedy


def middle(obs: NDArray[Any]) -> NDArray[np.int64]:
    return np.zeros(len(obs), np.int64)


@pytest.mark.parametrize("episodes", [1, LANES, LANES + 1, 3 * LANES + 5])
def test_every_seed_is_played_once_and_reported_in_order(episodes: int) -> None:
    """Bug: the first k episodes to end are taken (short ones favoured), or a return lands on another seed."""
    evaluation = evaluate(middle, ID, episodes=episodes, seed=50)
    assert evaluation is not None
    assert evaluation.returns == tuple(range(50, 50 + episodes))
    assert evaluation.lengths == tuple(1 + seed % 7 for seed in range(50, 50 + episodes))
    assert evaluation.mean == np.mean(evaluation.returns)
    assert evaluation.std == np.std(evaluation.returns)


def test_an_environment_with_a_vectorised_form_counts_first_episodes_only() -> None:
    """Bug: lanes that ended early are reset by the environment and their next episode's rewards added too."""
    evaluation = evaluate(lambda obs: np.ones(len(obs), np.int64), "CartPole-v1", episodes=50, seed=3)
    assert evaluation is not None
    assert len(set(evaluation.lengths)) > 1  # else no lane would have gone on while others played
    assert evaluation.returns == evaluation.lengths
    assert max(evaluation.lengths) < 13  # always pushing right, no pole stands longer


def test_stop_ends_an_evaluation_without_a_result() -> None:
    """Bug: half an evaluation, biased towards short episodes, reported as if it were one."""
    for env in (ID, "CartPole-v1"):
        asked = iter([False, False, True])
        assert evaluate(middle, env, episodes=40, seed=0, stop=lambda asked=asked: next(asked)) is None


def test_evaluating_draws_nothing_from_the_agents_generator() -> None:
    """Bug: evaluating more often changes the training."""
    env = make_env(ID)
    agent = DQN(env.observation_space, env.action_space, AgentConfig(hidden=(8,)), seed=0)
    before = agent.state_dict()["rng"]
    obs = np.zeros((5, 2), np.float32)
    actions = greedy(agent, env.action_space)(obs)
    assert agent.state_dict()["rng"] == before
    assert (actions == agent.act(obs, 0.0)).all()
    assert all(env.action_space.contains(action) for action in actions)  # Discrete(3, start=-1)


def test_a_film_shows_every_observation_of_one_episode() -> None:
    """Bug: the last picture, of how it ended, is missing; or another seed is filmed than is reported."""
    pictures, fps, total = film(middle, ID, seed=54)
    assert [int(picture[0, 0, 0]) for picture in pictures] == [0, 20, 40, 60, 80, 100, 120]
    assert (fps, total) == (50.0, 54.0)


def test_stacked_evaluation_repeats_the_first_observation() -> None:
    """Bug: the policy is trained on stacks and evaluated on single frames, or the stacks begin differently."""
    seen: list[NDArray[Any]] = []

    def watch(obs: NDArray[Any]) -> NDArray[np.int64]:
        seen.append(obs.copy())
        return middle(obs)

    evaluate(watch, ID, episodes=1, seed=2, stack=3)
    assert [obs[0, :, 0].tolist() for obs in seen] == [[0, 0, 0], [0, 0, 1], [0, 1, 2]]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("CartPol-v1", "Did you mean CartPole-v1"),
        ("cartpole-v1", "Did you mean CartPole-v1"),
        ("LunarLander-v2", "LunarLander-v3"),
        ("nothing-like-it", "Gymnasium says: Environment `nothing-like-it` doesn't exist."),
        ("no_such_module:Env-v0", "environment: expected an id that Gymnasium knows"),
        ("Pendulum-v1", "expected Discrete actions, got Box"),
    ],
)
def test_a_name_that_cannot_be_trained_is_refused_with_a_remedy(name: str, says: str) -> None:
    """Bug: a traceback out of Gymnasium's registry."""
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")) as refusal:
        make_env(name)
    assert "\n" not in str(refusal.value)


def test_training_environments_use_the_vectorised_form_only_for_several() -> None:
    """Bug: one CartPole through the vectorised form, at twice the cost of a step; or sixteen of them one by one."""
    with_form = type(make_training_envs("CartPole-v1", 4)).__name__
    alone = make_training_envs("CartPole-v1", 1)
    assert with_form == "CartPoleVectorEnv"
    assert isinstance(alone, gymnasium.vector.SyncVectorEnv)
    assert alone.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.SAME_STEP

"""Collecting: exactly the steps asked for, with true final observations, the same each time."""

from __future__ import annotations

from contextlib import closing

import gymnasium
import numpy as np
import pytest

import relive
from relive.interop import Block, Source
from relive.train import collect as module
from relive.train.collect import collect


def lanes_of(source: Source) -> list[list[Block]]:
    lanes: list[list[Block]] = [[] for _ in range(source.lanes)]
    for block in source.blocks():
        lanes[block.lane].append(block)
    return lanes


def column(blocks: list[Block], name: str) -> np.ndarray:
    return np.concatenate([getattr(block, name) for block in blocks])


@pytest.mark.parametrize("env", ["CartPole-v1", "MountainCarContinuous-v0"])
@pytest.mark.parametrize("steps", [1, 137])
def test_the_steps_are_those_of_the_environment(env, steps, monkeypatch):
    """The same actions in an environment of our own give the same observations, ends and rewards."""
    monkeypatch.setattr(module, "STAGE", 50)
    (blocks,) = lanes_of(collect(env, None, steps=steps, seed=3))
    rows = {name: column(blocks, name) for name in ("obs", "action", "reward", "terminated", "truncated", "next_obs")}
    assert len(rows["reward"]) == steps
    with closing(gymnasium.make(env)) as own:
        obs, _ = own.reset(seed=3)
        for step in range(steps):
            assert (rows["obs"][step] == obs).all()
            obs, reward, terminated, truncated, _ = own.step(rows["action"][step])
            last = step == steps - 1
            assert (rows["next_obs"][step] == obs).all()
            assert rows["reward"][step] == np.float32(reward)
            assert (rows["terminated"][step], rows["truncated"][step]) == (
                terminated,
                truncated or (last and not terminated),
            )
            if terminated or truncated:
                obs, _ = own.reset()


@pytest.mark.parametrize(("steps", "num_envs"), [(100, 3), (3, 3), (64, 4), (301, 7)])
def test_every_environment_gives_its_share(steps, num_envs, monkeypatch):
    monkeypatch.setattr(module, "STAGE", 10)
    source = collect("CartPole-v1", None, steps=steps, num_envs=num_envs)
    lanes = lanes_of(source)
    lengths = [len(column(blocks, "reward")) for blocks in lanes]
    assert source.num_transitions == sum(lengths) == steps
    assert source.counts == tuple(lengths)
    assert max(lengths) - min(lengths) <= 1
    for blocks in lanes:
        obs, following = column(blocks, "obs"), column(blocks, "next_obs")
        ended = column(blocks, "terminated") | column(blocks, "truncated")
        assert ended[-1]
        assert not (column(blocks, "terminated") & column(blocks, "truncated")).any()
        assert (obs[1:][~ended[:-1]] == following[:-1][~ended[:-1]]).all()
        assert (np.abs(obs[1:][ended[:-1]]) < 0.06).all()  # where CartPole begins


def test_reading_twice_plays_the_same():
    source = collect("CartPole-v1", None, steps=90, num_envs=2, seed=1)
    first, second = ([column(blocks, "obs").tobytes() for blocks in lanes_of(source)] for _ in range(2))
    other = collect("CartPole-v1", None, steps=90, num_envs=2, seed=2)
    assert first == second
    assert first != [column(blocks, "obs").tobytes() for blocks in lanes_of(other)]


@pytest.mark.parametrize(("epsilon", "low", "high"), [(0.0, 0.0, 0.0), (0.5, 0.2, 0.3), (1.0, 0.45, 0.55)])
def test_epsilon_mixes_random_actions_in(epsilon, low, high):
    """Half of the random actions of CartPole are the other one than a policy's that always says 0."""
    source = collect("CartPole-v1", lambda obs: np.zeros(len(obs), np.int64), steps=6_000, num_envs=4, epsilon=epsilon)
    share = np.mean([block.action.mean() for block in source.blocks()])
    assert low <= share <= high


def test_a_policy_sees_stacks_and_the_dataset_holds_single_observations():
    seen = []

    def act(obs):
        seen.append(obs.copy())
        return np.zeros(len(obs), np.int64)

    source = collect("CartPole-v1", act, steps=40, stack=3)
    (blocks,) = lanes_of(source)
    obs, ended = column(blocks, "obs"), column(blocks, "terminated")
    assert obs.shape == (40, 4)
    begin = 0
    for step, stack in enumerate(seen[:40]):
        expected = [obs[max(begin, step - back)] for back in (2, 1, 0)]
        assert (stack[0] == np.stack(expected)).all(), step
        begin = step + 1 if ended[step] else begin


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 2, "num_envs": 3}, "expected 1 <= num_envs <= steps"),
        ({"steps": 0}, "expected 1 <= num_envs <= steps"),
        ({"steps": 9, "epsilon": 1.5}, r"epsilon: expected a number in \[0, 1\]"),
        ({"steps": 9, "epsilon": 0.5, "env": "Pendulum-v1"}, "epsilon: expected 0 for actions that are not Discrete"),
        ({"steps": 9, "env": "CartPoe-v1"}, "environment: expected an id that Gymnasium knows"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(relive.ConfigError, match=words):
        collect(**{"env": "CartPole-v1", "act": lambda obs: np.zeros((len(obs), 1), np.float32)} | options)

"""Transitions of a policy in an environment, as a dataset that can be written while it comes into being."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

import relive
from relive.errors import ConfigError
from relive.interop import Block, Source
from relive.train.environments import Envs, make_training_envs
from relive.train.evaluate import Act
from relive.train.state import FrameStack

STAGE = 1024
"""Steps of each environment that are held until they are handed on, at most."""

STAGE_BYTES = 64 << 20
"""Memory for them, at most (but always for one)."""


def collect(
    env: str,
    act: Act | None,
    *,
    steps: int,
    num_envs: int = 1,
    seed: int = 0,
    epsilon: float = 0.0,
    stack: int = 1,
) -> Source:
    """A dataset that is played while it is read; each reading plays anew, and the same.

    Every environment gives its share of the steps, and ends there with a truncation if its episode goes on. Final
    observations are the true ones. An environment is a lane; steps on which one only resets count for nothing.

    Args:
        env: Gymnasium id.
        act: the policy; None draws from the action space.
        steps: transitions, exactly.
        num_envs: environments that are stepped together; the first few give one step more where it does not divide.
        seed: of environments and random actions.
        epsilon: how often, of all actions, a random one is taken instead; Discrete actions only.
        stack: observations that the policy wants stacked into one. The dataset holds single ones.

    Raises:
        ConfigError: a value that makes no sense, no such environment, or one that cannot be made here.
        SchemaError: spaces of variable size.
    """
    if not 1 <= num_envs <= steps:
        raise ConfigError(f"collect: expected 1 <= num_envs <= steps, got num_envs={num_envs} and steps={steps}.")
    if not 0 <= epsilon <= 1:
        raise ConfigError(f"epsilon: expected a number in [0, 1], got {epsilon}.")
    with closing(_make(env, num_envs)) as envs:
        schema = relive.Schema.from_env(envs)
        discrete = isinstance(envs.single_action_space, gymnasium.spaces.Discrete)
    if epsilon and act is not None and not discrete:
        raise ConfigError(f"epsilon: expected 0 for actions that are not Discrete, got {epsilon}.")
    quota = [steps // num_envs + (lane < steps % num_envs) for lane in range(num_envs)]

    def read() -> Iterator[Block]:
        with closing(_make(env, num_envs)) as envs:
            player = _Player(envs, act, seed, epsilon, stack)
            yield from _play(envs, schema, player, quota)

    return Source(schema, steps, num_envs, "environment", None, (), read, tuple(quota))


def _make(env: str, num_envs: int) -> Envs:
    try:
        return make_training_envs(env, num_envs)
    except gymnasium.error.Error as error:
        said = str(error).partition("\n")[0].rstrip(".")
        raise ConfigError(f"{env}: expected an environment that can be made here, got: {said}.") from None


class _Player:
    """Chooses the actions of all environments."""

    def __init__(self, envs: Envs, act: Act | None, seed: int, epsilon: float, stack: int) -> None:
        # Streams of their own: of one stream, the coin that says "at random" would also say which action.
        coin, choice = np.random.SeedSequence(seed).spawn(2)
        envs.action_space.seed(int(choice.generate_state(1)[0]))
        self._space, self._act, self._epsilon, self._size = envs.action_space, act, epsilon, stack
        self._rng = np.random.default_rng(coin)
        self.obs, _ = envs.reset(seed=seed)
        self._stack = FrameStack(stack, self.obs) if act is not None and stack > 1 else None

    def choose(self) -> Any:
        """An action for each environment."""
        if self._act is None:
            return self._space.sample()
        actions = self._act(self.obs if self._stack is None else self._stack.obs)
        if self._epsilon:
            random = self._rng.random(len(actions)) < self._epsilon
            actions = np.where(random, self._space.sample(), actions)
        return actions

    def see(self, obs: Any, begins: NDArray[np.bool_]) -> None:
        """What came of them."""
        self.obs = obs
        if self._stack is not None:
            self._stack.push(obs, begins)


def _play(envs: Envs, schema: relive.Schema, player: _Player, quota: list[int]) -> Iterator[Block]:
    """Steps until every lane has its share; what was stored is handed on whenever a lane has filled its stage."""
    lanes = len(quota)
    row = relive.plan(schema, lanes).transition_bytes
    rows = max(1, min(STAGE, STAGE_BYTES // (row * lanes)))
    stage = relive.ReplayBuffer(lanes * rows, schema, seed=0)
    writer = stage.writer(envs)
    writer.reset(player.obs)
    stored, taken, due = np.zeros(lanes, np.int64), np.zeros(lanes, np.int64), np.array(quota)
    while (taken < due).any():
        action = player.choose()
        obs, reward, terminated, truncated, info = envs.step(action)
        ids = writer.step(action, obs, reward, terminated, truncated, info)
        player.see(obs, terminated | truncated | (ids < 0))
        stored += ids >= 0
        if (stored - taken == rows).any() or (stored >= due).all():
            for lane in range(lanes):
                upto = min(int(stored[lane]), quota[lane])
                if taken[lane] < upto:
                    yield _block(stage, schema, lane, range(int(taken[lane]), upto), last=upto == quota[lane])
            taken = stored.copy()


def _block(stage: relive.ReplayBuffer, schema: relive.Schema, lane: int, steps: range, *, last: bool) -> Block:
    batch = stage.get(np.arange(steps.start, steps.stop) * schema.lanes + lane)
    truncated = batch.truncated.copy()
    if last and not batch.terminated[-1]:
        truncated[-1] = True  # here the data end, not the episode
    return Block(batch.obs, batch.action, batch.reward, batch.terminated, truncated, batch.next_obs, {}, lane)

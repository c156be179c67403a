"""Stepping environments: the one loop body that a run without actors and every actor share."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

import relive
from relive.dqn import DQN
from relive.train.environments import Envs
from relive.train.state import FrameStack


class Playing:
    """Environments in the midst of their episodes.

    Args:
        envs: stepped all at once.
        agent: acts, with the weights it has at that moment.
        buffer: where the steps are stored, one lane an environment.
        stack: observations stacked into one for the agent.
        running: float64 [num_envs], return so far of each episode; kept here, written to.
    """

    def __init__(
        self, envs: Envs, agent: DQN, buffer: relive.ReplayBuffer, stack: int, running: NDArray[np.float64]
    ) -> None:
        self._envs, self._agent, self._size, self._running = envs, agent, stack, running
        self.writer = buffer.writer(envs)

    def begin(self, seed: int) -> None:
        """Reset every environment; the episodes that went on until now end as truncated and count for nothing."""
        obs, _ = self._envs.reset(seed=seed)
        self.writer.reset(obs)
        self._running[:] = 0.0
        self._obs: Any = obs
        self._stack = FrameStack(self._size, obs) if self._size > 1 else None

    def step(self, epsilon: float) -> tuple[NDArray[np.int64], list[float]]:
        """One step of every environment, stored.

        Returns:
            int64 [num_envs]: ids of the stored transitions, -1 where the step was a reset; and the returns of the
            episodes that ended.
        """
        obs = self._obs if self._stack is None else self._stack.obs
        action = self._agent.act(obs, epsilon)
        self._obs, reward, terminated, truncated, info = self._envs.step(action)
        ids: NDArray[np.int64] = self.writer.step(action, self._obs, reward, terminated, truncated, info)
        self._running += reward
        ended = terminated | truncated
        if self._stack is not None:
            # Right in every autoreset mode: the observation after an end either is the next episode's first already,
            # or the step after it is not stored and brings that one; the environment ignores the action in between.
            self._stack.push(self._obs, ended | (ids < 0))
        if not ended.any():
            return ids, []
        returns: list[float] = self._running[ended].tolist()
        self._running[ended] = 0.0
        return ids, returns

"""Where a run's steps come from: environments that the learner steps itself, or actors elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import relive
from relive.assembly import Storage
from relive.dqn import DQN, TrainConfig
from relive.reading import Output
from relive.samplers import BuiltIn, Prioritized, RankBased, Uniform
from relive.train.environments import Envs
from relive.train.playing import Playing
from relive.train.schedules import epsilon_at, reset_seed
from relive.train.state import LoopState
from relive.writers import Writer


class Source(Protocol):
    """What batches come from; see `relive.ReplayBuffer`."""

    def sample(self, n: int, *, beta: float | None = None, output: Output = "numpy", device: Any = None) -> Any:
        """Draw a minibatch."""

    def update_priorities(self, ids: Any, abs_td: Any) -> int:
        """Give transitions new priorities; those that are gone are skipped."""


class Replay(Source, Protocol):
    """What the learner needs of a buffer, wherever it lies."""

    def save(self, path: Path, *, note: Any = None) -> int:
        """Save the whole state to a directory, and commit the note with it."""


@dataclass(frozen=True)
class Shards:
    """A buffer in parts, as it is now."""

    transitions: tuple[int, ...]
    """Of each part."""
    lost: int
    """Transitions that were sent to a part and are not there, those overwritten by newer ones apart."""
    restarts: int
    """How often a part was lost and began anew."""


class Acting(Protocol):
    """Steps, and the buffer that they go to. The learner's loop knows no more of it than this.

    The loop calls, in turn: `advance`; then for every update that is owed `admit` and, once it is made, `learned`; at a
    row of metrics `write_row`; at a checkpoint `begin_episodes`, then `state_dict`; `close` in the end, whatever
    happened. All from one thread.
    """

    @property
    def buffer(self) -> Replay:
        """Where the steps go, and batches come from."""

    @property
    def restarts(self) -> int:
        """How often somebody who acted died and was replaced."""

    @property
    def shards(self) -> Shards | None:
        """The parts of the buffer, as they were told or asked about last; None where it is one."""

    def advance(self, state: LoopState) -> None:
        """Bring some steps in: `state.step`, and the returns of episodes that ended.

        May bring none, after a short while, so that whoever wants to stop is heard.
        """

    def admit(self, batch_size: int) -> None:
        """Called before a batch is drawn: waits where the learner is too far ahead of the actors."""

    def learned(self, updates: int) -> None:
        """Called after every update, with how many there were in all: the actors are given the weights now and then."""

    def epsilon(self, step: int) -> float:
        """Probability of a random action after `step` steps; the mean of the actors'."""

    def notes(self) -> list[str]:
        """What people should be told, a line each; said once."""

    def write_row(self, state: LoopState) -> None:
        """Called with every row of metrics: whatever there is to tell of each actor."""

    def begin_episodes(self, state: LoopState) -> None:
        """Called before a checkpoint: what cannot be saved ends here."""

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint must hold besides buffer, agent and loop, as plain values; empty for nothing."""

    def close(self) -> None:
        """End all that goes on. Idempotent."""


class Local:
    """Environments that the learner steps itself, all at once, between updates: a function of the config, bit for bit.

    Args:
        config: of the run.
        envs: stepped here; whoever made them closes them.
        agent: acts, with the weights it has at that moment.
        buffer: that of a checkpoint; None for a new one.
        state: how far the run is.
    """

    def __init__(
        self, config: TrainConfig, envs: Envs, agent: DQN, buffer: relive.ReplayBuffer | None, state: LoopState
    ) -> None:
        self._config = config
        self._buffer = make_buffer(config, relive.Schema.from_env(envs)) if buffer is None else buffer
        self._playing = Playing(envs, agent, self._buffer, config.stack, state.running)
        self.begin_episodes(state)

    @property
    def buffer(self) -> relive.ReplayBuffer:
        """Where the steps go."""
        return self._buffer

    @property
    def writer(self) -> Writer:
        """Stores the steps."""
        return self._playing.writer

    def begin_episodes(self, state: LoopState) -> None:
        """Reset every environment with the seed of this step, and forget the episodes that went on until now."""
        self._playing.begin(reset_seed(self._config, state.step))

    def advance(self, state: LoopState) -> None:
        """One step of every environment, stored."""
        ids, returns = self._playing.step(epsilon_at(self._config, state.step))
        state.step += int(np.count_nonzero(ids >= 0))
        if returns:
            state.ended(returns)

    @property
    def restarts(self) -> int:
        """Nobody dies alone."""
        return 0

    @property
    def shards(self) -> None:
        """The buffer is one."""

    def admit(self, batch_size: int) -> None:
        """Nobody is ahead of anybody."""

    def learned(self, updates: int) -> None:
        """The agent that acts is the one that learned."""

    def epsilon(self, step: int) -> float:
        """That of the schedule."""
        return epsilon_at(self._config, step)

    def notes(self) -> list[str]:
        """None, ever."""
        return []

    def write_row(self, state: LoopState) -> None:
        """The metrics tell all."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: an environment cannot be saved; a checkpoint begins its episodes anew."""
        return {}

    def close(self) -> None:
        """Nothing goes on."""


def make_buffer(config: TrainConfig, schema: relive.Schema, storage: Storage | None = None) -> relive.ReplayBuffer:
    """An empty buffer; refuses a capacity that would run out of memory half way."""
    view = relive.Transitions(n=config.agent.n_step, gamma=config.agent.gamma, stack=config.stack)
    sampler = make_sampler(config)
    relive.plan(schema, config.capacity, view, sampler=sampler)
    return relive.ReplayBuffer(config.capacity, schema, view=view, sampler=sampler, storage=storage, seed=config.seed)


def make_sampler(config: TrainConfig) -> BuiltIn:
    """How the run draws its batches."""
    alpha, newest = config.priority_alpha, config.newest
    if config.sampler == "prioritized":
        return Prioritized(alpha, config.priority_eps, newest=newest)
    if config.sampler == "rank-based":
        return RankBased(alpha, newest=newest)
    return Uniform(newest=newest)

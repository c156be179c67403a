"""One actor: environments of its own, a copy of the learner's network, and blocks of transitions handed over.

Runs in any process; who hands it weights, and what becomes of its transitions, it does not know.

Paper: Horgan et al. 2018 (arXiv:1803.00933), algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import relive
from relive.dqn import DQN, TrainConfig
from relive.errors import ConfigError
from relive.share import epsilon_ladder
from relive.train.environments import make_training_envs
from relive.train.playing import Playing

BLOCK = 32
"""Transitions, about, that an actor hands over at a time: more cost less each, and are older."""

FEWEST = 4
"""Steps of each environment between two times that they are handed over, at least."""


@dataclass(frozen=True)
class Role:
    """Which actor of which run one is; small, picklable."""

    config: TrainConfig
    actor: int
    """Its number, from 0."""
    begun: int = 0
    """Step of the run at which it began."""
    life: int = 0
    """How many had this place before it, and died."""

    @property
    def epsilon(self) -> float:
        """Its probability of a random action, once learning has started."""
        return float(epsilons(self.config)[self.actor])

    @property
    def first_lane(self) -> int:
        """Lane of its first environment; the others follow."""
        return self.actor * self.config.num_envs

    def seeds(self) -> tuple[int, int]:
        """Of its environments and of its exploration: another one for each run, actor and life."""
        key = (3, self.actor, self.begun, self.life)  # 0 to 2 are the learner's
        first, second = np.random.SeedSequence(self.config.seed, spawn_key=key).generate_state(2)
        return int(first), int(second)


def epsilons(config: TrainConfig) -> NDArray[np.float64]:
    """Probabilities of a random action, f64 [actors]."""
    return epsilon_ladder(config.actors, config.actor_epsilon, config.actor_alpha)


def in_words(config: TrainConfig) -> str:
    """The actors in words."""
    ladder = epsilons(config)
    low, high = float(ladder[-1]), float(ladder[0])
    spread = f"{high:.3g}" if math.isclose(low, high) else f"{high:.3g} to {low:.3g}"
    each = f" of {config.num_envs} environments each" if config.num_envs > 1 else ""
    where = "" if config.ray is None else f" in Ray ({config.ray})"
    return f"{config.actors} process{'es' if config.actors > 1 else ''}{where}{each}, epsilon {spread}"


def stride(config: TrainConfig) -> int:
    """Steps of each of an actor's environments between two times that it hands transitions over."""
    return max(FEWEST, BLOCK // config.num_envs)


@dataclass(frozen=True)
class Block:
    """Transitions of one lane, in order of time, each array with a leading axis of T."""

    lane: int
    """Lane of the learner's buffer."""
    obs: NDArray[Any]
    action: NDArray[Any]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    next_obs: NDArray[Any]
    priority: NDArray[np.float32] | None
    """|delta| by the actor's own network, f32[T]; None where the sampler keeps no priorities."""

    def __len__(self) -> int:
        return len(self.reward)


Sink = Callable[[Sequence[Block]], float]
"""Takes blocks, each of another lane, and returns the seconds for which it was held back."""


class WeightsSource(Protocol):
    """Where weights come from; `relive.share.Weights` is one."""

    def read(self, into: NDArray[np.float32], *, newer_than: int = 0) -> tuple[int, int] | None:
        """Copy the newest vector; (version, updates that made it), or None where none is newer than this version."""


@dataclass(frozen=True)
class Report:
    """What one round of an actor came to."""

    steps: int
    """Transitions handed over."""
    returns: tuple[float, ...]
    """Of the episodes that ended."""
    waited: float
    """Seconds for which the sink held it back."""
    updates: int
    """Updates that had made the weights it acted with."""


class Actor:
    """Plays, a round at a time.

    As in a run without actors, actions are random until learning has started, which the first weights that an update
    has made tell; then at the actor's own epsilon. |delta| of a transition is that of its n-step window, by the actor's
    network in the part of both online and target network; the window of the newest ones ends with the block.

    Args:
        role: which actor.
        weights: where its weights come from; read once a round.
        sink: takes what it plays.
    """

    def __init__(self, role: Role, weights: WeightsSource, sink: Sink) -> None:
        self._role, self._weights, self._sink = role, weights, sink
        config = role.config
        env_seed, explore_seed = role.seeds()
        self._envs = make_training_envs(config.env, config.num_envs)
        obs_space, action_space = self._envs.single_observation_space, self._envs.single_action_space
        self._agent = DQN(obs_space, action_space, config.agent, seed=explore_seed, stack=config.stack)
        self._vector = np.empty(self._agent.num_weights, np.float32)
        self._version = self._updates = 0
        view = relive.Transitions(n=config.agent.n_step, gamma=config.agent.gamma, stack=config.stack)
        self._stride, lanes = stride(config), config.num_envs
        # Room for two rounds: nothing is overwritten before it was handed over, and stacks reach back.
        schema = relive.Schema.from_env(self._envs)
        self._local = relive.ReplayBuffer(2 * self._stride * lanes, schema, view=view, seed=explore_seed)
        self._plain = self._local.reader(view=relive.Transitions())
        self._playing = Playing(self._envs, self._agent, self._local, config.stack, np.zeros(lanes))
        self._playing.begin(env_seed)
        self._made = np.zeros(lanes, np.int64)  # transitions of each lane
        self._given = np.zeros(lanes, np.int64)  # how many of them were handed over

    def advance(self) -> Report:
        """One round: the newest weights, some steps of every environment, and their transitions handed over.

        Raises:
            ConfigError: |delta| is not finite; the run has diverged.
        """
        if found := self._weights.read(self._vector, newer_than=self._version):
            self._version, self._updates = found
            self._agent.load_vector(self._vector)
        epsilon = self._role.epsilon if self._updates else 1.0
        returns: list[float] = []
        for _ in range(self._stride):
            ids, ended = self._playing.step(epsilon)
            self._made += ids >= 0
            returns += ended
        steps = int((self._made - self._given).sum())
        waited = self._sink(self._cut()) if steps else 0.0
        return Report(steps, tuple(returns), waited, self._updates)

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()

    def _cut(self) -> list[Block]:
        """What was played since the last round, a block a lane."""
        lanes = len(self._made)
        spans = [np.arange(given, made) for given, made in zip(self._given, self._made, strict=True)]
        ids = np.concatenate([span * lanes + lane for lane, span in enumerate(spans)])
        batch = self._plain.get(ids)
        priority = self._abs_td(ids)
        self._given[:] = self._made
        blocks, end = [], 0
        for lane, span in enumerate(spans):
            rows, end = slice(end, end + len(span)), end + len(span)
            if len(span):
                blocks.append(
                    Block(
                        self._role.first_lane + lane,
                        batch.obs[rows],
                        batch.action[rows],
                        batch.reward[rows],
                        batch.terminated[rows],
                        batch.truncated[rows],
                        batch.next_obs[rows],
                        None if priority is None else priority[rows],
                    )
                )
        return blocks

    def _abs_td(self, ids: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Initial priorities, f32 [B], where the sampler keeps any."""
        if self._role.config.sampler == "uniform":
            return None
        abs_td: NDArray[np.float32] = self._agent.abs_td(self._local.get(ids, output="torch")).numpy()
        if not np.isfinite(abs_td).all():
            raise ConfigError(
                f"training: expected finite TD errors, got others (actor {self._role.actor}). The run has diverged: "
                "use a smaller learning_rate."
            )
        return abs_td

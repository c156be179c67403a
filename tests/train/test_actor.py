"""One actor, in this process: what it hands over is what it played, as the learner's buffer and network see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
from arena import GRID, ID
from numpy.typing import NDArray

import relive
from relive.dqn import DQN, AgentConfig, TrainConfig
from relive.errors import ConfigError
from relive.train.acting import make_buffer
from relive.train.actor import Actor, Block, Report, Role, stride
from relive.train.environments import make_training_envs

CONFIG = TrainConfig(
    env="CartPole-v1",
    num_envs=2,
    actors=3,
    capacity=7200,
    agent=AgentConfig(hidden=(16,), batch_size=8),
)
PRIORITIZED = replace(
    CONFIG, sampler="prioritized", priority_alpha=1.0, agent=replace(CONFIG.agent, n_step=3, double=True)
)
RUNS = {
    "uniform": CONFIG,
    "one environment": replace(CONFIG, num_envs=1),
    "prioritized, n-step": PRIORITIZED,
    "same-step resets, stacks": replace(PRIORITIZED, env=ID, stack=3),
    "same-step resets, uniform": replace(CONFIG, env="MountainCar-v0", num_envs=3),
    "small grids": replace(PRIORITIZED, env=GRID),
    "ranks, stacks": replace(PRIORITIZED, sampler="rank-based", priority_alpha=0.7, stack=4, priority_eps=1e-6),
}


@dataclass
class Publisher:
    """Weights as an actor reads them."""

    vector: NDArray[np.float32]
    version: int = 1
    updates: int = 0
    reads: int = 0

    def read(self, into: NDArray[np.float32], *, newer_than: int = 0) -> tuple[int, int] | None:
        self.reads += 1
        if self.version <= newer_than:
            return None
        into[:] = self.vector
        return self.version, self.updates


def learner_of(config: TrainConfig, seed: int = 5) -> DQN:
    envs = make_training_envs(config.env, 1)
    spaces = envs.single_observation_space, envs.single_action_space
    return DQN(*spaces, config.agent, seed=seed, stack=config.stack)


def buffer_of(config: TrainConfig) -> relive.ReplayBuffer:
    schema = relive.Schema.from_env(make_training_envs(config.env, 1))
    return make_buffer(config, replace(schema, lanes=config.lanes))


def store(buffer: relive.ReplayBuffer, blocks: Sequence[Block]) -> list[NDArray[np.int64]]:
    """As a process does."""
    return [
        buffer.extend(
            *(block.obs, block.action, block.reward, block.terminated, block.next_obs),
            truncated=block.truncated,
            lane=block.lane,
            priority=block.priority,
        )
        for block in blocks
    ]


def played(
    config: TrainConfig, rounds: int, number: int = 1, updates: int = 1, **role: int
) -> tuple[relive.ReplayBuffer, list[Report], list[list[Block]]]:
    """What an actor hands over in some rounds."""
    buffer, handed = buffer_of(config), []

    def sink(blocks: Sequence[Block]) -> float:
        store(buffer, blocks)
        handed.append(list(blocks))
        return 0.25

    actor = Actor(Role(config, number, **role), Publisher(learner_of(config).vector(), updates=updates), sink)
    reports = [actor.advance() for _ in range(rounds)]
    actor.close()
    return buffer, reports, handed


def lane_rows(buffer: relive.ReplayBuffer, lane: int) -> relive.Batch:
    """All transitions of a lane as they were recorded, in order of time."""
    ids = buffer.ids[buffer.ids % buffer.lanes == lane]
    return buffer.reader(view=relive.Transitions(), sampler=relive.Uniform()).get(ids)


@pytest.mark.parametrize("name", RUNS)
def test_what_is_handed_over_is_whole_and_in_order(name: str) -> None:
    """Bug: a transition lost or doubled at a border of blocks, a final observation that is the next episode's first."""
    config = RUNS[name]
    buffer, reports, handed = played(config, rounds=12)
    own = range(config.num_envs, 2 * config.num_envs)
    assert {block.lane for blocks in handed for block in blocks} == set(own)
    assert sum(report.steps for report in reports) == len(buffer) == sum(len(block) for block in chain(*handed))
    assert all(report.waited == 0.25 and report.updates == 1 for report in reports)
    ends = 0
    for lane in own:
        rows = lane_rows(buffer, lane)
        assert len(rows.reward) >= 12 * (stride(config) - 12)
        over = rows.terminated | rows.truncated
        ends += int(over.sum())
        same = (rows.next_obs[:-1] == rows.obs[1:]).reshape(len(over) - 1, -1).all(axis=1)
        assert same[~over[:-1]].all()  # elision: inside an episode nothing is stored twice
        if config.env == "CartPole-v1":
            assert not same[over[:-1]].any()
            assert (rows.reward == 1).all()
            assert (np.abs(rows.next_obs[rows.terminated][:, [0, 2]]) > [2.4, 0.2095]).any(axis=1).all()
    assert ends or config.env == "MountainCar-v0"


def sums(rows: relive.Batch) -> list[float]:
    """Returns of the episodes that ended, from the rewards stored."""
    returns, running = [], 0.0
    for reward, over in zip(rows.reward.tolist(), (rows.terminated | rows.truncated).tolist(), strict=True):
        running += reward
        if over:
            returns.append(running)
            running = 0.0
    return returns


@pytest.mark.parametrize("name", RUNS)
def test_returns_reported_are_those_of_the_transitions_stored(name: str) -> None:
    """Bug: the reward of a reset counted, an episode reported before its last transition, or twice."""
    config = RUNS[name]
    buffer, reports, _ = played(config, rounds=20)
    lanes = range(config.num_envs, 2 * config.num_envs)
    reported = sorted(one for report in reports for one in report.returns)
    stored = sorted(one for lane in lanes for one in sums(lane_rows(buffer, lane)))
    assert np.array_equal(np.float32(reported), np.float32(stored))  # rewards are stored as float32


@pytest.mark.parametrize("name", ["prioritized, n-step", "small grids", "same-step resets, stacks", "ranks, stacks"])
def test_priorities_are_those_the_learner_finds_with_the_same_weights(name: str) -> None:
    """Bug: one step in place of n, a single frame in place of a stack, other weights, another transition's priority."""
    config = RUNS[name]
    buffer, learner = buffer_of(config), learner_of(config)
    learner.load_vector(learner.vector().copy())  # its target network too
    compared = 0

    def sink(blocks: Sequence[Block]) -> float:
        nonlocal compared
        for block, ids in zip(blocks, store(buffer, blocks), strict=True):
            found = learner.abs_td(buffer.get(ids, output="torch")).numpy()
            assert block.priority is not None
            np.testing.assert_allclose(block.priority, found, rtol=1e-4, atol=1e-6)
            compared += len(ids)
        return 0.0

    actor = Actor(Role(config, 2), Publisher(learner.vector(), updates=1), sink)
    for _ in range(6):
        actor.advance()
    assert compared == len(buffer) > 100


def test_priorities_arrive_at_the_sampler() -> None:
    """Bug: priorities dropped on the way: every transition then begins with the largest."""
    buffer, _, handed = played(PRIORITIZED, rounds=3)
    given: dict[int, float] = {}
    times: dict[int, int] = {}
    for block in chain(*handed):
        assert block.priority is not None
        for value in block.priority.tolist():
            time = times.get(block.lane, 0)
            given[time * buffer.lanes + block.lane] = value + PRIORITIZED.priority_eps
            times[block.lane] = time + 1
    batch = buffer.sample(64, beta=1.0)
    expected = np.array([given[number] for number in batch.ids.tolist()])
    share = batch.weight * expected  # weight = 1 / (N P), P in proportion to the priority
    np.testing.assert_allclose(share, share[0], rtol=1e-4)
    assert expected.max() > 1.5 * expected.min()


def test_a_uniform_run_has_no_priorities() -> None:
    """Bug: forward passes for nothing, or a refused push."""
    _, _, handed = played(CONFIG, rounds=1)
    assert all(block.priority is None for block in handed[0])


def greedy_share(config: TrainConfig, number: int, updates: int) -> float:
    """How often an actor did what its network thinks best."""
    buffer, _, _ = played(config, rounds=40, number=number, updates=updates)
    learner = learner_of(config)
    batch = buffer.get(buffer.ids)
    return float((learner.q_values(batch.obs).argmax(axis=1) == batch.action).mean())


def test_actions_are_random_until_an_update_was_made_then_at_the_actor_s_own_epsilon() -> None:
    """Bug: the ladder from the first step on, the same epsilon for all, or that of another actor."""
    assert abs(greedy_share(CONFIG, 2, updates=0) - 0.5) < 0.05
    assert greedy_share(CONFIG, 2, updates=1) > 0.99  # 0.4^8
    assert abs(greedy_share(CONFIG, 0, updates=1) - 0.8) < 0.05  # of 0.4 random, half are right by chance
    assert abs(greedy_share(replace(CONFIG, actor_epsilon=0.8, actor_alpha=0.0), 2, updates=1) - 0.6) < 0.05


def test_newer_weights_are_taken_a_round_later_at_most() -> None:
    """Bug: weights read once, or loaded into one of the two networks only."""
    config, reports = replace(PRIORITIZED, num_envs=1), []
    one, other = learner_of(config, 1), learner_of(config, 2)
    publisher = Publisher(one.vector(), updates=7)
    priorities: list[Any] = []
    buffer = buffer_of(config)

    def sink(blocks: Sequence[Block]) -> float:
        (ids,) = store(buffer, blocks)
        other.load_vector(publisher.vector)
        found = other.abs_td(buffer.get(ids, output="torch")).numpy()
        priorities.append(np.allclose(blocks[0].priority, found, rtol=1e-4, atol=1e-6))
        return 0.0

    actor = Actor(Role(config, 0), publisher, sink)
    reports.append(actor.advance())
    publisher.vector, publisher.version, publisher.updates = learner_of(config, 3).vector(), 2, 9
    reports.append(actor.advance())
    assert [report.updates for report in reports] == [7, 9]
    assert priorities == [True, True]


def first_obs(config: TrainConfig, number: int, **role: int) -> bytes:
    _, _, handed = played(config, 1, number, 0, **role)
    return b"".join(block.obs.tobytes() for block in handed[0])


def test_every_actor_life_and_session_plays_something_else_and_each_is_repeatable() -> None:
    """Bug: two actors that play the same episodes; a replaced one that repeats what was played already."""
    seen = [
        first_obs(CONFIG, 0),
        first_obs(CONFIG, 1),
        first_obs(CONFIG, 0, life=1),
        first_obs(CONFIG, 0, begun=500),
        first_obs(replace(CONFIG, seed=1), 0),
    ]
    assert len(set(seen)) == len(seen)
    assert first_obs(CONFIG, 1) == seen[1]


def test_a_run_that_diverged_says_so() -> None:
    """Bug: priorities refused by the buffer in words that nobody understands, or actors that die for ever."""
    vector = np.full_like(learner_of(PRIORITIZED).vector(), np.nan)
    actor = Actor(Role(PRIORITIZED, 1), Publisher(vector, updates=1), lambda blocks: 0.0)
    with pytest.raises(ConfigError, match=r"finite TD errors, got others \(actor 1\).*learning_rate"):
        actor.advance()


REFUSED: dict[str, Callable[[], TrainConfig]] = {
    "actors: expected an integer >= 0": lambda: replace(CONFIG, actors=-1),
    "capacity: expected a multiple of actors=3 times num_envs=4: 99996 or 100008, got 100000": lambda: TrainConfig(
        env="CartPole-v1", num_envs=4, actors=3
    ),
    "times num_envs=8: 24, got 10": lambda: TrainConfig(env="CartPole-v1", num_envs=8, actors=3, capacity=10),
    "offline: expected none with actors": lambda: replace(CONFIG, offline="x"),
    "actor_epsilon: expected a number in": lambda: replace(CONFIG, actor_epsilon=1.5),
    "actor_alpha: expected a finite number >= 0": lambda: replace(CONFIG, actor_alpha=-1.0),
    "publish_every: expected an integer >= 1": lambda: replace(CONFIG, publish_every=0),
    "actor_epsilon: expected 0.4, its default, without actors": lambda: TrainConfig("x", actor_epsilon=0.2),
    "actor_alpha: expected 7, its default, without actors": lambda: TrainConfig("x", actor_alpha=1.0),
    "publish_every: expected 32, its default, without actors": lambda: TrainConfig("x", publish_every=1),
}


@pytest.mark.parametrize("words", REFUSED)
def test_settings_that_contradict_each_other_are_refused(words: str) -> None:
    """Bug: a setting ignored, or a refusal that does not say what would do."""
    with pytest.raises(ConfigError, match=words):
        REFUSED[words]()

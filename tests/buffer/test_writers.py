"""Writers against real Gymnasium environments: every true transition, once, whole - and nothing else.

The environments here play a fixed script and write down what happens to them, below any vectorisation: those notes are
the truth, whatever the autoreset mode makes of them. Observations encode (environment, episode, step), so a transition
that joins two episodes, a lost final observation or a row stored twice cannot look right.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FrameStackObservation

import relive
from model.compare import assert_same
from model.reference import Model, View, leaves
from model.scripted import LENGTHS, MODES, Scripted, buffer_for, play, truth


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("form", ["box", "dict", "tuple"])
@pytest.mark.parametrize("copy", [True, False], ids=["copies", "in place"])
@pytest.mark.parametrize("capacity", [300, 12], ids=["all live", "wrapped"])
def test_vector_environment_stores_the_truth(mode, form, copy, capacity):
    """With `copy=False` Gymnasium hands out the same arrays every step and overwrites them in place."""
    envs = SyncVectorEnv([lambda i=i: Scripted(i, LENGTHS[i], form) for i in range(3)], copy=copy, autoreset_mode=mode)
    for view in (View(), View(n=3, stack=4)):
        buffer = buffer_for(envs, capacity, view)
        for env in envs.envs:
            env.episode, env.notes = -1, []
        ids = play(envs, buffer.writer(envs), 40, mode)
        notes = [env.notes for env in envs.envs]
        assert_same(buffer, truth(notes, capacity), view)
        for lane, rows in enumerate(notes):
            assert [step[lane] for step in ids if step[lane] >= 0] == [3 * t + lane for t in range(len(rows))]
    envs.close()


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_resets_are_not_stored(mode):
    """NEXT_STEP spends one step on each reset and stores none of them: the id is -1 there, and nowhere else."""
    envs = SyncVectorEnv([lambda: Scripted(0, [2]), lambda: Scripted(1, [3])], autoreset_mode=mode)
    buffer = buffer_for(envs, 100, View())
    ids = np.array(play(envs, buffer.writer(envs), 8, mode))
    if mode is AutoresetMode.NEXT_STEP:
        assert (ids[:, 0] < 0).tolist() == [False, False, True, False, False, True, False, False]
        assert (ids[:, 1] < 0).tolist() == [False, False, False, True, False, False, False, True]
    else:
        assert (ids >= 0).all()
    assert len(buffer) == int((ids >= 0).sum())


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_environments_that_reuse_their_own_memory(mode):
    """The environment returns one array for ever; Gymnasium copies it, except as SAME_STEP's final observation."""
    if mode is AutoresetMode.SAME_STEP:
        pytest.skip("Gymnasium itself loses the final observation of such an environment")
    envs = SyncVectorEnv(
        [lambda i=i: Scripted(i, [2, 3], reuse=True) for i in range(2)], copy=False, autoreset_mode=mode
    )
    buffer = buffer_for(envs, 100, View(n=3))
    play(envs, buffer.writer(envs), 25, mode)
    assert_same(buffer, truth([env.notes for env in envs.envs], 100), View(n=3))


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_asynchronous_environments(mode):
    """Shared memory written by other processes; the script is replayed here for the truth."""
    makers = [lambda i=i: Scripted(i, LENGTHS[i], "dict") for i in range(2)]
    envs = AsyncVectorEnv(makers, copy=False, autoreset_mode=mode)
    try:
        buffer = buffer_for(envs, 100, View(n=3, stack=4))
        play(envs, buffer.writer(envs), 20, mode)
    finally:
        envs.close()
    replay = SyncVectorEnv(makers, autoreset_mode=mode)
    play(replay, relive.ReplayBuffer(100, relive.Schema.from_env(replay), seed=0).writer(replay), 20, mode)
    assert_same(buffer, truth([env.notes for env in replay.envs], 100), View(n=3, stack=4))


def single(env: Any, buffer: relive.ReplayBuffer, steps: int) -> list[int]:
    """Drive one environment that is not vectorised."""
    writer = buffer.writer(env)
    obs, _ = env.reset(seed=0)
    writer.reset(obs)
    ids = []
    rng = np.random.default_rng(0)
    for _ in range(steps):
        action = int(rng.integers(env.action_space.n))
        obs, reward, terminated, truncated, info = env.step(action)
        ids.append(writer.step(action, obs, reward, terminated, truncated, info))
        if terminated or truncated:
            obs, _ = env.reset()
            writer.reset(obs)
    return ids


@pytest.mark.parametrize("form", ["box", "dict", "tuple"])
@pytest.mark.parametrize("reuse", [False, True])
def test_a_single_environment(form, reuse):
    env = Scripted(0, [3, 1, 4], form, reuse)
    buffer = buffer_for(env, 20, View(n=3, stack=4))
    ids = single(env, buffer, 30)
    assert [int(np.asarray(identity).item()) for identity in ids] == list(range(30))
    assert_same(buffer, truth([env.notes], 20), View(n=3, stack=4))


@pytest.mark.parametrize(("padding", "option"), [("repeat", "reset"), ("zeros", "zero")])
def test_stacks_are_those_of_gymnasium(padding, option):
    """Single frames stacked when read equal the frames that FrameStackObservation stacks when played."""
    plain = buffer_for(Scripted(0, [3, 1, 6]), 64, View(stack=4, padding=padding))
    single(Scripted(0, [3, 1, 6]), plain, 40)
    wrapped = FrameStackObservation(Scripted(0, [3, 1, 6]), 4, padding_type=option)
    whole = relive.ReplayBuffer(64, relive.Schema.from_env(wrapped), seed=0)
    rolled = relive.ReplayBuffer(64, relive.Schema.from_env(wrapped, stacked=4), seed=0)
    single(wrapped, whole, 40)
    wrapped.unwrapped.episode = -1
    single(wrapped, rolled, 40)
    expected = whole.get(whole.ids)
    for buffer in (plain, rolled):
        batch = buffer.get(buffer.ids)
        assert np.array_equal(batch.obs, expected.obs)
        assert np.array_equal(batch.next_obs, expected.next_obs)
        assert np.array_equal(batch.terminated, expected.terminated)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_stacked_observations_of_a_vector_environment(mode):
    """Stored one frame each and verified to roll, also where SAME_STEP gives the final stack apart."""

    def make(index: int) -> Any:
        return FrameStackObservation(Scripted(index, LENGTHS[index]), 4)

    batches = []
    for stacked in (1, 4):
        envs = SyncVectorEnv([lambda i=i: make(i) for i in range(3)], copy=False, autoreset_mode=mode)
        schema = relive.Schema.from_env(envs, stacked=stacked)
        buffer = relive.ReplayBuffer(3 * 12, schema, view=relive.Transitions(3, 0.5), seed=0)
        play(envs, buffer.writer(envs), 40, mode)
        batches.append(buffer.get(buffer.ids))
    whole, rolled = batches
    assert whole.terminated.any()
    for name in ("obs", "next_obs", "reward", "discount", "ids", "truncated"):
        assert np.array_equal(getattr(whole, name), getattr(rolled, name))


class Acting(gymnasium.Env[Any, Any]):
    """Takes a dict of actions and shows the last one in its observation."""

    def __init__(self, index: int) -> None:
        self.observation_space = spaces.Box(-100, 100, (4,), np.float32)
        self.action_space = spaces.Dict(
            {"move": spaces.Discrete(9), "push": spaces.Tuple((spaces.Box(-1, 1, (2,), np.float32),))}
        )
        self.index, self.steps = index, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin."""
        super().reset(seed=seed)
        self.steps = 0
        return np.full(4, -self.index, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Three steps an episode."""
        self.steps += 1
        obs = np.array([self.index, action["move"], *action["push"][0]], np.float32)
        return obs, 0.0, self.steps == 3, False, {}


def test_dict_actions_and_extra_fields_reach_their_lanes():
    """Under NEXT_STEP, so that some lanes are left out of some steps."""
    envs = SyncVectorEnv([lambda i=i: Acting(i) for i in range(3)])
    schema = relive.Schema.from_env(envs, extras={"logp": relive.Field("float32")})
    buffer = relive.ReplayBuffer(60, schema, seed=0)
    writer = buffer.writer(envs)
    obs, _ = envs.reset(seed=0)
    writer.reset(obs)
    envs.action_space.seed(0)
    stored = 0
    for step in range(14):
        action = envs.action_space.sample()
        logp = np.arange(3, dtype=np.float32) + 10 * step
        ids = writer.step(action, *envs.step(action), logp=logp)
        stored += int((ids >= 0).sum())
        assert buffer.get(ids[ids >= 0]).logp.tolist() == logp[ids >= 0].tolist()
    batch = buffer.get(buffer.ids)
    assert len(buffer) == stored == 33
    assert np.array_equal(batch.next_obs[:, 1], batch.action["move"].astype(np.float32))
    assert np.array_equal(batch.next_obs[:, 2:], batch.action["push"][0])
    assert np.array_equal(batch.next_obs[:, 0], batch.ids % 3)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_cartpole_follows_its_own_dynamics(mode):
    """Every stored step, played again from its obs by the environment's own equations, arrives at its next_obs."""
    envs = gymnasium.make_vec(
        "CartPole-v1", num_envs=4, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}
    )
    buffer = buffer_for(envs, 4 * 80, View())
    play(envs, buffer.writer(envs), 90, mode)
    batch = buffer.get(buffer.ids)
    assert len(buffer) == 4 * 80
    assert batch.terminated.any()
    pole = gymnasium.make("CartPole-v1").unwrapped
    pole.reset()
    for obs, action, after, terminated in zip(
        batch.obs.astype(np.float64), batch.action, batch.next_obs, batch.terminated, strict=True
    ):
        pole.state, pole.steps_beyond_terminated = obs, None
        expected, _, over, _, _ = pole.step(action)
        np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-5)
        assert abs(after[2]) < pole.theta_threshold_radians + 1e-4 or terminated
        assert over == terminated or abs(abs(after[2]) - pole.theta_threshold_radians) < 1e-4
    envs.close()


def test_gymnasiums_own_vectorised_cartpole():
    """Its truth from outside: a step is a transition unless the step before it ended the episode."""
    envs = gymnasium.make_vec("CartPole-v1", num_envs=5, vectorization_mode="vector_entry_point", max_episode_steps=12)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    view = View(n=3)
    buffer, model = buffer_for(envs, 5 * 40, view), Model(5 * 40, 5)
    writer = buffer.writer(envs)
    rng = np.random.default_rng(3)
    before, _ = envs.reset(seed=3)
    writer.reset(before)
    over = np.zeros(5, bool)
    for _ in range(60):
        action = rng.integers(2, size=5)
        obs, reward, terminated, truncated, info = envs.step(action)
        ids = writer.step(action, obs, reward, terminated, truncated, info)
        for lane in range(5):
            if over[lane]:
                assert ids[lane] == -1
                continue
            flags = bool(terminated[lane]), bool(truncated[lane])
            assert ids[lane] == model.push(
                before[lane], action[lane], reward[lane], flags[0], obs[lane], truncated=flags[1], lane=lane
            )
        before, over = obs.copy(), terminated | truncated
    kept = buffer.get(buffer.ids)
    assert kept.terminated.any()
    assert kept.truncated.any()
    assert_same(buffer, model, view)
    envs.close()


def test_a_buffer_without_a_schema_takes_it_from_the_environment():
    envs = SyncVectorEnv([lambda i=i: Scripted(i, [2, 3], "dict") for i in range(3)])
    buffer = relive.ReplayBuffer(30, lanes=3, seed=0)
    play(envs, buffer.writer(envs), 15, AutoresetMode.NEXT_STEP)
    assert_same(buffer, truth([env.notes for env in envs.envs], 30), View(gamma=0.99))
    assert list(leaves(buffer.schema.obs)) == list(leaves(relive.Schema.from_env(envs).obs))


# Where episodes begin.


def remember(state, obs):
    """A recurrent state f64 [lanes] that tells any two histories of observations apart."""
    return 0.5 * state + np.asarray(obs, np.float64) @ [1.0, 10.0, 100.0]


def alone(index: int, steps: int) -> list[float]:
    """The state before each step of one environment that nobody vectorised."""
    env, states = Scripted(index, LENGTHS[index]), []
    obs, _ = env.reset()
    state = 0.0
    for _ in range(steps):
        states.append(state)
        state = float(remember(state, obs))
        obs, _, terminated, truncated, _ = env.step(0)
        if terminated or truncated:
            obs, _ = env.reset()
            state = 0.0
    return states


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_recurrent_state_emptied_where_episodes_begin_is_that_of_single_environments(mode):
    envs = SyncVectorEnv([lambda i=i: Scripted(i, LENGTHS[i]) for i in range(3)], autoreset_mode=mode)
    schema = relive.Schema.from_env(envs, extras={"state": relive.Field("float64")})
    buffer = relive.ReplayBuffer(3 * 50, schema, seed=0)
    writer = buffer.writer(envs)
    obs, _ = envs.reset(seed=0)
    writer.reset(obs)
    after = np.full(3, np.nan)  # nobody's: the first reset must be among the beginnings
    for _ in range(40):
        state = np.where(writer.begins, 0.0, after)
        after = remember(state, obs)
        action = np.zeros(3, np.int64)
        obs, reward, terminated, truncated, info = envs.step(action)
        writer.step(action, obs, reward, terminated, truncated, info, state=state)
        ended = terminated | truncated
        if mode is AutoresetMode.DISABLED and ended.any():
            obs, _ = envs.reset(options={"reset_mask": ended.copy()})
            writer.reset(obs, mask=ended)
    stored = buffer.get(buffer.ids)
    for lane in range(3):
        states = stored.state[stored.ids % 3 == lane]
        assert len(states) > 25
        assert states.tolist() == alone(lane, len(states))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        # Environments of 2 and 3 steps. NEXT_STEP spends a third and a fourth one on the reset.
        (AutoresetMode.NEXT_STEP, ["00", "00", "10", "01", "00", "10", "00", "01"]),
        (AutoresetMode.SAME_STEP, ["00", "10", "01", "10", "00", "11", "00", "10"]),
        (AutoresetMode.DISABLED, ["00", "00", "00", "00", "00", "00", "00", "00"]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_beginnings_after_each_step(mode, expected):
    envs = SyncVectorEnv([lambda: Scripted(0, [2]), lambda: Scripted(1, [3])], autoreset_mode=mode)
    writer = buffer_for(envs, 100, View()).writer(envs)
    assert writer.begins.tolist() == [False, False]
    obs, _ = envs.reset()
    writer.reset(obs)
    seen = []
    for _ in expected:
        assert len(seen) > 0 or writer.begins.all()
        action = np.zeros(2, np.int64)
        obs, reward, terminated, truncated, info = envs.step(action)
        writer.step(action, obs, reward, terminated, truncated, info)
        seen.append("".join(str(int(begins)) for begins in writer.begins))
        ended = terminated | truncated
        if mode is AutoresetMode.DISABLED and ended.any():
            obs, _ = envs.reset(options={"reset_mask": ended.copy()})
            writer.reset(obs, mask=ended)
            assert writer.begins.tolist() == ended.tolist()
    assert seen == expected


def test_beginnings_are_a_copy_and_a_refused_step_leaves_them():
    env = Scripted(0, [2])
    writer = buffer_for(env, 20, View()).writer(env)
    obs, _ = env.reset()
    writer.reset(obs)
    first = writer.begins
    assert first.shape == (1,)
    assert first.all()
    writer.begins[:] = False
    assert writer.begins.all()
    with pytest.raises(relive.SchemaError):
        writer.step(0, "nowhere", 0.0, False, False, {})
    assert writer.begins.all()
    writer.step(0, *env.step(0))
    assert not writer.begins.any()
    assert first.all()


def test_environments_reset_one_after_the_other_all_begin():
    envs = SyncVectorEnv([lambda i=i: Scripted(i, [9]) for i in range(3)], autoreset_mode=AutoresetMode.DISABLED)
    writer = buffer_for(envs, 30, View()).writer(envs)
    obs, _ = envs.reset()
    writer.reset(obs)
    writer.step(np.zeros(3, np.int64), *envs.step(np.zeros(3, np.int64)))
    for lane in (0, 2):
        mask = np.arange(3) == lane
        obs, _ = envs.reset(options={"reset_mask": mask.copy()})
        writer.reset(obs, mask=mask)
    assert writer.begins.tolist() == [True, False, True]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_writers_of_some_lanes_each_store_their_own(mode):
    """Two and one environments, each with a writer of its own lanes: the buffer holds what one writer of all would."""
    parts = [range(2), range(2, 3)]
    envs = [SyncVectorEnv([lambda i=i: Scripted(i, LENGTHS[i]) for i in part], autoreset_mode=mode) for part in parts]
    schema = relive.Schema.from_env(Scripted(0, [1]))
    buffer = relive.ReplayBuffer(300, schema, lanes=3, view=relive.Transitions(1, View().gamma), seed=0)
    for part, some in zip(parts, envs, strict=True):
        ids = play(some, buffer.writer(some, first_lane=part.start), 40, mode)
        stored = [identity for step in ids for identity in step if identity >= 0]
        assert {identity % 3 for identity in stored} == set(part)
    assert_same(buffer, truth([env.notes for some in envs for env in some.envs], 300), View())
    late = buffer.writer(envs[1], first_lane=2)
    late.reset(envs[1].reset()[0])  # ends what went on in its own lane, and in no other
    newest = [max(identity for identity in buffer.ids if identity % 3 == lane) for lane in range(3)]
    before = [bool(env.notes[-1]["truncated"]) for env in envs[0].envs]
    assert buffer.get(newest).truncated[:2].tolist() == before


@pytest.mark.parametrize(
    ("first_lane", "words"),
    [(2, "expected environments for lanes 2 to 2, 1 at most, got 2"), (3, "in \\[0, 2\\]"), (-1, "in"), ("1", "in")],
)
def test_lanes_that_are_not_there_are_refused(first_lane, words):
    envs = SyncVectorEnv([lambda i=i: Scripted(i, [2]) for i in range(2)])
    buffer = relive.ReplayBuffer(300, relive.Schema.from_env(Scripted(0, [1])), lanes=3)
    with pytest.raises(relive.ConfigError, match=words):
        buffer.writer(envs, first_lane=first_lane)
    with pytest.raises(relive.ConfigError, match="Give the buffer one"):
        relive.ReplayBuffer(300, lanes=3).writer(envs, first_lane=0)

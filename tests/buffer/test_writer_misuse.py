"""The protocol of environments has an order; a writer refuses any other and stays where it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

import relive
from model.compare import assert_same
from model.reference import View
from model.scripted import Scripted, buffer_for, play, truth


def vector(mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> tuple[SyncVectorEnv, relive.ReplayBuffer]:
    envs = SyncVectorEnv([lambda i=i: Scripted(i, [2]) for i in range(2)], autoreset_mode=mode)
    return envs, buffer_for(envs, 20, View())


def stepped(envs: SyncVectorEnv) -> tuple[Any, ...]:
    action = np.zeros(2, np.int64)
    return action, *envs.step(action)


def test_a_step_before_the_reset_is_refused():
    envs, buffer = vector()
    writer = buffer.writer(envs)
    obs, _ = envs.reset()
    with pytest.raises(relive.ProtocolError, match="reset") as raised:
        writer.step(*stepped(envs))
    assert isinstance(raised.value, RuntimeError)
    assert len(buffer) == 0
    with pytest.raises(relive.ProtocolError, match="reset"):
        writer.reset(obs, mask=np.array([True, False]))  # lane 1 was never reset
        writer.step(*stepped(envs))
    assert len(buffer) == 0


def test_a_step_after_the_end_without_a_reset_is_refused():
    envs, buffer = vector(AutoresetMode.DISABLED)
    writer = buffer.writer(envs)
    obs, _ = envs.reset()
    writer.reset(obs)
    writer.step(*stepped(envs))
    writer.step(*stepped(envs))  # both end
    quiet = (np.zeros(2, np.int64), obs, np.zeros(2), np.zeros(2, bool), np.zeros(2, bool), {})
    with pytest.raises(relive.ProtocolError, match="reset"):
        writer.step(*quiet)
    obs, _ = envs.reset(options={"reset_mask": np.array([True, False])})
    writer.reset(obs, mask=np.array([True, False]))
    with pytest.raises(relive.ProtocolError, match="reset"):
        writer.step(*quiet)
    assert len(buffer) == 4

    env = Scripted(0, [1])
    buffer = buffer_for(env, 20, View())
    writer = buffer.writer(env)
    obs, _ = env.reset()
    writer.reset(obs)
    writer.step(0, *env.step(0))
    with pytest.raises(relive.ProtocolError, match="reset"):
        writer.step(0, obs, 0.0, False, False, {})
    assert len(buffer) == 1


def test_an_end_without_its_final_observation_is_refused():
    envs, buffer = vector(AutoresetMode.SAME_STEP)
    writer = buffer.writer(envs)
    obs, _ = envs.reset()
    writer.reset(obs)
    writer.step(*stepped(envs))
    action, obs, reward, terminated, truncated, info = stepped(envs)
    with pytest.raises(relive.ReplayError, match="final_obs"):
        writer.step(action, obs, reward, terminated, truncated, {})
    assert len(buffer) == 2
    writer.step(action, obs, reward, terminated, truncated, info)  # the refused step can be taken again
    assert len(buffer) == 4
    assert buffer.get(np.array([2])).next_obs.tolist() == [[0, 0, 2]]


@pytest.mark.parametrize("form", ["box", "dict"])
def test_a_refused_reset_changes_nothing(form):
    envs = SyncVectorEnv([lambda i=i: Scripted(i, [2, 4], form) for i in range(2)], autoreset_mode="Disabled")
    buffer = buffer_for(envs, 20, View())
    writer = buffer.writer(envs)
    obs, _ = envs.reset()
    writer.reset(obs)
    writer.step(*stepped(envs))
    writer.step(*stepped(envs))  # both end
    obs, _ = envs.reset(options={"reset_mask": np.ones(2, bool)})
    wrong = {"place": obs["place"], "step": np.zeros((2, 3), np.int64)} if form == "dict" else obs[:, :2]
    for mask in (np.ones(3, bool), np.ones(2), np.array([[True, True]])):
        with pytest.raises(relive.ReplayError, match="mask"):
            writer.reset(obs, mask=mask)
    for mask in (np.ones(2, bool), np.array([False, True]), None):
        with pytest.raises(relive.SchemaError, match="obs"):
            writer.reset(wrong, mask=mask)
    with pytest.raises(relive.ProtocolError, match="reset"):
        writer.step(*stepped(envs))
    # What the environments just played was not stored; from here on it is.
    writer.reset(envs.reset()[0])
    for env in envs.envs:
        del env.notes[2:]
    for _ in range(2):
        writer.step(*stepped(envs))
    assert_same(buffer, truth([env.notes for env in envs.envs], 20), View())


def test_a_refused_step_can_be_repeated():
    """The writer moves on only when the buffer took the transition."""
    envs, buffer = vector()
    writer = buffer.writer(envs)
    obs, _ = envs.reset()
    writer.reset(obs)
    action, after, reward, terminated, truncated, info = stepped(envs)
    for wrong in ((np.full(2, 7), after), (action, after[:, :2]), (action, after.astype(np.float64))):
        with pytest.raises(relive.SchemaError):
            writer.step(*wrong, reward, terminated, truncated, info)
    assert len(buffer) == 0
    assert writer.step(action, after, reward, terminated, truncated, info).tolist() == [0, 1]
    for _ in range(3):
        writer.step(*stepped(envs))
    assert_same(buffer, truth([env.notes for env in envs.envs], 20), View())


def test_an_abandoned_episode_ends_where_it_was_left():
    """A reset in the middle of an episode truncates it: no window may pass it, nothing joins the two."""
    envs, buffer = vector()
    writer = buffer.writer(envs)
    for _ in range(3):
        obs, _ = envs.reset()
        writer.reset(obs)
        writer.step(*stepped(envs))
    notes = [env.notes for env in envs.envs]
    for rows in notes:
        for row in rows[:-1]:
            row["truncated"] = row["truncated"] or not row["terminated"]
    assert_same(buffer, truth(notes, 20), View())


def test_a_reset_that_looks_like_the_next_step_still_ends_the_episode():
    """The first observation equals the last next_obs, as in a maze with one start: told by its bytes alone, the two
    episodes would be one, and n-step rewards would be summed across the reset.
    """
    env = Scripted(0, [9])
    buffer = relive.ReplayBuffer(10, relive.Schema.from_env(env), view=relive.Transitions(n=3, gamma=0.5))
    writer = buffer.writer(env)
    obs, _ = env.reset()
    writer.reset(obs)
    for step in range(4):
        if step == 2:
            writer.reset(obs)  # the environment came back to where it was
        writer.step(0, obs, 1.0, False, False, {})
    batch = buffer.get(range(4))
    assert batch.reward.tolist() == [1.5, 1.0, 1.5, 1.0]
    assert batch.truncated.tolist() == [True, True, False, False]
    assert batch.discount.tolist() == [0.25, 0.5, 0.25, 0.5]


def test_wrapped_vector_environments_keep_their_mode():
    """SAME_STEP seen as the default NEXT_STEP would drop a transition an episode and join the others."""
    envs = SyncVectorEnv([lambda i=i: Scripted(i, [2, 3]) for i in range(2)], autoreset_mode="SameStep")
    wrapped = RecordEpisodeStatistics(envs)
    buffer = buffer_for(wrapped, 60, View(n=3))
    play(wrapped, buffer.writer(wrapped), 20, AutoresetMode.SAME_STEP)
    assert_same(buffer, truth([env.notes for env in envs.envs], 60), View(n=3))


@pytest.mark.parametrize("said", [{}, {"autoreset_mode": None}, {"autoreset_mode": "sometimes"}])
def test_a_vector_environment_must_say_its_mode(said):
    """Guessing would store ghosts in silence."""
    envs, buffer = vector()
    envs.metadata = said
    with pytest.raises(relive.ConfigError, match="autoreset_mode"):
        buffer.writer(envs)


def test_lanes_must_be_as_many_as_environments():
    envs, _ = vector()
    with pytest.raises(relive.ReplayError, match="lanes"):
        relive.ReplayBuffer(30, relive.Schema.from_env(envs), lanes=3).writer(envs)
    with pytest.raises(relive.ConfigError, match="lanes"):
        relive.ReplayBuffer(30, lanes=3).writer(envs)

"""Mixtures under every view, of samplers that keep priorities and of those that do not, of buffers and of readers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import relive

VIEWS = (
    relive.Transitions(n=2, stack=2),
    relive.Sequences(4, burn_in=1, stride=2, state=("hidden",)),
    relive.Sequences(3, stack=2),
    relive.Sequences("episode", state=("hidden",)),
)


def filled(part: int, **options: Any) -> relive.ReplayBuffer:
    """Episodes of other lengths in each part; every number says which step of which part it is of."""
    buffer = relive.ReplayBuffer(300, seed=part, **options)
    mark = 1000 * part
    for length in 4 * ((5, 9, 3), (4, 6, 11))[part]:
        for step in range(length):
            obs, after = np.float32([mark, 1]), np.float32([mark + 1, 1])
            buffer.push(obs, mark, mark, step == length - 1, after, hidden=np.float32([mark, mark, mark]))
            mark += 1
        mark += 1
    return buffer


def pair(view: Any, **options: Any) -> list[relive.ReplayBuffer]:
    """One part that keeps priorities, and one that does not."""
    return [filled(0, view=view, sampler=relive.Prioritized(), **options), filled(1, view=view, **options)]


@pytest.mark.parametrize("beta", [None, 0.5])
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_every_field_is_what_the_parts_draw(view, beta):
    mixture = relive.Mixture([(buffer, 0.5) for buffer in pair(view)], seed=0)
    twins = pair(view)
    for _ in range(5):
        batch = mixture.sample(16, beta=beta)
        own = [twin.sample(8, beta=beta) for twin in twins]
        assert set(vars(batch)) == set(vars(own[0]))
        for part, twin in enumerate(own):
            for name, mine in vars(batch).items():
                rows = mine[8 * part : 8 * part + 8]
                theirs = vars(twin)[name] + (part + 1) * 2**56 if name == "ids" else vars(twin)[name]
                inside = rows[tuple(map(slice, theirs.shape))]
                np.testing.assert_array_equal(inside, theirs, name)
                if name not in ("obs", "next_obs"):
                    assert np.count_nonzero(rows) == np.count_nonzero(inside), name  # padding is zeros
        again = mixture.get(batch.ids)
        for name, value in vars(again).items():
            np.testing.assert_array_equal(value, vars(batch)[name], name)
        abs_td = np.abs(batch.reward) % 7 + 0.1
        assert mixture.update_priorities(batch.ids, abs_td) == 8
        twins[0].update_priorities(own[0].ids, abs_td[:8])


@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("view", VIEWS[1:], ids=str)
def test_sequences_keep_the_rules_of_padding_and_share_memory(view, output):
    pytest.importorskip("torch")
    mixture = relive.Mixture([(buffer, 0.5) for buffer in pair(view)], seed=0)
    for _ in range(4):
        batch = mixture.sample(16, output=output)
        every, obs, after = (np.asarray(value) for value in (batch.all_obs, batch.obs, batch.next_obs))
        assert np.shares_memory(every, obs)
        assert np.shares_memory(every, after)
        for row, steps in enumerate(np.asarray(batch.mask).sum(1)):
            np.testing.assert_array_equal(every[row, :steps], obs[row, :steps])
            np.testing.assert_array_equal(every[row, steps], after[row, steps - 1])
            assert not every[row, steps + 1 :].any()


def test_goals_of_hindsight_find_their_way_back():
    def part(number: int) -> relive.ReplayBuffer:
        view = relive.Hindsight("future", k=1, reward_fn=reached)
        buffer = relive.ReplayBuffer(100, view=view, seed=number)
        for mark in range(1000 * number, 1000 * number + 60):
            here, after = (
                {"achieved_goal": np.float32([m]), "desired_goal": np.float32([-1])} for m in (mark, mark + 1)
            )
            buffer.push(here, 0, 0.0, mark % 10 == 9, after)
        return buffer

    mixture = relive.Mixture([(part(0), 0.5), (part(1), 0.5)], seed=0)
    for _ in range(4):
        batch = mixture.sample(40, beta=1.0)
        told = batch.goal_ids >= 0
        assert 5 < told.sum() < 35
        assert (batch.goal_ids[~told] == -1).all()
        assert (batch.obs["desired_goal"][~told] == -1).all()
        assert (batch.goal_ids[told] // 2**56 == batch.ids[told] // 2**56).all()
        goals = mixture.get(batch.goal_ids[told])
        np.testing.assert_array_equal(goals.next_obs["achieved_goal"], batch.obs["desired_goal"][told])


def reached(achieved: Any, desired: Any) -> Any:
    return (achieved[:, 0] == desired[:, 0]).astype(np.float32)


def test_weights_are_normalised_in_each_part_by_itself():
    """Else the weights of a part would depend on what another part holds."""
    buffers = [filled(part, sampler=relive.Prioritized()) for part in range(2)]
    for part, buffer in enumerate(buffers):
        buffer.update_priorities(buffer.ids, (np.arange(len(buffer)) + 1.0) * 10**part)
    batch = relive.Mixture([(buffers[0], 0.5), (buffers[1], 0.5)], seed=0).sample(32, beta=0.7)
    assert batch.weight[:16].max() == batch.weight[16:].max() == 1
    assert batch.weight.min() < 1


def test_parts_may_be_readers():
    """Of one buffer even: each draws by its own sampler and keeps its own priorities."""
    buffer = filled(0)
    ranked = buffer.reader(sampler=relive.Prioritized(), seed=1)
    mixture = relive.Mixture([(buffer, 0.25), (ranked, 0.75)], seed=0)
    batch = mixture.sample(40)
    assert np.bincount(mixture.part_of(batch.ids)).tolist() == [10, 30]
    assert mixture.update_priorities(batch.ids, np.zeros(40)) == 30
    assert mixture.update_priorities(batch.ids[:10], np.zeros(10)) == 0
    assert len(mixture) == 2 * len(buffer)
    other = buffer.reader(view=relive.Sequences(3))
    with pytest.raises(relive.ConfigError, match="view"):
        relive.Mixture([(buffer, 0.5), (other, 0.5)])


def test_a_part_without_anchors_is_named():
    """It holds transitions, but no sequence as long as asked for."""
    mixture = relive.Mixture([(filled(0), 0.5), (relive.ReplayBuffer(10), 0.5)])
    with pytest.raises(relive.NotEnoughDataError, match="part 1"):
        mixture.sample(4)
    short = relive.ReplayBuffer(10, view=VIEWS[2])
    mixture = relive.Mixture([(filled(0, view=VIEWS[2]), 0.5), (short, 0.5)])
    short.push(np.float32([0, 1]), 0, 0.0, False, np.float32([1, 1]), hidden=np.float32([1, 2, 3]))
    with pytest.raises(relive.NotEnoughDataError, match="part 1"):
        mixture.sample(4)


def test_mixtures_without_priorities_refuse_them():
    mixture = relive.Mixture([(filled(0), 0.5), (filled(1), 0.5)])
    with pytest.raises(relive.ConfigError, match="priorities"):
        mixture.update_priorities(mixture.sample(4).ids, np.ones(4))


def test_priorities_take_effect_beside_a_prefetching_iterator():
    """Learning as it is done: draw, update, draw; with nothing drawn ahead it is the plain loop."""
    parts = pair(relive.Transitions())
    mixture = relive.Mixture([(parts[0], 0.5), (parts[1], 0.5)], seed=0)
    favourite = int(parts[0].ids[17])
    with mixture.batches(16, beta=0.4, prefetch=2) as iterator:
        batch = next(iterator)
        mixture.update_priorities(parts[0].ids + 2**56, np.where(parts[0].ids == favourite, 1.0, 0.0))
        for _ in range(8):
            batch = next(iterator)
        counts = np.bincount(batch.ids[:8] % 2**56)
        assert counts.argmax() == favourite
        assert set(vars(batch)) >= {"weight", "hidden"}

"""Uniform, shuffled and recent draws under every view, samplers from outside, limits, and goals given in hindsight.

As in `test_uniform.py`, every statistic has a known distribution, is rejected at 1e-6 with fixed seeds, and has a
broken twin that it must reject.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy import stats

import relive
from model.chance import ALPHA, Ids, apart, buffer_of, draw, grow, p_counts, p_drawn, p_independent, twin


def equally(ids: Any) -> dict[int, float]:
    return dict.fromkeys(np.asarray(ids).tolist(), 1.0)


# Uniform over sequences.


def with_episodes(view: Any, seed: int, sampler: Any = None) -> relive.ReplayBuffer:
    """Two lanes, wrapped, with episodes of 9 steps and an unfinished one."""
    buffer = buffer_of([0, 0], 60, view=view, sampler=sampler, seed=seed)
    grow(buffer, [40, 23], end_every=9)
    return buffer


SEQUENCES = [
    relive.Sequences(4),
    relive.Sequences(5, burn_in=2, stride=3),
    relive.Sequences(12),
    relive.Sequences("episode"),
]


@pytest.mark.parametrize("view", SEQUENCES, ids=repr)
def test_every_sequence_is_equally_likely(view):
    buffer = with_episodes(view, seed=1)
    anchors = buffer.anchors
    assert 3 <= len(anchors) < len(buffer)
    assert p_drawn(draw(buffer, 200, 40), equally(anchors)) > ALPHA


def test_sequences_reject_a_window_moved_back_from_the_end():
    """Twin: a start anywhere in the episode of 9, moved back until 4 steps fit: the last window comes too often."""
    draws = twin(0).integers(9, size=8_000).clip(max=5)
    assert p_drawn(draws, equally(range(6))) < ALPHA


@pytest.mark.parametrize("lag", [1, 7])
def test_sequences_of_one_batch_do_not_know_of_each_other(lag):
    draws = draw(with_episodes(relive.Sequences(12), seed=2), 800, 32)
    assert p_independent(*apart(draws.T, lag)) > ALPHA
    assert p_independent(*apart(draws, lag)) > ALPHA


# Epochs.


def epochs(number: int, size: int, batch: int, seed: int, lanes: int = 1) -> Ids:
    """int64 ids [number, size]: shuffled epochs, drawn in batches that do not fit them."""
    each = [size // lanes] * lanes
    buffer = buffer_of(each, size, sampler=relive.Shuffled(), seed=seed)
    return draw(buffer, -(-number * size // batch), batch).ravel()[: number * size].reshape(number, size)


def all_once(drawn: Ids) -> bool:
    """Is each row a permutation of 0 .. n - 1?"""
    return bool((np.sort(drawn, axis=1) == np.arange(drawn.shape[1])).all())


@pytest.mark.parametrize("batch", [1, 7, 50, 1_000])
@pytest.mark.parametrize("size", [1, 2, 37, 64, 300])
def test_every_epoch_has_everyone_once(size, batch):
    assert all_once(epochs(20, size, batch, seed=3))
    if size % 2 == 0:
        assert all_once(epochs(20, size, batch, seed=4, lanes=2))


def test_epochs_reject_one_that_comes_twice():
    """Twin: an epoch in which one id came twice and another not."""
    drawn = twin(1).permuted(np.tile(np.arange(37), (20, 1)), axis=1)
    assert all_once(drawn)
    drawn[13, 5] = drawn[13, 6]
    assert not all_once(drawn)


def test_new_transitions_join_the_next_epoch_and_old_ones_leave():
    buffer = buffer_of([12], 12, sampler=relive.Shuffled(), seed=5)
    first = buffer.sample(5).ids.tolist()
    grow(buffer, [4])  # 12 .. 15 come, 0 .. 3 go
    left = sorted(set(range(4, 12)) - set(first))
    rest = buffer.sample(len(left) + 12).ids.tolist()
    assert sorted(rest[: len(left)]) == left
    assert sorted(rest[len(left) :]) == list(range(4, 16))


def p_orders(drawn: Ids) -> list[float]:
    """Orders of epochs, int64 [epochs, size]: who comes where, who follows whom, and one epoch beside the next."""
    size = drawn.shape[1]
    place = np.arange(size)
    at = np.bincount((place * size + drawn).ravel(), minlength=size**2).reshape(size, size)
    # A table whose rows and columns are all fixed by design has (size - 1)^2 degrees of freedom.
    expected = len(drawn) / size
    statistic = ((at - expected) ** 2 / expected).sum() * (size - 1) / size
    where = float(stats.chi2.sf(statistic, (size - 1) ** 2))
    pairs = drawn[:, [0, 1]]  # an ordered pair of different ids
    ordered = np.bincount(pairs[:, 0] * size + pairs[:, 1], minlength=size**2)
    follows = p_counts(ordered, (1.0 - np.eye(size)).ravel())
    first, second = apart(drawn)
    return [where, follows, p_independent(first[:, 0], second[:, 0]), p_independent(first[:, -1], second[:, 0])]


@pytest.mark.parametrize("size", [5, 8, 13])
def test_orders_are_uniform(size):
    assert min(p_orders(epochs(6_000, size, 500, seed=6))) > ALPHA


def test_all_orders_of_four_are_equally_likely():
    drawn = epochs(6_000, 4, 500, seed=7)
    counts = Counter(map(tuple, drawn.tolist()))
    assert len(counts) == 24
    assert p_counts(np.array(list(counts.values())), np.ones(24)) > ALPHA


def test_orders_reject_rotations_and_repetitions():
    """Twins: an order that is rotated, whose ids are each everywhere equally often; an order used twice."""
    start = twin(2).integers(8, size=(6_000, 1))
    where, follows, *_ = p_orders((start + np.arange(8)) % 8)
    assert where > ALPHA
    assert follows < ALPHA
    fair = twin(3).permuted(np.tile(np.arange(8), (6_000, 1)), axis=1)
    assert min(p_orders(fair)) > ALPHA
    where, follows, beside, _ = p_orders(np.repeat(fair[:3_000], 2, axis=0))
    assert beside < ALPHA


def test_seeds_have_orders_of_their_own():
    one, same, other = (epochs(3, 50, 50, seed=seed).tolist() for seed in (8, 8, 9))
    assert one == same
    assert one != other
    first = np.stack([epochs(2, 8, 8, seed=seed) for seed in range(1_500)])
    assert p_independent(first[:-1:2, 0, 0], first[1::2, 0, 0]) > ALPHA
    assert p_independent(first[1::2, 0, 0], first[:-1:2, 1, 0]) > ALPHA


# Recent.


def recent(live: int, k: int, eta: float, period: int, smallest: int) -> int:
    """c_k of Wang & Ross 2019, in whole transitions."""
    return min(live, math.ceil(max(live * eta ** (1_000 * k / period), smallest)))


ETA = 0.5**0.001  # so that the window is halved over a period


def test_recent_batches_shrink_their_window():
    """Every batch of a period is uniform over its own window; 7 of 25 is not 7.000000000000001 of 25."""
    sampler = relive.samplers.Recent(eta=ETA**3, period=5, min_size=7)
    buffer = buffer_of([40], 25, sampler=sampler, seed=10)
    draws = draw(buffer, 500, 20).reshape(100, 5, 20)
    widths = [recent(25, k, ETA**3, 5, 7) for k in range(1, 6)]
    assert widths == [17, 11, 8, 7, 7]
    for place, width in enumerate(widths):
        assert p_drawn(draws[:, place], equally(buffer.ids[-width:])) > ALPHA


def test_recent_lanes_give_their_share():
    """Windows of a quarter: each lane its newest quarter, rounded up."""
    buffer = buffer_of([40, 10, 0, 17], 160, sampler=relive.samplers.Recent(ETA**2, 1, 1), seed=11)
    newest = [lane + 4 * step for lane, (length, width) in enumerate([(40, 10), (10, 3), (0, 0), (17, 5)])
              for step in range(length - width, length)]  # fmt: skip
    assert p_drawn(draw(buffer, 200, 50), equally(newest)) > ALPHA


def test_recent_sequences_start_in_the_window():
    buffer = with_episodes(relive.Sequences(4), 12, relive.samplers.Recent(ETA, 1, 1))
    lanes = [buffer.ids[buffer.ids % 2 == lane] for lane in range(2)]
    window = np.concatenate([ids[len(ids) // 2 :] for ids in lanes])
    assert p_drawn(draw(buffer, 200, 50), equally(np.intersect1d(buffer.anchors, window))) > ALPHA


@pytest.mark.parametrize("first", [0, 2])
def test_recent_rejects_a_period_that_starts_elsewhere(first):
    """Twins: k from 0, whose first window is the whole buffer; or from 2."""
    widths = [recent(25, k, ETA**3, 5, 7) for k in range(1, 6)]
    wrong = [recent(25, k, ETA**3, 5, 7) for k in range(first, first + 5)]
    odd = [
        p_drawn(24 - twin(4).integers(width, size=2_000), equally(range(25 - right, 25)))
        for width, right in zip(wrong, widths, strict=True)
    ]
    assert min(odd) < ALPHA


# Options of all samplers.

LIMITED = [
    relive.Uniform(max_uses=3),
    relive.Prioritized(max_uses=3),
    relive.Shuffled(max_uses=3),
    relive.samplers.RankBased(max_uses=3),
    relive.samplers.Recent(0.9, 10, 4, max_uses=3),
]


@pytest.mark.parametrize("size", [1, 7, 60])
@pytest.mark.parametrize("sampler", LIMITED, ids=lambda sampler: type(sampler).__name__)
def test_everyone_is_used_to_the_limit_and_no_further(sampler, size):
    buffer = buffer_of([13, 7], 40, sampler=sampler, seed=13)
    drawn: list[int] = []
    for _ in range(60 // size):
        drawn += buffer.sample(size).ids.tolist()
    while len(drawn) < 60:
        with pytest.raises(relive.NotEnoughDataError):
            buffer.sample(61 - len(drawn))
        drawn += buffer.sample(60 - len(drawn)).ids.tolist()
    assert Counter(drawn) == dict.fromkeys(buffer.ids.tolist(), 3)
    assert buffer.anchors.size == 0


def test_what_is_left_is_drawn_uniformly():
    """Without a second use: the last one of four is each of them equally often, and so is every order."""
    orders = [tuple(buffer_of([4], 4, sampler=relive.Uniform(max_uses=1), seed=seed).sample(4).ids.tolist())
              for seed in range(1_500)]  # fmt: skip
    counts = Counter(orders)
    assert len(counts) == 24
    assert p_counts(np.array(list(counts.values())), np.ones(24)) > ALPHA


@pytest.mark.parametrize("sampler", [relive.Uniform(newest=2), relive.Prioritized(newest=2)], ids=repr)
def test_the_newest_are_there_and_the_others_drawn_as_ever(sampler):
    buffer = buffer_of([5, 9], 40, sampler=sampler, seed=14)
    draws = draw(buffer, 400, 30)
    assert (draws[:, :2] == sorted(buffer.ids.tolist(), reverse=True)[:2]).all()
    assert p_drawn(draws[:, 2:], equally(buffer.ids)) > ALPHA


class Tilted:
    """A sampler from outside that says with which probability it drew."""

    def draw(self, ids: Any, n: int, rng: np.random.Generator) -> tuple[Any, Any]:
        p = 1.0 + np.arange(len(ids))
        places = rng.choice(len(ids), size=n, p=p / p.sum())
        return ids[places], (p / p.sum())[places]


def test_samplers_from_outside_have_generators_of_their_own():
    one, same, other = (buffer_of([5, 9], 40, sampler=Tilted(), seed=seed) for seed in (15, 15, 16))
    draws = draw(one, 400, 30)
    assert p_drawn(draws, dict(zip(one.ids.tolist(), range(1, 15), strict=True))) > ALPHA
    assert p_independent(*apart(draws // 3)) > ALPHA
    assert (draw(same, 400, 30) == draws).all()
    assert (draw(other, 400, 30) != draws).any()
    batch = one.sample(8, beta=1.0)
    p = 1.0 + np.searchsorted(one.ids, batch.ids)
    np.testing.assert_allclose(batch.weight, p.min() / p, rtol=1e-6)


def test_readers_of_one_buffer_do_not_know_of_each_other():
    buffer = buffer_of([8], 8, seed=17)
    readers = [buffer, buffer.reader(), buffer.reader(seed=18), buffer.reader(sampler=relive.Uniform(newest=1))]
    draws = [draw(reader, 200, 40)[:, 1:] for reader in readers]
    for place, one in enumerate(draws):
        assert p_drawn(one, equally(buffer.ids)) > ALPHA
        for other in draws[:place]:
            assert p_independent(one, other) > ALPHA


# Hindsight.


def with_goals(strategy: str, k: float, seed: int, lanes: int = 2) -> relive.ReplayBuffer:
    """Wrapped lanes of episodes of 7 steps, the last one unfinished; what is achieved says which step it was."""
    goal = relive.Field("float32", (1,))
    schema = relive.Schema({"achieved_goal": goal, "desired_goal": goal}, relive.Field("int64"), lanes=lanes)
    hindsight = relive.Hindsight(strategy, k, reward_fn=lambda achieved, desired: achieved[:, 0] - desired[:, 0])
    buffer = relive.ReplayBuffer(20 * lanes, schema, view=relive.Transitions(relabel=hindsight), seed=seed)

    def point(step: int) -> dict[str, np.ndarray]:
        lane = np.arange(lanes, dtype=np.float32)[:, None]
        return {"achieved_goal": step + 1_000 * lane, "desired_goal": np.full((lanes, 1), -1, np.float32)}

    for step in range(39):
        ends = np.full(lanes, step % 7 == 6)
        next_obs = point(step + 1)
        buffer.push(point(step), np.zeros(lanes, np.int64), np.zeros(lanes), ends, next_obs)
    return buffer


def allowed(identity: int, strategy: str, lanes: int = 2) -> list[int]:
    """The steps of the same episode that may give the goal. Live are steps 19 .. 38; 35 .. 38 are unfinished."""
    step, lane = divmod(identity, lanes)
    first, last = step // 7 * 7, min(step // 7 * 7 + 6, 38)
    steps = {"future": range(step, last + 1), "final": [last], "episode": range(max(first, 19), last + 1)}[strategy]
    return [one * lanes + lane for one in steps]


@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
def test_goals_are_drawn_from_the_episode(strategy):
    """Every pair of a transition and its goal as often as it should be."""
    buffer = with_goals(strategy, 4, seed=19)
    batches = [buffer.sample(100) for _ in range(400)]
    ids = np.concatenate([batch.ids for batch in batches])
    goals = np.concatenate([batch.goal_ids for batch in batches])
    relabelled = goals >= 0
    assert p_counts(np.array([relabelled.sum(), (~relabelled).sum()]), np.array([4.0, 1.0])) > ALPHA
    pairs = {(i, goal): 1 / len(allowed(i, strategy)) for i in buffer.ids.tolist() for goal in allowed(i, strategy)}
    drawn = ids[relabelled] * 1_000 + goals[relabelled]
    assert p_drawn(drawn, {i * 1_000 + goal: p for (i, goal), p in pairs.items()}) > ALPHA
    desired = np.concatenate([batch.obs["desired_goal"] for batch in batches])[:, 0]
    reached = goals // 2 + 1 + 1_000 * (goals % 2)  # what was achieved *after* the step
    np.testing.assert_array_equal(desired, np.where(relabelled, reached, -1))


def test_goals_reject_a_step_too_early_and_one_too_few():
    """Twins: the final goal one step early; futures that leave out the last step."""
    finals = {i * 1_000 + allowed(i, "final")[0]: 1.0 for i in range(38, 78)}
    early = np.array([i * 1_000 + allowed(i, "final")[0] - 2 for i in range(38, 78)])
    assert p_drawn(early, finals) == 0
    futures = allowed(42, "future")
    assert len(futures) == 7
    draws = twin(5).choice(futures[:-1], size=2_000)
    assert p_drawn(draws, equally(futures)) < ALPHA


def test_relabelling_is_independent_of_row_and_draw():
    buffer = with_goals("future", 1, seed=20)
    batches = [buffer.sample(64) for _ in range(300)]
    relabelled = np.stack([batch.goal_ids >= 0 for batch in batches])
    ids = np.stack([batch.ids for batch in batches])
    for lag in (1, 2, 32):
        assert p_independent(relabelled[:, :-lag], relabelled[:, lag:]) > ALPHA
    assert p_independent(relabelled, ids) > ALPHA
    assert p_independent(relabelled, ids // 2 % 7) > ALPHA
    assert p_independent(*apart(relabelled)) > ALPHA


def test_independence_rejects_one_toss_a_batch():
    """Twin: whole batches relabelled or not."""
    relabelled = np.repeat(twin(6).random((300, 1)) < 0.5, 64, axis=1)
    assert p_independent(relabelled[:, :-1], relabelled[:, 1:]) < ALPHA

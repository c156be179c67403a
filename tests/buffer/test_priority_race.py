"""Priorities that arrive late: while a learner computes them, writers overwrite what they were meant for.

Every transition's priority is a function of its own value. A batch tells the priorities that its rows lie on by their
weights, so one that was written to a transition it was not meant for shows in the next batch.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import relive
from model.marked import run

LANES, ROUNDS = 2, 80
SAMPLER = relive.Prioritized(alpha=1.0, eps=0.0)
VALUES = np.array([0.0, 1 / 2, 1 / 3, 1 / 5, 1 / 7])  # below 1, the priority of new transitions; no ratio comes twice


def meant(identity: Any) -> Any:
    """The priority of a transition: neighbours, and those that share a slot, have different ones."""
    return VALUES[np.asarray(identity) * 7 // 3 % len(VALUES)]


class Learner:
    """Samples, updates with what is meant, and remembers which ids it has updated."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader
        self.updated: set[int] = set()
        self.rounds = 0

    def learn(self, between: Any = lambda: None) -> None:
        """One batch; `between` happens after the draw and before the update."""
        known = self.updated.copy()  # whatever was updated before the batch was drawn
        try:
            batch = self.reader.sample(8, beta=1.0)
        except relive.NotEnoughDataError:  # all of them are zero by now
            between()
            return
        value = batch.obs[:, 0]  # the learner sees values; ids are for the buffer
        np.testing.assert_array_equal(batch.ids, value)
        check(value, batch.weight, known)
        between()
        self.reader.update_priorities(batch.ids, meant(value).astype(np.float32))
        self.updated.update(value.tolist())
        self.rounds += 1


def check(ids: Any, weight: Any, updated: set[int]) -> None:
    """The priorities behind the weights are those of new transitions, or those that are meant.

    A weight is the least priority of the batch over the row's own; which of all priorities is the least is not known.
    """
    possible = [({1.0, meant(i)} if i not in updated else {meant(i)}) - {0.0} for i in ids.tolist()]
    assert all(possible), f"drawn although its priority is zero: {ids[[not some for some in possible]]}"
    for least in (1.0, *VALUES[1:]):
        p = least / weight.astype(np.float64)
        if all(min(abs(1 - p[i] / one) for one in some) < 1e-5 for i, some in enumerate(possible)):
            return
    raise AssertionError(f"weights {weight} of {ids}: no priorities {possible} give them")


def make(sampler: Any, depth: int) -> relive.ReplayBuffer:
    schema = relive.Schema(relive.Field("int64", (3,)), relive.Field("int64"), lanes=LANES)
    return relive.ReplayBuffer(LANES * depth, schema, sampler=sampler, seed=0)


def push(buffer: relive.ReplayBuffer, step: int, lane: int) -> None:
    """Every seventh transition ends an episode, and another seventh starts anew."""
    obs, after = (np.full(3, (step + more) * LANES + lane) for more in (0, 1 + (step % 7 == 3)))
    assert buffer.push(obs, 0, 0.0, step % 7 == 6, after, lane=lane) == obs[0]


@pytest.mark.parametrize("own", [True, False], ids=["buffer", "reader"])
def test_no_priority_lies_on_a_transition_it_was_not_meant_for(own):
    depth = 40
    buffer = make(SAMPLER if own else relive.Uniform(), depth)
    learners = [Learner(buffer if own else buffer.reader(sampler=SAMPLER, seed=1)) for _ in range(2)]
    for lane in range(LANES):
        push(buffer, 0, lane)
    written = [0] * LANES
    writing, learning = set(range(LANES)), {0, 1}
    late: list[int] = []

    def write(lane: int) -> None:
        try:
            while learning:
                written[lane] += 1
                push(buffer, written[lane], lane)
        finally:
            writing.discard(lane)

    def think(steps: int) -> None:
        """Until the writers are this much further."""
        until = [step + steps for step in written]
        while len(writing) == LANES and any(step < wanted for step, wanted in zip(written, until, strict=True)):
            time.sleep(0)
        late.append(steps)

    def learn(who: int) -> None:
        learner = learners[who]
        try:
            while len(writing) == LANES and learner.rounds < ROUNDS:
                learner.learn(lambda: think(learner.rounds % (depth + 10)))
        finally:
            learning.discard(who)

    run(*(lambda lane=lane: write(lane) for lane in range(LANES)), *(lambda who=who: learn(who) for who in range(2)))
    assert max(late) > depth  # also batches of which nothing was left
    for learner in learners:
        for _ in range(20):
            learner.learn()


def test_an_update_between_two_evictions():
    """The same without threads: so many pushes between draw and update that some, or all, of the batch are gone."""
    depth = 6
    buffer = make(SAMPLER, depth)
    learner = Learner(buffer)
    steps = 0

    def pushes(count: int) -> None:
        nonlocal steps
        for step in range(steps, steps + count):
            for lane in range(LANES):
                push(buffer, step, lane)
        steps += count

    pushes(depth)
    for turn in range(500):
        learner.learn(lambda turn=turn: pushes(turn % (depth + 2)))
    assert learner.rounds > 100


def test_the_check_rejects_a_buffer_that_writes_to_slots():
    """Twin: priorities by slot, whoever lies there now."""
    rng = np.random.default_rng(0)
    slots, ids = np.ones(8), np.arange(8)

    def sample(n: int, beta: float) -> Any:
        drawn = rng.choice(8, size=n, p=slots / slots.sum())
        weight = (slots[drawn].min() / slots[drawn]) ** beta
        return SimpleNamespace(ids=ids[drawn], obs=ids[drawn][:, None], weight=weight.astype(np.float32))

    def update(identities: Any, p: Any) -> None:
        slots[identities % 8] = p

    def overwrite() -> None:
        ids[:3] += 8
        slots[:3] = 1.0

    learner = Learner(SimpleNamespace(sample=sample, update_priorities=update))
    with pytest.raises(AssertionError, match=r"priority is zero|give them"):
        for _ in range(100):
            learner.learn(overwrite)

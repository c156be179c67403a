"""Samplers from outside: what they are given, what becomes of what they return, and what is refused."""

from __future__ import annotations

import threading
import time
from itertools import islice

import numpy as np
import pytest

import relive
from relive import Field, Schema, Sequences, Transitions
from relive.samplers import Sampler

SCHEMA = Schema(Field("float32", (1,)), Field("int64"))


class Own:
    """Draws as a function says, and remembers what it was given."""

    def __init__(self, answer=None):
        self.answer = answer or (lambda ids, n, rng: rng.choice(ids, n))
        self.given: list[tuple[list[int], int, int]] = []

    def draw(self, ids, n, rng):
        self.given.append((ids.tolist(), n, int(rng.bit_generator.random_raw())))
        self.dtype = ids.dtype
        return self.answer(ids, n, rng)


class Keeping(Own):
    """Draws the one of the largest |delta|, which it keeps itself."""

    def __init__(self):
        super().__init__(self.largest)
        self.delta: dict[int, float] = {}

    def largest(self, ids, n, rng):
        return np.full(n, max(ids.tolist(), key=lambda identity: self.delta.get(identity, 0.0)))

    def update_priorities(self, ids, abs_td):
        self.updated = ids, abs_td
        self.delta.update(zip(ids.tolist(), abs_td.tolist(), strict=True))


def fill(buffer: relive.ReplayBuffer, count: int, start: int = 0) -> None:
    """Push steps `start` .. of episodes of five. The action is the step."""
    for step in range(start, start + count):
        state, after = np.float32([step]), np.float32([step + 1])
        buffer.push(state, step, 0.0, step % 5 == 4, after, lane=step % buffer.lanes)


def made(sampler, count: int = 12, capacity: int = 16, seed: int = 1, **options) -> relive.ReplayBuffer:
    buffer = relive.ReplayBuffer(capacity, SCHEMA, sampler=sampler, seed=seed, **options)
    fill(buffer, count)
    return buffer


def test_it_draws_instead_of_the_buffer():
    own = Own(lambda ids, n, rng: ids[-n:][::-1])
    assert isinstance(own, Sampler)
    buffer = made(own)
    batch = buffer.sample(3)
    assert batch.ids.tolist() == [11, 10, 9]
    assert batch.action.tolist() == [11, 10, 9]
    assert buffer.sampler is own
    assert "Own" in repr(buffer)


def test_it_is_given_the_anchors_of_the_moment():
    own = Own()
    buffer = made(own, 20, view=Sequences(3))
    buffer.sample(4)
    fill(buffer, 7, start=20)
    buffer.sample(5)
    buffer.clear()
    fill(buffer, 3, start=30)
    buffer.sample(6)
    assert [(ids, n) for ids, n, _ in own.given] == [
        ([5, 6, 7, 10, 11, 12, 15, 16, 17], 4),
        ([11, 12, 15, 16, 17, 20, 21, 22], 5),
        ([27], 6),
    ]
    assert own.dtype == np.int64
    assert buffer.anchors.tolist() == [27]


def test_it_is_given_the_anchors_of_all_lanes_in_ascending_order():
    own = Own()
    buffer = made(own, 11, capacity=15, lanes=3, view=Transitions(n=3))
    buffer.sample(4)
    assert own.given[0][0] == buffer.anchors.tolist() == list(range(11))


def test_its_numbers_are_a_function_of_seed_and_batch():
    runs = []
    for seed, reads in ((1, 0), (1, 3), (2, 0)):
        own = Own()
        buffer = made(own, seed=seed)
        for _ in range(20):
            for _ in range(reads):
                buffer.get([3])
                buffer.reader(sampler=Own()).sample(2)
            buffer.sample(4)
        runs.append([number for _, _, number in own.given])
    assert runs[0] == runs[1]
    assert not set(runs[0]) & set(runs[2])
    assert len(set(runs[0])) == 20


def test_readers_call_it_with_numbers_of_their_own():
    one, other = Own(), Own()
    buffer = made(relive.Uniform())
    left, right = buffer.reader(sampler=one, seed=7), buffer.reader(sampler=other, seed=8)
    left.sample(4), right.sample(4)
    assert one.given[0][:2] == other.given[0][:2]
    assert one.given[0][2] != other.given[0][2]
    assert made(one, seed=7).sample(4).ids.tolist() == buffer.reader(sampler=Own(), seed=7).sample(4).ids.tolist()


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.uint64, ">i8", list])
def test_ids_of_any_integers_will_do(dtype):
    convert = list if dtype is list else (lambda ids: ids.astype(dtype))
    buffer = made(Own(lambda ids, n, rng: convert(ids[:n])))
    assert buffer.sample(4).ids.tolist() == [0, 1, 2, 3]
    strided = made(Own(lambda ids, n, rng: ids[::2][:n]))
    assert strided.sample(4).ids.tolist() == [0, 2, 4, 6]


def test_an_array_that_it_uses_again_is_not_the_batchs():
    memory = np.zeros(4, np.int64)

    def answer(ids, n, rng):
        memory[:] = rng.choice(ids, n)
        return memory

    buffer = made(Own(answer))
    batches = [buffer.sample(4) for _ in range(10)]
    for batch in batches:
        assert (batch.ids == batch.action).all()
        assert not np.shares_memory(batch.ids, memory)


# Weights.


def test_weights_come_from_its_probabilities():
    mass = np.arange(1.0, 13.0)
    own = Own(lambda ids, n, rng: (ids[:n], mass[:n] / mass.sum()))
    batch = made(own).sample(4, beta=0.5)
    assert batch.weight.dtype == np.float32
    assert batch.weight == pytest.approx((1 / mass[:4]) ** 0.5)
    assert made(own).sample(4, beta=0).weight.tolist() == [1] * 4
    assert not hasattr(made(own).sample(4), "weight")


def test_without_probabilities_weights_are_ones():
    assert made(Own()).sample(4, beta=1.0).weight.tolist() == [1] * 4
    assert made(Own(lambda ids, n, rng: (ids[:n], None))).sample(4, beta=1.0).weight.tolist() == [1] * 4


def test_outputs_and_memory_to_write_to():
    def answer(ids, n, rng):
        return rng.choice(ids, n), rng.random(n) + 0.1

    buffer, twin = made(Own(answer)), made(Own(answer))
    batch = buffer.sample(4, beta=1.0)
    twin.sample(4)
    place = batch.weight.ctypes.data
    assert buffer.sample(4, beta=1.0, out=batch) is batch
    expected = twin.sample(4, beta=1.0)
    assert batch.weight.ctypes.data == place
    for name in ("obs", "action", "ids", "weight"):
        assert np.array_equal(getattr(batch, name), getattr(expected, name))
    torch = pytest.importorskip("torch")
    tensors, arrays = buffer.sample(4, beta=1.0, output="torch"), twin.sample(4, beta=1.0)
    assert isinstance(tensors.weight, torch.Tensor)
    assert np.array_equal(tensors.weight.numpy(), arrays.weight)
    assert np.array_equal(tensors.obs.numpy(), arrays.obs)


# Priorities.


def test_priorities_reach_it_for_ids_that_are_live():
    own = Keeping()
    buffer = made(own, 20, capacity=8)
    assert buffer.ids.tolist() == list(range(12, 20))
    assert buffer.update_priorities([13, 2, 19, 99, 13], np.float32([1, 9, 3, 9, 2])) == 3
    ids, abs_td = own.updated
    assert (ids.tolist(), abs_td.tolist()) == ([13, 19, 13], [1, 3, 2])
    assert (ids.dtype, abs_td.dtype) == (np.int64, np.float64)
    assert buffer.sample(2).ids.tolist() == [19, 19]


def test_priorities_that_are_refused_do_not_reach_it():
    own = Keeping()
    buffer = made(own)
    for ids, abs_td in (([0], [np.nan]), ([0], [-1.0]), ([0], [np.inf]), ([0, 1], [1.0]), ([0.5], [1.0]), ([0], ["x"])):
        with pytest.raises(relive.SchemaError, match=r"^(abs_td|ids): expected "):
            buffer.update_priorities(ids, abs_td)
    assert not hasattr(own, "updated")


def test_priorities_where_it_takes_none():
    buffer = made(Own())
    with pytest.raises(
        relive.ConfigError, match=r"^update_priorities: expected a sampler that keeps priorities, got .*Own"
    ):
        buffer.update_priorities([0], [1.0])
    for sampler in (Own(), Keeping()):
        with pytest.raises(relive.ConfigError, match=r"^priority: expected none, got 1\.0"):
            made(sampler).push(np.float32([0]), 0, 0.0, False, np.float32([1]), priority=1.0)


# Refusals.


WRONG = {
    "one too few": (lambda ids, n, rng: ids[: n - 1], r"ids int64 \(4,\), got int64 \(3,\)"),
    "a column": (lambda ids, n, rng: ids[:n, None], r"ids int64 \(4,\), got int64 \(4, 1\)"),
    "places as floats": (lambda ids, n, rng: ids[:n] * 1.0, r"ids int64 \(4,\), got float64 \(4,\)"),
    "a mask": (lambda ids, n, rng: ids[:n] > 2, r"ids int64 \(4,\), got bool \(4,\)"),
    "nothing": (lambda ids, n, rng: None, r"ids int64 \(4,\), got object \(\)"),
    "words": (lambda ids, n, rng: ["a"] * n, r"ids int64 \(4,\), got <U1 \(4,\)"),
    "ragged": (lambda ids, n, rng: [[1], [1, 2], 3, 4], r"ids int64 \(4,\)"),
    "an id that never was": (lambda ids, n, rng: np.full(n, 99), r"ids of the list it was given, got 99"),
    "an id that is gone": (lambda ids, n, rng: np.full(n, 0), r"ids of the list it was given, got 0"),
    "a negative id": (lambda ids, n, rng: np.full(n, -1), r"ids of the list it was given, got -1"),
    "probability 0": (lambda ids, n, rng: (ids[:n], np.zeros(n)), r"probabilities \(4,\) above 0, got \[0"),
    "probability NaN": (lambda ids, n, rng: (ids[:n], np.full(n, np.nan)), r"probabilities \(4,\) above 0, got \[nan"),
    "negative probability": (lambda ids, n, rng: (ids[:n], -np.ones(n)), r"probabilities \(4,\) above 0, got \[-1"),
    "one probability": (lambda ids, n, rng: (ids[:n], 0.5), r"probabilities \(4,\) above 0, got 0\.5"),
    "probabilities of all": (lambda ids, n, rng: (ids[:n], np.ones(len(ids))), r"probabilities \(4,\) above 0"),
    "words for probabilities": (lambda ids, n, rng: (ids[:n], "abc"), r"probabilities \(4,\)"),
    "objects for probabilities": (lambda ids, n, rng: (ids[:n], [object()] * n), r"probabilities \(4,\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_answers_that_are_no_batch(name):
    answer, piece = WRONG[name]
    buffer = made(Own(answer), 20)  # 0 .. 3 are gone
    for beta in (None, 1.0):
        with pytest.raises(relive.SchemaError, match=rf"^draw: expected {piece}"):
            buffer.sample(4, beta=beta)
    assert len(buffer) == 16
    assert buffer.get([9]).action.tolist() == [9]


def test_ids_that_are_no_anchors():
    buffer = made(Own(lambda ids, n, rng: np.full(n, 4)), view=Sequences(3))
    assert 4 in buffer.ids
    with pytest.raises(relive.SchemaError, match=r"^draw: expected ids of the list it was given, got 4"):
        buffer.sample(2)


def test_the_list_of_anchors_cannot_be_written_to():
    """Or what it returns would be compared with what it wrote."""

    def overwrites(ids, n, rng):
        ids[:] = 4  # live, and no anchor
        return ids[:n]

    buffer = made(Own(overwrites), view=Sequences(3))
    with pytest.raises((ValueError, relive.SchemaError), match=r"read-only|got 4"):
        buffer.sample(2)


def test_its_own_errors_come_through():
    buffer = made(Own(lambda ids, n, rng: 1 / 0))
    for _ in range(3):  # and it can be called again
        with pytest.raises(ZeroDivisionError):
            buffer.sample(4)
    buffer.sampler.answer = lambda ids, n, rng: ids[:n]
    assert buffer.sample(2).ids.tolist() == [0, 1]


def test_it_is_not_called_where_nothing_can_be_drawn():
    own = Own()
    for buffer in (relive.ReplayBuffer(4, SCHEMA, sampler=own), relive.ReplayBuffer(4, sampler=own)):
        with pytest.raises(relive.NotEnoughDataError, match=r"^sample\(3\): expected at least 1 transition"):
            buffer.sample(3)
        assert buffer.anchors.tolist() == []
    with pytest.raises(relive.NotEnoughDataError, match=r"^sample\(3\): 0 valid ids.*an episode of 4"):
        made(own, 2, view=Sequences(4)).sample(3)
    buffer = made(own)
    for size in (0, -1, 2.5, "many", None):
        with pytest.raises(relive.ConfigError, match=r"^sample: expected a batch size of at least 1"):
            buffer.sample(size)
    assert own.given == []


@pytest.mark.parametrize("wrong", [object(), Own, 3, lambda ids, n, rng: ids[:n], "uniform", relive.Uniform], ids=repr)
def test_objects_that_do_not_draw(wrong):
    for call in (
        lambda: relive.ReplayBuffer(8, sampler=wrong),
        lambda: relive.plan(SCHEMA, 8, sampler=wrong),
        lambda: made(None).reader(sampler=wrong),
    ):
        with pytest.raises(
            relive.ConfigError,
            match=r"^sampler: expected a sampler, (or an object with draw\(ids, n, rng|got the class)",
        ):
            call()


# Threads.


def test_writers_may_push_meanwhile():
    """Ids that were overwritten between the list and the batch are drawn anew, not returned."""
    calls = []

    def answer(ids, n, rng):
        calls.append(ids[0])
        if len(calls) == 1:
            fill(buffer, 8, start=100)  # everything it was given is gone
        return rng.choice(ids, n)

    buffer = made(Own(answer), 8, capacity=8)
    batch = buffer.sample(4)
    assert calls == [0, 8]
    assert set(batch.ids.tolist()) <= set(buffer.ids.tolist())
    assert (batch.action >= 100).all()


def test_it_is_never_called_by_two_threads_at_once():
    inside, worst = [], []

    def answer(ids, n, rng):
        inside.append(1)
        worst.append(len(inside))
        time.sleep(0.0001)  # others get their turn
        inside.pop()
        return rng.choice(ids, n)

    buffer = made(Own(answer))

    def work():
        for _ in range(100):
            buffer.sample(4)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(worst) == 300
    assert max(worst) == 1


@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches(prefetch):
    plain = made(Own())
    expected = [plain.sample(4).ids.tolist() for _ in range(5)]
    with made(Own()).batches(4, prefetch=prefetch) as batches:
        assert [batch.ids.tolist() for batch in islice(batches, 5)] == expected

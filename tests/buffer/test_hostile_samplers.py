"""Samplers and readers under rough treatment: what went wrong once, each as a test."""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest

import relive

Field = relive.Field
SCHEMA = relive.Schema(Field("float32", (4,)), Field("int64"))


def filled(count: int = 50, **settings: Any) -> relive.ReplayBuffer:
    """A buffer with some transitions, all of one episode."""
    buffer = relive.ReplayBuffer(100, SCHEMA, seed=0, **settings)
    obs = np.arange(4 * (count + 1), dtype=np.float32).reshape(-1, 4)
    buffer.extend(obs[:-1], np.zeros(count, np.int64), np.ones(count), np.zeros(count, bool), obs[1:])
    return buffer


def test_a_callback_of_a_dropped_array_may_sample_many_sizes() -> None:
    """The memory of the batch being made stays, although the callback pushes its size out of the pool."""
    buffer = filled()
    called = []

    def sample_many(_: Any) -> None:
        called.append(True)
        for size in range(20, 40):
            buffer.sample(size)

    batch = buffer.sample(8)
    batch.obs.flags.writeable = False  # not recycled any more, so it is dropped in the midst of a later sample
    watched = weakref.ref(batch.obs, sample_many)
    del batch
    kept = [buffer.sample(8) for _ in range(8)]
    assert called
    assert watched() is None
    for batch in kept:
        assert (batch.obs[:, 0] == 4 * batch.ids).all()


class Slow:
    """A sampler that holds its reader's lock for a while."""

    def __init__(self) -> None:
        self.inside = threading.Event()

    def draw(self, ids: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """Uniform, after a nap."""
        self.inside.set()
        time.sleep(0.3)
        return rng.choice(ids, n)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_samples_though_a_thread_of_its_parent_was_drawing() -> None:
    """The lock around a user's sampler is not inherited from a thread that the child has not."""
    sampler = Slow()
    buffer = filled(sampler=sampler)
    thread = threading.Thread(target=buffer.sample, args=(4,))
    thread.start()
    sampler.inside.wait()
    child = os.fork()
    if child == 0:
        buffer.sample(4)
        os._exit(17)
    thread.join()
    deadline = time.monotonic() + 30
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if done == (0, 0):
        os.kill(child, 9)
    assert os.waitstatus_to_exitcode(done[1]) == 17 if done != (0, 0) else pytest.fail("the child hangs")


def test_a_sampler_may_ask_the_mixture_it_is_part_of() -> None:
    """No thread waits for itself."""
    inner: list[Any] = []

    class Curious:
        """Draws from the mixture once, then uniformly."""

        def draw(self, ids: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
            """Uniform."""
            if not inner:
                inner.append(None)
                inner.append(mixture.sample(4))
            return rng.choice(ids, n)

    mixture = relive.Mixture([(filled(), 0.5), (filled(sampler=Curious()), 0.5)], seed=0)
    assert mixture.sample(4).ids.shape == (4,)
    assert inner[1].ids.shape == (4,)


def test_lanes_that_stand_still_cost_nothing() -> None:
    """Ids, anchors and the newest of lanes of very different ages: what is live counts, not the time between."""
    lanes, pushes = 3, 20_000
    buffer = relive.ReplayBuffer(2 * lanes, SCHEMA, lanes=lanes, sampler=relive.Uniform(newest=3), seed=0)
    obs = np.zeros((pushes + 1, 4), np.float32)
    buffer.push(obs[0], 0, 0.0, False, obs[0], lane=2)
    buffer.extend(obs[:-1], np.zeros(pushes, np.int64), np.ones(pushes), np.zeros(pushes, bool), obs[1:], lane=1)
    live = [2, (pushes - 2) * lanes + 1, (pushes - 1) * lanes + 1]
    assert buffer.ids.tolist() == live
    assert buffer.anchors.tolist() == live
    assert buffer.sample(4).ids[:3].tolist() == live[::-1]


def test_whole_episodes_beside_a_writer_are_used_up_exactly() -> None:
    """A draw is delivered or was none, however episodes are evicted meanwhile: no use is lost."""
    buffer = relive.ReplayBuffer(300, SCHEMA, view=relive.Sequences("episode"), seed=0)
    reader = buffer.reader(sampler=relive.Uniform(max_uses=1))
    obs, ends = np.zeros((10, 4), np.float32), np.arange(10) == 9
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            buffer.extend(obs, np.zeros(10, np.int64), np.ones(10), ends, obs + 1)

    thread = threading.Thread(target=write)
    thread.start()
    seen: list[int] = []
    for _ in range(300):
        try:
            seen.extend(reader.sample(8).ids.tolist())
        except relive.NotEnoughDataError:
            time.sleep(0.001)
    stop.set()
    thread.join()
    assert len(seen) == len(set(seen))
    whole = set(buffer.anchors.tolist())
    assert set(reader.anchors.tolist()) == whole - set(seen)


def test_weights_of_extreme_priorities_are_numbers_above_zero() -> None:
    """The quotient of the extremes underflows; their logarithms do not."""
    buffer = filled(2, sampler=relive.Prioritized(alpha=1, eps=0, normalize="buffer"))
    buffer.update_priorities([0, 1], [1e-300, 1e270])
    weight = buffer.sample(4, beta=0.01).weight
    assert np.allclose(weight, (1e-300**0.01) / (1e270**0.01), rtol=1e-5)
    assert (buffer.sample(4, beta=1.0).weight > 0).all()


def test_an_interrupted_iterator_goes_on() -> None:
    """Ctrl-C in the midst of next() costs the batch that was taken, not the iterator."""
    iterator = filled().batches(4, prefetch=1)
    next(iterator)
    worker: Any = iterator._worker
    queue = worker.drawn

    class Interrupted:
        """Takes a batch, and loses it to an interrupt."""

        put = queue.put

        def get(self) -> None:
            """As `SimpleQueue.get`."""
            queue.get(timeout=10)
            raise KeyboardInterrupt

    worker.drawn = Interrupted()
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            next(iterator)
    worker.drawn = queue
    assert next(iterator).ids.shape == (4,)
    iterator.close()

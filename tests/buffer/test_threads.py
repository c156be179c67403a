"""Many threads at once, and batches that never change under their holder.

Every observation encodes the transition it belongs to, in each of its elements, and all other fields follow from it. A
row torn by a writer, or put together from two transitions, contradicts itself.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from typing import Any

import numpy as np
import pytest

import relive
from model.marked import check, contents, make, run, transition
from model.reference import map_tree


@pytest.mark.parametrize("depth", [3, 50, 2_000])
def test_threads_push_and_sample_at_once(depth):
    """Four lanes, each written by its own thread, by single steps and blocks; four readers."""
    lanes, steps, n = 4, 1_000, 3
    buffer = make(lanes, depth, n, seed=0)
    buffer.push(**transition(np.zeros(lanes, np.int64), np.arange(lanes)))
    writing = set(range(lanes))

    def write(lane: int) -> None:
        step = 1
        try:
            while step < steps:
                block = 1 + (step * 7 + lane) % 4
                if block == 1:
                    assert buffer.push(**transition(step, lane), lane=lane) == step * lanes + lane
                else:
                    many = np.arange(step, step + block)
                    ids = buffer.extend(**transition(many, lane), lane=lane)
                    assert ids.tolist() == (many * lanes + lane).tolist()
                step += block
        finally:
            writing.discard(lane)

    def read(size: int) -> None:
        held: list[tuple[Any, list[bytes]]] = []
        rounds = 0
        while writing or rounds < 20:
            batch = buffer.sample(size)
            check(batch, lanes, n)
            if rounds % 10 == 0:
                held = [*held[-5:], (batch, contents(batch))]
            ids = buffer.ids
            assert len(ids) <= lanes * depth
            some = ids[:: -max(1, len(ids) // 100)]
            with contextlib.suppress(relive.StaleIdError):  # overwritten since: said, not hidden
                check(buffer.get(some), lanes, n)
            rounds += 1
        for batch, before in held:
            assert contents(batch) == before

    run(*(lambda lane=lane: write(lane) for lane in range(lanes)), *(lambda s=s: read(s) for s in (1, 17, 64, 64)))
    if depth < steps:
        assert len(buffer) == lanes * depth
    check(buffer.get(buffer.ids), lanes, n)


def test_a_large_batch_is_of_one_moment():
    """Milliseconds of copying without the GIL, in which a writer would overwrite the whole buffer many times."""
    depth, size, rounds = 40, 10_000, 12
    buffer = make(1, depth, n=1, seed=6)
    block = transition(np.arange(20_000), np.zeros(20_000, np.int64))
    buffer.extend(**map_tree(lambda leaf: leaf[:depth], block))
    reading = {"sample", "get"}

    def write() -> None:
        for step in range(depth, 20_000):
            buffer.push(**map_tree(lambda leaf, step=step: leaf[step], block))
            if not reading:
                break

    def sample() -> None:
        try:
            for _ in range(rounds):
                batch = buffer.sample(size)
                check(batch, 1, 1)
                assert np.ptp(batch.ids) < depth  # all of them were live at once
        finally:
            reading.discard("sample")

    def get() -> None:
        try:
            for _ in range(rounds):
                newest = buffer.ids[-depth // 2 :]
                with contextlib.suppress(relive.StaleIdError):
                    check(buffer.get(np.resize(newest, size)), 1, 1)
        finally:
            reading.discard("get")

    run(write, sample, get)


def test_threads_that_push_to_the_same_lane():
    """The order is whoever comes first; each id still holds exactly what was pushed under it."""
    buffer = make(1, 10_000, n=1, seed=0)
    given: list[dict[int, int]] = [{} for _ in range(4)]

    def write(who: int) -> None:
        for number in range(600):
            fields = transition(number, who)
            fields |= {"terminated": True, "truncated": False}
            given[who][buffer.push(**fields)] = 1_000_000 * who + 10 * number

    run(*(lambda who=who: write(who) for who in range(4)))
    pushed = {identity: mark for one in given for identity, mark in one.items()}
    assert sorted(pushed) == list(range(2_400))
    batch = buffer.get(np.array(sorted(pushed)))
    marks = np.array([pushed[identity] for identity in sorted(pushed)])
    assert (batch.obs["large"] == marks[:, None]).all()
    assert (batch.obs["small"] == marks[:, None]).all()
    assert (batch.tag == marks[:, None]).all()
    assert (batch.next_obs["large"] // 10 == marks[:, None] // 10 + 1).all()


@pytest.mark.parametrize("lanes", [1, 4])
def test_threads_that_all_make_the_first_push(lanes):
    """The schema comes from the first push; whoever was a moment later must not start the buffer afresh."""
    for _ in range(40):
        buffer = relive.ReplayBuffer(64, lanes=lanes)
        ids: list[int] = []
        run(*(functools.partial(push_first, buffer, who % lanes, ids) for who in range(8)))
        assert len(set(ids)) == 8
        assert buffer.ids.tolist() == sorted(ids)


def push_first(buffer: relive.ReplayBuffer, lane: int, ids: list[int]) -> None:
    """Push a transition to a buffer that may have no schema yet."""
    obs = np.zeros(3, np.float32)
    ids.append(buffer.push(obs, 0, 0.0, True, obs, lane=lane))


def test_threads_draw_the_batches_that_one_thread_draws():
    """Whoever takes batch number k, it is batch number k: none twice, none left out."""
    one, many = make(2, 50, seed=3), make(2, 50, seed=3)
    for buffer in (one, many):
        for step in range(50):
            buffer.push(**transition(np.array([step, step]), np.arange(2)))
    expected = sorted(one.sample(32).ids.tobytes() for _ in range(400))
    drawn: list[bytes] = []
    run(*[lambda: drawn.extend([many.sample(32).ids.tobytes() for _ in range(100)])] * 4)
    assert sorted(drawn) == expected


def test_a_clear_beside_readers_is_all_or_nothing():
    buffer = make(2, 40, n=1, seed=4)
    stop = threading.Event()

    def write() -> None:
        try:
            for step in range(1_200):
                buffer.push(**transition(np.array([step, step]), np.arange(2)))
                if step % 70 == 69:  # an end of an episode, so that the clear cuts none in two
                    buffer.clear()
        finally:
            stop.set()

    def read() -> None:
        while not stop.is_set():
            try:
                check(buffer.sample(16), 2, 1)
            except relive.NotEnoughDataError:
                continue

    run(write, read, read)

"""Weights in shared memory: what is read is whole, whoever writes or dies meanwhile."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import random
import signal
import threading
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest

from relive.errors import ConfigError, SchemaError, SnapshotError
from relive.share import Weights, WeightsHandle
from relive.share import weights as module

SIZES = (1, 15, 16, 17, 70_001)


def constant(size: int, value: int) -> np.ndarray:
    return np.full(size, value, np.float32)


@pytest.mark.parametrize("size", SIZES)
def test_what_was_published_is_read(size: int) -> None:
    """Bug: the older copy, a copy cut at its last cache line, updates of the other one, a version read twice."""
    weights = Weights.create(size)
    reader = Weights.attach(pickle.loads(pickle.dumps(weights.handle())))
    into = np.empty(size, np.float32)
    assert reader.read(into) is None
    rng = np.random.default_rng(0)
    for version in range(1, 6):
        vector = rng.normal(size=size).astype(np.float32)
        assert weights.publish(vector, 100 * version) == version == reader.version
        assert reader.read(into, newer_than=version - 1) == (version, 100 * version)
        assert np.array_equal(into, vector)
        assert reader.read(into, newer_than=version) is None
    reader.close()
    weights.close()
    with pytest.raises(SnapshotError):
        Weights.attach(weights.handle())


def test_other_vectors_and_sizes_are_refused() -> None:
    """Bug: a broadcast, or float64 cast in passing."""
    weights = Weights.create(3)
    for wrong in (np.zeros(3), np.zeros(4, np.float32), np.zeros((3, 1), np.float32), np.zeros(1, np.float32)):
        with pytest.raises(SchemaError, match=r"weights: expected float32 \(3,\)"):
            weights.publish(wrong)
        with pytest.raises(SchemaError, match=r"weights: expected float32 \(3,\)"):
            weights.read(wrong)
    assert weights.version == 0
    with pytest.raises(ConfigError, match="size"):
        Weights.create(0)


def test_a_handle_of_another_size_is_refused() -> None:
    """Bug: padding, or the other copy, read as parameters."""
    weights = Weights.create(5)
    handle = weights.handle()
    for size in (1, 6, 16, 500):
        with pytest.raises(SnapshotError, match=rf"expected weights of size {size}, as the handle says, got 5"):
            Weights.attach(replace(handle, size=size))
    Weights.attach(handle).close()


def test_what_cannot_be_published_leaves_the_last_vector() -> None:
    """Bug: an error in the midst of a publication, of a copy that is half begun."""
    weights, into = Weights.create(2), np.empty(2, np.float32)
    weights.publish(constant(2, 1), 2**63 - 1)
    for updates in (2**63, -1, 1.5, None):
        with pytest.raises(ConfigError, match="weights: expected updates"):
            weights.publish(constant(2, 2), updates)  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match=r"weights: expected float32 \(2,\), got list"):
        weights.publish([1.0, 2.0])  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match=r"weights: expected float32 \(2,\), got list"):
        weights.read([1.0, 2.0])  # type: ignore[arg-type]
    assert weights._head[module._BEGUN] == weights.version == 1
    assert weights.read(into) == (1, 2**63 - 1) and into.tolist() == [1, 1]


def test_nothing_is_published_or_read_after_close() -> None:
    """Bug: a writer that goes on for nobody, a reader that waits for news for ever."""
    weights = Weights.create(2)
    reader = Weights.attach(weights.handle())
    for closed in (reader, weights):
        closed.close()
        closed.close()
        with pytest.raises(ConfigError, match="weights: expected them open, got closed ones"):
            closed.publish(constant(2, 1))
        with pytest.raises(ConfigError, match="weights: expected them open, got closed ones"):
            closed.read(constant(2, 1))


class Dies:
    """An array that stops whoever writes to it for the k-th time, as a kill would."""

    def __init__(self, array: np.ndarray, countdown: list[int]) -> None:
        self.array, self.countdown = array, countdown

    def __getitem__(self, place: Any) -> Any:
        return self.array[place]

    def view(self, dtype: Any) -> Any:
        return self.array.view(dtype)

    def __setitem__(self, place: Any, value: Any) -> None:
        self.countdown[0] -= 1
        if self.countdown[0] == 0 and isinstance(place, slice):  # in the midst of a vector or a head
            half = max(1, len(self.array[place]) // 2)
            self.array[place][:half] = value[:half]
        if self.countdown[0] <= 0:
            raise Died
        self.array[place] = value


class Died(Exception):
    pass


@pytest.mark.parametrize("written", range(1, 5))
@pytest.mark.parametrize("before", [1, 2])
def test_a_writer_that_died_at_any_step_leaves_the_last_whole_vector(written: int, before: int) -> None:
    """Bug: a version that is said before its vector is there; a copy written to that readers are sent to."""
    weights = Weights.create(64)
    for version in range(1, before + 1):
        weights.publish(constant(64, version), version)
    countdown = [written]
    head, copies = weights._head, weights._copies
    weights._head = Dies(head, countdown)  # type: ignore[assignment]
    weights._copies = tuple(Dies(copy, countdown) for copy in copies)  # type: ignore[assignment]
    with pytest.raises(Died):
        weights.publish(constant(64, 99), 99)
    reader = Weights.attach(weights.handle())
    into = np.empty(64, np.float32)
    assert reader.read(into) == (before, before)
    assert (into == before).all()


@pytest.mark.parametrize("damage", ["the vector", "the version beside it", "begun"])
def test_a_vector_that_was_written_to_while_it_was_read_is_not_returned(
    damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: a check that is not looked at."""
    weights = Weights.create(64)
    weights.publish(constant(64, 1), 1)
    into = np.empty(64, np.float32)
    monkeypatch.setattr(module, "_ATTEMPTS", 3)
    if damage == "the vector":
        weights._copies[1][5] = 7.0
    elif damage == "the version beside it":
        weights._head[module._SLOTS[1]] = 3
    else:
        weights._head[module._BEGUN] = 3
    assert weights.read(into) is None


def _publish_for_ever(name: str, size: int, ready: Connection) -> None:
    weights = Weights.create(size, name)
    ready.send(weights.handle())
    for version in itertools.count(1):
        weights.publish(constant(size, version), version)


def test_readers_of_a_writer_that_is_killed_never_see_a_torn_vector() -> None:
    """Bug: a vector half of one version and half of another; a reader that waits for a dead writer."""
    size, context = 5000, multiprocessing.get_context("fork")
    into = np.empty(size, np.float32)
    for round_ in range(4):
        ours, theirs = context.Pipe()
        name = f"{os.getpid()}-weights-{round_}"
        process = context.Process(target=_publish_for_ever, args=(name, size, theirs))
        process.start()
        assert ours.poll(60)
        handle: WeightsHandle = ours.recv()
        reader = Weights.attach(handle)
        seen = 0
        until = time.monotonic() + random.uniform(0.05, 0.2)
        while time.monotonic() < until or (not seen and process.is_alive()):  # it may take its time to begin
            if found := reader.read(into, newer_than=seen):
                assert (into == into[0]).all() and into[0] == found[0] == found[1] > seen
                seen = found[0]
            time.sleep(1e-5)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        found = reader.read(into)
        assert found is not None and (into == found[0]).all() and found[0] >= seen > 0
        reader.close()


def test_threads_read_while_one_writes() -> None:
    """Bug: as above, where the switch between the two comes between any two lines."""
    weights = Weights.create(3000)
    weights.publish(constant(3000, 1), 1)
    done, torn = threading.Event(), []

    def read() -> None:
        into = np.empty(3000, np.float32)
        while not done.is_set():
            found = weights.read(into)
            if found and not (into == found[0]).all():
                torn.append(found)
            time.sleep(1e-5)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in range(2, 3000):
        weights.publish(constant(3000, version), version)
    done.set()
    for thread in threads:
        thread.join(60)
    assert not torn

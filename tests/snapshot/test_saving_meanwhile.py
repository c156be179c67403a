"""Saving while others push, sample, update, save and load: every snapshot is the buffer as it was at one moment."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from snapshot_worlds import WORLDS, World, digest, state_of

import relive
from relive import disk
from relive.audit import check_path
from relive.snapshot import read_manifest

Field = relive.Field


@contextlib.contextmanager
def running(*bodies: Callable[[], Any]) -> Iterator[None]:
    """Threads that do these things again and again meanwhile; their errors are ours."""
    stop, errors = threading.Event(), []

    def loop(body: Callable[[], Any]) -> None:
        try:
            while not stop.is_set():
                body()
                time.sleep(2e-5)  # the interpreter's lock is not fair: without, the saver may wait for it for minutes
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=loop, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors, errors


@pytest.mark.parametrize("chunk", [1 << 20, 1 << 12])
@pytest.mark.parametrize(
    "world",
    [
        World("small", Field("float32", (3,)), lanes=3, capacity=600, sampler=relive.Prioritized()),
        World("frames", Field("uint8", (23, 23)), lanes=2, capacity=200, sampler=relive.Prioritized()),
        World("stacks", Field("uint8", (3, 2)), lanes=2, capacity=200, stacked=3),
    ],
    ids=lambda world: world.name,
)
def test_all_lanes_at_one_moment(world: World, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: rows copied while they are written; lanes, or rows and priorities, of different moments."""
    monkeypatch.setattr("relive.strips.CHUNK", chunk)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    buffer, times = world.make(), [0] * world.lanes
    lane = itertools.cycle(range(world.lanes))
    for _ in range(world.capacity + 7 * world.lanes):
        world.push(buffer, times, next(lane))
    rng = np.random.default_rng(0)
    depth = world.capacity // world.lanes
    heads = []
    with running(lambda: world.push(buffer, times, next(lane)), lambda: world.draw(buffer, rng)):
        for number in range(12):
            buffer.save(tmp_path / str(number % 2))
            loaded = relive.load(tmp_path / str(number % 2))
            world.check(loaded)
            ids = loaded.ids
            assert len(ids) == world.capacity
            newest = [ids[ids % world.lanes == number].max() // world.lanes for number in range(world.lanes)]
            for number, head in enumerate(newest):
                own = ids[ids % world.lanes == number] // world.lanes
                assert own.tolist() == list(range(head - depth + 1, head + 1))
            assert newest == sorted(newest, reverse=True), "lane 0 is pushed to first"
            assert newest[0] - newest[-1] <= 1
            heads.append(newest[0])
    assert heads == sorted(heads)
    assert heads[-1] > heads[0], "nobody pushed meanwhile"


def test_priorities_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: priorities that are copied without the lock, or after it was let go."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    sampler = relive.Prioritized(alpha=1.0, eps=0.0)
    world = World("static", Field("float32", (2,)), lanes=2, capacity=2_000, sampler=sampler)
    buffer, times = world.make(), [0, 0]
    for _ in range(1_000):
        world.push(buffer, times, 1)
    first, last = np.array([1]), np.array([999 * 2 + 1])
    number = itertools.count(1)

    def update() -> None:
        value = next(number)
        assert buffer.update_priorities(first, [float(value)]) == 1
        assert buffer.update_priorities(last, [float(value)]) == 1

    seen = []
    with running(update, lambda: world.push(buffer, times, 0)):
        for _ in range(10):
            buffer.save(tmp_path)
            loaded = relive.load(tmp_path)
            masses = np.frombuffer(state_of(loaded)["values"][0])
            a, b = masses[-1_000], masses[-1]
            assert a - b in (0, 1), "the first is told first"
            seen.append(a)
    assert seen[-1] > seen[0]


def test_nobody_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a lock that is held while files are written."""
    world = World("many", Field("float32", (16,)), lanes=1, capacity=40_000)
    buffer = world.make()
    values = np.random.default_rng(0).random((40_001, 16), np.float32)
    zeros = np.zeros(40_000)
    buffer.extend(values[:-1], zeros.astype(int), zeros, zeros.astype(bool), values[1:])
    pushed = 0
    waits = []
    real = os.write

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def write(self, *args: Any) -> int:
            before = pushed
            time.sleep(0.03)
            waits.append(pushed - before)
            return real(*args)

    def push() -> None:
        nonlocal pushed
        buffer.push(values[0], 0, 0.0, False, values[1])
        pushed += 1
        time.sleep(0.001)

    monkeypatch.setattr("relive.disk.os", Slow())
    with running(push):
        buffer.save(tmp_path)
    assert len(waits) > 5
    assert sum(count > 0 for count in waits) > len(waits) // 2, waits
    assert len(relive.load(tmp_path)) == 40_000


def test_threads_that_save_one_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: two saves of one buffer that take each other's files for orphans."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    world = WORLDS["max_uses"]
    buffer, times = world.make(), [0] * world.lanes
    world.drive(buffer, times, np.random.default_rng(0), 20)
    places = itertools.cycle([tmp_path / "a", tmp_path / "b", tmp_path / "a"])

    def save() -> None:
        buffer.save(next(places))

    rng = np.random.default_rng(1)
    with running(save, save):
        for _ in range(50):
            world.drive(buffer, times, rng, 1)
            time.sleep(0.005)
    for place in (tmp_path / "a", tmp_path / "b"):
        buffer.save(place)
        assert digest(relive.load(place)) == digest(buffer)


def child(body: Callable[[], Any]) -> int:
    """A process that does this again and again until it is killed."""
    process = os.fork()
    if process == 0:
        try:
            while True:
                body()
        finally:
            os._exit(1)
    return process


def test_processes_that_save_to_one_directory(tmp_path: Path) -> None:
    """Would catch: two processes that write to one directory at once; a load that sees the files of two saves."""
    world = WORLDS["columns"]

    def save_own(seed: int = 0) -> None:
        buffer, times = world.make(), [0] * world.lanes
        world.drive(buffer, times, np.random.default_rng(), 20)
        for _ in range(3):
            with contextlib.suppress(relive.SnapshotError):
                world.save(buffer, tmp_path / "s", times, overwrite=True)
            world.drive(buffer, times, np.random.default_rng(), 3)

    processes = [child(save_own) for _ in range(2)]
    loads, refused = 0, 0
    buffer, times = world.make(), [0] * world.lanes
    world.drive(buffer, times, np.random.default_rng(5), 20)
    try:
        until = time.monotonic() + 5
        while time.monotonic() < until:
            if not (tmp_path / "s" / "manifest.json").exists():
                continue
            loaded = relive.load(tmp_path / "s")
            world.check(loaded)
            assert 0 < len(loaded) <= world.capacity
            loads += 1
            try:
                world.save(buffer, tmp_path / "s", times, overwrite=True)
            except relive.SnapshotError as error:
                assert "another process saves to it" in str(error)
                refused += 1
    finally:
        for process in processes:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
    assert loads > 10
    assert refused > 0
    world.save(buffer, tmp_path / "s", times, overwrite=True)
    assert digest(relive.load(tmp_path / "s")) == digest(buffer)
    files = {file.name for file in read_manifest(tmp_path / "s").files}
    assert {path.name for path in (tmp_path / "s").iterdir()} - files <= {"manifest.json", "manifest.json.new"}


READERS: dict[str, Callable[[Path], Any]] = {
    "Memory": relive.load,
    "Mmap": lambda path: relive.load(path, storage=relive.Mmap(str(path.parent / "mapped"))),
    "SharedMemory": lambda path: relive.load(path, storage=relive.SharedMemory()),
    "verify": relive.snapshot.verify,
    "check": check_path,
}


@pytest.mark.parametrize("reader", READERS)
def test_whoever_reads_begins_again_where_a_save_came_between(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: files that a newer save has dropped taken for damage."""
    buffer = relive.ReplayBuffer(100, sampler=relive.Prioritized(), seed=0)

    def save_more() -> None:
        step = float(len(buffer))
        buffer.push(np.full(3, step, np.float32), 0, step, False, np.full(3, step + 1, np.float32))
        buffer.save(tmp_path / "s")

    save_more()
    opened, saves = disk._open, 3

    def open_after_a_save(path: Path) -> int:
        nonlocal saves
        if saves:
            saves -= 1
            save_more()
        return opened(path)

    monkeypatch.setattr(disk, "_open", open_after_a_save)
    result = READERS[reader](tmp_path / "s")
    assert saves == 0
    if isinstance(result, relive.ReplayBuffer):
        assert result.ids.tolist() == buffer.ids.tolist()
    if reader == "check":
        assert not result.findings

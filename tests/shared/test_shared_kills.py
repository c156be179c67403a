"""Processes that share a buffer and are killed: what they completed is there, nothing is torn, and nobody waits.

That every single store is survived is for cpp/tests/test_live_kill.cpp; here the whole of it runs, signals and all.
"""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relive
from mapped.mapped_programs import SHM
from mapped.test_mapped_kills import SETUPS, Chain
from model import marked

ACTORS, OWN, DEPTH = 2, 2, 60  # processes, lanes of each, transitions of a lane
LANES = ACTORS * OWN


@pytest.fixture
def root() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=SHM))
    yield path
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def no_waiting_for_ever() -> Iterator[None]:
    """A lock that nobody gets any more ends the test, with the trace of who waits for it."""

    def give_up(*_: Any) -> None:
        raise TimeoutError("somebody waits for ever")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(1800)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class SharedChain(Chain):
    """The chain of tests/mapped in shared memory: the parent has the buffer all the time, children come and are killed.

    Every other child attaches; the others use the object that the fork gave them.
    """

    def storage(self) -> Any:
        return relive.SharedMemory()

    def keep(self, buffer: Any) -> None:
        self.buffer = buffer

    def attach(self, sync: int | None = None) -> Any:
        return self.buffer

    def attach_in_child(self, sync: int | None) -> Callable[[], Any]:
        buffer, handle = self.buffer, self.buffer.handle()
        own = {name: self.axes[name] for name in ("sampler", "view") if name in self.axes}
        return (lambda: relive.attach(handle, **own)) if self.rng.random() < 0.5 else (lambda: buffer)


@pytest.mark.parametrize("setup", SETUPS)
def test_kills(setup: str, root: Path) -> None:
    chain = SharedChain(setup, root, seed=2)
    for _ in range(12):
        chain.kill()


@pytest.mark.slow
@pytest.mark.parametrize("setup", SETUPS)
def test_many_kills(setup: str, root: Path) -> None:
    torn = recoveries = 0
    for seed in range(10):
        chain = SharedChain(setup, root / str(seed), seed=200 + seed)
        for _ in range(60):
            chain.kill()
        torn += chain.torn
        recoveries += int(chain.buffer._engine.board[6])
    assert torn, "no kill hit a push"
    assert recoveries, "no kill hit a process with the lock in hand"


@dataclass
class Troupe:
    """A learner, this process, and actors that write marked transitions to lanes of their own until they are killed."""

    axes: dict[str, Any]
    seed: int
    killed: int = 0
    longest: float = 0.0  # seconds that a call of the learner took
    actors: dict[int, int] = field(default_factory=dict)  # process -> number

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.buffer = marked.make(LANES, DEPTH, storage=relive.SharedMemory(), seed=1, **self.axes)
        self.handle = self.buffer.handle()
        self.prioritized = "sampler" in self.axes
        # What each lane's actor knows to be there, and whether an actor failed.
        self.known = np.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), np.int64)

    def start(self, number: int) -> None:
        heads = self.heads()
        child = os.fork()
        if child == 0:
            try:
                self.act(number, heads)
            except BaseException:
                traceback.print_exc()
                self.known[-1] = 1
            finally:
                os._exit(1)
        self.actors[child] = number

    def act(self, number: int, heads: list[int]) -> None:
        """For ever: pushes, now and then draws and updates, as an actor or a second learner would."""
        buffer = relive.attach(self.handle)
        rng = np.random.default_rng([self.seed, os.getpid()])
        lanes = range(number * OWN, (number + 1) * OWN)
        self.known[LANES + number] = 1
        while True:
            for lane in lanes:
                step, what = heads[lane], rng.random()
                count = 1
                if what < 0.8:
                    buffer.push(**marked.transition(step, lane), lane=lane)
                else:
                    count = int(rng.integers(1, 9))
                    steps = np.arange(step, step + count)
                    buffer.extend(**marked.transition(steps, np.full(count, lane)), lane=lane)
                heads[lane] += count
                self.known[lane] = heads[lane]
                if what < 0.1 and len(buffer) > 8:
                    batch = buffer.sample(8)
                    if self.prioritized:
                        buffer.update_priorities(batch.ids, rng.random(8))

    def heads(self) -> list[int]:
        lanes = np.zeros((LANES, 4), np.uint64)
        self.buffer._core.lanes(lanes, False)
        return [int(head) for head in lanes[:, 1]]

    def learn(self) -> None:
        """One batch, checked; the time it took is noted."""
        if len(self.buffer) < 8:
            time.sleep(0.001)
            return
        began = time.perf_counter()
        batch = self.buffer.sample(8)
        if self.prioritized:
            assert self.buffer.update_priorities(batch.ids, self.rng.random(8)) <= 8
        self.longest = max(self.longest, time.perf_counter() - began)
        marked.check(batch, LANES, 3)

    def kill(self) -> None:
        """One of them; everything it knew to be there is, and at most what it was at."""
        process = int(self.rng.choice(list(self.actors)))
        number = self.actors.pop(process)
        until = time.monotonic() + float(self.rng.exponential(0.003))
        while not self.known[LANES + number] or time.monotonic() < until:
            assert not self.known[-1], "an actor failed"
            self.learn()
        os.kill(process, signal.SIGKILL)
        if self.rng.random() < 0.5:
            self.learn()  # while it dies
        assert os.WIFSIGNALED(os.waitpid(process, 0)[1])
        self.killed += 1
        self.known[LANES + number] = 0
        heads = self.heads()
        for lane in range(number * OWN, (number + 1) * OWN):
            assert 0 <= heads[lane] - self.known[lane] <= 8
            self.known[lane] = heads[lane]
            self.check_lane(lane, heads[lane])
        self.start(number)

    def check_lane(self, lane: int, head: int) -> None:
        """All of a lane that nobody writes to now."""
        ids = self.buffer.ids
        times = ids[ids % LANES == lane] // LANES
        # A push that was cut short may have evicted the oldest already.
        assert head - len(times) in (max(0, head - DEPTH), max(0, head - DEPTH) + 1)
        np.testing.assert_array_equal(times, np.arange(head - len(times), head))
        if len(times):
            marked.check(self.buffer.get(times * LANES + lane), LANES, 3)

    def end(self) -> None:
        for process in self.actors:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        assert not self.known[-1], "an actor failed"
        assert self.buffer.num_pushed == sum(self.heads())
        for lane, head in enumerate(self.heads()):
            self.check_lane(lane, head)


AXES: dict[str, dict[str, Any]] = {
    "uniform": {},
    "prioritized": {"sampler": relive.Prioritized(alpha=0.7)},
    "ranked": {"sampler": relive.samplers.RankBased()},
}


def perform(axes: dict[str, Any], seed: int, kills: int) -> Troupe:
    troupe = Troupe(axes, seed)
    try:
        for number in range(ACTORS):
            troupe.start(number)
        while troupe.killed < kills:
            troupe.kill()
    finally:
        troupe.end()
    return troupe


@pytest.mark.parametrize("axes", AXES)
def test_a_learner_among_dying_actors(axes: str, record_property: Callable[[str, object], None]) -> None:
    troupe = perform(AXES[axes], 1, 70)
    record_property("longest_wait_seconds", troupe.longest)
    record_property("recoveries", int(troupe.buffer._engine.board[6]))


@pytest.mark.slow
@pytest.mark.parametrize("axes", AXES)
def test_a_learner_among_thousands_of_deaths(axes: str, record_property: Callable[[str, object], None]) -> None:
    troupe = perform(AXES[axes], 7, 2000)
    record_property("longest_wait_seconds", troupe.longest)
    record_property("recoveries", int(troupe.buffer._engine.board[6]))
    assert troupe.buffer._engine.board[6] > 0, "no kill hit a process with the lock in hand"


def test_a_killed_learner_leaves_actors_that_go_on_and_end() -> None:
    rng = np.random.default_rng(3)
    for _ in range(12):
        receive, send = os.pipe()
        learner = os.fork()
        if learner == 0:
            try:
                learn_for_ever(send)
            finally:
                os._exit(1)
        os.close(send)
        with os.fdopen(receive, "rb") as pipe:
            name, key, form, schema = pipe.readline().decode().split()
        from relive.shared import Handle

        buffer = relive.attach(Handle(name, int(key), int(form), schema))
        reader = buffer.reader(view=relive.Transitions(1, marked.GAMMA), sampler=relive.Uniform())
        step = 0
        until = time.monotonic() + 0.01 + float(rng.exponential(0.02))
        while time.monotonic() < until:
            buffer.push(**marked.transition(step, 1), lane=1)
            step += 1
        os.kill(learner, signal.SIGKILL)
        for _ in range(100):
            buffer.push(**marked.transition(step, 1), lane=1)
            step += 1
        os.waitpid(learner, 0)
        assert buffer.num_pushed == step
        ids = buffer.ids
        np.testing.assert_array_equal(ids // 2, np.arange(step - len(ids), step))
        marked.check(buffer.sample(32), 2, 3)
        marked.check(reader.get(ids), 2, 1)
        assert buffer.end_episodes() in (0, 1)
        (Path("/dev/shm") / f"relive-{name}").unlink(missing_ok=True)  # its tracker is this process's too


def learn_for_ever(send: int) -> None:
    buffer = marked.make(2, DEPTH, storage=relive.SharedMemory(), seed=1, sampler=relive.Prioritized())
    handle = buffer.handle()
    os.write(send, f"{handle.name} {handle.key} {handle.format} {handle.schema}\n".encode())
    while True:
        if len(buffer) > 8:
            batch = buffer.sample(8, beta=0.5)
            buffer.update_priorities(batch.ids, np.abs(batch.reward))


def test_readers_of_others_stay_right_after_a_death() -> None:
    """What a reader keeps in memory of its own follows the buffer, whoever repaired it."""
    troupe = Troupe({"sampler": relive.Prioritized()}, 5)
    readers = [
        troupe.buffer.reader(view=relive.Transitions(3, marked.GAMMA), sampler=sampler)
        for sampler in (relive.Prioritized(), relive.samplers.RankBased(), relive.Shuffled(max_uses=2))
    ]
    try:
        for number in range(ACTORS):
            troupe.start(number)
        for _ in range(25):
            troupe.kill()
            for reader in readers:
                if len(troupe.buffer) > 100:
                    batch = reader.sample(8)
                    marked.check(batch, LANES, 3)
    finally:
        troupe.end()
    for reader in readers:
        known = set(troupe.buffer.ids.tolist())
        assert set(reader.anchors.tolist()) <= known
    assert set(readers[0].anchors.tolist()) == set(troupe.buffer.ids.tolist())

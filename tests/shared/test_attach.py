"""The same buffer in several processes: what one writes the others read, under every sampler, view and kind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import attach_programs
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import initialize, rule

import relive
from buffer.test_sampler_machine import SEEDS, OthersMachine, PrioritizedMachine, SamplerMachine, SequencesMachine
from buffer.test_state_machine import VIEWS, BufferMachine
from mapped.mapped_programs import Author, attempt, push_on, pusher
from model import marked
from model.compare import assert_same, fingerprint
from model.kinds import GOAL, KINDS
from model.options import Own, reached
from model.reference import Model, View
from relive.samplers import BuiltIn

S = relive.samplers
AXES: dict[str, dict[str, Any]] = {
    "plain": {},
    "prioritized": {"sampler": relive.Prioritized(alpha=0.5)},
    "buffer": {"sampler": relive.Prioritized(normalize="buffer", max_uses=50)},
    "ranked": {"sampler": S.RankBased()},
    "shuffled": {"sampler": relive.Shuffled()},
    "recent": {"sampler": S.Recent(period=3)},
    "own": {"sampler": Own()},
    "steps": {"view": relive.Transitions(3, 0.5)},
    "stack": {"view": relive.Transitions(2, 0.5, stack=3), "sampler": relive.Prioritized()},
    "sequences": {"view": relive.Sequences(3), "sampler": relive.Prioritized()},
    "episodes": {"view": relive.Sequences("episode"), "sampler": S.RankBased()},
}


def kinds_of(axes: str) -> list[str]:
    stacks = AXES[axes].get("view", relive.Transitions()).stack > 1
    return [name for name, kind in KINDS.items() if not (stacks and kind.stacked > 1)]


@pytest.fixture(scope="module")
def spawned() -> Iterator[Connection]:
    """A spawned process that answers questions."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=attach_programs.serve, args=(theirs,))
    process.start()
    yield ours
    ours.send(None)
    process.join(30)
    assert process.exitcode == 0


def in_a_fork(*question: Any) -> Any:
    """The answer of a child that has nothing but the handle."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=attach_programs.serve, args=(theirs,))
    process.start()
    ours.send(question)
    answer = ours.recv()
    ours.send(None)
    process.join(30)
    assert process.exitcode == 0
    return answer


def filled(kind: Any, lanes: int, axes: dict[str, Any], seed: int) -> tuple[Any, Any, Model]:
    """A shared buffer, its twin in memory, and the model of both."""
    both = [
        relive.ReplayBuffer(12 * lanes, kind.schema(lanes), storage=storage, seed=5, **axes)
        for storage in (relive.SharedMemory(), relive.Memory())
    ]
    model = Model(12 * lanes, lanes)
    author = Author(kind, axes.get("sampler"), np.random.default_rng(seed))
    calls = author.write(model, 40, reads=False)
    for buffer in both:
        for call in calls:
            attempt(call, buffer)
    for lane in range(lanes):  # every lane has an episode that ended
        before = model.history[lane]
        for last in (False, True):
            row = author.row(before[-1]["next_obs"] if before else None)
            row |= {"terminated": last, "truncated": False}
            of_lane = {"lane": lane} if lanes > 1 else {}
            for buffer in both:
                buffer.push(**row, **of_lane)
            pusher(kind, row, lane)(model)
    return *both, model


def compare(kind: Any, axes: dict[str, Any], ask: Callable[..., Any], seed: int) -> None:
    """A child sees what the model says; the batches of child and parent are the next ones of the twin."""
    shared, twin, model = filled(kind, 1 + seed % 3, axes, seed)
    hindsight = isinstance(shared.view, relive.Transitions) and shared.view.relabel is not None
    handle = pickle.loads(pickle.dumps(shared.handle()))
    assert len(pickle.dumps(handle)) < 500
    found = ask(handle, (isinstance(axes.get("sampler"), Own), hindsight))
    assert not isinstance(found, str), found
    assert found["prints"] == fingerprint(shared) == fingerprint(twin)
    assert found["anchors"] == shared.anchors.tolist() == twin.anchors.tolist()
    if not isinstance(shared.sampler, Own) and not hindsight:  # those print where they lie
        assert found["repr"] == repr(shared)
    first = twin.sample(5, beta=0.5)
    assert found["batch"] == [first.ids.tolist(), first.weight.tolist()]
    mine = shared.reader(view=relive.Transitions(2, 0.5), sampler=relive.Uniform()).sample(5).ids.tolist()
    assert found["seed"] != mine  # readers of different processes are different readers
    if found["updated"] >= 0:
        assert found["updated"] == twin.update_priorities(first.ids, np.arange(1, 6) * 0.5)
    second, third = shared.sample(6, beta=1.0), twin.sample(6, beta=1.0)
    assert second.ids.tolist() == third.ids.tolist() and second.weight.tolist() == third.weight.tolist()
    if isinstance(shared.view, relive.Transitions) and not hindsight:
        assert_same(shared, model, View(shared.view.n, shared.view.gamma, shared.view.stack))


@pytest.mark.parametrize("axes", AXES)
def test_children_have_the_same_buffer(axes: str, spawned: Connection) -> None:
    def ask(*question: Any) -> Any:
        spawned.send(question)
        return spawned.recv()

    for seed, name in enumerate(kinds_of(axes)):
        compare(KINDS[name], AXES[axes], ask, seed)
        if seed % 3 == 0:
            compare(KINDS[name], AXES[axes], in_a_fork, seed + 10)


def test_goals_are_relabelled_alike(spawned: Connection) -> None:
    def ask(*question: Any) -> Any:
        spawned.send(question)
        return spawned.recv()

    view = relive.Transitions(relabel=relive.Hindsight("future", k=4, reward_fn=reached))
    for seed, axes in enumerate(({"view": view}, {"view": view, "sampler": relive.Prioritized()})):
        compare(GOAL, axes, ask, seed)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("axes", ["plain", "prioritized", "shuffled"])
def test_a_learner_samples_while_actors_write(method: str, axes: str) -> None:
    lanes, steps, depth = 2, 3000, 500
    buffer = marked.make(lanes, depth, storage=relive.SharedMemory(), seed=1, **AXES[axes])
    context = multiprocessing.get_context(method)
    actors = [
        context.Process(target=attach_programs.write, args=(buffer.handle(), lane, steps)) for lane in range(lanes)
    ]
    for actor in actors:
        actor.start()
    batches = 0
    while any(actor.is_alive() for actor in actors):
        if len(buffer):
            batch = buffer.sample(16)
            marked.check(batch, lanes, 3)
            if "prioritized" in axes:
                buffer.update_priorities(batch.ids, np.abs(batch.reward))
            batches += 1
        time.sleep(0.0005)
    for actor in actors:
        actor.join()
        assert actor.exitcode == 0
    assert batches and buffer.num_pushed == lanes * steps
    assert buffer.ids.tolist() == list(range(lanes * (steps - depth), lanes * steps))
    marked.check(buffer.get(buffer.ids), lanes, 3)


def test_a_forked_child_may_use_the_parents_object() -> None:
    buffer = marked.make(2, 50, storage=relive.SharedMemory(), seed=1, sampler=relive.Prioritized())
    buffer.push(**marked.transition(0, 0), lane=0)
    child = os.fork()
    if child == 0:
        good = False
        try:
            for step in range(70):
                buffer.push(**marked.transition(step, 1), lane=1)
            marked.check(buffer.sample(8), 2, 3)
            good = True
        finally:
            os._exit(0 if good else 1)
    for step in range(1, 70):
        buffer.push(**marked.transition(step, 0), lane=0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert buffer.num_pushed == 140 and len(buffer) == 100
    marked.check(buffer.get(buffer.ids), 2, 3)


def test_threads_of_a_forking_process_hold_the_lock_now_and_then() -> None:
    """A child must not find it held by a thread that it does not have."""
    import threading

    buffer = marked.make(2, 50, storage=relive.SharedMemory(), seed=1)
    buffer.push(**marked.transition(0, 0), lane=0)
    over = threading.Event()

    def sample() -> None:
        while not over.is_set():
            buffer.sample(64)
            time.sleep(0.0001)

    threads = [threading.Thread(target=sample) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for step in range(30):
            child = os.fork()
            if child == 0:
                buffer.push(**marked.transition(step, 1), lane=1)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert buffer.num_pushed == 31


def test_a_fork_of_a_process_that_has_a_buffer_twice() -> None:
    """Both objects have one lock, which is taken once before a fork."""
    buffer = marked.make(2, 50, storage=relive.SharedMemory(), seed=1)
    again = relive.attach(buffer.handle())
    child = os.fork()
    if child == 0:
        again.push(**marked.transition(0, 1), lane=1)
        buffer.push(**marked.transition(0, 0), lane=0)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(again) == len(buffer) == 2


def test_processes_that_fork_do_not_wait_for_each_other() -> None:
    """Each takes the locks of all its buffers before it forks: in one order."""
    context = multiprocessing.get_context("spawn")
    buffers = [marked.make(2, 50, storage=relive.SharedMemory(), seed=1) for _ in range(6)]
    handles = [buffer.handle() for buffer in buffers]
    children = [context.Process(target=attach_programs.fork_often, args=(handles[::order], 100)) for order in (1, -1)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    waiting = [child for child in children if child.is_alive()]
    for child in waiting:
        child.kill()
        child.join()
    assert not waiting, "two processes that fork wait for each other"
    assert [child.exitcode for child in children] == [0, 0]


def test_a_child_goes_on_when_the_owner_is_killed() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    owner = context.Process(target=attach_programs.outlive, args=(theirs,))
    owner.start()
    theirs.close()
    name, live, pushed = ours.recv()
    owner.join(30)
    assert owner.exitcode == -9 and (live, pushed) == (50, 100)
    (Path("/dev/shm") / f"relive-{name}").unlink(missing_ok=True)


def test_saving_from_an_attached_process(tmp_path: Path) -> None:
    kind = KINDS["stacked"]
    shared, _, _ = filled(kind, 2, {"sampler": relive.Prioritized()}, 3)
    other = relive.attach(shared.handle())
    other.save(tmp_path / "a")
    assert fingerprint(relive.load(tmp_path / "a")) == fingerprint(shared)
    with pytest.raises(relive.ConfigError):  # who did not save there does not know what is there
        shared.save(tmp_path / "a")
    shared.save(tmp_path / "b")
    loaded = relive.load(tmp_path / "b", storage=relive.SharedMemory())
    again = relive.attach(loaded.handle())
    assert fingerprint(again) == fingerprint(shared)
    assert again.sample(4).ids.tolist() == shared.sample(4).ids.tolist()


def test_the_buffer_goes_with_its_owner_and_stays_for_who_has_it() -> None:
    buffer = relive.ReplayBuffer(10, storage=relive.SharedMemory("gone-" + str(os.getpid())))
    with pytest.raises(relive.ConfigError, match="handle: expected a schema"):
        buffer.handle()
    buffer.push([1.0], 1, 0.0, False, [2.0])
    handle = buffer.handle()
    other = relive.attach(handle)
    del buffer
    gc.collect()
    assert not (Path("/dev/shm") / f"relive-{handle.name}").exists()
    with pytest.raises(relive.SnapshotError, match="found none"):
        relive.attach(handle)
    other.push([2.0], 1, 0.0, False, [3.0])
    assert len(other) == 2 and other.handle() == handle


def test_memory_of_full_rings_is_taken_at_once() -> None:
    schema = KINDS["column"].schema()
    buffer = relive.ReplayBuffer(1000, schema, storage=relive.SharedMemory())
    path = Path("/dev/shm") / f"relive-{buffer.handle().name}"
    full = relive.plan(schema, 1000).full_bytes
    taken = path.stat().st_blocks * 512
    assert full <= taken < full + (1 << 17)
    push_on(Author(KINDS["column"], None, np.random.default_rng(0)), buffer, Model(1000, 1), 50)
    assert path.stat().st_blocks * 512 - taken < 1 << 19  # final observations alone


class SharedBufferMachine(BufferMachine):
    """Every buffer lies in shared memory, and is used by turns through several attachments."""

    @initialize(
        kind=st.sampled_from(sorted(KINDS)),
        lanes=st.sampled_from([1, 2, 3]),
        depth=st.sampled_from([1, 2, 3, 5]),
        views=st.lists(st.sampled_from(VIEWS), min_size=1, max_size=3, unique=True),
    )
    def build(self, kind: str, lanes: int, depth: int, views: list[View]) -> None:
        """Make the buffers, and others of the same shape in shared memory instead."""
        super().build(kind, lanes, depth, views)
        self.readers = [
            (
                relive.ReplayBuffer(
                    buffer.capacity, buffer.schema, view=buffer.view, seed=place, storage=relive.SharedMemory()
                ),
                view,
            )
            for place, (buffer, view) in enumerate(self.readers)
        ]
        self.all = [[buffer] for buffer, _ in self.readers]

    @rule(which=st.integers(0, 3))
    def turn(self, which: int) -> None:
        """Another attachment is used from now on: a new one, or one that was idle meanwhile."""
        for place, attached in enumerate(self.all):
            if which >= len(attached):
                attached.append(relive.attach(attached[0].handle()))
            self.readers[place] = attached[min(which, len(attached) - 1)], self.readers[place][1]


class SharedSamplers(SamplerMachine):
    """The buffer lies in shared memory, its twin does not."""

    @initialize(
        kind=st.sampled_from(["vector", "frames", "dict", "stacked", "goal"]),
        lanes=st.integers(1, 3),
        depth=st.sampled_from([12, 5, 2]),
        data=st.data(),
        seed=SEEDS,
    )
    def build(self, kind: str, lanes: int, depth: int, data: st.DataObject, seed: int) -> None:
        """Make the buffer and its twin; it goes to shared memory by a snapshot."""
        super().build(kind, lanes, depth, data, seed)
        self.save_and_load(1)

    @rule(seed=SEEDS)
    def save_and_load(self, seed: int) -> None:
        """It is saved, and loaded into other memory."""
        self.saved_to += "'"
        self.buffers[0].save(self.saved_to, compression=[None, "zstd"][seed % 2])
        self.goes_on(lambda **axes: relive.load(self.saved_to, storage=relive.SharedMemory(), **axes))

    @rule()
    def attach(self) -> None:
        """Another attachment is used from now on; the one before is let go of, the owner's too."""
        handle = self.buffers[0].handle()
        self.owner = self.buffers[0]
        self.goes_on(lambda **axes: relive.attach(handle, **axes), keep=True)

    def goes_on(self, opened: Any, *, keep: bool = False) -> None:
        """One of the two becomes what `opened` makes of it; further readers are not kept."""
        from dataclasses import replace

        own = replace(self.readers[0], real=None)
        axes = {"view": self.buffers[0].view, "sampler": own.sampler if not isinstance(own.sampler, BuiltIn) else None}
        before = self.buffers[0]
        self.readers = []
        self.buffers[0] = opened(**axes)
        self.kept = [*getattr(self, "kept", []), before] if keep else []
        self.readers = [replace(own, real=self.buffers[0])]


class SharedPrioritized(SharedSamplers, PrioritizedMachine):
    """Priorities of transitions."""


class SharedSequences(SharedSamplers, SequencesMachine):
    """Priorities of sequences."""


class SharedOthers(SharedSamplers, OthersMachine):
    """All other samplers, and all views."""


def case(machine: Any, examples: int, steps: int, **options: Any) -> Any:
    test = type(machine.__name__, (machine,), {}).TestCase
    test.settings = settings(max_examples=examples, stateful_step_count=steps, **options)
    return test


TestBuffers = case(SharedBufferMachine, 20, 20)
TestPrioritized = case(SharedPrioritized, 8, 20)
TestSequences = case(SharedSequences, 8, 20)
TestOthers = case(SharedOthers, 10, 20)
TestBuffersSlow, TestPrioritizedSlow, TestSequencesSlow, TestOthersSlow = (
    pytest.mark.slow(case(machine, 300, 40, derandomize=False))
    for machine in (SharedBufferMachine, SharedPrioritized, SharedSequences, SharedOthers)
)


def test_readers_made_in_children_of_a_fork_are_other_readers() -> None:
    """Bug: every actor that a fork made draws the same batches."""
    buffer = marked.make(2, 50, storage=relive.SharedMemory(), seed=1)
    for step in range(40):
        buffer.push(**marked.transition(step, 0), lane=0)
    again = relive.attach(buffer.handle())

    def drawn(of: relive.ReplayBuffer) -> tuple[int, ...]:
        return tuple(of.reader(sampler=relive.Uniform()).sample(12).ids.tolist())

    seen = []
    for of in (buffer, buffer, again, again):
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(theirs, pickle.dumps([drawn(of), drawn(of)]))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        seen += pickle.loads(os.read(ours, 65536))
        os.close(ours)
        os.close(theirs)
    seen += [drawn(buffer), drawn(again)]
    assert len(set(seen)) == 10
    assert buffer._engine.board[0] == 5  # `again`, and four children, each of them once

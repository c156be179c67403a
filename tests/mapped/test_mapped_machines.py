"""The random programs of tests/buffer over files: a buffer that is closed and attached to again goes on as if nothing
had been.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import initialize, rule

import relive
from buffer.test_sampler_machine import SEEDS, OthersMachine, PrioritizedMachine, SamplerMachine, SequencesMachine
from buffer.test_state_machine import VIEWS, BufferMachine
from model.kinds import KINDS
from model.reference import View
from relive.samplers import BuiltIn

SHM = "/dev/shm" if Path("/dev/shm").is_dir() else None  # where a sync costs nothing


class MappedBufferMachine(BufferMachine):
    """Every buffer lies in a file."""

    @initialize(
        kind=st.sampled_from(sorted(KINDS)),
        lanes=st.sampled_from([1, 2, 3]),
        depth=st.sampled_from([1, 2, 3, 5]),
        views=st.lists(st.sampled_from(VIEWS), min_size=1, max_size=3, unique=True),
        sync=st.sampled_from([None, 2, 5]),
    )
    def build(self, kind: str, lanes: int, depth: int, views: list[View], sync: int | None) -> None:
        """Make the buffers, and others of the same shape in files instead."""
        super().build(kind, lanes, depth, views)
        self.root = Path(tempfile.mkdtemp(dir=SHM))
        self.readers = [
            (
                relive.ReplayBuffer(
                    buffer.capacity,
                    buffer.schema,
                    view=buffer.view,
                    seed=place,
                    storage=relive.Mmap(str(self.root / str(place)), sync),
                ),
                view,
            )
            for place, (buffer, view) in enumerate(self.readers)
        ]

    @rule(sync=st.sampled_from([None, 2, 5]))
    def close_and_attach(self, sync: int | None) -> None:
        """Nothing refers to the buffers any more; they are opened again."""
        views = [view for _, view in self.readers]
        self.readers = []
        self.readers = [(relive.attach(self.root / str(place), sync=sync), view) for place, view in enumerate(views)]

    def teardown(self) -> None:
        """Remove the files."""
        self.readers = []
        if hasattr(self, "root"):
            shutil.rmtree(self.root)


class MappedSamplers(SamplerMachine):
    """The buffer lies in a file, its twin does not."""

    @initialize(
        kind=st.sampled_from(["vector", "frames", "dict", "stacked", "goal"]),
        lanes=st.integers(1, 3),
        depth=st.sampled_from([12, 5, 2]),
        data=st.data(),
        seed=SEEDS,
    )
    def build(self, kind: str, lanes: int, depth: int, data: st.DataObject, seed: int) -> None:
        """Make the buffer and its twin; it goes to a file by a snapshot."""
        super().build(kind, lanes, depth, data, seed)
        self.save_and_load(1)

    @rule(seed=SEEDS)
    def save_and_load(self, seed: int) -> None:
        """It is saved, and loaded into another file."""
        self.saved_to += "'"  # who attached does not know what was saved before
        self.buffers[0].save(self.saved_to, compression=[None, "zstd"][seed % 2])
        path = tempfile.mkdtemp(dir=self.root)
        self.goes_on(lambda **axes: relive.load(self.saved_to, storage=relive.Mmap(path), **axes))

    @rule(seed=SEEDS)
    def close_and_attach(self, seed: int) -> None:
        """Nothing refers to the buffer any more; it is opened again. Nobody could tell, also of ranks."""
        path = self.buffers[0].storage.path
        self.goes_on(lambda **axes: relive.attach(path, sync=[None, 100][seed % 2], **axes))

    def goes_on(self, opened: Any) -> None:
        """One of the two becomes what `opened` makes of it; further readers are not kept."""
        own = replace(self.readers[0], real=None)
        axes = {"view": self.buffers[0].view, "sampler": own.sampler if not isinstance(own.sampler, BuiltIn) else None}
        self.readers, self.buffers[0] = [], None
        self.buffers[0] = opened(**axes)
        self.readers = [replace(own, real=self.buffers[0])]

    def teardown(self) -> None:
        """Remove the files."""
        self.readers, self.buffers = [], []
        super().teardown()


class MappedPrioritized(MappedSamplers, PrioritizedMachine):
    """Priorities of transitions."""


class MappedSequences(MappedSamplers, SequencesMachine):
    """Priorities of sequences."""


class MappedOthers(MappedSamplers, OthersMachine):
    """All other samplers, and all views."""


def case(machine: Any, examples: int, steps: int, **options: Any) -> Any:
    test = type(machine.__name__, (machine,), {}).TestCase
    test.settings = settings(max_examples=examples, stateful_step_count=steps, **options)
    return test


TestBuffers = case(MappedBufferMachine, 25, 20)
TestPrioritized = case(MappedPrioritized, 12, 25)
TestSequences = case(MappedSequences, 12, 25)
TestOthers = case(MappedOthers, 15, 25)
TestBuffersSlow, TestPrioritizedSlow, TestSequencesSlow, TestOthersSlow = (
    pytest.mark.slow(case(machine, 500, 50, derandomize=False))
    for machine in (MappedBufferMachine, MappedPrioritized, MappedSequences, MappedOthers)
)


def test_nothing_is_left_open() -> None:
    """A reference cycle would keep the files claimed until the collector runs, and attach would be refused."""
    gc.disable()
    try:
        root = Path(tempfile.mkdtemp(dir=SHM))
        buffer = relive.ReplayBuffer(10, storage=relive.Mmap(str(root / "a"), sync=4), sampler=relive.Prioritized())
        for step in range(30):
            buffer.push([float(step)], 1, 0.0, step % 4 == 0, [step + 1.0])
            buffer.sample(4, beta=1.0)
        reader = buffer.reader(view=relive.Sequences(2))
        reader.sample(2)
        del buffer, reader
        assert len(relive.attach(root / "a")) == 10
        shutil.rmtree(root)
    finally:
        gc.enable()

"""Processes that write to a file and are killed: what they completed is there, and nothing that is torn.

That every single store is survived is for cpp/tests/test_kill.cpp; here the whole of it runs, signal and all.
"""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relive
from mapped.mapped_programs import SHM, Author, Call, attempt, check_rows, kind_of, push_on, settle, stripped
from model.reference import Model
from relive.snapshot import read_manifest

S = relive.samplers
SETUPS = {
    "uniform": ("vector", 1, {}),
    "prioritized": ("vector", 3, {"sampler": relive.Prioritized(alpha=0.5)}),
    "columns": ("column", 2, {"sampler": relive.Prioritized(eps=0.0, normalize="buffer", max_uses=3)}),
    "trees": ("dict", 1, {"sampler": S.RankBased()}),
    "stacks": ("stacked_column", 2, {"sampler": relive.Shuffled(max_uses=2)}),
    "prefixes": ("stacked", 1, {"sampler": S.Recent(period=3), "view": relive.Transitions(3, 0.5)}),
    "frames": ("frames", 2, {"view": relive.Transitions(2, 0.5, stack=4)}),
    "sequences": ("vector", 2, {"sampler": relive.Prioritized(), "view": relive.Sequences(3)}),
    "episodes": ("discrete", 1, {"sampler": S.RankBased(), "view": relive.Sequences("episode")}),
}


@pytest.fixture
def root() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=SHM))
    yield path
    shutil.rmtree(path)


def run_and_kill(attach: Callable[[], Any], calls: list[Call], stop: int, delay: int) -> int:
    """A child attaches and makes the calls; it is killed after `stop` of them and a bit. How many it completed."""
    shared = mmap.mmap(-1, mmap.PAGESIZE)
    counts = np.frombuffer(shared, np.int64)
    child = os.fork()
    if child == 0:
        try:
            buffer = attach()
            counts[1] = 1
            for call in calls:
                attempt(call, buffer)
                counts[0] += 1
            counts[1] = 2
            signal.pause()
        except BaseException:
            traceback.print_exc()
            counts[1] = 3
        finally:
            os._exit(1)
    while counts[1] < 2 and counts[0] < stop:
        pass
    for _ in range(delay):
        pass
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child failed"
    return int(counts[0])


@dataclass
class Chain:
    """One buffer that is killed again and again, and what is known of it."""

    setup: str
    root: Path
    seed: int
    torn: int = 0  # kills in the midst of a push
    model: Model = field(init=False)
    initial: float = 1.0

    def __post_init__(self) -> None:
        name, lanes, self.axes = SETUPS[self.setup]
        self.kind, self.rng = kind_of(name), np.random.default_rng(self.seed)
        self.author = Author(self.kind, self.axes.get("sampler"), self.rng)
        depth = int(self.rng.integers(6, 12))
        self.model = Model(depth * lanes, lanes)
        storage = self.storage()
        buffer = relive.ReplayBuffer(depth * lanes, self.kind.schema(lanes), storage=storage, seed=3, **self.axes)
        push_on(self.author, buffer, self.model, 20)
        buffer.save(self.root / "twin")
        self.keep(buffer)

    def storage(self) -> Any:
        return relive.Mmap(str(self.root / "buffer"))

    def keep(self, buffer: Any) -> None:
        """What of the buffer outlives its maker: here its file."""

    def attach(self, sync: int | None = None) -> Any:
        return relive.attach(self.root / "buffer", sync=sync)

    def attach_in_child(self, sync: int | None) -> Callable[[], Any]:
        return lambda: self.attach(sync)

    def kill(self) -> None:
        """One child more; then everything is as the model says, and goes on."""
        twin = relive.load(self.root / "twin")
        known = stripped(self.model)
        calls = self.author.write(stripped(known), 40)
        stop, delay = int(self.rng.integers(0, 40)), int(self.rng.integers(0, 300))
        sync = int(self.rng.integers(2, 9)) if self.rng.random() < 0.3 and SHM else None
        done = run_and_kill(self.attach_in_child(sync), calls, stop, delay)
        for call in calls[:done]:
            attempt(call, twin)
            call.tell(known)
        coming = calls[done] if done < len(calls) else None
        buffer = self.attach()
        self.model = self.check_contents(buffer, known, coming)
        self.check_selector(buffer, twin, coming)
        settle(buffer, self.model)
        push_on(self.author, buffer, self.model, 15)
        assert buffer.ids.tolist() == self.model.ids
        check_rows(buffer, self.model, self.model.ids, buffer.view.stack)
        shutil.rmtree(self.root / "twin")
        buffer.save(self.root / "twin")

    def check_contents(self, buffer: Any, before: Model, coming: Call | None) -> Model:
        """The state after all completed calls and the first parts of the one that was cut short. Which, is returned."""
        live = buffer.ids.tolist()
        candidate = stripped(before)
        parts = coming.parts if coming else []
        for part in [*parts, None]:
            missing = sorted(set(candidate.ids) - set(live))
            early = []
            if part is not None:
                after = stripped(candidate)
                part(after)
                early = sorted(set(candidate.ids) - set(after.ids))
            if not set(live) - set(candidate.ids) and missing in ([], early[:1]):
                try:
                    check_rows(buffer, candidate, live, buffer.view.stack)
                except AssertionError:
                    if part is None:
                        raise
                else:
                    self.torn += bool(missing) or len(candidate.ids) != len(before.ids)
                    return candidate
            if part is not None:
                part(candidate)
        raise AssertionError(f"{coming}: {live} live, before it {before.ids}")

    def check_selector(self, buffer: Any, twin: Any, coming: Call | None) -> None:
        """What was drawn and updated before is there: masses are those of the twin before or after the last call."""
        before, initial = self.masses(twin, "before"), self.initial
        draws = [twin._reading.draws]
        if coming:
            attempt(coming, twin)
            draws.append(twin._reading.draws)
        after = self.masses(twin, "after")
        assert buffer._reading.draws in draws
        fresh = {mass for identity, mass in after.items() if identity not in before}
        for identity, mass in self.masses(buffer, "found").items():
            near = {known[identity] for known in (before, after) if identity in known}
            if isinstance(buffer.view, relive.Sequences):
                # A part of a block is there, or the first step is not any more. Such a part may make an anchor of a
                # step that was none before the block, or not there, and is gone after it.
                near |= {-1.0, initial} if not near or -1.0 in near else {-1.0}
            assert mass in (near or fresh), f"{identity}: {mass}, not one of {near or fresh}"

    def masses(self, buffer: Any, name: str) -> dict[int, float]:
        """What each live transition is drawn by, from a snapshot; `initial` is what a new one would be."""
        path = self.root / name
        buffer.save(path)
        self.initial = float(read_manifest(path).selector["largest"])
        files = list(path.glob("*-masses.npy"))
        values = np.load(files[0]).tolist() if files else [0.0] * len(buffer)
        shutil.rmtree(path)
        lanes = buffer.lanes
        return dict(zip(sorted(buffer.ids.tolist(), key=lambda i: (i % lanes, i // lanes)), values, strict=True))


@pytest.mark.parametrize("setup", SETUPS)
def test_kills(setup: str, root: Path) -> None:
    chain = Chain(setup, root, seed=1)
    for _ in range(30):
        chain.kill()


@pytest.mark.slow
@pytest.mark.parametrize("setup", SETUPS)
def test_many_kills(setup: str, root: Path) -> None:
    torn = 0
    for seed in range(10):
        chain = Chain(setup, root / str(seed), seed=100 + seed)
        for _ in range(60):
            chain.kill()
        torn += chain.torn
    assert torn, "no kill hit a push"

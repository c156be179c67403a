"""Buffers of every kind whose every value is a function of its id, and digests of all that a snapshot must keep."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import relive
from model.kinds import fill
from model.reference import leaves, map_tree
from relive.samplers import BuiltIn, RankBased
from relive.strips import VALUES, parts_of

Field = relive.Field
_DEPTH = 4  # frames of a stack


def ended(time: int) -> str:
    """How the transition of this time ends its episode; "cut" is a discontinuity, which no flag tells."""
    return {6: "terminated", 17: "truncated", 24: "cut", 25: "both"}.get(time % 29, "")


def start_of(time: int) -> int:
    """The time at which this transition's episode started."""
    while time > 0 and not ended(time - 1):
        time -= 1
    return time


@dataclass(frozen=True, eq=False)
class World:
    """A kind of buffer. `push` gives lanes their next transitions; `check` compares every value there is."""

    name: str
    obs: Any
    action: Any = field(default_factory=lambda: Field("int64", (), 0, 96))
    extras: dict[str, Field] = field(default_factory=dict)
    lanes: int = 1
    capacity: int = 40
    stacked: int = 1
    sampler: BuiltIn = field(default_factory=relive.Uniform)
    view: Any = field(default_factory=relive.Transitions)
    compression: Any = None

    def make(self, **options: Any) -> relive.ReplayBuffer:
        """An empty one."""
        given = {"sampler": self.sampler, "view": self.view, "seed": 11, **options}
        capacity = given.pop("capacity", self.capacity)
        return relive.ReplayBuffer(capacity, self.schema(), **given)

    def schema(self) -> relive.Schema:
        """Of its transitions."""
        obs = self.obs
        if self.stacked > 1:
            obs = map_tree(lambda leaf: Field(leaf.dtype, (self.stacked, *leaf.shape)), obs)
        return relive.Schema(obs, self.action, self.extras, stacked=self.stacked, lanes=self.lanes)

    def _frame(self, number: int) -> Any:
        return fill(self.obs, 3 + number % 10_007)

    def _stack(self, lane: int, time: int, newest: Any) -> Any:
        """The observation of a time, given its newest frame."""
        if self.stacked == 1:
            return newest
        start = start_of(time)
        first = self._frame(start * self.lanes + lane)
        frames = []
        for at in range(time - self.stacked + 1, time):
            if at >= start:
                frames.append(self._frame(at * self.lanes + lane))
            elif start % 3 == 0:
                frames.append(first)
            elif start % 3 == 1:
                frames.append(map_tree(np.zeros_like, newest))
            else:
                frames.append(self._frame(5_000 + at * self.lanes + lane))
        return map_tree(lambda *rows: np.stack(rows), *frames, newest)

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - worlds live as long as the tests
    def transition(self, identity: int) -> dict[str, Any]:
        """Every field of a transition."""
        time, lane = divmod(identity, self.lanes)
        how = ended(time)
        obs = self._stack(lane, time, self._frame(identity))
        newest = self._frame(identity + self.lanes if not how else 7_000 + identity)
        if self.stacked > 1:
            next_obs = map_tree(lambda stack, frame: np.stack([*stack[1:], frame]), obs, newest)
        else:
            next_obs = newest
        return {
            "obs": obs,
            "action": fill(self.action, identity % 10_007),
            "reward": np.float32(identity % 4096 + 0.25),
            "terminated": how in ("terminated", "both"),
            "next_obs": next_obs,
            "truncated": how in ("truncated", "both"),
            **{name: fill(extra, 5 + identity % 10_007) for name, extra in self.extras.items()},
        }

    def push(self, buffer: relive.ReplayBuffer, times: list[int], lane: int) -> int:
        """The lane's next transition."""
        identity = times[lane] * self.lanes + lane
        times[lane] += 1
        got = buffer.push(**self.transition(identity), lane=lane)
        assert got == identity
        return identity

    def drive(self, buffer: relive.ReplayBuffer, times: list[int], rng: np.random.Generator, count: int) -> None:
        """Pushes to random lanes; now and then a batch is drawn, and its priorities are told."""
        for _ in range(count):
            self.push(buffer, times, int(rng.integers(self.lanes)))
            if rng.random() < 0.2:
                self.draw(buffer, rng)

    def draw(self, buffer: relive.ReplayBuffer, rng: np.random.Generator) -> Any:
        """A batch, if there is one."""
        try:
            batch = buffer.sample(3)
        except relive.NotEnoughDataError:
            return None
        if isinstance(self.sampler, relive.Prioritized | RankBased):
            buffer.update_priorities(batch.ids, rng.random(3) * 4)
        return batch

    def check(self, buffer: relive.ReplayBuffer) -> None:
        """Fail unless every value of every live transition is right."""
        ids = buffer.ids
        if not len(ids):
            return
        batch = buffer.reader(view=relive.Transitions(), sampler=relive.Uniform()).get(ids)
        rows = [self.transition(identity) for identity in ids.tolist()]
        for name in rows[0]:
            got = leaves(getattr(batch, name))
            want = leaves(map_tree(lambda *parts: np.stack(parts), *(row[name] for row in rows)))
            for g, w in zip(got, want, strict=True):
                assert g.tobytes() == w.astype(g.dtype).tobytes(), f"{self.name}: {name} of {ids}"

    def save(self, buffer: relive.ReplayBuffer, path: Any, times: list[int], **options: Any) -> int:
        """Saves, with the times of the lanes as the note."""
        return buffer.save(path, note=times, compression=self.compression, **options)


_DICT = {"image": Field("uint8", (5, 5)), "pose": (Field("float64", (2,)), Field("bool"))}
WORLDS = {
    world.name: world
    for world in (
        World("plain", Field("float32", (3,)), lanes=2),
        World("prioritized", Field("float32", (3,)), sampler=relive.Prioritized(), view=relive.Transitions(n=3)),
        World("ranked", Field("int16", (2,)), lanes=2, sampler=RankBased(normalize="buffer"), capacity=32),
        World("max_uses", Field("float32", (2,)), lanes=2, sampler=relive.Prioritized(max_uses=2)),
        World("shuffled", Field("float32", (2,)), lanes=3, sampler=relive.Shuffled(max_uses=3), capacity=39),
        World("stacked", Field("uint8", (3, 2)), lanes=2, stacked=_DEPTH, sampler=relive.Prioritized()),
        World(
            "columns",
            Field("uint8", (23, 23)),
            extras={"big": Field("float32", (150,))},
            lanes=2,
            capacity=16,
            view=relive.Transitions(stack=3),
        ),
        World("stacked_columns", Field("uint8", (23, 23)), stacked=3, capacity=12),
        World(
            "sequences",
            _DICT,
            {"move": Field("int64", (), 0, 4), "force": (Field("float32", (2,)),)},
            {"logp": Field("float32")},
            sampler=relive.Prioritized(newest=1),
            view=relive.Sequences(4, burn_in=1),
        ),
        World("compressed", Field("float32", (3,)), lanes=2, sampler=relive.Prioritized(), compression="zstd"),
        World("compressed_columns", Field("uint8", (23, 23)), capacity=12, compression="zstd"),
    )
}


def state_of(buffer: relive.ReplayBuffer) -> dict[str, Any]:
    """All that a snapshot must keep, as the native core has it."""
    core, native, lanes = buffer._engine.core, buffer._engine.reading.native, buffer.lanes
    parts = parts_of(core, buffer.schema)
    room = buffer.capacity + lanes * 8
    arrays = (np.zeros(lanes, np.uint64), room, parts.allocate(room), parts.allocate(2 * lanes))
    state, epochs = np.zeros((lanes, 4), np.uint64), np.zeros((lanes, 2), np.uint64)
    values = tuple(
        np.zeros(buffer.capacity, dtype) if kept else None
        for kept, (_, dtype) in zip(native.keeps(), VALUES, strict=True)
    )
    cut = native.cut(*arrays, state, epochs, values, False)
    assert cut is not None
    live = len(buffer)
    return {
        "repr": repr(buffer),
        "ids": buffer.ids.tolist(),
        "lanes": state.tolist(),
        "epochs": epochs.tolist(),
        "selector": cut[2],
        "values": [None if value is None else value[:live].tobytes() for value in values],
        "rows": [leaf.tobytes() for leaf in _read(buffer)],
    }


def _read(buffer: relive.ReplayBuffer) -> list[Any]:
    if not len(buffer):
        return []
    batch = buffer.get(buffer.ids)
    return [leaf for name in vars(batch) for leaf in leaves(getattr(batch, name)) if isinstance(leaf, np.ndarray)]


def digest(buffer: relive.ReplayBuffer) -> str:
    """Of the whole state; a buffer read back must have the same."""
    return hashlib.sha256(repr(state_of(buffer)).encode()).hexdigest()


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a directory."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def write(directory: Path, files: dict[str, bytes]) -> None:
    """Makes a directory hold these files and nothing else."""
    directory.mkdir(exist_ok=True, parents=True)
    for path in directory.iterdir():
        if path.name not in files:
            path.unlink()
    for name, data in files.items():
        (directory / name).write_bytes(data)

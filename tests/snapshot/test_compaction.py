"""Segments that stay and rows that are written anew: nothing lost, nothing twice, few files, little that is dead."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import relive
from relive.compaction import Run, count, make_plan
from relive.snapshot import Segment, read_manifest


class Directory:
    """Segments as saves leave them, without any file."""

    def __init__(self, lanes: int, capacity: int, largest: int, most: int) -> None:
        self.heads = [0] * lanes
        self.capacity, self.largest, self.most = capacity, largest, most
        self.segments: list[Segment] = []
        self.lost: set[Segment] = set()
        self.written = 0

    @property
    def first(self) -> list[int]:
        return [max(0, head - self.capacity) for head in self.heads]

    def write(self, runs: list[Run]) -> list[Segment]:
        """In segments no larger than allowed; a gap in a lane would be read as damage."""
        made: list[list[Run]] = [[]]
        for lane, begin, end in runs:
            while begin < end:
                room = self.largest - count(made[-1])
                made[-1].append((lane, begin, min(end, begin + room)))
                begin = made[-1][-1][2]
                if count(made[-1]) == self.largest:
                    made.append([])
        before, self.written = self.written, self.written + count(runs)
        return [Segment(tuple(runs), (count(runs), before, i), ()) for i, runs in enumerate(made) if runs]  # all differ

    def save(self, pushed: list[int]) -> None:
        done = list(self.heads)
        self.heads = [head + more for head, more in zip(self.heads, pushed, strict=True)]
        num_new = sum(head - max(upto, first) for head, upto, first in zip(self.heads, done, self.first, strict=True))
        plan = make_plan(
            self.segments,
            self.first,
            num_new,
            largest=self.largest,
            most=self.most,
            is_whole=lambda segment: segment not in self.lost,
        )
        kept = []
        for stay in plan.stays:
            kept += [stay.segment] if stay.segment else self.write(list(stay.runs))
        for lane, begin, _ in plan.taken_back:
            done[lane] = min(done[lane], begin)
        new = [(lane, max(done[lane], first), self.heads[lane]) for lane, first in enumerate(self.first)]
        self.segments = kept + self.write([run for run in new if run[1] < run[2]])
        assert not self.lost & set(self.segments)

    def check(self) -> None:
        """What is loaded: of each lane all that is needed, in order, nothing twice; as `restoring` reads it."""
        times = self.first
        for segment in self.segments:
            for lane, begin, end in segment.runs:
                skipped = min(max(times[lane] - begin, 0), end - begin)
                if skipped < end - begin:
                    assert begin + skipped == times[lane]
                    times[lane] = end
        assert times == self.heads


@settings(deadline=None, max_examples=150)
@given(
    st.integers(1, 4),
    st.integers(1, 60),
    st.integers(1, 40),
    st.integers(2, 8),
    st.lists(st.tuples(st.lists(st.integers(0, 30), min_size=4, max_size=4), st.integers(0, 9)), max_size=40),
)
def test_every_row_that_is_needed_is_there_once(
    lanes: int, capacity: int, largest: int, most: int, saves: list[tuple[list[int], int]]
) -> None:
    directory = Directory(lanes, capacity, largest, most)
    for pushed, lost in saves:
        if lost < len(directory.segments):
            directory.lost.add(directory.segments[lost])
        directory.save(pushed[:lanes])
        directory.check()


@pytest.mark.parametrize("pushed", [[3, 3], [150, 1], [1, 0], [40, 7], [1, 300]])
def test_files_and_dead_rows_are_bounded(pushed: list[int]) -> None:
    """Would catch: a segment that lives as long as one row of a slow lane does, with all that is dead in it."""
    directory = Directory(2, 2_000, 4_000 // 16, 64)
    longest = waste = 0
    for _ in range(3_000):
        directory.save(pushed)
        live = sum(head - first for head, first in zip(directory.heads, directory.first, strict=True))
        kept = sum(segment.extent[0] for segment in directory.segments)
        waste = max(waste, kept - 2 * live - 2 * directory.largest)
        longest = max(longest, len(directory.segments))
    directory.check()
    assert waste <= 0
    assert longest <= 64 + 32
    assert directory.written <= 8 * sum(directory.heads)  # each row a few times in its life


def fill(buffer: relive.ReplayBuffer, lane: int, times: list[int], number: int) -> None:
    step = np.arange(times[lane], times[lane] + number + 1, dtype=np.float32)
    obs = np.stack([step, np.full_like(step, lane)], 1)
    flags = np.zeros(number, bool)
    buffer.extend(obs[:-1], flags.astype(np.int64), step[:-1], flags, obs[1:], lane=lane)
    times[lane] += number


def assert_same(one: relive.ReplayBuffer, other: relive.ReplayBuffer) -> None:
    assert one.ids.tolist() == other.ids.tolist()
    for a, b in zip(one.get(one.ids), other.get(other.ids), strict=True):
        np.testing.assert_array_equal(a, b)


def test_lanes_of_unequal_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    schema = relive.Schema(relive.Field("float32", (2,)), relive.Field("int64"), lanes=2)
    buffer, times = relive.ReplayBuffer(1_000, schema, seed=0), [0, 0]
    for _ in range(120):
        fill(buffer, 0, times, 130)
        fill(buffer, 1, times, 1)
        buffer.save(tmp_path)
    manifest = read_manifest(tmp_path)
    assert sum(segment.extent[0] for segment in manifest.segments) <= 2 * len(buffer) + 2_000
    assert len(manifest.segments) <= 96
    assert_same(relive.load(tmp_path), buffer)


@pytest.mark.parametrize("harm", ["removed", "cut", "longer"])
@pytest.mark.parametrize("which", range(3))
def test_files_that_are_gone_are_written_again(harm: str, which: int, tmp_path: Path) -> None:
    """Would catch: a training that saves for days what nobody can load, because of one file of the first save."""
    schema = relive.Schema(relive.Field("float32", (2,)), relive.Field("int64"))
    buffer, times = relive.ReplayBuffer(1_000, schema, sampler=relive.Prioritized(), seed=0), [0]
    for number in (100, 50, 20):
        fill(buffer, 0, times, number)
        buffer.save(tmp_path)
    manifest = read_manifest(tmp_path)
    spoilt = [manifest.segments[0].files[0], manifest.segments[1].files[0], manifest.values[0]][which]
    assert spoilt is not None
    path = tmp_path / spoilt.name
    match harm:
        case "removed":
            path.unlink()
        case "cut":
            os.truncate(path, 100)
        case "longer":
            path.write_bytes(path.read_bytes() + b"\0")
    buffer.save(tmp_path)  # nothing new
    assert_same(relive.load(tmp_path), buffer)
    fill(buffer, 0, times, 7)
    buffer.save(tmp_path)
    relive.snapshot.verify(tmp_path)
    assert_same(relive.load(tmp_path), buffer)


def test_overwriting_heals_what_only_checksums_find(tmp_path: Path) -> None:
    schema = relive.Schema(relive.Field("float32", (2,)), relive.Field("int64"))
    buffer, times = relive.ReplayBuffer(1_000, schema, seed=0), [0]
    fill(buffer, 0, times, 100)
    buffer.save(tmp_path)
    path = tmp_path / "000001-records.npy"
    path.write_bytes(bytes(path.stat().st_size))
    buffer.save(tmp_path)
    with pytest.raises(relive.SnapshotError, match=r"000001-records\.npy"):
        relive.load(tmp_path)
    buffer.save(tmp_path, overwrite=True)
    assert_same(relive.load(tmp_path), buffer)

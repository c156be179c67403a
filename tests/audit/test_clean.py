"""Right data pass, however they are recorded, cut and stored."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gymnasium
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from recordings import Rooms, Row, record, record_tree, schema_of, source

import relive
from relive.audit import check
from relive.interop.source import Block, Source


def assert_clean(data: Source) -> None:
    """Nothing is found at all."""
    report = check(data)
    assert not report.findings, str(report)
    assert report.passes
    assert report.num_transitions == data.num_transitions


@pytest.mark.parametrize(
    "name", ["CartPole-v1", "MountainCar-v0", "Acrobot-v1", "Pendulum-v1", "FrozenLake-v1", "Taxi-v4"]
)
@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_random_play(name, cut):
    env = gymnasium.make(name)
    rows = [(np.asarray(row[0]), *row[1:5], np.asarray(row[5])) for row in record(env, 1500)]
    assert_clean(source(schema_of(env), [rows], cut))


def test_lanes_of_different_lengths():
    env = gymnasium.make("CartPole-v1")
    lanes = [record(env, steps, seed=steps) for steps in (900, 1, 300, 0)]
    assert_clean(source(schema_of(env), lanes, 64))


@pytest.mark.parametrize("cut", [1, 200])
def test_frames_numbers_and_tuples(cut):
    assert_clean(source(schema_of(Rooms()), [record_tree(Rooms(), 800, seed) for seed in (0, 1)], cut))


def test_frames_larger_than_a_chunk():
    """Chunks of a few transitions only."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (61, 300, 300, 3), np.uint8)
    rows = [(frames[t], np.int64(0), 0.0, t == 30, False, frames[60] if t == 30 else frames[t + 1]) for t in range(59)]
    assert_clean(source(relive.Schema(relive.Field("uint8", (300, 300, 3)), relive.Field("int64")), [rows], 1000))


@pytest.mark.parametrize(("lanes", "count"), [(1, 100), (1, 7), (100, 7)])
def test_memory_is_bounded(monkeypatch, lanes, count):
    """Few large blocks, many small ones, many lanes by turns: never much more than what chunks may take."""
    monkeypatch.setattr("relive.audit.rows.CHUNK_BYTES", 2**20)
    monkeypatch.setattr("relive.audit.rows.PENDING_BYTES", 2**22)
    frames = np.random.default_rng(0).integers(0, 256, (count + 1, 40, 40), np.uint8)
    zeros = np.zeros(count, np.float32)
    flags = np.zeros(count, np.bool_)
    block = Block(frames[:-1], zeros.astype(np.int64), zeros, flags, flags, frames[1:])
    num_blocks = 14_000 // count

    def read() -> Iterator[Block]:
        for number in range(num_blocks):
            yield replace(block, obs=block.obs.copy(), next_obs=block.next_obs.copy(), lane=number % lanes)

    schema = relive.Schema(relive.Field("uint8", (40, 40)), relive.Field("int64"))
    data = source(schema, [], read=read, lanes=lanes, num_transitions=num_blocks * count)
    tracemalloc.start()
    check(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6, f"{peak / 1e6:.0f} MB for 45 MB of data"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_hardly_anything(count):
    rows = record(gymnasium.make("CartPole-v1"), count)
    assert_clean(source(schema_of(gymnasium.make("CartPole-v1")), [rows], 1000))


def test_observations_of_no_elements():
    rows: list[Row] = [(np.empty(0, np.float32), np.int64(0), 1.0, t % 9 == 8, False, np.empty(0)) for t in range(99)]
    rows = [(*row[:5], np.empty(0, np.float32)) for row in rows]
    report = check(source(relive.Schema(relive.Field("float32", (0,)), relive.Field("int64")), [rows]))
    assert report.passes


@st.composite
def programs(draw: st.DrawFn) -> list[list[Row]]:
    """Lanes of episodes with true final observations: few states or many, any flags, any lengths, gaps."""
    states = draw(st.sampled_from([3, 50, 10**9]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lanes = []
    for _ in range(draw(st.integers(1, 3))):
        rows: list[Row] = []
        for _ in range(draw(st.integers(0, 40))):
            length = draw(st.integers(1, 12))
            end = draw(st.sampled_from(["terminated", "truncated", "both", "gap"]))
            places = rng.integers(0, states, length + 1).astype(np.float64)
            for t in range(length):
                last = t == length - 1
                flags = last and end in ("terminated", "both"), last and end in ("truncated", "both")
                rows.append((places[t], np.int64(t % 2), float(rng.integers(-1, 2)), *flags, places[t + 1]))
        lanes.append(rows)
    return lanes


@given(programs(), st.integers(1, 50))
@settings(max_examples=150)
def test_right_data_never_give_an_error(lanes: list[list[Row]], cut: int) -> None:
    """Warnings may come: where states are few transitions repeat, ends and starts coincide; and gaps are gaps."""
    schema = relive.Schema(relive.Field("float64"), relive.Field("int64", (), 0, 1))
    report = check(source(schema, lanes, cut))
    assert report.passes, str(report)


@given(programs(), st.integers(1, 50), st.integers(1, 50))
@settings(max_examples=60)
def test_the_cut_into_blocks_changes_nothing(lanes: list[list[Row]], one: int, other: int) -> None:
    """A finding at the seam of two blocks is neither lost nor found twice."""
    schema = relive.Schema(relive.Field("float64"), relive.Field("int64", (), 0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("relive.audit.rows.CHUNK_ROWS", one)
        cut = check(source(schema, lanes, other))
    whole = check(source(schema, lanes))
    assert told(cut) == told(whole)


def told(report: Any) -> Any:
    """What a report says, but for the first of several places that differ by lane."""
    findings = [(finding.rule, finding.severity, finding.count, finding.words) for finding in report.findings]
    return findings, [check.words for check in report.checks]

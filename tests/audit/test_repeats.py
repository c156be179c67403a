"""Counting what is there more than once: as a set would, in bounded memory."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import given
from numpy.typing import NDArray

import relive
from relive.audit.repeats import Repeats
from relive.audit.report import Place
from relive.audit.rows import Rows, rows_of
from relive.interop.source import Block

SCHEMA = relive.Schema(relive.Field("float32", (2,)), relive.Field("int8"))


def rows(columns: NDArray[np.int64], lane: int = 0, start: int = 0) -> Rows:
    """Transitions out of whole numbers [T, 8]: obs, action, reward, flags, next_obs."""
    block = Block(
        columns[:, :2].astype(np.float32),
        columns[:, 2].astype(np.int8),
        columns[:, 3].astype(np.float32),
        columns[:, 4] > 0,
        columns[:, 5] > 0,
        columns[:, 6:].astype(np.float32),
        lane=lane,
    )
    return rows_of(SCHEMA, lane, start, block)


@given(st.lists(st.lists(st.integers(0, 1), min_size=8, max_size=8), min_size=1, max_size=60), st.integers(1, 60))
def test_as_many_as_a_set_finds(table: list[list[int]], cut: int) -> None:
    """Two that differ in a single field, or have the same numbers in another order, are two."""
    counts = Repeats(SCHEMA)
    columns = np.array(table)
    for start in range(0, len(table), cut):
        counts.see(rows(columns[start : start + cut], start=start))
    count, kept, first = counts.count()
    seen: set[tuple[int, ...]] = set()
    expected = None
    for t, row in enumerate(map(tuple, table)):
        if row in seen and expected is None:
            expected = Place(0, t)
        seen.add(row)
    assert (count, kept, first) == (len(table) - len(seen), len(table), expected)


def test_every_bit_counts():
    """The sign of a zero and the highest bit of a number are bytes like any other."""
    columns = np.zeros((3, 8), np.int64)
    one = rows(columns)
    one.block.obs[1, 1] = -0.0
    one.block.next_obs[2, 0] = -0.0
    counts = Repeats(SCHEMA)
    counts.see(rows_of(SCHEMA, 0, 0, one.block))
    assert counts.count()[0] == 0


def test_of_many_a_fair_sample_is_kept():
    """All copies of a transition are kept or none: the share of those that repeat stays what it is."""
    columns = np.random.default_rng(0).integers(0, 2**20, (40_000, 8))
    counts = Repeats(SCHEMA, most_keys=5000)
    for lane, start in ((0, 0), (1, 20_000)):
        counts.see(rows(columns[start : start + 20_000], lane))
        counts.see(rows(columns[start : start + 10_000], lane, 20_000))
    count, kept, first = counts.count()
    assert 2500 < kept <= 5000
    assert abs(count / kept - 1 / 3) < 0.03
    assert first is not None
    assert first.lane == 0
    assert first.index >= 20_000
    (found,) = counts.findings(0)
    assert "(a sample of 1 in 16 of 60,000)" in found.words

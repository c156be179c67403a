"""Every kind of buffer is saved, again and again, and is read back whole."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from snapshot_worlds import WORLDS, digest

import relive
from relive.snapshot import read_manifest


@pytest.mark.parametrize("name", WORLDS)
def test_every_save_is_read_back(name: str, tmp_path: Path) -> None:
    """Would catch: rows, final observations, prefixes or values of a segment that belong to another row."""
    world = WORLDS[name]
    rng = np.random.default_rng(1)
    buffer, times = world.make(), [0] * world.lanes
    for step, count in enumerate([0, 1, 5, 0, 23, 1, 60, 2, 2, 2, 90]):
        world.drive(buffer, times, rng, count)
        world.save(buffer, tmp_path / "a", times)
        loaded = relive.load(tmp_path / "a")
        assert digest(loaded) == digest(buffer), f"step {step}"
        world.check(loaded)
        assert relive.snapshot.read_note(tmp_path / "a") == times
        relive.snapshot.verify(tmp_path / "a")
        if step % 3 == 2:
            buffer = loaded
        if step == 8:
            buffer.clear()


@pytest.mark.parametrize("name", ["plain", "stacked", "columns"])
def test_small_segments_become_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: rows lost or doubled where segments are written anew as one; a directory that grows for ever."""
    monkeypatch.setattr("relive.saving.SEGMENTS", 4)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    world, rng = WORLDS[name], np.random.default_rng(2)
    buffer, times = world.make(capacity=60 * world.lanes), [0] * world.lanes
    numbers = []
    for save in range(60):
        world.drive(buffer, times, rng, 1 + save % 3)
        world.save(buffer, tmp_path, times)
        loaded = relive.load(tmp_path)
        assert digest(loaded) == digest(buffer), f"save {save}"
        world.check(loaded)
        numbers.append(len(read_manifest(tmp_path).segments))
        if save % 7 == 6:
            buffer = loaded
    assert max(numbers) <= 12
    assert any(after < before for before, after in pairwise(numbers)), "none was absorbed"


def test_segments_that_become_ever_smaller_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: only segments no larger than what is new taken back, which is none of these."""
    monkeypatch.setattr("relive.saving.SEGMENTS", 4)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    world, rng = WORLDS["plain"], np.random.default_rng(3)
    buffer, times = world.make(capacity=2_000 * world.lanes), [0] * world.lanes
    for count in range(40, 0, -1):
        world.drive(buffer, times, rng, count)
        world.save(buffer, tmp_path, times)
        assert len(read_manifest(tmp_path).segments) <= 8
    assert digest(relive.load(tmp_path)) == digest(buffer)

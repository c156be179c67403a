"""Every kind of buffer is saved, again and again, and is read back whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from snapshot_worlds import WORLDS, digest

import relive


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

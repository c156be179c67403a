"""Snapshots that earlier versions wrote, kept as they were: each must load with what it held, for ever.

A new version of the format gets a directory of its own beside `version_1`; what is there is never written again. It was
made by `python tests/compat/test_frozen_snapshots.py tests/compat/version_N`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relive

HERE = Path(__file__).parent
KINDS = sorted(path.parent for path in HERE.glob("version_*/*/manifest.json"))


def described(buffer: relive.ReplayBuffer) -> dict[str, Any]:
    """All that a buffer shows: numbers as they are, arrays as checksums. Draws from it."""
    ids = buffer.ids
    every = buffer.reader(view=relive.Transitions(), sampler=relive.Uniform(), seed=0).get(ids)
    batches = [buffer.sample(5, beta=0.5) for _ in range(3)]
    return {
        "buffer": repr(buffer),
        "schema": json.loads(json.dumps(buffer.schema.to_dict())),
        "ids": ids.tolist(),
        "anchors": buffer.anchors.tolist(),
        "reward": every.reward.tolist(),
        "fields": {name: _sums(getattr(every, name)) for name in sorted(vars(every))},
        "drawn": [batch.ids.tolist() for batch in batches],
        "weights": [[float(weight) for weight in batch.weight.ravel()] for batch in batches],
        "batches": [_sums(batch.obs) for batch in batches],
    }


def _sums(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sums(child) for key, child in value.items()}
    if isinstance(value, tuple):
        return [_sums(child) for child in value]
    return f"{value.dtype.str} {list(value.shape)} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"


@pytest.mark.parametrize("directory", KINDS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_frozen_snapshots_load_for_ever(directory: Path, tmp_path: Path) -> None:
    """Would catch: a format, a layout, a generator that changed without a new version."""
    frozen = directory / "manifest.json"
    before = frozen.read_bytes()
    expected = json.loads((directory / "expected.json").read_text())
    relive.snapshot.verify(directory)
    got = json.loads(json.dumps(described(relive.load(directory))))
    assert got.keys() == expected.keys()
    for name in expected:
        if name == "weights":
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-6)
        else:
            assert got[name] == expected[name], name
    assert relive.snapshot.read_note(directory) == {"kind": directory.name}
    assert frozen.read_bytes() == before, "it was not written to"
    shutil.copytree(directory, tmp_path / "copy")
    going_on = relive.load(tmp_path / "copy")
    going_on.end_episodes()
    going_on.save(tmp_path / "copy")
    assert relive.load(tmp_path / "copy").ids.tolist() == expected["ids"]


def test_there_is_one_of_each_kind() -> None:
    """Would catch: frozen files that were lost."""
    kinds = {path.name for path in KINDS if path.parent.name == "version_1"}
    assert kinds >= {"plain", "prioritized", "ranked", "max_uses", "shuffled", "stacked", "columns", "sequences"}
    assert "compressed" in kinds


def _make(to: Path) -> None:
    sys.path[:0] = [str(HERE.parent), str(HERE.parent / "snapshot")]
    from snapshot_worlds import WORLDS

    for name, world in WORLDS.items():
        assert not (to / name).exists(), "what is frozen stays"
        rng = np.random.default_rng(7)
        buffer, times = world.make(capacity=4 * world.lanes * (2 if "column" in name else 4)), [0] * world.lanes
        for count in (5, 17, 6):
            world.drive(buffer, times, rng, count * world.lanes)
            buffer.save(to / name, note={"kind": name}, compression=world.compression)
        (to / name / "expected.json").write_text(json.dumps(described(buffer), indent=1) + "\n")


if __name__ == "__main__":
    _make(Path(sys.argv[1]))

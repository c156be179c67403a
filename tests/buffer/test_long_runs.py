"""Long runs that wrap many times: the side table of final observations is filled, recycled and stays exact."""

from __future__ import annotations

import numpy as np
import pytest

import relive
from model.compare import assert_same
from model.kinds import KINDS, fill
from model.reference import Model, View


@pytest.mark.parametrize("kind", ["vector", "frames", "column", "dict", "stacked_column"])
@pytest.mark.parametrize(("length", "lanes"), [(1, 1), (2, 3), (7, 2), (60, 2), (1_000, 1)])
def test_a_long_run_with_episodes_of_about(kind, length, lanes):
    """Episodes of `length` steps on average; with 1 every transition ends and needs its own final observation."""
    spec, depth = KINDS[kind], 24
    view = View(n=3, stack=1 if spec.stacked > 1 else 4)
    buffer = relive.ReplayBuffer(depth * lanes, spec.schema(lanes), view=relive.Transitions(3, 0.5, view.stack), seed=0)
    model = Model(depth * lanes, lanes)
    rng = np.random.default_rng(length * lanes)
    states = [spec.fresh(lane) for lane in range(lanes)]
    for step in range(320):
        lane = int(rng.integers(lanes))
        ends = rng.random() < 1 / length
        after = spec.following(states[lane], int(rng.integers(90)))
        fields = {
            "obs": states[lane],
            "action": fill(spec.action, step),
            "reward": float(rng.integers(-4, 5)),
            "terminated": bool(ends and rng.random() < 0.5),
            "next_obs": after,
        }
        fields["truncated"] = bool(ends and not fields["terminated"])
        extras = {name: np.full(field.shape, step % 50, field.dtype) for name, field in spec.extras.items()}
        identity = buffer.push(**fields, **extras, **({"lane": lane} if lanes > 1 else {}))
        assert identity == model.push(**fields, lane=lane, extras=extras)
        states[lane] = spec.fresh(step % 90) if ends else after
        if step % 40 == 39:
            assert_same(buffer, model, view)

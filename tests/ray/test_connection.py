"""What is left of a replay once its Ray is gone. A Ray of its own, which it ends."""

from __future__ import annotations

import numpy as np
import pytest
from unions import SCHEMA

from relive.errors import ShardError

pytest.importorskip("ray")
from relive.share.ray import RayReplay


def test_after_ray_was_shut_down_nothing_starts_another(local_ray):
    zeros = np.zeros((5, 1), np.float32)
    with RayReplay(40, SCHEMA, shards=2, lanes=4, in_flight=4) as replay:
        client = replay.client()
        for lane in range(4):
            client.extend(zeros, np.zeros(5, int), np.zeros(5), np.zeros(5, bool), zeros, lane=lane)
        client.flush(wait=True)
        assert len(replay.sample(3).ids) == 3
        client.extend(zeros, np.zeros(5, int), np.zeros(5), np.zeros(5, bool), zeros, lane=0)
        local_ray.shutdown()
        for call in (
            *(lambda: replay.sample(3), lambda: len(replay), replay.stats, replay.flush, replay.client),
            *(lambda: replay.save("nowhere"), replay.end_episodes, client.flush, client.end_episodes),
        ):
            with pytest.raises(ShardError, match=r"connection to Ray .* is gone"):
                call()
        assert client.stats().waiting == 5
        stats = client.close()
        assert (stats.stored, stats.lost, stats.waiting) == (20, 5, 0)
    assert not local_ray.is_initialized()

"""What dies, and what goes on: on a Ray of several nodes on this machine. Nothing hangs, and losses are counted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from unions import SCHEMA, rename

import relive
from relive.errors import NotEnoughDataError, ShardError

pytest.importorskip("ray")
from relive.share.ray import RayReplay, ReplayStats

SOON = 120.0  # seconds; a bound for what hangs, no measure of speed


def made(**options: Any) -> RayReplay:
    usual = {"shards": 2, "lanes": 2, "seed": 0, "in_flight": 0, "timeout": 30.0}
    return RayReplay(options.pop("capacity", 2_000), SCHEMA, **{**usual, **options})


def fill(writer: Any, lane: int, count: int, first: int = 0) -> None:
    """A block whose rewards count on."""
    zeros = np.zeros((count, 1), np.float32)
    rewards = np.arange(first, first + count)
    writer.extend(zeros, np.zeros(count, int), rewards, np.zeros(count, bool), zeros, lane=lane)


def until(condition: Callable[[], Any]) -> Any:
    """Waits for it."""
    end = time.monotonic() + SOON
    while not (result := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return result


def kill(replay: RayReplay, shard: int, how: int = signal.SIGKILL) -> int:
    pid = replay.stats().shards[shard].pid
    os.kill(pid, how)
    return pid


def back(replay: RayReplay, shard: int, restarts: int = 1) -> ReplayStats:
    """Once the shard answers again."""

    def there() -> ReplayStats | None:
        stats = replay.stats()
        return stats if stats.shards[shard].up and stats.shards[shard].restarts == restarts else None

    return until(there)


def test_a_killed_shard_begins_with_its_last_snapshot(cluster, tmp_path):
    """Meanwhile rows come from the other one; what is pushed to it is dropped; all of it is counted, to the one."""
    sampler = relive.Prioritized(1.0, 0.0)
    with made(snapshots=tmp_path / "snapshots", snapshot_every=0.2, sampler=sampler) as replay:
        writer = replay.client()
        fill(writer, 0, 100)
        fill(writer, 1, 100)
        writer.flush(wait=True)
        until(lambda: all(shard.snapshots for shard in replay.stats().shards))
        old = replay.sample(50).ids
        replay.update_priorities(old, np.full(50, 2.0))
        shard = replay.stats().shards[0]
        until(lambda: replay.stats().shards[0].snapshots > shard.snapshots)
        os.kill(shard.pid, signal.SIGSTOP)  # no snapshot between what follows and its end
        for number in range(3):  # on their way when it dies
            fill(writer, 0, 10, 100 + 10 * number)
            writer.flush()
        os.kill(shard.pid, signal.SIGKILL)
        end, alone, number = time.monotonic() + SOON, 0, 0
        while replay._remotes[0].lives == 0:  # learning goes on
            assert time.monotonic() < end
            batch = replay.sample(32, beta=0.5)
            alone += (batch.ids >> 56 == 2).all()
            fill(writer, 1, 10, 100 + number)
            fill(writer, 0, 10, 1_000 + number)
            writer.flush()
            number += 10
            time.sleep(0.01)
        assert alone > 0
        fill(writer, 0, 10, 500_000)
        fill(replay, 0, 5, 900_000)
        written = writer.close()
        stats = back(replay, 0)
        zero, one = stats.shards
        assert written.stored + written.lost == written.pushed == 240 + 2 * number
        assert (one.lost, one.restarts, one.live) == (0, 0, min(1_000, 100 + number))
        # What it has, and what it has not, is all that was ever sent to it.
        assert zero.pushed + zero.lost == 100 + 30 + number + 10 + 5
        assert zero.lost >= 30 and zero.pushed >= 100 + 10 + 5
        assert stats.lost == zero.lost
        # Ids of its earlier life may be given out again: new priorities for those are skipped.
        assert replay.update_priorities(old, np.full(50, 3.0)) == (old >> 56 == 2).sum()
        rewards = {float(x) for _ in range(40) for x in replay.sample(256).reward}
        assert 900_004.0 in rewards and 500_009.0 in rewards
        assert zero.mass > zero.live  # priorities too are those of the snapshot


@pytest.mark.slow
def test_without_snapshots_a_killed_shard_begins_empty(cluster):
    with made(in_flight=8) as replay:
        writer = replay.client()
        for lane in (0, 1):
            fill(writer, lane, 50)
        writer.flush(wait=True)
        assert replay.sample(64).ids.min() >> 56 == 1
        kill(replay, 0)
        stats = back(replay, 0)
        assert [(shard.live, shard.lost) for shard in stats.shards] == [(0, 50), (50, 0)]
        for _ in range(20):
            assert replay.sample(16).ids.min() >> 56 == 2
        fill(writer, 0, 7)
        writer.close()
        stats = replay.stats()
        assert [(shard.live, shard.lost) for shard in stats.shards] == [(7, 50), (50, 0)]
        until(lambda: (replay.sample(64).ids >> 56 == 1).any())
        kill(replay, 0)  # and again
        assert back(replay, 0, 2).lost == 57


def test_priorities_under_way_to_a_shard_that_dies_are_counted_as_skipped(cluster):
    with made(sampler=relive.Prioritized(), in_flight=4) as replay:
        for lane in (0, 1):
            fill(replay, lane, 50)
        replay.flush()
        batch = replay.sample(64)
        first = int((batch.ids >> 56 == 1).sum())
        pid = replay.stats().shards[0].pid
        os.kill(pid, signal.SIGSTOP)
        assert replay.update_priorities(batch.ids, np.ones(64)) == 64
        os.kill(pid, signal.SIGKILL)
        stats = back(replay, 0)
        assert 0 < first < 64 and (stats.skipped, stats.updated) == (first, 64 - first)


@pytest.mark.slow
def test_the_only_shard(cluster):
    """Its learner waits for it as long as it is told to, and then says that it is away."""
    with made(shards=1, timeout=60.0) as replay:
        fill(replay, 0, 10)
        assert len(replay.sample(5).ids) == 5
        kill(replay, 0)
        with pytest.raises(NotEnoughDataError, match="0 transitions"):
            replay.sample(5)  # came back, empty
        fill(replay, 0, 3)
        assert len(replay.sample(5).ids) == 5
    with made(shards=1, timeout=1.0) as replay:
        fill(replay, 0, 10)
        pid = kill(replay, 0, signal.SIGSTOP)
        with pytest.raises(ShardError, match="away"):
            replay.sample(5)
        os.kill(pid, signal.SIGCONT)
        batch = until(lambda: _or_none(lambda: replay.sample(5)))
        assert len(batch.ids) == 5
        assert replay.stats().lost == replay.stats().restarts == 0


def _or_none(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except ShardError:
        return None


def test_a_shard_that_answers_no_more_is_left_out_until_it_does(cluster, tmp_path):
    """Stopped, as a host that swaps or a network that is cut: everybody waits once, for the time-out.

    Savers too, who would wait for one that is busy for as long as it takes.
    """
    with made(timeout=1.5, in_flight=4) as replay:
        writer = replay.client()
        for lane in (0, 1):
            fill(writer, lane, 50)
        writer.flush(wait=True)
        replay.sample(32)
        pid = kill(replay, 0, signal.SIGSTOP)
        for _ in range(50):
            batch = replay.sample(32)
        assert (batch.ids >> 56 == 2).all()
        for number in range(30):
            fill(writer, 0, 10, 50 + 10 * number)
            fill(writer, 1, 10, 50 + 10 * number)
            writer.flush()
        stats = replay.stats()
        assert [shard.up for shard in stats.shards] == [False, True] and stats.live == 350
        began = time.monotonic()
        with pytest.raises(ShardError, match="shard 0 is away"):
            replay.save(tmp_path / "saved")
        assert time.monotonic() - began < SOON
        os.kill(pid, signal.SIGCONT)
        back(replay, 0, 0)
        until(lambda: (replay.sample(32).ids >> 56 == 1).any())
        fill(writer, 0, 10, 350)
        until(lambda: (writer.flush(), writer.stats().waiting == 0)[1])
        written = writer.close()
        stats = replay.stats()
        assert 0 < stats.lost == 710 - stats.pushed <= written.lost  # some of it was stored after all


@pytest.mark.slow
def test_a_lost_node(cluster, tmp_path):
    """Its shards begin anew on another node, from snapshots that all nodes see."""
    node = next(iter(cluster.worker_nodes))
    options = {"resources": {"shards": 1}}
    with made(snapshots=tmp_path / "snapshots", snapshot_every=0.1, options=options, shards=2) as replay:
        writer = replay.client()
        for lane in (0, 1):
            fill(writer, lane, 60)
        writer.flush(wait=True)
        until(lambda: all(shard.snapshots for shard in replay.stats().shards))
        cluster.remove_node(node, allow_graceful=False)
        end = time.monotonic() + SOON
        while not sum(shard.restarts for shard in replay.stats().shards):
            assert time.monotonic() < end
            assert len(replay.sample(32).ids) == 32
            fill(writer, 0, 1)
            writer.flush()
            time.sleep(0.05)
        stats = until(lambda: (s := replay.stats()) and all(shard.up for shard in s.shards) and s)
        assert stats.live >= 120
        writer.close()
        until(lambda: replay.stats().pushed + replay.stats().lost == writer.stats().pushed)
        drawn = np.concatenate([replay.sample(64).ids for _ in range(10)])
        assert set((drawn >> 56).tolist()) == {1, 2}
    cluster.add_node(num_cpus=2, object_store_memory=100 << 20, resources={"shards": 2})


def test_a_killed_pusher_leaves_whole_blocks(cluster):
    """Blocks of 50 transitions, each of one number: what is there of it, is there whole."""
    import ray

    def job(client: Any) -> None:
        number = 0
        while True:
            zeros, numbers = np.zeros((50, 1), np.float32), np.full(50, number)
            for lane in (0, 1):
                client.extend(zeros, numbers, np.zeros(50), np.arange(50) == 49, zeros, lane=lane)
            client.flush()
            number += 1

    class Pusher:
        def pid(self) -> int:
            return os.getpid()

        def run(self, client: Any) -> None:
            job(client)

    with made(capacity=200_000) as replay:
        for _ in range(2):
            pusher = ray.remote(num_cpus=0)(Pusher).remote()
            pid = ray.get(pusher.pid.remote(), timeout=SOON)
            pusher.run.remote(replay.client())
            before = replay.num_pushed
            until(lambda before=before: len(replay) and replay.num_pushed > before + 1_000)
            os.kill(pid, signal.SIGKILL)
            batch = replay.sample(256)  # nobody waits
            assert (rename(batch.ids, 2, 2) // 2 % 50 == 49).any() == batch.terminated.any()
        for shard in replay.stats().shards:
            assert shard.pushed % 50 == 0 and shard.lost == 0
        fill(replay, 0, 3)
        assert replay.flush().stored == 3

"""Transitions that say in every element which one they are, and threads that push and sample them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

import relive
from model.reference import leaves

GAMMA = 0.5
LENGTH = 7  # steps of an episode
LARGE = relive.Field("uint32", (150,))  # 600 bytes: a column of its own


def make(lanes: int, depth: int, n: int = 3, **options: Any) -> relive.ReplayBuffer:
    obs = {"small": relive.Field("int64", (8,)), "large": LARGE}
    schema = relive.Schema(obs, relive.Field("int64"), {"tag": relive.Field("int64", (5,))}, lanes=lanes)
    return relive.ReplayBuffer(lanes * depth, schema, view=relive.Transitions(n, GAMMA), **options)


def state(mark: Any) -> dict[str, np.ndarray]:
    """An observation that says `mark` in every element; with an array of marks, a block of them."""
    mark = np.asarray(mark)[..., None]
    return {"small": np.repeat(mark, 8, -1).astype(np.int64), "large": np.repeat(mark, 150, -1).astype(np.uint32)}


def transition(step: Any, lane: Any) -> dict[str, Any]:
    """Step number `step` of a lane: obs is marked 10 * step (and the lane); an end's next_obs is marked as such."""
    step, lane = np.asarray(step), np.asarray(lane)
    ends = step % LENGTH == LENGTH - 1
    here = 10 * step + 1_000_000 * lane
    return {
        "obs": state(here),
        "action": here % 5,
        "reward": (step % 64).astype(np.float32),
        "terminated": ends & (step % 2 == 0),
        "next_obs": state(here + 10 + ends),
        "truncated": ends & (step % 2 == 1),
        "tag": np.repeat(np.asarray(here)[..., None], 5, -1),
    }


def check(batch: Any, lanes: int, n: int) -> None:
    """Every row is its transition, whole; the window may be as short as the newest transition made it."""
    ids = np.asarray(batch.ids)
    lane, step = ids % lanes, ids // lanes
    left = LENGTH - step % LENGTH  # steps to the episode's end, this one included
    longest = np.minimum(n, left)
    over = np.asarray(batch.terminated)
    used = np.where(over, longest, np.round(-np.log2(np.maximum(batch.discount, 1e-9))).astype(np.int64))
    assert ((used >= 1) & (used <= longest)).all()
    last = transition(step + used - 1, lane)
    first = transition(step, lane)
    np.testing.assert_array_equal(batch.terminated, last["terminated"])
    np.testing.assert_array_equal(batch.truncated, last["truncated"])
    np.testing.assert_array_equal(batch.discount == 0, over)
    for name, rows in (("obs", first), ("next_obs", last)):
        for part in ("small", "large"):
            np.testing.assert_array_equal(getattr(batch, name)[part], rows[name][part])
    np.testing.assert_array_equal(batch.action, first["action"])
    np.testing.assert_array_equal(batch.tag, first["tag"])
    reward = sum(np.where(i < used, GAMMA**i * ((step + i) % 64), 0) for i in range(n))
    np.testing.assert_array_equal(batch.reward, reward.astype(np.float32))


def run(*jobs: Callable[[], None]) -> None:
    """Run the jobs in threads that start together; the first exception of any is raised here.

    Python changes threads every few microseconds meanwhile, so that every interleaving happens.
    """
    errors: list[BaseException] = []
    together = threading.Barrier(len(jobs))

    def guarded(job: Callable[[], None]) -> None:
        try:
            together.wait()
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    if errors:
        raise errors[0]


def contents(batch: Any) -> list[bytes]:
    """All bytes of a batch."""
    fields = [batch.obs, batch.action, batch.reward, batch.terminated, batch.truncated, batch.next_obs, batch.discount]
    return [np.asarray(leaf).tobytes() for field in (*fields, batch.ids) for leaf in leaves(field)]

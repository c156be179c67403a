"""New priorities on their way to the shards that have the transitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive.share.ray_remote import Remote, gather
from relive.share.ray_union import LIVES, parts_of

_UPDATES = 64  # batches of new priorities that wait for a draw to go with


def queue(remotes: Sequence[Remote], ids: NDArray[np.int64], raw: NDArray[Any]) -> int:
    """New priorities that go with the next draw of each shard; those of a life that is over do not. Returns how many.

    Args:
        remotes: the shards.
        ids: the union's, [B].
        raw: |delta|, [B] or [B, T].
    """
    shard_of, life_of, own = parts_of(ids)
    queued = 0
    for remote in remotes:
        rows = np.flatnonzero((shard_of == remote.number) & (life_of == remote.lives % LIVES))
        if len(rows) and remote.up and remote.state is not None:
            remote.updates.append((remote.state.life, own[rows], raw[rows]))
            queued += len(rows)
    return queued


def send_old(remotes: Sequence[Remote]) -> None:
    """Those that wait for a draw that nobody makes; does not wait."""
    for remote in remotes:
        if len(remote.updates) >= _UPDATES:
            remote.call("update", remote.take_updates())


def send(remotes: Sequence[Remote], timeout: float) -> None:
    """New priorities to where they belong, and waits; what is pushed from now on gets the largest, anywhere."""
    before = _largest(remotes)
    asked = [(remote, remote.call("update", remote.take_updates())) for remote in remotes if remote.updates]
    for (remote, pending), state in zip(asked, gather(asked, timeout), strict=True):
        if state is not None:
            remote.heard(pending, state)
    largest = _largest(remotes)
    for remote in remotes if largest > before else ():
        if remote.up:
            remote.call("lift", largest)


def effective(remotes: Sequence[Remote]) -> int:
    """Priorities that took effect, as far as is known here."""
    return sum(remote.updated() for remote in remotes)


def _largest(remotes: Sequence[Remote]) -> float:
    """Priority so far, of all shards."""
    return max((remote.state.largest for remote in remotes if remote.state), default=1.0)

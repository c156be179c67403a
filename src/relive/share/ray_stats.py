"""How a replay and its shards are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from relive.share.ray_remote import Pending, Remote, gather, refresh


@dataclass(frozen=True)
class ShardStats:
    """One shard.

    Attributes:
        number: which one.
        up: whether it answers; if not, what follows is what it said last.
        live: transitions.
        pushed: transitions ever pushed to it, those of the snapshot it began with included.
        lost: transitions that were sent to it and are not among the pushed: see `RayReplay`.
        restarts: how often it was seen to begin anew.
        mass: what draws are in proportion to, summed over its anchors.
        pid: of its process.
        host: of its process.
        snapshots: how many it made by itself since it began.
        problem: what went wrong with its snapshots; "" for nothing.
    """

    number: int
    up: bool
    live: int
    pushed: int
    lost: int
    restarts: int
    mass: float
    pid: int
    host: str
    snapshots: int
    problem: str


@dataclass(frozen=True)
class ReplayStats:
    """A replay, as `RayReplay.stats` found it.

    Attributes:
        shards: each of them.
        live: transitions.
        pushed: transitions ever pushed.
        lost: transitions that were sent and are not there, those overwritten by newer ones apart.
        restarts: of all shards.
        sampled: rows given out.
        redrawn: batches that were drawn again because a shard went away in the midst.
        updated: priorities that took effect.
        skipped: those that did not: overwritten, of an earlier life of the shard, or its shard was away.
    """

    shards: tuple[ShardStats, ...]
    live: int
    pushed: int
    lost: int
    restarts: int
    sampled: int
    redrawn: int
    updated: int
    skipped: int


def survey(remotes: Sequence[Remote], timeout: float) -> tuple[ShardStats, ...]:
    """Asks every shard that is there how it is, and waits. Cost: two calls to each, in parallel."""
    refresh(remotes, timeout)
    there = [remote for remote in remotes if remote.up]
    asked = [(remote, Pending(remote.aside("about"), 0)) for remote in there]
    about = dict(zip((remote.number for remote in there), gather(asked, timeout), strict=True))
    return tuple(_stats(remote, about.get(remote.number) or {}) for remote in remotes)


def summed(shards: tuple[ShardStats, ...], **counts: int) -> ReplayStats:
    """What shards said, and what the learner counted itself."""
    return ReplayStats(
        shards,
        live=sum(shard.live for shard in shards if shard.up),
        pushed=sum(shard.pushed for shard in shards),
        lost=sum(shard.lost for shard in shards),
        restarts=sum(shard.restarts for shard in shards),
        **counts,
    )


def _stats(remote: Remote, about: Mapping[str, Any]) -> ShardStats:
    state = remote.state
    assert state is not None  # since `start`
    return ShardStats(
        *(remote.number, remote.up, state.live, state.pushed, remote.missing(), remote.lives, state.mass),
        *(about.get("pid", 0), about.get("host", ""), about.get("snapshots", 0), about.get("problem", "")),
    )

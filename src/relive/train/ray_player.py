"""An actor as a Ray actor, on any host: the learner says when, its transitions go straight to the shards."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from relive.dqn import TrainConfig
from relive.share.ray_client import Client
from relive.train.actor import Actor, Block, Report, Role, stride

ROUNDS = 2
"""Rounds of an actor in one call."""


def chunk(config: TrainConfig) -> int:
    """Transitions that one call brings, at most."""
    return ROUNDS * stride(config) * config.num_envs


@dataclass(frozen=True)
class Collected:
    """What a call came to."""

    report: Report
    stored: int
    """Transitions that shards said they have stored, since the call before."""
    lost: int
    """Those that they did not: their shard was away."""
    host: str
    pid: int


class Player:
    """What runs in the Ray actor. One call at a time.

    Args:
        role: which actor of which run.
        client: pushes to the shards.
    """

    def __init__(self, role: Role, client: Client) -> None:
        self._role, self._client = role, client
        self._actor: Actor | None = None  # made at the first call, whose errors come back as they are
        self._newest: NDArray[np.float32] | None = None
        self._version = self._updates = self._stored = self._lost = 0
        self._waited = 0.0

    def collect(self, weights: NDArray[np.float32] | None, version: int, updates: int) -> Collected:
        """Some rounds, and what shards said to their transitions.

        Args:
            weights: float32 [num_weights], read only, the host's one copy; None: no newer ones.
            version: of these.
            updates: that made them.
        """
        if self._actor is None:
            self._actor = self._begin()
        if weights is not None:
            self._newest, self._version, self._updates = weights, version, updates
        rounds = [self._actor.advance() for _ in range(ROUNDS)]
        self._client.flush(wait=True)
        stored, lost, waited = self._answered()
        returns = tuple(value for one in rounds for value in one.returns)
        report = Report(sum(one.steps for one in rounds), returns, waited, rounds[-1].updates)
        return Collected(report, stored, lost, socket.gethostname(), os.getpid())

    def close(self) -> None:
        """Tell the shards that nothing more comes, and what did not."""
        self._client.close()
        if self._actor is not None:
            self._actor.close()

    def read(self, into: NDArray[np.float32], *, newer_than: int = 0) -> tuple[int, int] | None:
        """As `WeightsSource`, for the actor."""
        if self._newest is None or self._version <= newer_than:
            return None
        into[:] = self._newest
        self._newest = None  # lets go of the host's copy
        return self._version, self._updates

    def _begin(self) -> Actor:
        torch.set_num_threads(1)
        first = self._role.first_lane
        # Whoever had these lanes before left episodes open.
        lanes = np.arange(self._role.config.lanes)
        self._client.end_episodes((lanes >= first) & (lanes < first + self._role.config.num_envs))
        return Actor(self._role, self, self._store)

    def _store(self, blocks: Sequence[Block]) -> float:
        for block in blocks:
            self._client.extend(
                block.obs,
                block.action,
                block.reward,
                block.terminated,
                block.next_obs,
                truncated=block.truncated,
                lane=block.lane,
                priority=block.priority,
            )
        return 0.0  # the wait comes at the end of a call

    def _answered(self) -> tuple[int, int, float]:
        """Stored, lost and seconds waited since it was last asked."""
        before = self._stored, self._lost, self._waited
        stats = self._client.stats()
        self._stored, self._lost, self._waited = stats.stored, stats.lost, stats.seconds
        return stats.stored - before[0], stats.lost - before[1], stats.seconds - before[2]

"""Who pushes: blocks of columns straight to the shards, a bounded number of them on their way."""

from __future__ import annotations

import secrets
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from relive.append import collect, conform_all
from relive.arguments import check_lane, check_mask, check_priority
from relive.engine import keeps_priorities
from relive.errors import ConfigError, SchemaError
from relive.fitting import as_array
from relive.samplers import BuiltIn
from relive.schema import Schema
from relive.share.ray_blocks import Block, pack
from relive.share.ray_remote import Connection, ray
from relive.views import Sequences, View

Values = list[NDArray[Any]]


@dataclass(frozen=True)
class Target:
    """All that a client has to know of a replay.

    Attributes:
        handles: the shards, Ray's.
        schema: what a transition is.
        lanes: of the union; lane l is lane l // M of shard l % M.
        sampler: the union's.
        view: the union's.
        batch: transitions that a client keeps back at most before it sends them.
        on_the_way: calls to one shard that may be unanswered before the next one waits.
        timeout: seconds it waits for a shard before it goes on without.
    """

    handles: tuple[Any, ...]
    schema: Schema
    lanes: int
    sampler: BuiltIn
    view: View
    batch: int
    on_the_way: int
    timeout: float


@dataclass(frozen=True)
class ClientStats:
    """What became of what one client pushed.

    Attributes:
        pushed: transitions given to it.
        stored: those that shards said they have stored.
        lost: those whose shard was away, or did not say so; it may have stored some of them all the same.
        waiting: those kept back or on their way.
        seconds: spent waiting for shards.
    """

    pushed: int
    stored: int
    lost: int
    waiting: int
    seconds: float


class _Route:
    """The way to one shard."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.number = 0  # of the next transition
        self.sent: deque[tuple[Any, int]] = deque()  # Ray's reference, transitions
        self.kept: dict[int, list[tuple[Values, NDArray[np.float64] | None]]] = {}  # by lane of the shard
        self.stuck = False  # did not answer in time; what comes meanwhile is dropped


class Client:
    """Pushes transitions to the shards of a `RayReplay`; made by its `client`, can be pickled.

    Transitions are checked here, kept back until there are enough of them, and sent as columns: every observation once,
    big columns through Ray's object store, which shards read without a copy. Nothing waits for the answer, unless
    too many are outstanding. What a shard does not take because it is away is dropped and counted: nobody waits for it.

    A copy, as unpickling makes one, is a writer of its own. A lane should have one writer at a time. One thread.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._connection = Connection()
        self._writer = secrets.randbits(63)
        self._routes = [_Route(handle) for handle in target.handles]
        self._kept = self._pushed = self._stored = self._lost = 0
        self._seconds = 0.0

    def push(
        self,
        obs: Any,
        action: Any,
        reward: Any,
        terminated: Any,
        next_obs: Any,
        *,
        truncated: Any = False,
        lane: int | None = None,
        mask: ArrayLike | None = None,
        priority: ArrayLike | None = None,
        **extras: Any,
    ) -> None:
        """One transition, or with a leading axis of size lanes one step of every lane; see `ReplayBuffer.push`.

        Ids are not known yet when it returns.

        Raises:
            SchemaError: a value does not fit the schema; nothing was kept of it.
            ConfigError: a priority, and a sampler that keeps none.
        """
        target = self._target
        given = (obs, action, reward, terminated, truncated, next_obs, extras)
        if lane is not None or target.lanes == 1:
            lane = check_lane(lane, target.lanes)
            check_mask(mask, target.lanes, is_step=False)
            raw = self._initial(priority, 1, many=False)
            values = conform_all(target.schema, collect(target.schema, *given))
            self._keep(lane, [value[None] for value in values], raw)
        else:
            chosen = check_mask(mask, target.lanes, is_step=True)
            raw = self._initial(priority, target.lanes, many=True)
            flags = np.zeros(target.lanes, np.bool_) if truncated is False else truncated
            given = (obs, action, reward, terminated, flags, next_obs, extras)
            values = conform_all(target.schema, collect(target.schema, *given), target.lanes, chosen)
            for place in range(target.lanes):
                if chosen is None or chosen[place]:
                    one = slice(place, place + 1)
                    self._keep(place, [value[one] for value in values], None if raw is None else raw[one])
        if self._kept >= target.batch:
            self.flush()

    def extend(
        self,
        obs: Any,
        action: Any,
        reward: Any,
        terminated: Any,
        next_obs: Any,
        *,
        truncated: Any = None,
        lane: int | None = None,
        priority: ArrayLike | None = None,
        **extras: Any,
    ) -> None:
        """A block of transitions of one lane, in order of time; see `ReplayBuffer.extend`, and `push`."""
        target = self._target
        shape = as_array(reward, "reward", "float32 (T,)").shape
        if len(shape) != 1:
            raise SchemaError(f"reward: expected float32 (T,), a block of T transitions, got shape {shape}. Use push.")
        count = shape[0]
        lane = check_lane(lane, target.lanes)
        raw = self._initial(priority, count, many=True)
        flags = np.zeros(count, np.bool_) if truncated is None else truncated
        given = (obs, action, reward, terminated, flags, next_obs, extras)
        values = conform_all(target.schema, collect(target.schema, *given), count)
        if count:
            self._keep(lane, values, raw, copy=self._kept + count < target.batch)
        if self._kept >= target.batch:
            self.flush()

    def end_episodes(self, mask: ArrayLike | None = None) -> None:
        """Truncates the episodes that go on, after all that was pushed; see `ReplayBuffer.end_episodes`.

        Whoever takes over the lanes of a writer that died begins with it. How many went on is not known yet when it
        returns.

        Args:
            mask: bool [lanes], which lanes; None for all.

        Raises:
            SchemaError: a mask of another shape or dtype; nothing was sent.
        """
        chosen = check_mask(mask, self._target.lanes, is_step=True)
        self.flush()
        for shard, route in enumerate(self._routes):
            lanes = range(shard, self._target.lanes, len(self._routes))
            own = [place for place, lane in enumerate(lanes) if chosen is None or chosen[lane]]
            if own:
                route.sent.append((route.handle.end.remote(own), 0))

    def flush(self, *, wait: bool = False) -> None:
        """Sends what was kept back.

        Args:
            wait: until shards said that they have it, or that takes too long.

        Raises:
            ShardError: the connection to Ray is gone.
        """
        self._connection.check("Client")
        for route in self._routes:
            if route.kept:
                self._send(route)
        self._kept = 0
        until = time.monotonic() + self._target.timeout
        for route in self._routes:
            self._reap(route, 0 if wait else self._target.on_the_way, until)

    def stats(self) -> ClientStats:
        """What became of what was pushed, as far as is known."""
        for route in self._routes if self._connection.holds else ():
            self._reap(route, len(route.sent), time.monotonic())
        waiting = self._pushed - self._stored - self._lost
        return ClientStats(self._pushed, self._stored, self._lost, waiting, self._seconds)

    def close(self) -> ClientStats:
        """Sends what was kept back, waits for answers, tells shards what they missed. Closing again does no harm.

        Once the connection to Ray is gone, what no shard said it has is lost.
        """
        if not self._connection.holds:
            for route in self._routes:
                route.kept, route.sent = {}, deque()
            self._kept, self._lost = 0, self._pushed - self._stored
            return self.stats()
        self.flush(wait=True)
        told = [route.handle.skipped.remote(self._writer, route.number) for route in self._routes if route.number]
        ray.wait(told, num_returns=len(told), timeout=self._target.timeout) if told else None
        return self.stats()

    def __reduce__(self) -> Any:
        return Client, (self._target,)

    def __repr__(self) -> str:
        return f"Client({len(self._routes)} shards, {self._target.lanes} lanes, {self._pushed:,} pushed)"

    def _initial(self, priority: ArrayLike | None, count: int, *, many: bool) -> NDArray[np.float64] | None:
        if priority is None:
            return None
        raw = check_priority(priority, count, many=many)
        if not keeps_priorities(self._target.sampler) or isinstance(self._target.view, Sequences):
            raise ConfigError(
                f"priority: expected none, got {priority!r}; {self._target.sampler} keeps none for single transitions "
                f"of {type(self._target.view).__name__}. Leave it out."
            )
        return raw

    def _keep(self, lane: int, values: Values, raw: NDArray[np.float64] | None, *, copy: bool = True) -> None:
        """Takes transitions of a lane; `copy` where the caller may write to their memory before they are sent."""
        route = self._routes[lane % len(self._routes)]
        if copy:
            values = [np.array(value) for value in values]
        route.kept.setdefault(lane // len(self._routes), []).append((values, raw))
        count = len(values[0])
        self._kept += count
        self._pushed += count

    def _send(self, route: _Route) -> None:
        blocks: list[Block] = []
        for lane, pieces in route.kept.items():
            for together in _alike(pieces):
                values = [np.concatenate(parts) if len(parts) > 1 else parts[0] for parts in _columns(together)]
                raw = (
                    None if together[0][1] is None else np.concatenate([raw for _, raw in together if raw is not None])
                )
                blocks.append(pack(self._target.schema, values, lane, raw))
        route.kept = {}
        count = sum(block.length for block in blocks)
        first, route.number = route.number, route.number + count
        self._reap(route, self._target.on_the_way - 1, time.monotonic() + self._target.timeout)
        if route.stuck:
            self._lost += count
        else:
            route.sent.append((route.handle.push.remote(self._writer, first, blocks), count))

    def _reap(self, route: _Route, most: int, until: float) -> None:
        """Takes the answers that are there, and waits until at most so many are outstanding."""
        while route.sent:
            ref, count = route.sent[0]
            must_wait = len(route.sent) > most and not route.stuck
            began = time.monotonic()
            done, _ = ray.wait([ref], timeout=max(0.0, until - began) if must_wait else 0)
            self._seconds += (time.monotonic() - began) if must_wait else 0.0
            if not done:
                if must_wait:
                    route.stuck = True
                return
            route.stuck = False
            route.sent.popleft()
            try:
                ray.get(ref, timeout=0)
                self._stored += count
            except ray.exceptions.RayTaskError:
                self._lost += count
                raise
            except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
                self._lost += count


def _alike(pieces: list[tuple[Values, NDArray[np.float64] | None]]) -> list[list[Any]]:
    """Runs of pieces with priorities, and of those without."""
    runs: list[list[Any]] = []
    for piece in pieces:
        if runs and (runs[-1][0][1] is None) == (piece[1] is None):
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def _columns(pieces: list[Any]) -> Any:
    return zip(*(values for values, _ in pieces), strict=True)

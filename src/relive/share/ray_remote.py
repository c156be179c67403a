"""A shard as it is seen from elsewhere: calls that may fail, and what is known of it. Knows Ray, and no batch."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from relive.errors import ConfigError, ShardError
from relive.share.ray_shard import State, Updates

try:
    import ray
    from ray.exceptions import GetTimeoutError, RayError, RayTaskError
except ImportError as error:
    raise ConfigError("relive.share.ray: expected Ray, it is not installed. pip install 'relive[ray]'.") from error

_log = logging.getLogger("relive.share.ray")
_BETWEEN_PROBES = 0.25  # seconds
__all__ = [
    "Connection",
    "Pending",
    "Remote",
    "gather",
    "ray",
    "refresh",
    "wait_for",
]  # ray: once it is known to be there


class Connection:
    """This process' connection to Ray when this was made. Another one cannot reach the shards of that time."""

    def __init__(self) -> None:
        self._name = _connection()

    @property
    def holds(self) -> bool:
        """Whether it is still there. Most of Ray's functions would start a new Ray if not."""
        return bool(self._name) and _connection() == self._name

    def check(self, what: str) -> None:
        """Asks for it.

        Raises:
            ShardError: it is gone.
        """
        if not self.holds:
            raise ShardError(
                f"{what}: expected the connection to Ray that it began with, it is gone. ray.shutdown() ends all "
                "shards; close it before."
            )


def _connection() -> str:
    return str(ray.get_runtime_context().get_worker_id()) if ray.is_initialized() else ""


class Pending(NamedTuple):
    """An answer to come.

    Attributes:
        ref: Ray's.
        number: of the call, among those to this shard.
    """

    ref: Any
    number: int


class Remote:
    """One shard, seen from one process. Its calls are carried out in their order.

    Attributes:
        state: what it said last; None before it was heard.
        lives: how often it was seen to begin anew.
        up: whether it answered when it was last asked.
        lost: transitions that are known to have been there and are not any more; `state.missing` may know of more.
        updates: new priorities that go with the next call that draws.
    """

    def __init__(self, handle: Any, number: int) -> None:
        self.handle = handle
        self.number = number
        self.state: State | None = None
        self.lives = 0
        self.up = True
        self.lost = 0
        self.updates: Updates = []
        self._updated_before = 0  # in earlier lives
        self._calls = 0
        self._heard = 0  # number of the newest call that was answered
        self._since = 0.0  # when it went away
        self._probe: Pending | None = None
        self._next_probe = 0.0

    def call(self, verb: str, *args: Any) -> Pending:
        """Asks for something, without waiting."""
        self._calls += 1
        return Pending(getattr(self.handle, verb).remote(*args), self._calls)

    def aside(self, verb: str, *args: Any) -> Any:
        """Asks for something that is done beside the calls. Returns Ray's reference."""
        return getattr(self.handle, verb).options(concurrency_group="aside").remote(*args)

    def failed(self, pending: Pending, error: Exception) -> None:
        """A call was not answered."""
        if self.up and pending.number > self._heard:
            self.up, self._since, self._probe = False, time.monotonic(), None
            self.updates = []
            self._next_probe = time.monotonic()
            _log.warning("shard %d: no answer (%s); the others go on", self.number, type(error).__name__)

    def heard(self, pending: Pending, state: State) -> bool:
        """A call was answered. False if it was an earlier life that did; then the answer is of no use any more."""
        before = self.state
        if pending.number < self._heard:
            return before is not None and state.life == before.life
        self._heard = pending.number
        if before is not None and state.life != before.life:
            lost = max(0, before.pushed - state.restored)
            self.lives += 1
            self.lost += lost
            self._updated_before += before.updated
            _log.warning(
                "shard %d: began anew with %d transitions; at least %d that were stored since are lost",
                *(self.number, state.live, lost),
            )
        if not self.up:
            self.up = True
            _log.warning("shard %d: answers again after %.1f s", self.number, time.monotonic() - self._since)
        self.state = state
        return True

    def missing(self) -> int:
        """Transitions lost, as far as is known here."""
        return max(self.lost, self.state.missing if self.state else 0)

    def updated(self) -> int:
        """Priorities that took effect, as far as is known here."""
        return self._updated_before + (self.state.updated if self.state else 0)

    def take_updates(self) -> Updates:
        """New priorities, which the caller sends."""
        updates, self.updates = self.updates, []
        return updates

    def look_again(self) -> None:
        """If it is away, asks from time to time whether it is back; does not wait."""
        if self.up:
            return
        if self._probe is None:
            if time.monotonic() >= self._next_probe:
                self._probe = self.call("hello")
            return
        done, _ = ray.wait([self._probe.ref], timeout=0)
        if done:
            probe, self._probe = self._probe, None
            self._next_probe = time.monotonic() + _BETWEEN_PROBES
            state = wait_for(self, probe, 0)
            if state is not None:
                self.heard(probe, state)


def wait_for(remote: Remote, pending: Pending, seconds: float) -> Any:
    """The answer; None if the shard went away or took longer.

    Raises:
        Exception: what the shard itself raised.
    """
    try:
        return ray.get(pending.ref, timeout=seconds)
    except RayTaskError:
        raise
    except (GetTimeoutError, RayError) as error:
        remote.failed(pending, error)
        return None


def gather(asked: Sequence[tuple[Remote, Pending]], seconds: float) -> list[Any]:
    """All the answers, None for those that did not come. Those that are away are not waited for."""
    until = time.monotonic() + seconds
    if all(remote.up for remote, _ in asked):
        try:
            return list(ray.get([pending.ref for _, pending in asked], timeout=seconds))
        except RayTaskError:
            raise
        except (GetTimeoutError, RayError):
            pass  # one or more of them; now one by one
    return [
        wait_for(remote, pending, max(0.0, until - time.monotonic()) if remote.up else 0.0) for remote, pending in asked
    ]


def refresh(remotes: Sequence[Remote], seconds: float) -> None:
    """Asks all that are there how they are, after new priorities that wait for a draw, and waits."""
    asked = [
        (remote, remote.call("update", remote.take_updates()) if remote.updates else remote.call("hello"))
        for remote in remotes
        if remote.up
    ]
    for (remote, pending), state in zip(asked, gather(asked, seconds), strict=True):
        if state is not None:
            remote.heard(pending, state)

"""The Ray actors of a run as the learner sees them: calls under way, answers, and deaths."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive.errors import ConfigError, ReplayError
from relive.share.ray_client import Client
from relive.share.ray_remote import ray
from relive.train.actor import Role
from relive.train.ray_player import Collected, Player

CALLS = 2
"""Calls that an actor may have not answered: it plays the next while the answer to this one is on its way."""

SILENCE = 120.0
"""Seconds without an answer, after which an actor counts as dead; starting takes some."""

PATIENCE = 5.0
"""Seconds that actors have to end by themselves."""


@dataclass
class _Life:
    """One Ray actor."""

    handle: Any
    heard: float
    """When it answered last, or began, or was first asked again."""
    calls: deque[Any] = field(default_factory=deque)
    """Ray's references to answers to come, oldest first."""
    version: int = 0
    """Of the weights that it was given."""
    host: str = ""
    """Where it is, once it has answered."""


@dataclass(frozen=True)
class Death:
    """An actor that answers no more."""

    how: str
    """In words."""


class Players:
    """Ray actors by number. None asks for a CPU in Ray's books, and they are spread over the nodes."""

    def __init__(self) -> None:
        self._lives: dict[int, _Life] = {}
        self._weights: Any = None  # Ray's reference
        self._version = self._updates = 0
        self._told = False

    def begin(self, number: int, role: Role, client: Client) -> None:
        """Have one begin; returns at once."""
        options: dict[str, Any] = {
            "num_cpus": 0,
            "scheduling_strategy": "SPREAD",
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        self._lives[number] = _Life(ray.remote(**options)(Player).remote(role, client), time.monotonic())

    def publish(self, vector: NDArray[np.float32], updates: int) -> None:
        """Give all these weights with their next call. Every host fetches them once."""
        self._weights = ray.put(vector)
        self._version, self._updates = self._version + 1, updates

    def under_way(self, number: int | None = None) -> int:
        """Calls that were not answered yet, of one actor or of all."""
        return sum(len(life.calls) for key, life in self._lives.items() if number in (None, key))

    def ask(self, number: int) -> None:
        """Have one play some rounds."""
        life = self._lives[number]
        weights = self._weights if life.version < self._version else None
        life.version = self._version
        if not life.calls:
            life.heard = max(life.heard, time.monotonic())
        life.calls.append(life.handle.collect.remote(weights, self._version, self._updates))

    def answers(self, timeout: float) -> Iterator[tuple[int, Collected | Death]]:
        """What came in, after up to so many seconds if nothing had yet. One that is dead is forgotten.

        Raises:
            ConfigError: settings that an actor refused, as any other would.
        """
        refs = {ref: number for number, life in self._lives.items() for ref in life.calls}
        if not refs:
            time.sleep(timeout)
            return
        if timeout:
            ray.wait(list(refs), timeout=timeout, fetch_local=False)
        done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0, fetch_local=False)
        places = {ref: place for place, ref in enumerate(refs)}
        for ref in sorted(done, key=places.__getitem__):
            number = refs[ref]
            life = self._lives.get(number)
            if life is None or ref not in life.calls:
                continue  # of one that was found dead a moment ago
            life.calls.remove(ref)
            life.heard = time.monotonic()
            try:
                collected: Collected = ray.get(ref, timeout=SILENCE)
                life.host = collected.host
                yield number, collected
            except ray.exceptions.RayError as error:
                yield number, self._lost(number, self._how(life, error))
        for number, life in list(self._lives.items()):
            if life.calls and time.monotonic() - life.heard > SILENCE:
                yield number, self._lost(number, f"no answer for {SILENCE:g} s")

    def close(self) -> None:
        """End all; those that are there tell the shards what they missed. Takes seconds at most."""
        if not ray.is_initialized():
            return
        waiting = [ref for life in self._lives.values() for ref in life.calls]
        waiting += [life.handle.close.remote() for life in self._lives.values()]
        if waiting:
            ray.wait(waiting, num_returns=len(waiting), timeout=PATIENCE, fetch_local=False)
        for number in list(self._lives):
            self._lost(number, "")

    def _lost(self, number: int, how: str) -> Death:
        life = self._lives.pop(number)
        with suppress(ray.exceptions.RayError, ValueError):
            ray.kill(life.handle, no_restart=True)
        return Death(how)

    def _how(self, life: _Life, error: Exception) -> str:
        where = f" on {life.host}" if life.host else ""
        if isinstance(error, ray.exceptions.RayTaskError):
            cause = error.cause
            if isinstance(cause, ReplayError):
                raise ConfigError(str(cause)) from None
            if not self._told:
                self._told = True
                sys.stderr.write(f"{error}\n")  # once with all of its traceback
            return f"{type(cause).__name__}: {cause}"
        if isinstance(error, ray.exceptions.GetTimeoutError):
            return f"its answer{where} cannot be fetched"
        return f"its {'host is gone' if 'its node has died' in str(error) else 'process is gone'}{where}"

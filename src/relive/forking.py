"""Locks across a fork: a child must not inherit one whose holder, a thread of the parent, it does not have."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from dataclasses import dataclass

from relive._core import Core


@dataclass(frozen=True)
class _Watched:
    shared: bool
    key: int


_cores: weakref.WeakKeyDictionary[Core, _Watched] = weakref.WeakKeyDictionary()
_held: list[Core] = []


def watch(core: Core, *, shared: bool = False, key: int | None = None) -> None:
    """Keeps the core's lock usable in the children of this process.

    Args:
        core: whose.
        shared: whether children see the same memory, and so the same lock, which stays the parent's to release.
        key: of memory that other processes have too, the same for all cores over it.
    """
    _cores[core] = _Watched(shared, id(core) if key is None else key)


class Lock:
    """A re-entrant lock; in the child of a fork it is free, unless the thread that forked holds it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Called in the child."""
        if self._lock.acquire(blocking=False):
            self._lock.release()  # free, or the forking thread's
        else:
            self._lock = threading.RLock()


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _hold() -> None:
    # In the same order in all processes, or two that fork wait for each other; a lock that two cores share once.
    locks = {watched.key: core for core, watched in _cores.items()}
    for _, core in sorted(locks.items()):
        with contextlib.suppress(RuntimeError):  # damaged: nobody gets its lock any more
            core.hold()
            _held.append(core)


def _release() -> None:
    while _held:
        _held.pop().release()


def _renew() -> None:
    while _held:
        core = _held.pop()
        if not _cores[core].shared:
            core.renew()
    for lock in list(_locks):
        lock.renew()


os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_renew)

"""Locks across a fork: a child must not inherit one whose holder, a thread of the parent, it does not have."""

from __future__ import annotations

import os
import threading
import weakref
from functools import partial

from relive._core import Core, hold_all, release_all, renew_all

_watched: list[tuple[int, weakref.ref[Core]]] = []
_held: list[Core] = []


def watch(core: Core, *, shared: bool = False, key: int | None = None) -> None:
    """Keeps the core's lock usable in the children of this process.

    Args:
        core: whose.
        shared: whether children see the same memory, and so the same lock, which stays the parent's to release.
        key: of memory that other processes have too, the same for all cores over it.
    """
    core.set_shared(shared)
    alive = [entry for entry in _watched if entry[1]() is not None]
    _watched[:] = [*alive, (id(core) if key is None else key, weakref.ref(core))]


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


def _renew() -> None:
    for lock in list(_locks):
        lock.renew()


# Native, all that has to do with locks of buffers: a signal's handler would run in a function of Python's, and what it
# raises would cut that short.
os.register_at_fork(
    before=partial(hold_all, _watched, _held),
    after_in_parent=partial(release_all, _held),
    after_in_child=partial(renew_all, _held),
)
os.register_at_fork(after_in_child=_renew)

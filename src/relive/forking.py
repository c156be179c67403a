"""Locks across a fork: a child must not inherit one whose holder, a thread of the parent, it does not have."""

from __future__ import annotations

import os
import weakref

from relive._core import Core

_cores: weakref.WeakSet[Core] = weakref.WeakSet()
_held: list[Core] = []


def watch(core: Core) -> None:
    """Keeps the core's lock usable in the children of this process."""
    _cores.add(core)


def _hold() -> None:
    for core in list(_cores):
        core.hold()
        _held.append(core)


def _release() -> None:
    while _held:
        _held.pop().release()


def _renew() -> None:
    while _held:
        _held.pop().renew()


os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_renew)

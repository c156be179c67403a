"""The life of shards: how they start, save and end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relive.errors import ConfigError, ShardError, SnapshotError
from relive.forking import Lock
from relive.share.ray_remote import Pending, Remote, ray, refresh, wait_for
from relive.share.ray_shard import Part, Shard
from relive.share.ray_spec import place

_SAVING = 3600.0  # seconds
_STARTING = 60.0  # seconds at least, in which processes are to start
# Options of every actor.
_FIXED: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 0, "concurrency_groups": {"aside": 1}}


def check_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of shards' actors.

    Raises:
        ConfigError: some that are not to be chosen.
    """
    given = dict(options or {})
    fixed = sorted(_FIXED.keys() & given.keys())
    if fixed:
        raise ConfigError(f"options: expected none of {sorted(_FIXED)}, got {fixed}. Shards restart as they have to.")
    return given


def start(parts: list[Part], options: dict[str, Any], timeout: float) -> list[Remote]:
    """The shards, once all of them answer.

    Raises:
        ConfigError: options that Ray does not take, or a shard that cannot begin as it was told.
        SnapshotError: a shard that cannot begin with what it was to begin with.
        ShardError: not in time.
    """
    timeout = max(timeout, _STARTING)
    given: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": "SPREAD", **options, **_FIXED}
    remotes: list[Remote] = []
    try:
        try:
            actor = ray.remote(**given)(Shard)
            remotes += [Remote(actor.remote(part), part.number) for part in parts]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"options: expected what Ray takes for an actor, got {options} ({error}).") from error
        refresh(remotes, timeout)
        absent = [remote.number for remote in remotes if remote.state is None]
        if absent:
            raise ShardError(
                f"RayReplay: expected all shards to start within {timeout:g} s, shards {absent} did not. Is there room "
                "on the cluster for what options ask for?"
            )
        for remote in remotes:
            about = wait_for(remote, Pending(remote.aside("about"), 0), timeout)
            if about is None or about["problem"]:
                reason = about["problem"] if about else "It went away."
                kind = ConfigError if parts[remote.number].source is None else SnapshotError
                raise kind(f"RayReplay: expected shard {remote.number} to begin, it cannot. {reason}")
    except BaseException:
        end(remotes)
        raise
    return remotes


def end(remotes: list[Remote]) -> None:
    """Ends the shards, for good."""
    for remote in remotes:
        ray.kill(remote.handle, no_restart=True)


def save(remotes: list[Remote], directory: Path, turn: Lock, timeout: float) -> int:
    """Saves every shard below a directory, and waits. Returns the bytes written.

    Args:
        remotes: the shards.
        directory: absolute.
        turn: taken for each look at how they are; shards go on while they save.
        timeout: seconds for one that answers nothing.

    Raises:
        ShardError: a shard is away.
        Exception: what a shard raised.
    """
    asked = [(remote, remote.aside("save", place(directory, remote.number))) for remote in remotes]
    _await_saves(asked, turn, timeout)
    written = 0
    for remote, ref in asked:
        bytes_or_none = wait_for(remote, Pending(ref, 0), 0)
        if bytes_or_none is None:
            raise ShardError(f"save: expected every shard, shard {remote.number} is away. Save again when it is back.")
        written += bytes_or_none
    return written


def _await_saves(asked: list[tuple[Remote, Any]], turn: Lock, timeout: float) -> None:
    """Waits until all is written, or a shard that writes does not answer in time."""
    until = time.monotonic() + _SAVING
    while time.monotonic() < until:
        _, waiting = ray.wait([ref for _, ref in asked], num_returns=len(asked), timeout=timeout)
        late = [remote for remote, ref in asked if ref in waiting]
        with turn:
            refresh(late, timeout)
        if not all(remote.up for remote in late) or not late:
            return

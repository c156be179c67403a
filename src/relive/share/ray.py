"""A replay buffer in parts, on any number of hosts: shards are Ray actors, the union is sampled as one buffer.

Imported by name alone, since it needs Ray: `from relive.share.ray import RayReplay`.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike

from relive import disk
from relive.arguments import as_errors, as_ids, check_seed
from relive.batch import Batch
from relive.checks import as_path, integer, number
from relive.engine import check_axes, check_updates
from relive.errors import ConfigError, SchemaError, ShardError, SnapshotError
from relive.fitting import are_magnitudes, on_cpu
from relive.forking import Lock
from relive.samplers import BuiltIn, Prioritized, Uniform
from relive.schema import Schema
from relive.share.ray_client import Client, ClientStats, Target
from relive.share.ray_draws import Assembler, Draws
from relive.share.ray_remote import Connection, Pending, Remote, gather, ray, refresh, wait_for
from relive.share.ray_shard import Part, Shard
from relive.share.ray_union import FORMAT, LIVES, MANIFEST, MAX_SHARDS, parts_of, read_card, read_note
from relive.snapshot import check_note, frame
from relive.specs import sampler_from_dict, sampler_to_dict, view_from_dict, view_to_dict
from relive.storage import divide
from relive.views import Hindsight, View

__all__ = ["Client", "ClientStats", "RayReplay", "ReplayStats", "ShardStats"]

_UPDATES = 64  # batches of new priorities that wait for a draw to go with
_SAVING = 3600.0  # seconds
# Options of every actor.
_FIXED: dict[str, Any] = {"max_restarts": -1, "max_task_retries": 0, "concurrency_groups": {"aside": 1}}
_STARTING = 60.0  # seconds at least, in which processes are to start


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


class RayReplay:
    """A replay buffer whose lanes are divided among shards, each an ordinary buffer in a Ray actor.

    Lane l is lane l // shards of shard l % shards. A batch is drawn as one buffer would draw it: rows come from shards
    in proportion to their mass, weights are normalised over the union, by the probabilities that rows were really
    drawn with. Writers push straight to the shards, see `client`; the process that holds this object samples.

    Pipelined: up to `in_flight` batches are drawn ahead of the one taken. They show contents and priorities of the
    moment they were drawn at, and go by shards' masses of up to so many batches before. With `in_flight=0` every batch
    is drawn when it is asked for, from what all calls before it left.

    A shard that dies is started again by Ray, with its last snapshot where there are any. Meanwhile batches are drawn
    from the others, and what is pushed to it is dropped. Nothing waits longer than `timeout`. What is lost is counted:
    transitions stored since the last snapshot, on their way, or dropped; exactly, as soon as each writer that lost some
    pushes again or is closed. Ids of a shard's earlier life are skipped by `update_priorities`.

    Whoever reaches Ray's ports can do anything to all of this; see docs/ray.md.

    Args:
        capacity: in transitions, of all shards; a multiple of lanes.
        schema: what a transition is.
        shards: M, at most lanes (and 126).
        lanes: environments; None takes it from the schema.
        sampler: `Uniform()` or `Prioritized(...)`, without newest and max_uses. New transitions get the largest
            priority of the union so far, as far as it has got around.
        view: what an id becomes. Rewards in hindsight are computed by the shards.
        seed: of the division among shards, and of theirs; None draws one from the system.
        snapshots: a directory for the shards' own snapshots, which has to be the same on every host; None for none.
        snapshot_every: seconds between two of them.
        in_flight: batches drawn ahead, as long as they take less than 128 MiB; 16 as in the paper, appendix F.
        batch: transitions that a writer keeps back at most before it sends them.
        timeout: seconds to wait for any shard.
        options: for each shard's actor, as Ray takes them (`num_cpus`, `resources`, `memory`, ...). By default they
            ask for no CPU and are spread over the nodes. How they restart is not to be chosen.

    Raises:
        ConfigError: a value or combination that makes no sense; no Ray; snapshots of another replay.
        ShardError: the shards did not start in time.

    Paper: Horgan et al. 2018 (arXiv:1803.00933), section 3, the shared replay memory.
    """

    def __init__(
        self,
        capacity: int,
        schema: Schema,
        *,
        shards: int,
        lanes: int | None = None,
        sampler: BuiltIn | None = None,
        view: View | Hindsight | None = None,
        seed: int | None = None,
        snapshots: str | os.PathLike[str] | None = None,
        snapshot_every: float = 60.0,
        in_flight: int = 16,
        batch: int = 256,
        timeout: float = 60.0,
        options: Mapping[str, Any] | None = None,
        _source: Path | None = None,
    ) -> None:
        self._view, self._sampler = _check_axes(view, sampler)
        if not isinstance(schema, Schema):
            raise ConfigError(
                f"schema: expected a Schema, got {schema!r}. Shards have to know it before the first push."
            )
        self._schema = schema
        self._capacity, self._lanes = divide(capacity, lanes, schema)
        num_shards = _check_shards(shards, self._lanes)
        self._in_flight = integer("RayReplay", "in_flight", in_flight, 0, 1024)
        self._timeout = number("RayReplay", "timeout", timeout, 0.1, 1e6)
        every = number("RayReplay", "snapshot_every", snapshot_every, 0.05, 1e9)
        batch = integer("RayReplay", "batch", batch, 1, 2**31)
        self._seed = check_seed(secrets.randbits(64) if seed is None else seed)
        fixed = sorted(_FIXED.keys() & dict(options or {}).keys())
        if fixed:
            raise ConfigError(
                f"options: expected none of {sorted(_FIXED)}, got {fixed}. Shards restart as they have to."
            )
        directory = None if snapshots is None else as_path("snapshots", snapshots).absolute()
        if not ray.is_initialized():
            raise ConfigError("RayReplay: expected Ray to be connected, it is not. Call ray.init() first.")
        self._connection = Connection()
        parts = self._divide(num_shards, directory, every, _source)
        self._remotes = _start(parts, dict(options or {}), max(self._timeout, _STARTING))
        handles = tuple(remote.handle for remote in self._remotes)
        self._target = Target(
            handles, schema, self._lanes, self._sampler, self._view, batch, on_the_way=4, timeout=self._timeout
        )
        self._own = Client(self._target)
        self._turn = Lock()
        self._draws = Draws(self._remotes, self._sampler, self._view, self._seed, self._in_flight, self._timeout)
        self._assembler = Assembler(self._view)
        self._sampled = self._given = 0  # rows, new priorities
        self._closed = False

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        view: View | Hindsight | None = None,
        **options: Any,
    ) -> RayReplay:
        """A replay as it was when `save` was called.

        Args:
            path: a directory that `save` made, or one given as `snapshots`; every host has to see it.
            view: in place of the saved one; needed if that has a reward function.
            **options: `snapshots`, `snapshot_every`, `in_flight`, `batch`, `timeout`, `options` as for `RayReplay`. The
                same directory may be given as `snapshots`: they go on there.

        Raises:
            SnapshotError: nothing whole is there.
        """
        directory = as_path("load", path).absolute()
        card = read_card(directory)
        unknown = set(options) - {"snapshots", "snapshot_every", "in_flight", "batch", "timeout", "options"}
        if unknown:
            raise ConfigError(
                f"load: expected options of how it runs, got {sorted(unknown)}. The snapshot says the rest."
            )
        try:
            checked = view_from_dict(card["view"]) if view is None else view
            axes = {"sampler": sampler_from_dict(card["sampler"]), "view": checked, "seed": card["seed"]}
            shape = {"shards": card["shards"], "lanes": card["lanes"]}
            capacity, schema = card["capacity"], Schema.from_dict(card["schema"])
            _check_axes(None, axes["sampler"])
            check_seed(axes["seed"])
            _check_shards(shape["shards"], divide(capacity, shape["lanes"], schema)[1])
        except (ConfigError, SchemaError) as error:
            if str(error).startswith("view:"):
                raise
            raise SnapshotError(f"{directory / MANIFEST}: expected what describes a replay, got {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SnapshotError(f"{directory / MANIFEST}: expected what describes a replay, got {error!r}.") from None
        return cls(capacity, schema, **shape, **axes, **options, _source=directory)

    def client(self) -> Client:
        """Who pushes from another process: small, can be pickled, sends straight to the shards."""
        self._check_open()
        return Client(self._target)

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
        """Pushes from this process, see `Client.push`. With `in_flight=0` the next batch sees it."""
        self._check_open()
        given = {"truncated": truncated, "lane": lane, "mask": mask, "priority": priority}
        self._own.push(obs, action, reward, terminated, next_obs, **given, **extras)

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
        """Pushes a block of one lane from this process, see `Client.extend`."""
        self._check_open()
        given = {"truncated": truncated, "lane": lane, "priority": priority}
        self._own.extend(obs, action, reward, terminated, next_obs, **given, **extras)

    def flush(self) -> ClientStats:
        """Sends what was pushed from this process, and waits until shards have it."""
        self._check_open()
        self._own.flush(wait=True)
        return self._own.stats()

    def sample(
        self,
        n: int,
        *,
        beta: float | None = None,
        output: Literal["numpy", "torch"] = "numpy",
        device: Any = None,
    ) -> Batch:
        """Draws a minibatch of `n` from the union, see `ReplayBuffer.sample`.

        Returns:
            Batch: nobody else's memory. ids (and goal_ids, where they are not -1) carry their shard and its life. Under
                `Uniform` rows come in no order, under `Prioritized` shard after shard. weight: ones, but where shards'
                masses changed between the choice of shards and the draws, under `Uniform` too.

        Raises:
            NotEnoughDataError: nothing can be drawn from any shard that is there.
            ShardError: no shard is there, and none came back in time.
            ConfigError: a size, beta, output or device that cannot be.

        Cost: one copy of the batch here; a call to every shard for several batches together.
        """
        size = integer("sample", "the batch size", n, 1, 2**31)
        if beta is not None:
            beta = number("sample", "beta", beta, 0, np.inf)
        self._assembler.check(self._schema, output, device)
        with self._turn:
            self._check_open()
            if self._in_flight == 0 or not self.num_pushed:
                self._own.flush()
            group, place = self._draws.next(size)
            self._sampled += size
            return self._assembler.batch(group, place, self._sampler, beta, output, device)

    def update_priorities(self, ids: ArrayLike, abs_td: ArrayLike) -> int:
        """Gives transitions (or sequences) new priorities, see `ReplayBuffer.update_priorities`.

        With `in_flight=0` it waits until shards have them, and returns how many were live. Else it returns at once,
        with how many go with the next draw: those of a life of a shard that is known to be over do not. `stats` counts
        what took effect.

        Raises:
            SchemaError: shapes that do not belong together, NaN, infinite or negative values; then nothing changed.
            ConfigError: the sampler keeps no priorities.
        """
        check_updates(self._sampler)
        wanted = as_ids(ids)
        raw = as_errors(on_cpu(abs_td), self._view)
        if raw.shape[0] != len(wanted):
            raise SchemaError(f"abs_td: expected one for each of {len(wanted)} ids, got {raw.shape}.")
        if not are_magnitudes(raw):
            raise SchemaError("abs_td: expected finite numbers of at least 0, got others. Nothing changed.")
        with self._turn:
            self._check_open()
            if self._in_flight == 0:
                self._own.flush()
            shard_of, life_of, own = parts_of(wanted)
            sent, before = 0, self._updated()
            for remote in self._remotes:
                rows = np.flatnonzero((shard_of == remote.number) & (life_of == remote.lives % LIVES))
                if len(rows) and remote.up and remote.state is not None:
                    remote.updates.append((remote.state.life, own[rows], raw[rows]))
                    sent += len(rows)
            self._given += len(wanted)
            if self._in_flight > 0:
                for remote in self._remotes:
                    if len(remote.updates) >= _UPDATES:  # nobody draws
                        remote.call("update", remote.take_updates())
                return sent
            self._send_updates()
            return self._updated() - before

    def end_episodes(self, mask: ArrayLike | None = None) -> None:
        """Truncates the episodes that go on, after what was pushed here; see `Client.end_episodes`."""
        self._check_open()
        self._own.end_episodes(mask)

    def save(self, path: str | os.PathLike[str], *, note: Any = None) -> int:
        """Saves every shard to a directory of its own under `path`; to one it was saved to before, only what is new.

        Each shard is saved as it is at one moment, not all at the same; they go on meanwhile. Hosts write to their
        own file systems: `path` has to be the same directory on all.

        Args:
            path: a directory; new, or one that this replay was saved to, loaded from or keeps its `snapshots` in.
            note: anything that JSON can hold: `RayReplay.note(path)`.

        Returns:
            int: bytes written.

        Raises:
            ShardError: a shard is away; what was saved before of it stays. One that still writes is waited for, as
                long as it answers, an hour at most; one that does not answer for four time-outs at most.
            SnapshotError: the disk is full or broken.
            ConfigError: a snapshot of another replay is there, or a note that JSON cannot hold.
        """
        check_note(note)
        directory = as_path("save", path).absolute()
        self._check_open()
        with self._turn:
            self._own.flush(wait=True)
            self._send_updates()
        asked = [(remote, remote.aside("save", _place(directory, remote.number))) for remote in self._remotes]
        self._await_saves(asked)
        written = 0
        for remote, ref in asked:
            bytes_or_none = wait_for(remote, Pending(ref, 0), 0)
            if bytes_or_none is None:
                raise ShardError(
                    f"save: expected every shard, shard {remote.number} is away. Save again when it is back."
                )
            written += bytes_or_none
        data = frame(FORMAT, {**self._card(self.shards), "note": note})
        disk.make_directory(directory)
        disk.replace(directory, MANIFEST, data)
        return written + len(data)

    @staticmethod
    def note(path: str | os.PathLike[str]) -> Any:
        """The note that `save` was given."""
        return read_note(as_path("note", path).absolute())

    def stats(self) -> ReplayStats:
        """Asks every shard how it is. Cost: a call to each, in parallel; those that are away are not waited for."""
        self._check_open()
        with self._turn:
            self._own.flush()
            for remote in self._remotes:
                remote.look_again()
            self._send_updates()
            refresh(self._remotes, self._timeout)
            there = [remote for remote in self._remotes if remote.up]
            asked = [(remote, Pending(remote.aside("about"), 0)) for remote in there]
            about = dict(zip((remote.number for remote in there), gather(asked, self._timeout), strict=True))
            shards = tuple(_stats(remote, about.get(remote.number) or {}) for remote in self._remotes)
            return ReplayStats(
                shards,
                sum(shard.live for shard in shards if shard.up),
                sum(shard.pushed for shard in shards),
                sum(shard.lost for shard in shards),
                sum(shard.restarts for shard in shards),
                *(self._sampled, self._draws.redrawn, self._updated(), self._given - self._updated()),
            )

    def close(self) -> None:
        """Ends the shards; what was not saved is gone. Closing again does nothing."""
        if not self._closed:
            self._closed = True
            if self._connection.holds:
                _end(self._remotes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Live transitions of the shards that are there, as they said last; asks if one has nothing yet.

        Cost: nothing, or a call to each shard.
        """
        self._check_open()
        with self._turn:
            for remote in self._remotes:
                remote.look_again()
            if self._in_flight == 0:
                self._own.flush()
            if self._in_flight == 0 or not all(r.state and r.state.live for r in self._remotes if r.up):
                refresh(self._remotes, self._timeout)
            return sum(remote.state.live for remote in self._remotes if remote.up and remote.state)

    def __reduce__(self) -> NoReturn:
        raise ConfigError(
            "RayReplay: expected to stay where it is, cannot be pickled. Pass its client() to who pushes."
        )

    def __repr__(self) -> str:
        return (
            f"RayReplay({self._capacity:,} transitions in {len(self._remotes)} shards, {self._lanes} lanes, "
            f"{self._sampler}, {self._view}, seed={self._seed}, in_flight={self._in_flight})"
        )

    @property
    def capacity(self) -> int:
        """Transitions that all shards keep together."""
        return self._capacity

    @property
    def lanes(self) -> int:
        """Environments that are written side by side."""
        return self._lanes

    @property
    def shards(self) -> int:
        """How many."""
        return len(self._remotes)

    @property
    def schema(self) -> Schema:
        """What a transition is."""
        return self._schema

    @property
    def sampler(self) -> BuiltIn:
        """Which ids are drawn."""
        return self._sampler

    @property
    def view(self) -> View:
        """What an id becomes."""
        return self._view

    @property
    def seed(self) -> int:
        """Of the division among shards, and of their generators."""
        return self._seed

    @property
    def num_pushed(self) -> int:
        """Transitions ever pushed, as shards said last. Cost: nothing."""
        return sum(remote.state.pushed for remote in self._remotes if remote.state)

    def _card(self, shards: int) -> dict[str, Any]:
        return {
            **{"capacity": self._capacity, "lanes": self._lanes, "shards": shards, "seed": self._seed},
            "schema": self._schema.to_dict(),
            "sampler": sampler_to_dict(self._sampler),
            "view": view_to_dict(self._view),
        }

    def _divide(self, shards: int, directory: Path | None, every: float, source: Path | None) -> list[Part]:
        run, parts = secrets.token_hex(16), []
        for shard in range(shards):
            lanes = len(range(shard, self._lanes, shards))
            seed = int(np.random.SeedSequence([self._seed, shard]).generate_state(1, np.uint64)[0])
            parts.append(
                Part(
                    *(shard, self._capacity // self._lanes * lanes, lanes, replace(self._schema, lanes=lanes)),
                    *(self._sampler, self._view, seed, run),
                    None if source is None else _place(source, shard),
                    None if directory is None else _place(directory, shard),
                    every,
                )
            )
        if directory is not None:
            card = {**self._card(shards), "note": None}
            try:
                disk.make_directory(directory)
            except OSError as error:
                raise ConfigError(
                    f"snapshots: expected a directory, or a place for one, got {directory} ({error.strerror})."
                ) from None
            if (directory / MANIFEST).exists():
                there = read_card(directory)
                if source != directory or {**there, "note": None} != card:
                    raise ConfigError(
                        f"snapshots: expected no other replay's in {directory}, found some. Load them, or give another "
                        "directory."
                    )
            else:
                disk.replace(directory, MANIFEST, frame(FORMAT, card))
        return parts

    def _await_saves(self, asked: list[tuple[Remote, Any]]) -> None:
        """Waits until all is written, or a shard that writes does not answer in time."""
        until = time.monotonic() + _SAVING
        while time.monotonic() < until:
            _, waiting = ray.wait([ref for _, ref in asked], num_returns=len(asked), timeout=self._timeout)
            late = [remote for remote, ref in asked if ref in waiting]
            with self._turn:
                refresh(late, self._timeout)
            if not all(remote.up for remote in late) or not late:
                return

    def _send_updates(self) -> None:
        """New priorities to where they belong, and waits; what is pushed from now on gets the largest, anywhere."""
        before = self._largest()
        asked = [(remote, remote.call("update", remote.take_updates())) for remote in self._remotes if remote.updates]
        for (remote, pending), state in zip(asked, gather(asked, self._timeout), strict=True):
            if state is not None:
                remote.heard(pending, state)
        largest = self._largest()
        for remote in self._remotes if largest > before else ():
            if remote.up:
                remote.call("lift", largest)

    def _updated(self) -> int:
        """Priorities that took effect."""
        return sum(remote.updated() for remote in self._remotes)

    def _largest(self) -> float:
        """Priority so far, of all shards."""
        return max((remote.state.largest for remote in self._remotes if remote.state), default=1.0)

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigError("RayReplay: expected it to be open, it was closed.")
        self._connection.check("RayReplay")


def _check_axes(view: Any, sampler: Any) -> tuple[View, BuiltIn]:
    """The view and the sampler.

    Raises:
        ConfigError: a sampler whose draws from shards are not those of one buffer.
    """
    view, checked = check_axes(view, sampler)
    if not isinstance(checked, Uniform | Prioritized):
        reasons = {
            "RankBased": "a rank among the transitions of one shard is not the rank among all",
            "Shuffled": "each shard would walk epochs of its own",
            "Recent": "the newest of one shard are not the newest of all",
        }
        reason = reasons.get(type(checked).__name__, "it would have to see the anchors of all shards")
        raise ConfigError(f"sampler: expected Uniform or Prioritized, got {checked}; {reason}.")
    if checked.newest or checked.max_uses:
        raise ConfigError(
            f"sampler: expected neither newest nor max_uses, got {checked}; shards know neither what is newest of all, "
            "nor how many draws others have left."
        )
    return view, checked


def _check_shards(shards: int, lanes: int) -> int:
    return integer("RayReplay", "shards", shards, 1, min(MAX_SHARDS, lanes))


def _start(parts: list[Part], options: dict[str, Any], timeout: float) -> list[Remote]:
    """The shards, once all of them answer.

    Raises:
        ConfigError: options that Ray does not take, or a shard that cannot begin as it was told.
        SnapshotError: a shard that cannot begin with what it was to begin with.
        ShardError: not in time.
    """
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
        _end(remotes)
        raise
    return remotes


def _end(remotes: list[Remote]) -> None:
    for remote in remotes:
        ray.kill(remote.handle, no_restart=True)


def _stats(remote: Remote, about: Mapping[str, Any]) -> ShardStats:
    state = remote.state
    assert state is not None  # since `_start`
    return ShardStats(
        *(remote.number, remote.up, state.live, state.pushed, remote.missing(), remote.lives, state.mass),
        *(about.get("pid", 0), about.get("host", ""), about.get("snapshots", 0), about.get("problem", "")),
    )


def _place(directory: Path, shard: int) -> Path:
    return directory / f"shard-{shard:03d}"

"""A replay buffer in parts, on any number of hosts: shards are Ray actors, the union is sampled as one buffer.

Imported by name alone, since it needs Ray: `from relive.share.ray import RayReplay`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike

from relive import disk
from relive.arguments import as_errors, as_ids
from relive.batch import Batch
from relive.checks import as_path, integer, number
from relive.engine import check_updates
from relive.errors import ConfigError, SchemaError
from relive.fitting import are_magnitudes, on_cpu
from relive.forking import Lock
from relive.samplers import BuiltIn
from relive.schema import Schema
from relive.share import ray_running as running
from relive.share import ray_updates as updates
from relive.share.ray_client import Client, ClientStats, Target
from relive.share.ray_draws import Assembler, Draws
from relive.share.ray_remote import Connection, ray, refresh
from relive.share.ray_spec import Spec
from relive.share.ray_stats import ReplayStats, ShardStats, summed, survey
from relive.share.ray_union import FORMAT, MANIFEST, read_note
from relive.snapshot import check_note, frame
from relive.views import Hindsight, View

__all__ = ["Client", "ClientStats", "RayReplay", "ReplayStats", "ShardStats"]


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
        self._spec = Spec.checked(capacity, schema, shards, lanes, sampler, view, seed)
        self._in_flight = integer("RayReplay", "in_flight", in_flight, 0, 1024)
        self._timeout = number("RayReplay", "timeout", timeout, 0.1, 1e6)
        every = number("RayReplay", "snapshot_every", snapshot_every, 0.05, 1e9)
        batch = integer("RayReplay", "batch", batch, 1, 2**31)
        directory = None if snapshots is None else as_path("snapshots", snapshots).absolute()
        given = running.check_options(options)
        if not ray.is_initialized():
            raise ConfigError("RayReplay: expected Ray to be connected, it is not. Call ray.init() first.")
        self._connection = Connection()
        self._remotes = running.start(self._spec.parts(directory, every, _source), given, self._timeout)
        handles = tuple(remote.handle for remote in self._remotes)
        self._target = Target(
            *(handles, schema, self.lanes, self.sampler, self.view, batch), on_the_way=4, timeout=self._timeout
        )
        self._own = Client(self._target)
        self._turn = Lock()
        self._draws = Draws(self._remotes, self.sampler, self.view, self.seed, self._in_flight, self._timeout)
        self._assembler = Assembler(self.view)
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
        unknown = set(options) - {"snapshots", "snapshot_every", "in_flight", "batch", "timeout", "options"}
        if unknown:
            raise ConfigError(
                f"load: expected options of how it runs, got {sorted(unknown)}. The snapshot says the rest."
            )
        spec = vars(Spec.read(directory, view))
        return cls(**spec, **options, _source=directory)

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
        self._check_closed()
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
        self._check_closed()
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
        self._assembler.check(self.schema, output, device)
        with self._turn:
            self._check_open()
            if self._in_flight == 0 or not self.num_pushed:
                self._own.flush()
            group, place = self._draws.next(size)
            self._sampled += size
            return self._assembler.batch(group, place, self.sampler, beta, output, device)

    def update_priorities(self, ids: ArrayLike, abs_td: ArrayLike) -> int:
        """Gives transitions (or sequences) new priorities, see `ReplayBuffer.update_priorities`.

        With `in_flight=0` it waits until shards have them, and returns how many were live. Else it returns at once,
        with how many go with the next draw: those of a life of a shard that is known to be over do not. `stats` counts
        what took effect.

        Raises:
            SchemaError: shapes that do not belong together, NaN, infinite or negative values; then nothing changed.
            ConfigError: the sampler keeps no priorities.
        """
        check_updates(self.sampler)
        wanted = as_ids(ids)
        raw = as_errors(on_cpu(abs_td), self.view)
        if raw.shape[0] != len(wanted):
            raise SchemaError(f"abs_td: expected one for each of {len(wanted)} ids, got {raw.shape}.")
        if not are_magnitudes(raw):
            raise SchemaError("abs_td: expected finite numbers of at least 0, got others. Nothing changed.")
        with self._turn:
            self._check_open()
            if self._in_flight == 0:
                self._own.flush()
            before = updates.effective(self._remotes)
            queued = updates.queue(self._remotes, wanted, raw)
            self._given += len(wanted)
            if self._in_flight > 0:
                updates.send_old(self._remotes)
                return queued
            updates.send(self._remotes, self._timeout)
            return updates.effective(self._remotes) - before

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
            updates.send(self._remotes, self._timeout)
        written = running.save(self._remotes, directory, self._turn, self._timeout)
        data = frame(FORMAT, {**self._spec.card(), "note": note})
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
            updates.send(self._remotes, self._timeout)
            shards = survey(self._remotes, self._timeout)
            updated = updates.effective(self._remotes)
            counts = {"sampled": self._sampled, "redrawn": self._draws.redrawn, "updated": updated}
            return summed(shards, **counts, skipped=self._given - updated)

    def close(self) -> None:
        """Ends the shards; what was not saved is gone. Closing again does nothing."""
        if not self._closed:
            self._closed = True
            if self._connection.holds:
                running.end(self._remotes)

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
            f"RayReplay({self.capacity:,} transitions in {len(self._remotes)} shards, {self.lanes} lanes, "
            f"{self.sampler}, {self.view}, seed={self.seed}, in_flight={self._in_flight})"
        )

    @property
    def capacity(self) -> int:
        """Transitions that all shards keep together."""
        return self._spec.capacity

    @property
    def lanes(self) -> int:
        """Environments that are written side by side."""
        return self._spec.lanes

    @property
    def shards(self) -> int:
        """How many."""
        return len(self._remotes)

    @property
    def schema(self) -> Schema:
        """What a transition is."""
        return self._spec.schema

    @property
    def sampler(self) -> BuiltIn:
        """Which ids are drawn."""
        return self._spec.sampler

    @property
    def view(self) -> View:
        """What an id becomes."""
        return self._spec.view

    @property
    def seed(self) -> int:
        """Of the division among shards, and of their generators."""
        return self._spec.seed

    @property
    def num_pushed(self) -> int:
        """Transitions ever pushed, as shards said last. Cost: nothing."""
        return sum(remote.state.pushed for remote in self._remotes if remote.state)

    def _check_closed(self) -> None:
        if self._closed:
            raise ConfigError("RayReplay: expected it to be open, it was closed.")

    def _check_open(self) -> None:
        self._check_closed()
        self._connection.check("RayReplay")

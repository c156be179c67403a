"""One shard: an ordinary buffer, and what makes it a part of a larger one. Knows nothing of Ray, which runs it."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from relive.buffer import ReplayBuffer
from relive.durable import load
from relive.errors import ReplayError, SnapshotError
from relive.samplers import BuiltIn, Prioritized
from relive.schema import Schema
from relive.share.ray_blocks import Block, unpack
from relive.share.ray_union import narrow
from relive.snapshot import MANIFEST, read_note
from relive.trees import map_tree
from relive.views import Transitions, View


@dataclass(frozen=True)
class Part:
    """What a shard is.

    Attributes:
        number: which one, from 0.
        capacity: of this shard, a multiple of its lanes.
        lanes: of this shard.
        schema: the union's, with the lanes of this shard.
        sampler: the union's.
        view: the union's.
        seed: of this shard's generator.
        run: random, of the union this is a part of; its own snapshots say it.
        source: the snapshot that it begins with, where there is no later one of its own.
        directory: where its own snapshots go; None for none.
        every: seconds between them.
    """

    number: int
    capacity: int
    lanes: int
    schema: Schema
    sampler: BuiltIn
    view: View
    seed: int
    run: str
    source: Path | None
    directory: Path | None
    every: float


class State(NamedTuple):
    """What every answer of a shard says about it.

    Attributes:
        life: random, of this process: ids of an earlier one may be given out again.
        live: transitions.
        pushed: transitions ever pushed, those before its snapshot included.
        restored: the same when this process began.
        missing: transitions that writers numbered and that are not among the pushed.
        mass: what draws are in proportion to, summed over all anchors.
        least: the smallest of it, where the sampler knows it; else 0.
        largest: priority so far, under `Prioritized`.
        updated: priorities given anew that took effect, in this life.
    """

    life: int
    live: int
    pushed: int
    restored: int
    missing: int
    mass: float
    least: float
    largest: float
    updated: int


Updates = list[tuple[int, NDArray[np.int64], NDArray[Any]]]
"""New priorities: the life that ids are of, ids [B], |delta| [B] or [B, T]."""


class Answer(NamedTuple):
    """A shard's rows of several batches, one batch's after another's.

    Attributes:
        state: how the shard is.
        counts: rows of each batch; 0 where none were asked for, or none were left.
        sums: of each batch, the mass of all anchors when it was drawn, and the least of them.
        fields: of a batch, as `narrow` leaves them, [sum of counts, ...]; None if there are no rows.
        masses: what each row was drawn in proportion to, float64 [sum of counts].
    """

    state: State
    counts: list[int]
    sums: list[tuple[float, float]]
    fields: dict[str, Any] | None
    masses: NDArray[np.float64]


class Shard:
    """The actor. Its verbs are called one at a time, but for `save` and `about`.

    A writer numbers the transitions it sends to a shard, those included that it had to drop. So the shard knows what is
    missing, whatever was the reason: dropped while it was away, on their way when it died, or stored after its last
    snapshot, which keeps the numbers too.
    """

    def __init__(self, part: Part) -> None:
        self._part = part
        self._life = secrets.randbits(63)
        self._turn = threading.Lock()  # between what is stored and the numbers of writers
        self._received: dict[int, int] = {}  # by writer: the number its next transition should have
        self._missing = self._updated = 0
        self._saves, self._changes, self._saved = 0, 0, 0
        self._problem = ""
        self._overlaps = (
            isinstance(part.view, Transitions) and part.view.n == 1 and max(part.view.stack, part.schema.stacked) > 1
        )
        self._buffer = self._begin()
        self._native = self._buffer._reading.native
        self._restored = self._pushed()
        self._stop = threading.Event()
        if part.directory is not None:
            threading.Thread(target=self._save_again_and_again, name="relive-snapshots", daemon=True).start()

    def hello(self) -> State:
        """How it is."""
        mass, least, largest = self._native.mass(0.0)
        return State(
            *(self._life, len(self._buffer), self._pushed(), self._restored, max(self._missing, 0)),
            *(mass, least, largest, self._updated),
        )

    def push(self, writer: int, first: int, blocks: list[Block]) -> int:
        """Stores blocks of a writer, whose numbers begin with `first`. Returns how many transitions."""
        count = sum(block.length for block in blocks)
        with self._turn:
            expected = self._received.get(writer, 0)
            for block in blocks:
                self._buffer.extend(**unpack(self._part.schema, block))
            self._missing += first - expected
            self._received[writer] = first + count
            self._changes += 1
        return count

    def skipped(self, writer: int, upto: int) -> None:
        """A writer has no transition with a number below `upto` to send any more."""
        with self._turn:
            self._missing += max(0, upto - self._received.get(writer, 0))
            self._received[writer] = max(upto, self._received.get(writer, 0))

    def end(self, lanes: list[int]) -> int:
        """Ends the episodes that go on in these of its lanes; returns how many."""
        mask = np.zeros(self._part.lanes, np.bool_)
        mask[lanes] = True
        return self._buffer.end_episodes(mask)

    def draw(self, counts: list[int], largest: float, updates: Updates) -> Answer:
        """Rows for several batches, after new priorities and the largest one of the union were taken over."""
        self.lift(largest)
        state = self.update(updates)
        fields, masses, given, sums = [], [], [], []
        for count in counts:
            drawn = self._buffer._reading.sample_masses(count) if count else 0
            if isinstance(drawn, int):
                given.append(0)
                sums.append((state.mass, state.least))
            else:
                given.append(count)
                sums.append(drawn[2:])
                fields.append(narrow(vars(drawn[0]), self._overlaps))
                masses.append(drawn[1])
        if not fields:
            return Answer(state, given, sums, None, np.empty(0))
        if len(fields) == 1:
            return Answer(state, given, sums, fields[0], masses[0])
        # Whole columns: a hundred small arrays take longer on their way than what is in them.
        together = {
            key: map_tree(lambda *leaves: np.concatenate(leaves), *(one[key] for one in fields)) for key in fields[0]
        }
        return Answer(state, given, sums, together, np.concatenate(masses))

    def update(self, updates: Updates) -> State:
        """New priorities; those for ids of another life are skipped. Says how it is afterwards."""
        for life, ids, abs_td in updates:
            if life == self._life:
                self._updated += self._buffer.update_priorities(ids, abs_td)
                self._changes += 1
        return self.hello()

    def lift(self, largest: float) -> None:
        """New transitions get at least this priority from now on."""
        if isinstance(self._part.sampler, Prioritized):
            self._native.mass(largest)

    def save(self, directory: Path) -> int:
        """Saves to a directory; returns the bytes written."""
        with self._turn:
            changes = self._changes
            received = {str(writer): upto for writer, upto in self._received.items()}
            note = {"run": self._part.run, "shard": self._part.number, "received": received}
            note |= {"missing": self._missing, "pushed": self._pushed()}
        written = self._buffer.save(directory, note=note)
        if directory == self._part.directory:
            self._saves, self._saved = self._saves + 1, changes
        return written

    def about(self) -> dict[str, Any]:
        """Where it runs, and how its snapshots go."""
        return {
            **{"pid": os.getpid(), "host": socket.gethostname(), "life": self._life},
            **{"snapshots": self._saves, "problem": self._problem},
        }

    def _pushed(self) -> int:
        lanes = np.zeros((self._part.lanes, 4), np.uint64)
        self._buffer._engine.core.lanes(lanes, False)
        return int(lanes[:, 1].sum())

    def _begin(self) -> ReplayBuffer:
        """The buffer of the last snapshot of this run; else of the one it is to begin with; else an empty one."""
        part = self._part
        if part.directory is not None and (part.directory / MANIFEST).exists():
            try:
                if read_note(part.directory).get("run") == part.run:
                    return self._load(part.directory)
                if part.directory != part.source:
                    self._problem = f"{part.directory}: expected no snapshot of another replay, found one."
            except (ReplayError, AttributeError) as error:
                # Learning goes on without; what is there is put aside, for snapshots of this life need the place.
                self._problem = f"The last snapshot is of no use: {error}"
                with contextlib.suppress(OSError):
                    part.directory.rename(part.directory.with_name(f"{part.directory.name}.damaged-{self._life:x}"))
        if part.source is not None:
            try:
                return self._load(part.source)
            except ReplayError as error:
                self._problem = f"It began empty: {error}"
        return ReplayBuffer(
            part.capacity, part.schema, lanes=part.lanes, sampler=part.sampler, view=part.view, seed=part.seed
        )

    def _load(self, directory: Path) -> ReplayBuffer:
        buffer = load(directory, view=self._part.view, sampler=self._part.sampler)
        note = read_note(directory)
        shard = note.get("shard") if isinstance(note, dict) else None
        if (shard, buffer.capacity, buffer.lanes) != (self._part.number, self._part.capacity, self._part.lanes):
            raise SnapshotError(
                f"{directory}: expected shard {self._part.number} with a capacity of {self._part.capacity} in "
                f"{self._part.lanes} lanes, got shard {shard} with {buffer.capacity} in {buffer.lanes}. Give the "
                "directory of a whole replay, made by its save."
            )
        self._buffer = buffer
        self._received = {int(writer): int(upto) for writer, upto in note["received"].items()}
        # What was stored between the note and the snapshot's moment looks as if it were missing, once writers go on.
        self._missing = int(note["missing"]) - (self._pushed() - int(note["pushed"]))
        return buffer

    def _save_again_and_again(self) -> None:
        assert self._part.directory is not None
        while not self._stop.wait(self._part.every):
            if self._saved == self._changes:
                continue
            try:
                self.save(self._part.directory)
            except Exception as error:  # it is tried again, and told by `about`
                self._problem = f"A snapshot failed: {error}"

"""A buffer -> a snapshot: what is new since the last one, at one moment, while other threads go on pushing.

Settled transitions are copied out in small pieces, under the lock for as long as a piece takes, until few are left that
were pushed meanwhile. Those, the open ends of episodes and the sampler's values are copied together, at one moment: the
snapshot is the buffer as it was then.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive import compression as packing
from relive._core import Core, release_all
from relive._core import Reader as Native
from relive.compaction import Run, make_plan
from relive.disk import Claim, is_there, make_directory, remove
from relive.errors import ConfigError, SnapshotError
from relive.saves import MOST, Saves
from relive.schema import Schema
from relive.snapshot import (
    MANIFEST,
    Manifest,
    Segment,
    check_note,
    commit,
    drop_others,
    read_manifest,
)
from relive.strips import VALUES, Extent, Part, parts_of
from relive.writing import Rows, Writing

SEGMENTS = 64
"""Segments above which small neighbours are written anew as one."""

SHARE = 16
"""A segment holds at most this part of the capacity: what is dead of the oldest one is all that a snapshot wastes."""

SMALL = 1 << 26
"""Bytes of a segment that is not divided further: every file costs a wait for the disk."""

ROUNDS = 8
"""Of copying while others push. Who pushes faster than the disk writes waits for it after so many."""


class Saver:
    """Saves one buffer, into any directories; into each one only what is new since the last time."""

    def __init__(self, core: Core, native: Native, schema: Schema, capacity: int, saves: Saves | None = None) -> None:
        """Of a buffer that others may attach to later, `saves` remembers which snapshots are its own."""
        self._core, self._native, self._saves = core, native, saves
        self._parts = parts_of(core, schema)
        self._capacity = capacity
        self._known: dict[str, bool] = {}  # our snapshots; whether also what the sampler keeps is ours
        self._heads = self._state()[:, 1].tolist()  # as we found them

    def knows(self, manifest: Manifest, *, anew: bool) -> None:
        """This buffer's contents were loaded from there; `anew`: all but what its sampler keeps."""
        self._remember(manifest, not anew)

    def _remember(self, manifest: Manifest, whole: bool) -> None:
        self._known = dict([*self._known.items(), (manifest.identity, whole)][-MOST:])
        if self._saves and whole:
            self._saves.remember(manifest.identity)

    def _ours(self, there: Manifest) -> Manifest | None:
        """What there is of ours in a snapshot; None if it is another buffer's."""
        whole = self._known.get(there.identity)
        if whole is None and self._saves and there.identity in self._saves.identities():
            # What was saved later than what we found here, from an arena that was put back since, is another's.
            whole = all(lane[1] <= head for lane, head in zip(there.lanes, self._heads, strict=True)) or None
        # A selector that begins anew counts its changes anew: what it keeps is not what was saved.
        return there if whole else None if whole is None else replace(there, selector={})

    def save(self, directory: Path, buffer: dict[str, Any], note: Any, compressed: bool, overwrite: bool) -> int:
        """Saves, see `ReplayBuffer.save`. One thread at a time."""
        if compressed:
            packing.library()
        check_note(note)
        try:
            made = _make(directory)
            with contextlib.closing(Claim(directory)):
                there, number = _look(directory, overwrite)
                last = None if there is None or overwrite else self._ours(there)
                if there is not None and last is None and not overwrite:
                    raise _of_another(directory)
                try:
                    with Writing(directory, number, compressed) as out:
                        return self._write(out, last, buffer, note)
                except BaseException:
                    with contextlib.suppress(OSError):  # what is left is of no use, and in nobody's way
                        _tidy(directory, there)
                        if made:
                            os.rmdir(directory)  # noqa: PTH106
                    raise
        except OSError as error:
            if isinstance(error, SnapshotError):
                raise
            raise SnapshotError(
                f"{directory}: expected to save, got an error of the system ({error}). What was there before is "
                "whole, or this one is there."
            ) from error

    def _write(self, out: Writing, last: Manifest | None, buffer: dict[str, Any], note: Any) -> int:
        """What is new, then what commits it. Returns the bytes."""
        manifest = self._cut(out, last)
        manifest = replace(manifest, buffer=buffer, note=note, number=out.number)
        out.draft(MANIFEST, manifest.encode())
        out.sync()
        self._remember(manifest, True)
        commit(out.directory, manifest)
        return out.written

    def _cut(self, out: Writing, last: Manifest | None) -> Manifest:
        num_lanes = self._core.num_lanes
        done = np.zeros(num_lanes, np.uint64)
        segments = self._kept(out, last.segments, done) if last else []
        room = self._parts.chunk
        strips, tails = self._parts.allocate(room), self._parts.allocate(2 * num_lanes)
        lanes, epochs = np.zeros((num_lanes, 4), np.uint64), np.zeros((num_lanes, 2), np.uint64)
        values = [
            np.zeros(self._capacity, dtype) if kept else None
            for kept, (_, dtype) in zip(self._native.keeps(), VALUES, strict=True)
        ]
        for value in values:
            if value is not None:
                value[: self._core.live] = 0  # the system gives memory when it is touched: not while others wait
        held: list[Core] = []  # who pushes faster than this copies is made to wait, after some rounds
        try:
            for attempt in range(ROUNDS + 1):
                cut = self._native.cut(done, room, strips, tails, lanes, epochs, tuple(values), bool(held))
                if cut is not None:
                    break
                if attempt == ROUNDS:
                    self._core.hold(held)
                segments += self._copy_new(out, done, bool(held))
            else:
                cut = self._native.cut(done, room, strips, tails, lanes, epochs, tuple(values), bool(held))
        finally:
            release_all(held)
        assert cut is not None  # while the lock is held nothing is pushed
        extent, tail_extent, selector = cut
        state = [(int(b), int(h), int(o), int(f)) for b, h, o, f in lanes]
        live = sum(head - begin for begin, head, *_ in state)
        new = [
            (lane, max(int(done[lane]), first), head - going)
            for lane, (_, head, going, first) in enumerate(state)
            if head - going > max(int(done[lane]), first)
        ]
        same = last is not None and not new and list(last.lanes) == state
        if new:
            segments.append(self._write_strips(out, new, strips, extent))
        segments = [s for s in segments if any(end > state[lane][3] for lane, _, end in s.runs)]
        ends = [(lane, head - 1, head + 1) for lane, (_, head, going, _) in enumerate(state) if going]
        unchanged = last is not None and same and last.selector.get("changes") == selector["changes"]
        if last is not None and unchanged and all(is_there(out.directory, file) for file in last.open_files):
            tail, files = last.tail, last.values
        else:
            tail = self._write_strips(out, ends, tails, tail_extent) if ends else None
            files = tuple(
                out.array(name, Part(name, 0, dtype), value[:live])
                for (name, dtype), value in zip(VALUES, values, strict=True)
                if value is not None
            )
        pairs = tuple((int(begin), int(head)) for begin, head in epochs)
        return Manifest(secrets.token_hex(16), 0, {}, tuple(state), selector, pairs, tuple(segments), tail, files, None)

    def _state(self, held: bool = False) -> NDArray[np.uint64]:
        """Of every lane: begin, head, open, the oldest time needed."""
        lanes = np.zeros((self._core.num_lanes, 4), np.uint64)
        self._core.lanes(lanes, held)
        return lanes

    def _kept(self, out: Writing, segments: Sequence[Segment], done: NDArray[np.uint64]) -> list[Segment]:
        """Those that stay of the last snapshot, and what is written anew in place of others. `done`: up to where."""
        state = self._state()
        for segment in segments:
            for lane, _, end in segment.runs:
                done[lane] = end
        num_new = sum(
            max(0, int(head) - int(going) - max(int(done[lane]), int(first)))
            for lane, (_, head, going, first) in enumerate(state)
        )
        plan = make_plan(
            segments,
            state[:, 3].tolist(),
            num_new,
            largest=self._largest,
            most=SEGMENTS,
            is_whole=lambda segment: all(is_there(out.directory, file) for file in segment.files if file),
        )
        kept: list[Segment] = []
        for stay in plan.stays:
            kept += [stay.segment] if stay.segment else self._copy(out, stay.runs)
        for lane, begin, _ in plan.taken_back:
            done[lane] = min(begin, done[lane])
        return kept

    @property
    def _largest(self) -> int:
        """Rows of a segment."""
        return max(self._capacity // SHARE, SMALL // self._parts.row_bytes, self._parts.chunk)

    def _copy_new(self, out: Writing, done: NDArray[np.uint64], held: bool) -> list[Segment]:
        """Writes the settled transitions from `done` on, and moves `done` on behind them."""
        runs = [
            (lane, max(int(done[lane]), first), head - going)
            for lane, (_, head, going, first) in enumerate(self._state(held).tolist())
        ]
        segments = self._copy(out, runs, held)
        for lane, begin, end in runs:
            done[lane] = max(int(done[lane]), begin, end)
        return segments

    def _copy(self, out: Writing, runs: Sequence[Run], held: bool = False) -> list[Segment]:
        """Writes these rows, piece by piece."""
        segments: list[Segment] = []
        open_: Rows | None = None
        for lane, time, end in runs:
            while time < end:
                if open_ is None:
                    open_ = Rows(out, self._parts)
                upto = min(end, time + self._parts.chunk, time + self._largest - open_.extent[0])
                if not open_.copy(self._core, lane, time, upto, held):
                    # Overwritten meanwhile: the snapshot does without, so far as it needs the lane at all.
                    time = min(end, max(time + 1, int(self._state(held)[lane, 3])))
                    continue
                time = upto
                if open_.extent[0] == self._largest:
                    segments.append(open_.finish())
                    open_ = None
        if open_ is not None:
            segments.append(open_.finish())
        return segments

    def _write_strips(
        self, out: Writing, runs: Sequence[tuple[int, int, int]], strips: Sequence[NDArray[np.uint8]], extent: Extent
    ) -> Segment:
        number = out.next_number()
        files = tuple(
            out.array(part.name, part, strip[: extent[part.per]], number)
            if extent[part.per] * part.entry_bytes
            else None
            for part, strip in zip(self._parts, strips, strict=True)
        )
        return Segment(tuple(runs), extent, files)


def _make(directory: Path) -> bool:
    """Makes a directory, if it is not there."""
    try:
        return make_directory(directory)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"save: expected a directory, got the file {directory}. Give another path.") from None


def _look(directory: Path, overwrite: bool) -> tuple[Manifest | None, int]:
    """The manifest that is there, if any, and the number of the next file.

    Raises:
        SnapshotError: it is damaged.
    """
    if not os.path.lexists(directory / MANIFEST):
        return None, 1
    try:
        there = read_manifest(directory)
    except SnapshotError:
        if not overwrite:
            raise
        return None, secrets.randbelow(900_000) + 100_000  # a reader of the old one must not find our files in it
    return there, there.number


def _of_another(directory: Path) -> ConfigError:
    return ConfigError(
        f"save: expected a directory that is new or holds an earlier save of this buffer, {directory} holds a "
        "snapshot of another one. Load that one and go on with it, save elsewhere, or pass overwrite=True."
    )


def _tidy(directory: Path, before: Manifest | None) -> None:
    """Removes what a save has left that came to nothing."""
    remove(directory / f"{MANIFEST}.new")
    if os.path.lexists(directory / MANIFEST):
        # Which of them is there after a loss of power, nobody knows.
        drop_others(directory, read_manifest(directory), before)
    else:
        drop_others(directory)

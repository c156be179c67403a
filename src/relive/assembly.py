"""What a buffer is made of, put together: memory, core, reader, and who writes and saves."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive._core import BOARD, Core, Found
from relive.append import Appender
from relive.forking import watch
from relive.mapped import Mmap, Synced, damaged, forget_synced, open_until_end, repair
from relive.reading import Reader
from relive.samplers import BuiltIn, Sampler
from relive.saves import Saves
from relive.saving import Saver
from relive.schema import Schema
from relive.segment import Segment
from relive.shared import SharedMemory, not_whole
from relive.specs import sampler_to_dict, view_to_dict
from relive.storage import Memory, core_field, core_fields, history, measure
from relive.views import View

Storage = Memory | Mmap | SharedMemory


@dataclass(frozen=True)
class Spec:
    """All that a buffer is, but for its contents."""

    capacity: int
    lanes: int
    schema: Schema
    sampler: BuiltIn | Sampler
    view: View
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **{"capacity": self.capacity, "lanes": self.lanes, "seed": self.seed},
            "schema": self.schema.to_dict(),
            "sampler": sampler_to_dict(self.sampler),
            "view": view_to_dict(self.view),
        }


class Attachment:
    """Which attachment to a shared buffer this is; the child of a fork is another one than its parent."""

    def __init__(self, core: Core, number: int) -> None:
        self._core = core
        self._known = os.getpid(), number

    @property
    def number(self) -> int:
        """1, 2, ...; 0 in the process that made the buffer."""
        process, number = self._known
        if process != os.getpid():
            number = self._core.add(0, 1) + 1
            self._known = os.getpid(), number
        return number


@dataclass(frozen=True)
class Engine:
    """The working parts of one buffer.

    Attributes:
        core: its contents.
        into: the same where transitions are appended; it may have more to do.
        appender: fits and appends.
        reading: the buffer's own reader.
        saver: saves.
        board: int64 [64], the same numbers in every process that has the buffer; changed by `core.add` alone, so that
            nobody waits. 0: attachments so far. 1 to 5: items sampled, nanoseconds inserters and samplers waited,
            waits of either, see `share.rate_limit`. 6: deaths in the midst of something that were recovered from.
        segment: where it lies, in shared memory.
        attachment: which one this is, in shared memory.
    """

    core: Core
    into: Core | Synced
    appender: Appender
    reading: Reader
    saver: Saver
    board: NDArray[np.int64]
    segment: Segment | None = None
    attachment: Attachment | None = None


def assemble(
    spec: Spec,
    storage: Storage,
    *,
    attach: bool = False,
    segment: Segment | None = None,
    fill: Callable[[Core, Reader], None] | None = None,
) -> Engine:
    """Allocates memory for a buffer, or finds one that is there.

    Args:
        spec: what it is.
        storage: where the bytes live.
        attach: whether there is one in the storage's file.
        segment: the shared memory that there is one in.
        fill: gives it its contents. What fails before that is done leaves no file and no shared memory behind.

    Raises:
        ConfigError: there is no room, or something is in it.
        SnapshotError: nothing whole is there to attach to.
    """
    sizes = measure(spec.schema, spec.capacity, spec.lanes, spec.view, spec.sampler)
    selector_at = sizes.max_bytes - sizes.sampler_bytes
    busy = (0, sizes.full_bytes - sizes.sampler_bytes), (selector_at, sizes.max_bytes)
    if isinstance(storage, Mmap):
        return _mapped(spec, storage, sizes.max_bytes, selector_at, busy, attach=attach, fill=fill)
    if isinstance(storage, SharedMemory):
        return _shared(spec, storage, sizes.max_bytes, selector_at, busy, segment=segment, fill=fill)
    memory = storage.allocate(sizes.max_bytes, busy)
    core = _core(spec, memory, Found.ZEROED)
    reading = _reading(spec, core, memory, selector_at, Found.ZEROED)
    watch(core)
    if fill:
        fill(core, reading)
    return _engine(spec, core, core, reading, memory)


def _mapped(
    spec: Spec,
    storage: Mmap,
    num_bytes: int,
    selector_at: int,
    busy: tuple[tuple[int, int], ...],
    *,
    attach: bool,
    fill: Callable[[Core, Reader], None] | None,
) -> Engine:
    path = Path(storage.path)
    memory = storage.open(num_bytes) if attach else storage.allocate(num_bytes, busy)
    try:
        found, draws = Found.ZEROED, 0
        try:
            core = _core(spec, memory, Found.WHOLE if attach else Found.ZEROED)
        except ValueError as error:
            raise damaged(path) from error
        if attach:
            found, draws = repair(path, memory, core, history(spec.schema, spec.view))
            if found is Found.ZEROED:
                np.frombuffer(memory, np.uint8)[selector_at:] = 0
        reading = _reading(spec, core, memory, selector_at, found)
        if draws:
            reading.resume(spec.seed, draws)
        watch(core, shared=True)
        open_until_end(core, memory)
        if fill:
            fill(core, reading)
        if storage.sync is None:
            into: Core | Synced = core
            forget_synced(path)
        else:
            into = Synced(core, path, storage.sync, lambda: reading.draws)
            into.write_out()
        if not attach:
            storage.describe(spec.to_dict())
        return _engine(spec, core, into, reading, memory, saves=Saves(path))
    except BaseException:
        if not attach:
            storage.discard()
        raise


def _shared(
    spec: Spec,
    storage: SharedMemory,
    num_bytes: int,
    selector_at: int,
    busy: tuple[tuple[int, int], ...],
    *,
    segment: Segment | None,
    fill: Callable[[Core, Reader], None] | None,
) -> Engine:
    found = Found.LIVE if segment else Found.ZEROED
    segment = segment or storage.allocate(spec.to_dict(), num_bytes, busy)
    try:
        if len(segment.payload) != num_bytes:
            raise not_whole(storage.name)
        try:
            core = _core(spec, segment.payload, found)
            reading = _reading(spec, core, segment.payload, selector_at, found)
        except ValueError as error:
            raise not_whole(storage.name) from error
        watch(core, shared=True, key=segment.key)
        if fill:
            fill(core, reading)
        engine = _engine(spec, core, core, reading, segment.payload, segment=segment)
        number = core.add(0, 1) + 1 if found is Found.LIVE else 0
        engine = replace(engine, attachment=Attachment(core, number))
        weakref.finalize(core, segment.close)
        return engine
    except BaseException:
        segment.close()
        raise


def _core(spec: Spec, memory: Any, found: Found) -> Core:
    schema = spec.schema
    return Core(
        memory,
        core_fields(schema.obs, "obs"),
        core_fields(schema.action, "action"),
        [core_field(extra) for extra in schema.extras.values()],
        spec.lanes,
        spec.capacity // spec.lanes,
        schema.stacked,
        history(schema, spec.view),
        found,
    )


def _reading(spec: Spec, core: Core, memory: Any, selector_at: int, found: Found) -> Reader:
    return Reader(
        core, spec.schema, spec.view, spec.sampler, (memory, selector_at), spec.seed, primary=True, found=found
    )


def _engine(
    spec: Spec,
    core: Core,
    into: Core | Synced,
    reading: Reader,
    memory: Any,
    *,
    segment: Segment | None = None,
    saves: Saves | None = None,
) -> Engine:
    board = np.frombuffer(memory, np.int64, 64, BOARD)
    appender = Appender(into, spec.schema, spec.lanes)
    saver = Saver(core, reading.native, spec.schema, spec.capacity, saves)
    return Engine(core, into, appender, reading, saver, board, segment)

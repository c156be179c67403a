"""What a buffer is made of, put together: memory, core, reader, and who writes and saves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from relive._core import Core, Found
from relive.append import Appender
from relive.forking import watch
from relive.mapped import Mmap, Synced, damaged, forget_synced, open_until_end, repair
from relive.reading import Reader
from relive.samplers import BuiltIn, Sampler
from relive.saving import Saver
from relive.schema import Schema
from relive.specs import sampler_to_dict, view_to_dict
from relive.storage import Memory, core_field, core_fields, history, measure
from relive.views import View

Storage = Memory | Mmap


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


@dataclass(frozen=True)
class Engine:
    """The working parts of one buffer.

    Attributes:
        core: its contents.
        into: the same where transitions are appended; it may have more to do.
        appender: fits and appends.
        reading: the buffer's own reader.
        saver: saves.
    """

    core: Core
    into: Core | Synced
    appender: Appender
    reading: Reader
    saver: Saver


def assemble(
    spec: Spec, storage: Storage, *, attach: bool = False, fill: Callable[[Core, Reader], None] | None = None
) -> Engine:
    """Allocates memory for a buffer, or with `attach` finds one in its file.

    Args:
        spec: what it is.
        storage: where the bytes live.
        attach: whether there is one.
        fill: gives it its contents. What fails before that is done leaves no file behind.

    Raises:
        ConfigError: there is no room, or something is in it.
        SnapshotError: nothing whole is there to attach to.
    """
    sizes = measure(spec.schema, spec.capacity, spec.lanes, spec.view, spec.sampler)
    selector_at = sizes.max_bytes - sizes.sampler_bytes
    busy = (0, sizes.full_bytes - sizes.sampler_bytes), (selector_at, sizes.max_bytes)
    if isinstance(storage, Memory):
        engine = _connect(spec, storage.allocate(sizes.max_bytes, busy), selector_at, None)
        if fill:
            fill(engine.core, engine.reading)
        return engine
    memory = storage.open(sizes.max_bytes) if attach else storage.allocate(sizes.max_bytes, busy)
    try:
        engine = _connect(spec, memory, selector_at, storage, attach=attach)
        if fill:
            fill(engine.core, engine.reading)
        if isinstance(engine.into, Synced):
            engine.into.write_out()
        else:
            forget_synced(Path(storage.path))
        if not attach:
            storage.describe(spec.to_dict())
        return engine
    except BaseException:
        if not attach:
            storage.discard()
        raise


def _connect(spec: Spec, memory: Any, selector_at: int, mapped: Mmap | None, *, attach: bool = False) -> Engine:
    """The parts over their memory, which is zeroed, or what `attach` found."""
    schema, kept = spec.schema, history(spec.schema, spec.view)
    try:
        core = Core(
            memory,
            core_fields(schema.obs, "obs"),
            core_fields(schema.action, "action"),
            [core_field(extra) for extra in schema.extras.values()],
            spec.lanes,
            spec.capacity // spec.lanes,
            schema.stacked,
            kept,
            attach,
        )
    except ValueError as error:
        assert mapped  # memory that was just allocated fits
        raise damaged(Path(mapped.path)) from error
    found, draws = Found.ZEROED, 0
    if mapped and attach:
        found, draws = repair(Path(mapped.path), memory, core, kept)
        if found is Found.ZEROED:
            np.frombuffer(memory, np.uint8)[selector_at:] = 0
    reading = Reader(core, schema, spec.view, spec.sampler, (memory, selector_at), spec.seed, primary=True, found=found)
    if draws:
        reading.resume(spec.seed, draws)
    watch(core, shared=mapped is not None)
    into: Core | Synced = core
    if mapped:
        open_until_end(core, memory)
        if mapped.sync is not None:
            into = Synced(core, Path(mapped.path), mapped.sync, lambda: reading.draws)
    appender = Appender(into, schema, spec.lanes)
    saver = Saver(core, reading.native, schema, spec.capacity)
    return Engine(core, into, appender, reading, saver)

"""What a buffer is made of, put together: memory, core, reader, and who writes and saves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from relive._core import Core, Found
from relive.append import Appender
from relive.forking import watch
from relive.mapped import Mmap, Synced, close_at_end, repair
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


def assemble(spec: Spec, storage: Storage, *, attach: bool = False) -> Engine:
    """Allocates memory for a buffer, or with `attach` finds one in its file.

    Raises:
        ConfigError: there is no room, or something is in it.
        SnapshotError: nothing whole is there to attach to.
    """
    schema, kept = spec.schema, history(spec.schema, spec.view)
    sizes = measure(schema, spec.capacity, spec.lanes, spec.view, spec.sampler)
    selector_at = sizes.max_bytes - sizes.sampler_bytes
    busy = (0, sizes.full_bytes - sizes.sampler_bytes), (selector_at, sizes.max_bytes)
    mapped = storage if isinstance(storage, Mmap) else None
    memory = mapped.open(sizes.max_bytes) if mapped and attach else storage.allocate(sizes.max_bytes, busy)
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
        close_at_end(core, memory)
        if not attach:
            mapped.describe(spec.to_dict())
        if mapped.sync is not None:
            into = Synced(core, Path(mapped.path), mapped.sync, lambda: reading.draws)
    return Engine(
        core, into, Appender(into, schema, spec.lanes), reading, Saver(core, reading.native, schema, spec.capacity)
    )

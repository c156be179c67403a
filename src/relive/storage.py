"""Where the bytes live, and how many there are."""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from relive._core import MAX_LANE_CAPACITY, selector_bytes
from relive._core import measure as measure_arena
from relive.engine import check_axes, options
from relive.errors import ConfigError
from relive.samplers import BuiltIn, Sampler
from relive.schema import Field, Schema, leaves
from relive.views import Hindsight, View

# Linux does not count such memory until it is touched; Python 3.11 does not name the flag yet.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


@dataclass(frozen=True)
class Memory:
    """The memory of this process.

    The system gives it page by page as transitions fill it: an empty buffer of any capacity costs nothing.
    """

    def allocate(self, num_bytes: int, busy: Iterable[tuple[int, int]]) -> Any:
        """Zeroed, page-aligned memory that supports the buffer protocol.

        Args:
            num_bytes: how much.
            busy: parts (start, end), aligned to pages, that profit from large pages.

        Raises:
            ConfigError: the system has no such address space.
        """
        try:
            memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        except (OSError, ValueError, OverflowError) as error:
            raise ConfigError(
                f"Memory: expected {format_bytes(num_bytes)} of address space, got an error of the system ({error}). "
                "Choose a smaller capacity."
            ) from error
        if hasattr(mmap, "MADV_HUGEPAGE"):
            # A kernel without large pages: slower, not wrong.
            with contextlib.suppress(OSError):
                for start, end in busy:
                    memory.madvise(mmap.MADV_HUGEPAGE, start, end - start)
        return memory


@dataclass(frozen=True)
class Plan:
    """What a buffer takes, to the byte.

    Attributes:
        capacity: in transitions.
        lanes: rings the capacity is divided into.
        transition_bytes: of one stored transition, next_obs and frame stacks included.
        final_bytes: of one final observation; each ended episode in the buffer holds one.
        sampler_bytes: what the sampler keeps about all transitions, when full.
        full_bytes: of the full buffer without its final observations, with what the sampler keeps.
        max_bytes: if every transition ended its own episode. So much address space is reserved, none of it used
            before it is filled.
        available_bytes: memory of this machine.
    """

    capacity: int
    lanes: int
    transition_bytes: int
    final_bytes: int
    sampler_bytes: int
    full_bytes: int
    max_bytes: int
    available_bytes: int

    def bytes(self, episodes: int) -> int:
        """Of the full buffer, with this many ended episodes in it."""
        return self.full_bytes + min(episodes, self.capacity) * self.final_bytes

    def __str__(self) -> str:
        return (
            f"{self.capacity:,} transitions of {self.transition_bytes:,} B: {format_bytes(self.full_bytes)} when full, "
            f"plus {self.final_bytes:,} B for each ended episode in the buffer (at most "
            f"{format_bytes(self.max_bytes)}); this machine has {format_bytes(self.available_bytes)}"
        )


def plan(
    schema: Schema,
    capacity: int,
    view: View | Hindsight | None = None,
    *,
    lanes: int | None = None,
    sampler: BuiltIn | Sampler | None = None,
) -> Plan:
    """What a buffer of this schema, capacity, view and sampler will take, before anything is allocated.

    Args:
        schema: the fields of a transition.
        capacity: in transitions, a multiple of lanes.
        view: what the buffer will be read as; a view that stacks k frames keeps k - 1 more.
        lanes: as in `ReplayBuffer`; the schema's by default.
        sampler: which ids will be drawn; priorities, use counts and the starts of sequences take memory.

    Returns:
        Plan: exact figures; `print` it.

    Raises:
        ConfigError: the full buffer cannot fit in this machine's memory, or the capacity is no multiple of lanes.
    """
    capacity, num_lanes = divide(capacity, lanes, schema)
    view, sampler = check_axes(view, sampler)
    result = measure(schema, capacity, num_lanes, view, sampler)
    if result.full_bytes > result.available_bytes:
        fits = int(capacity * result.available_bytes / result.full_bytes * 0.99) // num_lanes * num_lanes
        raise ConfigError(
            f"plan: expected at most {format_bytes(result.available_bytes)}, this machine's memory, got "
            f"{format_bytes(result.full_bytes)} ({capacity:,} transitions of {result.transition_bytes:,} B). "
            f"A capacity of {fits:,} fits."
        )
    return result


def divide(capacity: int, lanes: int | None, schema: Schema | None) -> tuple[int, int]:
    """The capacity and the number of lanes: as said, else as the schema says, else 1.

    Raises:
        ConfigError: the capacity cannot be divided into so many, or schema and argument contradict each other.
    """
    found = schema.lanes if schema is not None else 1
    if lanes is None:
        lanes = found
    elif found not in (1, lanes):
        raise ConfigError(
            f"lanes: expected {found}, as the schema says, got {lanes}. Leave it out, or give the schema of as many: "
            f"dataclasses.replace(schema, lanes={lanes})."
        )
    for name, value in (("capacity", capacity), ("lanes", lanes)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name}: expected an integer of at least 1, got {value!r}.")
    capacity, lanes = int(capacity), int(lanes)
    if capacity % lanes:
        below = capacity // lanes * lanes
        nearest = f"{below} or {below + lanes}" if below else str(lanes)
        raise ConfigError(f"capacity: expected a multiple of the {lanes} lanes, got {capacity}. Take {nearest}.")
    if capacity // lanes > MAX_LANE_CAPACITY:
        raise ConfigError(
            f"capacity: expected at most {MAX_LANE_CAPACITY:,} transitions a lane, got {capacity // lanes:,}. "
            "Use more lanes."
        )
    return capacity, lanes


def measure(schema: Schema, capacity: int, lanes: int, view: View, sampler: BuiltIn | Sampler) -> Plan:
    """The figures of `plan`, whether or not they fit."""
    rest = core_fields(schema.action, "action") + [core_field(extra) for extra in schema.extras.values()]
    shape = (
        *(core_fields(schema.obs, "obs"), rest, lanes, capacity // lanes, schema.stacked),
        history(schema, view),
    )
    try:
        sizes = measure_arena(*shape)
        sampler_bytes = selector_bytes(*shape, options(schema, view, sampler))
    except OverflowError as error:
        raise ConfigError(f"capacity: expected a buffer that can be addressed, got {capacity:,} ({error}).") from error
    return Plan(
        capacity,
        lanes,
        sizes["transition_bytes"],
        sizes["final_bytes"],
        sampler_bytes,
        sizes["filled_bytes"] + sampler_bytes,
        sizes["arena_bytes"] + sampler_bytes,
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    )


def history(schema: Schema, view: View) -> int:
    """Rows a lane keeps beyond its capacity, so that the oldest live transition still has its whole stack."""
    return max(schema.stacked, view.stack) - 1


def core_field(field: Field) -> tuple[Any, list[int], list[int], list[int]]:
    """A field as the native core takes it: dtype, shape, lowest and highest values."""
    low, high = field.bounds()
    return field.itemdtype, list(field.shape), low, high


def core_fields(tree: Any, name: str) -> list[tuple[Any, list[int], list[int], list[int]]]:
    """All fields of a tree as the native core takes them."""
    return [core_field(leaf) for _, leaf in leaves(tree, name)]


def format_bytes(count: float) -> str:
    """A number of bytes as people read it."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} PiB"

"""The arrays of a snapshot's segment: which there are, of what dtype, and memory to move rows through."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from relive._core import Core
from relive.schema import Field, Schema, leaves

CHUNK = 1 << 20
"""Bytes that are moved at once: what the lock is held for, and what stays in a core's cache."""

Per = Literal[0, 1, 2]
"""What an array has one entry for: a row, a final observation, a stack prefix; the place in an extent."""

Extent = tuple[int, int, int]
"""How much of a segment there is: rows, final observations, stack prefixes."""

Strips = tuple[NDArray[np.uint8], ...]
"""Memory to move rows through, an array for each part."""

VALUES: tuple[tuple[str, np.dtype[Any]], ...] = (
    ("masses", np.dtype("f8")),
    ("places", np.dtype("u4")),
    ("uses", np.dtype("u4")),
)
"""What a sampler may keep of each live transition."""


@dataclass(frozen=True)
class Part:
    """One array of a segment.

    Attributes:
        name: of its file.
        per: what it has one entry for.
        dtype: of an entry's elements.
        shape: of an entry.
    """

    name: str
    per: Per
    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()

    @property
    def entry_bytes(self) -> int:
        """Of one entry."""
        return int(self.dtype.itemsize * math.prod(self.shape))


@dataclass(frozen=True)
class Parts:
    """All arrays of a segment, in the order of the native core."""

    parts: tuple[Part, ...]

    def __iter__(self) -> Iterator[Part]:
        return iter(self.parts)

    @property
    def row_bytes(self) -> int:
        """Of one row with its final observation and prefix, if it had them."""
        return max(1, sum(part.entry_bytes for part in self.parts))

    @property
    def chunk(self) -> int:
        """Rows that are moved at once."""
        plain = sum(part.entry_bytes for part in self.parts if part.per == 0)
        return max(1, CHUNK // max(1, plain))

    def allocate(self, rows: int) -> tuple[NDArray[np.uint8], ...]:
        """Memory for so many rows."""
        return tuple([np.zeros((rows, part.entry_bytes), np.uint8) for part in self.parts])


def parts_of(core: Core, schema: Schema) -> Parts:
    """The arrays of a segment of a buffer.

    Records are a structured array: the packed fields by name, the reward, and three words about the episode.
    `episode.step` is the position in the episode, plus 2^31 where terminated, plus 2^30 where truncated.
    `episode.final` is 0 where next_obs is the obs of the following record, else 1 + the place of next_obs among the
    final observations. `episode.start`, where observations arrive stacked, says of an episode's first record what was
    before it: 0 its own frame, 1 zeros, else 2 + a place among the prefixes.
    """
    layout = core.layout()
    obs = [(name, _frame(leaf, schema.stacked)) for name, leaf in leaves(schema.obs, "obs")]
    rest = [*leaves(schema.action, "action"), *schema.extras.items()]
    placed = [
        *zip(obs, layout["obs"], strict=True),
        *zip(rest, layout["rest"], strict=True),
    ]
    words = layout["words_offset"]
    fields = [(name, leaf.itemdtype, leaf.shape, place) for (name, leaf), place in placed if place >= 0]
    fields += [("reward", np.dtype("f4"), (), words), ("episode.step", np.dtype("u4"), (), words + 4)]
    fields += [("episode.final", np.dtype("u4"), (), words + 8)]
    if schema.stacked > 1:
        fields.append(("episode.start", np.dtype("u4"), (), words + 12))
    parts = [Part("records", 0, _record(fields, layout["record_bytes"]))]
    columns = [leaf for (_, leaf), place in placed if place < 0]
    parts += [Part(f"column-{i}", 0, leaf.itemdtype, leaf.shape) for i, leaf in enumerate(columns)]
    num_packed = sum(place >= 0 for place in layout["obs"])  # observations come first in a record
    parts.append(Part("finals", 1, _record(fields[:num_packed], layout["final_bytes"])))
    columns = [leaf for (_, leaf), place in zip(obs, layout["obs"], strict=True) if place < 0]
    parts += [Part(f"final-column-{i}", 1, leaf.itemdtype, leaf.shape) for i, leaf in enumerate(columns)]
    if schema.stacked > 1:
        before = schema.stacked - 1
        parts += [Part(f"prefix-{i}", 2, leaf.itemdtype, (before, *leaf.shape)) for i, (_, leaf) in enumerate(obs)]
    return Parts(tuple(parts))


def _frame(leaf: Field, stacked: int) -> Field:
    """What is stored of an observation: its newest frame, where it arrives as a stack."""
    return Field(leaf.dtype, leaf.shape[1:]) if stacked > 1 else leaf


def _record(fields: list[tuple[str, np.dtype[Any], tuple[int, ...], int]], size: int) -> np.dtype[Any]:
    """A structured dtype; two fields of one name (a dict's key may have a dot in it) are told apart by their place."""
    names = [name for name, *_ in fields]
    unique = [name if names.count(name) == 1 else f"{name}#{i}" for i, name in enumerate(names)]
    while len(set(unique)) < len(unique):  # a key may look like that, too
        unique = [f"{name}#{i}" for i, name in enumerate(unique)]
    return np.dtype(
        {
            "names": unique,
            "formats": [(dtype, shape) for _, dtype, shape, _ in fields],
            "offsets": [offset for *_, offset in fields],
            "itemsize": size,
        }
    )

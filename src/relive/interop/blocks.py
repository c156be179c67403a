"""Blocks of transitions: cut, joined, compared, and checked against their schema."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive.errors import DatasetError, SchemaError
from relive.interop.source import Block, Source
from relive.schema import Field, Schema, flatten, leaves, unflatten
from relive.trees import map_tree

BLOCK_BYTES = 4 << 20
"""Bytes of observations, actions and extras that are read at a time."""

BLOCK_ROWS = 16_384
"""Transitions that are read at a time, at most."""


def row_bytes(schema: Schema) -> int:
    """Bytes of a transition without its next observation."""
    fields = [*leaves(schema.obs, "obs"), *leaves(schema.action, "action"), *schema.extras.items()]
    return sum(field.itemdtype.itemsize * math.prod(field.shape) for _, field in fields)


def rows_at_once(schema: Schema) -> int:
    """Transitions to a block, so that memory is bounded whatever their size."""
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(1, row_bytes(schema))))


def spans(length: int, rows: int) -> Iterator[tuple[int, int]]:
    """[0, length) cut into pieces of at most so many rows."""
    for start in range(0, length, rows):
        yield start, min(start + rows, length)


def cut(block: Block, start: int, stop: int) -> Block:
    """Transitions [start, stop) of a block: views, not copies."""
    part = slice(start, stop)
    return Block(
        map_tree(lambda leaf: leaf[part], block.obs),
        map_tree(lambda leaf: leaf[part], block.action),
        block.reward[part],
        block.terminated[part],
        block.truncated[part],
        map_tree(lambda leaf: leaf[part], block.next_obs),
        {name: leaf[part] for name, leaf in block.extras.items()},
        block.lane,
    )


@dataclass(frozen=True)
class Rows:
    """The arrays of a block in the order of the schema's leaves: what has to be done to each is done in a loop."""

    obs: list[NDArray[Any]]
    action: list[NDArray[Any]]
    reward: NDArray[Any]
    terminated: NDArray[Any]
    truncated: NDArray[Any]
    next_obs: list[NDArray[Any]]
    extras: dict[str, NDArray[Any]]


def rows_of(schema: Schema, block: Block) -> Rows:
    """The arrays of a block, checked.

    Raises:
        SchemaError: the block does not fit the schema: a name, dtype, shape or length.
    """
    rows = Rows(
        [np.asarray(leaf) for leaf in flatten(schema.obs, block.obs, "obs")],
        [np.asarray(leaf) for leaf in flatten(schema.action, block.action, "action")],
        np.asarray(block.reward),
        np.asarray(block.terminated),
        np.asarray(block.truncated),
        [np.asarray(leaf) for leaf in flatten(schema.obs, block.next_obs, "next_obs")],
        {name: np.asarray(leaf) for name, leaf in block.extras.items()},
    )
    if set(rows.extras) != set(schema.extras):
        raise SchemaError(f"extras: expected the fields {list(schema.extras)}, got {list(rows.extras)}.")
    count = len(rows.reward)
    flag = Field(np.bool_)
    fields = [
        *zip(leaves(schema.obs, "obs"), rows.obs, strict=True),
        *zip(leaves(schema.action, "action"), rows.action, strict=True),
        *zip(leaves(schema.obs, "next_obs"), rows.next_obs, strict=True),
        *((("terminated", flag), rows.terminated), (("truncated", flag), rows.truncated)),
        *(((name, field), rows.extras[name]) for name, field in schema.extras.items()),
    ]
    for (name, field), array in fields:
        if array.dtype != field.itemdtype or array.shape != (count, *field.shape):
            raise SchemaError(
                f"{name}: expected {field.itemdtype} {(count, *field.shape)} in a block, got {array.dtype} "
                f"{array.shape}. Blocks have the dtypes and shapes of their schema."
            )
    if rows.reward.dtype not in (np.float32, np.float64) or rows.reward.ndim != 1:
        raise SchemaError(f"reward: expected float32 or float64 (T,), got {rows.reward.dtype} {rows.reward.shape}.")
    return rows


def block_of(schema: Schema, rows: Rows, lane: int) -> Block:
    """The inverse of `rows_of`. Arrays of the other byte order, as some files hold them, become native here."""
    return Block(
        unflatten(schema.obs, map(native, rows.obs)),
        unflatten(schema.action, map(native, rows.action)),
        native(rows.reward),
        native(rows.terminated),
        native(rows.truncated),
        unflatten(schema.obs, map(native, rows.next_obs)),
        {name: native(leaf) for name, leaf in rows.extras.items()},
        lane,
    )


def native(array: NDArray[Any]) -> NDArray[Any]:
    """The same values in this machine's byte order, which the dtypes of fields have."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def as_flags(values: NDArray[Any], where: str) -> NDArray[np.bool_]:
    """Flags that a file holds as numbers.

    Raises:
        DatasetError: others than 0 and 1, of which nobody knows whether they mean an end.
    """
    if values.dtype != np.bool_:
        odd = values[~np.isin(values, (0, 1))]
        if len(odd):
            raise DatasetError(f"{where}: expected flags, 0 or 1, got {odd[0]} ({len(odd):,} such).")
    return values.astype(np.bool_, copy=False)


def same_bytes(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether row i of one is byte for byte row i of the other: bool [T]."""
    count = len(first)
    width = first.dtype.itemsize * math.prod(first.shape[1:])
    if not count or not width:
        return np.ones(count, np.bool_)
    one, other = (np.ascontiguousarray(array).view(np.uint8).reshape(count, width) for array in (first, second))
    return np.asarray((one == other).all(axis=1))


def goes_on(rows: Rows) -> NDArray[np.bool_]:
    """Whether transition i + 1 of a block continues the episode of transition i: bool [T - 1]."""
    on = ~(rows.terminated | rows.truncated)[:-1]
    for obs, following in zip(rows.obs, rows.next_obs, strict=True):
        on &= same_bytes(obs[1:], following[:-1])
    return np.asarray(on)


def follows(rows: Rows, last: list[NDArray[Any]], ended: bool) -> bool:
    """Whether a block continues the episode of the transition before it.

    Args:
        rows: the block.
        last: next_obs of that transition, leaves [1, *shape].
        ended: whether that transition has a flag.
    """
    return not ended and all(
        bool(same_bytes(obs[:1], following)[0]) for obs, following in zip(rows.obs, last, strict=True)
    )


def checked(source: Source) -> Iterator[tuple[Rows, int]]:
    """Arrays and lane of every block that holds something, checked, and counted at the end.

    Raises:
        SchemaError: a block does not fit the schema.
        DatasetError: other than `source.num_transitions` came.
    """
    count = 0
    for block in source.blocks():
        rows = rows_of(source.schema, block)
        if not 0 <= block.lane < source.lanes:
            raise SchemaError(f"lane: expected one of {source.lanes}, got {block.lane}.")
        count += len(rows.reward)
        if len(rows.reward):
            yield rows, block.lane
    if count != source.num_transitions:
        where = source.path or source.format
        raise DatasetError(f"{where}: expected {source.num_transitions:,} transitions, got {count:,}.")


def count_lanes(source: Source) -> tuple[int, ...]:
    """Transitions of each lane. Cost: nothing where the source knows; else it is read once."""
    if source.counts is not None:
        return source.counts
    if source.lanes == 1:
        return (source.num_transitions,)
    counts = [0] * source.lanes
    for block in source.blocks():
        counts[block.lane] += len(block.reward)
    return tuple(counts)


def tally(lanes: Iterable[NDArray[Any]], num_lanes: int) -> tuple[int, ...]:
    """How often each lane occurs."""
    counts = np.zeros(num_lanes, np.int64)
    for chunk in lanes:
        counts += np.bincount(chunk, minlength=num_lanes)
    return tuple(counts.tolist())

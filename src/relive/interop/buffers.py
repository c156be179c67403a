"""Buffers as datasets, and datasets as buffers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from relive.buffer import ReplayBuffer
from relive.engine import keeps_priorities
from relive.errors import ConfigError, SchemaError
from relive.interop.blocks import block_of, count_lanes, follows, rows_at_once, rows_of
from relive.interop.source import Block, Source
from relive.samplers import BuiltIn, Sampler, Uniform
from relive.storage import Memory
from relive.views import Hindsight, Transitions, View

PRIORITIES = "priorities are no part of a dataset; they stay with the buffer"


def of_buffer(buffer: ReplayBuffer, *, format: str = "buffer", path: Path | None = None) -> Source:
    """The live transitions of a buffer, each as it was pushed whatever the view, lane after lane.

    The buffer must not be pushed to while it is read: what is overwritten meanwhile raises StaleIdError.

    Args:
        buffer: with a schema.
        format: what the source says it is.
        path: where the buffer came from.

    Raises:
        ConfigError: a buffer that never saw a transition and has no schema.
    """
    schema = buffer.schema
    if schema is None:
        raise ConfigError("of_buffer: expected a buffer with a schema, got none yet. Push first.")
    lanes = buffer.lanes
    ids = buffer.ids
    spans = []  # of each lane: first number t, how many
    for lane in range(lanes):
        mine = ids[ids % lanes == lane]
        spans.append((int(mine[0]) // lanes if len(mine) else 0, len(mine)))
    reader = buffer.reader(view=Transitions(), sampler=Uniform(), seed=0)
    rows, extras = rows_at_once(schema), tuple(schema.extras)

    def read() -> Iterator[Block]:
        for lane, (first, count) in enumerate(spans):
            for start in range(first, first + count, rows):
                numbers = np.arange(start, min(start + rows, first + count))
                yield _block(reader.get(numbers * lanes + lane), extras, lane)

    notes = []
    if keeps_priorities(buffer.sampler):
        notes.append(PRIORITIES)
    counts = tuple(count for _, count in spans)
    schema = replace(schema, lanes=lanes)
    return Source(schema, sum(counts), lanes, format, path, tuple(notes), read, counts)


def _block(batch: Any, extras: tuple[str, ...], lane: int) -> Block:
    return Block(
        batch.obs,
        batch.action,
        batch.reward,
        batch.terminated,
        batch.truncated,
        batch.next_obs,
        {name: getattr(batch, name) for name in extras},
        lane,
    )


def fill(
    source: Source,
    *,
    capacity: int | None = None,
    storage: Memory | None = None,
    view: View | Hindsight | None = None,
    sampler: BuiltIn | Sampler | None = None,
    seed: int | None = None,
) -> ReplayBuffer:
    """A buffer with all transitions of a source, in order of time in each lane.

    Lanes of different lengths become one: their episodes stand one after another.

    Args:
        source: the dataset.
        capacity: in transitions; as many as there are, by default. A smaller one keeps the newest.
        storage: of the buffer.
        view: of the buffer.
        sampler: of the buffer.
        seed: of the buffer.

    Raises:
        SchemaError: a value that no buffer may hold (out of its bounds); names the file.
        DatasetError: the file is damaged.
        ConfigError: a capacity that is no multiple of the lanes.
    """
    counts = count_lanes(source)
    lanes = source.lanes if len(set(counts)) == 1 else 1
    schema = replace(source.schema, lanes=lanes)
    if capacity is None:
        capacity = max(source.num_transitions, lanes)
    buffer = ReplayBuffer(capacity, schema, view=view, sampler=sampler, storage=storage, seed=seed)
    blocks = source.blocks() if lanes == source.lanes else _in_one_lane(source)
    for block in blocks:
        if not len(block.reward):
            continue
        try:
            buffer.extend(
                block.obs,
                block.action,
                block.reward,
                block.terminated,
                block.next_obs,
                truncated=block.truncated,
                lane=block.lane if lanes > 1 else None,
                **block.extras,
            )
        except SchemaError as error:
            raise SchemaError(f"{source.path or source.format}: {error}") from None
    return buffer


def _in_one_lane(source: Source) -> Iterator[Block]:
    """The blocks, such that no lane seems to go on with the episode of another."""
    held: Block | None = None
    for block in source.blocks():
        if not len(block.reward):
            continue
        if held is not None:
            yield held if held.lane == block.lane else _ended(source, held, block)
        held = block
    if held is not None:
        yield held


def _ended(source: Source, block: Block, after: Block) -> Block:
    """The block, truncated at its end where that would not show by itself."""
    rows = rows_of(source.schema, block)
    flagged = bool(rows.terminated[-1] | rows.truncated[-1])
    if not follows(rows_of(source.schema, after), [leaf[-1:] for leaf in rows.next_obs], flagged):
        return block
    truncated = rows.truncated.copy()
    truncated[-1] = True
    return block_of(source.schema, replace(rows, truncated=truncated), block.lane)

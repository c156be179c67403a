"""Blocks of a dataset -> chunks of one lane that fit into little memory, with their bytes side by side."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive.interop.source import Block
from relive.schema import Schema, flatten, leaves
from relive.trees import map_tree

Bools = NDArray[np.bool_]
Words = NDArray[np.uint64]

CHUNK_BYTES = 16 * 2**20
CHUNK_ROWS = 1 << 16
PENDING_BYTES = 4 * CHUNK_BYTES
"""What small blocks of all lanes may take together until they are joined."""


@dataclass(frozen=True)
class Rows:
    """Consecutive transitions of a lane.

    Attributes:
        lane: which.
        start: number of the first of them in its lane.
        block: the arrays, raw.
        obs: uint64 [T, W], the bytes of an observation, padded with zeros.
        next_obs: likewise.
        rest: uint64 [T, V], the bytes of action, reward and flags. Extra fields may count steps, and hide what repeats.
        reward: float64 [T].
        terminated: bool [T], true where the flag is not 0.
        truncated: bool [T].
    """

    lane: int
    start: int
    block: Block
    obs: Words
    next_obs: Words
    rest: Words
    reward: NDArray[np.float64]
    terminated: Bools
    truncated: Bools

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def ended(self) -> Bools:
        """Where a flag ends the episode: bool [T]."""
        return self.terminated | self.truncated


def rows_of(schema: Schema, lane: int, start: int, block: Block) -> Rows:
    """The bytes of a block, side by side. Cost: one copy."""
    count = len(block.reward)
    rest = [
        *flatten(schema.action, block.action, "action"),
        *(block.reward, block.terminated, block.truncated),
    ]
    return Rows(
        lane,
        start,
        block,
        pack(flatten(schema.obs, block.obs, "obs"), count),
        pack(flatten(schema.obs, block.next_obs, "next_obs"), count),
        pack(rest, count),
        np.asarray(block.reward, np.float64),
        block.terminated != 0,
        block.truncated != 0,
    )


def pack(arrays: Sequence[NDArray[Any]], count: int) -> Words:
    """The bytes of each row of all arrays: uint64 [count, W]."""
    flat = [np.ascontiguousarray(array).reshape(count, math.prod(array.shape[1:])) for array in arrays]
    flat = [array for array in flat if array.size]
    widths = [array.shape[1] * array.itemsize for array in flat]
    if len(flat) == 1 and widths[0] % 8 == 0:
        return flat[0].view(np.uint64)
    packed = np.zeros((count, -(-sum(widths) // 8) * 8), np.uint8)
    at = 0
    for array, width in zip(flat, widths, strict=True):
        packed[:, at : at + width] = array.view(np.uint8)
        at += width
    return packed.view(np.uint64)


def same(left: Words, right: Words) -> Bools:
    """Where the rows of two matrices have the same bytes: bool [T]."""
    equal: Bools = (left == right).all(axis=1)
    return equal


def row_bytes(schema: Schema) -> int:
    """Bytes of a transition whose two observations are stored apart."""
    named = [*leaves(schema.obs, "obs")] * 2 + [*leaves(schema.action, "action"), *schema.extras.items()]
    return 10 + sum(math.prod(field.shape) * field.itemdtype.itemsize for _, field in named)


class Chunks:
    """Small blocks of a lane are joined, large ones are cut; each lane keeps its order.

    Args:
        schema: what a transition is; the blocks given fit it.
    """

    def __init__(self, schema: Schema) -> None:
        width = row_bytes(schema)
        self._rows = max(2, min(CHUNK_ROWS, CHUNK_BYTES // width))
        self._most = max(2 * self._rows, PENDING_BYTES // width)
        self._pending: dict[int, list[Block]] = {}
        self._waiting: Counter[int] = Counter()  # transitions, by lane

    def add(self, block: Block) -> Iterator[Block]:
        """Takes a block in, gives out those that are large enough."""
        self._pending.setdefault(block.lane, []).append(block)
        self._waiting[block.lane] += len(block.reward)
        if self._waiting[block.lane] >= self._rows:
            yield from self._give(block.lane)
        elif self._waiting.total() >= self._most:
            yield from self.flush()

    def flush(self) -> Iterator[Block]:
        """Gives out everything."""
        for lane in list(self._pending):
            yield from self._give(lane)

    def _give(self, lane: int) -> Iterator[Block]:
        blocks = self._pending.pop(lane)
        joined = blocks[0] if len(blocks) == 1 else _map(lambda *parts: np.concatenate(parts), *blocks)
        for start in range(0, self._waiting.pop(lane), self._rows):
            yield _map(lambda array, start=start: array[start : start + self._rows], joined)


def _map(function: Any, block: Block, *others: Block) -> Block:
    """A block with `function` of every array."""
    arrays = {}
    for field in fields(Block):
        if field.name != "lane":
            trees = [getattr(one, field.name) for one in (block, *others)]
            arrays[field.name] = map_tree(function, *(dict(tree) if field.name == "extras" else tree for tree in trees))
    return Block(**arrays, lane=block.lane)

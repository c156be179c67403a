"""Flat files: one column a field, one row a transition. What HDF5 in D4RL's manner, NPZ and Parquet have in common."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from relive.errors import DatasetError, SchemaError
from relive.interop.about import About
from relive.interop.blocks import Rows, block_of, checked, rows_at_once, tally
from relive.interop.source import Block, Source
from relive.schema import Field, Schema, Tree

Chunk = dict[str, NDArray[Any]]

ABOUT = {"npz": "array `relive`", "d4rl": "dataset `metadata/relive`", "parquet": "metadata `relive`"}
"""Where a file of each format tells about itself, if it is ours."""


@dataclass(frozen=True)
class Layout:
    """What the columns of a format are called.

    Attributes:
        obs: of observations; parts of a tree follow after `between`. So for the next four.
        extra: what the names of extras begin with.
        lane: of the lanes, where there are several.
        between: what stands between the parts of a name.
        index: a tuple's part number i.
    """

    obs: str
    action: str
    reward: str
    terminated: str
    truncated: str
    next_obs: str
    extra: str
    lane: str
    between: str
    index: str

    def tree(self, tree: Tree, name: str) -> list[tuple[str, Field]]:
        """The columns of a tree and their fields, in the order of `leaves`."""
        if isinstance(tree, Field):
            return [(name, tree)]
        parts = tree.items() if isinstance(tree, Mapping) else ((self.index.format(i), p) for i, p in enumerate(tree))
        return [column for key, part in parts for column in self.tree(part, f"{name}{self.between}{key}")]

    def columns(self, schema: Schema, reward: np.dtype[Any]) -> dict[str, Field]:
        """All columns of a file of ours.

        Raises:
            SchemaError: two fields would have one name.
        """
        flag = Field(np.bool_)
        pairs = [
            *self.tree(schema.obs, self.obs),
            *self.tree(schema.action, self.action),
            *((self.reward, Field(reward)), (self.terminated, flag), (self.truncated, flag)),
            *self.tree(schema.obs, self.next_obs),
            *((self.extra + name, extra) for name, extra in schema.extras.items()),
            *([(self.lane, Field(np.int32))] if schema.lanes > 1 else []),
        ]
        columns = dict(pairs)
        if len(columns) < len(pairs):
            raise SchemaError(
                f"schema: expected fields that have names of their own as columns, got {[name for name, _ in pairs]}. "
                "Rename the keys of the observation or action."
            )
        return columns


PLAIN = Layout("obs", "action", "reward", "terminated", "truncated", "next_obs", "", "lane", ".", "{}")


@dataclass(frozen=True)
class Table:
    """A flat file that was opened.

    Attributes:
        path: of the file.
        format: its name.
        columns: what can be read, by name.
        lengths: rows of each.
        chunks: (names, rows at once) -> their arrays from the first row to the last, as often as one likes.
        about: what a file of ours says about itself.
        unreadable: columns of other kinds, and what they are.
    """

    path: Path
    format: str
    columns: Mapping[str, Field]
    lengths: Mapping[str, int]
    chunks: Callable[[Sequence[str], int], Iterator[Chunk]]
    about: About | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)

    def expect(self, columns: Mapping[str, Field], num_rows: int) -> None:
        """Refuses a file that lacks one of these columns, or has it otherwise.

        Raises:
            DatasetError: names the column.
        """
        for name, wanted in columns.items():
            if not math.prod(wanted.shape):
                continue  # there is nothing to store
            found = self.columns.get(name)
            if found is None:
                self._contradict(name, f"{wanted}", self.unreadable.get(name, "none"))
            elif (found.itemdtype, found.shape) != (wanted.itemdtype, wanted.shape):
                self._contradict(name, f"{wanted}", f"{found}")
            elif self.lengths[name] != num_rows:
                self._contradict(name, f"{num_rows:,} rows", f"{self.lengths[name]:,}")

    def _contradict(self, name: str, expected: str, got: str) -> NoReturn:
        """Refuses a file of ours that was edited or damaged."""
        raise DatasetError(
            f"{self.path}: {name}: expected {expected}, got {got}. The file's own {ABOUT[self.format]} demands it; "
            "without that it is an ordinary file, in which fields are found by their names."
        )


def source_of_ours(table: Table, layout: Layout) -> Source:
    """The dataset in a file that we wrote.

    Raises:
        DatasetError: a column is missing, or is not what the file says about itself.
    """
    assert table.about is not None
    about, schema = table.about, table.about.schema
    columns = layout.columns(schema, about.reward)
    num_rows = about.rows
    table.expect(columns, num_rows)
    stored = [name for name, field in columns.items() if math.prod(field.shape)]
    rows = rows_at_once(schema)

    def read() -> Iterator[Block]:
        total = 0
        for chunk in table.chunks(stored, rows):
            count = len(chunk[layout.reward])
            total += count
            for name, leaf in columns.items():
                if name not in chunk:
                    chunk[name] = np.empty((count, *leaf.shape), leaf.itemdtype)
            yield from _by_lane(schema, columns, layout, chunk)
        if total != num_rows:
            raise DatasetError(f"{table.path}: {layout.reward}: expected {num_rows:,} rows, got {total:,}.")

    counts: tuple[int, ...] = (num_rows,)
    if schema.lanes > 1:
        for chunk in table.chunks([layout.lane], 1 << 20):
            lanes = chunk[layout.lane]
            if len(lanes) and not 0 <= lanes.min() <= lanes.max() < schema.lanes:
                raise DatasetError(f"{table.path}: {layout.lane}: expected lanes in [0, {schema.lanes}), got others.")
        counts = tally((chunk[layout.lane] for chunk in table.chunks([layout.lane], 1 << 20)), schema.lanes)
    return Source(schema, num_rows, schema.lanes, table.format, table.path, (), read, counts)


def _by_lane(schema: Schema, columns: Mapping[str, Field], layout: Layout, chunk: Chunk) -> Iterator[Block]:
    """A block for each lane in a chunk; the order within a lane is kept."""
    num_obs, num_action = len(layout.tree(schema.obs, "")), len(layout.tree(schema.action, ""))
    arrays = [chunk[name] for name in columns]
    lanes = arrays.pop() if schema.lanes > 1 else None
    present = [0] if lanes is None else np.unique(lanes).tolist()
    for lane in present:
        mine = arrays if lanes is None or len(present) == 1 else [array[lanes == lane] for array in arrays]
        each = iter(mine)
        rows = Rows(
            list(itertools.islice(each, num_obs)),
            list(itertools.islice(each, num_action)),
            *(next(each), next(each), next(each)),
            list(itertools.islice(each, num_obs)),
            dict(zip(schema.extras, each, strict=True)),
        )
        yield block_of(schema, rows, lane)


@dataclass(frozen=True)
class Flat:
    """A dataset as columns, to be written.

    Attributes:
        columns: that are to be stored.
        about: what the file has to say about itself.
        chunks: the arrays, read once.
        rows: a good number to put together.
    """

    columns: dict[str, Field]
    about: About
    chunks: Iterator[Chunk]
    rows: int


def flat(source: Source, layout: Layout) -> Flat:
    """The dataset as columns.

    Raises:
        SchemaError: two fields would have one name; or later, from the chunks: a block does not fit the schema.
    """
    blocks = checked(source)
    first = next(blocks, None)
    reward = np.dtype(np.float32) if first is None else first[0].reward.dtype
    schema = replace(source.schema, lanes=source.lanes)
    columns = layout.columns(schema, reward)
    stored = {name: field for name, field in columns.items() if math.prod(field.shape)}
    rest = blocks if first is None else itertools.chain((first,), blocks)

    def chunks() -> Iterator[Chunk]:
        for rows, lane in rest:
            if rows.reward.dtype != reward and reward == np.float32:
                raise SchemaError("reward: expected one dtype in all blocks, got float32 first, then float64.")
            rewards = rows.reward.astype(reward, copy=False)
            lanes = [np.full(len(rewards), lane, np.int32)] if source.lanes > 1 else []
            arrays = [*rows.obs, *rows.action, rewards, rows.terminated, rows.truncated, *rows.next_obs]
            arrays += [*(rows.extras[name] for name in schema.extras), *lanes]
            chunk = dict(zip(columns, arrays, strict=True))
            yield {name: chunk[name] for name in stored}

    return Flat(stored, About(schema, reward, source.num_transitions), chunks(), rows_at_once(schema))


def gathered(chunks: Iterator[Chunk], rows: int) -> Iterator[Chunk]:
    """Chunks put together until they have at least so many rows: what is written in large pieces."""
    waiting: list[Chunk] = []
    count = 0
    for chunk in chunks:
        waiting.append(chunk)
        count += len(next(iter(chunk.values())))
        if count >= rows:
            yield _joined(waiting)
            waiting, count = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(chunks: list[Chunk]) -> Chunk:
    if len(chunks) == 1:
        return chunks[0]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def schema_bytes(columns: Mapping[str, Field]) -> int:
    """Bytes of a row of these columns."""
    return sum(field.itemdtype.itemsize * math.prod(field.shape) for field in columns.values())

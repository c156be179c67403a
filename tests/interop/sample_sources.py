"""Datasets for the tests: transitions as functions of integers, cut into blocks anyhow, compared byte by byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

import relive
from model.kinds import Kind, fill
from model.reference import leaves, map_tree
from relive.interop import Block, Source

GOES_ON, BREAKS, TERMINATES, TRUNCATES, BOTH = range(5)
STEPS = st.lists(st.tuples(st.integers(0, 2), st.integers(GOES_ON, BOTH)), max_size=40)
"""(lane, what happens), in the order in which it happens."""


def rows_of(kind: Kind, lanes: int, steps: Sequence[tuple[int, int]], reward: str) -> list[list[dict[str, Any]]]:
    """The transitions of each lane."""
    rows: list[list[dict[str, Any]]] = [[] for _ in range(lanes)]
    hand: list[Any] = [None] * lanes
    for number, (lane, what) in enumerate(steps):
        lane %= lanes
        obs = kind.fresh(number) if hand[lane] is None else hand[lane]
        following = kind.following(obs, number + 3)
        rows[lane].append(
            {
                "obs": obs,
                "action": fill(kind.action, number),
                "reward": np.dtype(reward).type(number / 3),
                "terminated": np.bool_(what in (TERMINATES, BOTH)),
                "truncated": np.bool_(what in (TRUNCATES, BOTH)),
                "next_obs": following,
                "extras": {name: fill(field, number) for name, field in kind.extras.items()},
            }
        )
        hand[lane] = following if what == GOES_ON else None
    return rows


def source_of(kind: Kind, rows: Sequence[Sequence[dict[str, Any]]], size: int) -> Source:
    """The transitions as blocks of at most so many, those of the lanes in turn."""
    lanes = len(rows)

    def read() -> Iterator[Block]:
        for start in range(0, max(map(len, rows), default=0), size):
            for lane, mine in enumerate(rows):
                part = mine[start : start + size]
                if part:
                    stacked = map_tree(lambda *values: np.stack(values), *part)
                    yield Block(*(stacked[name] for name in ("obs", "action", "reward")), *ends(stacked), lane)

    counts = tuple(map(len, rows))
    return Source(kind.schema(lanes), sum(counts), lanes, "test", None, (), read, counts)


def ends(stacked: dict[str, Any]) -> tuple[Any, ...]:
    return stacked["terminated"], stacked["truncated"], stacked["next_obs"], stacked["extras"]


def contents(source: Source) -> dict[int, list[tuple[Any, ...]]]:
    """Lane -> names, dtypes, shapes and bytes of its fields, however it was cut into blocks."""
    lanes: dict[int, list[list[np.ndarray]]] = {}
    for block in source.blocks():
        if len(block.reward):
            lanes.setdefault(block.lane, []).append(arrays_of(block))
    joined = {lane: [np.concatenate(each) for each in zip(*blocks, strict=True)] for lane, blocks in lanes.items()}
    return {lane: [(a.dtype.str, a.shape, a.tobytes()) for a in arrays] for lane, arrays in joined.items()}


def arrays_of(block: Block) -> list[np.ndarray]:
    fixed = (block.reward, block.terminated, block.truncated)
    return [*leaves(block.obs), *leaves(block.action), *fixed, *leaves(block.next_obs), *block.extras.values()]


def numbered(count: int, *, ends_at: Sequence[int] = (), cut_at: Sequence[int] = ()) -> dict[str, np.ndarray]:
    """Columns of a plain dataset: obs [t, t], reward t; terminations and time-outs where said."""
    steps = np.arange(count)
    obs = np.stack([steps, steps], 1).astype(np.float32)
    return {
        "obs": obs,
        "action": (steps % 3).astype(np.int64),
        "reward": steps.astype(np.float32),
        "terminated": np.isin(steps, ends_at),
        "truncated": np.isin(steps, cut_at),
        "next_obs": obs + 0.5,
    }


def as_source(columns: dict[str, np.ndarray]) -> Source:
    """Such columns as a dataset of one block."""
    schema = relive.Schema(relive.Field("float32", (2,)), relive.Field("int64"))
    return Source(schema, len(columns["reward"]), 1, "test", None, (), lambda: iter([Block(**columns)]))


def everything(source: Source) -> dict[str, np.ndarray]:
    """The fields of all blocks, one after another, of a dataset without trees."""
    blocks = list(source.blocks())
    names = ("obs", "action", "reward", "terminated", "truncated", "next_obs")
    joined = {name: np.concatenate([getattr(block, name) for block in blocks]) for name in names}
    return {**joined, **{n: np.concatenate([block.extras[n] for block in blocks]) for n in source.schema.extras}}

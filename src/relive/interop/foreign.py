"""Flat files of other people: which column is what, and next observations where there are none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive.errors import DatasetError
from relive.interop.blocks import Rows, block_of, rows_at_once
from relive.interop.columns import Chunk, Layout, Table
from relive.interop.source import Block, Source
from relive.schema import RESERVED, Field, Schema, Tree

NAMES = {
    "obs": ("obs", "observations", "observation", "state", "states"),
    "action": ("action", "actions", "act", "acts"),
    "reward": ("reward", "rewards", "rew", "rews"),
    "terminated": ("terminated", "terminations", "terminals", "terminal"),
    "done": ("done", "dones"),
    "truncated": ("truncated", "truncations", "timeouts", "timeout"),
    "next_obs": ("next_obs", "next_observations", "next_observation", "next_state", "next_states", "obs_next", "obs2"),
    "episode": ("episode", "episode_id", "episode_index"),
}
"""What the fields of a transition are called by those who write them; the first that is there is taken."""


@dataclass
class Found:
    """Which columns of a table make the fields of a transition."""

    table: Table
    obs: dict[str, Field] = field(default_factory=dict)
    next_obs: dict[str, Field] = field(default_factory=dict)
    action: dict[str, Field] = field(default_factory=dict)
    scalars: dict[str, str] = field(default_factory=dict)  # "reward", "terminated", "done", ... -> column
    extras: dict[str, str] = field(default_factory=dict)  # name -> column
    trees: dict[str, Tree] = field(default_factory=dict)  # "obs", "action"
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Every column that has to be read."""
        return list(
            dict.fromkeys([*self.obs, *self.next_obs, *self.action, *self.scalars.values(), *self.extras.values()])
        )


def source_of_others(table: Table, layout: Layout) -> Source:
    """The dataset in a flat file with common names.

    Without next observations, that of a step is the observation in the next row. At a time-out, and at the end of the
    file, none is there: such a step is left out, and the one before it, whose next observation is known, ends
    truncated. At a termination obs stands in for it, which no target uses.

    Raises:
        DatasetError: a column that is needed is missing, or has another shape than it should.
    """
    found = _find(table, layout)
    num_rows = table.lengths[found.scalars["reward"]]
    schema = Schema(
        found.trees["obs"],
        found.trees["action"],
        {name: table.columns[column] for name, column in found.extras.items()},
    )
    rows, left_out = rows_at_once(schema), 0
    if not found.next_obs:
        left_out = _count_unknown(found)
        found.notes.append(_about_next(left_out))

    def read() -> Iterator[Block]:
        chunks = table.chunks(found.names, rows)
        for chunk in chunks if found.next_obs else _with_next(found, chunks):
            yield _block(found, schema, chunk)

    count = num_rows - left_out
    return Source(schema, count, 1, table.format, table.path, tuple(found.notes), read, (count,))


def _about_next(left_out: int) -> str:
    said = "no next observations: those of the next row are taken; at a termination obs stands in, which targets ignore"
    if left_out:
        said += (
            f"; {left_out:,} steps whose next observation is nowhere (time-outs, the end of the file) are left out, "
            "and the steps before them end truncated"
        )
    return said


def _find(table: Table, layout: Layout) -> Found:
    found = Found(table)
    taken: set[str] = set()
    for role in ("obs", "action", "next_obs"):
        for name in NAMES[role]:
            columns = {
                column: leaf
                for column, leaf in table.columns.items()
                if column == name or column.startswith(name + layout.between)
            }
            if columns:
                found.trees[role] = _tree(columns, name, layout)
                # Both observations in the order of the first one's leaves.
                order = found.trees["obs"] if found.trees[role] == found.trees.get("obs") else found.trees[role]
                setattr(found, role, dict(layout.tree(order, name)))
                break
        taken |= set(getattr(found, role))
    for role in ("reward", "terminated", "done", "truncated", "episode"):
        there = next((name for name in NAMES[role] if name in table.columns), None)
        if there is not None:
            found.scalars[role] = there
            taken.add(there)
    _check(found)
    _find_extras(found, taken, layout)
    return found


def _tree(columns: Mapping[str, Field], name: str, layout: Layout) -> Tree:
    """The nesting that names such as obs.pose.x mean. Parts of a tuple are taken for keys of a dict."""
    if name in columns:
        return columns[name]
    start = len(name) + len(layout.between)
    keys = dict.fromkeys(column[start:].split(layout.between)[0] for column in columns)
    tree: dict[str, Tree] = {}
    for key in keys:
        inner = name + layout.between + key
        mine = {c: f for c, f in columns.items() if c == inner or c.startswith(inner + layout.between)}
        tree[key] = _tree(mine, inner, layout)
    return tree


def _check(found: Found) -> None:
    """Refuses a table that is no dataset of transitions."""
    table, scalars = found.table, found.scalars
    for role, there in (
        ("obs", bool(found.obs)),
        ("action", bool(found.action)),
        ("reward", "reward" in scalars),
        ("terminated", "terminated" in scalars or "done" in scalars),
    ):
        if not there:
            wanted = NAMES["terminated"] + NAMES["done"] if role == "terminated" else NAMES[role]
            have = ", ".join([*table.columns, *(f"{name} ({what})" for name, what in table.unreadable.items())])
            raise DatasetError(f"{table.path}: {role}: expected a column of {', '.join(wanted)}, got {have or 'none'}.")
    num_rows = table.lengths[scalars["reward"]]
    for column in [*found.obs, *found.action, *found.next_obs, *scalars.values()]:
        if table.lengths[column] != num_rows:
            raise DatasetError(f"{table.path}: {column}: expected {num_rows:,} rows, got {table.lengths[column]:,}.")
    for role, column in scalars.items():
        leaf = table.columns[column]
        if leaf.shape not in ((), (1,)) or leaf.itemdtype.kind not in ("iu" if role == "episode" else "biuf"):
            raise DatasetError(f"{table.path}: {column}: expected one number a row, got {leaf}.")
    if found.next_obs and found.trees["next_obs"] != found.trees["obs"]:
        raise DatasetError(
            f"{table.path}: {next(iter(found.next_obs))}: expected what obs is, {found.trees['obs']}, got "
            f"{found.trees['next_obs']}."
        )
    if "truncated" not in scalars:
        found.notes.append("no truncated flag: every end is taken for a termination")
    elif "terminated" not in scalars:
        found.notes.append(f"{scalars['done']} and {scalars['truncated']}: a done that is no time-out is a termination")


def _find_extras(found: Found, taken: set[str], layout: Layout) -> None:
    table = found.table
    num_rows = table.lengths[found.scalars["reward"]]
    left = [f"{name} ({what})" for name, what in table.unreadable.items()]
    for column in table.columns:
        name = column.removeprefix(layout.extra)
        if column in taken and column != found.scalars.get("episode"):
            continue
        if table.lengths[column] != num_rows:
            left.append(f"{column} ({table.lengths[column]:,} rows)")
        elif not name.isidentifier() or name in RESERVED or name.startswith("__") or name in found.extras:
            left.append(f"{column} (no name for a field)")
        else:
            found.extras[name] = column
    if left:
        found.notes.append("left out: " + ", ".join(left))


def _ends(found: Found, chunk: Chunk) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The flags of the rows: terminated, truncated."""
    flags: dict[str, NDArray[np.bool_]] = {}
    for role in ("terminated", "done", "truncated"):
        column = found.scalars.get(role)
        if column is not None:
            values = chunk[column].reshape(-1)
            flags[role] = values.astype(np.bool_)
            if values.dtype != np.bool_ and not np.isin(values, (0, 1)).all():
                raise DatasetError(f"{found.table.path}: {column}: expected flags, 0 or 1, got other numbers.")
    truncated = flags.get("truncated")
    if truncated is None:
        truncated = np.zeros_like(next(iter(flags.values())))
    terminated = flags.get("terminated")
    return flags["done"] & ~truncated if terminated is None else terminated, truncated


@dataclass(frozen=True)
class _Steps:
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    ended: NDArray[np.bool_]
    unknown: NDArray[np.bool_]  # whose next observation is nowhere


def _flags(found: Found, chunk: Chunk) -> _Steps:
    """What is known of the rows of a chunk, of the last as if its episode went on."""
    terminated, truncated = _ends(found, chunk)
    ended = terminated | truncated
    column = found.scalars.get("episode")
    if column is not None:
        episode = chunk[column].reshape(-1)
        ended[:-1] |= episode[1:] != episode[:-1]
    return _Steps(terminated, truncated, ended, ended & ~terminated)


def _count_unknown(found: Found) -> int:
    """Rows whose next observation is nowhere. Reads the flags alone."""
    roles = ("terminated", "done", "truncated", "episode")
    held: Chunk | None = None
    total = 0
    for chunk in found.table.chunks([found.scalars[role] for role in roles if role in found.scalars], 1 << 20):
        held = chunk if held is None else {name: np.concatenate([held[name], chunk[name]]) for name in chunk}
        total += int(np.count_nonzero(_flags(found, held).unknown[:-1]))
        held = {name: array[-1:] for name, array in held.items()}
    return total if held is None else total + int(not _ends(found, held)[0][0])


def _with_next(found: Found, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """The rows with next observations beside them, without those that have none; two rows wait for what follows."""
    held: Chunk | None = None
    for chunk in chunks:
        held = chunk if held is None else {name: np.concatenate([held[name], chunk[name]]) for name in chunk}
        count = len(next(iter(held.values())))
        if count > 2:
            yield _stitched(found, held, count - 2)
            held = {name: array[count - 2 :] for name, array in held.items()}
    if held is not None:
        yield _stitched(found, held, None)


def _stitched(found: Found, chunk: Chunk, upto: int | None) -> Chunk:
    """Rows [0, upto) with next observations; None: all, and nothing follows."""
    steps = _flags(found, chunk)
    ended, unknown, count = steps.ended, steps.unknown, len(steps.ended)
    if upto is None:
        upto, ended[-1] = count, True
        unknown[-1] = not steps.terminated[-1]
    truncated = steps.truncated.copy()
    truncated[:-1] |= unknown[1:] & ~ended[:-1]
    keep = np.flatnonzero(~unknown[:upto])
    following = np.where(steps.terminated, np.arange(count), np.arange(count) + 1)[keep]
    result = {name: array[keep] for name, array in chunk.items()}
    for column in found.obs:
        result[f"next:{column}"] = chunk[column][following]
    result[":terminated"], result[":truncated"] = steps.terminated[keep], truncated[keep]
    return result


def _block(found: Found, schema: Schema, chunk: Chunk) -> Block:
    if ":truncated" in chunk:
        terminated, truncated = chunk[":terminated"], chunk[":truncated"]
        next_obs = [chunk[f"next:{column}"] for column in found.obs]
    else:
        terminated, truncated = _ends(found, chunk)
        next_obs = [chunk[column] for column in found.next_obs]
    return block_of(
        schema,
        Rows(
            [chunk[column] for column in found.obs],
            [chunk[column] for column in found.action],
            as_reward(chunk[found.scalars["reward"]].reshape(-1)),
            terminated,
            truncated,
            next_obs,
            {name: chunk[column] for name, column in found.extras.items()},
        ),
        0,
    )


def as_reward(values: NDArray[Any]) -> NDArray[Any]:
    """Rewards as float32 where that loses nothing by its width, else as float64."""
    small = values.dtype.kind == "f" and values.dtype.itemsize <= 4
    return values.astype(np.float32 if small else np.float64, copy=False)

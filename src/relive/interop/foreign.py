"""Flat files of other people: which column is what, and next observations where there are none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive.errors import DatasetError
from relive.interop.blocks import Rows, as_flags, block_of, rows_at_once
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
    scalars: dict[str, str] = field(default_factory=dict)  # "reward", "terminated", "done", "lane", ... -> column
    extras: dict[str, str] = field(default_factory=dict)  # name -> column
    trees: dict[str, Tree] = field(default_factory=dict)  # "obs", "action"
    notes: list[str] = field(default_factory=list)
    lanes: dict[int, int] = field(default_factory=dict)  # what the column of lanes says -> rows

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
    schema = Schema(
        found.trees["obs"],
        found.trees["action"],
        {name: table.columns[column] for name, column in found.extras.items()},
        lanes=len(found.lanes),
    )
    rows, counts = rows_at_once(schema), np.array(list(found.lanes.values()))
    if not found.next_obs:
        left_out = _count_unknown(found)
        counts -= left_out
        found.notes.append(_about_next(int(left_out.sum())))

    def read() -> Iterator[Block]:
        chunks = _by_lane(found, table.chunks(found.names, rows))
        for lane, chunk in chunks if found.next_obs else _with_next(found, chunks):
            yield _block(found, schema, chunk, lane)

    notes = tuple(found.notes)
    return Source(schema, int(counts.sum()), len(counts), table.format, table.path, notes, read, tuple(counts.tolist()))


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
    lane = next((name for name in (layout.lane, "lane") if _is_lane(table, name)), None)
    if lane is not None:
        found.scalars["lane"] = lane
        taken.add(lane)
    _check(found)
    _find_extras(found, taken, layout)
    if lane is None:
        found.lanes = {0: table.lengths[found.scalars["reward"]]}
    else:
        _count_lanes(found)
    return found


def _is_lane(table: Table, name: str) -> bool:
    """Whether a column can say of which environment a row is: one integer a row. Else it is left out like others."""
    leaf = table.columns.get(name)
    return leaf is not None and leaf.itemdtype.kind in "iu" and leaf.shape in ((), (1,))


def _count_lanes(found: Found) -> None:
    """Which lanes there are. Reads their column alone."""
    column = found.scalars["lane"]
    total: Counter[int] = Counter()
    for chunk in found.table.chunks([column], 1 << 20):
        values, counts = np.unique(chunk[column], return_counts=True)
        total.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    found.lanes = dict(sorted(total.items())) or {0: 0}
    if list(found.lanes) != list(range(len(found.lanes))):
        names = [str(value) for value in found.lanes]
        said = ", ".join(names if len(names) < 10 else [*names[:4], "...", names[-1]])
        found.notes.append(f"{column} says {said}: lanes are numbered from 0 in this order")


def _by_lane(found: Found, chunks: Iterator[Chunk]) -> Iterator[tuple[int, Chunk]]:
    """The rows of each lane in a chunk; the order within a lane is kept."""
    column = found.scalars.get("lane")
    if column is None:
        yield from ((0, chunk) for chunk in chunks)
        return
    numbers = {value: number for number, value in enumerate(found.lanes)}
    for chunk in chunks:
        lanes = chunk[column].reshape(-1)
        for value in np.unique(lanes).tolist():
            yield numbers[value], {name: array[lanes == value] for name, array in chunk.items()}


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
            said = f"{table.path}: {role}: expected a column of {', '.join(wanted)}, got {have or 'none'}."
            raise DatasetError(said + (_of_rlds(table) or _rename(table, role)))
    lengths = [table.lengths[column] for column in found.names]
    num_rows = Counter(lengths).most_common(1)[0][0]  # the one that differs from the others is to blame
    for column, length in zip(found.names, lengths, strict=True):
        if length != num_rows:
            others = lengths.count(num_rows)
            raise DatasetError(
                f"{table.path}: {column}: expected {num_rows:,} rows, as {others} of the {len(lengths)} arrays have, "
                f"got {length:,}."
            )
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


def _rename(table: Table, role: str) -> str:
    """How to give a column of a file the name that it is looked for by, if it is there by another one."""
    how = {
        "npz": f"a = dict(np.load(path)); a['{role}'] = a.pop('NAME'); np.savez(out, **a)",
        "parquet": f"t = pq.read_table(path); names = ['{role}' if n == 'NAME' else n for n in t.column_names]; "
        "pq.write_table(t.rename_columns(names), out)",
        "d4rl": f"h5py.File(path, 'r+').move('NAME', '{role}')",
    }
    return f" If it is there by another NAME, rename it: {how[table.format]}" if table.columns else ""


def _of_rlds(table: Table) -> str:
    """What to do about steps of RLDS, whose last row of an episode is an observation alone."""
    if "is_last" not in table.columns:
        return ""
    return (
        " These are steps of RLDS: an episode's last row holds its final observation and no action. Make it the "
        "next_obs of the row before, which gets is_terminal as terminated, and leave it out."
    )


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
            flags[role] = as_flags(chunk[column].reshape(-1), f"{found.table.path}: {column}")
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


def _count_unknown(found: Found) -> NDArray[np.int64]:
    """Rows of each lane whose next observation is nowhere. Reads the flags alone."""
    roles = ("terminated", "done", "truncated", "episode", "lane")
    names = [found.scalars[role] for role in roles if role in found.scalars]
    held: dict[int, Chunk] = {}
    total = np.zeros(len(found.lanes), np.int64)
    for lane, chunk in _by_lane(found, found.table.chunks(names, 1 << 20)):
        joined = _after(held.get(lane), chunk)
        total[lane] += np.count_nonzero(_flags(found, joined).unknown[:-1])
        held[lane] = {name: array[-1:] for name, array in joined.items()}
    for lane, last in held.items():
        total[lane] += int(not _ends(found, last)[0][0])
    return total


def _with_next(found: Found, chunks: Iterator[tuple[int, Chunk]]) -> Iterator[tuple[int, Chunk]]:
    """The rows with next observations beside them, but those that have none; two of a lane wait for what follows."""
    held: dict[int, Chunk] = {}
    for lane, chunk in chunks:
        joined = _after(held.get(lane), chunk)
        count = len(next(iter(joined.values())))
        if count > 2:
            yield lane, _stitched(found, joined, count - 2)
            joined = {name: array[count - 2 :] for name, array in joined.items()}
        held[lane] = joined
    for lane, last in held.items():
        yield lane, _stitched(found, last, None)


def _after(held: Chunk | None, chunk: Chunk) -> Chunk:
    """The rows that were held back, and those that follow them."""
    return chunk if held is None else {name: np.concatenate([held[name], chunk[name]]) for name in chunk}


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


def _block(found: Found, schema: Schema, chunk: Chunk, lane: int) -> Block:
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
        lane,
    )


def as_reward(values: NDArray[Any]) -> NDArray[Any]:
    """Rewards as float32 where that loses nothing by its width, else as float64."""
    small = values.dtype.kind == "f" and values.dtype.itemsize <= 4
    return values.astype(np.float32 if small else np.float64, copy=False)

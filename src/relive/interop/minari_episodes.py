"""Minari's episodes as blocks: many short ones make one, long ones come in pieces."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive.errors import DatasetError
from relive.interop.blocks import Rows, as_flags, block_of, rows_at_once, spans
from relive.interop.hdf5 import ERRORS, Column, as_group, find, is_dataset, names_no_files, naming, reading
from relive.interop.minari import paths
from relive.interop.packages import require
from relive.interop.source import Block
from relive.schema import Field, Schema

_AT_ONCE = 256  # episodes
FLAGS = ("terminations", "truncations")
EDITED = "It was edited after relive wrote it. Without `relive` in its metadata.json it is read as any other."
SHORT_BYTES = 1 << 17
"""To read an episode of less takes less long than to ask each of its arrays where its data lie."""


def episodes(file: Path, total: int) -> Iterator[tuple[int, Any]]:
    """Every episode, opened: h5py's low-level group.

    Until a file is closed HDF5 keeps some 40 KB of every episode that was looked at: it is closed now and then.
    """
    h5py = require("h5py")
    for begin in range(0, total, _AT_ONCE):
        with reading(file) as data:
            links = data.id.links
            for number in range(begin, min(begin + _AT_ONCE, total)):
                name = f"episode_{number}"
                try:
                    is_here = links.get_info(name.encode()).type == h5py.h5l.TYPE_HARD
                    group = h5py.h5g.open(data.id, name.encode()) if is_here else None
                except ERRORS:
                    group = None
                if group is None:  # what is the matter?
                    if is_dataset(find(file, data, name, name)):
                        raise DatasetError(f"{file}: {name}: expected a group, got an array.")
                    raise DatasetError(f"{file}: {name}: expected a group, got what cannot be read. It is damaged.")
                yield number, group


def length_of(file: Path, number: int, group: Any, name: str) -> int:
    """Rows of an array of an episode."""
    key = f"episode_{number}/{name}"
    node = find(file, group, name, key)
    if not is_dataset(node) or not node.shape:
        raise DatasetError(f"{file}: {key}: expected an array, got {_say(node)}.")
    return int(node.shape[0])


@dataclass
class _Batch:
    """Episodes that will be one block of each lane. Observations have a row more than the rest, an episode."""

    arrays: dict[str, NDArray[Any]]
    room: int
    steps: list[int] = field(default_factory=list)
    lanes: list[int] = field(default_factory=list)
    used: int = 0  # steps


@dataclass(frozen=True)
class Reader:
    """Reads episode after episode.

    Attributes:
        file: main_data.hdf5.
        schema: of the dataset.
        reward: dtype of the rewards.
        total: episodes.
        counts: transitions of each lane.
        jpeg: images stored as JPEG, with the shape of their space.
        ours: whether relive wrote it; an episode of others ends truncated, flag or not.
    """

    file: Path
    schema: Schema
    reward: np.dtype[Any]
    total: int
    counts: tuple[int, ...]
    jpeg: dict[str, tuple[int, ...]]
    ours: bool

    def blocks(self) -> Iterator[Block]:
        """All of it, from the first.

        Raises:
            DatasetError: damage; other than so many transitions.
        """
        rows = rows_at_once(self.schema)
        columns = self._columns()
        seen = [0] * self.schema.lanes
        batch: _Batch | None = None
        for number, group in episodes(self.file, self.total):
            with naming(self.file, f"episode_{number}/rewards"):
                rewards = columns["rewards"].open(group)
            steps = rewards[1][0] if rewards else length_of(self.file, number, as_group(group), "rewards")
            lane = self._lane(group, number) if len(seen) > 1 else 0
            seen[lane] += steps
            if batch is not None and batch.used + len(batch.steps) + steps > batch.room:
                yield from self._joined(batch)
                batch = None
            if steps > rows:
                for start, stop in spans(steps, rows):
                    yield block_of(self.schema, self._piece(as_group(group), number, start, stop, steps), lane)
                continue
            if batch is None:
                room = rows if 2 * steps < rows else steps
                batch = _Batch({n: np.empty((room + 1, *c.shape), c.dtype) for n, c in columns.items()}, room)
            self._add(batch, columns, group, number, rewards[0] if rewards else None, steps)
            batch.lanes.append(lane)
        if batch is not None:
            yield from self._joined(batch)
        if tuple(seen) != self.counts:
            why = EDITED if self.ours else "It changed while it was read."
            raise DatasetError(f"{self.file}: rewards: expected {_steps(self.counts)}, got {_steps(seen)}. {why}")

    def _columns(self) -> dict[str, Column]:
        flag, reward = Field(np.bool_), Field(self.reward)
        named = [
            *(("rewards", reward), *((name, flag) for name in FLAGS)),
            *paths(self.schema.obs, "observations"),
            *paths(self.schema.action, "actions"),
            *((f"infos/{name}", leaf) for name, leaf in self.schema.extras.items()),
        ]
        many = self.file.stat().st_size < SHORT_BYTES * self.total
        careful = not (many and names_no_files(self.file))
        return {name: Column(name, leaf, careful=careful) for name, leaf in named}

    def _lane(self, group: Any, number: int) -> int:
        with naming(self.file, f"episode_{number}"):
            lane = int(as_group(group).attrs.get("lane", 0))
        if not 0 <= lane < self.schema.lanes:
            raise DatasetError(
                f"{self.file}: episode_{number}: lane: expected one in [0, {self.schema.lanes}), got {lane}."
            )
        return lane

    def _add(
        self,
        batch: _Batch,
        columns: dict[str, Column],
        group: Any,
        number: int,
        rewards: Any,
        steps: int,
    ) -> None:
        """Reads an episode to the end of a batch: what is as expected by HDF5's own calls, the rest by h5py's."""
        first, before = batch.used, len(batch.steps)
        name = ""
        try:
            for name, column in columns.items():
                into = batch.arrays[name]
                if name.startswith("observations"):
                    into = into[first + before : first + before + steps + 1]
                else:
                    into = into[first : first + steps]
                    if name.startswith("infos/"):
                        with_reset = np.empty((steps + 1, *column.shape), column.dtype)
                        if column.read(group, with_reset):
                            into[:] = with_reset[1:]
                            continue
                if name == "rewards" and rewards is not None:
                    column.take(rewards, into)
                elif name in self.jpeg or not column.read(group, into):
                    into[:] = self._by_h5py(as_group(group), number, name, column.field, len(into))
        except ERRORS:
            with naming(self.file, f"episode_{number}/{name}"):
                raise
        if not self.ours and steps and not batch.arrays["terminations"][first + steps - 1]:
            batch.arrays["truncations"][first + steps - 1] = True  # an episode of Minari's ends where its group does
        batch.steps.append(steps)
        batch.used += steps

    def _joined(self, batch: _Batch) -> Iterator[Block]:
        """A block of each lane in a batch."""
        count, num = batch.used, len(batch.steps)
        arrays = {name: array[:count] for name, array in batch.arrays.items()}
        obs = [batch.arrays[name][: count + num] for name, _ in paths(self.schema.obs, "observations")]
        if num == 1:
            yield self._block(arrays, [leaf[:-1] for leaf in obs], [leaf[1:] for leaf in obs], batch.lanes[0])
            return
        stops = np.cumsum(np.array(batch.steps) + 1)
        is_first, is_last = np.zeros((2, count + num), np.bool_)
        is_first[stops - np.array(batch.steps) - 1] = is_last[stops - 1] = True
        if len(set(batch.lanes)) == 1:
            yield self._block(
                arrays, [leaf[~is_last] for leaf in obs], [leaf[~is_first] for leaf in obs], batch.lanes[0]
            )
            return
        lanes, of_obs = np.repeat(batch.lanes, batch.steps), np.repeat(batch.lanes, np.array(batch.steps) + 1)
        for lane in np.unique(lanes).tolist():
            mine = of_obs == lane
            yield self._block(
                {name: array[lanes == lane] for name, array in arrays.items()},
                [leaf[mine & ~is_last] for leaf in obs],
                [leaf[mine & ~is_first] for leaf in obs],
                lane,
            )

    def _block(
        self, arrays: dict[str, NDArray[Any]], obs: list[NDArray[Any]], next_obs: list[NDArray[Any]], lane: int
    ) -> Block:
        rows = Rows(
            obs,
            [arrays[name] for name, _ in paths(self.schema.action, "actions")],
            arrays["rewards"],
            arrays["terminations"],
            arrays["truncations"],
            next_obs,
            {name: arrays[f"infos/{name}"] for name in self.schema.extras},
        )
        return block_of(self.schema, rows, lane)

    def _piece(self, group: Any, number: int, start: int, stop: int, steps: int) -> Rows:
        """Transitions [start, stop) of a long episode."""

        def take(name: str, wanted: Field, more: int = 0) -> NDArray[Any]:
            return self._by_h5py(group, number, name, wanted, steps + more, start, stop + more)

        obs = [take(name, leaf, 1) for name, leaf in paths(self.schema.obs, "observations")]
        terminated, truncated = (take(name, Field(np.bool_)) for name in FLAGS)
        if not self.ours and stop == steps and not terminated[-1]:
            truncated[-1] = True
        return Rows(
            [leaf[:-1] for leaf in obs],
            [take(name, leaf) for name, leaf in paths(self.schema.action, "actions")],
            take("rewards", Field(self.reward)),
            terminated,
            truncated,
            [leaf[1:] for leaf in obs],
            {name: take(f"infos/{name}", leaf) for name, leaf in self.schema.extras.items()},
        )

    def _by_h5py(
        self, group: Any, number: int, name: str, wanted: Field, length: int, start: int = 0, stop: int | None = None
    ) -> NDArray[Any]:
        """Rows [start, stop) of an array of so many rows; what is wrong with it is told.

        Raises:
            DatasetError: names the episode and the array.
        """
        key = f"episode_{number}/{name}"
        if name.startswith("infos/"):
            reset = length_of(self.file, number, group, name) == length + 1  # a row for it, which is left out
            length, start, stop = length + reset, start + reset, (length if stop is None else stop) + reset
        node = find(self.file, group, name, key)
        with naming(self.file, key):
            if not is_dataset(node) or not node.shape or node.shape[0] != length:
                raise DatasetError(f"{self.file}: {key}: expected {length:,} rows, got {_say(node)}.")
            if name in self.jpeg:
                return _decode(node[start:stop], self.jpeg[name], self.file, key)
            if name == "rewards" or name in FLAGS:
                if node.ndim != 1 or node.dtype.kind not in "biuf":
                    raise DatasetError(f"{self.file}: {key}: expected one number a step, got {_say(node)}.")
            elif node.shape[1:] != wanted.shape or not np.can_cast(node.dtype, wanted.itemdtype, "safe"):
                raise DatasetError(f"{self.file}: {key}: expected {wanted}, got {_say(node)}.")
            values = np.asarray(node[start:stop])
        return as_flags(values, f"{self.file}: {key}") if name in FLAGS else values.astype(wanted.itemdtype, copy=False)


def _say(node: Any) -> str:
    return f"{node.dtype} {node.shape}" if is_dataset(node) else "a group"


def _steps(counts: Any) -> str:
    return f"{sum(counts):,} steps" + (f" (of the lanes: {', '.join(map(str, counts))})" if len(counts) > 1 else "")


def _decode(frames: Any, shape: tuple[int, ...], file: Path, key: str) -> NDArray[np.uint8]:
    """JPEG, as Minari stores images unless told otherwise."""
    image = require("PIL.Image")
    decoded = np.empty((len(frames), *shape), np.uint8)
    for place, frame in enumerate(frames):
        try:
            picture = np.asarray(image.open(io.BytesIO(np.asarray(frame, np.uint8).tobytes()), formats=["JPEG"]))
        except (OSError, ValueError, SyntaxError) as error:
            raise DatasetError(f"{file}: {key}: expected a JPEG, got what cannot be read ({error}).") from None
        if picture.shape != shape:
            raise DatasetError(f"{file}: {key}: expected an image {shape}, got {picture.shape}.")
        decoded[place] = picture
    return decoded

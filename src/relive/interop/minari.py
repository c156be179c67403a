"""Minari's HDF5 datasets: metadata.json and main_data.hdf5, a group for each episode with T + 1 observations.

Needs h5py alone, neither Minari nor JAX. Read and written as Minari 0.5 does.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive.errors import SchemaError
from relive.interop.about import About
from relive.interop.blocks import Rows, checked, follows, goes_on
from relive.interop.hdf5 import append, check_storable, create, writing
from relive.interop.packages import require
from relive.interop.source import Source
from relive.interop.spaces import space_to_json
from relive.schema import Field, Tree, leaves

METADATA = "metadata.json"
DATA = "main_data.hdf5"
INDEX = "_index_{}"
MINARI_VERSION = "0.5.3"
"""The version that our files say they are of: its format, which later ones read."""
PENDING_BYTES = 32 << 20
"""What the open episodes of all lanes may hold back before they are written."""


def paths(tree: Tree, name: str) -> list[tuple[str, Field]]:
    """HDF5 names of the leaves of a tree, in the order of `leaves`."""
    if isinstance(tree, Field):
        return [(name, tree)]
    parts = tree.items() if isinstance(tree, Mapping) else ((INDEX.format(i), part) for i, part in enumerate(tree))
    if isinstance(tree, Mapping) and any("/" in key for key in tree):
        raise SchemaError(f"{name}: expected keys without '/', which HDF5 takes for groups, got {list(tree)}.")
    return [found for key, part in parts for found in paths(part, f"{name}/{key}")]


@dataclass
class _Episode:
    """The episode of a lane that is being written: what waits, and where the rest went."""

    waiting: list[Rows] = field(default_factory=list)
    group: Any = None
    length: int = 0  # of what was written


class _EpisodeWriter:
    """Cuts the transitions of each lane into episodes and writes them as groups."""

    def __init__(self, file: Any, source: Source, reward: np.dtype[Any]) -> None:
        self._file, self._schema, self._lanes = file, source.schema, source.lanes
        self._open = {lane: _Episode() for lane in range(source.lanes)}
        self._last: dict[int, tuple[list[NDArray[Any]], bool]] = {}
        self._pending, self._limit = dict.fromkeys(self._open, 0), PENDING_BYTES // source.lanes
        self._reward = reward
        self.episodes = self.steps = self.unflagged = 0

    def add(self, rows: Rows, lane: int) -> None:
        """Takes the next transitions of a lane."""
        last = self._last.get(lane)
        if last is not None and not follows(rows, *last):
            self._end(lane)
        ends = [*(np.flatnonzero(~goes_on(rows)) + 1).tolist(), len(rows.reward)]
        start = 0
        for stop in ends:
            flagged = bool(rows.terminated[stop - 1] | rows.truncated[stop - 1])
            self._last[lane] = [leaf[stop - 1 : stop].copy() for leaf in rows.next_obs], flagged
            self._hold(_cut(rows, start, stop), lane)
            if stop < len(rows.reward):
                self._end(lane)
            start = stop

    def close(self) -> None:
        """Writes what is still open."""
        for lane, episode in self._open.items():
            if episode.waiting or episode.length:
                self._end(lane)

    def _hold(self, rows: Rows, lane: int) -> None:
        episode = self._open[lane]
        episode.waiting.append(rows)
        self._pending[lane] += sum(leaf.nbytes for leaf in (*rows.obs, *rows.action, *rows.extras.values()))
        if self._pending[lane] > self._limit:
            self._write(lane, end=False)

    def _end(self, lane: int) -> None:
        self._write(lane, end=True)
        episode = self._open[lane]
        episode.group.attrs["total_steps"] = episode.length
        self.steps += episode.length
        self._open[lane] = _Episode()

    def _write(self, lane: int, *, end: bool) -> None:
        """Writes what waits; the final observation too, where the episode ends."""
        episode = self._open[lane]
        if not episode.waiting:  # written before; the last observation of it is still due
            self._append_final(episode, lane)
            return
        rows = _join(episode.waiting)
        tail = [leaf[-1:] if end else leaf[:0] for leaf in rows.next_obs]
        obs = [np.concatenate([leaf, last]) for leaf, last in zip(rows.obs, tail, strict=True)]
        flags = {"rewards": rows.reward.astype(self._reward), "terminations": rows.terminated}
        arrays = {
            **dict(zip((name for name, _ in paths(self._schema.obs, "observations")), obs, strict=True)),
            **dict(zip((name for name, _ in paths(self._schema.action, "actions")), rows.action, strict=True)),
            **flags,
            "truncations": rows.truncated,
            **{f"infos/{name}": self._info(rows.extras[name], episode) for name in self._schema.extras},
        }
        if episode.group is None:
            episode.group = self._new_group(lane)
        for name, array in arrays.items():
            if name in episode.group:
                append(episode.group[name], array)
            else:
                create(episode.group, name, Field(array.dtype, array.shape[1:]), array)
        if not self._schema.extras:
            episode.group.require_group("infos")
        episode.length += len(rows.reward)
        if end:
            self.unflagged += int(not (rows.terminated[-1] | rows.truncated[-1]))
        episode.waiting, self._pending[lane] = [], 0

    def _append_final(self, episode: _Episode, lane: int) -> None:
        last, flagged = self._last[lane]
        for (name, _), leaf in zip(paths(self._schema.obs, "observations"), last, strict=True):
            append(episode.group[name], leaf)
        self.unflagged += int(not flagged)

    def _info(self, values: NDArray[Any], episode: _Episode) -> NDArray[Any]:
        """Minari's infos have T + 1 rows: that of the reset, of which nothing is known, comes first."""
        return values if episode.length else np.concatenate([np.zeros_like(values[:1]), values])

    def _new_group(self, lane: int) -> Any:
        group = self._file.create_group(f"episode_{self.episodes}")
        group.attrs["id"] = self.episodes
        if self._lanes > 1:
            group.attrs["lane"] = lane
        self.episodes += 1
        return group


def _cut(rows: Rows, start: int, stop: int) -> Rows:
    return _each(lambda leaf: leaf[start:stop], rows)


def _join(pieces: list[Rows]) -> Rows:
    return pieces[0] if len(pieces) == 1 else _each(lambda *leaves: np.concatenate(leaves), *pieces)


def _each(function: Any, first: Rows, *others: Rows) -> Rows:
    """The rows with `function` of every array."""
    return Rows(
        [function(*each) for each in zip(first.obs, *(rows.obs for rows in others), strict=True)],
        [function(*each) for each in zip(first.action, *(rows.action for rows in others), strict=True)],
        function(first.reward, *(rows.reward for rows in others)),
        function(first.terminated, *(rows.terminated for rows in others)),
        function(first.truncated, *(rows.truncated for rows in others)),
        [function(*each) for each in zip(first.next_obs, *(rows.next_obs for rows in others), strict=True)],
        {name: function(leaf, *(rows.extras[name] for rows in others)) for name, leaf in first.extras.items()},
    )


def write_minari(source: Source, path: Path, final: Path) -> tuple[str, ...]:
    """Writes metadata.json and main_data.hdf5 into a new directory, episode by episode.

    Args:
        source: the dataset.
        path: of the directory.
        final: what its path will be; the dataset's id is made of that.

    Returns:
        What Minari's format cannot hold, in words.

    Raises:
        ConfigError: h5py is not installed.
        SchemaError: a dtype or name that HDF5 or a space cannot hold, a block that does not fit the schema.
    """
    require("h5py")
    schema = replace(source.schema, lanes=source.lanes)
    spaces = {
        "observation_space": space_to_json(schema.obs, "obs"),
        "action_space": space_to_json(schema.action, "action"),
    }
    columns = [(f"infos/{name}", leaf) for name, leaf in schema.extras.items()]
    for name, leaf in [*paths(schema.obs, "observations"), *paths(schema.action, "actions"), *columns]:
        check_storable(name, leaf)
    path.mkdir()
    reward = np.dtype(np.float32)
    with writing(path / DATA, track_order=True) as (file, disk):
        writer: _EpisodeWriter | None = None
        for rows, lane in checked(source):
            if writer is None:
                reward = rows.reward.dtype
                writer = _EpisodeWriter(file, source, reward)
            writer.add(rows, lane)
            disk.check()
        if writer is not None:
            writer.close()
    episodes, steps = (writer.episodes, writer.steps) if writer else (0, 0)
    size = (path / DATA).stat().st_size
    metadata = {
        "total_episodes": episodes,
        "total_steps": steps,
        "data_format": "hdf5",
        "jpeg_encoding": False,
        **{name: json.dumps(space) for name, space in spaces.items()},
        "dataset_id": dataset_id(final),
        "minari_version": MINARI_VERSION,
        "dataset_size": round(size / 1e6, 1),
        "relive": About(schema, reward, steps).to_dict(),
    }
    (path / METADATA).write_text(json.dumps(metadata), encoding="utf-8")
    return _lost(source, writer.unflagged if writer else 0)


def dataset_id(path: Path) -> str:
    """An id as Minari wants it: where the directory lies among Minari's datasets, else its name.

    Minari looks for the dataset NAMESPACE/NAME-v0 in $MINARI_DATASETS_PATH/NAMESPACE/NAME-v0/data.
    """
    root = Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets").absolute()
    place = path.parent.absolute() if path.name == "data" else path.absolute()
    names = place.relative_to(root).parts if place.is_relative_to(root) and place != root else (place.name,)
    *above, name = [re.sub(r"[^\w-]+", "-", part.removesuffix(".minari")).strip("-") or "dataset" for part in names]
    return "/".join([*above, name if re.search(r"-v\d+$", name) else f"{name}-v0"])


def _lost(source: Source, unflagged: int) -> tuple[str, ...]:
    said = []
    if unflagged:
        said.append(
            f"Minari's episodes end with a flag: {unflagged:,} that were left without one are stored as they are, with "
            "neither"
        )
    if source.lanes > 1:
        said.append("Minari has no lanes: the attribute lane of an episode is known to relive only")
    if source.schema.extras:
        said.append("Minari has no extra fields: they are infos, with a row of zeros for the reset")
    if any(leaf.low is not None and leaf.shape for _, leaf in leaves(source.schema.action, "")):
        said.append("the action space is written as a Box of integers; relive reads its bounds back")
    return tuple(said)

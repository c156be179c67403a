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
from relive.interop.hdf5 import Maker, append, check_storable, writing
from relive.interop.packages import require
from relive.interop.source import Source
from relive.interop.spaces import space_to_json
from relive.schema import Field, Tree, leaves

METADATA = "metadata.json"
DATA = "main_data.hdf5"
INDEX = "_index_{}"
MINARI_VERSION = "0.5.3"
"""The version that our files say they are of: its format, which later ones read."""
COUNTS = "counts"
"""Of metadata.json's `relive`: transitions of each lane, so that no episode has to be looked at to open the file."""
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
    name: str = ""
    group: Any = None  # h5py's low-level one; None: nothing was written yet
    length: int = 0  # of what was written
    is_whole: bool = False  # with its final observation


class _EpisodeWriter:
    """Cuts the transitions of each lane into episodes and writes them as groups."""

    def __init__(self, file: Any, source: Source, reward: np.dtype[Any]) -> None:
        self._file, self._reward, self._make = file, reward, Maker()
        self._obs = [name for name, _ in paths(source.schema.obs, "observations")]
        self._action = [name for name, _ in paths(source.schema.action, "actions")]
        self._extras = list(source.schema.extras)
        self._open = {lane: _Episode() for lane in range(source.lanes)}
        self._last: dict[int, tuple[list[NDArray[Any]], bool]] = {}
        self._pending, self._limit = dict.fromkeys(self._open, 0), PENDING_BYTES // source.lanes
        self.steps = [0] * source.lanes  # of each lane
        self.episodes = self.unflagged = 0

    def add(self, rows: Rows, lane: int) -> None:
        """Takes the next transitions of a lane."""
        last = self._last.get(lane)
        if last is not None and not follows(rows, *last):
            self._end(lane)
        count, start = len(rows.reward), 0
        ends = (np.flatnonzero(~goes_on(rows)) + 1).tolist()
        flagged = (rows.terminated | rows.truncated).tolist()
        for stop in ends:
            episode = self._open[lane]
            if not episode.waiting and episode.group is None:
                self._store(episode, rows, start, stop, lane, end=True)
            else:
                self._last[lane] = [leaf[stop - 1 : stop] for leaf in rows.next_obs], flagged[stop - 1]
                self._hold(_cut(rows, start, stop), lane)
            self._end(lane, flagged[stop - 1])
            start = stop
        self._last[lane] = [leaf[-1:].copy() for leaf in rows.next_obs], flagged[-1]
        rest = _cut(rows, start, count)
        self._hold(_each(np.copy, rest) if start else rest, lane)  # else it would keep all the block in memory

    def close(self) -> None:
        """Writes what is still open."""
        for lane, episode in self._open.items():
            if episode.waiting or episode.length:
                self._end(lane)

    def _hold(self, rows: Rows, lane: int) -> None:
        self._open[lane].waiting.append(rows)
        self._pending[lane] += sum(leaf.nbytes for leaf in (*rows.obs, *rows.action, *rows.extras.values()))
        if self._pending[lane] > self._limit:
            self._write(lane, end=False)

    def _end(self, lane: int, flagged: bool | None = None) -> None:
        """Ends the episode of a lane. flagged: whether its last step has a flag; None: as kept in `_last`."""
        episode = self._open[lane]
        if episode.waiting:
            self._write(lane, end=True)
        elif not episode.is_whole:  # all was written before; the last observation of it is still due
            for name, leaf in zip(self._obs, self._last[lane][0], strict=True):
                append(self._file[f"{episode.name}/{name}"], leaf)
        self._make.number(episode.group, "total_steps", episode.length)
        self.unflagged += not (self._last[lane][1] if flagged is None else flagged)
        self.steps[lane] += episode.length
        self._open[lane] = _Episode()

    def _write(self, lane: int, *, end: bool) -> None:
        """Writes what waits; the final observation too, where the episode ends."""
        episode = self._open[lane]
        rows = _join(episode.waiting)
        self._store(episode, rows, 0, len(rows.reward), lane, end=end)
        episode.waiting, self._pending[lane] = [], 0

    def _store(self, episode: _Episode, rows: Rows, start: int, stop: int, lane: int, *, end: bool) -> None:
        """Writes transitions [start, stop); the observation that follows the last of them, where the episode ends."""
        part = slice(start, stop)
        obs = [leaf[part] for leaf in rows.obs]
        if end:
            tails = (leaf[stop - 1 : stop] for leaf in rows.next_obs)
            obs = [np.concatenate(both) for both in zip(obs, tails, strict=True)]
        action = (leaf[part] for leaf in rows.action)
        arrays = {
            **dict(zip(self._obs, obs, strict=True)),
            **dict(zip(self._action, action, strict=True)),
            "rewards": rows.reward[part].astype(self._reward, copy=False),
            "terminations": rows.terminated[part],
            "truncations": rows.truncated[part],
            **{f"infos/{name}": self._info(rows.extras[name][part], episode) for name in self._extras},
        }
        if episode.group is not None:
            for name, array in arrays.items():
                append(self._file[f"{episode.name}/{name}"], array)
        else:
            self._new_group(episode, lane)
            for name, array in arrays.items():
                self._make.array(episode.group, name, array, grows=not end)
            if not self._extras:
                self._make.group(episode.group, "infos")
        episode.length += stop - start
        episode.is_whole = end

    def _info(self, values: NDArray[Any], episode: _Episode) -> NDArray[Any]:
        """Minari's infos have T + 1 rows: that of the reset, of which nothing is known, comes first."""
        return values if episode.length else np.concatenate([np.zeros_like(values[:1]), values])

    def _new_group(self, episode: _Episode, lane: int) -> None:
        episode.name = f"episode_{self.episodes}"
        episode.group = self._make.group(self._file.id, episode.name)
        self._make.number(episode.group, "id", self.episodes)
        if len(self._open) > 1:
            self._make.number(episode.group, "lane", lane)
        self.episodes += 1


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
    episodes, counts = (writer.episodes, writer.steps) if writer else (0, [0] * source.lanes)
    size = (path / DATA).stat().st_size
    metadata = {
        "total_episodes": episodes,
        "total_steps": sum(counts),
        "data_format": "hdf5",
        "jpeg_encoding": False,
        **{name: json.dumps(space) for name, space in spaces.items()},
        "dataset_id": dataset_id(final),
        "minari_version": MINARI_VERSION,
        "dataset_size": round(size / 1e6, 1),
        "relive": {**About(schema, reward, sum(counts)).to_dict(), COUNTS: counts},
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

"""Reading Minari's HDF5 datasets: those that Minari wrote, and ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from relive.errors import DatasetError
from relive.interop.about import About, from_dict
from relive.interop.hdf5 import Column, as_group, datasets, field_of, find, is_dataset, names_in, naming
from relive.interop.minari import COUNTS, DATA, INDEX, METADATA
from relive.interop.minari_episodes import EDITED, FLAGS, Reader, episodes, length_of
from relive.interop.packages import require
from relive.interop.source import Source
from relive.interop.spaces import bounded
from relive.schema import RESERVED, Field, Schema, Tree


@dataclass
class _Found:
    """What a look at all episodes has found.

    Attributes:
        path: of the directory.
        fields: of observations and actions, by name in an episode.
        infos: of the infos that are numbers of one kind in every episode.
        steps: of all episodes.
        reward: dtype of the rewards of all of them.
        jpeg: images stored as JPEG, with the shape of their space.
        left_out: infos that cannot be read, and why.
        unflagged: episodes whose last step has no flag.
    """

    path: Path
    fields: dict[str, Field] = field(default_factory=dict)
    infos: dict[str, Field] = field(default_factory=dict)
    steps: int = 0
    reward: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))
    jpeg: dict[str, tuple[int, ...]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    unflagged: int = 0


def open_minari(path: Path) -> Source:
    """The dataset in a directory with metadata.json and main_data.hdf5 (or with these in its directory data).

    Raises:
        ConfigError: h5py is not installed; Pillow, where images are stored as JPEG.
        DatasetError: a damaged file, an episode or array that is missing or of another shape.
    """
    require("h5py")
    metadata = load_metadata(path)
    file, total = path / DATA, metadata["total_episodes"]
    if not file.is_file():
        raise DatasetError(f"{path}: expected {DATA} beside {METADATA}, got none.")
    if "relive" in metadata:
        ours = from_dict(metadata["relive"], path / METADATA)
        if metadata.get("total_steps", ours.rows) != ours.rows:
            raise DatasetError(f"{path / METADATA}: expected {ours.rows:,} steps, got others. {EDITED}")
        counts = _counts_of_ours(file, total, metadata["relive"], ours)
        schema, notes = ours.schema, list[str]()
        reader = Reader(file, schema, ours.reward, total, counts, {}, ours=True)
    else:
        if not total:
            raise DatasetError(f"{path}: expected at least one episode, got none: nothing says what a transition is.")
        spaces = {name: _space(metadata, path, f"{name[:-1]}_space") for name in ("observations", "actions")}
        found = _look_at_all(path, file, total, spaces)
        schema, notes, counts = _schema(found, spaces), _notes(found), (found.steps,)
        reader = Reader(file, schema, found.reward, total, counts, found.jpeg, ours=False)
    return Source(schema, sum(counts), schema.lanes, "minari", path, tuple(notes), reader.blocks, counts)


def _look_at_all(path: Path, file: Path, total: int, spaces: Mapping[str, Any]) -> _Found:
    """Looks at every episode of a dataset of others."""
    found = _Found(path)
    first: _Likeness | None = None
    for number, group in episodes(file, total):
        if first is None or not first.counts(found, file, number, group):
            _look(found, file, number, as_group(group), spaces)
        first = first or _Likeness(as_group(group))
    return found


def _counts_of_ours(file: Path, total: int, about: Mapping[str, Any], ours: About) -> tuple[int, ...]:
    """Transitions of each lane of a dataset of ours: as it says; older ones do not, their episodes are looked at.

    Raises:
        DatasetError: other than as many as it says.
    """
    counts = about.get(COUNTS)
    if counts is None:
        counts = [0] * ours.schema.lanes
        for number, group in episodes(file, total):
            with naming(file, f"episode_{number}"):
                lane = int(as_group(group).attrs.get("lane", 0))
            if not 0 <= lane < len(counts):
                raise DatasetError(f"{file}: lane: expected lanes in [0, {len(counts)}), got others.")
            counts[lane] += length_of(file, number, as_group(group), "rewards")
    fits = isinstance(counts, list) and len(counts) == ours.schema.lanes
    if not fits or not all(type(count) is int and count >= 0 for count in counts):
        raise DatasetError(f"{file.parent / METADATA}: {COUNTS}: expected a number for each lane, got something else.")
    if sum(counts) != ours.rows:
        raise DatasetError(f"{file}: rewards: expected {ours.rows:,} steps, got {sum(counts):,}. {EDITED}")
    return tuple(counts)


class _Likeness:
    """What lies in an episode. Others that hold the same need no closer look.

    Args:
        group: an episode that `_look` was content with.
    """

    def __init__(self, group: Any) -> None:
        self._names: dict[str, list[bytes] | None] = {}
        self._columns: list[tuple[Column, int]] = []  # and how many rows it has more than there are steps
        self._flags = [Column(name, Field(np.bool_)) for name in FLAGS]
        self._knows_all = True
        steps, pending = len(group["rewards"]), [""]
        while pending:
            prefix = pending.pop()
            inner = group[prefix] if prefix else group
            self._names[prefix] = names_in(inner.id)
            for part in inner:
                name, node = f"{prefix}/{part}".removeprefix("/"), inner[part]
                leaf = field_of(node) if is_dataset(node) else None
                if leaf is not None:
                    self._columns.append((Column(name, leaf, node.id.get_type()), len(node) - steps))
                elif is_dataset(node):
                    self._knows_all = False
                else:
                    pending.append(name)

    def counts(self, found: _Found, file: Path, number: int, group: Any) -> bool:
        """Counts an episode like this one; False: it has to be looked at."""
        if not self._knows_all:
            return False
        with naming(file, f"episode_{number}"):
            if any(names_in(group, name) != names for name, names in self._names.items()):
                return False
            opened = [(column.open(group), more) for column, more in self._columns]
            lengths = {None if one is None else one[1][0] - more for one, more in opened}
            steps = lengths.pop()
            if lengths or steps is None:
                return False
            flags = np.empty((2, steps), np.bool_)
            if not all(c.read(group, into) for c, into in zip(self._flags, flags, strict=True)):
                return False
        found.steps += steps
        found.unflagged += int(steps > 0 and not flags[:, -1].any())
        return True


def _look(found: _Found, file: Path, number: int, group: Any, spaces: Mapping[str, Any]) -> None:
    """Looks at an episode of Minari's: the dtypes of all of them make those of the schema."""
    key = f"episode_{number}"
    steps = length_of(file, number, group, "rewards")
    found.steps += steps
    rewards, *flags = (find(file, group, name, f"{key}/{name}") for name in ("rewards", "terminations", "truncations"))
    with naming(file, f"{key}/terminations"):
        found.unflagged += int(steps > 0 and not any(flag[-1] for flag in flags))
    if rewards.dtype.kind != "f" or rewards.dtype.itemsize > 4:
        found.reward = np.dtype(np.float64)
    fields: dict[str, Field] = {}
    for part in ("observations", "actions"):
        node = find(file, group, part, f"{key}/{part}")
        for name, dataset in [(part, node)] if is_dataset(node) else datasets(file, node, f"{part}/"):
            fields[name] = _field(found, file, f"{key}/{name}", name, dataset, spaces)
    if number == 0:
        found.fields = fields
    elif {name: leaf.shape for name, leaf in fields.items()} != {n: leaf.shape for n, leaf in found.fields.items()}:
        raise DatasetError(
            f"{file}: {key}: expected observations and actions as in episode_0, {_list(found.fields)}, got "
            f"{_list(fields)}."
        )
    for name, leaf in fields.items():
        if leaf.itemdtype != found.fields[name].itemdtype:
            found.fields[name] = Field(np.result_type(leaf.itemdtype, found.fields[name].itemdtype), leaf.shape)
    _look_at_infos(found, file, number, group, steps)


def _list(fields: Mapping[str, Field]) -> str:
    return ", ".join(f"{name}: {leaf}" for name, leaf in fields.items())


def _field(found: _Found, file: Path, key: str, name: str, dataset: Any, spaces: Mapping[str, Any]) -> Field:
    shape = _image_shape(spaces, name)
    if shape is not None and len(dataset.shape) < 1 + len(shape):
        found.jpeg[name] = shape
        require("PIL.Image")
        return Field(np.uint8, shape)
    leaf = field_of(dataset)
    if leaf is None:
        raise DatasetError(f"{file}: {key}: expected an array of numbers, got {dataset.dtype} {dataset.shape}.")
    return leaf


def _image_shape(spaces: Mapping[str, Any], name: str) -> tuple[int, ...] | None:
    """The shape of the Box of bytes that an array belongs to, which Minari may have stored as JPEG."""
    part, *keys = name.split("/")
    space = spaces[part]
    try:
        for key in keys:
            subspaces = space["subspaces"]
            space = subspaces[key] if isinstance(subspaces, dict) else subspaces[int(key.removeprefix("_index_"))]
        image = space["type"] == "Box" and space["dtype"] == "uint8" and len(space["shape"]) in (2, 3)
        return tuple(space["shape"]) if image else None
    except (KeyError, TypeError, ValueError, IndexError):
        return None


def _look_at_infos(found: _Found, file: Path, number: int, group: Any, steps: int) -> None:
    infos = find(file, group, "infos", f"episode_{number}/infos") if "infos" in group else None
    here: dict[str, Field] = {}
    for name, dataset in () if infos is None or is_dataset(infos) else datasets(file, infos):
        leaf = field_of(dataset)
        if not name.isidentifier() or name in RESERVED or name.startswith("__"):
            found.left_out[name] = "no name for a field"
        elif leaf is None or leaf.itemdtype.kind not in "biufc" or dataset.shape[0] not in (steps, steps + 1):
            found.left_out[name] = "no number a step"
        else:
            here[name] = leaf
    for name in {**found.infos, **here}:
        if number and (name not in here or name not in found.infos):
            found.left_out.setdefault(name, "not in every episode")
        elif number and here[name].shape != found.infos[name].shape:
            found.left_out.setdefault(name, "of several shapes")
        elif number:
            dtype = np.result_type(here[name].itemdtype, found.infos[name].itemdtype)
            found.infos[name] = Field(dtype, here[name].shape)
    if not number:
        found.infos = here
    for name in found.left_out:
        found.infos.pop(name, None)


def _schema(found: _Found, spaces: Mapping[str, Any]) -> Schema:
    trees = {part: bounded(_nest(found.fields, part), spaces[part], INDEX) for part in ("observations", "actions")}
    return Schema(trees["observations"], trees["actions"], found.infos)


def _nest(fields: Mapping[str, Field], part: str) -> Tree:
    """Groups as dicts."""
    if part in fields:
        return fields[part]
    keys = dict.fromkeys(name[len(part) + 1 :].split("/")[0] for name in fields if name.startswith(f"{part}/"))
    return {key: _nest(fields, f"{part}/{key}") for key in keys}


def _notes(found: _Found) -> list[str]:
    said = []
    if found.unflagged:
        said.append(f"{found.unflagged:,} episodes end without a flag: their last steps are taken for truncated")
    if found.jpeg:
        said.append(
            f"{', '.join(found.jpeg)}: images were stored as JPEG; they are what Minari reads, not what it was given"
        )
    if found.infos:
        said.append("infos of a step are its extras; those of resets are left out")
    if found.left_out:
        said.append("left out: " + ", ".join(f"infos/{name} ({why})" for name, why in sorted(found.left_out.items())))
    return said


def _space(metadata: Mapping[str, Any], path: Path, name: str) -> Any:
    """The JSON of a space; None where the file names an environment instead."""
    text = metadata.get(name)
    if text is None:
        return None
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path / METADATA}: {name}: expected JSON, got something else ({error}).") from None


def load_metadata(path: Path) -> dict[str, Any]:
    """What metadata.json says.

    Raises:
        DatasetError: no JSON object, or the data lie in another format.
    """
    place = path / METADATA
    if not place.is_file():
        raise DatasetError(f"{place}: expected Minari's metadata, got no file.")
    try:
        metadata = json.loads(place.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{place}: expected JSON, got something else ({error}).") from None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("total_episodes"), int):
        raise DatasetError(f"{place}: total_episodes: expected Minari's metadata, got something else.")
    kind = metadata.get("data_format", "hdf5")
    if kind != "hdf5":
        raise DatasetError(f"{place}: data_format: expected 'hdf5', got {kind!r}. Convert it with Minari first.")
    return metadata

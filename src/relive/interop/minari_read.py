"""Reading Minari's HDF5 datasets: those that Minari wrote, and ours."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive.errors import DatasetError
from relive.interop.about import from_dict
from relive.interop.blocks import Rows, as_flags, block_of, rows_at_once, spans
from relive.interop.foreign import as_reward
from relive.interop.hdf5 import datasets, field_of, find, is_dataset, naming, reading
from relive.interop.minari import DATA, INDEX, METADATA, paths
from relive.interop.packages import require
from relive.interop.source import Block, Source
from relive.interop.spaces import bounded
from relive.schema import RESERVED, Field, Schema, Tree

_AT_ONCE = 256  # episodes


@dataclass
class _Found:
    """What a look at all episodes has found.

    Attributes:
        path: of the directory.
        fields: of observations and actions, by name in an episode.
        infos: of the infos that are numbers of one kind in every episode.
        steps: of each episode.
        lanes: of each episode.
        jpeg: images stored as JPEG, with the shape of their space.
        left_out: infos that cannot be read, and why.
        unflagged: episodes whose last step has no flag.
    """

    path: Path
    fields: dict[str, Field] = field(default_factory=dict)
    infos: dict[str, Field] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    lanes: list[int] = field(default_factory=list)
    jpeg: dict[str, tuple[int, ...]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    unflagged: int = 0


def open_minari(path: Path) -> Source:
    """The dataset in a directory with metadata.json and main_data.hdf5 (or with these in its directory data).

    Raises:
        ConfigError: h5py is not installed; Pillow, where images are stored as JPEG.
        DatasetError: a damaged file, an episode or array that is missing or of another shape.
    """
    metadata = load_metadata(path)
    file = path / DATA
    total = metadata["total_episodes"]
    if not file.is_file():
        raise DatasetError(f"{path}: expected {DATA} beside {METADATA}, got none.")
    ours = from_dict(metadata["relive"], path / METADATA) if "relive" in metadata else None
    spaces = {name: _space(metadata, path, f"{name[:-1]}_space") for name in ("observations", "actions")}
    found = _Found(path)
    if total or ours is None:
        for number, group in _episodes(file, total):
            if ours is None:
                _look(found, file, number, group, spaces)
            else:
                _count(found, file, number, group)
    if ours is not None:
        schema, notes = ours.schema, list[str]()
        if any(not 0 <= lane < schema.lanes for lane in found.lanes):
            raise DatasetError(f"{file}: lane: expected lanes in [0, {schema.lanes}), got others.")
        if sum(found.steps) != ours.rows:
            raise DatasetError(f"{file}: rewards: expected {ours.rows:,} steps, got {sum(found.steps):,}.")
    else:
        if not total:
            raise DatasetError(f"{path}: expected at least one episode, got none: nothing says what a transition is.")
        schema, notes = _schema(found, spaces), _notes(found)
        found.lanes = [0] * total
    counts = np.bincount(found.lanes, found.steps, schema.lanes).astype(np.int64) if found.steps else [0] * schema.lanes
    total_steps = sum(found.steps)
    reader = _Reader(file, schema, found, None if ours is None else ours.reward)
    return Source(
        schema, total_steps, schema.lanes, "minari", path, tuple(notes), reader.blocks, tuple(map(int, counts))
    )


@dataclass(frozen=True)
class _Reader:
    """Reads episode after episode, long ones in pieces."""

    file: Path
    schema: Schema
    found: _Found
    reward: np.dtype[Any] | None  # None: a dataset of others

    def blocks(self) -> Iterator[Block]:
        rows = rows_at_once(self.schema)
        if not self.found.steps:
            return
        for number, group in _episodes(self.file, len(self.found.steps)):
            steps, lane = self.found.steps[number], self.found.lanes[number]
            for start, stop in spans(steps, rows):
                yield block_of(self.schema, self._rows(group, number, start, stop, steps), lane)

    def _rows(self, group: Any, number: int, start: int, stop: int, steps: int) -> Rows:
        def take(name: str, wanted: Field | None, first: int, last: int, length: int) -> NDArray[Any]:
            return self._take(group, f"episode_{number}/{name}", name, wanted, first, last, length)

        obs = [take(name, leaf, start, stop + 1, steps + 1) for name, leaf in paths(self.schema.obs, "observations")]
        extras = {}
        for name, leaf in self.schema.extras.items():
            has_reset = _length(self.file, number, group, f"infos/{name}") == steps + 1
            extras[name] = take(f"infos/{name}", leaf, start + has_reset, stop + has_reset, steps + has_reset)
        reward = take("rewards", None, start, stop, steps)
        terminated, truncated = (
            as_flags(take(name, None, start, stop, steps), f"{self.file}: episode_{number}/{name}")
            for name in ("terminations", "truncations")
        )
        if self.reward is None and stop == steps and not terminated[-1]:
            truncated[-1] = True  # an episode of Minari's ends where its group does
        return Rows(
            [leaf[:-1] for leaf in obs],
            [take(name, leaf, start, stop, steps) for name, leaf in paths(self.schema.action, "actions")],
            as_reward(reward) if self.reward is None else reward.astype(self.reward, copy=False),
            terminated,
            truncated,
            [leaf[1:] for leaf in obs],
            extras,
        )

    def _take(
        self, group: Any, key: str, name: str, wanted: Field | None, start: int, stop: int, length: int
    ) -> NDArray[Any]:
        node = find(self.file, group, name, key)
        with naming(self.file, key):
            if not is_dataset(node) or not node.shape or node.shape[0] != length:
                raise DatasetError(f"{self.file}: {key}: expected {length:,} rows, got {_say(node)}.")
            if name in self.found.jpeg:
                return _decode(node[start:stop], self.found.jpeg[name], self.file, key)
            if wanted is not None and (
                node.shape[1:] != wanted.shape or not np.can_cast(node.dtype, wanted.itemdtype, "safe")
            ):
                raise DatasetError(f"{self.file}: {key}: expected {wanted}, got {_say(node)}.")
            if wanted is None and (node.ndim != 1 or node.dtype.kind not in "biuf"):
                raise DatasetError(f"{self.file}: {key}: expected one number a step, got {_say(node)}.")
            values = np.asarray(node[start:stop])
            return values if wanted is None else values.astype(wanted.itemdtype, copy=False)


def _say(node: Any) -> str:
    return f"{node.dtype} {node.shape}" if is_dataset(node) else "a group"


def _episodes(file: Path, total: int) -> Iterator[tuple[int, Any]]:
    """Every episode, opened.

    Until a file is closed HDF5 keeps some 40 KB of every episode that was looked at: it is closed now and then.
    """
    for begin in range(0, total, _AT_ONCE):
        with reading(file) as data:
            for number in range(begin, min(begin + _AT_ONCE, total)):
                yield number, _episode(data, file, number)


def _episode(data: Any, file: Path, number: int) -> Any:
    name = f"episode_{number}"
    group = find(file, data, name, name)
    if is_dataset(group):
        raise DatasetError(f"{file}: {name}: expected a group, got an array.")
    return group


def _length(file: Path, number: int, group: Any, name: str) -> int:
    """Rows of an array of an episode."""
    key = f"episode_{number}/{name}"
    node = find(file, group, name, key)
    if not is_dataset(node) or not node.shape:
        raise DatasetError(f"{file}: {key}: expected an array, got {_say(node)}.")
    return int(node.shape[0])


def _count(found: _Found, file: Path, number: int, group: Any) -> None:
    """Looks at an episode of ours."""
    found.steps.append(_length(file, number, group, "rewards"))
    with naming(file, f"episode_{number}"):
        found.lanes.append(int(group.attrs.get("lane", 0)))


def _look(found: _Found, file: Path, number: int, group: Any, spaces: Mapping[str, Any]) -> None:
    """Looks at an episode of Minari's: the dtypes of all of them make those of the schema."""
    key = f"episode_{number}"
    found.steps.append(_length(file, number, group, "rewards"))
    flags = [find(file, group, name, f"{key}/{name}") for name in ("terminations", "truncations")]
    with naming(file, f"{key}/terminations"):
        found.unflagged += int(found.steps[-1] > 0 and not any(flag[-1] for flag in flags))
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
    _look_at_infos(found, file, number, group)


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


def _look_at_infos(found: _Found, file: Path, number: int, group: Any) -> None:
    infos = find(file, group, "infos", f"episode_{number}/infos") if "infos" in group else None
    here: dict[str, Field] = {}
    for name, dataset in () if infos is None or is_dataset(infos) else datasets(file, infos):
        leaf, steps = field_of(dataset), found.steps[-1]
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

"""HDF5 in D4RL's manner: observations, actions, rewards, terminals, timeouts, next_observations, infos/*.

Fu et al. 2020, "D4RL: Datasets for deep data-driven reinforcement learning" (arXiv:2004.07219).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from relive.errors import DatasetError
from relive.interop.about import from_json
from relive.interop.blocks import spans
from relive.interop.columns import Chunk, Layout, Table, flat, gathered, source_of_ours
from relive.interop.foreign import source_of_others
from relive.interop.hdf5 import (
    append,
    check_storable,
    create,
    datasets,
    field_of,
    naming,
    reading,
    rows_of_dataset,
    writing,
)
from relive.interop.packages import require
from relive.interop.source import Source
from relive.schema import Field, leaves

LAYOUT = Layout(
    obs="observations",
    action="actions",
    reward="rewards",
    terminated="terminals",
    truncated="timeouts",
    next_obs="next_observations",
    extra="infos/",
    lane="metadata/lane",
    between="/",
    index="_index_{}",
)
ABOUT = "metadata/relive"
"""Name of the text that tells about a file of ours."""


def open_d4rl(path: Path) -> Source:
    """The dataset in an HDF5 file: one of ours, or with D4RL's or other common names.

    Raises:
        ConfigError: h5py is not installed.
        DatasetError: a damaged file, an array that is missing or of another shape.
    """
    table = _table(path)
    return source_of_others(table, LAYOUT) if table.about is None else source_of_ours(table, LAYOUT)


def _table(path: Path) -> Table:
    columns: dict[str, Field] = {}
    lengths: dict[str, int] = {}
    unreadable: dict[str, str] = {}
    about = None
    with reading(path) as file:
        if "episode_0" in file:
            raise DatasetError(
                f"{path}: expected D4RL's arrays, got Minari's groups of episodes. Give the directory that holds "
                "metadata.json beside this file; where there is none, save it with Minari 0.5 or later."
            )
        for name, dataset in datasets(path, file):
            with naming(path, name):
                field = field_of(dataset)
                if name == ABOUT:
                    about = from_json(dataset[()], path)
                elif field is None:
                    unreadable[name] = "a single value or text"
                else:
                    columns[name], lengths[name] = field, dataset.shape[0]

    def chunks(names: Sequence[str], rows: int) -> Iterator[Chunk]:
        with reading(path) as file:
            for start, stop in spans(min(lengths[name] for name in names), rows):
                yield {name: rows_of_dataset(path, name, file[name], start, stop) for name in names}

    return Table(path, "d4rl", columns, lengths, chunks, about, unreadable)


def write_d4rl(source: Source, path: Path) -> tuple[str, ...]:
    """Writes block by block.

    Raises:
        ConfigError: h5py is not installed.
        SchemaError: a dtype or name that HDF5 cannot hold, a block that does not fit the schema.
    """
    require("h5py")
    for name, field in [*leaves(source.schema.obs, "obs"), *leaves(source.schema.action, "action")]:
        check_storable(name, field)
    data = flat(source, LAYOUT)
    for name, field in data.columns.items():
        check_storable(name, field)
    with writing(path) as (file, disk):
        file[ABOUT] = data.about.to_json()
        written = {name: create(file, name, field) for name, field in data.columns.items()}
        for chunk in gathered(data.chunks, data.rows):
            for name, dataset in written.items():
                append(dataset, chunk[name])
            disk.check()
    return _lost(source)


def _lost(source: Source) -> tuple[str, ...]:
    said = []
    trees = [name for name in ("obs", "action") if not isinstance(getattr(source.schema, name), Field)]
    if trees:
        said.append(f"D4RL has no dict or tuple spaces: {' and '.join(trees)} are groups that only relive knows")
    if source.lanes > 1:
        said.append(
            "D4RL has no lanes: metadata/lane is known to relive only; other readers see them one after another"
        )
    return tuple(said)

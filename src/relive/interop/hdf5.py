"""What all HDF5 files need: errors that name the file and the key, datasets that grow, trees as groups."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive.errors import DatasetError, ReplayError, SchemaError
from relive.interop.packages import require
from relive.schema import Field

LIBVER = ("v110", "v110")
"""What HDF5 1.10 (2016) and later read: its structures have checksums, so that damage is found."""

CHUNK_BYTES = 1 << 16
"""An HDF5 chunk has about so many bytes."""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Any]:
    """The file, open for reading.

    Raises:
        ConfigError: h5py is not installed.
        DatasetError: no HDF5 file, or a damaged one.
    """
    h5py = require("h5py")
    with naming(path, "file"):
        file = h5py.File(path, "r")
    with file:
        yield file


class Disk:
    """A file for HDF5 to write through, which crashes the process when it closes a file that it could not write.

    So it is told that all went well; the first error is kept, and raised by `check`.
    """

    def __init__(self, path: Path) -> None:
        self._file: FileIO = path.open("w+b", buffering=0)
        self._error: BaseException | None = None

    def check(self) -> None:
        """Raises what went wrong, such as OSError of a full disk. Call it often: what follows is for nothing."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._file.close()

    # What h5py calls from within HDF5:

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while self._error is None and rest:
                rest = rest[self._file.write(rest) :]
        except BaseException as error:  # an interrupt does no less harm
            self._error = error
        return size

    def truncate(self, size: int) -> int:
        try:
            if self._error is None:
                self._file.truncate(size)
        except BaseException as error:
            self._error = error
        return size

    def flush(self) -> None: ...

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size) or b""

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer) or 0


@contextlib.contextmanager
def writing(path: Path, **options: Any) -> Iterator[tuple[Any, Disk]]:
    """A new file, open for writing, and the disk it goes to, which is to be checked.

    Args:
        path: of the file.
        options: of h5py.File.

    Raises:
        ConfigError: h5py is not installed.
        OSError: it could not be written.
    """
    h5py = require("h5py")
    with contextlib.closing(Disk(path)) as disk:
        try:
            with h5py.File(disk, "w", libver=LIBVER, **options) as file:
                yield file, disk
        except Exception:
            disk.check()  # that is why
            raise
        disk.check()


@contextlib.contextmanager
def naming(path: Path, key: str) -> Iterator[None]:
    """Errors of h5py name the file and the key."""
    try:
        yield
    except ReplayError:
        raise
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        said = str(error).partition("\n")[0].rstrip(".")
        raise DatasetError(f"{path}: {key}: expected HDF5, got what cannot be read ({said}).") from None


def is_dataset(node: Any) -> bool:
    """Whether an HDF5 object is an array, and no group or named type."""
    return isinstance(node, require("h5py").Dataset)


def field_of(dataset: Any) -> Field | None:
    """The field of which a dataset holds one a row; None for what is no array of fixed-size elements."""
    if not dataset.shape or dataset.dtype.hasobject or dataset.dtype.itemsize == 0 or dataset.dtype.subdtype:
        return None
    return Field(dataset.dtype, dataset.shape[1:])


def find(path: Path, group: Any, name: str, key: str) -> Any:
    """The dataset or group of this name in a group. No link is followed: a stranger's file reads no others of ours.

    Args:
        path: of the file, for errors.
        group: where to look.
        name: parts between slashes.
        key: the whole name, for errors.

    Raises:
        DatasetError: nothing there, a link, or data that lie in another file.
    """
    h5py = require("h5py")
    node = group
    for part in name.split("/"):
        with naming(path, key):
            link = None if isinstance(node, h5py.Dataset) else node.get(part, getlink=True)
            if link is None:
                raise DatasetError(f"{path}: {key}: expected data, got none.")
            if not isinstance(link, h5py.HardLink):
                raise DatasetError(f"{path}: {key}: expected data in the file, got a link. Links are not followed.")
            node = node[part]
            if isinstance(node, h5py.Dataset) and (node.external or node.is_virtual):
                raise DatasetError(f"{path}: {key}: expected data in the file, got data in others.")
    return node


def datasets(path: Path, group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dataset below a group by its name, in the order of the names.

    Raises:
        DatasetError: see `find`.
    """
    h5py = require("h5py")
    for part in group:
        name = f"{prefix}{part}"
        node = find(path, group, part, name)
        if isinstance(node, h5py.Dataset):
            yield name, node
        elif isinstance(node, h5py.Group):
            yield from datasets(path, node, f"{name}/")


def check_storable(name: str, field: Field) -> None:
    """Refuses what HDF5 cannot hold.

    Raises:
        SchemaError: a dtype, or a name.
    """
    if field.itemdtype.kind not in "biufcS":
        raise SchemaError(f"{name}: expected numbers, which HDF5 can hold, got {field}. NPZ and Parquet can hold it.")
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        raise SchemaError(f"{name}: expected a name that HDF5 can hold, got another. Rename the key.")


def create(group: Any, name: str, field: Field, first: NDArray[Any] | None = None) -> Any:
    """A dataset [0 or more, *shape] that can grow, with a checksum for each chunk."""
    rows = max(1, min(1 << 14, CHUNK_BYTES // max(1, field.itemdtype.itemsize * math.prod(field.shape))))
    if first is not None:
        rows = max(1, min(rows, len(first)))
    return group.create_dataset(
        name,
        shape=(0 if first is None else len(first), *field.shape),
        maxshape=(None, *(side or None for side in field.shape)),
        chunks=(rows, *(side or 1 for side in field.shape)),
        dtype=field.itemdtype,
        data=first,
        fletcher32=True,
    )


def append(dataset: Any, values: NDArray[Any]) -> None:
    """Adds rows at the end."""
    start = dataset.shape[0]
    dataset.resize(start + len(values), axis=0)
    dataset[start:] = values


def rows_of_dataset(path: Path, name: str, dataset: Any, start: int, stop: int) -> NDArray[Any]:
    """Rows [start, stop)."""
    with naming(path, name):
        return np.asarray(dataset[start:stop])

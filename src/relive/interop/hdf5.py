"""What all HDF5 files need: errors that name the file and the key, datasets that grow, trees as groups."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
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

COMPACT_BYTES = 60_000
"""A whole array of at most so many bytes lies in its header: one place, one checksum. HDF5 takes 64 KiB."""

POUR_BYTES = 1 << 20
"""Bytes that are written to the disk at a time, where they follow one another."""


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
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        self._error: BaseException | None = None
        self._waiting, self._begin = bytearray(), 0  # HDF5 writes thousands of small pieces, most one after another
        self._place = 0

    def check(self) -> None:
        """Raises what went wrong, such as OSError of a full disk. Call it often: what follows is for nothing."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        os.close(self._file)

    # What h5py calls from within HDF5:

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        try:
            if self._place != self._begin + len(self._waiting):
                self.flush()
                self._begin = self._place
            self._waiting += data
            if len(self._waiting) >= POUR_BYTES:
                self.flush()
        except BaseException as error:  # an interrupt does no less harm
            self._error = self._error or error
        self._place += size
        return size

    def flush(self) -> None:
        try:
            rest = memoryview(self._waiting)
            while self._error is None and rest:
                done = os.pwrite(self._file, rest, self._begin)
                rest, self._begin = rest[done:], self._begin + done
        except BaseException as error:
            self._error = self._error or error
        self._waiting, self._begin = bytearray(), self._place

    def truncate(self, size: int) -> int:
        self.flush()
        try:
            if self._error is None:
                os.ftruncate(self._file, size)
        except BaseException as error:
            self._error = error
        return size

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == os.SEEK_END:
            self.flush()
            offset += os.fstat(self._file).st_size
        self._place = offset
        return offset

    def tell(self) -> int:
        return self._place

    def read(self, size: int = -1) -> bytes:
        self.flush()
        data = os.pread(self._file, size if size >= 0 else os.fstat(self._file).st_size, self._place)
        self._place += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(memoryview(buffer).nbytes)
        memoryview(buffer).cast("B")[: len(data)] = data
        return len(data)


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
        disk.flush()
        disk.check()


ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)
"""What h5py raises at what it cannot read."""


@contextlib.contextmanager
def naming(path: Path, key: str) -> Iterator[None]:
    """Errors of h5py name the file and the key."""
    try:
        yield
    except ReplayError:
        raise
    except (FileNotFoundError, PermissionError):
        raise
    except ERRORS as error:
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


class Maker:
    """Makes groups and arrays by HDF5's own calls: for a short array h5py's objects cost several times as much."""

    def __init__(self) -> None:
        h5py = require("h5py")
        self._h5 = h5py
        self._links = {}
        for ascii_only in (True, False):
            self._links[ascii_only] = links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
            links.set_create_intermediate_group(True)
            links.set_char_encoding(h5py.h5t.CSET_ASCII if ascii_only else h5py.h5t.CSET_UTF8)
        self._compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        self._compact.set_layout(h5py.h5d.COMPACT)
        self._compact.set_obj_track_times(False)
        self._number, self._scalar = h5py.h5t.py_create(np.dtype(np.int64)), h5py.h5s.create(h5py.h5s.SCALAR)
        self._types: dict[np.dtype[Any], Any] = {}
        self._spaces: dict[tuple[int, ...], Any] = {}

    def group(self, parent: Any, name: str) -> Any:
        """A new group in a group (h5py's low-level one, `.id` of the other)."""
        return self._h5.h5g.create(parent, name.encode(), self._links[name.isascii()])

    def number(self, group: Any, name: str, value: int) -> None:
        """A new attribute, int64."""
        attribute = self._h5.h5a.create(group, name.encode(), self._number, self._scalar)
        attribute.write(np.array(value, np.int64))

    def array(self, group: Any, name: str, values: NDArray[Any], *, grows: bool) -> None:
        """A new dataset: one that can grow; in its header if it need not and is short."""
        if grows or not 0 < values.nbytes <= COMPACT_BYTES:
            create(self._h5.Group(group), name, Field(values.dtype, values.shape[1:]), values)
            return
        kind = self._types.get(values.dtype)
        if kind is None:
            kind = self._types[values.dtype] = self._h5.h5t.py_create(values.dtype, logical=True)
        space = self._spaces.get(values.shape)
        if space is None:
            if len(self._spaces) >= 1024:
                self._spaces.clear()
            space = self._spaces[values.shape] = self._h5.h5s.create_simple(values.shape)
        data = self._h5.h5d.create(group, name.encode(), kind, space, self._compact, self._links[name.isascii()])
        data.write(self._h5.h5s.ALL, self._h5.h5s.ALL, np.ascontiguousarray(values), kind)


def append(dataset: Any, values: NDArray[Any]) -> None:
    """Adds rows at the end."""
    start = dataset.shape[0]
    dataset.resize(start + len(values), axis=0)
    dataset[start:] = values


def rows_of_dataset(path: Path, name: str, dataset: Any, start: int, stop: int) -> NDArray[Any]:
    """Rows [start, stop)."""
    with naming(path, name):
        return np.asarray(dataset[start:stop])


class Column:
    """A dataset that many groups have, and is read by HDF5's own calls where it is just as expected.

    For a short array h5py's objects cost several times as much. What is not as expected is left to them, and to `find`.

    Args:
        name: in the group, parts between slashes.
        leaf: what a row is.
        kind: its type in the file; None: as we write it.
        careful: False where `names_no_files` is true of the file.
    """

    def __init__(self, name: str, leaf: Field, kind: Any = None, *, careful: bool = True) -> None:
        self._h5 = h5py = require("h5py")
        parts = name.encode().split(b"/")
        self._names = [b"/".join(parts[: end + 1]) for end in range(len(parts))]
        self.field, self.dtype, self.shape = leaf, leaf.itemdtype, leaf.shape
        self._memory = h5py.h5t.py_create(leaf.itemdtype, logical=True)
        self._kind = self._memory if kind is None else kind
        self._careful = careful

    def open(self, group: Any) -> tuple[Any, tuple[int, ...]] | None:
        """The dataset in a group and its shape; None: it is not as expected, or its data lie in another file.

        Args:
            group: h5py's low-level one.
        """
        h5d, links = self._h5.h5d, group.links
        try:
            if any(links.get_info(name).type != self._h5.h5l.TYPE_HARD for name in self._names):
                return None
            data = h5d.open(group, self._names[-1])
        except (KeyError, TypeError, ValueError):  # nothing, or a group
            return None
        # External data have no place in this file, virtual ones are of a layout of their own.
        if (
            self._careful
            and data.get_offset() is None
            and data.get_create_plist().get_layout() not in (h5d.COMPACT, h5d.CHUNKED)
        ):
            return None
        shape: tuple[int, ...] = data.get_space().get_simple_extent_dims()
        if not shape or shape[1:] != self.shape or data.get_type() != self._kind:
            return None
        return data, shape

    def read(self, group: Any, into: NDArray[Any]) -> bool:
        """Fills `into` [T, *shape], contiguous, with all of the dataset; False: it is not as expected, see `open`."""
        found = self.open(group)
        if found is None or found[1] != into.shape:
            return False
        self.take(found[0], into)
        return True

    def take(self, data: Any, into: NDArray[Any]) -> None:
        """Fills `into` with what was opened."""
        if into.size:
            data.read(self._h5.h5s.ALL, self._h5.h5s.ALL, into, self._memory)


def names_no_files(path: Path) -> bool:
    """True where it is certain that no dataset of an HDF5 file has its data in another file.

    HDF5 keeps the names of files in heaps, of external data in a local one, of virtual data in a global one, and reads
    no heap that does not begin with its signature. To ask thousands of datasets takes far longer than to look for that.
    """
    before = b""
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            if any(sign in before + piece for sign in (b"GCOL", b"HEAP")):
                return False
            before = piece[-3:]
    return True


def as_group(group: Any) -> Any:
    """h5py's own object for a low-level group."""
    return require("h5py").Group(group)


def names_in(group: Any, name: str = "") -> list[bytes] | None:
    """What lies in a group, or in a group of it; None: there is none. Low-level groups of h5py."""
    h5py = require("h5py")
    if name:
        if not group.links.exists(name.encode()):
            return None
        group = h5py.h5o.open(group, name.encode())
        if not isinstance(group, h5py.h5g.GroupID):
            return None
    names: list[bytes] = []
    group.links.iterate(names.append)
    return names

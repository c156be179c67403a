"""NPZ: a zip of .npy files, one array a field. Neither writes nor reads pickles."""

from __future__ import annotations

import contextlib
import math
import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from relive.errors import DatasetError
from relive.interop.about import from_json
from relive.interop.blocks import native, spans
from relive.interop.columns import PLAIN, Chunk, Table, flat, source_of_ours
from relive.interop.foreign import source_of_others
from relive.interop.source import Source
from relive.schema import Field

ABOUT = "relive"
"""Name of the array that tells about a file of ours."""

COPY_BYTES = 1 << 20


def open_npz(path: Path) -> Source:
    """The dataset in an .npz file: one of ours, or with the common names of `foreign.NAMES`.

    Raises:
        DatasetError: a damaged file, an array that is missing or of another shape, a pickle in it.
    """
    table = _table(path)
    return source_of_others(table, PLAIN) if table.about is None else source_of_ours(table, PLAIN)


def _table(path: Path) -> Table:
    columns: dict[str, Field] = {}
    stored: dict[str, np.dtype[Any]] = {}  # as in the file, maybe of the other byte order
    lengths: dict[str, int] = {}
    unreadable: dict[str, str] = {}
    about = None
    with _archive(path) as archive:
        members = archive.namelist()
        if not any(member.endswith(".npy") for member in members):
            model = any(member.endswith((".pth", "data.pkl")) for member in members)
            what = "a file or model of PyTorch, not a dataset" if model else "a zip of other files"
            raise DatasetError(f"{path}: expected arrays, got {what}.")
        times = Counter(members)
        for member in members:
            name = member.removesuffix(".npy")
            if times[member] > 1:
                raise DatasetError(f"{path}: {name}: expected one array of this name, got {times[member]}.")
            if name == member:
                unreadable[name] = "no array"
                continue
            with _naming(path, name), archive.open(member) as stream:
                shape, in_order, dtype = _header(stream)
                if math.prod(side or 1 for side in shape) * max(1, dtype.itemsize) >= 2**62:
                    raise ValueError(f"of shape {shape}")  # NumPy cannot make it even where it holds nothing
                if name == ABOUT and not shape and dtype.kind == "U":
                    about = from_json(str(np.frombuffer(stream.read(), dtype)[0]), path)
                elif dtype.hasobject:
                    unreadable[name] = "Python objects; pickles are not loaded"
                elif not shape or (not in_order and len(shape) > 1):
                    unreadable[name] = "a single value" if not shape else "an array in Fortran's order"
                else:
                    columns[name], lengths[name], stored[name] = Field(dtype, shape[1:]), shape[0], dtype

    def chunks(names: Sequence[str], rows: int) -> Iterator[Chunk]:
        with _archive(path) as archive, contextlib.ExitStack() as stack:
            streams = {}
            for name in names:
                with _naming(path, name):
                    streams[name] = stack.enter_context(archive.open(f"{name}.npy"))
                    _header(streams[name])
            for start, stop in spans(min(lengths[name] for name in names), rows):
                yield {
                    name: _take(path, name, stream, stored[name], (stop - start, *columns[name].shape))
                    for name, stream in streams.items()
                }
            for name, stream in streams.items():
                with _naming(path, name):  # what is read to its end has its checksum verified
                    if lengths[name] and math.prod(columns[name].shape) and stream.read(1):
                        raise DatasetError(f"{path}: {name}: expected {lengths[name]:,} rows, got more bytes.")

    return Table(path, "npz", columns, lengths, chunks, about, unreadable)


def _take(
    path: Path, name: str, stream: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    """The next rows of an array whose elements are stored as `dtype`; in this machine's byte order."""
    size = dtype.itemsize * math.prod(shape)
    with _naming(path, name):
        data = stream.read(size)
        if len(data) != size:
            raise DatasetError(f"{path}: {name}: expected {size:,} more bytes, got {len(data):,}. The file is damaged.")
    return native(np.frombuffer(data, dtype)).reshape(shape)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in C order, and dtype."""
    major = npy.read_magic(stream)[0]
    if major == 1:
        shape, fortran, dtype = npy.read_array_header_1_0(stream)
    elif major == 2:
        shape, fortran, dtype = npy.read_array_header_2_0(stream)
    else:
        raise ValueError(f"version {major} of the .npy format")
    return shape, not fortran, dtype


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise DatasetError(
            f"{path}: expected an .npz file, got one that is damaged, cut off, or another ({error})."
        ) from None
    with archive:
        yield archive


@contextlib.contextmanager
def _naming(path: Path, name: str) -> Iterator[None]:
    """Errors of the zip and .npy formats name the file and the array."""
    try:
        yield
    except DatasetError:
        raise
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, RuntimeError) as error:
        raise DatasetError(f"{path}: {name}: expected an array, got what cannot be read ({error}).") from None


def write_npz(source: Source, path: Path) -> tuple[str, ...]:
    """Writes the arrays, beside `path` first: one reading of the source, memory for one block.

    Raises:
        SchemaError: a block does not fit the schema.
    """
    data = flat(source, PLAIN)
    raw = {name: path.with_name(f"{path.name}.{number}.raw") for number, name in enumerate(data.columns)}
    count = 0
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(place.open("wb")) for name, place in raw.items()}
        for chunk in data.chunks:
            count += len(chunk[PLAIN.reward])
            for name, array in chunk.items():
                files[name].write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open(f"{ABOUT}.npy", "w") as out:
            npy.write_array(out, np.array(data.about.to_json()), allow_pickle=False)
        for name, field in data.columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as out:
                _write_header(out, count, field)
                with raw[name].open("rb") as stored:
                    shutil.copyfileobj(stored, out, COPY_BYTES)
            raw[name].unlink()
    return ()


def _write_header(out: IO[bytes], count: int, field: Field) -> None:
    header: Mapping[str, Any] = {
        "descr": npy.dtype_to_descr(field.itemdtype),
        "fortran_order": False,
        "shape": (count, *field.shape),
    }
    npy.write_array_header_2_0(out, header)  # type: ignore[arg-type]

"""Parquet: one row a transition, by pyarrow."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive.errors import DatasetError
from relive.interop.about import from_json
from relive.interop.columns import PLAIN, Chunk, Table, flat, gathered, schema_bytes, source_of_ours
from relive.interop.foreign import source_of_others
from relive.interop.packages import require
from relive.interop.source import Source
from relive.schema import Field

ABOUT = b"relive"
"""Key of the file's metadata that tells about a file of ours."""

GROUP_BYTES = 16 << 20
GROUP_ROWS = 1 << 16
"""A row group, which is what a reader takes at a time, has about the first and at most the second."""


def open_parquet(path: Path) -> Source:
    """The dataset in a .parquet file: one of ours, or with the common names of `foreign.NAMES`.

    Raises:
        ConfigError: pyarrow is not installed.
        DatasetError: a damaged file, a column that is missing or of another kind, missing values.
    """
    table = _table(path)
    return source_of_others(table, PLAIN) if table.about is None else source_of_ours(table, PLAIN)


def _table(path: Path) -> Table:
    pa, pq = require("pyarrow"), require("pyarrow.parquet")
    with _naming(path, "schema"), pq.ParquetFile(path) as file:
        about = from_json((file.schema_arrow.metadata or {}).get(ABOUT), path)
        wanted = {} if about is None else PLAIN.columns(about.schema, about.reward)
        num_rows = file.metadata.num_rows
        columns: dict[str, Field] = {}
        unreadable: dict[str, str] = {}
        lists = []
        for arrow in file.schema_arrow:
            field = _field(pa, arrow.type, wanted.get(arrow.name))
            if field is not None:
                columns[arrow.name] = field
            elif _is_list(pa, arrow.type):
                lists.append(arrow.name)
            else:
                unreadable[arrow.name] = f"{arrow.type}"
        for name in lists if num_rows else ():  # of any length each: the first row says which
            with _naming(path, name):
                first = next(file.iter_batches(1, columns=[name]))[name]
                columns[name] = Field(*_of_lists(pa, first, path, name, None)[1:])

    def chunks(names: Sequence[str], rows: int) -> Iterator[Chunk]:
        with _naming(path, ", ".join(names)), pq.ParquetFile(path, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):  # read one after another: an iterator over all keeps them all
                for batch in file.iter_batches(rows, row_groups=[group], columns=list(names)):
                    if batch.num_rows:
                        yield {name: _values(pa, batch[name], columns[name], path, name) for name in names}

    lengths = dict.fromkeys(columns, num_rows)
    return Table(path, "parquet", columns, lengths, chunks, about, unreadable)


def _field(pa: Any, kind: Any, wanted: Field | None) -> Field | None:
    """The field that a column of this Arrow type is; `wanted`, where it can be that."""
    shape: tuple[int, ...] = ()
    while pa.types.is_fixed_size_list(kind):
        shape, kind = (*shape, kind.list_size), kind.value_type
    if wanted is not None and pa.types.is_fixed_size_binary(kind):
        whole = kind.byte_width == wanted.itemdtype.itemsize * math.prod(wanted.shape)
        return wanted if whole and _is_bytes(pa, wanted) else None
    try:
        dtype = np.dtype(kind.to_pandas_dtype())
    except (NotImplementedError, TypeError):
        return None
    if dtype.kind not in "biuf" or pa.types.is_nested(kind):
        return None
    if wanted is not None and (dtype, math.prod(shape)) == (wanted.itemdtype, math.prod(wanted.shape)):
        return wanted
    return Field(dtype, shape)


def _is_list(pa: Any, kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _values(pa: Any, column: Any, field: Field, path: Path, name: str) -> NDArray[Any]:
    """A column of a batch as [T, *shape]."""
    count = len(column)
    if pa.types.is_fixed_size_binary(column.type):
        _refuse_nulls(column, path, name)
        start = column.offset * column.type.byte_width
        data = column.buffers()[1][start : start + count * column.type.byte_width]
        return np.frombuffer(data, field.itemdtype).reshape(count, *field.shape)
    values, dtype, shape = _of_lists(pa, column, path, name, field)
    if (dtype, math.prod(shape)) != (field.itemdtype, math.prod(field.shape)):
        raise DatasetError(f"{path}: {name}: expected {field} in every row, got {dtype} {shape}.")
    return values.reshape(count, *field.shape)


def _of_lists(
    pa: Any, column: Any, path: Path, name: str, field: Field | None
) -> tuple[NDArray[Any], np.dtype[Any], tuple[int, ...]]:
    """The values of lists within lists, all of one length: flat, with their dtype and shape."""
    shape: tuple[int, ...] = ()
    while not pa.types.is_primitive(column.type):
        _refuse_nulls(column, path, name)
        count, inner = len(column), column.flatten() if hasattr(column, "flatten") else None
        if inner is None or not count or len(inner) % count:
            raise DatasetError(f"{path}: {name}: expected {field or 'lists of one length'}, got {column.type}.")
        side = len(inner) // count
        if _is_list(pa, column.type) and (np.diff(column.offsets.to_numpy()) != side).any():
            raise DatasetError(f"{path}: {name}: expected lists of one length, got others than {side}.")
        shape, column = (*shape, side), inner
    _refuse_nulls(column, path, name)
    values = column.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "biuf":
        raise DatasetError(f"{path}: {name}: expected numbers, got {column.type}.")
    return values, values.dtype, shape


def _refuse_nulls(column: Any, path: Path, name: str) -> None:
    if column.null_count:
        raise DatasetError(f"{path}: {name}: expected a value in every row, got {column.null_count} missing.")


@contextlib.contextmanager
def _naming(path: Path, name: str) -> Iterator[None]:
    """Errors of pyarrow name the file and the columns."""
    pa = require("pyarrow")
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, DatasetError | FileNotFoundError | PermissionError):
            raise
        said = str(error).partition("\n")[0].rstrip(".")
        raise DatasetError(f"{path}: {name}: expected Parquet, got what cannot be read ({said}).") from None


def write_parquet(source: Source, path: Path) -> tuple[str, ...]:
    """Writes row group by row group.

    Raises:
        ConfigError: pyarrow is not installed.
        SchemaError: a block does not fit the schema.
    """
    pa, pq = require("pyarrow"), require("pyarrow.parquet")
    data = flat(source, PLAIN)
    types = {name: _column_type(pa, field) for name, field in data.columns.items()}
    schema = pa.schema(
        [pa.field(name, kind, nullable=False) for name, kind in types.items()],
        metadata={ABOUT: data.about.to_json().encode()},
    )
    rows = max(1, min(GROUP_ROWS, GROUP_BYTES // schema_bytes(data.columns)))
    # A dictionary of floats would take all NaN for one. Checksums: damage is found when the file is read.
    writer = pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False, write_page_checksum=True)
    with writer:
        for chunk in gathered(data.chunks, rows):
            arrays = [_array(pa, chunk[name], kind) for name, kind in types.items()]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=rows)
    return ()


def _arrow_type(pa: Any, dtype: np.dtype[Any]) -> Any:
    """Arrow's type of the same numbers; None if it has none."""
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        return None
    return pa.from_numpy_dtype(dtype)


def _is_bytes(pa: Any, field: Field) -> bool:
    """Whether a field is stored as its bytes: what Arrow has no type for, and images (in lists 4 B a pixel)."""
    image = field.itemdtype.itemsize == 1 and len(field.shape) > 1
    return image or _arrow_type(pa, field.itemdtype) is None


def _column_type(pa: Any, field: Field) -> Any:
    size = math.prod(field.shape)
    if _is_bytes(pa, field):
        return pa.binary(field.itemdtype.itemsize * size)
    kind = _arrow_type(pa, field.itemdtype)
    return pa.list_(pa.field("element", kind, nullable=False), size) if field.shape else kind


def _array(pa: Any, values: NDArray[Any], kind: Any) -> Any:
    values = np.ascontiguousarray(values)
    if pa.types.is_fixed_size_binary(kind):
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(values, kind)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), kind.value_type), type=kind)

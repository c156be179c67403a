"""Fitting values to fields: the schema of the first values, and the arrays that a schema asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive.errors import SchemaError
from relive.schema import Field, Schema, Tree


def infer_schema(obs: Any, action: Any, extras: Mapping[str, Any], lanes: int, count: int | None) -> Schema:
    """The schema of the first values pushed; `count`: the leading axis they have, if any.

    Raises:
        SchemaError: a value that is no array of numbers.
    """
    return Schema(
        _from_value(obs, "obs", count),
        _from_value(action, "action", count),
        {name: _from_array(value, name, count) for name, value in extras.items()},
        lanes=lanes,
    )


def on_cpu(values: Any) -> Any:
    """Values as NumPy takes them; tensors may be on another device, part of a graph, or of a dtype it has not."""
    if not hasattr(values, "detach"):
        return values
    try:
        return values.numpy()  # nearly always; what follows costs more than a small update
    except (TypeError, RuntimeError):
        tensor = values.detach().cpu()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def are_magnitudes(values: NDArray[Any]) -> bool:
    """True for numbers that float64 can hold, finite and at least 0."""
    if values.dtype.kind not in "fiu":
        return False
    with np.errstate(over="ignore"):
        held = values.astype(np.float64, copy=False)
    return bool((np.isfinite(held) & (held >= 0)).all())


def as_array(value: Any, name: str, expected: object) -> NDArray[Any]:
    """The value as an array of whatever dtype and shape.

    Raises:
        SchemaError: no array: a ragged sequence, a tensor with a gradient or on a device, a masked array.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise SchemaError(f"{name}: expected {expected}, got a masked array. Fill it first.")
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # tensors that NumPy cannot read raise the last two
        raise SchemaError(f"{name}: expected {expected}, got what is no array ({error}).") from error


def conform(
    value: Any,
    leaf: Field,
    name: str,
    count: int | None = None,
    lossy: bool = False,
    mask: NDArray[np.bool_] | None = None,
) -> NDArray[Any]:
    """The value as an array of the field's dtype and shape (after a leading axis of `count`, where given).

    Casts that lose nothing are done: integers that fit, widening of floats. Python's own numbers have no width
    of their own and take the field's. With `lossy`, as rewards are, any real number becomes a float. Bounds are not
    asked of what `mask` leaves out.

    Raises:
        SchemaError: another shape, a dtype that would lose something, or a value out of bounds.
    """
    shape = leaf.shape if count is None else (count, *leaf.shape)
    array = as_array(value, name, leaf)
    if array.shape != shape or array.dtype.hasobject:
        hint = " Build the schema with Schema.from_env, or reshape."
        if count is not None and array.shape == leaf.shape:
            hint = f" One value each of {count} is due; one transition is pushed with lane=."
        raise SchemaError(f"{name}: expected {leaf.itemdtype} {shape}, got {array.dtype} {array.shape}.{hint}")
    kind = leaf.itemdtype.kind
    weak = (type(value) is float and kind in "fc") or (type(value) is complex and kind == "c")
    number = lossy and array.dtype.kind in "biuf"
    if not (weak or number or _is_lossless(array, leaf.itemdtype)):
        raise SchemaError(
            f"{name}: expected {leaf.itemdtype} {shape}, got {array.dtype} {array.shape}, which would not fit"
            " without loss. Build the schema with Schema.from_env, or cast."
        )
    with np.errstate(over="ignore"):
        fitted = np.require(array, leaf.itemdtype, ["C", "ALIGNED"])
    if (weak or number) and (np.isfinite(array) & ~np.isfinite(fitted)).any():
        raise SchemaError(f"{name}: expected a number that {leaf.itemdtype} can hold, got {value!r}.")
    array = fitted
    low, high = leaf.bounds()
    if low and array.size:
        within = (array >= np.reshape(low, leaf.shape)) & (array <= np.reshape(high, leaf.shape))
        if mask is not None:
            within[~mask] = True
        if not within.all():
            where = tuple(int(index) for index in np.argwhere(~within)[0])
            element = np.ravel_multi_index(where[len(shape) - len(leaf.shape) :], leaf.shape) if leaf.shape else 0
            raise SchemaError(
                f"{name}: expected a value in [{low[element]}, {high[element]}], got {array[where]}"
                + (f" (at {list(where)})." if where else ".")
            )
    return array


def _is_lossless(array: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """True if every value of the array can be kept in this dtype."""
    if array.dtype == dtype or array.size == 0:
        return bool(np.can_cast(array.dtype, dtype, "same_kind"))
    if array.dtype.kind in "biu" and dtype.kind in "biufc":
        smallest, largest = int(array.min()), int(array.max())
        if dtype.kind in "iu":
            return bool(np.iinfo(dtype).min <= smallest and largest <= np.iinfo(dtype).max)
        if dtype.kind == "b":
            return smallest >= 0 and largest <= 1
        exact = 2 ** (np.finfo(dtype).nmant + 1)
        return bool(-exact <= smallest and largest <= exact)
    if array.dtype.kind == dtype.kind or (array.dtype.kind == "f" and dtype.kind == "c"):
        return bool(np.can_cast(array.dtype, dtype, "safe"))
    return False


def _from_value(value: Any, name: str, count: int | None) -> Tree:
    if isinstance(value, Mapping):
        return {key: _from_value(child, f"{name}.{key}", count) for key, child in value.items()}
    if isinstance(value, tuple):
        return tuple(_from_value(child, f"{name}.{index}", count) for index, child in enumerate(value))
    return _from_array(value, name, count)


def _from_array(value: Any, name: str, count: int | None) -> Field:
    array = as_array(value, name, "an array")
    if array.dtype.hasobject or array.dtype.itemsize == 0:
        raise SchemaError(f"{name}: expected numbers of a fixed size, got {type(value).__name__} ({array.dtype}).")
    if count is not None and array.shape[:1] != (count,):
        raise SchemaError(
            f"{name}: expected a leading axis of {count} (one value a lane), got shape {array.shape}. "
            "Say lane= to push one transition."
        )
    return Field(array.dtype, array.shape if count is None else array.shape[1:])

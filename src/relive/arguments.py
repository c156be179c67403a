"""What is passed beside the values of a transition: seeds, lanes, masks, priorities, ids, a sampler's answer."""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray

from relive.errors import ConfigError, SchemaError
from relive.fitting import are_magnitudes, as_array, on_cpu
from relive.schema import Schema, flatten, leaves
from relive.views import Sequences, View


def check_seed(seed: int) -> int:
    """The seed as an int.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or not 0 <= seed < 2**64:
        raise ConfigError(f"seed: expected an integer in [0, 2^64) or None, got {seed!r}.")
    return int(seed)


def check_lane(lane: int | None, lanes: int) -> int:
    """The lane as an int; None is the only one.

    Raises:
        SchemaError: there is no such lane, or several.
    """
    if lane is None and lanes == 1:
        return 0
    if not isinstance(lane, int | np.integer) or isinstance(lane, bool) or not 0 <= lane < lanes:
        raise SchemaError(f"lane: expected an integer in [0, {lanes - 1}], got {lane!r}.")
    return int(lane)


def check_mask(mask: ArrayLike | None, lanes: int, *, is_step: bool) -> NDArray[np.bool_] | None:
    """The mask as bool [lanes].

    Raises:
        SchemaError: something else, or a mask for a single transition.
    """
    if mask is None:
        return None
    if not is_step:
        raise SchemaError("mask: expected one step of every lane, got one transition. Leave mask out.")
    chosen: NDArray[Any] = np.ascontiguousarray(as_array(mask, "mask", f"bool ({lanes},)"))
    if chosen.dtype != np.bool_ or chosen.shape != (lanes,):
        raise SchemaError(f"mask: expected bool ({lanes},), got {chosen.dtype} {chosen.shape}.")
    return chosen


def check_priority(priority: ArrayLike, count: int, *, many: bool) -> NDArray[np.float64]:
    """Raw priorities as float64 [count]; one stands for all of them.

    Raises:
        SchemaError: other shapes, NaN, infinite or negative values.
    """
    raw = as_array(on_cpu(priority), "priority", "a number")
    shapes = ((), (count,)) if many else ((),)
    if raw.shape not in shapes or not are_magnitudes(raw):
        one = "a finite number of at least 0"
        raise SchemaError(f"priority: expected {one}{f', or {count} of them' if many else ''}, got {priority!r}.")
    return np.require(np.broadcast_to(raw, count), np.float64, ["C"])


def has_lead(schema: Schema | None, obs: Any) -> bool:
    """True if a value of one lane has a leading axis of size 1 all the same."""
    if schema is None:
        return False
    _, field = next(leaves(schema.obs, "obs"))
    value = flatten(schema.obs, obs, "obs")[0]
    try:
        return np.ndim(value) == len(field.shape) + 1
    except ValueError:  # a ragged sequence, refused later with its name
        return False


def _is_plain(values: Any, dtype: type[Any]) -> TypeGuard[NDArray[Any]]:
    """An array that the core takes as it is: asked first, since converting costs more than a small update."""
    return type(values) is np.ndarray and values.ndim == 1 and values.dtype == dtype and values.flags.carray


def as_ids(ids: ArrayLike) -> NDArray[np.int64]:
    """Ids as int64 [B].

    Raises:
        SchemaError: they are none.
    """
    if _is_plain(ids, np.int64):
        return ids
    wanted = on_cpu(ids)
    if _is_plain(wanted, np.int64):
        return wanted
    wanted = as_array(wanted, "ids", "int64 (B,)")
    if wanted.ndim != 1 or (wanted.dtype.kind not in "iu" and wanted.size):
        raise SchemaError(f"ids: expected int64 (B,), got {wanted.dtype} {wanted.shape}.")
    return wanted.astype(np.int64, order="C")


def as_errors(abs_td: ArrayLike, view: View) -> NDArray[Any]:
    """|delta| as float64 or float32 [B], or [B, T] under sequences; not looked at one by one.

    Raises:
        SchemaError: another shape or dtype.
    """
    raw: NDArray[Any] = abs_td if isinstance(abs_td, np.ndarray) else on_cpu(abs_td)
    if _is_plain(raw, np.float32) or _is_plain(raw, np.float64):
        return raw
    raw = as_array(raw, "abs_td", "float64 (B,)")
    steps = view.length if isinstance(view, Sequences) else None
    per_step = raw.ndim == 2 and steps is not None and steps in ("episode", raw.shape[1])
    if (raw.ndim != 1 and not per_step) or (raw.dtype.kind not in "fiu" and raw.size):
        expected = "(B,)" if steps is None else f"(B,) or (B, {'T' if steps == 'episode' else steps})"
        raise SchemaError(f"abs_td: expected numbers {expected}, got {raw.dtype} {raw.shape}.")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        return raw.astype(np.float64, order="C")


def drawn(answer: Any, n: int, anchors: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
    """What a user's sampler returned: ids, and probabilities where it gave them.

    Raises:
        SchemaError: something else.
    """
    ids, probability = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
    ids = as_array(ids, "draw", f"ids int64 ({n},)")
    if ids.shape != (n,) or ids.dtype.kind not in "iu":
        raise SchemaError(f"draw: expected ids int64 ({n},), got {ids.dtype} {ids.shape} (the sampler's answer).")
    strangers = ids[~np.isin(ids, anchors)]
    if len(strangers):
        raise SchemaError(f"draw: expected ids of the list it was given, got {strangers[0]} (the sampler's answer).")
    if probability is not None:
        probability = as_array(probability, "draw", f"probabilities ({n},)")
        if (
            probability.shape != (n,)
            or probability.dtype.kind not in "fiu"
            or not (np.isfinite(probability) & (probability > 0)).all()
        ):
            raise SchemaError(f"draw: expected probabilities ({n},) above 0, got {probability} (the sampler's answer).")
        probability = probability.astype(np.float64)
    return np.require(ids, np.int64, ["C", "ALIGNED"]), probability

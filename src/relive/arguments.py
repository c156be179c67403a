"""What is passed beside the values of a transition: seeds, lanes, masks, priorities."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from relive.errors import ConfigError, SchemaError
from relive.fitting import are_magnitudes, as_array, on_cpu
from relive.schema import Schema, flatten, leaves


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

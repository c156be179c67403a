"""Fitting what is pushed to the schema, and handing it to the native core.

The core takes values that fit as they are and answers None (or False) to any other; only then are they converted here,
or refused with the reason. Nothing is stored before everything was checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive._core import Core
from relive.errors import SchemaError
from relive.fitting import conform
from relive.mapped import Synced
from relive.schema import FLAG, REWARD, Field, Schema, flatten, leaves


class Appender:
    """Appends transitions of one schema to one core."""

    def __init__(self, core: Core | Synced, schema: Schema, lanes: int) -> None:
        self._core = core
        self._schema = schema
        self._lanes = lanes

    def one(self, lane: int, values: list[Any], priority: NDArray[np.float64] | None) -> int:
        """Appends one transition; `values` as `collect` gives them, `priority` float64 [1] or None."""
        if priority is not None:
            leading = [value[None] for value in conform_all(self._schema, values)]
            return int(self._many(lane, 1, leading, None, priority)[0])
        new_id = self._core.append_one(lane, *values)
        if new_id is None:
            new_id = self._core.append_one(lane, *conform_all(self._schema, values))
        if new_id is None:
            raise AssertionError("the core refused values that fit the schema")  # a bug of ours, never a silent loss
        return new_id

    def step(
        self,
        values: list[Any],
        mask: NDArray[np.bool_] | None,
        priority: NDArray[np.float64] | None,
        lanes: range | None = None,
    ) -> NDArray[np.int64]:
        """Appends one transition to every lane of all or of a range (or those of the mask).

        Returns ids [lanes], -1 for those left out.
        """
        lanes = range(self._lanes) if lanes is None else lanes
        return self._many(-1 - lanes.start, len(lanes), values, mask, priority)

    def block(
        self, lane: int, count: int, values: list[Any], priority: NDArray[np.float64] | None
    ) -> NDArray[np.int64]:
        """Appends `count` transitions to one lane, in order of time; returns their ids."""
        return self._many(lane, count, values, None, priority)

    def _many(
        self,
        lane: int,
        count: int,
        values: list[Any],
        mask: NDArray[np.bool_] | None,
        priority: NDArray[np.float64] | None,
    ) -> NDArray[np.int64]:
        ids = np.empty(count, np.int64)
        if not self._core.append_many(lane, mask, priority, ids, *values):
            fitted = conform_all(self._schema, values, count, mask)
            if not self._core.append_many(lane, mask, priority, ids, *fitted):
                raise AssertionError("the core refused values that fit the schema")
        return ids


def collect(
    schema: Schema,
    obs: Any,
    action: Any,
    reward: Any,
    terminated: Any,
    truncated: Any,
    next_obs: Any,
    extras: Mapping[str, Any],
) -> list[Any]:
    """The values of all fields in the order of the core: obs, action, reward, terminated, truncated, next_obs, extras.

    Raises:
        SchemaError: a name is missing or unknown.
    """
    if set(extras) != set(schema.extras):
        unknown = sorted(set(extras) - set(schema.extras))
        missing = sorted(set(schema.extras) - set(extras))
        got = f"unknown {unknown}. Name them in the Schema" if unknown else f"none of {missing}. Pass them by name"
        raise SchemaError(f"extras: expected the fields {list(schema.extras)}, got {got}.")
    return [
        *flatten(schema.obs, obs, "obs"),
        *flatten(schema.action, action, "action"),
        *(reward, terminated, truncated),
        *flatten(schema.obs, next_obs, "next_obs"),
        *(extras[name] for name in schema.extras),
    ]


def conform_all(
    schema: Schema, values: list[Any], count: int | None = None, mask: NDArray[np.bool_] | None = None
) -> list[NDArray[Any]]:
    """The values as arrays of exactly the schema's dtypes and shapes.

    Raises:
        SchemaError: a value does not fit, or stacked observations do not follow from one another.
    """
    fields: list[tuple[str, Field]] = [
        *leaves(schema.obs, "obs"),
        *leaves(schema.action, "action"),
        *(("reward", REWARD), ("terminated", FLAG), ("truncated", FLAG)),
        *leaves(schema.obs, "next_obs"),
        *schema.extras.items(),
    ]
    arrays = [
        conform(value, field, name, count, lossy=name == "reward", mask=mask)
        for value, (name, field) in zip(values, fields, strict=True)
    ]
    if schema.stacked > 1:
        num_obs = len(list(leaves(schema.obs, "obs")))
        first_next = len(arrays) - len(schema.extras) - num_obs
        for index in range(num_obs):
            _check_rolls(arrays[index], arrays[first_next + index], fields[index][0], count, mask)
    return arrays


def _check_rolls(
    obs: NDArray[Any], next_obs: NDArray[Any], name: str, count: int | None, mask: NDArray[np.bool_] | None
) -> None:
    if count is None:
        obs, next_obs = obs[None], next_obs[None]
    for index in range(len(obs)):
        chosen = mask is None or mask[index]
        if chosen and obs[index, 1:].tobytes() != next_obs[index, :-1].tobytes():
            where = "" if count is None else f" (at [{index}])"
            raise SchemaError(
                f"next_{name}: expected the frames of {name} moved on by one, got other frames{where}. "
                "Stacked observations are stored one frame each; use Schema(stacked=1) to store them whole."
            )

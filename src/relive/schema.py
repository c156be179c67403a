"""What a transition is: the names, shapes and dtypes of its fields, and how values are fitted to them."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from relive.errors import ConfigError, SchemaError

RESERVED = (
    *("obs", "action", "reward", "terminated", "truncated", "next_obs"),
    *("ids", "discount", "weight", "mask", "loss_mask", "lane", "priority", "self", "info"),
)


@dataclass(frozen=True)
class Field:
    """One array of a transition.

    Attributes:
        dtype: any NumPy dtype of fixed size without Python objects; normalised to a native `numpy.dtype`.
        shape: of the value of one transition; () for a scalar.
        low: smallest allowed integer, one for all elements or one each (C order); None for no bounds.
        high: largest allowed integer, likewise. Values outside are refused.

    Raises:
        ConfigError: a dtype, shape or bound that cannot be stored.
    """

    dtype: DTypeLike
    shape: tuple[int, ...] = ()
    low: int | tuple[int, ...] | None = None
    high: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        try:
            dtype = np.dtype(self.dtype)
            if not dtype.isnative:
                dtype = dtype.newbyteorder("=")
            shape = tuple(operator.index(side) for side in self.shape)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"Field: expected a dtype and a shape, got {self.dtype!r} and {self.shape!r}.") from error
        if dtype.hasobject or dtype.itemsize == 0 or dtype.subdtype is not None:
            raise ConfigError(f"Field: expected a dtype of fixed size, got {dtype}. Python objects cannot be stored.")
        if (
            any(not 0 <= side < 2**31 for side in shape)
            or len(shape) > 30
            or math.prod(shape) * dtype.itemsize >= 2**62
        ):
            raise ConfigError(
                f"Field: expected at most 30 sides of 0 to 2^31 - 1 and fewer than 2^62 bytes, got {shape}."
            )
        if not _is_plain(dtype):
            raise ConfigError(f"Field: expected a dtype that can be written down, got {dtype}. Leave its titles out.")
        for name, value in (("dtype", dtype), ("shape", shape), ("low", _bound(self.low)), ("high", _bound(self.high))):
            object.__setattr__(self, name, value)
        if self.low is None and self.high is None:
            return
        low, high = self.bounds()
        if dtype.kind not in "iu" or len(low) != math.prod(shape) or len(high) != len(low):
            raise ConfigError(
                f"Field: expected no bounds, or both for the integers of a {dtype} {shape}, got low={self.low} and "
                f"high={self.high}."
            )
        smallest, largest = np.iinfo(dtype).min, min(np.iinfo(dtype).max, np.iinfo(np.int64).max)
        if any(not smallest <= least <= most <= largest for least, most in zip(low, high, strict=True)):
            raise ConfigError(
                f"Field: expected {smallest} <= low <= high <= {largest} for {dtype}, got low={self.low} and "
                f"high={self.high}."
            )

    @property
    def itemdtype(self) -> np.dtype[Any]:
        """The dtype, as the `numpy.dtype` it was normalised to."""
        return np.dtype(self.dtype)

    def bounds(self) -> tuple[list[int], list[int]]:
        """The lowest and highest value of each element in C order; two empty lists where there are no bounds."""
        return _each(self.low, self.shape), _each(self.high, self.shape)

    def __str__(self) -> str:
        return f"{self.itemdtype} {self.shape}"


def _is_plain(dtype: np.dtype[Any]) -> bool:
    """Whether a structured dtype is read back as it was written: those with titles are not."""
    if dtype.names is None:
        return True
    try:
        descr = json.loads(json.dumps(np.lib.format.dtype_to_descr(dtype)))
        return bool(np.lib.format.descr_to_dtype(_as_tuples(descr)) == dtype)
    except (TypeError, ValueError):
        return False


def _bound(value: Any) -> int | tuple[int, ...] | None:
    """A bound as it is kept: one integer, or one for each element in C order."""
    try:
        if isinstance(value, tuple | list | np.ndarray):
            return tuple(operator.index(element) for element in np.ravel(np.asarray(value)))
        return None if value is None else operator.index(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"Field: expected integers as bounds, got {value!r}.") from error


def _each(bound: int | tuple[int, ...] | None, shape: tuple[int, ...]) -> list[int]:
    if bound is None:
        return []
    return [bound] * math.prod(shape) if isinstance(bound, int) else list(bound)


Tree: TypeAlias = "Field | dict[str, Tree] | tuple[Tree, ...]"


@dataclass(frozen=True)
class Schema:
    """The fields of a transition. reward (float32), terminated and truncated (bool) are always there.

    Attributes:
        obs: a field, or a dict or tuple of fields (nested as deep as you like), of one observation.
        action: likewise, of one action.
        extras: further fields by name, stored and returned as given (log-probabilities, recurrent states, ...).
        stacked: k where the environment gives observations that are stacks of k frames (leading axis k of every
            observation field). Then only the newest frame of each is stored.
        lanes: environments that step together; what `from_env` found.

    Raises:
        ConfigError: names or shapes that make no sense.
    """

    obs: Tree
    action: Tree
    extras: Mapping[str, Field] = field(default_factory=dict)
    stacked: int = 1
    lanes: int = 1

    def __post_init__(self) -> None:
        for name in ("obs", "action"):
            object.__setattr__(self, name, _copied(getattr(self, name)))
        object.__setattr__(self, "extras", dict(self.extras))
        for tree, name in ((self.obs, "obs"), (self.action, "action")):
            if not list(leaves(tree, name)):
                raise ConfigError(f"Schema: expected at least one field in {name}, got {tree!r}.")
        for name, extra in self.extras.items():
            if not isinstance(name, str) or name in RESERVED or name.startswith("__") or not name.isidentifier():
                raise ConfigError(f"Schema: expected another name for an extra field, got {name!r}.")
            if not isinstance(extra, Field):
                raise ConfigError(f"Schema: expected a Field for the extra {name!r}, got {extra!r}.")
        for name, value in (("stacked", self.stacked), ("lanes", self.lanes)):
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"Schema: expected {name} to be an integer of at least 1, got {value!r}.")
            object.__setattr__(self, name, int(value))
        for name, leaf in leaves(self.obs, "obs"):
            if self.stacked > 1 and (not leaf.shape or leaf.shape[0] != self.stacked):
                raise ConfigError(f"{name}: expected a leading axis of {self.stacked} frames, got shape {leaf.shape}.")

    @classmethod
    def from_spaces(
        cls,
        observation_space: Any,
        action_space: Any,
        *,
        stacked: int = 1,
        extras: Mapping[str, Field] | None = None,
        lanes: int = 1,
    ) -> Schema:
        """The schema of an environment with these Gymnasium spaces (of one environment, not of a batch of them).

        Box, Discrete, MultiDiscrete, MultiBinary, Tuple and Dict are known, nested as you like. Discrete values are
        checked against their space on every push.

        Raises:
            SchemaError: a space of variable size (Text, Sequence, Graph), which no array of fixed shape can hold.
        """
        return cls(
            from_space(observation_space, "obs"), from_space(action_space, "action"), extras or {}, stacked, lanes
        )

    @classmethod
    def from_env(cls, env: Any, *, stacked: int = 1, extras: Mapping[str, Field] | None = None) -> Schema:
        """The schema of a Gymnasium environment or vector environment; `lanes` is its number of environments.

        Raises:
            SchemaError: no environment, or a space of variable size.
        """
        if not hasattr(env, "observation_space") or not hasattr(env, "action_space"):
            raise SchemaError(f"from_env: expected a Gymnasium environment, got {type(env).__name__}.")
        return cls.from_spaces(
            getattr(env, "single_observation_space", None) or env.observation_space,
            getattr(env, "single_action_space", None) or env.action_space,
            stacked=stacked,
            extras=extras,
            lanes=getattr(env, "num_envs", 1),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, strings and numbers, ready for JSON."""
        return {
            "obs": _tree_to_dict(self.obs),
            "action": _tree_to_dict(self.action),
            "extras": {name: _tree_to_dict(extra) for name, extra in self.extras.items()},
            "stacked": self.stacked,
            "lanes": self.lanes,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Schema:
        """The inverse of `to_dict`."""
        extras = {name: _field_from_dict(extra) for name, extra in data["extras"].items()}
        return cls(
            _tree_from_dict(data["obs"]), _tree_from_dict(data["action"]), extras, data["stacked"], data["lanes"]
        )


def _copied(tree: Tree) -> Tree:
    """The tree with dicts of its own, so that a schema does not follow what happens to the caller's."""
    if isinstance(tree, Mapping):
        return {key: _copied(child) for key, child in tree.items()}
    return tuple(map(_copied, tree)) if isinstance(tree, tuple) else tree


REWARD = Field(np.float32)
FLAG = Field(np.bool_)


def leaves(tree: Tree, name: str) -> Iterator[tuple[str, Field]]:
    """The fields of a tree with their dotted names, in the order in which they are stored."""
    if isinstance(tree, Field):
        yield name, tree
    elif isinstance(tree, Mapping):
        for key, child in tree.items():
            if not isinstance(key, str):
                raise ConfigError(f"{name}: expected keys that are strings, got {key!r}.")
            yield from leaves(child, f"{name}.{key}")
    elif isinstance(tree, tuple):
        for index, child in enumerate(tree):
            yield from leaves(child, f"{name}.{index}")
    else:
        raise ConfigError(f"{name}: expected a Field, a dict or a tuple of them, got {tree!r}.")


def flatten(tree: Tree, value: Any, name: str) -> list[Any]:
    """The values of a tree's fields, in the order of `leaves`.

    Raises:
        SchemaError: the value has other keys or another number of parts.
    """
    if isinstance(tree, Field):
        return [value]
    if isinstance(tree, Mapping):
        if not isinstance(value, Mapping) or set(value) != set(tree):
            got = list(value) if isinstance(value, Mapping) else type(value).__name__
            raise SchemaError(f"{name}: expected a dict with keys {list(tree)}, got {got}.")
        return [leaf for key, child in tree.items() for leaf in flatten(child, value[key], f"{name}.{key}")]
    if not isinstance(value, tuple | list) or len(value) != len(tree):
        got = f"{len(value)} parts" if isinstance(value, tuple | list) else type(value).__name__
        raise SchemaError(f"{name}: expected a tuple of {len(tree)}, got {got}.")
    parts = zip(tree, value, strict=True)
    return [leaf for index, (child, part) in enumerate(parts) for leaf in flatten(child, part, f"{name}.{index}")]


def unflatten(tree: Tree, values: Iterator[Any]) -> Any:
    """The inverse of `flatten`: takes its values from the iterator."""
    if isinstance(tree, Field):
        return next(values)
    if isinstance(tree, Mapping):
        return {key: unflatten(child, values) for key, child in tree.items()}
    return tuple(unflatten(child, values) for child in tree)


def from_space(space: Any, name: str) -> Tree:
    """The fields of a Gymnasium space."""
    from gymnasium import spaces

    if isinstance(space, spaces.Box):
        return Field(space.dtype, space.shape)
    if isinstance(space, spaces.Discrete):
        return Field(space.dtype, (), int(space.start), int(space.start + space.n - 1))
    if isinstance(space, spaces.MultiDiscrete):
        low, high = space.start.ravel(), (space.start + space.nvec - 1).ravel()
        return Field(space.dtype, space.shape, tuple(low.tolist()), tuple(high.tolist()))
    if isinstance(space, spaces.MultiBinary):
        return Field(space.dtype, space.shape, 0, 1)
    if isinstance(space, spaces.Dict):
        return {key: from_space(child, f"{name}.{key}") for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(from_space(child, f"{name}.{index}") for index, child in enumerate(space.spaces))
    raise SchemaError(
        f"{name}: expected a Box, Discrete, MultiDiscrete, MultiBinary, Tuple or Dict space, got {space}. "
        "Flatten it to one of these in the environment, or write the schema out."
    )


def _tree_to_dict(tree: Tree) -> Any:
    if isinstance(tree, Field):
        return {
            "dtype": np.lib.format.dtype_to_descr(tree.itemdtype),
            "shape": list(tree.shape),
            "low": tree.low,
            "high": tree.high,
        }
    if isinstance(tree, Mapping):
        return {"dict": {key: _tree_to_dict(child) for key, child in tree.items()}}
    return {"tuple": [_tree_to_dict(child) for child in tree]}


def _tree_from_dict(data: Mapping[str, Any]) -> Tree:
    if "dict" in data:
        return {key: _tree_from_dict(child) for key, child in data["dict"].items()}
    if "tuple" in data:
        return tuple(_tree_from_dict(child) for child in data["tuple"])
    return _field_from_dict(data)


def _field_from_dict(data: Mapping[str, Any]) -> Field:
    dtype = np.lib.format.descr_to_dtype(_as_tuples(data["dtype"]))
    return Field(dtype, tuple(data["shape"]), data["low"], data["high"])


def _as_tuples(descr: Any) -> Any:
    """A dtype's description out of JSON, which has no tuples: fields are a list of them, shapes are one."""
    if isinstance(descr, str):
        return descr
    return [(name, _as_tuples(of), *(tuple(side) for side in shape)) for name, of, *shape in descr]

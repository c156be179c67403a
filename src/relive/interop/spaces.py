"""Gymnasium's spaces as Minari writes them (JSON) <-> fields. Needs neither."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from relive.errors import ReplayError, SchemaError
from relive.schema import Field, Tree


def space_to_json(tree: Tree, name: str) -> dict[str, Any]:
    """The space of a tree, as Minari serialises it.

    A single bounded integer is Discrete, all else a Box: with the field's bounds, else those of its dtype.

    Raises:
        SchemaError: a dtype that no space has.
    """
    if isinstance(tree, Mapping):
        parts = {key: space_to_json(part, f"{name}.{key}") for key, part in tree.items()}
        return {"type": "Dict", "subspaces": parts}
    if isinstance(tree, tuple):
        return {"type": "Tuple", "subspaces": [space_to_json(part, f"{name}.{i}") for i, part in enumerate(tree)]}
    if tree.itemdtype.kind not in "biuf":
        raise SchemaError(f"{name}: expected numbers, which a Gymnasium space can have, got {tree}.")
    low, high = tree.bounds()
    if not tree.shape and low:
        return {"type": "Discrete", "dtype": "int64", "start": low[0], "n": high[0] - low[0] + 1}
    least, most = _limits(tree.itemdtype)
    shape = tree.shape
    return {
        "type": "Box",
        "dtype": str(tree.itemdtype),
        "shape": list(shape),
        "low": np.reshape(low or np.full(math.prod(shape), least), shape).tolist(),
        "high": np.reshape(high or np.full(math.prod(shape), most), shape).tolist(),
    }


def _limits(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    if dtype.kind == "f":
        return -math.inf, math.inf
    if dtype.kind == "b":
        return False, True
    return np.iinfo(dtype).min, np.iinfo(dtype).max


def bounded(tree: Tree, space: Any, index: str) -> Tree:
    """The fields found in a file, with the bounds that its space says and in the space's nesting.

    What the space says of dtypes and shapes does not count: the data do. A space that does not fit changes nothing.

    Args:
        tree: what was found, tuples as dicts with keys such as `index`.
        space: the JSON of the space.
        index: the key of a tuple's part number i.
    """
    try:
        return _bounded(tree, space, index)
    except (KeyError, TypeError, ValueError, AttributeError, ReplayError):
        return tree


def _bounded(tree: Tree, space: Any, index: str) -> Tree:
    kind, parts = space["type"], space.get("subspaces")
    if kind == "Dict" and isinstance(tree, Mapping) and set(parts) == set(tree):
        return {key: _bounded(tree[key], part, index) for key, part in parts.items()}
    if kind == "Tuple" and isinstance(tree, Mapping) and set(tree) == {index.format(i) for i in range(len(parts))}:
        return tuple(_bounded(tree[index.format(i)], part, index) for i, part in enumerate(parts))
    if not isinstance(tree, Field) or tree.itemdtype.kind not in "iu":
        return tree
    if kind == "Discrete" and not tree.shape:
        start = space.get("start", 0)
        return Field(tree.dtype, (), start, start + space["n"] - 1)
    if kind == "MultiDiscrete":
        counts = np.asarray(space["nvec"])
        start = np.asarray(space.get("start", np.zeros_like(counts)))
        if counts.shape == tree.shape:
            return Field(tree.dtype, tree.shape, tuple(start.ravel()), tuple((start + counts - 1).ravel()))
    if kind == "MultiBinary":
        return Field(tree.dtype, tree.shape, 0, 1)
    return tree

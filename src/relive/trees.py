"""Batches field by field: one function over every array of them, however deep observations and actions are nested."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def map_tree(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """The tree with `function(leaf, *their leaves)` in place of every leaf; all trees have the nesting of the first."""
    if isinstance(tree, dict):
        return {key: map_tree(function, child, *(other[key] for other in others)) for key, child in tree.items()}
    if isinstance(tree, tuple):
        return tuple([map_tree(function, *children) for children in zip(tree, *others, strict=True)])
    return function(tree, *others)


def obs_and_next(all_obs: Any) -> tuple[Any, Any]:
    """The views of a sequence's T + 1 observations that are its obs and its next_obs."""
    return map_tree(lambda leaf: leaf[:, :-1], all_obs), map_tree(lambda leaf: leaf[:, 1:], all_obs)


def map_fields(function: Callable[..., Any], fields: Mapping[str, Any], *others: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a batch with `function` of every array, as in `map_tree`.

    obs and next_obs of sequences are views of all_obs, and stay such: the function sees all_obs alone.
    """
    windows = "all_obs" in fields
    mapped = {}
    for name, tree in fields.items():
        if windows and name in ("obs", "next_obs"):
            continue
        if others or isinstance(tree, dict | tuple):
            mapped[name] = map_tree(function, tree, *[other[name] for other in others])
        else:
            mapped[name] = function(tree)
    if not windows:
        return mapped
    mapped["obs"], mapped["next_obs"] = obs_and_next(mapped["all_obs"])
    return {name: mapped[name] for name in fields}

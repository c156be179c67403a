"""Rewards and terminations of transitions whose goal was replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive.errors import SchemaError
from relive.fitting import as_array, on_cpu
from relive.views import Transitions

_LARGEST = float(np.finfo(np.float32).max)


def relabel(
    fields: Sequence[NDArray[Any]],
    table: NDArray[np.int64],
    achieved: NDArray[Any],
    desired: NDArray[Any],
    view: Transitions,
) -> None:
    """Computes reward, terminated and discount anew, in place, for the rows whose goal is another.

    Args:
        fields: reward, terminated and discount of the batch.
        table: int64 [B, 3], of each relabelled row its number and the steps of its window; table[0, 2] is how many
            there are.
        achieved: goals achieved after each step of the relabelled windows, closely one after another; [B, *shape], or
            [B, n, *shape] for n > 1.
        desired: the goal of each of those steps.
        view: with the reward function, n and gamma.

    Raises:
        SchemaError: the reward function returned something else than rewards.
    """
    assert view.relabel is not None and view.relabel.reward_fn is not None
    count = int(table[0, 2]) if len(table) else 0
    if count == 0:
        return
    rows, total = table[:count, 0], count
    if view.n > 1:
        lengths = table[:count, 1]
        total = int(lengths.sum())
        achieved, desired = (goals.reshape(-1, *goals.shape[2:]) for goals in (achieved, desired))
    answer = view.relabel.reward_fn(achieved[:total], desired[:total])
    reward, terminated = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
    reward = _checked(reward, total, "reward")
    ends: Any = None if terminated is None else _checked(terminated, total, "terminated").astype(np.bool_)
    if view.n > 1:
        used = np.arange(view.n) < lengths[:, None]  # bool[R, n]
        rewards = np.zeros(used.shape)
        rewards[used] = reward
        if ends is not None:
            each = np.zeros(used.shape, np.bool_)
            each[used] = ends
            rewards[np.cumsum(each, axis=1) > each] = 0  # after the first termination
            ends = each.any(axis=1)
        reward = rewards @ view.gamma ** np.arange(view.n)
    rewarded, ended, discount = fields
    rewarded[rows] = reward
    if ends is not None:
        ended[rows] = ends
        discount[rows] = np.where(ends, 0.0, view.gamma ** table[:count, 1])


def _checked(values: Any, count: int, name: str) -> NDArray[Any]:
    array = as_array(on_cpu(values), "reward_fn", f"{name} ({count},)")
    if array.shape != (count,) or array.dtype.kind not in "fiub":
        raise SchemaError(
            f"reward_fn: expected {name} ({count},), one for each goal, got {array.dtype} {array.shape}. "
            "It is called once with all goals of a batch."
        )
    if array.dtype.itemsize > 4 and not -_LARGEST <= array.min() <= array.max() <= _LARGEST:
        large = array[np.isfinite(array) & (np.abs(array) > _LARGEST)]
        if len(large):
            raise SchemaError(f"reward_fn: expected {name} that float32 can hold, got {large[0]}.")
    return array

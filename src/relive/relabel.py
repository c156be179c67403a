"""Rewards and terminations of transitions whose goal was replaced."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive.errors import SchemaError
from relive.fitting import as_array, on_cpu
from relive.views import Transitions


def relabel(
    fields: dict[str, Any],
    table: NDArray[np.int64],
    achieved: NDArray[Any],
    desired: NDArray[Any],
    view: Transitions,
) -> None:
    """Computes reward, terminated and discount anew, in place, for the rows whose goal is another.

    Args:
        fields: of the batch; the desired goals are replaced already.
        table: int64 [B, 3], of each relabelled row its number and the steps of its window; table[0, 2] is how many
            there are.
        achieved: goals achieved after each step of the relabelled windows, closely one after another.
        desired: the goal of each of those steps.
        view: with the reward function, n and gamma.

    Raises:
        SchemaError: the reward function returned something else than rewards.
    """
    assert view.relabel is not None and view.relabel.reward_fn is not None
    count = int(table[0, 2])
    if count == 0:
        return
    rows, lengths = table[:count, 0], table[:count, 1]
    total = count if view.n == 1 else int(lengths.sum())
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
    fields["reward"][rows] = reward
    if ends is not None:
        fields["terminated"][rows] = ends
        fields["discount"][rows] = np.where(ends, 0.0, view.gamma**lengths)


def _checked(values: Any, count: int, name: str) -> NDArray[Any]:
    array = as_array(on_cpu(values), "reward_fn", f"{name} ({count},)")
    if array.shape != (count,) or array.dtype.kind not in "fiub":
        raise SchemaError(
            f"reward_fn: expected {name} ({count},), one for each goal, got {array.dtype} {array.shape}. "
            "It is called once with all goals of a batch."
        )
    with np.errstate(over="ignore"):
        if (np.isinf(array.astype(np.float32)) & ~np.isinf(array)).any():
            raise SchemaError(f"reward_fn: expected {name} that float32 can hold, got {array[np.abs(array).argmax()]}.")
    return array

"""Rewards and terminations of transitions whose goal was replaced."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive.errors import SchemaError
from relive.views import Transitions


def relabel(
    fields: dict[str, Any], achieved: NDArray[Any], steps: NDArray[np.int32], view: Transitions, stacked: bool
) -> None:
    """Computes reward, terminated and discount anew, in place, where `goal_ids` says that the goal is another.

    Args:
        fields: of the batch; the desired goals are replaced already.
        achieved: [B, n, *shape], goals achieved after each step of the windows.
        steps: int32 [B], steps of each window.
        view: with the reward function, n and gamma.
        stacked: observations have an axis of frames.

    Raises:
        SchemaError: the reward function returned something else than rewards.
    """
    assert view.relabel is not None and view.relabel.reward_fn is not None
    rows = np.flatnonzero(fields["goal_ids"] >= 0)
    if not len(rows):
        return
    lengths = steps[rows]  # i32[R]
    used = np.arange(view.n) < lengths[:, None]  # bool[R, n]
    goals = fields["obs"]["desired_goal"][rows]
    desired = np.repeat(goals[:, -1] if stacked else goals, lengths, axis=0)
    answer = view.relabel.reward_fn(achieved[rows][used], desired)
    reward, terminated = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
    rewards = np.zeros(used.shape)  # f64[R, n]
    rewards[used] = _checked(reward, len(desired), "reward")
    if terminated is not None:
        ends = np.zeros(used.shape, np.bool_)
        ends[used] = _checked(terminated, len(desired), "terminated").astype(np.bool_)
        over = np.cumsum(ends, axis=1) > ends  # bool[R, n]: after the first termination
        rewards[over] = 0
        fields["terminated"][rows] = ends.any(axis=1)
        fields["discount"][rows] = np.where(ends.any(axis=1), 0.0, view.gamma ** lengths.astype(np.float64))
    fields["reward"][rows] = rewards @ view.gamma ** np.arange(view.n)


def _checked(values: Any, count: int, name: str) -> NDArray[Any]:
    array = np.asarray(values)
    if array.shape != (count,) or array.dtype.kind not in "fiub":
        raise SchemaError(
            f"reward_fn: expected {name} ({count},), one for each goal, got {array.dtype} {array.shape}. "
            "It is called once with all goals of a batch."
        )
    return array

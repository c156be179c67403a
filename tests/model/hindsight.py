"""Goals given in hindsight, naively."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from model.reference import Model, Row, View


def goal_steps(model: Model, identity: int, strategy: str) -> list[int]:
    """The ids of the steps whose achieved goal may become the goal of this transition."""
    steps, position, _ = model.episode(identity)
    if strategy == "future":
        steps = steps[position:]
    if strategy == "final":
        steps = steps[-1:]
    live = model.ids
    return [step["id"] for step in steps if step["id"] in live]


def relabelled(model: Model, identity: int, view: View, goal: int, reward_fn: Callable[..., Any]) -> Row:
    """The row of a transition that is told it wanted what was achieved after step `goal`.

    `reward_fn` is asked step by step; rewards are summed up to the first termination it knows of. What follows the
    recorded window stays next_obs: after a termination nothing is bootstrapped from it.
    """
    past, start = model.find(identity)
    told, place = model.find(goal)
    desired = told[place]["next_obs"]["achieved_goal"]
    reward = 0.0
    window = model.window(past, start, view.n)
    for power, place in enumerate(window):
        step_reward, terminated = ask(reward_fn, past[place], desired)
        reward += view.gamma**power * step_reward
        if terminated:
            break
    row = model.row(identity, view)
    frames = (view.stack,) if view.stack > 1 else ()
    wanted = np.broadcast_to(desired, (*frames, *desired.shape))
    return {
        **row,
        "obs": {**row["obs"], "desired_goal": wanted},
        "next_obs": {**row["next_obs"], "desired_goal": wanted},
        "reward": np.float32(reward),
        "terminated": np.bool_(terminated),
        "discount": np.float32(0.0 if terminated else view.gamma ** len(window)),
        "goal_ids": np.int64(goal),
    }


def ask(reward_fn: Callable[..., Any], step: Row, desired: Any) -> tuple[float, bool]:
    """Reward and termination of one step under the goal `desired`; the recorded termination where none is answered."""
    answer = reward_fn(step["next_obs"]["achieved_goal"][None], desired[None])
    reward, terminated = answer if isinstance(answer, tuple) else (answer, [step["terminated"]])
    return float(np.float32(reward[0])), bool(terminated[0])

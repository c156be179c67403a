"""What a replay buffer is, as a list of dicts and naive loops.

This is the specification in code: every rule of DESIGN.md section 2 that the buffer keeps is written here once more,
the slow and obvious way. Each transition is stored whole - its own obs, its own next_obs, its own full stacks - and
nothing is ever overwritten, so the model shares no mechanism with the buffer: no ring, no elision, no side table, no
derived frames. What disagrees with the model is wrong.

A tree is an array, or a dict or tuple of trees. Arrays arrive in the dtypes of the schema.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Tree = Any
Row = dict[str, Any]


def map_tree(function: Callable[..., Any], *trees: Tree) -> Tree:
    """Apply `function` to the leaves that lie at the same place of each tree."""
    first = trees[0]
    if isinstance(first, dict):
        return {name: map_tree(function, *(tree[name] for tree in trees)) for name in first}
    if isinstance(first, tuple):
        return tuple(map_tree(function, *(tree[place] for tree in trees)) for place in range(len(first)))
    return function(*trees)


def leaves(tree: Tree) -> list[np.ndarray]:
    """All leaves of a tree, depth first."""
    if isinstance(tree, dict):
        return [leaf for child in tree.values() for leaf in leaves(child)]
    if isinstance(tree, tuple):
        return [leaf for child in tree for leaf in leaves(child)]
    return [tree]


def same_bytes(first: Tree, second: Tree) -> bool:
    """Whether two trees are equal byte for byte (-0.0 is not 0.0, a NaN equals itself)."""
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(leaves(first), leaves(second), strict=True)
    )


@dataclass(frozen=True)
class View:
    """How a transition is read: the model's words for `relive.Transitions`."""

    n: int = 1
    gamma: float = 0.5
    stack: int = 1
    padding: str = "repeat"


class Model:
    """A replay buffer without any cleverness.

    Args:
        capacity: how many transitions live at most, over all lanes.
        lanes: how many environments; each keeps its newest `capacity / lanes`.
    """

    def __init__(self, capacity: int, lanes: int = 1) -> None:
        self.lanes = lanes
        self.depth = capacity // lanes
        self.history: list[list[Row]] = [[] for _ in range(lanes)]  # since the last clear, oldest first
        self.pushed = [0] * lanes  # ever: ids survive a clear

    def push(
        self,
        obs: Tree,
        action: Tree,
        reward: float,
        terminated: bool,
        next_obs: Tree,
        *,
        truncated: bool = False,
        lane: int = 0,
        extras: Row | None = None,
    ) -> int:
        """Append one transition to a lane and return its id."""
        past = self.history[lane]
        continues = bool(past) and not self._ended(past[-1]) and same_bytes(past[-1]["next_obs"], obs)
        step = self.pushed[lane]
        self.pushed[lane] += 1
        transition = {
            "id": step * self.lanes + lane,
            "first": not continues,
            "obs": map_tree(np.copy, obs),
            "action": map_tree(np.copy, action),
            "reward": float(np.float32(reward)),
            "terminated": bool(terminated),
            "truncated": bool(truncated),
            "next_obs": map_tree(np.copy, next_obs),
            "extras": map_tree(np.copy, dict(extras or {})),
        }
        past.append(transition)
        return transition["id"]

    def end_episodes(self, mask: list[bool]) -> int:
        """Truncate the newest transition of these lanes where it did not end its episode; return how many."""
        going_on = [past[-1] for past, chosen in zip(self.history, mask, strict=True) if chosen and past]
        going_on = [transition for transition in going_on if not self._ended(transition)]
        for transition in going_on:
            transition["truncated"] = True
        return len(going_on)

    def clear(self) -> None:
        """Forget every transition. Ids go on; the next push of each lane starts an episode."""
        self.history = [[] for _ in range(self.lanes)]

    @property
    def ids(self) -> list[int]:
        """All live ids, ascending."""
        return sorted(transition["id"] for past in self.history for transition in past[-self.depth :])

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, identity: int, view: View) -> Row:
        """The batch's row for one live id: what the learner must see."""
        past, start = self.find(identity)
        used = self.window(past, start, view.n)
        last = past[used[-1]]
        reward = 0.0
        for power, place in enumerate(used):
            reward += view.gamma**power * past[place]["reward"]
        return {
            "obs": self.stacked(past, start, past[start]["obs"], view),
            "action": past[start]["action"],
            "reward": np.float32(reward),
            "terminated": np.bool_(last["terminated"]),
            "truncated": np.bool_(last["truncated"]),
            "next_obs": self.stacked(past, used[-1], last["next_obs"], view, after=True),
            "discount": np.float32(0.0 if last["terminated"] else view.gamma ** len(used)),
            "ids": np.int64(identity),
            **past[start]["extras"],
        }

    @staticmethod
    def _ended(transition: Row) -> bool:
        return transition["terminated"] or transition["truncated"]

    def find(self, identity: int) -> tuple[list[Row], int]:
        """The history of the lane that holds a live id, and its place there."""
        for past in self.history:
            for place, transition in enumerate(past):
                if transition["id"] == identity and place >= len(past) - self.depth:
                    return past, place
        raise KeyError(identity)

    @staticmethod
    def window(past: list[Row], start: int, n: int) -> list[int]:
        """The places of at most n steps from `start` on: those whose rewards are summed, all of one episode."""
        used = [start]
        while len(used) < n:
            following = used[-1] + 1
            if following == len(past) or past[following]["first"]:
                break
            used.append(following)
        return used

    def episode(self, identity: int) -> tuple[list[Row], int, bool]:
        """The episode of a live id: all its steps, evicted ones too; the id's position in it; whether it has ended."""
        past, place = self.find(identity)
        first = place
        while not past[first]["first"]:
            first -= 1
        steps = [past[i] for i in self.window(past, first, len(past))]
        went_on = first + len(steps) < len(past)  # with another episode
        return steps, place - first, went_on or self._ended(steps[-1])

    @staticmethod
    def stacked(past: list[Row], place: int, newest: Tree, view: Any, *, after: bool = False) -> Tree:
        """The newest frame and the `stack - 1` frames before it in its episode, oldest first."""
        if view.stack == 1:
            return newest
        frames = [newest]
        if after:
            frames.insert(0, past[place]["obs"])
        while not past[place]["first"]:
            place -= 1
            frames.insert(0, past[place]["obs"])
        padding = frames[0] if view.padding == "repeat" else map_tree(np.zeros_like, frames[0])
        while len(frames) < view.stack:
            frames.insert(0, padding)
        return map_tree(lambda *rows: np.stack(rows), *frames[-view.stack :])

"""The kinds of transition that buffer and model are driven with, and their values as functions of small integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

import relive
from model.reference import Tree, leaves, map_tree

Field = relive.Field


@dataclass(frozen=True)
class Kind:
    """A schema without its lanes. With `stacked` > 1, `obs` describes one frame of the stack."""

    name: str
    obs: Tree
    action: Tree
    extras: Mapping[str, Field] = field(default_factory=dict)
    stacked: int = 1

    def schema(self, lanes: int = 1) -> relive.Schema:
        """The schema of this kind."""
        obs = self.obs
        if self.stacked > 1:
            obs = map_tree(lambda leaf: Field(leaf.dtype, (self.stacked, *leaf.shape)), obs)
        return relive.Schema(obs, self.action, self.extras, stacked=self.stacked, lanes=lanes)

    def fresh(self, number: int) -> Tree:
        """An observation that starts an episode."""
        if self.stacked == 1:
            return fill(self.obs, number)
        frames = [fill(self.obs, number + 5 * place) for place in range(self.stacked)]
        return map_tree(lambda *rows: np.stack(rows), *frames)

    def following(self, obs: Tree, number: int) -> Tree:
        """An observation that may follow `obs`: any, or with stacks the frames moved up by one."""
        if self.stacked == 1:
            return fill(self.obs, number)
        return map_tree(lambda stack, frame: np.stack([*stack[1:], frame]), obs, fill(self.obs, number))

    def almost(self, obs: Tree) -> Tree:
        """`obs` with one bit flipped, in the oldest frame where it is a stack: no longer the same bytes."""
        changed = map_tree(np.array, obs)
        leaves(changed)[-1].reshape(-1).view(np.uint8)[0] ^= 1
        return changed


def fill(tree: Tree, number: int) -> Tree:
    """Leaves filled as a function of `number` and of their place, so that mixed-up rows, leaves or elements show."""
    place = iter(range(1_000))
    return map_tree(lambda leaf: _fill_leaf(leaf, number, next(place)), tree)


def _fill_leaf(leaf: Field, number: int, place: int) -> np.ndarray:
    dtype = np.dtype(leaf.dtype)
    size = int(np.prod(leaf.shape))
    if leaf.low is not None:
        span = int(leaf.high) - int(leaf.low) + 1
        values = int(leaf.low) + (np.arange(size) + number) % span
    elif dtype.kind == "f" and number < 3:
        values = np.full(size, (-0.0, 0.0, np.nan)[number])  # equal or not by bytes, not by value
    else:
        values = (3 * np.arange(size) + 7 * number + 11 * place) % 97
    return values.astype(dtype).reshape(leaf.shape)


DISCRETE = Field("int64", (), low=0, high=5)

KINDS = {
    kind.name: kind
    for kind in (
        Kind("vector", Field("float32", (3,)), DISCRETE, {"logp": Field("float32"), "carry": Field("float16", (3,))}),
        Kind("discrete", Field("int64", (), low=0, high=99), Field("float32", (2,))),
        Kind("frames", Field("uint8", (4, 4)), DISCRETE),
        Kind("column", Field("uint8", (24, 24)), DISCRETE),  # 576 bytes: too large for the packed record
        Kind(
            "dict",
            {
                "image": Field("uint8", (5, 5)),
                "large": (Field("uint8", (23, 23)), Field("bool")),
                "pose": {"x": Field("float64", (2,)), "y": Field("int16")},
            },
            {"move": DISCRETE, "force": (Field("float32", (2,)),)},
        ),
        Kind("stacked", Field("uint8", (3, 2)), DISCRETE, stacked=3),
        Kind("stacked_column", Field("float32", (12, 12)), DISCRETE, {"tag": Field("int32")}, stacked=4),
    )
}

GOAL = Kind(
    "goal",
    {
        "achieved_goal": Field("float32", (2,)),
        "desired_goal": Field("float32", (2,)),
        "observation": Field("uint8", (3,)),
    },
    DISCRETE,
    {"tag": Field("int32")},
)

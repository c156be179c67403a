"""Sequences, naively: which steps are anchors, and what the learner must see of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from model.reference import Model, Row, View, map_tree


@dataclass(frozen=True)
class SequenceView:
    """How a sequence is read: the model's words for `relive.Sequences`."""

    length: Any
    burn_in: int = 0
    stride: int = 1
    stack: int = 1
    gamma: float = 0.5
    padding: str = "repeat"
    state: tuple[str, ...] = ()


def anchors(model: Model, view: View | SequenceView) -> list[int]:
    """The ids that a batch can start with, ascending."""
    if isinstance(view, View):
        return model.ids
    return [identity for identity in model.ids if _is_anchor(model, identity, view)]


def _is_anchor(model: Model, identity: int, view: SequenceView) -> bool:
    steps, position, ended = model.episode(identity)
    if view.length == "episode":
        return ended and position == 0
    if position % view.stride != 0:
        return False
    if position + view.length <= len(steps):
        return True
    if not ended:
        return False
    before = position - view.stride
    return before < 0 or before + view.length < len(steps)  # does the window before this one leave steps uncovered?


def valid_steps(model: Model, identity: int, view: SequenceView) -> int:
    """How many steps of the sequence are real: the rest is padding."""
    steps, position, _ = model.episode(identity)
    left = len(steps) - position
    return left if view.length == "episode" else min(left, view.length)


def loss_mask(model: Model, identity: int, view: SequenceView) -> list[bool]:
    """Which of the real steps are learned from."""
    _, position, _ = model.episode(identity)
    return [position == 0 or step >= view.burn_in for step in range(valid_steps(model, identity, view))]


def sequence_rows(model: Model, identities: list[int], view: SequenceView) -> list[Row]:
    """The rows of a batch; whole episodes are padded to the longest of the batch."""
    length = view.length
    if length == "episode" and identities:
        length = max(valid_steps(model, identity, view) for identity in identities)
    return [sequence_row(model, identity, view, length) for identity in identities]


def sequence_row(model: Model, identity: int, view: SequenceView, length: int) -> Row:
    """One row of a batch, `length` steps long: what the learner must see."""
    past, start = model.find(identity)
    places = [start + step for step in range(valid_steps(model, identity, view))]
    observations = [model.stacked(past, place, past[place]["obs"], view) for place in places]
    observations.append(model.stacked(past, places[-1], past[places[-1]]["next_obs"], view, after=True))
    all_obs = padded(observations, length + 1)
    learned = loss_mask(model, identity, view)
    row = {
        "all_obs": all_obs,
        "obs": map_tree(lambda leaf: leaf[:-1], all_obs),
        "next_obs": map_tree(lambda leaf: leaf[1:], all_obs),
        "action": padded([past[place]["action"] for place in places], length),
        "reward": padded([np.float32(past[place]["reward"]) for place in places], length),
        "terminated": padded([np.bool_(past[place]["terminated"]) for place in places], length),
        "truncated": padded([np.bool_(past[place]["truncated"]) for place in places], length),
        "discount": padded([np.float32(0.0 if past[place]["terminated"] else view.gamma) for place in places], length),
        "ids": np.int64(identity),
        "mask": padded([np.bool_(True) for _ in places], length),
        "loss_mask": padded([np.bool_(step) for step in learned], length),
    }
    for name in past[start]["extras"]:
        values = [past[place]["extras"][name] for place in places]
        row[name] = values[0] if name in view.state else padded(values, length)
    return row


def padded(steps: list[Any], length: int) -> Any:
    """The steps as one tree with a leading axis, followed by zeros."""
    blank = map_tree(np.zeros_like, steps[0])
    return map_tree(lambda *rows: np.stack(rows), *steps, *[blank] * (length - len(steps)))

"""How machines drive a buffer and the model: steps of random episodes, as the same calls to both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import numpy as np

from model.kinds import Kind
from model.reference import Model, Row, map_tree


@dataclass(frozen=True)
class Step:
    """One transition to come, before it is known what it follows."""

    link: str
    start: int
    after: int
    action: int
    reward: int
    end: str


STEPS = st.builds(
    Step,
    link=st.sampled_from(["continue"] * 6 + ["fresh", "almost"]),
    start=st.integers(0, 9),
    after=st.integers(0, 9),
    action=st.integers(0, 5),
    reward=st.integers(-8, 8),
    end=st.sampled_from([""] * 6 + ["terminated", "truncated", "both"]),
)
"""Of short episodes."""


def longer(rng: np.random.Generator, count: int) -> list[Step]:
    """Steps of episodes of about seven steps."""
    links = ["continue"] * 14 + ["fresh", "almost"]
    ends = [""] * 14 + ["terminated", "truncated", "both"]

    def one() -> Step:
        link, start, after, action, reward, end = rng.integers([16, 10, 10, 6, 17, 17]).tolist()
        return Step(links[link], start, after, action, reward - 8, ends[end])

    return [one() for _ in range(count)]


LANES = st.integers(0, 2)
MASKS = st.lists(st.booleans(), min_size=3, max_size=3)


def transition(kind: Kind, step: Step, before: Any | None) -> Row:
    """Turn a step into fields; `before` is the next_obs of the transition it may continue."""
    if before is None or step.link == "fresh":
        obs = kind.fresh(step.start)
    else:
        obs = before if step.link == "continue" else kind.almost(before)
    return {
        "obs": obs,
        "action": map_tree(lambda leaf: np.full(leaf.shape, step.action, leaf.dtype), kind.action),
        "reward": float(step.reward),
        "terminated": step.end in ("terminated", "both"),
        "next_obs": kind.following(obs, step.after),
        "truncated": step.end in ("truncated", "both"),
        **{name: np.full(field.shape, step.action + 1, field.dtype) for name, field in kind.extras.items()},
    }


def newest(model: Model, lane: int) -> Any | None:
    """The next_obs of the lane's newest transition, if it has one."""
    past = model.history[lane]
    return past[-1]["next_obs"] if past else None


def each_lane(kind: Kind, model: Model, coming: list[Step]) -> tuple[list[Row], Row]:
    """One transition a lane, apart and with a leading axis."""
    rows = [transition(kind, step, newest(model, lane)) for lane, step in enumerate(coming[: model.lanes])]
    return rows, batched(rows)


def block(kind: Kind, model: Model, coming: list[Step], lane: int) -> list[Row]:
    """Transitions of one lane, each of which may continue the one before."""
    rows: list[Row] = []
    for step in coming:
        rows.append(transition(kind, step, rows[-1]["next_obs"] if rows else newest(model, lane)))
    return rows


def remember(kind: Kind, model: Model, row: Row, lane: int) -> int:
    """Push one transition to the model."""
    extras = {name: row[name] for name in kind.extras}
    fields = {name: value for name, value in row.items() if name not in extras}
    return model.push(**fields, lane=lane, extras=extras)


def batched(rows: list[Row]) -> Row:
    """Fields of several transitions with a leading axis."""
    return {name: map_tree(lambda *values: np.stack(values), *(row[name] for row in rows)) for name in rows[0]}

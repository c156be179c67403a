"""Hindsight of the model against cases worked out by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from model.hindsight import goal_steps, relabelled
from model.reference import Model, View


def point(value: float, goal: float) -> dict[str, np.ndarray]:
    """An observation that is somewhere and wants to be elsewhere."""
    place = np.array([value], np.float32)
    return {"achieved_goal": place, "desired_goal": np.array([goal], np.float32), "observation": 10 * place}


def walk(model: Model, places: list[float], goal: float = 9.0, **last) -> list[int]:
    """Push an episode through these places."""
    ids = []
    for step, (a, b) in enumerate(pairwise(places)):
        options = last if step == len(places) - 2 else {}
        flags = {"truncated": options.get("truncated", False)}
        ended = options.get("terminated", False)
        ids.append(model.push(point(a, goal), np.int64(0), -1.0, ended, point(b, goal), **flags))
    return ids


def reached(achieved: np.ndarray, desired: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance, and an end where there is none left."""
    distance = np.abs(achieved - desired)[:, 0]
    return -distance, distance == 0


def test_goal_steps_stay_in_the_episode():
    model = Model(16)
    first = walk(model, [0, 1, 2, 3], truncated=True)
    second = walk(model, [3, 4, 5])
    assert goal_steps(model, first[1], "future") == first[1:]
    assert goal_steps(model, first[1], "final") == [first[2]]
    assert goal_steps(model, first[1], "episode") == first
    assert goal_steps(model, second[0], "future") == second  # the episode goes on: what there is of it
    assert goal_steps(model, second[0], "final") == [second[1]]


def test_evicted_steps_are_no_goals():
    model = Model(3)
    ids = walk(model, [0, 1, 2, 3, 4, 5], terminated=True)
    assert goal_steps(model, ids[3], "episode") == ids[2:]
    assert goal_steps(model, ids[3], "future") == ids[3:]


def test_a_relabelled_row():
    model = Model(8)
    ids = walk(model, [0, 1, 2, 3], truncated=True)
    row = relabelled(model, ids[0], View(), ids[1], reached)
    assert row["obs"]["desired_goal"] == 2
    assert row["next_obs"]["desired_goal"] == 2
    assert row["obs"]["achieved_goal"] == 0
    assert row["next_obs"]["observation"] == 10
    assert (row["reward"], row["discount"], row["goal_ids"]) == (-1, 0.5, ids[1])
    assert not row["terminated"]
    assert relabelled(model, ids[1], View(), ids[1], reached)["terminated"]


def test_rewards_are_summed_up_to_the_goal():
    model = Model(8)
    ids = walk(model, [0, 1, 2, 3, 4], truncated=True)
    row = relabelled(model, ids[0], View(n=4), ids[2], reached)
    assert row["reward"] == -2 - 1 / 2
    assert row["next_obs"]["achieved_goal"] == 4
    assert row["terminated"]
    assert row["truncated"]
    assert row["discount"] == 0


@pytest.mark.parametrize("answers_ends", [True, False])
def test_recorded_terminations_stay_where_none_are_answered(answers_ends):
    model = Model(8)
    ids = walk(model, [0, 1, 2], terminated=True)

    def never(achieved, desired):
        rewards = np.ones(len(achieved))
        return (rewards, np.zeros(len(achieved), bool)) if answers_ends else rewards

    row = relabelled(model, ids[0], View(n=3), ids[0], never)
    assert row["reward"] == 1.5
    assert row["terminated"] == (not answers_ends)
    assert row["discount"] == (0.25 if answers_ends else 0)


def test_goals_are_the_same_in_every_frame_of_a_stack():
    model = Model(8)
    ids = walk(model, [0, 1, 2], truncated=True)
    row = relabelled(model, ids[1], View(stack=2), ids[0], reached)
    assert row["obs"]["desired_goal"].tolist() == [[1], [1]]
    assert row["obs"]["achieved_goal"].tolist() == [[0], [1]]

"""Sequences of the model against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from model.reference import Model, View
from model.sequences import SequenceView, anchors, loss_mask, sequence_row, sequence_rows
from model.test_reference import chain, push


def episode(model: Model, steps: int, start: float = 0.0, **last) -> list[int]:
    """Push an episode of this many steps; without `last` it goes on."""
    return chain(model, [start + step for step in range(steps + 1)], **last)


@pytest.mark.parametrize(
    ("steps", "length", "stride", "open_", "ended"),
    [
        (5, 3, 1, [0, 1, 2], [0, 1, 2]),
        (5, 3, 2, [0, 2], [0, 2]),  # 2, 3, 4: the end is covered
        (6, 3, 2, [0, 2], [0, 2, 4]),  # step 5 is left over: 4, 5
        (6, 3, 3, [0, 3], [0, 3]),
        (7, 3, 3, [0, 3], [0, 3, 6]),
        (8, 3, 3, [0, 3], [0, 3, 6]),
        (2, 3, 1, [], [0]),  # a short episode is one window, not three
        (2, 3, 2, [], [0]),
        (3, 3, 2, [0], [0]),
        (4, 3, 2, [0], [0, 2]),
        (1, 1, 1, [0], [0]),
        (9, 4, 4, [0, 4], [0, 4, 8]),
        (9, 5, 2, [0, 2, 4], [0, 2, 4]),
        (10, 5, 2, [0, 2, 4], [0, 2, 4, 6]),
        (4, 5, 3, [], [0]),  # 3 starts within the episode, but 0 covers it all
    ],
)
@pytest.mark.parametrize("end", ["terminated", "truncated", "discontinuity"])
def test_anchors_of_one_episode(steps, length, stride, open_, ended, end):
    model = Model(32)
    view = SequenceView(length, stride=stride)
    if end == "discontinuity":
        episode(model, steps)
        assert anchors(model, view) == open_
        first = push(model, 100, 101)
        assert anchors(model, view) == [*ended, first][: len(ended) + (length == 1)]
    else:
        episode(model, steps - 1)
        push(model, steps - 1, steps, **{end: True})
        assert anchors(model, view) == ended


def test_whole_episodes_are_anchors_once_they_have_ended():
    model = Model(6)
    view = SequenceView("episode")
    episode(model, 2, terminated=True)  # 0, 1
    episode(model, 1, truncated=True)  # 2
    episode(model, 2)  # 3, 4
    assert anchors(model, view) == [0, 2]
    push(model, 50, 51)  # 5: a discontinuity ends 3, 4
    assert anchors(model, view) == [0, 2, 3]
    push(model, 51, 52)  # evicts 0: what is left of the episode is not whole
    assert anchors(model, view) == [2, 3]


def test_positions_count_from_the_true_start():
    model = Model(5)
    ids = episode(model, 9)
    view = SequenceView(3, stride=2)
    assert anchors(model, view) == [4, 6]  # live: 4..8
    push(model, 9, 10, terminated=True)  # step 9 is not covered by 6, 7, 8
    assert anchors(model, view) == [6, 8]
    assert loss_mask(model, ids[6], SequenceView(3, burn_in=2)) == [False, False, True]
    assert model.ids == [5, 6, 7, 8, 9]


def test_lanes_have_their_own_anchors():
    model = Model(16, lanes=2)
    for step in range(3):
        push(model, step, step + 1, lane=0)
        push(model, 10 + step, 11 + step, lane=1, terminated=step == 1)
    assert anchors(model, SequenceView(2)) == [0, 1, 2]  # lane 0: 0, 2; lane 1: 1, and 5 goes on
    assert anchors(model, View()) == [0, 1, 2, 3, 4, 5]


def test_a_clear_ends_nothing_but_starts_anew():
    model = Model(8)
    episode(model, 3)
    model.clear()
    assert anchors(model, SequenceView(2)) == []
    push(model, 3, 4)
    push(model, 4, 5)
    assert anchors(model, SequenceView(2, stride=2)) == [3]


def test_a_whole_window():
    model = Model(8)
    ids = episode(model, 5)
    row = sequence_row(model, ids[1], SequenceView(3, burn_in=1, gamma=0.5), 3)
    assert row["obs"].ravel().tolist() == [1, 2, 3]
    assert row["next_obs"].ravel().tolist() == [2, 3, 4]
    assert row["all_obs"].ravel().tolist() == [1, 2, 3, 4]
    assert row["reward"].tolist() == [2, 3, 4]
    assert row["discount"].tolist() == [0.5, 0.5, 0.5]
    assert row["mask"].tolist() == [True, True, True]
    assert row["loss_mask"].tolist() == [False, True, True]
    assert row["ids"] == 1


def test_a_padded_window():
    model = Model(8)
    ids = episode(model, 5, start=10, terminated=True)
    row = sequence_row(model, ids[3], SequenceView(4, burn_in=1), 4)
    assert row["all_obs"].ravel().tolist() == [13, 14, 15, 0, 0]
    assert row["obs"].ravel().tolist() == [13, 14, 15, 0]
    assert row["next_obs"].ravel().tolist() == [14, 15, 0, 0]
    assert row["reward"].tolist() == [14, 15, 0, 0]
    assert row["discount"].tolist() == [0.5, 0, 0, 0]
    assert row["terminated"].tolist() == [False, True, False, False]
    assert row["mask"].tolist() == [True, True, False, False]
    assert row["loss_mask"].tolist() == [False, True, False, False]


def test_no_burn_in_where_the_episode_starts():
    model = Model(8)
    ids = episode(model, 2, truncated=True)
    row = sequence_row(model, ids[0], SequenceView(4, burn_in=2), 4)
    assert row["loss_mask"].tolist() == [True, True, False, False]
    assert row["truncated"].tolist() == [False, True, False, False]
    assert row["discount"].tolist() == [0.5, 0.5, 0, 0]


def test_whole_episodes_are_padded_to_the_longest_of_the_batch():
    model = Model(16)
    view = SequenceView("episode")
    first = episode(model, 2, terminated=True)
    second = episode(model, 4, start=20, terminated=True)
    rows = sequence_rows(model, [first[0], second[0]], view)
    assert [row["mask"].tolist() for row in rows] == [[True, True, False, False], [True] * 4]
    assert rows[0]["all_obs"].ravel().tolist() == [0, 1, 2, 0, 0]
    assert len(sequence_rows(model, [first[0]], view)[0]["mask"]) == 2


def test_stacks_inside_a_sequence():
    model = Model(8)
    ids = episode(model, 3, start=5, terminated=True)
    row = sequence_row(model, ids[2], SequenceView(2, stack=3), 2)
    assert row["all_obs"][..., 0].tolist() == [[5, 6, 7], [6, 7, 8], [0, 0, 0]]
    row = sequence_row(model, ids[0], SequenceView(2, stack=3, padding="zeros"), 2)
    assert row["all_obs"][..., 0].tolist() == [[0, 0, 5], [0, 5, 6], [5, 6, 7]]


def test_extras_and_states():
    model = Model(8)
    frames = [np.array([value], np.float32) for value in range(4)]
    for step in range(2):
        extras = {"hidden": frames[step], "logp": np.float32(step + 1)}
        model.push(frames[step], np.int64(step), 0.0, step == 1, frames[step + 1], extras=extras)
    row = sequence_row(model, 1, SequenceView(2, state=("hidden",)), 2)
    assert row["hidden"].tolist() == [1]
    assert row["logp"].tolist() == [2, 0]
    assert row["action"].tolist() == [1, 0]

"""The model against cases worked out by hand."""

from itertools import pairwise

import numpy as np
import pytest

from model.reference import Model, View, same_bytes


def frame(value: float) -> np.ndarray:
    return np.array([value], np.float32)


def push(model: Model, obs: float, next_obs: float, reward: float = 1.0, **options) -> int:
    terminated = options.pop("terminated", False)
    return model.push(frame(obs), np.int64(0), reward, terminated, frame(next_obs), **options)


def chain(model: Model, values: list[float], **last) -> list[int]:
    """Push a run of continuing transitions through `values`; `last` are options of the final one."""
    return [push(model, a, b, reward=b, **(last if b == values[-1] else {})) for a, b in pairwise(values)]


def test_ids_interleave_lanes_and_survive_eviction_and_clear():
    model = Model(capacity=4, lanes=2)
    assert [push(model, 0, 1, lane=1), push(model, 1, 2, lane=1), push(model, 0, 1, lane=0)] == [1, 3, 0]
    assert model.ids == [0, 1, 3]
    assert push(model, 2, 3, lane=1) == 5
    assert model.ids == [0, 3, 5]  # lane 1 keeps its newest two
    model.clear()
    assert len(model) == 0
    assert [push(model, 3, 4, lane=1), push(model, 3, 4, lane=0)] == [7, 2]
    with pytest.raises(KeyError):
        model.row(5, View())


def test_one_step_row():
    model = Model(4)
    identity = push(model, 3, 4, reward=2.5)
    row = model.row(identity, View(gamma=0.5))
    assert (row["obs"], row["next_obs"], row["reward"], row["discount"]) == (3, 4, 2.5, 0.5)
    assert not row["terminated"]
    assert not row["truncated"]


def test_termination_zeroes_the_discount_and_ends_the_window():
    model = Model(8)
    ids = chain(model, [0, 1, 2, 3], terminated=True)
    push(model, 3, 4, reward=100)  # same bytes, but the episode was over
    row = model.row(ids[0], View(n=5, gamma=0.5))
    assert row["reward"] == 1 + 2 / 2 + 3 / 4
    assert row["next_obs"] == 3
    assert row["terminated"]
    assert row["discount"] == 0


def test_truncation_cuts_the_window_and_bootstraps():
    model = Model(8)
    ids = chain(model, [0, 1, 2, 3], truncated=True)
    push(model, 3, 4, reward=100)
    row = model.row(ids[1], View(n=5, gamma=0.5))
    assert row["reward"] == 2 + 3 / 2
    assert row["next_obs"] == 3
    assert row["truncated"]
    assert not row["terminated"]
    assert row["discount"] == 0.25


def test_terminated_and_truncated_at_once_is_a_termination():
    model = Model(8)
    row = model.row(push(model, 0, 1, terminated=True, truncated=True), View())
    assert row["terminated"]
    assert row["truncated"]
    assert row["discount"] == 0


def test_discontinuity_cuts_the_window_and_leaves_the_flag():
    model = Model(8)
    first, second, third = push(model, 0, 1), push(model, 1, 2), push(model, 7, 8)
    row = model.row(first, View(n=3, gamma=0.5))
    assert (row["reward"], row["next_obs"], row["discount"]) == (1.5, 2, 0.25)
    assert not row["truncated"]
    assert model.row(second, View(n=3, gamma=0.5))["discount"] == 0.5
    assert model.row(third, View(stack=2))["obs"].tolist() == [[7], [7]]


def test_the_newest_transition_cuts_the_window():
    model = Model(8)
    ids = chain(model, [0, 1, 2])
    assert model.row(ids[1], View(n=3, gamma=0.5))["discount"] == 0.5
    push(model, 2, 3, reward=4)
    row = model.row(ids[1], View(n=3, gamma=0.5))
    assert (row["reward"], row["next_obs"], row["discount"]) == (4, 3, 0.25)


def test_a_window_takes_n_steps_at_most():
    model = Model(8)
    ids = chain(model, [0, 1, 2, 3, 4, 5])
    row = model.row(ids[1], View(n=3, gamma=0.5))
    assert (row["reward"], row["next_obs"], row["discount"]) == (2 + 3 / 2 + 4 / 4, 4, 0.125)


@pytest.mark.parametrize(("padding", "filler"), [("repeat", 5), ("zeros", 0)])
def test_stacks_are_padded_before_the_start(padding, filler):
    model = Model(8)
    ids = chain(model, [5, 6, 7])
    row = model.row(ids[0], View(stack=4, padding=padding))
    assert row["obs"].ravel().tolist() == [filler, filler, filler, 5]
    assert row["next_obs"].ravel().tolist() == [filler, filler, 5, 6]
    row = model.row(ids[1], View(stack=4, padding=padding))
    assert row["obs"].ravel().tolist() == [filler, filler, 5, 6]
    assert row["next_obs"].ravel().tolist() == [filler, 5, 6, 7]


def test_stacks_do_not_reach_into_the_previous_episode():
    model = Model(8)
    chain(model, [0, 1, 2], truncated=True)
    row = model.row(push(model, 2, 3), View(stack=3))
    assert row["obs"].ravel().tolist() == [2, 2, 2]
    assert row["next_obs"].ravel().tolist() == [2, 2, 3]


def test_stacks_reach_beyond_the_capacity():
    model = Model(2)
    ids = chain(model, [0, 1, 2, 3, 4, 5])
    assert model.ids == ids[-2:]
    row = model.row(ids[-2], View(stack=4))
    assert row["obs"].ravel().tolist() == [0, 1, 2, 3]
    assert row["next_obs"].ravel().tolist() == [1, 2, 3, 4]


def test_stack_of_an_n_step_row_ends_at_the_last_step_used():
    model = Model(8)
    ids = chain(model, [1, 2, 3, 4, 5])
    row = model.row(ids[0], View(n=3, stack=3))
    assert row["obs"].ravel().tolist() == [1, 1, 1]
    assert row["next_obs"].ravel().tolist() == [2, 3, 4]


def test_clear_breaks_the_episode():
    model = Model(4)
    push(model, 0, 1)
    model.clear()
    row = model.row(push(model, 1, 2), View(stack=2))
    assert row["obs"].ravel().tolist() == [1, 1]


def test_continuity_is_by_bytes():
    model = Model(8)
    first = push(model, 1, 0.0)
    push(model, -0.0, np.nan)  # equal in value, not in bytes
    second = push(model, np.nan, 3)  # equal in bytes, not in value
    assert model.row(first, View(n=2))["discount"] == 0.5
    assert model.row(second, View(stack=2))["obs"].tobytes() == np.array([[-0.0], [np.nan]], np.float32).tobytes()
    assert not same_bytes({"a": frame(0), "b": (frame(1),)}, {"a": frame(0), "b": (frame(2),)})


def test_the_model_keeps_copies():
    model = Model(4)
    obs = frame(1)
    identity = model.push(obs, np.int64(0), 0.0, False, frame(2), extras={"tag": obs})
    obs[0] = 9
    assert model.row(identity, View())["obs"] == 1
    assert model.row(identity, View())["tag"] == 1


def test_lanes_are_separate_episodes():
    model = Model(8, lanes=2)
    first = push(model, 0, 1, lane=0)
    push(model, 1, 2, lane=1)
    assert model.row(first, View(n=3))["discount"] == 0.5
    push(model, 1, 5, lane=0, reward=2)
    assert model.row(first, View(n=3))["reward"] == 2


def test_dict_observations_are_stacked_leaf_by_leaf():
    model = Model(4)
    states = [{"x": frame(i), "inner": (frame(10 * i),)} for i in range(3)]
    model.push(states[0], np.int64(0), 0.0, False, states[1])
    row = model.row(model.push(states[1], np.int64(1), 0.0, False, states[2]), View(stack=2))
    assert row["obs"]["x"].ravel().tolist() == [0, 1]
    assert row["next_obs"]["inner"][0].ravel().tolist() == [10, 20]

"""Sequences as a user of a recurrent learner sees them. Values say where they come from: episode and step.

Anchors and padding of every kind are compared with the model in test_sampler_machine.py; here is what else counts.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

import relive
from relive import Field, Schema, Sequences

FLAT = Schema(Field("float32", (2,)), Field("int64"), {"logp": Field("float32"), "carry": Field("float16", (3,))})


def point(episode: int, step: int) -> np.ndarray:
    return np.array([episode, step], np.float32)


def play(buffer: relive.ReplayBuffer, episode: int, steps: int, end: str = "terminated", lane: int | None = None):
    """Push an episode; its ids."""
    return [
        buffer.push(
            point(episode, step),
            100 * episode + step,
            float(step),
            end == "terminated" and step == steps - 1,
            point(episode, step + 1),
            truncated=end == "truncated" and step == steps - 1,
            logp=-float(step),
            carry=np.full(3, 10 * episode + step, np.float16),
            lane=lane,
        )
        for step in range(steps)
    ]


def made(view: Sequences, *episodes: tuple[int, int], capacity: int = 64, **options) -> relive.ReplayBuffer:
    buffer = relive.ReplayBuffer(capacity, FLAT, view=view, seed=0, **options)
    for episode, steps in episodes:
        play(buffer, episode, steps)
    return buffer


def assert_right(batch: relive.Batch) -> None:
    """Every real step of the batch is the one after the step before it, and the rest is padding."""
    for row in range(len(batch.ids)):
        steps = int(batch.mask[row].sum())
        assert steps > 0
        assert batch.mask[row, :steps].all()
        episode, start = batch.obs[row, 0]
        expected = [[episode, start + step] for step in range(steps + 1)]
        assert batch.all_obs[row, : steps + 1].tolist() == expected
        assert batch.action[row, :steps].tolist() == [100 * episode + start + step for step in range(steps)]
        assert batch.reward[row, :steps].tolist() == [start + step for step in range(steps)]
        assert not batch.all_obs[row, steps + 1 :].any()
        for name in ("action", "reward", "terminated", "truncated", "discount", "logp", "loss_mask"):
            assert not getattr(batch, name)[row, steps:].any(), name


def test_fields_shapes_and_dtypes():
    batch = made(Sequences(4, burn_in=1, state=("carry",)), (1, 10), (2, 3)).sample(5)
    expected = {
        "obs": ("float32", (5, 4, 2)),
        "next_obs": ("float32", (5, 4, 2)),
        "all_obs": ("float32", (5, 5, 2)),
        "action": ("int64", (5, 4)),
        "reward": ("float32", (5, 4)),
        "terminated": ("bool", (5, 4)),
        "truncated": ("bool", (5, 4)),
        "discount": ("float32", (5, 4)),
        "mask": ("bool", (5, 4)),
        "loss_mask": ("bool", (5, 4)),
        "ids": ("int64", (5,)),
        "logp": ("float32", (5, 4)),
        "carry": ("float16", (5, 3)),
    }
    assert {name: (str(value.dtype), value.shape) for name, value in vars(batch).items()} == expected
    assert_right(batch)
    assert not hasattr(batch, "weight")


def test_the_five_fields_in_their_order():
    buffer = made(Sequences(4), (1, 10))
    obs, action, reward, terminated, next_obs = buffer.get([0])
    assert obs[0, :, 1].tolist() == [0, 1, 2, 3]
    assert action.tolist() == [[100, 101, 102, 103]]
    assert reward.tolist() == [[0, 1, 2, 3]]
    assert not terminated.any()
    assert next_obs[0, :, 1].tolist() == [1, 2, 3, 4]


def test_observations_are_views_of_one_array():
    batch = made(Sequences(4), (1, 10)).sample(8)
    for part in (batch.obs, batch.next_obs):
        assert np.shares_memory(part, batch.all_obs)
        assert part.base is not None
    assert np.array_equal(batch.obs[:, 1:], batch.next_obs[:, :-1])
    batch.all_obs[:] = 7
    assert (batch.obs == 7).all()
    assert (batch.next_obs == 7).all()


def test_observations_of_several_arrays():
    schema = Schema({"eye": Field("uint8", (2, 2)), "pair": (Field("float32"), Field("int16", (3,)))}, (Field("int8"),))
    buffer = relive.ReplayBuffer(32, schema, view=Sequences(3), seed=0)
    for step in range(8):
        before, after = (
            {"eye": np.full((2, 2), s, np.uint8), "pair": (np.float32(s), np.full(3, -s, np.int16))}
            for s in (step, step + 1)
        )
        buffer.push(before, (np.int8(step),), 0.0, step == 7, after)
    batch = buffer.get([0, 5, 2])
    assert batch.all_obs["eye"].shape == (3, 4, 2, 2)
    assert batch.obs["pair"][0].dtype == np.float32
    assert batch.obs["pair"][0].tolist() == [[0, 1, 2], [5, 6, 7], [2, 3, 4]]
    assert batch.next_obs["pair"][1][:, :, 0].tolist() == [[-1, -2, -3], [-6, -7, -8], [-3, -4, -5]]
    assert batch.next_obs["eye"].dtype == np.uint8
    assert batch.action[0].tolist() == [[0, 1, 2], [5, 6, 7], [2, 3, 4]]
    assert np.shares_memory(batch.next_obs["pair"][1], batch.all_obs["pair"][1])


# Stacks.


@pytest.mark.parametrize("padding", ["repeat", "zeros"])
def test_stacks_of_single_frames(padding):
    buffer = relive.ReplayBuffer(
        32, Schema(Field("uint8", (2,)), Field("int64")), view=Sequences(4, stack=3, padding=padding), seed=0
    )
    frames = [np.full(2, 10 + step, np.uint8) for step in range(8)]
    for step in range(6):
        buffer.push(frames[step], step, 0.0, step == 5, frames[step + 1])
    batch = buffer.get([0, 2])
    assert batch.obs.shape == (2, 4, 3, 2)
    before = [10, 10] if padding == "repeat" else [0, 0]
    line = [*before, 10, 11, 12, 13, 14]
    assert batch.all_obs[0, :, :, 0].tolist() == [line[i : i + 3] for i in range(5)]
    assert batch.all_obs[1, :, :, 0].tolist() == [[10 + i, 11 + i, 12 + i] for i in range(5)]
    assert np.shares_memory(batch.obs, batch.all_obs)


def test_observations_that_arrive_as_stacks():
    buffer = relive.ReplayBuffer(
        32, Schema(Field("uint8", (3, 2)), Field("int64"), stacked=3), view=Sequences(4), seed=0
    )
    frames = np.repeat(np.arange(10, 20, dtype=np.uint8)[:, None], 2, axis=1)
    for step in range(6):
        buffer.push(frames[step : step + 3], step, 0.0, step == 5, frames[step + 1 : step + 4])
    batch = buffer.get([0, 4])
    assert batch.all_obs.shape == (2, 5, 3, 2)
    assert batch.all_obs[0, :, :, 0].tolist() == [[10 + i, 11 + i, 12 + i] for i in range(5)]
    assert batch.all_obs[1, :3, :, 0].tolist() == [[14 + i, 15 + i, 16 + i] for i in range(3)]
    assert not batch.all_obs[1, 3:].any()
    with pytest.raises(relive.ConfigError, match="stack=1"):
        buffer.reader(view=Sequences(4, stack=2))


# Which windows.


def test_every_step_of_ended_episodes_is_covered_and_no_window_crosses_an_end():
    view = Sequences(5, burn_in=2, stride=3)
    buffer = made(view, (1, 11), (2, 2), (3, 5), (4, 6))
    batch = buffer.get(buffer.anchors)
    assert_right(batch)
    seen = {tuple(pair) for pair in batch.obs[batch.mask].tolist()}
    learned = {tuple(pair) for pair in batch.obs[batch.loss_mask].tolist()}
    every = {(episode, step) for episode, steps in ((1, 11), (2, 2), (3, 5), (4, 6)) for step in range(steps)}
    assert seen == learned == every


def test_an_episode_that_goes_on_gives_complete_windows_only():
    buffer = made(Sequences(4), (1, 2))
    play(buffer, 2, 6, end="")
    assert buffer.anchors.tolist() == [0, 2, 3, 4]  # the cut one of the first, three whole ones of the second
    assert buffer.get([0]).mask.tolist() == [[True, True, False, False]]


def test_a_truncation_and_a_discontinuity_end_an_episode_without_terminating_it():
    for end in ("truncated", ""):
        buffer = made(Sequences(4, gamma=0.5))
        play(buffer, 1, 3, end=end)
        play(buffer, 2, 1, end="")  # an observation that does not follow
        row = buffer.get([0])
        assert buffer.anchors.tolist() == [0]
        assert_right(row)
        assert row.mask.tolist() == [[True, True, True, False]]
        assert row.truncated.tolist() == [[False, False, end == "truncated", False]]
        assert row.discount.tolist() == [[0.5, 0.5, 0.5, 0]]
        assert row.next_obs[0, 2].tolist() == [1, 3]


def test_a_termination_zeroes_its_discount():
    row = made(Sequences(4, gamma=0.5), (1, 3)).get([0])
    assert row.terminated.tolist() == [[False, False, True, False]]
    assert row.discount.tolist() == [[0.5, 0.5, 0, 0]]


def test_an_episode_whose_start_was_overwritten_keeps_its_grid():
    buffer = made(Sequences(4, stride=4), (1, 12), capacity=10)  # steps 0 and 1 are gone
    assert buffer.anchors.tolist() == [4, 8]
    assert_right(buffer.get([4, 8]))
    with pytest.raises(relive.StaleIdError):
        buffer.get([0])


def test_burn_in_is_left_out_unless_the_window_starts_the_episode():
    batch = made(Sequences(5, burn_in=2, stride=3), (1, 8)).get([0, 3])
    assert batch.loss_mask.tolist() == [[True] * 5, [False, False, True, True, True]]
    assert batch.mask.all()


def test_any_live_id_can_be_read_as_the_start_of_a_window():
    """`get` of ids that are no anchors: what there is of the window."""
    buffer = made(Sequences(4, stride=4), (1, 6))
    play(buffer, 2, 2, end="")
    batch = buffer.get([5, 3, 2, 7, 6])
    assert batch.mask.sum(axis=1).tolist() == [1, 3, 4, 1, 2]
    assert_right(batch)
    assert batch.ids.tolist() == [5, 3, 2, 7, 6]


def test_lanes_and_step_ids():
    buffer = relive.ReplayBuffer(48, FLAT, lanes=3, view=Sequences(3), seed=1)
    for lane in (2, 0, 1):
        play(buffer, lane + 1, 4 + lane, lane=lane)
    batch = buffer.sample(40)
    assert_right(batch)
    assert (batch.ids % 3 + 1 == batch.obs[:, 0, 0]).all()
    steps = batch.ids[:, None] + np.arange(3) * buffer.lanes
    plain = buffer.reader(view=relive.Transitions())
    assert (plain.get(steps[batch.mask]).action == batch.action[batch.mask]).all()


@pytest.mark.parametrize("capacity", [13, 20])
def test_windows_across_the_seam_of_the_ring(capacity):
    buffer = made(Sequences(4, burn_in=1, stride=2), capacity=capacity)
    for episode in range(1, 30):
        play(buffer, episode, 1 + episode * 5 % 9, end="truncated" if episode % 2 else "terminated")
        if len(buffer.anchors):
            assert_right(buffer.get(buffer.anchors))
            assert_right(buffer.sample(8))


# Whole episodes.


def test_whole_episodes_are_padded_to_the_longest_drawn():
    buffer = made(Sequences("episode"), (1, 3), (2, 7), (3, 5))
    play(buffer, 4, 9, end="")  # still goes on
    assert buffer.anchors.tolist() == [0, 3, 10]
    batch = buffer.get([0, 10])
    assert batch.obs.shape == (2, 5, 2)
    assert batch.mask.sum(axis=1).tolist() == [3, 5]
    assert_right(batch)
    assert buffer.get([0]).action.shape == (1, 3)
    assert buffer.get([]).obs.shape[0] == 0
    lengths = {buffer.sample(2).obs.shape[1] for _ in range(60)}
    assert lengths == {3, 5, 7}


def test_an_episode_that_lost_its_first_step_is_drawn_no_more():
    buffer = made(Sequences("episode"), (1, 4), (2, 4), capacity=7)
    assert buffer.anchors.tolist() == [4]
    assert set(buffer.sample(16).ids.tolist()) == {4}


def test_nothing_to_draw_is_said_so():
    for view, need in ((Sequences(5), "an episode of 5"), (Sequences("episode"), "an episode that has ended")):
        buffer = made(view)
        play(buffer, 1, 4, end="")
        with pytest.raises(relive.NotEnoughDataError, match=rf"sample\(3\): 0 valid ids.*holds 4.*{need}"):
            buffer.sample(3)
        play(buffer, 2, 1, end="")  # now the first has ended
        assert set(buffer.sample(3).ids.tolist()) == {0}


# Outputs.


@pytest.mark.parametrize("length", [4, "episode"])
def test_tensors_of_sequences(length):
    torch = pytest.importorskip("torch")
    view = Sequences(length, state=("carry",))
    arrays, tensors = (
        made(view, (1, 10), (2, 3), (3, 3)).sample(6, output=output, beta=1.0) for output in ("numpy", "torch")
    )
    for name, value in vars(arrays).items():
        tensor = getattr(tensors, name)
        assert isinstance(tensor, torch.Tensor), name
        assert np.array_equal(tensor.numpy(), value), name
    stored = tensors.all_obs.untyped_storage().data_ptr()
    assert tensors.obs.untyped_storage().data_ptr() == tensors.next_obs.untyped_storage().data_ptr() == stored
    tensors.all_obs.fill_(7)
    assert (tensors.obs == 7).all()


@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("beta", [None, 0.5])
def test_a_batch_can_be_written_to_again(output, beta):
    if output == "torch":
        pytest.importorskip("torch")
    buffer, twin = (made(Sequences(4, state=("carry",)), (1, 10), (2, 3), sampler=relive.Prioritized()) for _ in "ab")
    batch = buffer.sample(6, output=output, beta=beta)
    twin.sample(6)
    places = {name: memory(value) for name, value in vars(batch).items()}
    again = buffer.sample(6, out=batch, beta=beta)
    assert again is batch
    assert {name: memory(value) for name, value in vars(again).items()} == places
    for name, value in vars(twin.sample(6, beta=beta)).items():
        assert np.array_equal(np.asarray(getattr(again, name)), value), name
    if beta is None:
        assert buffer.get([0] * 6, out=batch) is batch
        assert np.asarray(batch.obs)[:, 0, 1].tolist() == [0] * 6


def memory(value) -> int:
    return value.ctypes.data if isinstance(value, np.ndarray) else value.data_ptr()


def test_memory_that_does_not_fit_is_refused_before_anything_is_drawn():
    buffer, twin = (made(Sequences(4), (1, 10), sampler=relive.Prioritized()) for _ in "ab")
    plain, weighted = buffer.sample(6), buffer.sample(6, beta=1.0)
    twin.sample(6), twin.sample(6)
    for pieces, out, n, beta in (
        ("expected a batch with weights for beta=1.0", plain, 6, 1.0),
        ("expected a batch without weights for beta=None", weighted, 6, None),
        ("for the same batch size", plain, 5, None),
        ("for the same batch size", plain, 7, None),
        ("expected arrays as this buffer returns them", buffer.reader(view=Sequences(3)).sample(6), 6, None),
        ("expected a batch of this buffer", buffer.reader(view=relive.Transitions()).sample(6), 6, None),
        ("expected a batch of this buffer, got dict", vars(plain), 6, None),
    ):
        with pytest.raises(relive.ConfigError, match=rf"^out: .*{re.escape(pieces)}"):
            buffer.sample(n, out=out, beta=beta)
    assert buffer.sample(6).ids.tolist() == twin.sample(6).ids.tolist()


def test_whole_episodes_have_no_memory_to_be_written_to_again():
    buffer = made(Sequences("episode"), (1, 3), (2, 7))
    batch = buffer.sample(4)
    with pytest.raises(relive.ConfigError, match=r"^out: expected none, whole episodes differ in length"):
        buffer.sample(4, out=batch)
    with pytest.raises(relive.ConfigError, match=r"^out: expected none"):
        buffer.get([0], out=batch)


def test_batches_that_are_held_are_not_written_to():
    """The views of all_obs keep its memory, also where all_obs itself is dropped."""
    buffer = made(Sequences(4), (1, 10), (2, 12))
    held = []
    for _ in range(50):
        batch = buffer.sample(4)
        held.append((batch.next_obs[1:], batch.next_obs[1:].copy(), batch.mask, batch.mask.copy()))
    for view, copied, mask, copied_mask in held:
        assert np.array_equal(view, copied)
        assert np.array_equal(mask, copied_mask)


# Constructor.


@pytest.mark.parametrize(
    ("options", "pieces"),
    [
        ({"length": 0}, ["length", "[1, 65536]", "got 0"]),
        ({"length": 2.0}, ["length", "2.0"]),
        ({"length": "all"}, ["length", "'all'"]),
        ({"length": None}, ["length", "None"]),
        ({"length": True}, ["length", "True"]),
        ({"length": 70_000}, ["length", "70000"]),
        ({"length": 4, "burn_in": 4}, ["burn_in", "[0, 3]", "got 4"]),
        ({"length": 4, "burn_in": -1}, ["burn_in", "-1"]),
        ({"length": 4, "stride": 0}, ["stride", "got 0"]),
        ({"length": 4, "stride": 5}, ["stride", "[1, 4]", "got 5"]),
        ({"length": 4, "burn_in": 2, "stride": 3}, ["stride", "[1, 2]", "got 3"]),
        ({"length": "episode", "burn_in": 1}, ["burn_in=1", "episode"]),
        ({"length": "episode", "stride": 2}, ["stride=2", "episode"]),
        ({"length": 4, "stack": 0}, ["stack", "got 0"]),
        ({"length": 4, "gamma": 1.01}, ["gamma", "[0, 1]", "1.01"]),
        ({"length": 4, "gamma": float("nan")}, ["gamma", "nan"]),
        ({"length": 4, "padding": "mirror"}, ["padding", "'repeat'", "'mirror'"]),
        ({"length": 4, "state": "carry"}, ["state", "'carry'"]),
        ({"length": 4, "state": (1,)}, ["state", "(1,)"]),
    ],
    ids=str,
)
def test_sequences_that_make_no_sense(options, pieces):
    with pytest.raises(relive.ConfigError) as raised:
        Sequences(**options)
    message = str(raised.value)
    assert message.startswith("Sequences: expected ")
    for piece in pieces:
        assert piece in message, f"{piece!r} not in: {message}"


def test_a_state_that_is_no_extra_field():
    with pytest.raises(relive.ConfigError, match=r"state to be among the extras \['logp', 'carry'\], got \['memory'\]"):
        made(Sequences(4, state=("carry", "memory")))
    assert Sequences(4, state=["carry"]) == Sequences(4, state=("carry",))

"""Goals in hindsight as a user sees them. Values say where they come from: lane, episode and step.

Rows are compared with the model in test_sampler_machine.py and goals with their distribution in test_samplers.py; here
is what else one relies on.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

import relive
from relive import Field, Hindsight, Schema, Transitions

ALPHA = 1e-6
GOAL = Field("float32", (3,))
SCHEMA = Schema({"achieved_goal": GOAL, "desired_goal": GOAL, "observation": Field("int16")}, Field("int64"))
FAR = np.float32([-1, -1, -1])  # what everybody wanted at first
STRATEGIES = ("future", "final", "episode")


def point(lane: int, episode: int, step: int) -> dict[str, np.ndarray]:
    """An observation; its achieved goal names itself."""
    return {"achieved_goal": np.float32([lane, episode, step]), "desired_goal": FAR, "observation": np.int16(step)}


def play(buffer, episode: int, steps: int, end: str = "truncated", lane: int = 0) -> list[int]:
    """Push an episode; its ids. Recorded rewards are -100."""
    return [
        buffer.push(
            point(lane, episode, step),
            step,
            -100.0,
            end == "terminated" and step == steps - 1,
            point(lane, episode, step + 1),
            truncated=end == "truncated" and step == steps - 1,
            lane=lane,
        )
        for step in range(steps)
    ]


def steps_between(achieved, desired):
    """Minus the number of steps from one to the other, a lane or an episode away a thousand: names both."""
    return ((achieved - desired) * np.float32([-1000, -1000, 1])).sum(axis=1)


def reached(achieved, desired):
    return steps_between(achieved, desired), (achieved == desired).all(axis=1)


def made(hindsight, *, lanes: int = 1, capacity: int = 60, schema: Schema = SCHEMA, **view) -> relive.ReplayBuffer:
    view = Transitions(relabel=hindsight, **view)
    return relive.ReplayBuffer(capacity, schema, lanes=lanes, view=view, seed=5)


def goals(batch: relive.Batch) -> np.ndarray:
    """float32 [R, 3] of the relabelled rows: lane, episode and step of the goal."""
    return batch.obs["desired_goal"][batch.goal_ids >= 0]


def states(batch: relive.Batch) -> np.ndarray:
    """float32 [R, 3] of the relabelled rows: lane, episode and step of the transition."""
    return batch.obs["achieved_goal"][batch.goal_ids >= 0]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("lanes", [1, 3])
def test_goals_come_from_the_same_episode_always(strategy, lanes):
    """While the ring wraps many times, episodes are cut by eviction, and one is always unfinished."""
    buffer = made(Hindsight(strategy, k=1e9, reward_fn=reached), lanes=lanes, capacity=17 * lanes)
    for episode in range(40):
        for lane in range(lanes):
            play(buffer, episode, 1 + (3 * episode + 5 * lane) % 9, ("truncated", "terminated", "")[episode % 3], lane)
        batch = buffer.sample(64)
        live = set(buffer.ids.tolist())
        assert (batch.goal_ids >= 0).all()
        assert set(batch.goal_ids.tolist()) <= live
        assert (goals(batch)[:, :2] == states(batch)[:, :2]).all()
        ahead = (goals(batch) - states(batch))[:, 2]
        if strategy != "episode":
            assert (ahead >= 1).all()
        assert ((batch.goal_ids - batch.ids) // lanes == ahead - 1).all()  # achieved after step j, not before it
        told = buffer.get(batch.goal_ids)
        assert (told.next_obs["achieved_goal"] == goals(batch)).all()
        if strategy == "final":
            newest = {tuple(row[:2]): row[2] for row in buffer.get(buffer.ids).next_obs["achieved_goal"].tolist()}
            assert [newest[tuple(row[:2])] for row in goals(batch).tolist()] == goals(batch)[:, 2].tolist()


def test_all_steps_that_may_be_goals_are():
    buffer = made(Hindsight("future", k=4, reward_fn=reached))
    play(buffer, 0, 2)
    ids = play(buffer, 1, 4)
    play(buffer, 2, 2)
    batch = buffer.sample(4_000)
    pairs = {pair for pair in zip(batch.ids.tolist(), batch.goal_ids.tolist(), strict=True) if pair[1] >= 0}
    assert {pair for pair in pairs if pair[0] in ids} == {(a, b) for a in ids for b in ids if a <= b}
    whole = buffer.reader(view=Hindsight("episode", reward_fn=reached)).sample(4_000)
    pairs = set(zip(whole.ids.tolist(), whole.goal_ids.tolist(), strict=True))
    assert {pair for pair in pairs if pair[0] in ids and pair[1] >= 0} == {(a, b) for a in ids for b in ids}


def test_an_episode_cut_by_eviction_has_the_goals_that_are_left():
    buffer = made(Hindsight("episode", k=1e9, reward_fn=reached), capacity=5)
    ids = play(buffer, 0, 9, end="")
    assert set(buffer.sample(400).goal_ids.tolist()) == set(ids[-5:])


def test_an_unfinished_episode_uses_what_it_has():
    buffer = made(Hindsight("final", k=1e9, reward_fn=reached))
    for step in range(5):
        new = buffer.push(point(0, 0, step), 0, 0.0, False, point(0, 0, step + 1))
        assert set(buffer.sample(20).goal_ids.tolist()) == {new}
    buffer.push(point(0, 7, 0), 0, 0.0, False, point(0, 7, 1))  # does not follow: another episode
    assert set(buffer.sample(60).goal_ids.tolist()) == {4, 5}
    buffer.clear()
    new = buffer.push(point(0, 7, 1), 0, 0.0, False, point(0, 7, 2))  # would follow what was cleared
    assert set(buffer.sample(20).goal_ids.tolist()) == {new}


@pytest.mark.parametrize("k", [0, 0.5, 1, 4, 9])
def test_the_share_of_relabelled_rows(k):
    buffer = made(Hindsight("future", k=k, reward_fn=reached))
    play(buffer, 0, 20)
    rows = [int((buffer.sample(200).goal_ids >= 0).sum()) for _ in range(50)]
    assert stats.binomtest(sum(rows), 10_000, k / (k + 1)).pvalue > ALPHA
    assert k == 0 or stats.binomtest(sum(rows), 10_000, k / (k + 2)).pvalue < ALPHA  # one that is off is noticed
    assert k == 0 or len(set(rows)) > 5  # each row by itself, not so many of a batch


# Rewards.


class Asked:
    """A reward function that remembers its calls."""

    def __init__(self, answer=reached):
        self.answer, self.calls = answer, []

    def __call__(self, achieved, desired):
        self.calls.append((achieved.copy(), desired.copy()))
        return self.answer(achieved, desired)


def test_the_reward_function_is_called_once_a_batch_with_the_relabelled_rows():
    ask = Asked()
    buffer = made(Hindsight("future", k=1, reward_fn=ask))
    play(buffer, 0, 6, "terminated")
    for number in range(1, 11):
        batch = buffer.sample(32)
        assert len(ask.calls) == number
        achieved, desired = ask.calls[-1]
        rows = batch.goal_ids >= 0
        assert achieved.shape == desired.shape == (rows.sum(), 3)
        assert achieved.dtype == desired.dtype == np.float32
        assert (achieved == batch.next_obs["achieved_goal"][rows]).all()  # achieved after the step
        assert (desired == goals(batch)).all()
    buffer.get(buffer.ids)
    assert len(ask.calls) == 10


@pytest.mark.parametrize("again", [False, True])
def test_goals_that_the_reward_function_keeps_are_its_own(again):
    kept = []

    def keeps(achieved, desired):
        kept.append((achieved, desired, achieved.copy(), desired.copy()))
        return np.zeros(len(achieved))

    buffer = made(Hindsight("future", k=1, reward_fn=keeps), n=2)
    play(buffer, 0, 20)
    batch = buffer.sample(16)
    for _ in range(20):
        batch = buffer.sample(16, out=batch if again else None)
    assert len(kept) == 21
    for achieved, desired, then_achieved, then_desired in kept:
        assert np.array_equal(achieved, then_achieved)
        assert np.array_equal(desired, then_desired)


def test_it_is_not_called_where_nothing_is_relabelled():
    ask = Asked()
    buffer = made(Hindsight("future", k=0, reward_fn=ask))
    play(buffer, 0, 6)
    batch = buffer.sample(32)
    assert not ask.calls
    assert set(batch.goal_ids.tolist()) == {-1}
    assert (batch.reward == -100).all()


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_rewards_and_ends_land_in_their_rows(end):
    buffer = made(Hindsight("future", k=1, reward_fn=reached), gamma=0.5)
    ids = play(buffer, 0, 6, end)
    batch = buffer.sample(200)
    told = batch.goal_ids >= 0
    away = batch.goal_ids - batch.ids  # steps still to go after this one
    assert (batch.reward[told] == -away[told]).all()
    assert (batch.terminated[told] == (away[told] == 0)).all()
    assert (batch.discount[told] == np.where(away[told] == 0, 0, 0.5)).all()
    last = batch.ids == ids[-1]
    assert (batch.reward[~told] == -100).all()
    assert (batch.terminated[~told] == (last[~told] & (end == "terminated"))).all()
    assert (batch.obs["desired_goal"][~told] == -1).all()
    assert (batch.truncated == (last & (end == "truncated"))).all()  # as recorded, everywhere
    for name in ("obs", "next_obs"):
        assert (getattr(batch, name)["desired_goal"][told, 2] == batch.goal_ids[told] + 1).all()
    assert (batch.obs["observation"] == batch.ids).all()  # nothing else is touched
    assert (batch.next_obs["achieved_goal"][:, 2] == batch.ids + 1).all()


def test_rewards_of_several_steps_are_summed_up_to_the_goal():
    ask = Asked()
    buffer = made(Hindsight("future", k=1, reward_fn=ask), n=3, gamma=0.5)
    play(buffer, 0, 6)
    batch = buffer.sample(300)
    told = batch.goal_ids >= 0
    window = np.minimum(3, 6 - batch.ids)
    achieved, desired = ask.calls[0]
    assert len(ask.calls) == 1
    assert len(achieved) == len(desired) == window[told].sum()  # every step of every window, no padding
    for identity, goal, reward, terminated, discount in zip(
        batch.ids, batch.goal_ids, batch.reward, batch.terminated, batch.discount, strict=True
    ):
        steps = min(3, 6 - identity)
        if goal < 0:
            assert reward == sum(-100 * 0.5**i for i in range(steps))
            continue
        until = min(steps, goal - identity + 1)  # the first termination ends the sum
        assert reward == -sum((goal - identity - i) * 0.5**i for i in range(until))
        assert terminated == (goal < identity + steps)
        assert discount == (0 if terminated else 0.5**steps)
    assert (batch.next_obs["achieved_goal"][:, 2] == batch.ids + window).all()


@pytest.mark.parametrize("n", [1, 3])
def test_without_terminations_in_the_answer_the_recorded_ones_stay(n):
    buffer = made(Hindsight("future", k=1e9, reward_fn=steps_between), n=n, gamma=0.5)
    play(buffer, 0, 4, "terminated")
    play(buffer, 1, 4, "truncated")
    batch = buffer.sample(200)
    recorded = buffer.get(batch.ids)
    assert (batch.goal_ids >= 0).all()
    assert (batch.reward > -100).all()
    for name in ("terminated", "truncated", "discount"):
        assert (getattr(batch, name) == getattr(recorded, name)).all(), name
    assert batch.terminated.any()
    assert not batch.terminated.all()


def test_an_answer_can_end_less_than_was_recorded():
    def never(achieved, desired):
        return np.ones(len(achieved)), np.zeros(len(achieved), bool)

    buffer = made(Hindsight("future", k=1e9, reward_fn=never), n=3, gamma=0.5)
    play(buffer, 0, 4, "terminated")
    batch = buffer.sample(100)
    assert not batch.terminated.any()
    assert (batch.discount == 0.5 ** np.minimum(3, 4 - batch.ids)).all()
    assert buffer.get([3]).terminated.tolist() == [True]


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.int8, np.bool_])
def test_answers_of_any_numbers(dtype):
    fn = lambda achieved, desired: (np.ones(len(achieved), dtype), np.zeros(len(achieved), np.int64))  # noqa: E731
    buffer = made(Hindsight("future", k=1e9, reward_fn=fn))
    play(buffer, 0, 4)
    batch = buffer.sample(8)
    assert batch.reward.dtype == np.float32
    assert batch.terminated.dtype == np.bool_
    assert (batch.reward == 1).all()
    fn = lambda achieved, desired: [2.0] * len(achieved)  # noqa: E731 - a list will do
    assert (buffer.reader(view=Hindsight("future", k=1e9, reward_fn=fn)).sample(8).reward == 2).all()


WRONG = {
    "a number": lambda a, d: 0.0,
    "a column": lambda a, d: np.zeros((len(a), 1)),
    "one too few": lambda a, d: np.zeros(len(a) - 1),
    "one for each number": lambda a, d: a - d,
    "nothing": lambda a, d: None,
    "words": lambda a, d: np.array(["far"] * len(a)),
    "complex": lambda a, d: np.zeros(len(a), complex),
    "ragged": lambda a, d: [[1.0], [1.0, 2.0], *[3.0] * (len(a) - 2)],
}


@pytest.mark.parametrize(
    ("name", "part"),
    [(name, "reward") for name in WRONG] + [(name, "terminated") for name in WRONG if name != "nothing"],
)
def test_answers_that_are_no_rewards(name, part):
    def fn(achieved, desired):
        wrong = WRONG[name](achieved, desired)
        return wrong if part == "reward" else (np.zeros(len(achieved)), wrong)

    buffer = made(Hindsight("future", k=1e9, reward_fn=fn))
    play(buffer, 0, 6)
    with pytest.raises(relive.SchemaError, match=rf"^reward_fn: expected {part} \(8,\)"):
        buffer.sample(8)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_answers_may_be_tensors(requires_grad):
    torch = pytest.importorskip("torch")

    def fn(achieved, desired):
        rewards = torch.full((len(achieved),), 2.0, requires_grad=requires_grad)
        return rewards, torch.ones(len(achieved), dtype=torch.bool)

    buffer = made(Hindsight("future", k=1e9, reward_fn=fn))
    play(buffer, 0, 4)
    batch = buffer.sample(8)
    assert (batch.reward == 2).all()
    assert batch.terminated.all()


def test_the_reward_function_may_read_the_buffer():
    def fn(achieved, desired):
        buffer.get(buffer.ids)
        buffer.reader(view=Transitions()).sample(2)
        return np.zeros(len(achieved))

    buffer = made(Hindsight("future", k=1e9, reward_fn=fn))
    play(buffer, 0, 6)
    assert (buffer.sample(8).reward == 0).all()


def test_an_error_of_the_reward_function_is_the_users_own():
    def fails(achieved, desired):
        raise ZeroDivisionError("mine")

    buffer = made(Hindsight("future", k=1e9, reward_fn=fails))
    play(buffer, 0, 6)
    with pytest.raises(ZeroDivisionError, match="mine"):
        buffer.sample(8)
    assert buffer.get([3]).reward.tolist() == [-100]


# What stays as it was.


def test_get_never_relabels_and_the_recorded_data_never_change():
    def spoils(achieved, desired):
        achieved[:], desired[:] = 77, 77
        return np.zeros(len(achieved))

    buffer = made(Hindsight("future", k=1e9, reward_fn=spoils), n=3)
    play(buffer, 0, 12, "terminated")
    plain = buffer.reader(view=Transitions(n=3))
    before = plain.get(buffer.ids)
    for _ in range(20):
        batch = buffer.sample(32)
        for name in ("obs", "next_obs"):
            for leaf in getattr(batch, name).values():
                leaf[...] = 99
    for after in (plain.get(buffer.ids), buffer.get(buffer.ids)):
        for name in ("reward", "terminated", "truncated", "discount", "action"):
            assert (getattr(after, name) == getattr(before, name)).all(), name
        for leaf in SCHEMA.obs:
            assert (after.obs[leaf] == before.obs[leaf]).all()
            assert (after.next_obs[leaf] == before.next_obs[leaf]).all()
    assert (buffer.get(buffer.ids).goal_ids == -1).all()


@pytest.mark.parametrize("n", [1, 3])
def test_a_batch_of_no_ids(n):
    """There is nothing to relabel, and nothing to look at."""
    buffer = made(Hindsight("future", 4, reached), n=n)
    play(buffer, 0, 5)
    batch = buffer.get(np.empty(0, np.int64))
    assert batch.goal_ids.shape == batch.reward.shape == (0,)
    assert batch.obs["desired_goal"].shape == (0, 3)


def test_equal_seeds_give_equal_goals_and_others_do_not():
    def goals_of(seed):
        view = Hindsight("future", reward_fn=reached)
        buffer = relive.ReplayBuffer(32, SCHEMA, view=view, seed=seed)
        play(buffer, 0, 20)
        return [buffer.sample(16).goal_ids.tolist() for _ in range(5)]

    assert goals_of(1) == goals_of(1)
    assert goals_of(1) != goals_of(2)


# With other things.


def test_passing_it_as_the_view_means_transitions():
    hindsight = Hindsight("future", reward_fn=reached)
    buffer = relive.ReplayBuffer(16, SCHEMA, view=hindsight)
    assert buffer.view == Transitions(relabel=hindsight)
    assert buffer.reader(view=hindsight).view == Transitions(relabel=hindsight)
    assert relive.plan(SCHEMA, 16, hindsight) == relive.plan(SCHEMA, 16, Transitions(relabel=hindsight))


def test_stacks_have_the_new_goal_in_every_frame():
    ask = Asked()
    buffer = made(Hindsight("future", k=1, reward_fn=ask), stack=3, n=2)
    play(buffer, 0, 8)
    batch = buffer.sample(100)
    told = batch.goal_ids >= 0
    assert batch.obs["desired_goal"].shape == (100, 3, 3)
    for name in ("obs", "next_obs"):
        desired = getattr(batch, name)["desired_goal"]
        assert (desired[told, :, 2] == batch.goal_ids[told, None] + 1).all()
        assert (desired[~told] == -1).all()
    assert (batch.obs["achieved_goal"][:, -1, 2] == batch.ids).all()
    achieved, desired = ask.calls[0]
    assert achieved.shape == desired.shape
    assert achieved.shape[1:] == (3,)  # the newest frame, not the stack


@pytest.mark.parametrize("n", [1, 3])
def test_observations_that_arrive_as_stacks(n):
    goal = Field("float32", (2, 3))
    schema = Schema({"achieved_goal": goal, "desired_goal": goal}, Field("int64"), stacked=2)
    ask = Asked()
    buffer = made(Hindsight("future", k=1, reward_fn=ask), schema=schema, n=n)
    frames = np.stack([np.float32([0, 0, step]) for step in range(12)])
    for step in range(10):
        obs, after = (
            {"achieved_goal": frames[s : s + 2], "desired_goal": np.stack([FAR] * 2)} for s in (step, step + 1)
        )
        buffer.push(obs, 0, -100.0, False, after, truncated=step == 9)
    batch = buffer.sample(100)
    told = batch.goal_ids >= 0
    for name in ("obs", "next_obs"):
        desired = getattr(batch, name)["desired_goal"]
        assert desired.shape == (100, 2, 3)
        assert (desired[told, :, 2] == batch.goal_ids[told, None] + 2).all()  # the newest frame after step j
        assert (desired[~told] == -1).all()
    achieved, desired = ask.calls[0]
    assert achieved.shape == desired.shape == (np.minimum(n, 10 - batch.ids[told]).sum(), 3)


@pytest.mark.parametrize(
    ("dtype", "shape"), [("uint8", (4, 4)), ("int64", ()), ("float64", (1,)), ("bool", (3,)), ("U3", ())], ids=str
)
def test_goals_of_any_dtype_and_shape(dtype, shape):
    def fn(achieved, desired):
        given.append((achieved, desired))
        return (achieved == desired).reshape(len(achieved), -1).all(axis=1)

    def state(step):
        return {"achieved_goal": np.full(shape, step).astype(dtype), "desired_goal": np.full(shape, 0).astype(dtype)}

    given: list = []
    schema = Schema({name: Field(dtype, shape) for name in ("achieved_goal", "desired_goal")}, Field("int64"))
    buffer = made(Hindsight("final", k=1e9, reward_fn=fn), schema=schema)
    for step in range(5):
        buffer.push(state(step), 0, 0.0, False, state(step + 1), truncated=step == 4)
    batch = buffer.sample(50)
    for array in given[0]:
        assert (array.dtype, array.shape) == (np.dtype(dtype), (50, *shape))
    assert (batch.next_obs["desired_goal"] == state(5)["achieved_goal"]).all()
    same = (batch.next_obs["achieved_goal"] == state(5)["achieved_goal"]).reshape(50, -1).all(axis=1)
    assert (batch.reward == same).all()


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_memory_is_used_again_and_tensors_are_right(output):
    if output == "torch":
        pytest.importorskip("torch")
    buffer, twin = (made(Hindsight("future", k=1, reward_fn=reached), n=3) for _ in "ab")
    for each in (buffer, twin):
        play(each, 0, 20)
    batch = buffer.sample(16, output=output)
    expected = twin.sample(16)
    for _ in range(3):
        for name in ("reward", "terminated", "discount", "goal_ids", "ids"):
            assert np.array_equal(np.asarray(getattr(batch, name)), getattr(expected, name)), name
        for name in ("obs", "next_obs"):
            for leaf in SCHEMA.obs:
                assert np.array_equal(np.asarray(getattr(batch, name)[leaf]), getattr(expected, name)[leaf])
        assert buffer.sample(16, out=batch) is batch
        expected = twin.sample(16)


def test_with_priorities():
    view = Hindsight("future", k=1, reward_fn=reached)
    buffer = relive.ReplayBuffer(32, SCHEMA, view=view, sampler=relive.Prioritized(eps=0), seed=0)
    ids = play(buffer, 0, 20)
    buffer.update_priorities(ids, np.arange(20) % 2)
    batch = buffer.sample(64, beta=1.0)
    assert (batch.ids % 2 == 1).all()
    assert (batch.weight == 1).all()
    assert 0 < (batch.goal_ids >= 0).sum() < 64


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "pieces"),
    [
        (("past", 4, reached), ["strategy", "'future', 'final', 'episode'", "'past'"]),
        (("future", -1, reached), ["k", "-1"]),
        (("future", float("nan"), reached), ["k", "nan"]),
        (("future", float("inf"), reached), ["k", "inf"]),
        (("future", "four", reached), ["k", "'four'"]),
        (("future", True, reached), ["k", "True"]),
        (("future", 4, None), ["reward_fn(achieved_goal, desired_goal)", "None"]),
        (("future",), ["reward_fn", "None"]),
        (("future", 4, -1.0), ["reward_fn", "-1.0"]),
    ],
    ids=str,
)
def test_hindsight_that_makes_no_sense(arguments, pieces):
    with pytest.raises(relive.ConfigError, match=r"^Hindsight: expected ") as raised:
        Hindsight(*arguments)
    for piece in pieces:
        assert piece in str(raised.value), f"{piece!r} not in: {raised.value}"


OTHER = Field("float32", (2,))


@pytest.mark.parametrize(
    "obs",
    [
        GOAL,
        (GOAL, GOAL),
        {"achieved_goal": GOAL},
        {"desired_goal": GOAL, "observation": GOAL},
        {"achieved_goal": GOAL, "desired_goal": OTHER},
        {"achieved_goal": GOAL, "desired_goal": Field("float64", (3,))},
        {"achieved_goal": {"x": GOAL}, "desired_goal": {"x": GOAL}},
    ],
    ids=str,
)
def test_observations_without_goals(obs):
    view = Hindsight("future", reward_fn=reached)
    schema = Schema(obs, Field("int64"))
    for call in (
        lambda: relive.ReplayBuffer(8, schema, view=view),
        lambda: relive.plan(schema, 8, view),
        lambda: relive.ReplayBuffer(8, schema).reader(view=view),
    ):
        with pytest.raises(relive.ConfigError, match=r"^Hindsight: expected .*achieved_goal and desired_goal.*got obs"):
            call()


def test_views_that_relabel_with_something_else():
    with pytest.raises(relive.ConfigError, match=r"^Transitions: expected relabel to be a Hindsight or None, got 'fut"):
        Transitions(relabel="future")

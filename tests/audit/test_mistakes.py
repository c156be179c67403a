"""Each rule finds the mistake it is there for, made as people make it; and it alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from recordings import Row, block, record, record_naively, schema_of, source, vector

import relive
from relive.audit import Finding, Place, check
from relive.interop.source import Block, Source

CARTPOLE = relive.Schema(relive.Field("float32", (4,)), relive.Field("int64", (), 0, 1))


@pytest.fixture(scope="module")
def cartpole() -> list[Row]:
    """2,000 right transitions of CartPole, the episodes terminated."""
    return record(gymnasium.make("CartPole-v1"), 2000)


@pytest.fixture(scope="module")
def pendulum() -> list[Row]:
    """3,000 right transitions of Pendulum, the episodes truncated after 50 steps."""
    return record(gymnasium.make("Pendulum-v1", max_episode_steps=50), 3000)


PENDULUM = relive.Schema(relive.Field("float32", (3,)), relive.Field("float32", (1,)))


def only(data: Source) -> Finding:
    """The one thing that is found."""
    report = check(data)
    assert len(report.findings) == 1, str(report)
    assert report.passes == (report.findings[0].severity == "warning")
    return report.findings[0]


def edited(rows: list[Row], change: Callable[[list[Any]], None], *places: int) -> list[Row]:
    """The rows with some of them changed."""
    rows = list(rows)
    for place in places:
        row = [np.copy(value) for value in rows[place]]
        change(row)
        rows[place] = tuple(row)  # type: ignore[assignment]
    return rows


@pytest.mark.parametrize("name", ["CartPole-v1", "MountainCar-v0", "Pendulum-v1", "FrozenLake-v1", "Taxi-v4"])
def test_resets_stored_as_transitions(name):
    """Gymnasium's NEXT_STEP autoreset, and a loop that does not know of it."""
    envs = vector(name, 2, AutoresetMode.NEXT_STEP, max_episode_steps=40)
    schema = schema_of(envs.envs[0])
    lanes = record_naively(envs, 1000)
    found = only(source(schema, lanes))
    assert (found.rule, found.severity) == ("ends", "error")
    assert found.words.startswith("resets are stored as transitions: ")
    assert found.first == Place(
        0, 1 + next(t for t, row in enumerate(lanes[0]) if (row[3] or row[4]) and np.any(row[0] != row[5]))
    )


@pytest.mark.parametrize("name", ["CartPole-v1", "MountainCar-v0", "Pendulum-v1"])
def test_final_observations_lost(name):
    """SAME_STEP autoreset, and a loop that does not look into info['final_obs']."""
    envs = vector(name, 2, AutoresetMode.SAME_STEP, max_episode_steps=40)
    schema = schema_of(envs.envs[0])
    found = only(source(schema, record_naively(envs, 1000)))
    assert (found.rule, found.severity) == ("ends", "error")
    assert found.words.startswith("the final observations are lost: ")


def test_final_observations_lost_by_a_ring_of_one_array(cartpole):
    """A buffer that reads next_obs from the row that follows, as Stable-Baselines3's with optimize_memory_usage."""
    following = [*cartpole[1:], cartpole[0]]
    rows = [(*row[:5], after[0]) for row, after in zip(cartpole, following, strict=True)]
    found = only(source(CARTPOLE, [rows[:-1]]))
    assert found.words.startswith("the final observations are lost: ")
    assert found.count == sum(row[3] for row in rows[:-1])
    assert found.first == Place(0, next(t for t, row in enumerate(rows) if row[3]))


def test_few_ends_are_no_proof(cartpole):
    """Three episodes' ends that look lost: said as a warning, with its condition."""
    ends = [t for t, row in enumerate(cartpole) if row[3]][:4]
    rows = [(*row[:5], after[0]) for row, after in itertools.pairwise(cartpole)][: ends[3]]
    found = only(source(CARTPOLE, [rows]))
    assert (found.severity, found.count) == ("warning", 3)


@pytest.mark.parametrize("ends", ["terminated", "truncated"])
def test_episodes_that_end_where_they_begin(ends):
    """A round of ten places, and the last step leads home: the same bytes and a jump, yet nothing is lost."""
    rows = []
    for t in range(400):
        last = t % 10 == 9
        here, there = np.float32([t % 10]), np.float32([(t + 1) % 10])
        rows.append((here, np.int64(0), float(t), last and ends == "terminated", last and ends == "truncated", there))
    report = check(source(relive.Schema(relive.Field("float32", (1,)), relive.Field("int64")), [rows]))
    assert report.passes, str(report)
    assert next(f.words for f in report.warnings if f.rule == "ends").startswith(f"next_obs of 39 of 39 {ends} ")


def test_an_environment_that_goes_on_after_an_end():
    """A life lost is often recorded as terminated, and the next observation follows: right, and never an error."""
    rng = np.random.default_rng(0)
    places = np.cumsum(rng.normal(size=(2001, 3)), axis=0).astype(np.float32)
    rows = [(places[t], np.int64(t % 2), 1.0, rng.random() < 0.05, False, places[t + 1]) for t in range(2000)]
    schema = relive.Schema(relive.Field("float32", (3,)), relive.Field("int64"))
    found = only(source(schema, [rows]))
    assert found.severity == "warning"
    assert "a life lost" in found.words


def walk(rewards: list[float], jumps: list[float]) -> list[Row]:
    """200 episodes of 10 steps in one place that goes on for ever; by turns of the step, its reward and its size."""
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    place = np.zeros(3, np.float32)
    for t in range(2000):
        step = t % 10
        following = (place + jumps[step] * rng.normal(size=3)).astype(np.float32)
        ends = step == 9 - (t // 10) % 2  # of two lengths: no time limit
        rows.append((place, np.int64(t % 2), rewards[step], ends, False, following))
        place = following
    return rows


WALK = relive.Schema(relive.Field("float32", (3,)), relive.Field("int64"))


def test_an_environment_that_goes_on_and_pays_nothing_after_an_end():
    """Reward 0 after each end is no proof of a reset where nothing jumps."""
    found = only(source(WALK, [walk([0.0] + [1.0] * 8 + [0.0], [1.0] * 10)]))
    assert found.severity == "warning"


def test_lost_final_observations_where_all_rewards_are_zero_and_starts_are_lively():
    """The larger jump is the reset: before the end here, not after it."""
    found = only(source(WALK, [walk([0.0] * 10, [9.0] + [1.0] * 7 + [90.0, 90.0])]))
    assert found.words.startswith("the final observations are lost: ")


def test_one_state_and_no_other():
    """Nothing is lost where there is but one observation."""
    place = np.ones(2, np.float32)
    rows = [(place, np.int64(t), float(t), t % 20 in (7, 19), False, place) for t in range(2000)]
    assert not check(source(relive.Schema(relive.Field("float32", (2,)), relive.Field("int64")), [rows])).findings


def test_one_start_and_one_path_from_it():
    """Lost final observations of a fixed policy: what follows an end leads to one state, but from the start itself."""
    path = [0, 4, 8, 9, 13, 5]
    rows = []
    for t in range(600):
        here = t % 5
        following = 0 if here == 4 else path[here + 1]
        rows.append((np.int64(path[here]), np.int64(1), 0.0, False, here == 4, np.int64(following)))
    found = only(source(relive.Schema(relive.Field("int64"), relive.Field("int64")), [rows]))
    assert (found.rule, found.severity) == ("ends", "warning")


def test_bandits_have_no_final_observations():
    """Episodes of one step, whose next_obs is the next context: it is never used."""
    rng = np.random.default_rng(0)
    contexts = rng.normal(size=(501, 3)).astype(np.float32)
    rows = [(contexts[t], np.int64(t % 3), 0.0, True, False, contexts[t + 1]) for t in range(500)]
    schema = relive.Schema(relive.Field("float32", (3,)), relive.Field("int64"))
    assert not check(source(schema, [rows])).findings


def test_truncations_in_a_world_without_distances():
    """Final observations lost or an end at home: numbers of states do not tell, so a warning with its condition."""
    rng = np.random.default_rng(0)
    rows = []
    state = 0
    for t in range(2000):
        following = int(rng.integers(1, 500))
        truncated = t % 20 == 19
        rows.append((np.int64(state), np.int64(0), 0.5, False, truncated, np.int64(0 if truncated else following)))
        state = 0 if truncated else following
    found = only(source(relive.Schema(relive.Field("int64"), relive.Field("int64")), [rows]))
    assert (found.rule, found.severity, found.count) == ("ends", "warning", 99)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", [0, 2, 5])
def test_what_is_not_finite(cartpole, value, field):
    def spoil(row):
        row[field][...] = value

    report = check(source(CARTPOLE, [cartpole, edited(cartpole, spoil, 1237, 1500)]))
    (found,) = report.errors
    assert (found.rule, found.first) == ("finite", Place(1, 1237))
    assert found.count == (2 if field == 2 else 8)
    name, word = {0: "obs", 2: "reward", 5: "next_obs"}[field], "NaN" if np.isnan(value) else "infinite"
    assert found.words.startswith(f"{name}: {found.count} values are {word}.")


def test_actions_that_are_not_finite(pendulum):
    def spoil(row):
        row[1][0] = np.nan

    found = only(source(PENDULUM, [edited(pendulum, spoil, 7)]))
    assert found.words.startswith("action: 1 value is NaN.")


def test_rewards_too_large_for_float32(cartpole):
    one = block(cartpole)
    reward = one.reward.astype(np.float64)
    reward[5] = 1e39
    found = only(source(CARTPOLE, [cartpole], read=lambda: iter([replace(one, reward=reward)])))
    assert (found.rule, found.first) == ("finite", Place(0, 5))


@pytest.mark.parametrize("action", [-1, 2])
def test_actions_outside_the_space(cartpole, action):
    def spoil(row):
        row[1][...] = action

    found = only(source(CARTPOLE, [edited(cartpole, spoil, 11, 13)]))
    assert (found.rule, found.severity, found.count, found.first) == ("bounds", "error", 2, Place(0, 11))
    assert found.words.startswith("action: 2 values are outside [0, 1]")


@pytest.mark.parametrize("value", [2, -1, 0.5, np.nan])
def test_flags_that_are_no_booleans(cartpole, value):
    one = block(cartpole)
    flags = np.zeros(len(cartpole))
    flags[9] = value
    found = only(source(CARTPOLE, [cartpole], read=_blocks(replace(one, truncated=flags))))
    assert (found.rule, found.severity, found.first) == ("flags", "error", Place(0, 9))


def test_flags_of_numbers_are_fine(cartpole):
    one = block(cartpole)
    numbers = replace(one, terminated=one.terminated.astype(np.float32), truncated=one.truncated.astype(np.uint8))
    assert not check(source(CARTPOLE, [cartpole], read=_blocks(numbers))).findings


def test_gaps_without_a_flag(cartpole):
    """Steps that are missing: legal, so a warning."""
    rows = [row for t, row in enumerate(cartpole) if t not in (500, 501, 900)]
    found = only(source(CARTPOLE, [rows]))
    assert (found.rule, found.severity, found.count, found.first) == ("continuity", "warning", 2, Place(0, 499))


def test_environments_in_turn_in_one_lane(cartpole):
    """Four environments pushed into a buffer that knows of one."""
    others = [record(gymnasium.make("CartPole-v1"), 500, seed) for seed in range(4)]
    found = only(source(CARTPOLE, [[row for step in zip(*others, strict=True) for row in step]]))
    assert found.severity == "warning"
    assert "lane 0 holds 4 environments in turn" in found.words


def test_environments_in_turn_for_a_while_only(cartpole):
    """A rule that holds for the first transitions is none."""
    others = [record(gymnasium.make("CartPole-v1"), 100, seed) for seed in range(1, 5)]
    order = np.random.default_rng(0).permutation(len(cartpole))
    rows = [row for step in zip(*others, strict=True) for row in step] + [cartpole[t] for t in order]
    assert "in turn" not in only(source(CARTPOLE, [rows])).words


def test_a_few_wrong_next_observations(cartpole):
    """Twelve of two thousand are gaps, and no proof of how the loop stores."""
    places = [t for t in range(100, 1999) if not cartpole[t][3]][::150][:12]
    rows = [(*row[:5], row[0]) if t in places else row for t, row in enumerate(cartpole)]
    found = only(source(CARTPOLE, [rows]))
    assert (found.rule, found.severity, found.count) == ("continuity", "warning", len(places))
    assert len(places) > 10


def test_transitions_in_any_order_are_a_warning(cartpole):
    """Legal: every transition is its own episode."""
    order = np.random.default_rng(0).permutation(len(cartpole))
    found = only(source(CARTPOLE, [[cartpole[t] for t in order]]))
    assert (found.rule, found.severity) == ("continuity", "warning")
    assert "in turn" not in found.words


def test_an_environment_that_overwrites_its_array(cartpole):
    """Two names for one array: by the time it is stored obs is next_obs."""
    rows = [(row[5], *row[1:]) for row in cartpole]
    found = only(source(CARTPOLE, [rows]))
    assert (found.rule, found.severity) == ("continuity", "error")
    assert found.words.startswith("next_obs is obs itself")


@pytest.mark.parametrize(("by", "word"), [(1, "after"), (-1, "before")])
def test_flags_one_transition_off(cartpole, by, word):
    """`done` of the step before, as loops have it that store at the top of the next iteration."""
    flags = np.roll([row[3] for row in cartpole], by)
    rows = [(*row[:3], bool(flag), *row[4:]) for row, flag in zip(cartpole, flags, strict=True)]
    found = only(source(CARTPOLE, [rows[1:-1]]))
    assert (found.rule, found.severity) == ("continuity", "error")
    assert f"on the transition {word} the one that ended" in found.words


def test_flags_off_in_a_part_only(cartpole):
    """What holds for some is no rule: the gaps are counted, nothing is said of the flags."""
    right = record(gymnasium.make("CartPole-v1"), 4000, seed=1)
    flags = np.roll([row[3] for row in cartpole], 1)
    rows = [(*row[:3], bool(flag), *row[4:]) for row, flag in zip(cartpole, flags, strict=True)]
    found = only(source(CARTPOLE, [right, rows[1:-1]]))
    assert (found.rule, found.severity) == ("continuity", "warning")


def test_a_transition_stored_twice_in_a_row(cartpole):
    rows = [row for t, row in enumerate(cartpole) for _ in range(2 if t == 700 else 1)]
    assert not cartpole[700][3], "of an end it would not be certain"
    found = only(source(CARTPOLE, [rows]))
    assert (found.rule, found.severity, found.count, found.first) == ("continuity", "error", 1, Place(0, 700))


def test_neighbours_that_are_alike_by_chance(cartpole):
    """In any order two equal transitions may meet; where states are few, at any gap."""
    order = np.random.default_rng(0).permutation(len(cartpole))
    report = check(source(CARTPOLE, [[cartpole[t] for t in (*order, order[-1])]]))
    assert report.passes, str(report)
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(100):
        states = rng.integers(0, 3, 41).astype(np.float64)
        rows += [(states[t], np.int64(0), 0.0, False, False, states[t + 1]) for t in range(40)]
    schema = relive.Schema(relive.Field("float64"), relive.Field("int64"))
    report = check(source(schema, [rows]))
    assert {found.rule for found in report.findings} == {"continuity", "repeats"}
    assert report.passes, str(report)


def test_an_environment_at_rest():
    """Nothing moves for a while, the same action again and again: that is what happened."""
    places = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32).repeat(5, axis=0)
    rows = [(places[t], np.int64(0), 0.0, False, False, places[t + 1]) for t in range(1499)]
    schema = relive.Schema(relive.Field("float32", (2,)), relive.Field("int64"))
    found = only(source(schema, [rows]))
    assert (found.rule, found.severity) == ("repeats", "warning")


def test_every_transition_stored_twice(cartpole):
    rows = [row for row in cartpole for _ in range(2)]
    found = only(source(CARTPOLE, [rows]))
    assert (found.rule, found.severity) == ("continuity", "error")
    assert found.count == sum(not row[3] for row in cartpole)


def test_a_part_stored_twice(cartpole):
    """A file appended to itself: legal where the environment is deterministic, so a warning with the share."""
    ends = [t + 1 for t, row in enumerate(cartpole) if row[3]]
    found = only(source(CARTPOLE, [cartpole[: ends[-1]] + cartpole[: ends[9]]]))
    assert (found.rule, found.severity, found.count) == ("repeats", "warning", ends[9])
    assert found.first == Place(0, ends[-1])


def test_one_flag_stored_as_both(cartpole):
    rows = [(*row[:3], row[3], row[3], row[5]) for row in cartpole]
    found = only(source(CARTPOLE, [rows]))
    assert (found.rule, found.severity) == ("flags", "warning")
    assert "one `done` seems to be stored as both" in found.words


def test_both_flags_where_every_episode_is_as_long(pendulum):
    """A task that ends when its time is up may well say both."""
    rows = [(*row[:3], row[4], row[4], row[5]) for row in pendulum]
    assert not check(source(PENDULUM, [rows])).findings


def test_a_fixed_horizon_where_truncation_is_known(pendulum):
    """Whoever records truncations knows what a time limit is."""
    rows = [(*row[:3], row[4] and t > 50, row[4] and t < 50, row[5]) for t, row in enumerate(pendulum)]
    assert not check(source(PENDULUM, [rows])).findings


def test_the_first_episode_of_a_ring_has_lost_its_beginning(pendulum):
    """It says nothing about lengths."""
    for kind, lengths in (("buffer", "50 to 50"), ("npz", "20 to 50")):
        report = check(source(PENDULUM, [pendulum[30:]], format=kind))
        assert f"{lengths} steps long" in str(report)


def test_a_time_limit_recorded_as_termination(pendulum):
    rows = [(*row[:3], row[4], False, row[5]) for row in pendulum]
    found = only(source(PENDULUM, [rows]))
    assert (found.rule, found.severity, found.count) == ("flags", "warning", 60)
    assert "60 of 60 episodes end as terminated after 50 steps exactly" in found.words


def test_a_time_limit_among_terminations():
    """Some episodes fall, the others reach the limit: `done` alone was kept."""
    rows = record(gymnasium.make("CartPole-v1", max_episode_steps=20), 4000)
    assert {row[3] for row in rows} == {row[4] for row in rows} == {True, False}
    done = [(*row[:3], row[3] or row[4], False, row[5]) for row in rows]
    assert not check(source(CARTPOLE, [rows])).findings
    found = only(source(CARTPOLE, [done]))
    assert "end as terminated after 20 steps exactly" in found.words


def of_lengths(lengths: list[int]) -> Source:
    """Episodes of these lengths, terminated."""
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for length in lengths:
        places = rng.normal(size=(length + 1, 3)).astype(np.float32)
        rows += [(places[t], np.int64(0), 1.0, t == length - 1, False, places[t + 1]) for t in range(length)]
    return source(WALK, [rows])


def test_few_episodes_that_reach_a_limit():
    """Five of a hundred, and none comes near."""
    found = only(of_lengths([*range(5, 55), 80, 80, 80, *range(5, 55), 80, 80]))
    assert (found.rule, found.severity, found.count) == ("flags", "warning", 5)


@pytest.mark.parametrize("lengths", [[*range(95, 101)] * 10, [60, 60, 60, 60, 30, 20], [9, 12, 15] * 20, [80] * 4])
def test_lengths_without_a_limit(lengths):
    """Many are as long as the longest by chance, or the longest is short, or too few are there to say."""
    assert not check(of_lengths(lengths)).findings


@pytest.mark.parametrize("name", ["obs", "action", "next_obs", "terminated", "truncated"])
def test_lengths_that_differ(cartpole, name):
    first, second, third = (block(cartpole[start : start + 100]) for start in (0, 100, 200))
    short = replace(second, **{name: getattr(second, name)[:-1]})
    found = only(source(CARTPOLE, [cartpole[:300]], read=_blocks(first, short, third)))
    assert (found.rule, found.severity, found.first) == ("shapes", "error", Place(0, 100))
    assert found.words.startswith(f"{name}: expected ")


def test_what_comes_after_a_block_that_was_passed_over(cartpole):
    """Places go on counting, and lengths begin anew."""

    def spoil(row):
        row[5][...] = np.nan

    ends = [t for t, row in enumerate(cartpole) if row[3]]
    cut, after = ends[3] - 1, ends[3] + 1  # the block passed over has the end of an episode in it
    rows = edited(cartpole, spoil, ends[8])
    blocks = [block(rows[:cut]), replace(block(rows[cut:after]), reward=np.zeros(9)), block(rows[after:])]
    report = check(source(CARTPOLE, [cartpole], num_transitions=len(cartpole) + 7, read=_blocks(*blocks)))
    (found,) = (found for found in report.findings if found.rule == "finite")
    assert found.first == Place(0, ends[8] + 7)
    lengths = np.diff([-1, *ends])
    assert f", {lengths.min()} to {lengths.max()} steps long" in str(report)


def test_a_reward_that_is_no_array(cartpole):
    report = check(source(CARTPOLE, [cartpole], read=_blocks(replace(block(cartpole), reward=np.float32(1)))))
    assert [found.rule for found in report.findings] == ["reading", "shapes"]


def test_shapes_and_fields_that_differ(cartpole):
    one = block(cartpole)
    for changed, words in [
        (replace(one, obs=one.obs[:, :3]), "obs: expected float32 (2000, 4), got float32 (2000, 3)."),
        (replace(one, action=one.action.astype(np.float32)), "action: expected int64, got float32."),
        (replace(one, next_obs={"a": one.next_obs}), "next_obs: expected"),
        (replace(one, extras={"mu": one.reward}), "extras: expected"),
    ]:
        report = check(source(CARTPOLE, [cartpole], read=_blocks(changed)))
        assert report.findings[0].rule == "shapes"
        assert report.findings[0].words.startswith(words), report.findings[0].words


def test_fewer_transitions_than_the_file_says(cartpole):
    found = only(source(CARTPOLE, [cartpole], num_transitions=2001))
    assert (found.rule, found.severity) == ("reading", "error")


def test_reading_that_breaks_off(cartpole):
    """What was read until then is still looked at."""

    def spoil(row):
        row[0][...] = np.nan

    def read():
        yield block(edited(cartpole, spoil, 3))
        raise relive.SchemaError("file.npz: expected more.")

    report = check(source(CARTPOLE, [cartpole], read=read))
    assert [found.rule for found in report.errors] == ["reading", "finite"]
    assert "after 2,000 transitions: file.npz: expected more." in report.errors[0].words


def test_a_damaged_npz_is_blamed_for_nothing_but_its_damage(cartpole, tmp_path, monkeypatch):
    """Bug: an action out of its space, found in the block that was damaged; seven checks "ok" that saw nothing."""
    monkeypatch.setattr("relive.interop.columns.rows_at_once", lambda schema: 500)
    path = tmp_path / "a.npz"
    relive.interop.write(source(CARTPOLE, [cartpole]), path)
    whole = path.read_bytes()
    name = whole.index(b"action.npy")
    for place in (
        name + 5_000,
        name + 8 * len(cartpole),
    ):  # in a block that is given before the checksum is, in the last
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        report = check(relive.interop.open(path))
        assert [found.rule for found in report.errors] == ["reading"]
        assert "action: expected" in report.errors[0].words
        assert [one.rule for one in report.checks] == ["reading"]


def test_ends_without_a_final_observation_are_none_to_look_at(cartpole):
    """Bug: "0 ends of episodes that are followed by another", of a file with twenty episodes."""
    rows = [(*row[:5], row[0] if row[3] else row[5]) for row in cartpole]
    report = check(source(CARTPOLE, [rows]))
    assert "0 ends" not in str(report)


def _blocks(*blocks: Block) -> Callable[[], Any]:
    return lambda: iter(blocks)

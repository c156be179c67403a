"""Stable-Baselines3's replay buffers, by classes that stand for its own: it need not be installed."""

from __future__ import annotations

import os
import pickle
import sys
import types

import numpy as np
import pytest
from gymnasium import spaces
from sample_sources import everything

import relive
from relive import interop

Field = relive.Field


class ReplayBuffer:
    """As in Stable-Baselines3 2.9.2: the same attributes, the same `add`."""

    def __init__(self, size, obs_space, action_space, n_envs=1, optimize=False, timeouts=True):
        self.buffer_size, self.n_envs = max(size // n_envs, 1), n_envs
        self.observation_space, self.action_space = obs_space, action_space
        self.pos, self.full, self.optimize_memory_usage = 0, False, optimize
        self.handle_timeout_termination = timeouts
        lead = (self.buffer_size, n_envs)
        self.observations = self.make(obs_space, lead)
        if not optimize:
            self.next_observations = self.make(obs_space, lead)
        action_shape = {spaces.Discrete: (1,)}.get(type(action_space), action_space.shape)
        dtype = np.float32 if action_space.dtype == np.float64 else action_space.dtype
        self.actions = np.zeros((*lead, int(np.prod(action_shape))), dtype)
        self.rewards, self.dones, self.timeouts = (np.zeros(lead, np.float32) for _ in range(3))

    def make(self, space, lead):
        if isinstance(space, spaces.Dict):
            return {key: self.make(part, lead) for key, part in space.spaces.items()}
        return np.zeros((*lead, *((1,) if isinstance(space, spaces.Discrete) else space.shape)), space.dtype)

    def put(self, arrays, at, values):
        for name in arrays if isinstance(arrays, dict) else [None]:
            target, value = (arrays, values) if name is None else (arrays[name], values[name])
            target[at] = np.reshape(value, target[at].shape)

    def add(self, obs, next_obs, action, reward, done, infos):
        self.put(self.observations, self.pos, obs)
        if self.optimize_memory_usage:
            self.put(self.observations, (self.pos + 1) % self.buffer_size, next_obs)
        else:
            self.put(self.next_observations, self.pos, next_obs)
        self.actions[self.pos] = np.reshape(action, self.actions[self.pos].shape)
        self.rewards[self.pos], self.dones[self.pos] = reward, done
        if self.handle_timeout_termination:
            self.timeouts[self.pos] = [info.get("TimeLimit.truncated", False) for info in infos]
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full, self.pos = True, 0

    def size(self):
        return self.buffer_size if self.full else self.pos


ReplayBuffer.__module__ = "stable_baselines3.common.buffers"


@pytest.fixture(autouse=True)
def package(monkeypatch):
    """The class can be found by those who pickle it."""
    for name in ("stable_baselines3", "stable_baselines3.common", "stable_baselines3.common.buffers"):
        module = types.ModuleType(name)
        module.ReplayBuffer = ReplayBuffer
        monkeypatch.setitem(sys.modules, name, module)


BOX = spaces.Box(-1, 1, (2,), np.float32)


def pickled(buffer, folder):
    path = folder / "buffer.pkl"
    path.write_bytes(pickle.dumps(buffer, pickle.HIGHEST_PROTOCOL))
    return path


def opened(buffer, folder):
    return interop.open(pickled(buffer, folder), trust_pickle=True)


def filled(count, lanes=1, size=8, ends=(), cuts=(), **options):
    """Observation t of lane e is (t, e), its next one (t + 0.5, e); where optimized, the next one's first."""
    buffer = ReplayBuffer(size * lanes, BOX, spaces.Discrete(3), lanes, **options)
    lane = np.arange(lanes)
    half = 1.0 if options.get("optimize") else 0.5
    for t in range(count):
        obs, following = (np.stack([np.full(lanes, t + later), lane], 1) for later in (0, half))
        done = np.full(lanes, t in ends or t in cuts)
        buffer.add(obs, following, lane % 3, lane + 10 * t, done, [{"TimeLimit.truncated": t in cuts}] * lanes)
    return buffer


@pytest.mark.parametrize("count", [0, 3, 8, 13])
def test_order_of_the_ring_and_lanes(count, tmp_path):
    source = opened(filled(count, lanes=2, ends=[4], cuts=[2, 9]), tmp_path)
    live = range(max(0, count - 8), count)
    assert source.schema == relive.Schema(Field("float32", (2,)), Field("int64", (), 0, 2), lanes=2)
    assert (source.num_transitions, source.counts, source.notes) == (2 * len(live), (len(live),) * 2, ())
    for lane, block in enumerate(source.blocks()):
        assert block.lane == lane
        assert block.obs.tolist() == [[t, lane] for t in live]
        assert block.next_obs.tolist() == [[t + 0.5, lane] for t in live]
        assert block.reward.tolist() == [lane + 10 * t for t in live]
        assert block.terminated.tolist() == [t == 4 for t in live]
        assert block.truncated.tolist() == [t in (2, 9) for t in live]
    assert len(interop.read(tmp_path / "buffer.pkl", trust_pickle=True)) == 2 * len(live)


@pytest.mark.parametrize("count", [3, 8, 13])
def test_shared_observations(count, tmp_path):
    """The slot after the newest holds its next observation, in the place of the oldest one's."""
    source = opened(filled(count, ends=[4], optimize=True, timeouts=False), tmp_path)
    live = range(max(0, count - 7), count) if count >= 8 else range(count)
    (block,) = source.blocks()
    assert block.obs[:, 0].tolist() == list(live)
    assert block.next_obs[:, 0].tolist() == [t + 1 for t in live]
    assert np.flatnonzero(block.terminated).tolist() == [place for place, t in enumerate(live) if t == 4]
    said = " ".join(source.notes)
    assert ("oldest transition" in said) == (count >= 8)
    assert "final observations of episodes were overwritten" in said
    assert "every end is taken for a termination" in said


def test_the_other_byte_order(tmp_path):
    """Arrays of a machine of the other byte order could be read, but not written again."""
    buffer = filled(5, ends=[4])
    for name in ("observations", "next_observations", "actions", "rewards", "dones"):
        array = getattr(buffer, name)
        setattr(buffer, name, array.astype(array.dtype.newbyteorder()))
    source = opened(buffer, tmp_path)
    found = everything(source)
    assert found["obs"].dtype == np.float32
    assert found["obs"][:, 0].tolist() == [0, 1, 2, 3, 4]
    interop.write(source, tmp_path / "x.npz")
    assert everything(interop.open(tmp_path / "x.npz"))["reward"].tolist() == [0, 10, 20, 30, 40]


def test_dicts_and_spaces(tmp_path):
    space = spaces.Dict({"d": spaces.Discrete(4, start=1), "i": spaces.Box(0, 255, (3, 2, 2), np.uint8)})
    buffer = ReplayBuffer(4, space, spaces.Box(-1, 1, (2, 2), np.float64))
    first = {"d": np.array([3]), "i": np.full((1, 3, 2, 2), 7, np.uint8)}
    buffer.add(first, first, np.arange(4.0), 1.0, True, [{}])
    source = opened(buffer, tmp_path)
    assert source.schema.obs == {"d": Field("int64", (), 1, 4), "i": Field("uint8", (3, 2, 2))}
    assert source.schema.action == Field("float32", (2, 2))
    (block,) = source.blocks()
    assert block.obs["d"].tolist() == [3]
    assert block.action.tolist() == [[[0, 1], [2, 3]]]
    assert "scale them to [-1, 1]" in source.notes[0]


def test_pickles_need_trust(tmp_path):
    path = pickled(filled(3), tmp_path)
    for call in (interop.open, interop.read):
        with pytest.raises(relive.ConfigError, match=r"buffer.pkl: expected a format without code, got a pickle"):
            call(path)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("bomb", [Bomb(), [Bomb()], {"a": np.array([Bomb()])}])
def test_no_code_of_a_pickle_is_run(bomb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    buffer = filled(3)
    buffer.extra = bomb
    with pytest.raises(relive.ReplayError, match=r"got posix.mkdir. Nothing of it was run"):
        opened(buffer, tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_functions_cannot_be_changed(tmp_path):
    """A pickle may set attributes of what it names, such as the defaults of a function."""
    module, name = b"numpy._core.numeric", b"_frombuffer"
    function = b"\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(name)]) + name + b"\x93"
    state = b"N}\x8c\x0c__defaults__)s\x86"  # (None, {"__defaults__": ()})
    (tmp_path / "buffer.pkl").write_bytes(b"\x80\x04" + function + state + b"b.")
    before = np._core.numeric._frombuffer.__defaults__
    with pytest.raises(relive.ReplayError, match="a pickle that changes a function"):
        interop.open(tmp_path / "buffer.pkl", format="sb3", trust_pickle=True)
    assert np._core.numeric._frombuffer.__defaults__ == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps([1, 2]), "expected a replay buffer of Stable-Baselines3, got list"),
        (pickle.dumps(BOX), "expected a replay buffer of Stable-Baselines3, got gymnasium.spaces.box.Box"),
        (pickle.dumps(BOX)[:-9], "expected a pickle, got what cannot be read"),
        (b"\x80\x04rubbish", "expected a pickle, got what cannot be read"),
    ],
)
def test_other_pickles_are_refused(content, words, tmp_path):
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(relive.ReplayError, match=f"x.pkl: {words}"):
        interop.open(tmp_path / "x.pkl", trust_pickle=True)


def test_a_buffer_whose_arrays_are_missing(tmp_path):
    buffer = filled(3)
    del buffer.rewards
    with pytest.raises(relive.ReplayError, match=r"buffer.pkl: .* without 'rewards'"):
        opened(buffer, tmp_path)
    buffer.rewards = np.zeros((2, 1))
    with pytest.raises(relive.ReplayError, match=r"buffer.pkl: rewards: expected an array \(8, 1"):
        opened(buffer, tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("pos", 9, r"pos: expected an integer in \[0, 8\], got 9"),
        ("pos", -3, "pos: expected an integer"),
        ("pos", 2.5, r"pos: expected an integer in \[0, 8\], got 2.5"),
        ("pos", np.zeros(2), "pos: expected an integer"),
        ("n_envs", 0, "n_envs: expected an integer at least 1, got 0"),
        ("buffer_size", 10**15, "rewards: expected an array"),
        ("full", "yes", "full: expected True or False, got 'yes'"),
        ("optimize_memory_usage", np.zeros(2), "optimize_memory_usage: expected True or False"),
        ("handle_timeout_termination", np.zeros(2), "handle_timeout_termination: expected True or False"),
        ("timeouts", None, "timeouts: expected an array"),
    ],
)
def test_a_buffer_that_contradicts_itself(name, value, words, tmp_path):
    """Such states raised IndexError or ValueError, or gave rows that were never stored."""
    buffer = filled(3)
    setattr(buffer, name, value)
    with pytest.raises(relive.ReplayError, match=rf"buffer.pkl: {words}"):
        opened(buffer, tmp_path)


@pytest.mark.parametrize("name", ["dones", "timeouts"])
@pytest.mark.parametrize("value", [np.nan, 2.0, -1.0])
def test_numbers_that_are_no_flags(name, value, tmp_path):
    """They were taken for True."""
    buffer = filled(3)
    getattr(buffer, name)[1] = value
    with pytest.raises(relive.ReplayError, match=f"buffer.pkl: {name}: expected flags, 0 or 1, got {value}"):
        list(opened(buffer, tmp_path).blocks())


def test_a_pickle_that_asks_for_more_memory_than_there_is(tmp_path):
    """An array that no file of this size holds."""
    module, name = b"numpy", b"ndarray"
    array = b"\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(name)]) + name + b"\x93"
    shape = b"(" + b"J\xff\xff\xff\x7f" * 2 + b"t\x8c\x02u1\x86R."  # ((2^31 - 1, 2^31 - 1), "u1")
    (tmp_path / "buffer.pkl").write_bytes(b"\x80\x04" + array + shape)
    with pytest.raises(relive.ReplayError, match=r"buffer.pkl: expected a pickle that fits into memory"):
        interop.open(tmp_path / "buffer.pkl", trust_pickle=True)


class TestToSb3:
    def buffer(self, lanes=2, steps=5, **extras):
        schema = relive.Schema(Field("float32", (2,)), Field("int64", (), 0, 2), extras, lanes=lanes)
        buffer = relive.ReplayBuffer(4 * lanes, schema, view=relive.Transitions(3), seed=0)
        zeros = {name: np.zeros(lanes, np.float32) for name in extras}
        for t in range(steps):
            obs = np.full((lanes, 2), t, np.float32)
            terminated, truncated = np.full(lanes, t in (1, 3)), np.full(lanes, t in (2, 3))
            buffer.push(obs, np.full(lanes, 1), np.full(lanes, t), terminated, obs + 0.5, truncated=truncated, **zeros)
        return buffer

    def test_there_and_back(self, tmp_path):
        target = ReplayBuffer(12, BOX, spaces.Discrete(3), 2)
        lost = interop.to_sb3(self.buffer(), target)
        source = opened(target, tmp_path)
        (block, _) = source.blocks()
        assert source.counts == (4, 4)
        assert block.reward.tolist() == [1, 2, 3, 4]  # single steps, though the view sums three
        assert block.next_obs[:, 0].tolist() == [1.5, 2.5, 3.5, 4.5]
        assert block.terminated.tolist() == [True, False, True, False]
        assert block.truncated.tolist() == [False, True, False, False]
        assert "2 steps are terminated and truncated at once: stored as terminated" in lost

    def test_what_is_lost_is_named(self):
        target = ReplayBuffer(12, BOX, spaces.Discrete(3), 2, timeouts=False)
        words = " ".join(interop.to_sb3(self.buffer(logp=Field("float32")), target))
        assert "extra fields are left out: logp" in words
        assert "truncations are stored as terminations" in words

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"n_envs": 1}, "expected a target of n_envs=2"),
            ({"size": 6}, "expected room for 4 steps of 2 environments, got 3"),
            ({"optimize": True}, "expected optimize_memory_usage=False"),
            ({"obs_space": spaces.Box(-1, 1, (3,), np.float32)}, "obs: expected float32"),
            ({"obs_space": spaces.Box(-1, 1, (2,), np.float16)}, "obs: expected float16"),
            ({"obs_space": spaces.Dict({"a": BOX})}, "obs: expected what the target holds"),
        ],
    )
    def test_targets_that_do_not_fit(self, options, words):
        given = {"size": 12, "obs_space": BOX, "n_envs": 2} | options
        target = ReplayBuffer(given.pop("size"), given.pop("obs_space"), spaces.Discrete(3), **given)
        with pytest.raises(relive.ReplayError, match=words):
            interop.to_sb3(self.buffer(), target)
        assert target.size() == 0

    def test_lanes_of_different_lengths_give_their_newest(self, tmp_path):
        """As after resets that are stored nowhere: numbers of the lanes' transitions do not match either."""
        buffer = self.buffer(steps=2)
        zero = np.zeros(2, np.float32)
        for number in range(4):
            buffer.push(zero, 0, 10.0 + number, False, zero, lane=1)
        target = ReplayBuffer(12, BOX, spaces.Discrete(3), 2)
        assert any("the oldest 2 transitions of longer lanes are left out" in w for w in interop.to_sb3(buffer, target))
        assert [block.reward.tolist() for block in opened(target, tmp_path).blocks()] == [[0, 1], [12, 13]]


def test_a_file_goes_on_to_another_format(tmp_path):
    source = opened(filled(5), tmp_path)
    interop.write(source, tmp_path / "x.npz")
    assert (everything(interop.open(tmp_path / "x.npz"))["obs"] == everything(source)["obs"]).all()

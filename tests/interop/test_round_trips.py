"""What was written is what is read: every field of every transition, bit for bit, in the same lanes and order."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sample_sources import BOTH, BREAKS, GOES_ON, STEPS, TERMINATES, contents, rows_of, source_of

import relive
from model.kinds import GOAL, KINDS, Kind
from relive import interop
from relive.interop import blocks, minari

SUFFIXES = {"minari": "", "d4rl": ".hdf5", "parquet": ".parquet", "npz": ".npz"}
FORMATS = list(SUFFIXES)
NUMBERS = Kind(
    "numbers",
    relive.Field("float64", (2,)),
    (relive.Field("bool"), relive.Field("uint8", (2,)), relive.Field("float64"), relive.Field("int32", (1,))),
    {"switch": relive.Field("bool"), "wide": relive.Field("uint64")},
)
ALL_KINDS = {**KINDS, "goal": GOAL, "numbers": NUMBERS}
PROGRAM = st.tuples(st.sampled_from(sorted(ALL_KINDS)), st.integers(1, 3), STEPS, st.integers(1, 30))


def written(source: interop.Source, format: str, folder: str) -> tuple[Path, tuple[str, ...]]:
    path = Path(folder) / f"data{SUFFIXES[format]}"
    return path, interop.write(source, path)


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=40)
@given(PROGRAM, st.sampled_from(["float32", "float64"]))
@example(("vector", 1, [], 1), "float32")
@example(("dict", 3, [(1, BREAKS)], 1), "float64")
@example(("column", 2, [(0, GOES_ON)] * 9 + [(0, BOTH), (1, TERMINATES), (0, GOES_ON)], 2), "float32")
def test_every_transition_comes_back(format, program, reward):
    kind_name, lanes, steps, size = program
    kind = ALL_KINDS[kind_name]
    source = source_of(kind, rows_of(kind, lanes, steps, reward), size)
    with tempfile.TemporaryDirectory() as folder:
        path, _ = written(source, format, folder)
        back = interop.open(path)
        assert (back.format, back.path, back.notes) == (format, path, ())
        assert back.schema == source.schema
        assert (back.num_transitions, back.lanes, back.counts) == (source.num_transitions, lanes, source.counts)
        assert contents(back) == contents(source)
        assert contents(back) == contents(source)  # as often as one likes
        assert list(Path(folder).iterdir()) == [path]


@settings(max_examples=40)
@given(PROGRAM, st.permutations(FORMATS), st.sampled_from(["float32", "float64"]), st.sampled_from([2, 5, 10**6]))
@example(("numbers", 3, [(lane, BREAKS) for lane in (0, 2)] * 9, 4), FORMATS, "float64", 2)
def test_formats_in_turn(program, order, reward, rows):
    """From file to file, whatever the order, and however many transitions are read at a time."""
    kind_name, lanes, steps, size = program
    kind = ALL_KINDS[kind_name]
    first = source_of(kind, rows_of(kind, lanes, steps, reward), size)
    source = first
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_ROWS", rows)
        for format in order:
            path, _ = written(source, format, folder)
            source = interop.open(path)
            assert (source.schema, source.counts) == (first.schema, first.counts)
        assert contents(source) == contents(first)


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=15)
@given(PROGRAM)
@example(("frames", 3, [(lane, GOES_ON) for lane in (0, 1, 2)] * 4, 3))
@example(("frames", 2, [(0, GOES_ON), (1, GOES_ON), (0, GOES_ON)], 1))
def test_a_buffer_comes_back(format, program):
    """Also by way of a file: what a buffer holds is what the buffer read from the file holds."""
    kind_name, lanes, steps, _ = program
    kind = ALL_KINDS[kind_name]
    rows = rows_of(kind, lanes, steps, "float32")
    buffer = relive.ReplayBuffer(120, kind.schema(lanes), seed=0)
    for lane, mine in enumerate(rows):
        for row in mine:
            extras = row.pop("extras")
            buffer.push(**row, lane=lane, **extras)
    source = interop.of_buffer(buffer)
    with tempfile.TemporaryDirectory() as folder:
        path, _ = written(source, format, folder)
        again = interop.read(path, seed=0)
        assert len(again) == len(buffer)
        even = len(set(map(len, rows))) == 1
        assert again.lanes == (lanes if even else 1)
        if even:
            assert contents(interop.of_buffer(again)) == contents(source)
        else:
            flat = interop.of_buffer(again)
            rewards = sorted(np.concatenate([block.reward for block in flat.blocks()]).tolist())
            assert rewards == sorted(float(row["reward"]) for mine in rows for row in mine)


class TestUnevenLanes:
    """Lanes that become one must not go on with one another's episodes."""

    KIND = Kind("same", relive.Field("int64"), relive.Field("int64"))

    def test_equal_observations_of_two_lanes_are_no_episode(self, tmp_path):
        zero, row = np.int64(0), {"terminated": np.False_, "truncated": np.False_, "extras": {}}
        step = {"obs": zero, "action": zero, "reward": np.float32(1), "next_obs": zero, **row}
        interop.write(source_of(self.KIND, [[step] * 2, [step] * 3], 5), tmp_path / "data.npz")
        buffer = interop.read(tmp_path / "data.npz", view=relive.Transitions(n=9, gamma=1.0), seed=0)
        assert buffer.get(buffer.ids).reward.tolist() == [2, 1, 3, 2, 1]

    def test_a_capacity_that_is_given_holds_the_newest(self, tmp_path):
        rows = rows_of(KINDS["frames"], 1, [(0, GOES_ON)] * 9, "float32")
        interop.write(source_of(KINDS["frames"], rows, 4), tmp_path / "data.parquet")
        buffer = interop.read(tmp_path / "data.parquet", capacity=4, seed=0)
        assert np.allclose(buffer.get(buffer.ids).reward, [5 / 3, 6 / 3, 7 / 3, 8 / 3])


ODD = {
    "complex": relive.Field("complex64", (2,)),
    "bytes": relive.Field("S5"),
    "text": relive.Field("U3", (2,)),
    "date": relive.Field("M8[ms]"),
    "record": relive.Field(np.dtype([("x", "f4"), ("n", "i2", (2,))])),
    "long": relive.Field("longdouble", (2,)),
    "nothing": relive.Field("float32", (0, 3)),
    "big": relive.Field(">i4", (2,)),
    "half": relive.Field("float16", (2, 1, 2)),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ODD)
def test_odd_dtypes_come_back_or_are_refused(name, format, tmp_path):
    """A dtype that a format lacks must not come back as another one."""
    field = ODD[name]
    size = 6 * int(np.prod(field.shape)) * field.itemdtype.itemsize
    data = (np.arange(size) % 7 + 48).astype(np.uint8)
    if field.itemdtype.kind == "U":
        values = np.full((6, *field.shape), "aß")
    else:
        values = data.view(field.itemdtype).reshape(6, *field.shape) if size else np.zeros((6, 0, 3), np.float32)
    if field.itemdtype.kind == "U":
        values = values.astype(field.itemdtype)
    schema = relive.Schema(relive.Field("float32"), relive.Field("int64"), {"odd": field})
    zeros = np.zeros(6, np.float32)
    flags = np.zeros(6, np.bool_)
    block = interop.Block(zeros, np.zeros(6, np.int64), zeros, flags, flags, zeros, {"odd": values})
    source = interop.Source(schema, 6, 1, "test", None, (), lambda: iter([block]))
    path = tmp_path / f"data{SUFFIXES[format]}"
    if format in ("d4rl", "minari") and field.itemdtype.kind in "UMV":
        with pytest.raises(relive.SchemaError, match=r"odd: expected numbers, which HDF5 can hold, got"):
            interop.write(source, path)
        assert not list(tmp_path.iterdir())
    else:
        interop.write(source, path)
        assert interop.open(path).schema == schema
        assert contents(interop.open(path)) == contents(source)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("keys", [("a.b", "a"), ("a/b", "a"), ("..", "a"), ("", "a")])
def test_keys_that_a_format_cannot_tell_apart_are_refused(keys, format, tmp_path):
    """Two fields in one column would be one of them twice."""
    first, second = keys
    inner = relive.Field("float32")
    schema = relive.Schema({first: inner, second: {"b": inner}}, relive.Field("int64"))
    zeros, flags = np.zeros(2, np.float32), np.zeros(2, np.bool_)
    obs = {first: zeros, second: {"b": zeros + 1}}
    block = interop.Block(obs, np.zeros(2, np.int64), zeros, flags, flags, obs)
    source = interop.Source(schema, 2, 1, "test", None, (), lambda: iter([block]))
    path = tmp_path / f"data{SUFFIXES[format]}"
    try:
        interop.write(source, path)
    except relive.SchemaError:
        assert not list(tmp_path.iterdir())
    else:
        assert interop.open(path).schema == schema
        assert contents(interop.open(path)) == contents(source)


class TestWhatIsLost:
    """What a format has no place for is named."""

    def lost(self, format, tmp_path, kind="frames", lanes=1, steps=((0, TERMINATES),)):
        source = source_of(ALL_KINDS[kind], rows_of(ALL_KINDS[kind], lanes, steps, "float32"), 9)
        return written(source, format, str(tmp_path))[1]

    @pytest.mark.parametrize("format", FORMATS)
    def test_plain_episodes_lose_nothing(self, format, tmp_path):
        assert self.lost(format, tmp_path) == ()

    @pytest.mark.parametrize("format", ["parquet", "npz"])
    def test_ours_lose_nothing(self, format, tmp_path):
        assert self.lost(format, tmp_path, "dict", 3, [(1, BREAKS), (0, GOES_ON)]) == ()

    def test_minari(self, tmp_path):
        words = "\n".join(self.lost("minari", tmp_path, "vector", 3, [(0, BREAKS), (0, GOES_ON), (1, TERMINATES)]))
        assert "2 that were left without one" in words
        assert "no lanes" in words
        assert "infos" in words

    def test_d4rl(self, tmp_path):
        words = "\n".join(self.lost("d4rl", tmp_path, "dict", 2))
        assert "no lanes" in words
        assert "no dict or tuple spaces: obs and action" in words

    def test_priorities_are_named_by_the_source(self):
        buffer = relive.ReplayBuffer(4, KINDS["frames"].schema(), sampler=relive.Prioritized(), seed=0)
        assert interop.of_buffer(buffer).notes == ("priorities are no part of a dataset; they stay with the buffer",)


def test_an_episode_larger_than_memory_allows_is_written_in_pieces(tmp_path, monkeypatch):
    """Pieces of one episode, and an end that comes alone: the final observation must be the last one's."""
    monkeypatch.setattr(minari, "PENDING_BYTES", 60)
    steps = [(0, GOES_ON)] * 17 + [(0, TERMINATES)] + [(0, GOES_ON)] * 7 + [(0, BREAKS)] + [(0, GOES_ON)] * 4
    for size in (1, 3, 40):
        for name in ("vector", "frames"):
            source = source_of(KINDS[name], rows_of(KINDS[name], 1, steps, "float32"), size)
            path = tmp_path / f"{name}{size}"
            interop.write(source, path)
            assert contents(interop.open(path)) == contents(source)
            assert json.loads((path / "metadata.json").read_text())["total_episodes"] == 3


def test_of_buffer_reads_what_was_pushed_whatever_the_view():
    kind = KINDS["frames"]
    plain, staged = (
        relive.ReplayBuffer(8, kind.schema(), view=view, seed=0) for view in (None, relive.Transitions(3, 0.5, stack=2))
    )
    for buffer in (plain, staged):
        for row in rows_of(kind, 1, [(0, GOES_ON)] * 12, "float32")[0]:
            row.pop("extras")
            buffer.push(**row)
    assert contents(interop.of_buffer(staged)) == contents(interop.of_buffer(plain))
    assert interop.of_buffer(staged).num_transitions == 8


def test_a_buffer_without_a_schema_is_refused():
    with pytest.raises(relive.ConfigError, match="expected a buffer with a schema"):
        interop.of_buffer(relive.ReplayBuffer(8, seed=0))


def test_a_buffer_is_written_as_it_is(tmp_path):
    buffer = relive.ReplayBuffer(8, seed=0)
    for t in range(4):
        buffer.push(np.float32(t), t % 2, 1.0, t == 3, np.float32(t + 1))
    interop.write(buffer, tmp_path / "a.npz")
    assert contents(interop.open(tmp_path / "a.npz")) == contents(interop.of_buffer(buffer))


class TestSnapshots:
    def test_there_and_back(self, tmp_path):
        kind = KINDS["dict"]
        rows = rows_of(kind, 2, [(lane, GOES_ON) for lane in (0, 1)] * 6 + [(0, BOTH), (1, BREAKS)], "float32")
        source = source_of(kind, rows, 4)
        assert interop.write(source, tmp_path / "data.snapshot") == ()
        back = interop.open(tmp_path / "data.snapshot")
        assert (back.format, back.schema, back.notes) == ("snapshot", source.schema, ())
        assert contents(back) == contents(source)
        assert len(relive.load(tmp_path / "data.snapshot")) == 14

    def test_lanes_of_different_lengths_are_named(self, tmp_path):
        source = source_of(KINDS["frames"], rows_of(KINDS["frames"], 2, [(0, GOES_ON)] * 3, "float32"), 4)
        (words,) = interop.write(source, tmp_path / "data.snapshot")
        assert "2 lanes of different lengths" in words

    def test_one_of_code_that_we_do_not_have_is_read(self, tmp_path):
        """A dataset is the transitions; a reward function or sampler of the user's is not needed for them."""
        buffer = relive.ReplayBuffer(
            4,
            GOAL.schema(),
            view=relive.Hindsight("future", 4, lambda achieved_goal, desired_goal: achieved_goal[:, 0]),
            sampler=relive.Prioritized(),
            seed=0,
        )
        (row,) = rows_of(GOAL, 1, [(0, TERMINATES)], "float32")[0]
        buffer.push(**row.pop("extras"), **row)
        buffer.save(tmp_path / "s")
        source = interop.open(tmp_path / "s")
        assert contents(source) == contents(interop.of_buffer(buffer))
        assert source.notes == interop.of_buffer(buffer).notes

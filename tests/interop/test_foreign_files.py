"""Flat files of others: common names, and next observations where there are none."""

from __future__ import annotations

import zipfile

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_sources import as_source, everything, numbered

import relive
from relive import interop
from relive.interop import blocks, files

D4RL = {
    "obs": "observations",
    "action": "actions",
    "reward": "rewards",
    "terminated": "terminals",
    "truncated": "timeouts",
    "next_obs": "next_observations",
}


def save(folder, columns, format):
    path = folder / f"data.{format}"
    if format == "npz":
        np.savez(path, **columns)
    elif format == "hdf5":
        with h5py.File(path, "w") as file:
            for name, values in columns.items():
                file[name] = values
    else:
        pq.write_table(pa.table({name: arrow(values) for name, values in columns.items()}), path, row_group_size=4)
    return path


def arrow(values):
    """As pandas would: a list of any length for each row."""
    return pa.array(values.tolist() if values.ndim > 1 else values)


def named(columns, **names):
    return {names.get(name, name): values for name, values in columns.items()}


@pytest.mark.parametrize("format", ["npz", "hdf5", "parquet"])
@pytest.mark.parametrize(
    "names",
    [
        D4RL,
        {"next_obs": "next_observations", "obs": "observations", "terminated": "terminations"},
        {
            "obs": "states",
            "action": "actions",
            "reward": "rewards",
            "terminated": "terminal",
            "next_obs": "next_states",
        },
        {"obs": "obs", "action": "act", "reward": "rew", "next_obs": "obs2", "truncated": "timeout"},
    ],
)
def test_common_names(names, format, tmp_path):
    columns = numbered(9, ends_at=[2, 8], cut_at=[5])
    source = interop.open(save(tmp_path, named(columns, **names), format))
    assert source.notes == ()
    found = everything(source)
    for name, values in columns.items():
        if format == "parquet" and name in ("obs", "next_obs"):
            values = values.astype(np.float64)  # lists of Python's numbers
        assert found[name].dtype == values.dtype
        assert (found[name] == values).all(), name


def test_shapes_and_dtypes_that_scalars_come_in(tmp_path):
    columns = numbered(6, ends_at=[5])
    columns["reward"] = np.arange(6, dtype=np.int32)[:, None]
    columns["terminated"] = columns["terminated"].astype(np.float32)[:, None]
    found = everything(interop.open(save(tmp_path, columns, "npz")))
    assert found["reward"].dtype == np.float64
    assert found["reward"].tolist() == list(range(6))
    assert found["terminated"].tolist() == [False] * 5 + [True]


class TestDones:
    """A done is a termination only where no time-out says otherwise."""

    def test_with_time_outs(self, tmp_path):
        columns = named(numbered(6, ends_at=[2, 5], cut_at=[5]), terminated="dones", truncated="timeouts")
        source = interop.open(save(tmp_path, columns, "npz"))
        found = everything(source)
        assert np.flatnonzero(found["terminated"]).tolist() == [2]
        assert np.flatnonzero(found["truncated"]).tolist() == [5]
        assert source.notes == ("dones and timeouts: a done that is no time-out is a termination",)

    def test_alone(self, tmp_path):
        columns = named(numbered(6, ends_at=[2, 5]), terminated="done")
        del columns["truncated"]
        source = interop.open(save(tmp_path, columns, "npz"))
        assert np.flatnonzero(everything(source)["terminated"]).tolist() == [2, 5]
        assert source.notes == ("no truncated flag: every end is taken for a termination",)

    def test_other_numbers(self, tmp_path):
        columns = numbered(6)
        columns["terminated"] = np.full(6, 0.5)
        with pytest.raises(relive.ReplayError, match=r"data.npz: terminated: expected flags, 0 or 1"):
            everything(interop.open(save(tmp_path, columns, "npz")))


def naive(columns):
    """The rule in words: (row, next row or itself, truncated) of every row that is kept."""
    count = len(columns["reward"])
    episode = columns.get("episode", np.zeros(count))
    ended, known = [], []
    for row in range(count):
        last = row == count - 1 or episode[row + 1] != episode[row]
        ended.append(bool(columns["terminated"][row] or columns["truncated"][row] or last))
        known.append(not ended[row] or bool(columns["terminated"][row]))
    kept = []
    for row in range(count):
        if known[row]:
            before_a_gap = not ended[row] and not known[row + 1]
            following = row if columns["terminated"][row] else row + 1
            kept.append((row, following, bool(columns["truncated"][row]) or before_a_gap))
    return kept


@pytest.mark.parametrize("format", ["npz", "hdf5", "parquet"])
@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=14),
    st.integers(1, 5),
    st.booleans(),
)
def test_next_observations_of_the_row_that_follows(format, tmp_path_factory, rows, size, with_episodes):
    """No next observation may be that of another episode, and no transition may be made up."""
    flags = np.array(rows, np.bool_).reshape(-1, 3)
    columns = numbered(len(rows))
    del columns["next_obs"]
    columns["terminated"], columns["truncated"] = flags[:, 0], flags[:, 1] & (flags[:, 0] | flags[:, 2])
    if with_episodes:
        columns["episode"] = np.cumsum(flags[:, 2]).astype(np.int64)
    if format == "parquet" and not rows:
        return  # lists of no length
    path = save(tmp_path_factory.mktemp("data"), named(columns, terminated="terminals"), format)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_ROWS", size)
        source = interop.open(path)
        kept = naive(columns)
        assert source.num_transitions == len(kept)
        if kept:
            found = everything(source)
            assert found["obs"][:, 0].tolist() == [row for row, _, _ in kept]
            assert found["next_obs"][:, 0].tolist() == [following for _, following, _ in kept]
            assert found["truncated"].tolist() == [cut for _, _, cut in kept]
            assert found["terminated"].tolist() == [bool(columns["terminated"][row]) for row, _, _ in kept]
        left = len(rows) - len(kept)
        assert (f"{left} steps whose next observation is nowhere" in source.notes[0]) == (left > 0)


@pytest.mark.parametrize("format", ["npz", "parquet", "hdf5"])
@pytest.mark.parametrize("with_next", [True, False])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_lanes(format, with_next, size, tmp_path):
    """Rows of two environments in turn were once one lane, in which each step seemed to end an episode."""
    lane = np.array([7, 3, 7, 7, 3, 3, 7, 3, 7, 3], np.int64)
    columns = [numbered(5, ends_at=[2]), numbered(5, cut_at=[3])]
    columns[1] = {name: array + 100 if name in ("obs", "next_obs") else array for name, array in columns[1].items()}
    mixed = {name: np.zeros((10, *array.shape[1:]), array.dtype) for name, array in columns[0].items()}
    for value, part in zip((3, 7), columns, strict=True):
        for name, array in part.items():
            mixed[name][lane == value] = array
    if not with_next:
        del mixed["next_obs"]
    path = save(tmp_path, mixed | {"lane": lane}, format)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_ROWS", size)
        source = interop.open(path)
        assert source.lanes == source.schema.lanes == 2
        assert "lane says 3, 7: lanes are numbered from 0 in this order" in source.notes
        found = [[], []]
        for block in source.blocks():
            found[block.lane] += block.obs[:, 0].tolist()
            if not with_next:
                following = np.where(block.terminated, block.obs[:, 0], block.obs[:, 0] + 1)
                assert block.next_obs[:, 0].tolist() == following.tolist()
    # Without next observations: lane 0 loses its last row, lane 1 its time-out and its last row.
    expected = [list(range(5)), list(range(100, 105))] if with_next else [[0, 1, 2, 3], [100, 101, 102]]
    assert found == expected
    assert source.counts == tuple(map(len, expected))
    assert source.num_transitions == sum(source.counts)


def test_a_lane_that_is_no_whole_number_is_another_column(tmp_path):
    source = interop.open(save(tmp_path, numbered(3) | {"lane": np.zeros(3)}, "npz"))
    assert (source.lanes, source.notes) == (1, ("left out: lane (no name for a field)",))


def test_trees_and_infos(tmp_path):
    columns = named(numbered(4, ends_at=[3]), **D4RL)
    obs, following = columns.pop("observations"), columns.pop("next_observations")
    for name, values in (("observations", obs), ("next_observations", following)):
        columns |= {f"{name}/pose/x": values, f"{name}/image": values.astype(np.uint8), f"{name}/pose/b": values[:, 0]}
    columns |= {
        "infos/qpos": np.arange(8.0).reshape(4, 2),
        "infos/action/deep": np.arange(4),
        "metadata/n": np.arange(2),
    }
    source = interop.open(save(tmp_path, columns, "hdf5"))
    (block,) = source.blocks()
    assert (block.obs["pose"]["x"] == obs).all()
    assert (block.next_obs["pose"]["b"] == following[:, 0]).all()
    assert (block.extras["qpos"] == columns["infos/qpos"]).all()
    (note,) = source.notes
    assert note.startswith("left out: ")
    assert "infos/action/deep" in note
    assert "metadata/n (2 rows)" in note


def test_only_integers_that_are_whole_can_be_pushed_but_all_can_be_read(tmp_path):
    """The source gives what is wrong as it is; the buffer refuses it, and says in which file."""
    columns = numbered(4)
    about = relive.Schema(relive.Field("float32", (2,)), relive.Field("int64", (), 0, 1))
    block = interop.Block(**columns)
    source = interop.Source(about, 4, 1, "test", None, (), lambda: iter([block]))
    interop.write(source, tmp_path / "data.npz")
    assert everything(interop.open(tmp_path / "data.npz"))["action"].tolist() == [0, 1, 2, 0]
    with pytest.raises(relive.SchemaError, match=r"data.npz: action: expected a value in \[0, 1\], got 2"):
        interop.read(tmp_path / "data.npz")


REFUSED = {
    "no reward": (lambda c: c.pop("reward"), "reward: expected a column of reward, rewards, rew, rews, got obs"),
    "no flag": (lambda c: c.pop("terminated"), "terminated: expected a column of terminated"),
    "a short action": (lambda c: c.update(action=c["action"][:2]), "action: expected 4 rows, as 5 of the 6 .* got 2"),
    "a short reward": (lambda c: c.update(reward=c["reward"][:2]), "reward: expected 4 rows, as 5 of the 6 .* got 2"),
    "rewards of two": (lambda c: c.update(reward=c["obs"]), "reward: expected one number a row"),
    "other next": (lambda c: c.update(next_obs=c["next_obs"][:, :1]), "next_obs: expected what obs is"),
    "objects": (lambda c: c.update(action=np.array([{}] * 4)), "action: expected a column .*Python objects; pickles"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_dataset_is_refused(name, tmp_path):
    change, words = REFUSED[name]
    columns = numbered(4)
    change(columns)
    with pytest.raises(relive.ReplayError, match=f"data.npz: {words}"):
        interop.open(save(tmp_path, columns, "npz"))


@pytest.mark.parametrize("format", ["npz", "parquet", "hdf5"])
def test_a_column_by_another_name_can_be_renamed_as_it_is_said(format, tmp_path):
    """Bug: a list of names that are known, and not a word on how to have one of them."""
    path = out = save(tmp_path, named(numbered(4), obs="s"), format)
    with pytest.raises(relive.ReplayError, match="obs: expected a column of") as refused:
        interop.open(path)
    code = str(refused.value).partition("by another NAME, rename it: ")[2].replace("NAME", "s")
    exec(code, {"np": np, "h5py": h5py, "pq": pq, "path": path, "out": out})
    assert interop.open(out).schema.obs.shape == (2,)


def test_steps_of_rlds_are_refused_with_the_remedy(tmp_path):
    """Read row by row, each episode would gain a step with an action that nobody took."""
    columns = named(numbered(4), obs="observation", terminated="is_terminal")
    del columns["truncated"], columns["next_obs"]
    columns |= {"is_first": np.arange(4) == 0, "is_last": np.arange(4) == 3, "discount": np.ones(4)}
    with pytest.raises(relive.ReplayError, match=r"terminated: expected a column .* These are steps of RLDS"):
        interop.open(save(tmp_path, columns, "npz"))


def test_minari_before_metadata_json(tmp_path):
    (tmp_path / "data").mkdir()
    with h5py.File(tmp_path / "data" / "main_data.hdf5", "w") as file:
        file.attrs["total_episodes"] = 1
        file.create_group("episode_0")
    for path in (tmp_path, tmp_path / "data", tmp_path / "data" / "main_data.hdf5"):
        with pytest.raises(relive.ReplayError, match=r"with\s+Minari 0\.5 or later"):
            interop.open(path)


def test_a_file_of_ours_that_was_edited_says_how_to_read_it(tmp_path):
    """A user who dropped rows was told of shapes, not that the file itself still told of the old ones."""
    interop.write(as_source(numbered(4)), tmp_path / "ours.npz")
    with np.load(tmp_path / "ours.npz") as file:
        arrays = {name: file[name] for name in file.files if name != "relive"}
        about = file["relive"]
    np.savez(tmp_path / "edited.npz", relive=about, **{name: array[:3] for name, array in arrays.items()})
    words = r"expected 4 rows, got 3\. The file's own array `relive` demands it; without that it is an ordinary file"
    with pytest.raises(relive.ReplayError, match=words):
        interop.open(tmp_path / "edited.npz")
    np.savez(tmp_path / "ordinary.npz", **{name: array[:3] for name, array in arrays.items()})
    assert interop.open(tmp_path / "ordinary.npz").num_transitions == 3


@pytest.mark.parametrize("members", [["model/data.pkl", "model/data/0"], ["data", "policy.pth", "_version"], ["x.txt"]])
def test_zips_of_others(members, tmp_path):
    """Weights and models were refused with all names that an observation may have."""
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        for member in members:
            archive.writestr(member, b"")
    what = "a zip of other files" if members == ["x.txt"] else "a file or model of PyTorch, not a dataset"
    with pytest.raises(relive.ReplayError, match=rf"model.zip: expected arrays, got {what}\.$"):
        interop.open(tmp_path / "model.zip")


class TestParquet:
    def table(self, tmp_path, **changed):
        columns = {name: arrow(values) for name, values in numbered(4).items()} | changed
        pq.write_table(pa.table(columns), tmp_path / "data.parquet")
        return tmp_path / "data.parquet"

    def test_missing_values(self, tmp_path):
        path = self.table(tmp_path, reward=pa.array([1.0, None, 2.0, 3.0]))
        with pytest.raises(relive.ReplayError, match=r"data.parquet: reward: expected a value in every row, got 1"):
            everything(interop.open(path))

    def test_lists_of_several_lengths(self, tmp_path):
        lists = pa.array([[1.0], [1.0, 2.0], [], [1.0]])
        path = self.table(tmp_path, obs=lists, next_obs=lists)
        with pytest.raises(relive.ReplayError, match=r"data.parquet: obs: expected lists of one length"):
            everything(interop.open(path))

    def test_images_as_lists_of_lists(self, tmp_path):
        images = np.arange(4 * 6, dtype=np.uint8).reshape(4, 2, 3)
        lists = pa.array(images.tolist(), pa.list_(pa.list_(pa.uint8())))
        source = interop.open(self.table(tmp_path, obs=lists, next_obs=lists))
        (block,) = source.blocks()
        assert source.schema.obs == relive.Field("uint8", (2, 3))
        assert (block.obs == images).all()

    def test_text_is_named_and_left_out(self, tmp_path):
        source = interop.open(self.table(tmp_path, task=pa.array(list("abcd"))))
        assert source.notes == ("left out: task (string)",)


def test_a_snapshot_is_seen_as_one(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": "relive snapshot"}')
    assert files.detect(tmp_path) == "snapshot"

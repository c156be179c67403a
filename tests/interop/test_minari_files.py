"""Minari's directories, as Minari 0.5.4 writes them (made by hand here, so that it need not be installed)."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
from PIL import Image
from sample_sources import everything

import relive
from relive import interop
from relive.interop.minari import dataset_id

BOX = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-1, -1], "high": [1, 1]}
DISCRETE = {"type": "Discrete", "dtype": "int64", "start": 2, "n": 3}


def episode(steps, seed=0):
    rng = np.random.default_rng(seed)
    flags = np.zeros((2, steps), np.bool_)
    flags[1, -1:] = True
    return {
        "observations": rng.random((steps + 1, 2), np.float32),
        "actions": rng.integers(2, 5, steps),
        "rewards": rng.random(steps),
        "terminations": flags[0],
        "truncations": flags[1],
    }


def save(folder, episodes, obs=BOX, action=DISCRETE, **metadata):
    """What Minari leaves in a directory."""
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "main_data.hdf5", "w", track_order=True) as file:
        for number, arrays in enumerate(episodes):
            group = file.create_group(f"episode_{number}")
            group.attrs.update({"id": number, "seed": 7, "total_steps": len(arrays["rewards"])})
            group.create_group("infos")
            for name, values in arrays.items():
                group[name] = values
    about = {
        "total_episodes": len(episodes),
        "total_steps": sum(len(arrays["rewards"]) for arrays in episodes),
        "data_format": "hdf5",
        "jpeg_encoding": True,
        "observation_space": json.dumps(obs),
        "action_space": json.dumps(action),
        "dataset_id": "x-v0",
        "minari_version": "0.5.4",
    }
    (folder / "metadata.json").write_text(json.dumps(about | metadata))
    return folder


def test_episodes(tmp_path):
    episodes = [episode(steps, steps) for steps in (4, 1, 0, 6)]
    source = interop.open(save(tmp_path, episodes))
    assert source.schema == relive.Schema(relive.Field("float32", (2,)), relive.Field("int64", (), 2, 4))
    assert (source.num_transitions, source.counts, source.notes) == (11, (11,), ())
    found = everything(source)
    for name, part in (("obs", slice(0, -1)), ("next_obs", slice(1, None))):
        assert (found[name] == np.concatenate([e["observations"][part] for e in episodes])).all()
    assert found["reward"].dtype == np.float64
    assert (found["reward"] == np.concatenate([e["rewards"] for e in episodes])).all()
    assert np.flatnonzero(found["truncated"]).tolist() == [3, 4, 10]
    buffer = interop.read(tmp_path, view=relive.Sequences("episode"), seed=0)
    assert len(buffer) == 11


@pytest.mark.parametrize("place", [".", "..", "main_data.hdf5"])
def test_the_directory_the_one_above_and_the_file(place, tmp_path):
    save(tmp_path / "x-v0" / "data", [episode(3)])
    assert interop.open(tmp_path / "x-v0" / "data" / place).num_transitions == 3


def test_long_episodes_come_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("relive.interop.blocks.BLOCK_ROWS", 3)
    data = episode(10)
    source = interop.open(save(tmp_path, [data]))
    assert [len(block.reward) for block in source.blocks()] == [3, 3, 3, 1]
    found = everything(source)
    assert (found["next_obs"] == data["observations"][1:]).all()
    assert np.flatnonzero(found["truncated"]).tolist() == [9]


def test_spaces_within_spaces(tmp_path):
    box = {"type": "Box", "dtype": "float64", "shape": [], "low": 0, "high": 1}
    multi = {"type": "MultiDiscrete", "dtype": "int64", "nvec": [2, 3], "start": [0, 5]}
    space = {"type": "Dict", "subspaces": {"z": {"type": "Tuple", "subspaces": [DISCRETE, box]}, "a": multi}}
    data = episode(3)
    del data["observations"]
    data["observations/z/_index_0"], data["observations/z/_index_1"] = np.arange(4), np.arange(4.0)
    data["observations/a"] = np.zeros((4, 2), np.int64)
    source = interop.open(save(tmp_path, [data], obs=space))
    first, second = relive.Field("int64", (), 2, 4), relive.Field("float64")
    assert source.schema.obs == {"z": (first, second), "a": relive.Field("int64", (2,), (0, 5), (1, 7))}
    (block,) = source.blocks()
    assert block.obs["z"][1].tolist() == [0, 1, 2]
    assert block.next_obs["z"][1].tolist() == [1, 2, 3]


@pytest.mark.parametrize("name", ["terminations", "truncations"])
@pytest.mark.parametrize("value", [np.nan, 2.0, -9.0])
def test_numbers_that_are_no_flags(name, value, tmp_path):
    """They were taken for True, without a word."""
    wrong = episode(3)
    wrong[name] = np.array([0, value, 1.0])
    source = interop.open(save(tmp_path, [episode(2), wrong]))
    with pytest.raises(relive.ReplayError, match=f"episode_1/{name}: expected flags, 0 or 1, got {value}"):
        list(source.blocks())
    wrong[name] = np.array([0, 0, 1.0])
    (block,) = interop.open(save(tmp_path, [episode(2), wrong])).blocks()
    assert getattr(block, name.replace("ions", "ed"))[2:].tolist() == [False, False, True]


def test_infos_are_extras(tmp_path):
    one, two = episode(3), episode(2)
    for data, steps in ((one, 3), (two, 2)):
        data["infos/speed"] = np.arange(steps + 1.0)
        data["infos/kind"] = np.arange(steps) + (0.5 if steps == 2 else 0)
        data["infos/deep/er"] = np.arange(steps)
        data["infos/words"] = np.array([b"x"] * steps, h5py.string_dtype())
    two["infos/late"] = np.arange(2)
    source = interop.open(save(tmp_path, [one, two]))
    found = everything(source)
    assert found["speed"].tolist() == [1, 2, 3, 1, 2]
    assert found["kind"].tolist() == [0, 1, 2, 0.5, 1.5]
    left = next(note for note in source.notes if note.startswith("left out"))
    for name in ("infos/deep/er", "infos/words", "infos/late (not in every episode)"):
        assert name in left


def test_an_episode_without_a_flag_ends_nevertheless(tmp_path):
    """Else it would go on with the next one, where that begins with the very observation this one ended with."""
    one = episode(2)
    one["truncations"] = np.zeros(2, np.bool_)
    one["observations"][:] = 0
    two = episode(2)
    two["observations"][:] = 0
    source = interop.open(save(tmp_path, [one, two]))
    assert everything(source)["truncated"].tolist() == [False, True, False, True]
    assert source.notes == ("1 episodes end without a flag: their last steps are taken for truncated",)


def test_dtypes_that_differ_from_episode_to_episode(tmp_path):
    one, two = episode(2), episode(2)
    one["actions"], one["rewards"] = one["actions"].astype(np.int32), np.array([1, 2])
    source = interop.open(save(tmp_path, [one, two]))
    found = everything(source)
    assert found["action"].dtype == np.int64
    assert found["reward"][:2].tolist() == [1, 2]


IMAGE = {"type": "Box", "dtype": "uint8", "shape": [32, 40, 3], "low": [], "high": []}


def jpeg(frame):
    file = io.BytesIO()
    Image.fromarray(frame).save(file, format="JPEG")
    return np.frombuffer(file.getvalue(), np.uint8)


def test_images_stored_as_jpeg(tmp_path):
    data = episode(2)
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 40, 3), dtype=np.uint8)
    encoded = [jpeg(frame) for frame in frames]
    del data["observations"]
    save(tmp_path, [data], obs=IMAGE)
    with h5py.File(tmp_path / "main_data.hdf5", "a") as file:
        place = file.create_dataset("episode_0/observations", (3,), h5py.vlen_dtype(np.uint8))
        for number, frame in enumerate(encoded):
            place[number] = frame
    source = interop.open(tmp_path)
    (block,) = source.blocks()
    decoded = [np.asarray(Image.open(io.BytesIO(frame.tobytes()))) for frame in encoded]
    assert (block.obs == np.stack(decoded[:2])).all()
    assert (block.next_obs == np.stack(decoded[1:])).all()
    assert "stored as JPEG" in source.notes[0]


def test_images_stored_as_they_are(tmp_path):
    data = episode(2)
    data["observations"] = np.random.default_rng(0).integers(0, 256, (3, 32, 40, 3), dtype=np.uint8)
    source = interop.open(save(tmp_path, [data], obs=IMAGE, jpeg_encoding=False))
    assert (next(source.blocks()).obs == data["observations"][:2]).all()
    assert source.notes == ()


def shorter(data, name):
    data[name] = data[name][:-1]


DAMAGE = {
    "short observations": (
        lambda d: shorter(d, "observations"),
        r"episode_1/observations: expected 4 rows, got float32",
    ),
    "short flags": (lambda d: shorter(d, "terminations"), r"episode_1/terminations: expected 3 rows"),
    "no actions": (lambda d: d.pop("actions"), r"episode_1/actions: expected data, got none"),
    "no rewards": (lambda d: d.pop("rewards"), r"episode_1/rewards: expected data, got none"),
    "other shapes": (
        lambda d: d.update(actions=np.zeros((3, 2))),
        "episode_1: expected observations and actions as in",
    ),
    "text": (
        lambda d: d.update(actions=np.array([b"x"] * 3, h5py.string_dtype())),
        "episode_1/actions: expected an array",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_by_file_and_key(name, tmp_path):
    change, words = DAMAGE[name]
    broken = episode(3, 1)
    change(broken)
    rewards = broken.get("rewards")
    episodes = [episode(3), broken | {"rewards": np.zeros(3) if rewards is None else rewards}]
    save(tmp_path, episodes)
    if rewards is None:
        with h5py.File(tmp_path / "main_data.hdf5", "a") as file:
            del file["episode_1/rewards"]
    with pytest.raises(relive.ReplayError, match=f"main_data.hdf5: {words}"):
        everything(interop.open(tmp_path))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"total_episodes": 2}, r"main_data.hdf5: episode_1: expected data, got none"),
        ({"total_episodes": "x"}, r"metadata.json: total_episodes: expected Minari's metadata"),
        ({"data_format": "arrow"}, r"metadata.json: data_format: expected 'hdf5', got 'arrow'"),
        ({"action_space": "{"}, r"metadata.json: action_space: expected JSON"),
        (
            {"relive": {"format": "relive dataset", "version": 9}},
            r"metadata.json: expected 'relive dataset' of version 1",
        ),
        ({"relive": []}, r"metadata.json: expected what relive writes"),
    ],
)
def test_metadata_that_is_wrong(metadata, words, tmp_path):
    save(tmp_path, [episode(3)], **metadata)
    with pytest.raises(relive.ReplayError, match=words):
        interop.open(tmp_path)


def test_links_to_other_files_are_not_followed(tmp_path):
    """A stranger's dataset must not read files of ours."""
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.arange(3)
    data = episode(3)
    del data["actions"]
    save(tmp_path / "d", [data])
    with h5py.File(tmp_path / "d" / "main_data.hdf5", "a") as file:
        file["episode_0/actions"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "x")
    with pytest.raises(relive.ReplayError, match="episode_0/actions: expected data in the file, got a link"):
        everything(interop.open(tmp_path / "d"))


@pytest.mark.parametrize("kind", ["external", "virtual"])
@pytest.mark.parametrize("ours", [True, False])
def test_data_that_lie_in_other_files_are_not_read(kind, ours, tmp_path):
    """Also in the twentieth of many short episodes, whose like were looked at before."""
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.arange(3)
        place = file["x"].id.get_offset()
    path = save(tmp_path / "d", [episode(3) for _ in range(20)])
    if ours:
        interop.write(interop.open(path), tmp_path / "ours")
        path = tmp_path / "ours"
    with h5py.File(path / "main_data.hdf5", "a") as file:
        del file["episode_19/actions"]
        if kind == "virtual":
            layout = h5py.VirtualLayout((3,), "i8")
            layout[:] = h5py.VirtualSource(tmp_path / "secret.h5", "x", (3,))
            file["episode_19"].create_virtual_dataset("actions", layout)
        else:
            file["episode_19"].create_dataset("actions", (3,), "i8", external=[(tmp_path / "secret.h5", place, 24)])
        assert file["episode_19/actions"][:].tolist() == [0, 1, 2]
    with pytest.raises(relive.ReplayError, match="episode_19/actions: expected data in the file, got data in others"):
        everything(interop.open(path))


def test_a_dataset_of_ours_that_does_not_say_its_counts(tmp_path):
    """Older ones: their episodes are looked at. One that says others than there are is refused."""
    interop.write(interop.open(save(tmp_path / "in", [episode(4), episode(2)])), tmp_path / "out")
    place = tmp_path / "out" / "metadata.json"
    metadata = json.loads(place.read_text())
    assert metadata["relive"].pop("counts") == [6]
    place.write_text(json.dumps(metadata))
    assert interop.open(tmp_path / "out").counts == (6,)
    metadata["total_episodes"] = 1
    place.write_text(json.dumps(metadata | {"relive": metadata["relive"] | {"counts": [6]}}))
    with pytest.raises(relive.ReplayError, match=r"expected 6 steps, got 4 steps\. It was edited after"):
        everything(interop.open(tmp_path / "out"))
    place.write_text(json.dumps(metadata | {"total_steps": 9}))
    with pytest.raises(relive.ReplayError, match=r"expected 6 steps, got others\. It was edited after"):
        interop.open(tmp_path / "out")
    for counts in ([5], [3, 3], [-1, 7], "x"):
        place.write_text(json.dumps(metadata | {"relive": metadata["relive"] | {"counts": counts}}))
        with pytest.raises(relive.ReplayError, match=r"expected (6 steps, got 5|a number for each lane)"):
            interop.open(tmp_path / "out")


def test_ids_as_minari_looks_for_them(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert dataset_id(tmp_path / "cartpole" / "mixed-v2" / "data") == "cartpole/mixed-v2"
    assert dataset_id(tmp_path.parent / "my data.minari") == "my-data-v0"


def test_what_we_write_is_what_minari_looks_for(tmp_path):
    columns = {"observations": np.zeros((3, 2), np.float32)}
    source = interop.open(save(tmp_path / "in", [episode(2) | columns]))
    interop.write(source, tmp_path / "out")
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert metadata["total_steps"] == 2
    assert metadata["jpeg_encoding"] is False
    assert json.loads(metadata["action_space"]) == DISCRETE
    space = json.loads(metadata["observation_space"])
    assert (space["type"], space["dtype"], space["shape"]) == ("Box", "float32", [2])
    with h5py.File(tmp_path / "out" / "main_data.hdf5") as file:
        assert list(file) == ["episode_0"]
        assert file["episode_0"].attrs["id"] == 0
        assert file["episode_0"].attrs["total_steps"] == 2
        assert set(file["episode_0"]) == {"observations", "actions", "rewards", "terminations", "truncations", "infos"}
        assert file["episode_0/observations"].shape == (3, 2)
        assert file["episode_0/truncations"].dtype == np.bool_


def test_with_minari_itself(tmp_path):
    minari = pytest.importorskip("minari")
    source = interop.open(save(tmp_path / "in", [episode(4), episode(2)]))
    interop.write(source, tmp_path / "out")
    episodes = list(minari.MinariDataset(tmp_path / "out").iterate_episodes())
    assert [len(found.rewards) for found in episodes] == [4, 2]
    assert (np.concatenate([found.rewards for found in episodes]) == everything(source)["reward"]).all()


def test_memory_does_not_grow_with_the_number_of_episodes(tmp_path):
    """Until a file is closed HDF5 keeps tens of kilobytes of every episode that was looked at."""
    buffer = relive.ReplayBuffer(1_200, relive.Schema(relive.Field("float32", (2,)), relive.Field("int64")), seed=0)
    obs = np.arange(2_402, dtype=np.float32).reshape(-1, 2)
    buffer.extend(obs[:-1], np.zeros(1_200, np.int64), np.zeros(1_200), np.ones(1_200, np.bool_), obs[1:])
    interop.write(interop.of_buffer(buffer), tmp_path / "many")
    code = (
        "import sys; from relive import interop; interop.blocks.BLOCK_ROWS = 1\n"
        "def size(): return int(next(l for l in open('/proc/self/status') if l.startswith('VmRSS')).split()[1])\n"
        "blocks = interop.open(sys.argv[1]).blocks()\n"
        "for _ in range(100): next(blocks)\n"
        "before = size()\n"
        "print(sum(len(block.reward) for block in blocks), size() - before)\n"
    )
    said = subprocess.run([sys.executable, "-c", code, tmp_path / "many"], capture_output=True, text=True, check=True)
    rows, grown = map(int, said.stdout.split())
    assert rows == 1_100
    assert grown < 25_000  # kB; 42,000 in a file that stays open

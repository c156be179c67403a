"""`save` and `load` as they are called: paths, options, kinds of data, what must be refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from snapshot_worlds import WORLDS, contents, digest

import relive
from model.kinds import fill
from model.options import Own, reached
from relive.samplers import RankBased
from relive.snapshot import MANIFEST, read_manifest

Field = relive.Field


def filled(name: str = "plain", count: int = 50, **options: Any) -> relive.ReplayBuffer:
    """A buffer of a kind."""
    world = WORLDS[name]
    buffer = world.make(**options)
    world.drive(buffer, [0] * world.lanes, np.random.default_rng(0), count)
    return buffer


def simple(buffer: relive.ReplayBuffer, count: int) -> None:
    """Transitions of scalars, to a buffer whose schema comes from them."""
    for t in range(count):
        buffer.push(float(t), 0, float(t), t % 5 == 4, float(t + 1))


def test_the_first_push_gives_the_schema(tmp_path: Path) -> None:
    """Would catch: a save before there is a schema; one that came late and is not saved."""
    buffer = relive.ReplayBuffer(8, seed=0)
    with pytest.raises(relive.ConfigError, match="save: expected a schema"):
        buffer.save(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    simple(buffer, 11)
    buffer.save(tmp_path / "a")
    assert digest(relive.load(tmp_path / "a")) == digest(buffer)


@pytest.mark.parametrize("name", ["plain", "prioritized", "ranked", "shuffled", "sequences", "stacked"])
def test_empty_and_cleared(name: str, tmp_path: Path) -> None:
    """Would catch: lanes without rows; ids that begin at 0 again; a sampler without anchors."""
    empty = WORLDS[name].make()
    empty.save(tmp_path / "empty")
    loaded = relive.load(tmp_path / "empty")
    assert digest(loaded) == digest(empty)
    with pytest.raises(relive.NotEnoughDataError):
        loaded.sample(1)
    buffer = filled(name)
    oldest = buffer.ids[0]
    buffer.clear()
    buffer.save(tmp_path / "cleared")
    loaded = relive.load(tmp_path / "cleared")
    assert digest(loaded) == digest(buffer)
    assert len(loaded) == 0
    with pytest.raises(relive.StaleIdError):
        loaded.get([oldest])


def test_the_same_state_costs_one_manifest(tmp_path: Path) -> None:
    """Would catch: a save that writes what is there already, also by who loaded it."""
    buffer = filled("max_uses")
    buffer.save(tmp_path)
    files = set(contents(tmp_path))
    for loads in (False, True):
        saver = relive.load(tmp_path) if loads else buffer
        written = saver.save(tmp_path, note="again")
        assert written == (tmp_path / MANIFEST).stat().st_size
        assert set(contents(tmp_path)) == files
    saver = relive.load(tmp_path)
    saver.sample(1)
    saver.save(tmp_path)
    assert digest(relive.load(tmp_path)) == digest(saver)


def test_a_save_writes_what_is_new(tmp_path: Path) -> None:
    """Would catch: all transitions written anew at every save; the number of bytes that is told."""
    world = WORLDS["columns"]
    buffer, times = world.make(capacity=400), [0] * world.lanes
    world.drive(buffer, times, np.random.default_rng(0), 350)
    first = buffer.save(tmp_path)
    assert first == sum(len(data) for data in contents(tmp_path).values())
    world.drive(buffer, times, np.random.default_rng(0), 3)
    assert buffer.save(tmp_path) < first / 20


@pytest.mark.parametrize("other", [relive.Prioritized(alpha=1.0), RankBased(), relive.Uniform(), relive.Shuffled()])
def test_another_sampler_begins_anew(other: Any, tmp_path: Path) -> None:
    """Would catch: priorities of the former sampler taken over, at once or by the next save to that directory."""
    buffer = WORLDS["prioritized"].make()
    WORLDS["prioritized"].drive(buffer, [0], np.random.default_rng(0), 5)
    buffer.sample(2)
    buffer.update_priorities(buffer.ids, np.arange(5.0))
    draws = [buffer.sample(2).ids for _ in range(3)]
    buffer.save(tmp_path)
    loaded = relive.load(tmp_path, sampler=other)
    assert loaded.sampler == other
    assert loaded._engine.reading.draws == buffer._engine.reading.draws
    assert sorted(loaded.anchors) == buffer.ids.tolist()
    state = json.dumps(loaded.ids.tolist())
    loaded.save(tmp_path)
    again = relive.load(tmp_path)
    assert json.dumps(again.ids.tolist()) == state
    assert digest(again) == digest(loaded)
    assert len(draws) == 3


def test_a_count_of_changes_that_happens_to_be_the_same(tmp_path: Path) -> None:
    """Would catch: values of another sampler kept because a counter of its own stands where the former one's did."""
    buffer = WORLDS["prioritized"].make()
    for identity in range(5):
        buffer.push(**WORLDS["prioritized"].transition(identity))
    buffer.save(tmp_path)
    for sampler in (RankBased(), relive.Prioritized(alpha=0.9), relive.Prioritized(max_uses=2), RankBased(alpha=0.1)):
        loaded = relive.load(tmp_path, sampler=sampler)
        loaded.save(tmp_path)
        assert digest(relive.load(tmp_path)) == digest(loaded)


def test_another_view(tmp_path: Path) -> None:
    """Would catch: a view that needs frames nobody saved; priorities lost by one that changes no anchor."""
    buffer = filled("columns")
    buffer.save(tmp_path / "a")
    for stack in (1, 2, 3):
        loaded = relive.load(tmp_path / "a", view=relive.Transitions(n=2, stack=stack))
        expected = buffer.reader(view=relive.Transitions(n=2, stack=stack)).get(buffer.ids)
        got = loaded.get(buffer.ids)
        for name in vars(expected):
            assert getattr(got, name).tobytes() == getattr(expected, name).tobytes(), (stack, name)
        loaded.save(tmp_path / f"stack{stack}")
        assert digest(relive.load(tmp_path / f"stack{stack}")) == digest(loaded)
    with pytest.raises(relive.ConfigError, match="expected a stack of at most 3"):
        relive.load(tmp_path / "a", view=relive.Transitions(stack=4))
    with pytest.raises(relive.ConfigError, match="expected a stack of at most 2"):
        relive.load(tmp_path / "stack2", view=relive.Transitions(stack=3))
    buffer = filled("max_uses")
    buffer.save(tmp_path / "b")
    loaded = relive.load(tmp_path / "b", view=relive.Transitions(n=3, gamma=0.5))
    assert loaded.anchors.tolist() == buffer.anchors.tolist()
    assert (loaded.sample(4).ids == buffer.sample(4).ids).all()
    relive.load(tmp_path / "b", view=relive.Sequences(3)).sample(2)


def test_code_is_given_never_read(tmp_path: Path) -> None:
    """Would catch: a reward function or a sampler that a file names."""
    goal = {name: Field("float32", (2,)) for name in ("achieved_goal", "desired_goal")}
    schema, view = relive.Schema(goal, Field("int64")), relive.Hindsight("future", k=2, reward_fn=reached)
    buffer = relive.ReplayBuffer(20, schema, view=view, sampler=Own(), seed=4)
    for t in range(15):
        buffer.push(fill(goal, t), 0, 0.0, t % 6 == 5, fill(goal, t + 1))
    buffer.save(tmp_path)
    for given in ({}, {"view": view}, {"sampler": Own()}):
        with pytest.raises(relive.ConfigError, match="expected one to be given"):
            relive.load(tmp_path, **given)
    loaded = relive.load(tmp_path, view=view, sampler=Own())
    first, second = buffer.sample(8), loaded.sample(8)
    assert first.ids.tobytes() == second.ids.tobytes()
    assert first.reward.tobytes() == second.reward.tobytes()


def test_readers_made_before(tmp_path: Path) -> None:
    """Would catch: a reader made after a load that draws what one made before had drawn."""
    buffer = filled()
    buffer.reader()
    buffer.save(tmp_path)
    loaded = relive.load(tmp_path)
    assert loaded.reader().seed == buffer.reader().seed


@pytest.mark.parametrize(
    "note", [None, 0, "text", [1, 2.5, None], {"a": {"b": [True]}, "ü": "€"}, {"x": "y" * 100_000}]
)
def test_notes(note: Any, tmp_path: Path) -> None:
    """Would catch: a note that is changed on its way, or kept from an earlier save."""
    buffer = filled()
    buffer.save(tmp_path, note="before")
    buffer.save(tmp_path, note=note)
    assert relive.snapshot.read_note(tmp_path) == note
    buffer.save(tmp_path)
    assert relive.snapshot.read_note(tmp_path) is None


@pytest.mark.parametrize("note", [float("nan"), {1, 2}, object(), np.float32(1), b"bytes"])
def test_notes_that_json_cannot_hold(note: Any, tmp_path: Path) -> None:
    """Would catch: a refused save that changed something."""
    buffer = filled()
    buffer.save(tmp_path)
    before = contents(tmp_path)
    buffer.push(**WORLDS["plain"].transition(1_000), lane=0)
    with pytest.raises(relive.ConfigError, match="note: expected what JSON can hold"):
        buffer.save(tmp_path, note=note)
    assert contents(tmp_path) == before


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: one directory under two names that is taken for two."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    buffer = filled()
    for number, path in enumerate(["real", "real/", Path("real"), tmp_path / "real", "./real", "link", "link/"]):
        buffer.save(path, note=number)
        assert relive.snapshot.read_note("real") == number
        assert digest(relive.load(path)) == digest(buffer)
    loaded = relive.load("link")
    monkeypatch.chdir("/")
    loaded.save(tmp_path / "real")
    buffer.save(tmp_path / "deep" / "deeper" / "dü")
    assert len(relive.load(tmp_path / "deep" / "deeper" / "dü")) == len(buffer)


def test_directories_that_cannot_be(tmp_path: Path) -> None:
    """Would catch: a raw OSError; another buffer's snapshot that is overwritten unasked."""
    buffer = filled()
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(relive.ConfigError, match="expected a directory, got the file"):
            buffer.save(path)
    with pytest.raises(relive.SnapshotError):
        buffer.save("/proc/nowhere/replay")
    buffer.save(tmp_path / "a")
    before = contents(tmp_path / "a")
    for stranger in (filled(seed=99), filled()):
        with pytest.raises(relive.ConfigError, match="holds a snapshot of another one"):
            stranger.save(tmp_path / "a")
        assert contents(tmp_path / "a") == before
    stranger.save(tmp_path / "a", overwrite=True)
    with pytest.raises(relive.ConfigError, match="holds a snapshot of another one"):
        buffer.save(tmp_path / "a")  # it was ours, and is not any more
    (tmp_path / "a" / MANIFEST).write_bytes(b"damaged")
    with pytest.raises(relive.SnapshotError):
        stranger.save(tmp_path / "a")
    stranger.save(tmp_path / "a", overwrite=True)
    assert digest(relive.load(tmp_path / "a")) == digest(stranger)
    for compression in ("zip", True, 3):
        with pytest.raises(relive.ConfigError, match="compression"):
            buffer.save(tmp_path / "b", compression=compression)
    assert not (tmp_path / "b").exists()


def test_foreign_files_stay(tmp_path: Path) -> None:
    """Would catch: files of the user's that are taken for ours."""
    names = ["weights.npz", "records.npy", "000001-records.npy.bak", "notes.json", "000001-other.npy"]
    for name in names:
        (tmp_path / name).write_text(name)
    (tmp_path / "000001-masses.npy").write_text("an orphan")
    buffer = filled()
    buffer.save(tmp_path)
    buffer.save(tmp_path)
    assert all((tmp_path / name).read_text() == name for name in names)
    assert not (tmp_path / "000001-masses.npy").exists()
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir() if path.name not in names)


def test_compression_mixed(tmp_path: Path) -> None:
    """Would catch: a segment read as what another one is."""
    world = WORLDS["compressed_columns"]
    buffer, times, rng = world.make(capacity=60), [0], np.random.default_rng(0)
    for compression in ("zstd", None, "zstd", None):
        world.drive(buffer, times, rng, 15)
        buffer.save(tmp_path, compression=compression)
        assert digest(relive.load(tmp_path)) == digest(buffer)
    assert {"".join(path.suffixes) for path in tmp_path.iterdir()} == {".npy", ".npy.zst", ".json"}


def test_without_the_package_that_compresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a file begun, a raw ImportError; a snapshot without compression that needs the package."""
    buffer = filled()
    buffer.save(tmp_path / "zstd", compression="zstd")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(relive.ConfigError, match="pip install 'relive\\[zstd\\]'"):
        buffer.save(tmp_path / "a", compression="zstd")
    assert not (tmp_path / "a").exists()
    with pytest.raises(relive.ConfigError, match="zstandard"):
        relive.load(tmp_path / "zstd")
    buffer.save(tmp_path / "a")
    assert digest(relive.load(tmp_path / "a")) == digest(buffer)
    relive.snapshot.verify(tmp_path / "zstd")


def test_saved_elsewhere_the_bytes_are_the_same(tmp_path: Path) -> None:
    """Would catch: memory that nobody wrote in the files; a state that depends on how it was reached."""
    buffer = filled("max_uses", 90)
    buffer.save(tmp_path / "a")
    relive.load(tmp_path / "a").save(tmp_path / "b")
    relive.load(tmp_path / "b").save(tmp_path / "c")
    b, c = contents(tmp_path / "b"), contents(tmp_path / "c")
    assert b.keys() == c.keys()
    assert all(b[name] == c[name] for name in b if name != MANIFEST)


def test_two_directories_by_turns(tmp_path: Path) -> None:
    """Would catch: what is new since the other directory's save."""
    world = WORLDS["max_uses"]
    buffer, times, rng = world.make(), [0, 0], np.random.default_rng(0)
    for number in range(8):
        world.drive(buffer, times, rng, 7)
        place = tmp_path / "ab"[number % 2]
        world.save(buffer, place, times)
        assert digest(relive.load(place)) == digest(buffer)


@pytest.mark.parametrize("name", ["prioritized", "stacked", "columns"])
def test_into_a_file(name: str, tmp_path: Path) -> None:
    """Would catch: contents that only a buffer in memory can take."""
    buffer = filled(name)
    buffer.save(tmp_path / "s")
    loaded = relive.load(tmp_path / "s", storage=relive.Mmap(tmp_path / "m"))
    WORLDS[name].check(loaded)
    assert loaded.ids.tolist() == buffer.ids.tolist()
    loaded.save(tmp_path / "t")
    assert digest(relive.load(tmp_path / "t")) == digest(buffer)


ODD = relive.Schema(
    {
        "a.b": Field("float32", (2,)),
        "a": {"b": Field("<U5"), "c": Field("S3", (2,))},
        "a.b#0": Field("uint8"),
        "": Field("datetime64[s]"),
        "/": (Field([("x", "f4"), ("y", [("z", "u1", (3,))])]), Field("V7")),
        "größe\n": Field("complex64"),
        "nothing": Field("float32", (0, 4)),
        "x" * 300: Field("float16"),
    },
    (Field("bool"), {"0": Field("timedelta64[us]"), "": Field("int8", (0,))}),
    {"step": Field("int64"), "final": Field("float64", (70,)), "start": Field("uint32"), "episode": Field("bool")},
    lanes=2,
)


def test_odd_names_and_dtypes(tmp_path: Path) -> None:
    """Would catch: two fields of one name in a file; a dtype that JSON or `.npy` cannot say."""
    buffer = relive.ReplayBuffer(20, ODD, seed=0)
    rng = np.random.default_rng(0)

    def value(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: value(child) for key, child in tree.items()}
        if isinstance(tree, tuple):
            return tuple(value(child) for child in tree)
        shape, dtype = tree.shape, tree.itemdtype
        if dtype.kind == "U":
            return np.full(shape, chr(int(rng.integers(65, 90))) * 4, dtype)
        raw = rng.integers(1 if dtype.kind == "b" else 0, 2, (*shape, dtype.itemsize), np.uint8)
        return np.ascontiguousarray(raw).view(dtype).reshape(shape)

    for t in range(30):
        extras = {name: value(field) for name, field in ODD.extras.items()}
        buffer.push(value(ODD.obs), value(ODD.action), 0.5, t % 4 == 1, value(ODD.obs), lane=t % 2, **extras)
    buffer.save(tmp_path)
    loaded = relive.load(tmp_path)
    assert digest(loaded) == digest(buffer)
    assert loaded.schema == buffer.schema
    for path in tmp_path.glob("*.npy"):
        array = np.load(path, allow_pickle=False, max_header_size=10**6)
        assert array.dtype.hasobject is False


@pytest.mark.parametrize("name", ["plain", "columns", "stacked", "sequences"])
def test_files_are_what_is_documented(name: str, tmp_path: Path) -> None:
    """Would catch: `.npy` files that NumPy alone cannot read, or whose words mean something else than is written."""
    world = WORLDS[name]
    buffer, times = world.make(), [0] * world.lanes
    for lane in range(world.lanes):
        for _ in range(35):
            world.push(buffer, times, lane)
    buffer.save(tmp_path)
    manifest = read_manifest(tmp_path)
    seen = 0
    for segment in [*manifest.segments, *([manifest.tail] if manifest.tail else [])]:
        arrays = {}
        for file in segment.files:
            if file is not None:
                array = np.load(tmp_path / file.name, allow_pickle=False)
                arrays[file.name.split("-", 1)[1].removesuffix(".npy")] = array
        records = arrays["records"]
        row = 0
        for lane, begin, end in segment.runs:
            for time in range(begin, end):
                record, place = records[row], row
                row += 1
                if segment is manifest.tail and time == end - 1:
                    continue  # the observation that follows, no transition
                expected = world.transition(time * world.lanes + lane)
                assert record["reward"] == expected["reward"]
                assert bool(record["episode.step"] >> 31) == expected["terminated"]
                assert bool(record["episode.step"] >> 30 & 1) == expected["truncated"]
                final = int(record["episode.final"])
                seen += 1
                if not final and time == end - 1:
                    continue  # the lane's next record is in another file
                if name == "columns":
                    assert (arrays["column-0"][place] == expected["obs"]).all()
                    assert (arrays["column-1"][place] == expected["big"]).all()
                    following = arrays["final-column-0"][final - 1] if final else arrays["column-0"][place + 1]
                    assert (following == expected["next_obs"]).all()
                elif name == "sequences":
                    assert (record["obs.image"] == expected["obs"]["image"]).all()
                    assert record["action.force.0"].tobytes() == expected["action"]["force"][0].tobytes()
                    following = arrays["finals"][final - 1] if final else records[place + 1]
                    assert (following["obs.pose.0"] == expected["next_obs"]["pose"][0]).all()
                else:
                    newest = expected["obs"][-1] if world.stacked > 1 else expected["obs"]
                    assert (record["obs"] == newest).all()
                    following = (arrays["finals"][final - 1] if final else records[place + 1])["obs"]
                    newest = expected["next_obs"][-1] if world.stacked > 1 else expected["next_obs"]
                    assert (following == newest).all()
                if name == "stacked" and record["episode.step"] & (2**30 - 1) == 0:
                    start, before = int(record["episode.start"]), expected["obs"][:-1]
                    if start == 1:
                        assert not before.any()
                    elif start == 0:
                        assert (before == expected["obs"][-1]).all()
                    else:
                        assert (arrays["prefix-0"][start - 2] == before).all()
    assert seen >= len(buffer)


def test_a_fresh_process_goes_on(tmp_path: Path) -> None:
    """Would catch: something that only lived in the process that saved."""
    buffer = filled("ranked", 60)
    buffer.save(tmp_path)
    code = f"import relive; print(relive.load({os.fspath(tmp_path)!r}).sample(8, beta=0.5).ids.tolist())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(said) == buffer.sample(8, beta=0.5).ids.tolist()

"""Paths: what is refused, what is left behind, what damage does, what is loaded."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_sources import as_source, contents, everything, numbered

import relive
from relive import interop
from relive.interop import files

SUFFIXES = {"minari": "", "d4rl": ".hdf5", "parquet": ".parquet", "npz": ".npz"}
FORMATS = list(SUFFIXES)
SMALL = as_source(numbered(50, ends_at=[9, 30], cut_at=[20]))


def path_of(folder, format):
    return folder / f"data{SUFFIXES[format]}"


@pytest.mark.parametrize("format", FORMATS)
class TestWriting:
    def test_nothing_is_overwritten(self, format, tmp_path):
        path = path_of(tmp_path, format)
        path.write_text("mine")
        with pytest.raises(relive.ConfigError, match=r"expected a name that is free, got one that exists"):
            interop.write(SMALL, path)
        assert path.read_text() == "mine"

    def test_a_source_that_fails_leaves_nothing(self, format, tmp_path):
        def read():
            yield from SMALL.blocks()
            raise OSError("the disk is gone")

        with pytest.raises(OSError, match="the disk is gone"):
            interop.write(replace(SMALL, read=read), path_of(tmp_path, format))
        assert not list(tmp_path.iterdir())

    def test_a_source_that_ends_early_leaves_nothing(self, format, tmp_path):
        with pytest.raises(relive.ReplayError, match="expected 51 transitions, got 50"):
            interop.write(replace(SMALL, num_transitions=51), path_of(tmp_path, format))
        assert not list(tmp_path.iterdir())

    def test_a_killed_process_leaves_no_file_under_the_name(self, format, tmp_path):
        code = (
            "import sys, time; from dataclasses import replace; from relive import interop\n"
            "source = interop.open(sys.argv[1])\n"
            "def read():\n"
            "    yield from source.blocks(); print('half', flush=True); time.sleep(60)\n"
            "interop.write(replace(source, read=read), sys.argv[2])\n"
        )
        interop.write(SMALL, tmp_path / "in.npz")
        path = path_of(tmp_path, format)
        command = [sys.executable, "-c", code, tmp_path / "in.npz", path]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "half\n"
            time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
        assert not path.exists()
        interop.write(SMALL, path)  # and its remains are in nobody's way
        assert contents(interop.open(path)) == contents(SMALL)

    def test_other_dtypes_than_the_schema_says_are_refused(self, format, tmp_path):
        (block,) = SMALL.blocks()
        wrong = replace(SMALL, read=lambda: iter([replace(block, obs=block.obs.astype(np.float64))]))
        with pytest.raises(relive.SchemaError, match=r"obs: expected float32 \(50, 2\) in a block, got float64"):
            interop.write(wrong, path_of(tmp_path, format))

    def test_a_file_of_another_name_is_known_by_what_is_in_it(self, format, tmp_path):
        interop.write(SMALL, path_of(tmp_path, format))
        path_of(tmp_path, format).rename(tmp_path / "x.y")
        assert interop.open(tmp_path / "x.y").format == format

    def test_a_missing_package_is_named_with_the_remedy(self, format, tmp_path, monkeypatch):
        if format == "npz":
            pytest.skip("needs NumPy alone")
        package = "pyarrow" if format == "parquet" else "h5py"
        interop.write(SMALL, path_of(tmp_path, format))
        monkeypatch.setitem(sys.modules, package, None)
        words = rf"{package}: expected it to be installed, .* pip install 'relive\[interop\]'"
        with pytest.raises(relive.ConfigError, match=words):
            interop.open(path_of(tmp_path, format))
        with pytest.raises(relive.ConfigError, match=words):
            interop.write(SMALL, path_of(tmp_path / "..", format).with_name(f"b{SUFFIXES[format]}"))


def test_names_of_no_format(tmp_path):
    with pytest.raises(relive.ConfigError, match=r"expected a name that ends in one of .parquet, .npz"):
        interop.write(SMALL, tmp_path / "data.csv")
    with pytest.raises(relive.ConfigError, match=r"format: expected one of minari, d4rl, .* got 'x'"):
        interop.write(SMALL, tmp_path / "data.csv", format="x")
    with pytest.raises(relive.ConfigError, match="relive writes no pickles"):
        interop.write(SMALL, tmp_path / "data.pkl")
    with pytest.raises(relive.ConfigError, match="expected a directory that exists"):
        interop.write(SMALL, tmp_path / "no" / "data.npz")
    assert files.format_of_name(tmp_path / "cartpole-v1.5") == "minari"


def test_paths_that_hold_no_dataset(tmp_path):
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_text("")
    for name, words in (("text", "begins with b'hell'"), ("empty", "got an empty file"), ("none", "nothing there")):
        with pytest.raises(relive.ConfigError, match=words):
            interop.open(tmp_path / name)
    with pytest.raises(relive.ConfigError, match=r"neither metadata.json \(Minari\) nor manifest.json"):
        interop.open(tmp_path)
    interop.write(SMALL, tmp_path / "m")
    with pytest.raises(relive.ConfigError, match=rf"got a file that is a part of one. Use {tmp_path / 'm'}$"):
        interop.open(tmp_path / "m" / "metadata.json")
    with pytest.raises(relive.ConfigError, match="expected a file of the format npz, got a directory"):
        interop.open(tmp_path, format="npz")


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


def test_pickles_within_npz_are_not_loaded(tmp_path):
    columns = numbered(4)
    np.savez(tmp_path / "x.npz", **columns, trap=np.array([Trap()] * 4, object))
    source = interop.open(tmp_path / "x.npz")
    assert source.notes == ("left out: trap (Python objects; pickles are not loaded)",)
    assert everything(source)["reward"].tolist() == [0, 1, 2, 3]
    np.save(tmp_path / "x.npy", np.array([Trap()], object))
    (tmp_path / "y.npz").write_bytes(pickle.dumps(Trap()))
    for path in (tmp_path / "x.npy", tmp_path / "y.npz"):
        with pytest.raises(relive.ConfigError):
            interop.open(path)


def readings(path):
    """What reading gives: the contents, or None where it was refused as it should be."""
    try:
        return contents(interop.open(path))
    except relive.ReplayError as error:
        assert str(path) in str(error), error
        return None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Format -> a path, and the file in it that is to be damaged."""
    folder = tmp_path_factory.mktemp("whole")
    found = {}
    for format in FORMATS:
        path = path_of(folder, format)
        interop.write(SMALL, path)
        found[format] = path, path / "main_data.hdf5" if format == "minari" else path
    return found


@pytest.mark.parametrize("format", FORMATS)
class TestDamage:
    """Damaged files are refused by name; what is read is never other than what was written."""

    @settings(max_examples=60)
    @given(st.floats(0, 1, exclude_max=True))
    def test_truncated(self, format, whole, share):
        path, file = whole[format]
        data = file.read_bytes()
        try:
            file.write_bytes(data[: int(len(data) * share)])
            assert readings(path) in (None, contents(SMALL))
        finally:
            file.write_bytes(data)

    @settings(max_examples=60)
    @given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
    def test_flipped(self, format, whole, share, bit):
        path, file = whole[format]
        data = file.read_bytes()
        place = int(len(data) * share)
        try:
            file.write_bytes(data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :])
            assert readings(path) in (None, contents(SMALL))
        finally:
            file.write_bytes(data)


def large_source(blocks):
    """10 MB to a block, which cannot be compressed."""
    schema = relive.Schema(relive.Field("uint8", (84, 84)), relive.Field("int64"))
    flags = np.zeros(1400, np.bool_)
    noise = np.random.default_rng(0).integers(0, 256, (1401, 84, 84), np.uint8)

    def read():
        for number in range(blocks):
            frames = noise + np.uint8(number)
            scalars = np.zeros(1400, np.int64), np.zeros(1400, np.float32), flags, flags
            yield interop.Block(frames[:-1], *scalars, frames[1:])

    return interop.Source(schema, 1400 * blocks, 1, "test", None, (), read)


@pytest.mark.parametrize("format", FORMATS)
def test_memory_does_not_grow_with_the_dataset(format, tmp_path):
    path = path_of(tmp_path, format)
    peaks = {}
    tracemalloc.start()
    try:
        for name, run in {
            "write": lambda: interop.write(large_source(8), path),
            "read": lambda: sum(len(block.reward) for block in interop.open(path).blocks()),
        }.items():
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            run()
            peaks[name] = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peaks["write"] < 100e6, peaks  # 80 MB of frames, twice that with the next ones
    assert peaks["read"] < 40e6, peaks
    # What libraries take for themselves shows in the memory of a process alone.
    code = (
        "import sys; from relive import interop\n"
        "def peak(): return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])\n"
        "blocks = interop.open(sys.argv[1]).blocks(); next(blocks); before = peak()\n"
        "for block in blocks: pass\n"
        "print(peak() - before)\n"
    )
    said = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert int(said.stdout) < 60_000  # kB


def test_importing_loads_neither_h5py_nor_pyarrow():
    code = "import sys, relive.interop; print(sorted({'h5py', 'pyarrow', 'torch', 'gymnasium'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

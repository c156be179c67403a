"""Files of other machines and of people who mean harm: read right, or refused with words."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
from sample_sources import contents, everything, numbered

import relive
from relive import interop
from relive.errors import DatasetError
from relive.interop.files import FORMATS


def swapped(columns):
    """The same values in the other byte order."""
    return {name: values.astype(values.dtype.newbyteorder()) for name, values in columns.items()}


def save(columns, path):
    if path.suffix == ".npz":
        np.savez(path, **columns)
    else:
        with h5py.File(path, "w") as file:
            for name, values in columns.items():
                file[name] = values
    return path


def columns_of(obs):
    columns = numbered(len(obs), ends_at=[1])
    return columns | {"obs": obs, "next_obs": obs[::-1], "extra": np.arange(len(obs), dtype=np.uint16)}


STRUCTURED = np.array([(1, 2, "ab"), (3, 4, "c"), (5, 6, "")], [("a", "<f4"), ("b", "<i2"), ("c", "<U2")])


@pytest.mark.parametrize(
    ("suffix", "obs"),
    [
        ("npz", np.arange(6.0).reshape(3, 2)),
        ("npz", np.array(["ab", "c", "é"])),
        ("npz", np.array([1 + 2j, 3, 4])),
        ("npz", STRUCTURED),
        ("h5", np.arange(6, dtype=np.float32).reshape(3, 2)),
    ],
)
class TestTheOtherByteOrder:
    """NPZ took the bytes of such files for numbers of this machine's order; HDF5 could not be written again."""

    def test_is_read_as_the_same_values(self, suffix, obs, tmp_path):
        columns = columns_of(obs)
        source = interop.open(save(swapped(columns), tmp_path / f"a.{suffix}"))
        found = everything(source)
        for name, values in columns.items():
            assert found[name].dtype == values.dtype
            assert found[name].tolist() == values.tolist()
        buffer = interop.read(tmp_path / f"a.{suffix}")
        assert buffer.get(buffer.ids).obs.tolist() == obs.tolist()

    def test_goes_on_to_another_file(self, suffix, obs, tmp_path):
        source = interop.open(save(swapped(columns_of(obs)), tmp_path / f"a.{suffix}"))
        interop.write(source, tmp_path / "b.npz")
        assert contents(interop.open(tmp_path / "b.npz")) == contents(source)


@pytest.mark.parametrize("format", [None, *FORMATS])
@pytest.mark.parametrize("name", [".", "manifest.json", "metadata.json", "main_data.hdf5"])
def test_a_pipe_is_refused_and_never_waited_for(name, format, tmp_path):
    """Opening one for reading waits until somebody writes to it."""
    folder = tmp_path / "data"
    if name == ".":
        os.mkfifo(folder)
    else:
        folder.mkdir()
        os.mkfifo(folder / name)

    def late(*_):
        raise AssertionError("it waited for the pipe")

    before = signal.signal(signal.SIGALRM, late)
    try:
        for path in (folder, folder / name):
            signal.alarm(10)
            with pytest.raises(relive.ReplayError):
                interop.open(path, format=format, trust_pickle=True)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


FULL = """
import gc, os, resource, sys
import numpy as np
from relive import interop
from relive.errors import DatasetError
source, suffix = interop.open(sys.argv[1]), sys.argv[2]
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for room in [0, 1, 600, *np.geomspace(1000, 600_000, 9).astype(int).tolist()]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        interop.write(source, "out" + suffix)
    except OSError as error:
        print(error.errno)
        assert error.filename == "out" + suffix and "Nothing of it is left" in error.strerror, error
    gc.collect()
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert os.listdir() == [], os.listdir()
interop.write(source, "out" + suffix)
"""


@pytest.mark.parametrize("suffix", ["", ".hdf5", ".npz", ".parquet", ".snapshot"])
def test_a_full_disk_is_an_error_and_leaves_nothing(suffix, tmp_path):
    """HDF5 crashed the process when it closed a file that it could not write. A limit stands for the disk's end."""
    count = 8000
    rng = np.random.default_rng(0)
    columns = numbered(count, ends_at=range(9, count, 400)) | {"extra": rng.random((count, 10))}
    columns["next_obs"] = columns["obs"] + 1
    np.savez(tmp_path / "in.npz", **columns)
    (tmp_path / "place").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path / "in.npz", suffix],
        cwd=tmp_path / "place",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(errno.EFBIG)] * 12
    written = interop.open(tmp_path / "place" / f"out{suffix}")
    assert contents(written) == contents(interop.open(tmp_path / "in.npz"))


def test_an_array_that_is_there_twice(tmp_path):
    """Which of the two is meant? The last one was taken."""
    path = save(numbered(4), tmp_path / "a.npz")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("obs.npy", archive.read("next_obs.npy"))
    with pytest.raises(DatasetError, match=r"a.npz: obs: expected one array of this name, got 2"):
        interop.open(path)


def test_a_shape_that_no_array_can_have(tmp_path):
    path = save(numbered(4), tmp_path / "a.npz")
    with zipfile.ZipFile(path, "a") as archive, archive.open("extra.npy", "w") as out:
        header = {"descr": "<f4", "fortran_order": False, "shape": (4, 0, 2**61)}
        np.lib.format.write_array_header_2_0(out, header)
    with pytest.raises(DatasetError, match=r"a.npz: extra: .*of shape \(4, 0"):
        interop.open(path)

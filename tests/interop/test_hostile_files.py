"""Files of other machines and of people who mean harm: read right, or refused with words."""

from __future__ import annotations

import os
import signal

import h5py
import numpy as np
import pytest
from sample_sources import contents, everything, numbered

import relive
from relive import interop
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

"""Bytes that flip, files that are cut, swapped, lost or made up: a SnapshotError that says where, or the right data."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from snapshot_worlds import WORLDS, contents, digest, write

import relive
from relive.disk import BLOCK
from relive.snapshot import MANIFEST

SMALL = ("max_uses", "ranked", "stacked", "columns", "compressed")


def saved(name: str, directory: Path, pushes: int = 26) -> tuple[dict[str, bytes], str]:
    """A snapshot in two segments, and the digest of what it holds."""
    world = WORLDS[name]
    buffer, times = world.make(), [0] * world.lanes
    for count in (pushes, 5):
        world.drive(buffer, times, np.random.default_rng(3), count)
        world.save(buffer, directory, times)
    return contents(directory), digest(buffer)


def refusal(directory: Path) -> relive.SnapshotError:
    """What `load` says; it must refuse."""
    with pytest.raises(relive.SnapshotError) as caught:
        relive.load(directory)
    return caught.value


def covers(error: Exception, place: int) -> bool:
    """Whether the message gives a range of bytes with this one in it."""
    numbers = re.search(r"between byte ([\d,]+) and ([\d,]+)", str(error))
    assert numbers, error
    begin, end = (int(number.replace(",", "")) for number in numbers.groups())
    return begin <= place < end


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in WORLDS)])
def test_every_flipped_byte_is_found(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Would catch: a byte that no checksum covers; a checksum that is compared after the bytes were used."""
    dense = "slow" in request.node.keywords or any(mark.name == "slow" for mark in request.node.iter_markers())
    files, _ = saved(name, tmp_path / "s")
    write(tmp_path / "d", files)
    rng = np.random.default_rng(1)
    for file, data in files.items():
        places = set(range(len(data))) if dense and len(data) < 20_000 else set(range(min(len(data), 24)))
        places |= {len(data) - 1, *rng.integers(len(data), size=40).tolist()}
        for place in sorted(places):
            damaged = bytearray(data)
            damaged[place] ^= 1 << int(rng.integers(8))
            (tmp_path / "d" / file).write_bytes(damaged)
            error = refusal(tmp_path / "d")
            assert str(tmp_path / "d" / file) in str(error), (place, error)
            if file != MANIFEST:
                assert covers(error, place), (place, error)
        (tmp_path / "d" / file).write_bytes(data)
        with pytest.raises(relive.SnapshotError):
            (tmp_path / "d" / file).write_bytes(damaged)
            relive.snapshot.verify(tmp_path / "d")
        (tmp_path / "d" / file).write_bytes(data)


@pytest.mark.parametrize("name", ["max_uses", "compressed"])
def test_every_length_but_the_right_one_is_refused(name: str, tmp_path: Path) -> None:
    """Would catch: a file that is cut at the end of a block, or has something behind its last one."""
    files, _ = saved(name, tmp_path / "s")
    write(tmp_path / "d", files)
    for file, data in files.items():
        lengths = {*range(0, len(data), max(1, len(data) // 25)), len(data) - 1}
        for change in [*(data[:length] for length in sorted(lengths)), data + b"\0", data + data, data + b"\n"]:
            (tmp_path / "d" / file).write_bytes(change)
            assert str(tmp_path / "d") in str(refusal(tmp_path / "d"))
            with pytest.raises(relive.SnapshotError):
                relive.snapshot.verify(tmp_path / "d")
        (tmp_path / "d" / file).write_bytes(data)
    relive.snapshot.verify(tmp_path / "d")


@pytest.mark.parametrize("name", ["max_uses", "columns", "compressed"])
def test_files_that_are_something_else(name: str, tmp_path: Path) -> None:
    """Would catch: a directory, pipe, loop or other file in the place of one; an error that is no SnapshotError."""
    files, good = saved(name, tmp_path / "s")
    directory = tmp_path / "d"
    for file in files:
        path = directory / file
        write(directory, files)
        path.unlink()
        assert str(directory) in str(refusal(directory))
        for make in (
            path.mkdir,
            lambda path=path: path.symlink_to(path),
            lambda path=path: path.symlink_to("/dev/zero" if path.name != MANIFEST else "/nowhere"),
            *([lambda path=path: os.mkfifo(path)] if file != MANIFEST else []),
        ):
            make()
            assert str(directory) in str(refusal(directory))
            with pytest.raises(relive.SnapshotError):
                relive.snapshot.verify(directory)
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    write(directory, files)
    for first, second in itertools.combinations(files, 2):
        swapped = {**files, first: files[second], second: files[first]}
        if files[first] != files[second]:
            write(directory, swapped)
            refusal(directory)
    write(directory, {**files, "stranger.npy": b"?", f"{MANIFEST}.new": b"half", "999999-records.npy": b"orphan"})
    assert digest(relive.load(directory)) == good
    (tmp_path / "link").symlink_to(directory)
    assert digest(relive.load(tmp_path / "link")) == good


def test_no_snapshot_at_all(tmp_path: Path) -> None:
    """Would catch: another exception where there is nothing, a file, or something unreadable."""
    (tmp_path / "file").write_text("no directory")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "file", tmp_path / "empty", tmp_path / "nowhere", tmp_path / "file" / "below"):
        for read in (relive.load, relive.snapshot.read_note, relive.snapshot.verify):
            with pytest.raises(relive.SnapshotError, match=r"expected a snapshot, found (no manifest|no such|a file)"):
                read(path)
    with pytest.raises(relive.SnapshotError):
        relive.load("x" * 5000)
    with pytest.raises(relive.ConfigError):
        relive.load(tmp_path / "nul\0")


def test_the_block_that_is_damaged_is_named(tmp_path: Path) -> None:
    """Would catch: a message that gives the place of another block; the blocks after the first not compared."""
    buffer = relive.ReplayBuffer(9_000, relive.Schema(relive.Field("float32", (64,)), relive.Field("int64")), seed=0)
    values = np.random.default_rng(0).random((9_001, 64), np.float32)
    buffer.extend(values[:-1], np.zeros(9_000, int), np.zeros(9_000), np.zeros(9_000, bool), values[1:])
    buffer.save(tmp_path)
    path = max(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
    data = path.read_bytes()
    assert len(data) > 2 * BLOCK
    for place in (0, 200, BLOCK - 1, BLOCK, BLOCK + 500, 2 * BLOCK + 300, len(data) - 1):
        damaged = bytearray(data)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        error = refusal(tmp_path)
        assert str(path) in str(error)
        assert covers(error, place)
    path.write_bytes(data)
    loaded: Any = relive.load(tmp_path)
    assert (loaded.get(loaded.ids).next_obs == values[1:]).all()

"""A save is stopped, refused or cut from its power at every one of its calls; a snapshot is always there, whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_disk import Disk, FaultyOs, Stopped, faulty
from snapshot_worlds import WORLDS, World, contents, digest, write

import relive
from relive.snapshot import MANIFEST, read_manifest


@dataclass(frozen=True)
class Step:
    """One save of a sequence of them: what was on the disk before, and how the buffer comes to be saved."""

    name: str
    world: World
    before: dict[str, bytes] | None
    was: str | None  # digest of what is loaded before
    arrive: Callable[[Path], tuple[relive.ReplayBuffer, dict[str, Any]]]
    will: str  # digest of what is saved


def pushes(count: int) -> Callable[[World, relive.ReplayBuffer, list[int], Any], None]:
    """So many transitions."""
    return lambda world, buffer, times, rng: world.drive(buffer, times, rng, count)


def cleared(world: World, buffer: relive.ReplayBuffer, times: list[int], rng: Any) -> None:
    """Forgotten, and a few new ones."""
    buffer.clear()
    world.drive(buffer, times, rng, 3)


def drawn(world: World, buffer: relive.ReplayBuffer, times: list[int], rng: Any) -> None:
    """No new transition, but other priorities and another generator."""
    world.draw(buffer, rng)


SCRIPT: list[tuple[str, Any]] = [
    *[("first", pushes(9)), ("unchanged", pushes(0)), ("one more", pushes(1)), ("drawn", drawn)],
    *[("one", pushes(1)), ("absorbs", pushes(2)), ("wraps", pushes(70)), ("cleared", cleared)],
    *[("tiny", pushes(1)), ("another", None)],
]


FEW = ("first", "absorbs", "wraps", "another")
ALL = tuple(name for name, _ in SCRIPT)
MUCH = pytest.mark.slow


def steps(world: World, directory: Path, names: tuple[str, ...] = ALL) -> list[Step]:
    """The saves of a script of these names, each from the disk that the one before left."""
    made: list[Step] = []
    before: dict[str, bytes] | None = None
    was: str | None = None
    for number, (name, change) in enumerate(SCRIPT):

        def arrive(path: Path, number: int = number, change: Any = change, before: Any = before) -> Any:
            rng = np.random.default_rng(number)
            options: dict[str, Any] = {"compression": world.compression}
            if before is None or change is None:
                buffer, times = world.make(seed=number), [0] * world.lanes
            else:
                buffer, times = relive.load(path), relive.snapshot.read_note(path)
            if change is None:
                options["overwrite"] = True
            (change or pushes(20))(world, buffer, times, rng)
            return buffer, {**options, "note": times}

        buffer, options = arrive(directory)
        buffer.save(directory, **options)
        will = digest(buffer)
        made.append(Step(name, world, before, was, arrive, will))
        before, was = contents(directory), will
    return [step for step in made if step.name in names]


def restore(directory: Path, files: dict[str, bytes] | None) -> None:
    """Makes the disk what it was."""
    if files is None:
        write(directory, {})
        directory.rmdir()
    else:
        write(directory, files)


def found(directory: Path) -> str | None:
    """Digest of what can be loaded; None where there is no snapshot, and that is said."""
    try:
        return digest(relive.load(directory))
    except relive.SnapshotError as error:
        assert "expected a snapshot, found no" in str(error), error
        return None


def assert_tidy(directory: Path) -> None:
    """No file but those that count."""
    named = {file.name for file in read_manifest(directory).files} | {MANIFEST}
    assert {path.name for path in directory.iterdir()} <= {*named, f"{MANIFEST}.new"}


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small segments are absorbed after a few saves; and nothing waits for the real disk, whose power stays on."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr("relive.saving.SEGMENTS", 3)


@pytest.mark.parametrize(
    ("name", "names"),
    [("max_uses", FEW), *(pytest.param(name, ALL, marks=MUCH) for name in ("max_uses", "compressed", "stacked"))],
)
def test_stopped_after_every_call(name: str, names: tuple[str, ...], tmp_path: Path) -> None:
    """Would catch: a manifest that comes before what it names; files dropped before the manifest is there."""
    directory = tmp_path / "s"
    stops = 0
    for step in steps(WORLDS[name], tmp_path / "s", names):
        at, last = 0, False
        while not last:
            restore(directory, step.before)
            buffer, options = step.arrive(directory)
            with faulty(FaultyOs(at)) as fake:
                try:
                    buffer.save(directory, **options)
                    last = True
                except Stopped:
                    pass
            now = found(directory)
            assert now in (step.was, step.will), f"{step.name}, after call {at}"
            assert now == step.will or not last
            if now is not None:
                again = relive.load(directory)
                step.world.drive(again, relive.snapshot.read_note(directory), np.random.default_rng(at), at % 4)
            else:
                again, _ = step.arrive(directory)
            again.save(directory)
            assert found(directory) == digest(again), f"{step.name}, saved again after call {at}"
            assert_tidy(directory)
            at += 1
        stops += fake.count
    assert stops > 100


@pytest.mark.parametrize(
    ("fault", "forever", "names"),
    [
        (errno.EIO, False, FEW),
        (errno.ENOSPC, True, ("one", "absorbs")),
        pytest.param(errno.EIO, False, ALL, marks=MUCH),
        pytest.param(errno.ENOSPC, True, ALL, marks=MUCH),
    ],
)
def test_refused_at_every_call(fault: int, forever: bool, names: tuple[str, ...], tmp_path: Path) -> None:
    """Would catch: an error of the disk that is no SnapshotError; a buffer that cannot be saved after one."""
    directory, elsewhere = tmp_path / "s", tmp_path / "elsewhere"
    for step in steps(WORLDS["max_uses"], directory, names):
        restore(directory, step.before)
        buffer, options = step.arrive(directory)
        with faulty(FaultyOs()) as fake:
            buffer.save(directory, **options)
        for at in range(fake.count):
            restore(directory, step.before)
            buffer, options = step.arrive(directory)
            with faulty(FaultyOs(at, fault, forever=forever)) as broken:
                try:
                    buffer.save(directory, **options)
                    assert broken.failed == "unlink"  # nothing was lost that counts
                except relive.SnapshotError as error:
                    assert str(directory) in str(error)
                    assert error.__cause__ is None or isinstance(error.__cause__, OSError)
            assert found(directory) in (step.was, step.will), f"{step.name}, call {at} ({broken.failed})"
            assert digest(buffer) == step.will
            if at % 5 == 0:
                restore(elsewhere, {})
                buffer.save(elsewhere)
                assert found(elsewhere) == step.will
            buffer.save(directory, **options)
            assert found(directory) == step.will, f"{step.name}, call {at} ({broken.failed})"
            assert_tidy(directory)


@pytest.mark.parametrize(
    ("name", "names", "wild"),
    [
        ("max_uses", ("first", "absorbs", "another"), 1),
        *(pytest.param(name, ALL, 30, marks=MUCH) for name in ("max_uses", "stacked", "compressed")),
    ],
)
def test_power_loss_after_every_call(name: str, names: tuple[str, ...], wild: int, tmp_path: Path) -> None:
    """Would catch: a missing fsync, of a file, its directory or that one's parent; an early rename."""
    directory, after = tmp_path / "s", tmp_path / "after"
    rng = np.random.default_rng(5)
    tried = 0
    for step in steps(WORLDS[name], directory, names):
        restore(directory, step.before)
        buffer, options = step.arrive(directory)
        with faulty(FaultyOs()) as fake:
            buffer.save(directory, **options)
        disk = Disk.of(directory, step.before)
        seen: dict[Any, str | None] = {}
        for place, call in enumerate(fake.log):
            disk.apply(call)
            done = place == len(fake.log) - 1
            for files in disk.after_power_loss(rng, wild):
                key = None if files is None else tuple(sorted(files.items()))
                if key not in seen:
                    restore(after, files)
                    seen[key] = found(after)
                    tried += 1
                allowed = (step.will,) if done else (step.was, step.will)
                assert seen[key] in allowed, f"{step.name}, after {place}: {call[:2]}"
    assert tried > 150


def test_an_error_after_the_rename_keeps_both(tmp_path: Path) -> None:
    """Would catch: the old snapshot's files dropped while it is not certain which manifest the disk holds."""
    world, directory = WORLDS["max_uses"], tmp_path / "s"
    for step in steps(world, directory, FEW)[1:]:
        restore(directory, step.before)
        buffer, options = step.arrive(directory)
        with faulty(FaultyOs()) as fake:
            buffer.save(directory, **options)
        calls = [call for call in fake.log if call[0] != "unlink"]
        assert calls[-1] == ("sync", str(directory))
        restore(directory, step.before)
        buffer, options = step.arrive(directory)
        counted = fake.count - (len(fake.log) - len(calls)) - 1  # the last fsync
        with faulty(FaultyOs(counted, errno.EIO)) as broken, pytest.raises(relive.SnapshotError):
            buffer.save(directory, **options)
        assert broken.failed == "fsync"
        both = contents(directory)
        assert found(directory) == step.will
        write(directory, {**both, MANIFEST: step.before[MANIFEST]})  # the rename is undone
        assert found(directory) == step.was

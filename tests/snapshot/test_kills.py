"""A process that saves in a loop is killed at random instants: what is loaded is its last save, or the one begun."""

from __future__ import annotations

import os
import signal
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
from snapshot_worlds import WORLDS, World, digest

import relive
import relive.saving
from relive.snapshot import MANIFEST, read_manifest


def live(world: World, directory: Path, seed: int, tell: int) -> None:
    """Pushes, draws, updates and saves in a loop; says before a save what will be saved, and when it is done.

    Goes on with what it finds in the directory.
    """
    rng = np.random.default_rng(seed)
    relive.saving.SEGMENTS = 4
    os.fsync = lambda handle: None  # the power stays on; so more saves are killed

    def say(*words: str) -> None:
        os.write(tell, " ".join(words).encode() + b"\n")

    if (directory / MANIFEST).exists():
        buffer, times = relive.load(directory), relive.snapshot.read_note(directory)
        say("loaded", digest(buffer))
    else:
        buffer, times = world.make(), [0] * world.lanes
        say("loaded", "nothing")
    while True:
        world.drive(buffer, times, rng, int(rng.choice([0, 1, 2, 5, 30])))
        if rng.random() < 0.05:
            buffer.clear()
        say("begin", digest(buffer))
        world.save(buffer, directory, times)
        say("done")


def one_life(world: World, directory: Path, seed: int, rng: np.random.Generator) -> tuple[str, str | None, int]:
    """Runs a child until it is killed: digests of the last save it saw done and of the one under way; saves done."""
    hear, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            live(world, directory, seed, tell)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(tell)
    with os.fdopen(hear, "rb") as pipe:
        try:
            word, last = pipe.readline().decode().split()
            time.sleep(float(rng.uniform(0, 0.05)))
        finally:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        assert (word, status) == ("loaded", signal.SIGKILL), "it died by itself"
        coming, saves = None, 0
        for line in pipe.read().decode().split("\n")[:-1]:
            word, *rest = line.split()
            if word == "begin":
                coming = rest[0]
            else:
                assert coming is not None
                last, coming, saves = coming, None, saves + 1
    return last, coming, saves


def lives(kind: str, directory: Path, count: int, seconds: float) -> tuple[int, int, int]:
    """Kills so many children, or as many as fit in the time; how many, how many in a save, and how many saves."""
    rng = np.random.default_rng(count)
    world, started = WORLDS[kind], time.monotonic()
    inside = saves = life = 0
    known = "nothing"
    for life in range(1, count + 1):
        last, coming, done = one_life(world, directory, life, rng)
        assert done or last == known, "a child must load what we loaded"
        saves += done
        inside += coming is not None
        if (directory / MANIFEST).exists():
            loaded = relive.load(directory)
            assert digest(loaded) in (last, coming), f"life {life}"
            world.check(loaded)
            known = digest(loaded)
            named = {file.name for file in read_manifest(directory).files}
            others = {path.name for path in directory.iterdir()} - named - {MANIFEST, f"{MANIFEST}.new"}
            assert len(others) < 90, "what killed saves leave does not pile up"
            if life % 10 == 0:
                times = relive.snapshot.read_note(directory)
                world.drive(loaded, times, rng, 3)
                world.save(loaded, directory, times)
                assert {path.name for path in directory.iterdir()} <= {
                    *{file.name for file in read_manifest(directory).files},
                    *(MANIFEST, f"{MANIFEST}.new"),
                }
                known = digest(loaded)
        else:
            assert last == "nothing"
        if time.monotonic() - started > seconds:
            break
    return life, inside, saves


def test_killed_at_random_instants(tmp_path: Path) -> None:
    """Would catch: a snapshot that names a file that is not whole yet."""
    killed, inside, saves = lives("max_uses", tmp_path / "s", 300, 15)
    print(f"{killed} kills, {inside} of them in a save; {saves} saves")
    assert killed >= 20
    assert inside >= killed // 20
    assert saves >= killed // 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["prioritized", "ranked", "stacked", "columns", "shuffled", "compressed"])
def test_killed_thousands_of_times(kind: str, tmp_path: Path) -> None:
    """The same with every kind, and often."""
    killed, inside, _ = lives(kind, tmp_path / "s", 500, 3600)
    assert killed == 500
    assert inside > 25

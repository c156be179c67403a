"""Saves at bad moments, to bad places, of bad things."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import relive
from relive import disk
from relive.workers import Workers


def filled(count: int = 50) -> relive.ReplayBuffer:
    buffer = relive.ReplayBuffer(100, seed=0)
    for t in range(count):
        buffer.push(np.full(3, t, np.float32), 0, float(t), False, np.full(3, t + 1, np.float32))
    return buffer


@pytest.mark.parametrize("moment", ["atexit.register(work)", "threading.Thread(target=late).start()"])
def test_while_the_interpreter_ends(moment: str, tmp_path: Path) -> None:
    """Threads can no longer be made then: what they would do is done at once. A save at exit is a natural use."""
    code = f"""
import atexit, sys, threading, numpy as np, relive
buffer = relive.ReplayBuffer(200_000, seed=0)  # large enough for work to be handed over
obs = np.arange(600_003, dtype=np.float32).reshape(-1, 3)
buffer.extend(obs[:-1], np.zeros(200_000, np.int64), np.zeros(200_000), np.zeros(200_000, np.bool_), obs[1:])
def work():
    buffer.save({str(tmp_path / "s")!r})
    print(len(relive.load({str(tmp_path / "s")!r})))
def late():
    threading.main_thread().join()
    work()
{moment}
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100)
    assert (ended.stdout, ended.stderr) == ("200000\n", "")
    assert len(relive.load(tmp_path / "s")) == 200_000


@pytest.mark.parametrize("name", ["000001-records.npy", "manifest.json.new"])
def test_nothing_is_written_through_a_link(name: str, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / name).symlink_to(precious)
    filled().save(tmp_path / "s")
    assert precious.read_text() == "precious"
    assert len(relive.load(tmp_path / "s")) == 50


@pytest.mark.parametrize("name", ["000001-records.npy", "manifest.json.new"])
def test_a_pipe_in_the_place_of_a_file_makes_nobody_wait(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    filled().save(tmp_path)
    assert len(relive.load(tmp_path)) == 50


def test_a_pipe_in_the_place_of_the_manifest(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(relive.SnapshotError, match="something else"):
        relive.load(tmp_path)
    with pytest.raises(relive.SnapshotError, match="something else"):
        filled().save(tmp_path)


def test_a_child_forked_during_a_save_keeps_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child has the locked directory open as well; the parent's lock must end with the parent's save."""
    buffer, forked, inside = filled(), threading.Event(), threading.Event()
    sync = disk.sync_directory

    def slowly(directory: Path) -> None:
        inside.set()
        forked.wait(30)
        sync(directory)

    monkeypatch.setattr(disk, "sync_directory", slowly)
    saving = threading.Thread(target=buffer.save, args=(tmp_path,))
    saving.start()
    inside.wait(30)
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        forked.set()
        saving.join()
        buffer.save(tmp_path)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_what_could_not_be_read_back_is_refused_at_once() -> None:
    """A dtype with titles: saved, it could never be loaded."""
    titled = np.dtype([(("title", "a"), "f4")])
    with pytest.raises(relive.ConfigError, match="titles"):
        relive.Field(titled)
    nested = np.dtype([("a", [("b", "<f4"), ("c", "<i8", (2,))]), ("d", "U3")])
    assert (
        relive.Schema.from_dict(relive.Schema(relive.Field(nested), relive.Field("i8")).to_dict()).obs.dtype == nested
    )


def deep() -> object:
    note: list[object] = []
    for _ in range(100_000):
        note = [note]
    return note


@pytest.mark.parametrize(
    "note", [deep(), {1, 2}, float("nan"), [10**5000], b"x"], ids=["deep", "set", "nan", "huge", "b"]
)
def test_a_note_that_cannot_be_written_stops_the_save_before_it_begins(note: object, tmp_path: Path) -> None:
    with pytest.raises(relive.ConfigError, match=r"^note: expected what JSON can hold"):
        filled().save(tmp_path / "s", note=note)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("path", [None, 3, b"bytes", "", "a\0b"])
def test_paths_that_are_none(path: object) -> None:
    for verb in (filled().save, relive.load, relive.attach, relive.snapshot.verify, relive.snapshot.read_note):
        with pytest.raises(relive.ConfigError, match="expected the path of a directory"):
            verb(path)


def test_interrupted_loads_leave_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt can come between any two lines, also just after a file was opened."""
    filled().save(tmp_path)
    checked = disk.Spring._check

    def interrupted(self: disk.Spring, number: int, into: memoryview) -> memoryview:
        raise KeyboardInterrupt

    monkeypatch.setattr(disk.Spring, "_check", interrupted)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(KeyboardInterrupt):
            relive.load(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
    monkeypatch.setattr(disk.Spring, "_check", checked)
    assert len(relive.load(tmp_path)) == 50


def test_work_is_done_once_where_no_thread_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Done now and again later, a checksum would be wrong."""
    done: list[int] = []
    workers = Workers(1)
    with monkeypatch.context() as patch:
        patch.setattr("_thread.start_new_thread", refuse_to_start)
        first = workers.submit(done.append, 1)
    second = workers.submit(done.append, 2)
    workers.__exit__()
    assert (first.result(), second.result()) == (None, None)
    assert done == [1, 2]


def refuse_to_start(*args: object) -> None:
    raise RuntimeError("can't start new thread")


INTERRUPTED = """
import faulthandler, os, signal, sys, threading
import numpy as np, relive
faulthandler.dump_traceback_later(100, exit=True)
os.fsync = lambda file: None
path, seed = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(seed)
schema = relive.Schema(relive.Field("float32", (4,)), relive.Field("int64"))
buffer = relive.ReplayBuffer(1_000, schema, sampler=relive.Prioritized(), seed=0)

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
caught = 0
for number in range(int(sys.argv[3])):
    for step in range(int(rng.integers(1, 4))):
        buffer.push(np.full(4, number, np.float32), 0, step, False, np.full(4, number + 1, np.float32))
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, rng.random() * 0.008))
            buffer.save(path, note=number)
            relive.load(path)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        caught += 1
    if number % 50 == 49:
        buffer.save(path)  # never refused, nor does it wait for ever
        assert (relive.load(path).ids == buffer.ids).all()
assert caught > 20, caught
assert len(os.listdir("/proc/self/fd")) < 40  # one is lost where the interrupt comes as the system opens it
"""


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))])
def test_interrupts_at_any_moment_leave_nothing_taken(seed: int, tmp_path: Path) -> None:
    """Would catch: a lock of a pool of threads, or of the directory, that an interrupted save leaves taken for ever."""
    saves = 200 if seed == 0 else 2_000
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, tmp_path / "s", str(seed), str(saves)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr

"""Everything else about a buffer in a file: who may open it, what is refused, what is left behind."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import relive
from relive import mapped

SCHEMA = relive.Schema(relive.Field("float32", (3,)), relive.Field("int64"))


@pytest.fixture
def root() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp())
    yield path
    shutil.rmtree(path)


def make(path: Path, count: int = 50, sync: int | None = None, **options: Any) -> relive.ReplayBuffer:
    options = {"sampler": relive.Prioritized(), "seed": 1, **options}
    buffer = relive.ReplayBuffer(20, SCHEMA, storage=relive.Mmap(str(path), sync), **options)
    fill(buffer, 0, count)
    return buffer


def fill(buffer: relive.ReplayBuffer, first: int, last: int) -> None:
    for step in range(first, last):
        buffer.push(np.full(3, step, np.float32), step % 4, step, step % 6 == 0, np.full(3, step + 1, np.float32))


def right(buffer: Any) -> bool:
    """Every transition is the one that was pushed under its id."""
    ids = buffer.ids
    batch = buffer.get(ids)
    return bool(
        (batch.obs == ids[:, None]).all()
        and (batch.next_obs == ids[:, None] + 1).all()
        and (batch.action == ids % 4).all()
        and (batch.terminated == (ids % 6 == 0)).all()
    )


def run(code: str, *args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    head = "import numpy as np, os, relive, signal, sys\n"
    command = [sys.executable, "-c", head + code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


# Making one.


def test_files_are_for_their_owner_alone(root: Path) -> None:
    buffer = make(root / "a", sync=5)
    for name in (mapped.ARENA, mapped.CARD, mapped.SYNCED):
        assert stat.S_IMODE((root / "a" / name).stat().st_mode) == 0o600, name
    assert "Mmap(path=" in repr(buffer) and "sync=5" in repr(buffer)


def test_a_buffer_whose_description_is_gone_is_not_written_over(root: Path) -> None:
    """Would catch: `if (path / "buffer.json").exists(): attach` else a new one, which costs all that was pushed."""
    buffer = make(root / "a", count=30)
    del buffer
    card = (root / "a" / mapped.CARD).read_bytes()
    (root / "a" / mapped.CARD).unlink()
    with pytest.raises(relive.ConfigError, match=r"got 30 transitions, without its buffer\.json\. Put that back"):
        make(root / "a")
    (root / "a" / mapped.CARD).write_bytes(card)
    assert right(relive.attach(root / "a"))


def test_one_that_was_never_described_is_written_over(root: Path) -> None:
    """Its process was killed while it made the file."""
    buffer = make(root / "a", count=0)
    del buffer
    (root / "a" / mapped.CARD).unlink()
    assert right(make(root / "a"))


def test_what_opens_another_kind_of_directory_is_named(root: Path) -> None:
    buffer = make(root / "a")
    buffer.save(root / "s")
    with pytest.raises(relive.SnapshotError, match=r"Use relive\.attach"):
        relive.load(root / "a")
    with pytest.raises(relive.SnapshotError, match=r"use relive\.load"):
        relive.attach(root / "s")
    with pytest.raises(relive.SnapshotError, match=r"relive\.interop\.read reads datasets"):
        relive.load(root / "a" / mapped.CARD)
    (root / "run" / "checkpoint" / "replay").mkdir(parents=True)
    with pytest.raises(relive.SnapshotError, match=r"a run\. Its buffer is in .*replay"):
        relive.load(root / "run")


@pytest.mark.parametrize("path", ["", 3, None, b"x", "a\0b"])
def test_paths_that_are_none(path: Any) -> None:
    with pytest.raises(relive.ConfigError, match="path of a directory"):
        relive.Mmap(path)


@pytest.mark.parametrize("sync", [0, 1, -1, 2.0, True, "3"])
def test_syncs_that_cannot_be(sync: Any) -> None:
    with pytest.raises(relive.ConfigError, match="sync"):
        relive.Mmap("x", sync)


def test_a_path_that_cannot_be_a_directory(root: Path) -> None:
    (root / "file").write_text("mine")
    with pytest.raises(relive.ConfigError, match="File exists"):
        make(root / "file")
    for path in (root / "file" / "below", Path("/proc/none/a"), root / ("x" * 300)):
        with pytest.raises(relive.ConfigError, match="directory to write to"):
            make(path)
    assert (root / "file").read_text() == "mine"


def test_a_buffer_that_is_there_is_not_overwritten(root: Path) -> None:
    buffer = make(root / "a")
    with pytest.raises(relive.ConfigError, match=r"relive\.attach"):
        make(root / "a")
    assert right(buffer)
    del buffer
    with pytest.raises(relive.ConfigError, match=r"relive\.attach"):
        make(root / "a")
    assert right(relive.attach(root / "a"))


def test_no_room(root: Path) -> None:
    big = relive.Schema(relive.Field("uint8", (1 << 20,)), relive.Field("int64"))
    with pytest.raises(relive.ConfigError, match="bytes of room"):
        relive.ReplayBuffer(1 << 22, big, storage=relive.Mmap(str(root / "a")))
    assert not any((root / "a").iterdir())
    assert right(make(root / "a"))


def test_what_fails_while_it_is_made_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(mapped.Mmap, "describe", fail)
        with pytest.raises(MemoryError):
            make(root / "a")
    assert not any((root / "a").iterdir())
    assert right(make(root / "a"))


def test_remains_of_one_that_was_removed_are_not_believed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A note of what was synced outlives the file it is about, and would vouch for another one's transitions."""
    del_me = make(root / "a", sync=5)
    del del_me
    (root / "a" / mapped.CARD).unlink()
    (root / "a" / mapped.ARENA).unlink()
    buffer = make(root / "a", 10)
    assert not (root / "a" / mapped.SYNCED).exists()
    del buffer


def test_schema_from_the_first_push(root: Path) -> None:
    buffer = relive.ReplayBuffer(20, storage=relive.Mmap(str(root / "a")), seed=1)
    assert not (root / "a").exists()
    fill(buffer, 0, 30)
    expected = buffer.sample(5).ids.tolist()
    del buffer
    again = relive.attach(root / "a")
    assert again.schema == relive.Schema(relive.Field("float32", (3,)), relive.Field("int64"))
    assert again.sample(5).ids.tolist() != expected  # it goes on, it does not begin again
    assert right(again)


# Attaching.


def test_nothing_is_there(root: Path) -> None:
    for path in (root, root / "none"):
        with pytest.raises(relive.SnapshotError, match=r"no buffer\.json"):
            relive.attach(path)
    make(root / "a")
    (root / "a" / mapped.ARENA).unlink()
    with pytest.raises(relive.SnapshotError, match="found none"):
        relive.attach(root / "a")


def test_in_use(root: Path) -> None:
    buffer = make(root / "a")
    with pytest.raises(relive.SnapshotError, match="nobody has open"):
        relive.attach(root / "a")
    code = "try: relive.attach(sys.argv[1])\nexcept relive.SnapshotError as error: print(error)"
    assert "nobody has open" in run(code, root / "a").stdout
    del buffer
    assert run("relive.attach(sys.argv[1]); print('open')", root / "a").stdout == "open\n"


def test_readers_and_prefetching_keep_it_open(root: Path) -> None:
    buffer = make(root / "a")
    reader = buffer.reader(sampler=relive.Uniform())
    batches = buffer.batches(4, prefetch=2)
    next(batches)
    del buffer
    assert reader.sample(4).ids.min() >= 30
    with pytest.raises(relive.SnapshotError):
        relive.attach(root / "a")
    del reader
    with pytest.raises(relive.SnapshotError):
        relive.attach(root / "a")
    batches.close()
    del batches
    assert right(relive.attach(root / "a"))


def test_other_axes_are_refused_and_code_has_to_be_given(root: Path) -> None:
    def reached(achieved: Any, desired: Any) -> Any:
        return (achieved == desired).all(-1).astype(np.float32)

    goals = {name: relive.Field("float32", (2,)) for name in ("achieved_goal", "desired_goal")}
    view = relive.Transitions(relabel=relive.Hindsight("future", 4, reached))
    storage = relive.Mmap(str(root / "a"))
    relive.ReplayBuffer(20, relive.Schema(goals, relive.Field("int64")), view=view, storage=storage)
    with pytest.raises(relive.ConfigError, match="Pass view="):
        relive.attach(root / "a")
    with pytest.raises(relive.ConfigError, match=r"buffer\.reader"):
        relive.attach(root / "a", view=relive.Transitions(n=2))
    assert relive.attach(root / "a", view=view).view == view

    class First:
        def draw(self, ids: Any, n: int, rng: Any) -> Any:
            return np.repeat(ids[:1], n), None

    buffer = make(root / "b", sampler=First())
    del buffer
    with pytest.raises(relive.ConfigError, match="Pass sampler="):
        relive.attach(root / "b")
    with pytest.raises(relive.ConfigError, match=r"buffer\.reader"):
        relive.attach(root / "b", sampler=relive.Uniform())
    assert relive.attach(root / "b", sampler=First()).sample(3).ids.tolist() == [30] * 3


# Damage.


@pytest.mark.parametrize("name", [mapped.ARENA, mapped.CARD])
def test_cut_and_longer_files(root: Path, name: str) -> None:
    make(root / "a")
    data = (root / "a" / name).read_bytes()
    for size in sorted({0, 1, len(data) // 2, len(data) - 1}):
        (root / "a" / name).write_bytes(data[:size])
        with pytest.raises(relive.SnapshotError, match=name):
            relive.attach(root / "a")
    (root / "a" / name).write_bytes(data + b"x")
    with pytest.raises(relive.SnapshotError, match=name):
        relive.attach(root / "a")
    (root / "a" / name).unlink()
    (root / "a" / name).mkdir()
    with pytest.raises(relive.SnapshotError, match=name):
        relive.attach(root / "a")


def test_flipped_bits_of_the_card(root: Path) -> None:
    make(root / "a")
    card = root / "a" / mapped.CARD
    data = card.read_bytes()
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        card.write_bytes(damaged)
        with pytest.raises(relive.SnapshotError, match=mapped.CARD):
            relive.attach(root / "a")


@pytest.mark.parametrize("killed", [False, True])
def test_flipped_bits_of_headers(root: Path, killed: bool) -> None:
    """They are found, or what is shown is right nevertheless."""
    buffer = make(root / "a")
    if killed:
        shutil.copytree(root / "a", root / "b")  # nothing is pushed meanwhile
        del buffer
        shutil.rmtree(root / "a")
        (root / "b").rename(root / "a")
    else:
        del buffer
    file = root / "a" / mapped.ARENA
    data = file.read_bytes()
    refused = 0
    for place in [*range(128), *range(4096, 4096 + 64)]:  # of the buffer, and of its lane
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        file.write_bytes(damaged)
        try:
            buffer = relive.attach(root / "a")
        except relive.SnapshotError as error:
            assert mapped.ARENA in str(error)
            refused += 1
            continue
        assert right(buffer)
        del buffer
    assert refused > 80


# How it ends.


def test_the_end_of_the_process_closes_it(root: Path) -> None:
    code = """
buffer = relive.ReplayBuffer(20, storage=relive.Mmap(sys.argv[1]), sampler=relive.samplers.RankBased(), seed=1)
for step in range(50): buffer.push(np.full(3, step, np.float32), step % 4, step, step % 6 == 0,
                                   np.full(3, step + 1, np.float32))
batches = buffer.batches(4, prefetch=3)
next(batches)
"""
    result = run(code, root / "a")
    assert result.returncode == 0, result.stderr
    # Closed is closed on every boot, and without a sync.
    code = "relive.mapped.this_boot = lambda: 7\nprint(len(relive.attach(sys.argv[1])))"
    result = run(code, root / "a")
    assert result.stdout == "20\n", result.stderr


def test_without_sync_a_power_loss_is_refused_in_words(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after an attach without `sync` to a buffer that had one: what was synced then is overwritten since."""
    for first in (None, 5):
        path = root / str(first)
        del_me = make(path, sync=first)
        del del_me
        buffer = relive.attach(path)
        fill(buffer, 50, 90)
        shutil.copytree(path, root / f"{first} lost")
        del buffer
        with monkeypatch.context() as patch:
            patch.setattr(mapped, "this_boot", lambda: 7)
            with pytest.raises(relive.SnapshotError, match="synced before the machine went down"):
                relive.attach(root / f"{first} lost")


def test_an_open_file_says_so_on_the_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header that says 'closed' is replaced before anything else changes, not some time after it."""
    del_me = make(root / "a", sync=5)
    del del_me
    closed: list[bool] = []

    class Noted(mmap.mmap):
        def flush(self, *args: int) -> None:
            closed.append(mapped.read_seal(self)[0])
            super().flush(*args)

    names = {name: getattr(mmap, name) for name in ("MAP_SHARED", "PAGESIZE", "MADV_RANDOM")}
    monkeypatch.setattr(mapped, "mmap", SimpleNamespace(mmap=Noted, **names))
    buffer = relive.attach(root / "a")
    assert closed == [False]
    del buffer
    assert closed == [False, False, True]  # everything, and only then that it is closed


def test_a_child_of_a_fork_ends(root: Path) -> None:
    """Its end must not mark the file as closed, nor take what is open from its parent; it may draw."""
    code = """
buffer = relive.ReplayBuffer(20, storage=relive.Mmap(sys.argv[1]), seed=1)
def fill(first, last):
    for step in range(first, last):
        buffer.push(np.full(3, step, np.float32), step % 4, step, step % 6 == 0, np.full(3, step + 1, np.float32))
fill(0, 30)
child = os.fork()
if child == 0:
    ids = buffer.sample(8).ids
    assert ids.min() >= 10
    sys.exit(5)  # with all that Python does at its end
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
assert not relive._core.read_seal(buffer._engine.core and open(sys.argv[1] + '/arena', 'r+b').read() and
                                  bytearray(open(sys.argv[1] + '/arena', 'rb').read()))[0], 'the child closed it'
fill(30, 60)
os.kill(os.getpid(), signal.SIGKILL)
"""
    result = run(code, root / "a")
    assert result.returncode == -signal.SIGKILL, result.stderr
    buffer = relive.attach(root / "a")
    assert buffer.ids.tolist() == list(range(40, 60))
    assert right(buffer)


# With snapshots.


def test_save_and_load(root: Path) -> None:
    buffer = make(root / "a")
    expected = buffer.sample(5, beta=1.0)
    buffer.save(root / "saved")
    moved = relive.load(root / "saved", storage=relive.Mmap(str(root / "b"), sync=4))
    twin = relive.load(root / "saved")
    assert moved.storage == relive.Mmap(str(root / "b"), 4)
    for _ in range(3):
        assert moved.sample(5, beta=1.0).ids.tolist() == twin.sample(5, beta=1.0).ids.tolist()
    del moved
    again = relive.attach(root / "b")
    assert right(again) and again.sample(5).ids.tolist() == twin.sample(5).ids.tolist()
    assert len(expected.ids) == 5


def test_a_load_that_fails_leaves_no_buffer(root: Path) -> None:
    """Nor one that is killed: it can be attached to once all of it is there."""
    make(root / "a").save(root / "saved")
    records = next((root / "saved").glob("*-records.npy"))
    data = bytearray(records.read_bytes())
    data[-1] ^= 1
    records.write_bytes(data)
    with pytest.raises(relive.SnapshotError, match="records"):
        relive.load(root / "saved", storage=relive.Mmap(str(root / "b")))
    assert not any((root / "b").iterdir())


def test_what_a_load_brought_is_synced(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(root / "a").save(root / "saved")
    loaded = relive.load(root / "saved", storage=relive.Mmap(str(root / "b"), sync=5))
    shutil.copytree(root / "b", root / "lost")
    del loaded
    monkeypatch.setattr(mapped, "this_boot", lambda: 7)
    found = relive.attach(root / "lost")
    assert len(found) > 20 - 2 * 5 and right(found)


# Larger than memory.

FILL = """
import resource
capacity, side = 6_000, 64 * 64
schema = relive.Schema(relive.Field('uint8', (side,)), relive.Field('int64'))
def image(step):
    return np.random.default_rng(step).integers(0, 256, side, np.uint8)
def check(batch):
    for i, step in enumerate(batch.ids.tolist()):
        assert (batch.obs[i] == image(step)).all() and (batch.next_obs[i] == image(step + 1)).all(), step
def use(storage):
    buffer = relive.ReplayBuffer(capacity, schema, storage=storage, seed=0)
    for step in range(capacity + 500): buffer.push(image(step), 0, 0.0, step % 50 == 49, image(step + 1))
    for _ in range(30): check(buffer.sample(16))
    return buffer
"""


def test_larger_than_the_memory_of_the_process(root: Path) -> None:
    """24 MB of frames where 8 MB may be allocated: memory does not suffice, a file does."""
    code = (
        FILL
        + """
used = int(open('/proc/self/statm').read().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (used + 8 * 2**20,) * 2)
try:
    use(relive.Memory())
except relive.ConfigError as error:
    assert 'address space' in str(error), error
else:
    raise AssertionError('the limit does not hold')
use(relive.Mmap(sys.argv[1]))
print('done')
"""
    )
    result = run(code, root / "a", env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    assert result.stdout == "done\n", result.stderr


def cgroup_of(limit: int) -> Path | None:
    """A new group of processes below ours that may use so much memory, what the system caches for it included."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, own = line.split(":", 2)
        if names == "memory":
            base, knob = Path("/sys/fs/cgroup/memory" + own), "memory.limit_in_bytes"
        elif names == "":
            base, knob = Path("/sys/fs/cgroup" + own), "memory.max"
        else:
            continue
        group = base / f"relive-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / knob).write_text(str(limit))
            return group
        except OSError:
            group.rmdir()
    return None


def test_larger_than_the_memory_of_the_machine(root: Path) -> None:
    """The same where pages of files count too: the system has to write them out and read them again."""
    group = cgroup_of(40 * 2**20)
    if group is None:
        pytest.skip("the system lets us make no group of processes with a memory limit")
    try:
        code = (
            FILL.replace("6_000", "18_000")
            + """
open(sys.argv[2] + '/cgroup.procs', 'w').write(str(os.getpid()))
buffer = use(relive.Mmap(sys.argv[1]))
del buffer
check(relive.attach(sys.argv[1]).sample(64))
print('done')
"""
        )
        result = run(code, root / "a", group, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
        assert result.stdout == "done\n", result.stderr
    finally:
        group.rmdir()

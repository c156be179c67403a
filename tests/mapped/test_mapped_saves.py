"""A buffer in a file goes on saving where its last process did, and nowhere where that would mix two buffers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import relive
from relive import mapped, saving

SCHEMA = relive.Schema(relive.Field("float32", (64,)), relive.Field("int64"))


def make(path: Path, sync: int | None = None) -> relive.ReplayBuffer:
    storage = relive.Mmap(str(path), sync)
    return relive.ReplayBuffer(2_000, SCHEMA, storage=storage, sampler=relive.Prioritized(), seed=1)


def fill(buffer: relive.ReplayBuffer, count: int) -> None:
    """Transitions that say their ids, in episodes of seven steps."""
    for step in range(buffer.num_pushed, buffer.num_pushed + count):
        obs = np.full((2, 64), [[step], [step + 1]], np.float32)
        buffer.push(obs[0], step % 4, step, step % 7 == 6, obs[1])


def assert_same(directory: Path, buffer: relive.ReplayBuffer) -> None:
    saved = relive.load(directory)
    assert saved.ids.tolist() == buffer.ids.tolist()
    for one, other in zip(saved.get(saved.ids), buffer.get(buffer.ids), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(saved.get(saved.ids).obs[:, 0], saved.ids)
    first, second = saved.sample(32, beta=0.4), buffer.sample(32, beta=0.4)
    np.testing.assert_array_equal(first.ids, second.ids)
    np.testing.assert_array_equal(first.weight, second.weight)


@pytest.mark.parametrize("loaded", [False, True])
def test_what_is_attached_to_saves_what_is_new(loaded: bool, tmp_path: Path) -> None:
    buffer = make(tmp_path / "m0")
    fill(buffer, 1_000)
    whole = buffer.save(tmp_path / "s")
    if loaded:
        buffer = relive.load(tmp_path / "s", storage=relive.Mmap(str(tmp_path / "m1")))
    path = tmp_path / ("m1" if loaded else "m0")
    for _ in range(3):
        del buffer
        buffer = relive.attach(path)
        fill(buffer, 10)
        buffer.update_priorities(buffer.ids[-5:], np.arange(5.0))
        assert buffer.save(tmp_path / "s") < whole / 4
        assert_same(tmp_path / "s", buffer)


def test_after_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from test_mapped_saves import fill, make; root = Path(sys.argv[1])\n"
        "buffer = make(root / 'm'); fill(buffer, 900); buffer.save(root / 's'); fill(buffer, 300)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    here = os.fspath(Path(__file__).parent)
    assert subprocess.run([sys.executable, "-c", code, tmp_path, here], check=False).returncode == -signal.SIGKILL
    buffer = relive.attach(tmp_path / "m")
    fill(buffer, 1_500)
    buffer.save(tmp_path / "s")
    assert_same(tmp_path / "s", buffer)


def test_of_two_copies_one_goes_on(tmp_path: Path) -> None:
    buffer = make(tmp_path / "m")
    fill(buffer, 100)
    buffer.save(tmp_path / "s")
    del buffer
    shutil.copytree(tmp_path / "m", tmp_path / "copy")
    one, other = relive.attach(tmp_path / "m"), relive.attach(tmp_path / "copy")
    fill(one, 10)
    fill(other, 20)
    one.save(tmp_path / "s")
    for again in range(2):
        with pytest.raises(relive.ConfigError, match="overwrite=True"):
            other.save(tmp_path / "s")
        if not again:
            del other
            other = relive.attach(tmp_path / "copy")
    assert_same(tmp_path / "s", one)


def test_an_arena_put_back_does_not_go_on(tmp_path: Path) -> None:
    """Its times come again, with other transitions than those that were saved."""
    buffer = make(tmp_path / "m")
    fill(buffer, 100)
    buffer.save(tmp_path / "s")
    del buffer
    shutil.copy(tmp_path / "m" / "arena", tmp_path / "backup")
    buffer = relive.attach(tmp_path / "m")
    fill(buffer, 7)
    buffer.save(tmp_path / "s")
    del buffer
    shutil.copy(tmp_path / "backup", tmp_path / "m" / "arena")
    buffer = relive.attach(tmp_path / "m")
    fill(buffer, 20)
    with pytest.raises(relive.ConfigError, match="overwrite=True"):
        buffer.save(tmp_path / "s")
    buffer.save(tmp_path / "s", overwrite=True)
    assert_same(tmp_path / "s", buffer)


def test_what_lost_some_of_it_does_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power loss times come again, with other transitions."""
    monkeypatch.setattr(mapped, "this_boot", lambda: 1)
    buffer = make(tmp_path / "m", sync=100)
    fill(buffer, 290)
    buffer.save(tmp_path / "s")
    shutil.copytree(tmp_path / "m", tmp_path / "after")
    monkeypatch.setattr(mapped, "this_boot", lambda: 2)
    after = relive.attach(tmp_path / "after", sync=100)
    assert len(after) < 290
    with pytest.raises(relive.ConfigError, match="overwrite=True"):
        after.save(tmp_path / "s")
    after.save(tmp_path / "s", overwrite=True)
    assert_same(tmp_path / "s", after)


@pytest.mark.parametrize("appeared", [False, True])
def test_killed_around_the_moment_it_appears(appeared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either snapshot may be there: the attached one knows both."""
    buffer = make(tmp_path / "m")
    fill(buffer, 100)
    buffer.save(tmp_path / "s")
    fill(buffer, 10)
    commit = saving.commit

    def killed(directory: Path, manifest: relive.snapshot.Manifest) -> None:
        if appeared:
            commit(directory, manifest)
        raise KeyboardInterrupt

    monkeypatch.setattr(saving, "commit", killed)
    with pytest.raises(KeyboardInterrupt):
        buffer.save(tmp_path / "s")
    monkeypatch.undo()
    del buffer
    buffer = relive.attach(tmp_path / "m")
    assert len(relive.load(tmp_path / "s")) == (110 if appeared else 100)
    fill(buffer, 5)
    buffer.save(tmp_path / "s")
    assert_same(tmp_path / "s", buffer)


def test_a_spoilt_memory_of_saves_is_none(tmp_path: Path) -> None:
    buffer = make(tmp_path / "m")
    fill(buffer, 100)
    buffer.save(tmp_path / "s")
    del buffer
    (tmp_path / "m" / "saves.json").write_text("{}")
    buffer = relive.attach(tmp_path / "m")
    with pytest.raises(relive.ConfigError, match="overwrite=True"):
        buffer.save(tmp_path / "s")
    buffer.save(tmp_path / "s", overwrite=True)
    assert_same(tmp_path / "s", buffer)


def test_directories_that_were_moved(tmp_path: Path) -> None:
    """On the next machine the disk is mounted elsewhere."""
    (tmp_path / "here").mkdir()
    buffer = make(tmp_path / "here" / "m")
    fill(buffer, 1_000)
    whole = buffer.save(tmp_path / "here" / "s")
    del buffer
    (tmp_path / "here").rename(tmp_path / "there")
    buffer = relive.attach(tmp_path / "there" / "m")
    fill(buffer, 10)
    assert buffer.save(tmp_path / "there" / "s") < whole / 4
    (tmp_path / "there" / "s").rename(tmp_path / "s")
    fill(buffer, 10)
    assert buffer.save(tmp_path / "s") < whole / 4
    assert_same(tmp_path / "s", buffer)


def test_two_directories_by_turns_and_a_backup_of_one(tmp_path: Path) -> None:
    buffer = make(tmp_path / "m")
    fill(buffer, 1_000)
    whole = buffer.save(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "backup")
    for turn in range(6):
        fill(buffer, 200)
        buffer.save(tmp_path / ("a", "b")[turn % 2])
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "backup").rename(tmp_path / "a")
    fill(buffer, 10)
    buffer.save(tmp_path / "a")
    assert_same(tmp_path / "a", buffer)
    fill(buffer, 10)
    assert buffer.save(tmp_path / "b") < whole / 2
    assert_same(tmp_path / "b", buffer)


def test_many_saves_elsewhere_come_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: an archive of each hour that is refused, because a checkpoint of each minute came between."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    buffer = make(tmp_path / "m")
    fill(buffer, 100)
    buffer.save(tmp_path / "hourly")
    for _ in range(100):
        fill(buffer, 1)
        buffer.save(tmp_path / "often")
    del buffer
    buffer = relive.attach(tmp_path / "m")
    buffer.save(tmp_path / "hourly")
    assert_same(tmp_path / "hourly", buffer)

"""Named shared memory: who may have it, when it goes, and what is said when it cannot be."""

from __future__ import annotations

import errno
import gc
import os
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relive import segment as module
from relive.errors import ConfigError, SnapshotError
from relive.segment import Segment

PROGRAM = Path(__file__).with_name("segment_programs.py")


@pytest.fixture
def name() -> Iterator[str]:
    """A name that is free, and is again afterwards."""
    name = "test-" + module.draw_name()
    yield name
    path_of(name).unlink(missing_ok=True)


def path_of(name: str) -> Path:
    return module.DIRECTORY / f"relive-{name}"


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def start(action: str, name: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), action, name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "made\n"
    return process


def test_two_openings_are_one_memory(name: str) -> None:
    made = Segment.create(name, "test", {"n": [1, 2.5, None]}, 12_345, [(0, 4096)])
    opened = Segment.open(name, "test", made.key)
    assert (opened.name, opened.key, opened.card) == (name, made.key, {"n": [1, 2.5, None]})
    assert len(made.payload) == len(opened.payload) == 12_345
    assert bytes(opened.payload) == bytes(12_345)
    made.payload[12_344] = 7
    opened.payload[0] = 9
    assert opened.payload[12_344] == 7 and made.payload[0] == 9
    import numpy as np

    assert np.frombuffer(made.payload, np.uint8).ctypes.data % 4096 == 0
    made.close()


def test_a_card_longer_than_a_page_moves_the_payload(name: str) -> None:
    card = {"text": "x" * 20_000}
    made = Segment.create(name, "test", card, 8)
    assert Segment.open(name, "test").card == card
    made.close()


def test_the_file_is_its_users_alone(name: str) -> None:
    before = os.umask(0)
    try:
        made = Segment.create(name, "test", {}, 8)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path_of(name).stat().st_mode) == 0o600
    made.close()


def test_close_removes_the_name_and_leaves_the_memory(name: str) -> None:
    made = Segment.create(name, "test", {}, 8)
    opened = Segment.open(name, "test")
    assert made.owner_alive and opened.owner_alive
    made.close()
    made.close()
    assert not path_of(name).exists()
    assert not made.owner_alive and not opened.owner_alive
    opened.payload[0] = 5
    assert made.payload[0] == 5
    opened.close()
    opened.close()
    Segment.create(name, "test", {}, 8).close()


def test_who_opened_it_does_not_remove_it(name: str) -> None:
    made = Segment.create(name, "test", {}, 8)
    opened = Segment.open(name, "test")
    opened.close()
    assert made.owner_alive and path_of(name).exists()
    made.close()


def test_dropping_it_removes_the_name(name: str) -> None:
    made = Segment.create(name, "test", {}, 8)
    payload = made.payload
    del made
    gc.collect()
    assert not path_of(name).exists()
    payload[0] = 1  # still mapped


def test_a_later_segment_of_the_name_is_another_one(name: str) -> None:
    first = Segment.create(name, "test", {}, 8)
    key = first.key
    first.close()
    second = Segment.create(name, "test", {}, 8)
    first.close()
    with pytest.raises(SnapshotError, match="another of the same name"):
        Segment.open(name, "test", key)
    Segment.open(name, "test", second.key)
    second.close()


def test_removing_a_file_that_replaced_it_is_not_its_business(name: str) -> None:
    made = Segment.create(name, "test", {}, 8)
    path_of(name).unlink()
    path_of(name).write_text("somebody else's")
    made.close()
    assert path_of(name).read_text() == "somebody else's"


@pytest.mark.parametrize("bad", ["", "a/b", "..", ".x", "a" * 101, "a b", "ä", None, 3, "a\n"])
def test_names_that_cannot_be(bad: Any) -> None:
    with pytest.raises(ConfigError, match="expected a name of at most 100"):
        Segment.open(bad, "test")
    if bad is not None:
        with pytest.raises(ConfigError, match="expected a name of at most 100"):
            Segment.create(bad, "test", {}, 8)


def test_a_name_in_use_is_refused(name: str) -> None:
    made = Segment.create(name, "test", {}, 8)
    with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
        Segment.create(name, "test", {}, 8)
    assert made.owner_alive
    made.close()


def test_what_is_missing_or_of_another_kind_is_refused(name: str) -> None:
    with pytest.raises(SnapshotError, match="found none"):
        Segment.open(name, "test")
    made = Segment.create(name, "test", {}, 8)
    with pytest.raises(SnapshotError, match="expected a weights, got a test"):
        Segment.open(name, "weights")
    made.close()


def damage(name: str, change: Callable[[Path], None]) -> SnapshotError:
    made = Segment.create(name, "test", {}, 8)
    change(path_of(name))
    with pytest.raises(SnapshotError) as caught:
        Segment.open(name, "test")
    made.close()
    path_of(name).unlink(missing_ok=True)
    return caught.value


def put(place: int, data: bytes) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(place)
            file.write(data)

    return change


def test_damaged_segments_are_refused(name: str) -> None:
    assert "got something else" in str(damage(name, put(0, b"X")))
    assert "expected format 1, got 2" in str(damage(name, put(8, struct.pack("<I", 2))))
    assert "damaged" in str(damage(name, put(30, b"#")))
    assert "damaged" in str(damage(name, put(16, struct.pack("<Q", 2**63))))
    assert "bytes, got 4,099" in str(damage(name, lambda path: os.truncate(path, 4099)))
    assert "got something else" in str(damage(name, lambda path: os.truncate(path, 10)))
    assert "bytes, got 99,999" in str(damage(name, lambda path: os.truncate(path, 99_999)))


def test_links_directories_and_pipes_are_refused(name: str, tmp_path: Path) -> None:
    other = "test-" + module.draw_name()
    made = Segment.create(other, "test", {}, 8)
    path_of(name).symlink_to(path_of(other))
    with pytest.raises(SnapshotError, match="error of the system"):
        Segment.open(name, "test")
    with pytest.raises(ConfigError, match="expected a new name"):
        Segment.create(name, "test", {}, 8)
    path_of(name).unlink()
    made.close()
    path_of(name).mkdir()
    with pytest.raises(SnapshotError, match="error of the system"):
        Segment.open(name, "test")
    path_of(name).rmdir()
    os.mkfifo(path_of(name))
    with pytest.raises(SnapshotError, match="no file"):
        Segment.open(name, "test")


def test_another_users_segment_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Segment.create(name, "test", {}, 8)
    if os.geteuid() == 0:
        os.chown(path_of(name), 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(SnapshotError, match="one of another"):
        Segment.open(name, "test")
    made.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_cannot_open_it(name: str) -> None:
    made = Segment.create(name, "test", {}, 8)
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(12345, 12345, 12345)
            Segment.open(name, "test")
        except SnapshotError as error:
            os._exit(5 if "one of another" in str(error) else 6)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    made.close()


def test_no_room_is_an_error_that_leaves_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    about = os.statvfs(module.DIRECTORY)
    free = about.f_bavail * about.f_frsize
    with pytest.raises(ConfigError, match=r"No space left.*free: [0-9,]+ bytes.*--shm-size"):
        Segment.create(name, "test", {}, 2 * free, [(0, 2 * free)])
    assert not path_of(name).exists()

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match="--shm-size"):
        Segment.create(name, "test", {}, 8192, [(0, 8192)])
    assert not path_of(name).exists()


def test_reserved_memory_is_there_before_it_is_touched(name: str) -> None:
    made = Segment.create(name, "test", {}, 1 << 22, [(0, 1 << 20), (1 << 21, (1 << 21) + (1 << 20))])
    assert (1 << 21) <= path_of(name).stat().st_blocks * 512 < (1 << 21) + (1 << 16)
    made.close()


def test_a_child_of_a_fork_neither_removes_it_nor_keeps_it_alive(name: str) -> None:
    made = Segment.create(name, "test", {}, 8)
    child = os.fork()
    if child == 0:
        fine = made.owner_alive
        made.close()
        os._exit(0 if fine and path_of(name).exists() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert made.owner_alive and path_of(name).exists()
    made.close()


def test_it_goes_with_its_process_however_that_ends(name: str) -> None:
    for action, code in (("end", 0), ("crash", 1), ("quit", 3)):
        process = start(action, name)
        process.communicate(timeout=30)
        assert process.returncode == code
        wait_until(lambda: not path_of(name).exists())  # by the tracker, a little later


def test_it_goes_when_its_process_is_killed(name: str) -> None:
    process = start("wait", name)
    opened = Segment.open(name, "test")
    assert opened.owner_alive and bytes(opened.payload[:3]) == b"abc"
    process.kill()
    process.communicate(timeout=30)
    wait_until(lambda: not opened.owner_alive)
    wait_until(lambda: not path_of(name).exists())
    assert bytes(opened.payload[:3]) == b"abc"


def test_children_that_outlive_the_owner_do_not_stand_for_it(name: str) -> None:
    process = start("fork", name)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        process.wait(timeout=30)
        # The child of a fork holds on to the tracker as well: the name stays until it ends, and is known as stale.
        opened = Segment.open(name, "test")
        wait_until(lambda: not opened.owner_alive)  # once the child has run far enough to let go of the claim
        with pytest.raises(ConfigError, match=rf"stale segment of process {process.pid}.*Remove the file"):
            Segment.create(name, "test", {}, 8)
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()
    wait_until(lambda: not path_of(name).exists())


def test_strangers_that_the_owner_started_do_not_keep_it(name: str) -> None:
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), "spawn", name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "made\n"
    try:
        process.wait(timeout=30)
        wait_until(lambda: not path_of(name).exists())
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()


def test_a_segment_whose_tracker_died_too_is_named_as_stale(name: str) -> None:
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), "wait", name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "made\n"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    opened = Segment.open(name, "test")
    wait_until(lambda: not opened.owner_alive)
    with pytest.raises(ConfigError, match=rf"relive-{name}: .*stale segment of process {process.pid}.*Remove the file"):
        Segment.create(name, "test", {}, 8)
    path_of(name).unlink()
    Segment.create(name, "test", {}, 8).close()


def test_a_stale_file_that_says_nothing_is_refused_too(name: str) -> None:
    for content in (
        b"",
        b"garbage",
        b"RLVSHM\r\n" + b"\xff" * 16,
        b"RLVSHM\r\n" + struct.pack("<IIQ", 1, 0, 2) + b"[]",
    ):
        path_of(name).write_bytes(content)
        with pytest.raises(ConfigError, match="stale segment of something"):
            Segment.create(name, "test", {}, 8)


def test_cards_are_json(name: str) -> None:
    with pytest.raises((TypeError, ValueError)):
        Segment.create(name, "test", {"x": object()}, 8)
    assert not path_of(name).exists()

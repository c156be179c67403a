"""Who may attach to what: users, versions, schemas, and memory that is not what it says."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import re
import stat
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relive
from relive import _core
from relive import segment as segments
from relive.shared import Handle
from relive.specs import sampler_to_dict

SCHEMA = relive.Schema(relive.Field(np.float32, (3,)), relive.Field(np.int64))


def path_of(handle: Handle) -> Path:
    return segments.DIRECTORY / f"relive-{handle.name}"


def make(name: str | None = None, **options: Any) -> relive.ReplayBuffer:
    storage = relive.SharedMemory() if name is None else relive.SharedMemory(name)
    return relive.ReplayBuffer(20, options.pop("schema", SCHEMA), storage=storage, seed=0, **options)


@pytest.fixture
def name() -> Iterator[str]:
    name = "test-" + segments.draw_name()
    yield name
    (segments.DIRECTORY / f"relive-{name}").unlink(missing_ok=True)


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Another header, with a checksum that is right."""
    data = path.read_bytes()
    magic, version, _, length = struct.unpack_from("<8sIIQ", data)
    head = json.loads(data[24 : 24 + length])
    change(head)
    text = json.dumps(head).encode()
    with path.open("r+b") as file:
        file.write(struct.pack("<8sIIQ", magic, version, zlib.crc32(text), len(text)) + text)


def test_modes_and_kind() -> None:
    buffer = make()
    about = path_of(buffer.handle()).stat()
    assert stat.S_IMODE(about.st_mode) == 0o600 and about.st_uid == os.geteuid()


def test_a_handle_is_plain_and_small() -> None:
    handle = make().handle()
    assert pickle.loads(pickle.dumps(handle)) == handle
    assert Handle(**json.loads(json.dumps(dataclasses.asdict(handle)))) == handle
    assert handle.name not in ("", None) and handle.key > 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_users_buffer_is_refused() -> None:
    buffer = make()
    handle = buffer.handle()
    os.chown(path_of(handle), 4321, 4321)
    with pytest.raises(relive.SnapshotError, match=r"segment of this user \(0\), got one of another"):
        relive.attach(handle)
    os.chown(path_of(handle), 0, 0)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setresuid(4321, 4321, 4321)
            relive.attach(handle)
        except relive.SnapshotError as error:
            code = 5 if "got one of another" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5


def test_a_handle_of_another_version_or_schema_is_refused() -> None:
    buffer = make()
    handle = buffer.handle()
    for change, words in (
        ({"format": 2}, "expected a handle of format 1, got 2"),
        ({"schema": "0" * 16}, "expected a buffer of schema 0000000000000000, got one of"),
        ({"key": handle.key ^ 1}, "another of the same name"),
        ({"name": handle.name + "x"}, "found none"),
    ):
        with pytest.raises(relive.SnapshotError, match=words):
            relive.attach(dataclasses.replace(handle, **change))
    for change in ({"key": None}, {"schema": None}, {"name": "../x"}, {"name": 3}):
        with pytest.raises(relive.ConfigError):
            relive.attach(dataclasses.replace(handle, **change))
    assert len(relive.attach(handle)) == 0


def test_schemas_have_different_digests() -> None:
    others = [
        relive.Schema(relive.Field(np.float32, (4,)), relive.Field(np.int64)),
        relive.Schema(relive.Field(np.float64, (3,)), relive.Field(np.int64)),
        relive.Schema(relive.Field(np.float32, (3,)), relive.Field(np.int64), {"x": relive.Field(np.int64)}),
    ]
    digests = {make(schema=schema).handle().schema for schema in (SCHEMA, *others)}
    assert len(digests) == 4


def test_the_handle_of_an_earlier_buffer_of_the_name_is_refused(name: str) -> None:
    first = make(name)
    handle = first.handle()
    del first
    second = make(name)
    with pytest.raises(relive.SnapshotError, match="another of the same name"):
        relive.attach(handle)
    assert relive.attach(second.handle()).capacity == 20


def test_two_buffers_cannot_have_one_name(name: str) -> None:
    first = make(name)
    with pytest.raises(relive.ConfigError, match=f"in use by process {os.getpid()}"):
        make(name)
    assert len(first) == 0


def test_other_kinds_and_other_buffers_are_refused(name: str) -> None:
    segment = segments.Segment.create(name, "weights", {}, 4096)
    with pytest.raises(relive.SnapshotError, match="expected a relive buffer, got a weights"):
        relive.attach(Handle(name, segment.key, segments.FORMAT, "x"))
    segment.close()


def test_a_card_that_describes_something_else_is_refused() -> None:
    """The arena says itself what it is: a card of another buffer is not believed."""

    def refused(change: Callable[[dict[str, Any]], Any], words: str) -> None:
        buffer = make()
        handle = buffer.handle()
        rewrite(path_of(handle), change)
        with pytest.raises(relive.SnapshotError, match=words):
            relive.attach(handle)

    other = sampler_to_dict(relive.Prioritized())
    refused(lambda head: head["card"].update(capacity=10), "contradict its description")
    refused(lambda head: head["card"].update(capacity="many"), "expected what describes a buffer")
    refused(lambda head: head["card"].pop("view"), "expected what describes a buffer")
    refused(lambda head: head["card"].update(sampler=other), "contradict its description")
    refused(lambda head: head["card"].update(sampler={"name": "os.system"}), "expected what describes a buffer")
    refused(lambda head: head.update(kind="weights"), "got a weights")
    refused(lambda head: head.update(key=5), "another of the same name")
    refused(lambda head: head.update(num_bytes=head["num_bytes"] - 4096), "The segment is damaged")


def test_headers_that_are_garbage_are_refused() -> None:
    rng = np.random.default_rng(0)
    for place in range(0, 400, 7):
        buffer = make()
        handle = buffer.handle()
        with path_of(handle).open("r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ int(rng.integers(1, 256))]))
        with pytest.raises(relive.SnapshotError):
            relive.attach(handle)


def test_a_cut_file_is_refused() -> None:
    for size in (0, 10, 4096, 5000):
        buffer = make()
        handle = buffer.handle()
        os.truncate(path_of(handle), size)
        with pytest.raises(relive.SnapshotError):
            relive.attach(handle)


def test_an_arena_of_another_format_is_refused() -> None:
    buffer = make()
    handle = buffer.handle()
    memory = buffer._engine.segment.payload
    for place in (0, 8, 16, 24):  # magic, format, bytes, lanes
        memory[place] ^= 1
        with pytest.raises(relive.SnapshotError, match="contradict its description"):
            relive.attach(handle)
        memory[place] ^= 1
    relive.attach(handle)


def test_values_that_are_no_handles_and_options_that_mean_nothing() -> None:
    buffer = make()
    handle = buffer.handle()
    with pytest.raises(relive.ConfigError, match="expected no sync with a handle"):
        relive.attach(handle, sync=5)
    with pytest.raises(relive.ConfigError, match=r"sampler: expected that of the buffer.*buffer\.reader"):
        relive.attach(handle, sampler=relive.Prioritized())
    with pytest.raises(relive.ConfigError, match=r"view: expected that of the buffer.*buffer\.reader"):
        relive.attach(handle, view=relive.Transitions(3))
    with pytest.raises(relive.ConfigError, match="expected the path of a directory"):
        relive.attach(42)  # type: ignore[arg-type]
    with pytest.raises(relive.ConfigError, match="SharedMemory: expected a name"):
        relive.SharedMemory("a/b")
    with pytest.raises(relive.ConfigError, match="expected a buffer with storage=SharedMemory"):
        relive.ReplayBuffer(10, SCHEMA).handle()
    with pytest.raises(relive.ConfigError, match=r"buffer\.handle\(\)"):
        pickle.dumps(make())


def test_a_full_file_system_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = set(segments.DIRECTORY.iterdir())
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(relive.ConfigError, match=r"No space left on device.*free: [0-9,]+ bytes.*--shm-size"):
        make()
    assert set(segments.DIRECTORY.iterdir()) <= before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_small_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True
    ).returncode:
        pytest.skip("no mounts here")
    try:
        monkeypatch.setattr(segments, "DIRECTORY", tmp_path)
        large = relive.Schema(relive.Field(np.uint8, (1000,)), relive.Field(np.int64))
        with pytest.raises(relive.ConfigError, match="free: 1,048,576 bytes"):
            relive.ReplayBuffer(5000, large, storage=relive.SharedMemory())
        assert not list(tmp_path.iterdir())
        buffer = relive.ReplayBuffer(500, large, storage=relive.SharedMemory(), sampler=relive.Prioritized())
        obs = np.zeros((600, 1000), np.uint8)
        obs[:, 0] = np.arange(600)  # all of one episode: what was reserved is enough
        buffer.extend(obs[:-1], np.zeros(599, np.int64), np.zeros(599), np.zeros(599, np.bool_), obs[1:])
        buffer.sample(32, beta=0.5)
        assert len(buffer) == 500
        path = next(tmp_path.iterdir())
        path.unlink()
        del buffer
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


PROGRAM = """
import os, signal, sys
import numpy as np, relive
schema = relive.Schema(relive.Field(np.float32, (3,)), relive.Field(np.int64))
buffer = relive.ReplayBuffer(20, schema, storage=relive.SharedMemory(sys.argv[1]))
buffer.push(np.zeros(3, np.float32), 1, 0.0, False, np.ones(3, np.float32))
{end}
"""
ENDS = {
    "end": ("pass", 0),
    "crash": ("1 / 0", 1),
    "exit": ("os._exit(3)", 3),
    "kill": ("os.kill(os.getpid(), signal.SIGKILL)", -9),
    "terminate": ("os.kill(os.getpid(), signal.SIGTERM)", -15),
    "segfault": ("import ctypes; ctypes.string_at(8)", -11),
}


@pytest.mark.parametrize("end", ENDS)
def test_nothing_is_left_behind(end: str, name: str) -> None:
    code, expected = ENDS[end]
    program = subprocess.run(
        [sys.executable, "-X", "faulthandler=0", "-c", PROGRAM.format(end=code), name],
        capture_output=True,
        timeout=60,
    )
    # The tracker is done before the pipe of its messages is at its end.
    assert program.returncode == expected, program.stderr.decode()
    assert not (segments.DIRECTORY / f"relive-{name}").exists()
    make(name)


def test_stale_memory_is_named(name: str) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(end="print('made', flush=True); signal.pause()"), name],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert program.stdout is not None and program.stdout.readline() == b"made\n"
    os.killpg(program.pid, 9)  # the tracker with it
    program.communicate(timeout=30)
    with pytest.raises(relive.ConfigError, match=re.escape(f"stale segment of process {program.pid}")):
        make(name)


def test_damage_is_an_error_not_a_wait() -> None:
    """A process that wrote nonsense while it held the lock, and died: nobody goes on with it."""
    buffer = make()
    buffer.push(np.zeros(3, np.float32), 1, 0.0, False, np.ones(3, np.float32))
    child = os.fork()
    if child == 0:
        buffer._core.hold()
        lanes = np.frombuffer(buffer._engine.segment.payload, np.uint64, 8, 4096)
        lanes[0] = 2**63
        os._exit(0)
    os.waitpid(child, 0)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="damaged by a process that ended"):
            len(buffer)
    assert _core.BOARD == 2048

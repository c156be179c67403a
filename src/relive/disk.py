"""Files that are written once, block by block, each block with a checksum; and what makes them appear all at once.

Everything that a snapshot does to the disk happens here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relive._core import crc32
from relive.errors import SnapshotError

BLOCK = 1 << 20
"""Bytes between two checksums of a file, its head apart."""


@dataclass(frozen=True)
class File:
    """One file as it was written.

    Attributes:
        name: in its directory.
        size: bytes.
        head: bytes that come before the first block; the first checksum is theirs.
        checksums: CRC-32 of the head, then of every block.
    """

    name: str
    size: int
    head: int
    checksums: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        sums = "".join(f"{checksum:08x}" for checksum in self.checksums)
        return {"name": self.name, "bytes": self.size, "head": self.head, "crc32": sums}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> File:
        """The inverse of `to_dict`."""
        name, size, head, sums = str(data["name"]), int(data["bytes"]), int(data["head"]), str(data["crc32"])
        checksums = tuple(int(sums[place : place + 8], 16) for place in range(0, len(sums), 8))
        if Path(name).name != name or not 0 <= head <= size or len(checksums) != 1 + -(-(size - head) // BLOCK):
            raise ValueError(f"impossible file {name!r}")
        return cls(name, size, head, checksums)


class Sink:
    """Writes one file. Its head, of known length, is written last: it says how much came."""

    _file = -1

    def __init__(self, directory: Path, name: str, head: int) -> None:
        self._path = directory / name
        self._head = head
        self._checksums: list[int] = []
        self._running, self._filled, self._size = 0, 0, head
        self._file = _create(self._path)
        try:
            _write(self._file, memoryview(bytes(head)), self._path)
        except BaseException:
            self.close()
            raise

    def write(self, data: memoryview) -> None:
        """Appends bytes."""
        _write(self._file, data, self._path)
        self._size += len(data)
        while len(data):
            some = data[: BLOCK - self._filled]
            self._running = crc32(some, self._running)
            self._filled += len(some)
            data = data[len(some) :]
            if self._filled == BLOCK:
                self._checksums.append(self._running)
                self._running = self._filled = 0

    def finish(self, head: bytes) -> File:
        """Writes the head. `sync` is to follow."""
        assert len(head) == self._head
        os.pwrite(self._file, head, 0)
        if self._filled:
            self._checksums.append(self._running)
        return File(self._path.name, self._size, self._head, (crc32(head), *self._checksums))

    def sync(self) -> None:
        """Sees to it that everything is on the disk, and lets go of the file."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise _refused(self._path, "everything", error) from error
        finally:
            self.close()

    def close(self) -> None:
        """Lets go of the file; what is not synced is of no use."""
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)

    def __del__(self) -> None:  # where an interrupt came between two lines
        self.close()


class Spring:
    """Reads one file from its first block on. Hands out no byte whose block's checksum was not right."""

    _input = -1

    def __init__(self, directory: Path, file: File) -> None:
        self._path, self._file = directory / file.name, file
        self._buffer = memoryview(bytearray(min(BLOCK, file.size)))
        self._input = _open(self._path)
        try:
            status = os.fstat(self._input)
            if not stat.S_ISREG(status.st_mode):
                raise SnapshotError(f"{self._path}: expected a file, got something else. Load another copy.")
            size = status.st_size
            if size != file.size:
                raise SnapshotError(
                    f"{self._path}: expected {file.size:,} bytes, got {size:,} (damaged from byte "
                    f"{min(size, file.size):,} on). Load another copy."
                )
            self.head = bytes(self._check(0, memoryview(bytearray(file.head))))
        except BaseException:
            self.close()
            raise
        self._next = 1
        self._ready = memoryview(b"")

    def readinto(self, into: memoryview) -> int:
        """Fills `into` as far as the file goes; returns how far. After an error it holds nothing that can be used."""
        done = 0
        while done < len(into):
            if not len(self._ready):
                if self._next == len(self._file.checksums):
                    break
                number, self._next = self._next, self._next + 1
                if len(into) - done >= self._size(number):  # the whole block, where it belongs
                    done += len(self._check(number, into[done:]))
                    continue
                self._ready = self._check(number, self._buffer)
            some = self._ready[: len(into) - done]
            into[done : done + len(some)] = some
            self._ready = self._ready[len(some) :]
            done += len(some)
        return done

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        into = bytearray(size)
        return bytes(memoryview(into)[: self.readinto(memoryview(into))])

    def close(self) -> None:
        """Lets go of the file."""
        if self._input >= 0:
            file, self._input = self._input, -1
            os.close(file)

    def __del__(self) -> None:  # where an interrupt came between two lines
        self.close()

    def _start(self, number: int) -> int:
        return 0 if number == 0 else self._file.head + (number - 1) * BLOCK

    def _size(self, number: int) -> int:
        return self._file.head if number == 0 else min(BLOCK, self._file.size - self._start(number))

    def _check(self, number: int, into: memoryview) -> memoryview:
        """Reads a block to where there is room for it, and compares its checksum."""
        start, size = self._start(number), self._size(number)
        data = into[:size]
        try:
            size_read = os.preadv(self._input, [data], start)
        except OSError as error:
            raise SnapshotError(
                f"{self._path}: expected to read from byte {start:,} to {start + size:,}, got an error of the disk "
                f"({error.strerror}). Load another copy."
            ) from error
        if size_read != size or crc32(data) != self._file.checksums[number]:
            raise SnapshotError(
                f"{self._path}: expected the bytes that were written, got others (between byte {start:,} and "
                f"{start + size:,}). The file is damaged; load another copy."
            )
        return data


def verify(directory: Path, file: File) -> None:
    """Reads a file and compares all its checksums.

    Raises:
        SnapshotError: it is not as it was written; says where.
    """
    into = memoryview(bytearray(BLOCK))
    with contextlib.closing(Spring(directory, file)) as spring:
        while spring.readinto(into):
            pass


def is_there(directory: Path, file: File) -> bool:
    """Whether a file lies there that is as long as it was written; what is in it nobody looks at."""
    try:
        status = os.stat(directory / file.name)  # noqa: PTH116
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == file.size


def replace(directory: Path, name: str, data: bytes) -> None:
    """Makes a file appear with these contents, all at once: whoever looks sees the old ones or the new ones."""
    with contextlib.closing(draft(directory, name, data)) as sink:
        sink.sync()
    sync_directory(directory)
    publish(directory, name)


def draft(directory: Path, name: str, data: bytes) -> Sink:
    """What `publish` makes appear, once it is on the disk, and the names of the directory with it."""
    sink = Sink(directory, f"{name}.new", 0)
    try:
        sink.write(memoryview(data))
    except BaseException:
        sink.close()
        raise
    return sink


def publish(directory: Path, name: str) -> None:
    """Puts a draft in the place of what was there under its name."""
    os.rename(directory / f"{name}.new", directory / name)  # noqa: PTH104 - all of a snapshot's disk goes through os
    sync_directory(directory)


def make_directory(directory: Path) -> bool:
    """Makes a directory if it is not there yet, with its parents; none of them is lost with the power.

    Raises:
        FileExistsError, NotADirectoryError: a file is in the way.
    """
    if directory.is_dir():
        return False
    if not directory.parent.exists():
        make_directory(directory.parent)
    try:
        os.mkdir(directory)  # noqa: PTH102
    except FileExistsError:
        if not directory.is_dir():
            raise
        return False  # another process was faster
    sync_directory(directory.parent)
    return True


def sync_directory(directory: Path) -> None:
    """Sees to it that the names in a directory are on the disk."""
    handle = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Removes a file, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108


class Claim:
    """Keeps others from saving to a directory, until it is closed, or nobody refers to it, or the process ends.

    Raises:
        SnapshotError: another process saves there.
    """

    _handle = -1

    def __init__(self, directory: Path) -> None:
        self._handle = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._let_go()
            raise SnapshotError(
                f"{directory}: expected to be the only one who writes here, another process saves to it. Wait, or "
                "save elsewhere."
            ) from None

    def close(self) -> None:
        """Others may save there again."""
        if self._handle >= 0:
            with contextlib.suppress(OSError):
                fcntl.flock(self._handle, fcntl.LOCK_UN)  # a child that was forked meanwhile would go on holding it
            self._let_go()

    def _let_go(self) -> None:
        handle, self._handle = self._handle, -1
        os.close(handle)

    def __del__(self) -> None:  # where an interrupt came between two lines
        self.close()


def _create(path: Path) -> int:
    """A new file; nothing is written through a link, or into a pipe, of that name."""
    remove(path)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe in its place makes nobody wait
    except OSError as error:
        raise SnapshotError(
            f"{path}: expected a file of the snapshot, found none ({error.strerror}). Load another copy."
        ) from None


def _write(file: int, data: memoryview, path: Path) -> None:
    try:
        while len(data):
            data = data[os.write(file, data) :]
    except OSError as error:
        raise _refused(path, f"{len(data):,} more bytes", error) from error


def _refused(path: Path, what: str, error: OSError) -> SnapshotError:
    return SnapshotError(
        f"{path}: expected to write {what}, got an error of the disk ({error.strerror}). Nothing that was there before "
        "is lost."
    )

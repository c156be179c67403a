"""Memory with a name, that other processes of the same user can map. It knows no buffer.

A segment is a file in the system's memory file system: a header that says what it is, then the payload. The process
that makes it is its owner; when the owner closes it, or ends, the name goes, and the memory with the last mapping.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import re
import secrets
import stat
import struct
import weakref
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from relive.errors import ConfigError, SnapshotError

DIRECTORY = Path("/dev/shm")
FORMAT = 1

_PREFIX = "relive-"
_MAGIC = b"RLVSHM\r\n"
_HEAD = struct.Struct("<8sIIQ")  # magic, format, CRC-32 of the text that follows, its bytes
_MAX_TEXT = 1 << 24
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PAGE = mmap.PAGESIZE
_CHUNK = 1 << 26  # reserved at once: a signal makes the system begin the piece again


def draw_name() -> str:
    """A name that no other segment has."""
    return f"{os.getpid()}-{secrets.token_hex(8)}"


def check_name(owner: str, name: object) -> str:
    """The name.

    Raises:
        ConfigError: it is none that a segment can have.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{owner}: expected a name of at most 100 letters, digits, '-', '_' and '.', which begins with a letter or "
            f"digit, got {name!r}."
        )
    return name


class Segment:
    """One segment, as the process that made it has it, or one that opened it.

    Attributes:
        name: without the prefix of its file.
        key: random, drawn when it was made: another segment of the same name has another one.
        card: what it is about, in JSON's types.
        payload: writable memory that begins at a page, zeroed when the segment was made. Valid as long as somebody
            refers to it, also after `close`.
    """

    def __init__(self, path: Path, file: int, head: dict[str, Any], claim: int | None) -> None:
        """Use `create` or `open`. Takes over the open file, and the one that holds the owner's claim."""
        self.name: str = path.name.removeprefix(_PREFIX)
        self.key: int = head["key"]
        self.card: dict[str, Any] = head["card"]
        self._owner: int = head["pid"]
        memory = mmap.mmap(file, head["offset"] + head["num_bytes"], mmap.MAP_SHARED)
        self.payload = memoryview(memory)[head["offset"] :]
        self._file, self._claim = file, claim
        files = [file] if claim is None else [file, claim]
        self._close = weakref.finalize(self, _close, path, files, os.getpid() if claim is not None else None)
        if claim is not None:
            _owned.add(self)

    @classmethod
    def create(
        cls,
        name: str | None,
        kind: str,
        card: dict[str, Any],
        num_bytes: int,
        reserve: Iterable[tuple[int, int]] = (),
    ) -> Segment:
        """Makes a new segment, mode 0600.

        Args:
            name: None draws one.
            kind: what is in it; whoever opens it says what it expects.
            card: anything that JSON can hold.
            num_bytes: of the payload.
            reserve: parts (start, end) of the payload whose memory is taken now. The other parts take theirs when they
                are first written to; if the file system is full then, the process ends (SIGBUS).

        Raises:
            ConfigError: the name cannot be, or is taken (by whom, and whether that process lives); no room.
        """
        name = draw_name() if name is None else check_name("segment", name)
        path = DIRECTORY / (_PREFIX + name)
        head: dict[str, Any] = {"kind": kind, "key": secrets.randbits(63), "pid": os.getpid(), "num_bytes": num_bytes}
        head |= {"card": card, "offset": 0}
        offset = -(-(_HEAD.size + len(_encode(head)) + 20) // _PAGE) * _PAGE
        head["offset"] = offset
        text = _encode(head)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise _taken(path) from None
        except OSError as error:
            raise ConfigError(
                f"{path}: expected a file in memory, got an error of the system ({error.strerror}). Shared memory "
                f"needs {DIRECTORY}, writable."
            ) from None
        files = [file]
        try:
            _track(path.name, True)
            # A lock belongs to an opening of the file, which the children of a fork have too: the claim is on one of
            # its own, which they close.
            claim = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            files.append(claim)
            fcntl.flock(claim, fcntl.LOCK_EX)
            os.fchmod(file, 0o600)
            os.ftruncate(file, offset + num_bytes)
            _reserve(file, [(0, offset), *((offset + start, offset + end) for start, end in reserve)])
            os.pwrite(file, text, _HEAD.size)
            os.pwrite(file, _HEAD.pack(_MAGIC, FORMAT, zlib.crc32(text), len(text)), 0)
            return cls(path, file, head, claim)
        except BaseException as error:
            _close(path, files, os.getpid())
            if isinstance(error, OSError | ValueError | OverflowError) and not isinstance(error, ConfigError):
                raise _no_room(path, num_bytes, error) from error
            raise

    @classmethod
    def open(cls, name: str, kind: str, key: int | None = None) -> Segment:
        """Maps a segment that is there.

        Args:
            name: its name.
            kind: what is expected to be in it.
            key: of the one segment that is meant; None takes any of that name.

        Raises:
            ConfigError: the name cannot be.
            SnapshotError: there is none, or it is another user's, of another kind or format, another one than meant, or
                damaged.
        """
        path = DIRECTORY / (_PREFIX + check_name("segment", name))
        try:
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise SnapshotError(
                f"{path}: expected a {kind}, found none. Whoever made it closed it, or ended; nothing of it is left."
            ) from None
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise _foreign(path) from None
            raise SnapshotError(f"{path}: expected a {kind}, got an error of the system ({error.strerror}).") from None
        try:
            head = _read_head(path, file, kind)
            if key is not None and head["key"] != key:
                raise SnapshotError(
                    f"{path}: expected the {kind} that the handle is of, got another of the same name. Take a handle "
                    "from the one that is there now."
                )
            return cls(path, file, head, None)
        except BaseException:
            os.close(file)
            raise

    @property
    def owner_alive(self) -> bool:
        """Whether the process that made it lives, and has it open."""
        if self._claim is not None:
            return self._close.alive
        return self._close.alive and not _is_free(self._file)

    def close(self) -> None:
        """Lets go of it; the owner's call removes the name. Happens by itself when the process ends."""
        _owned.discard(self)
        self._close()

    def _forget_claim(self) -> None:
        """In the child of a fork: the parent's claim ends with the parent."""
        assert self._claim is not None
        os.close(self._claim)
        self._claim = None
        detached = self._close.detach()
        assert detached is not None  # open segments alone are listed
        self._close = weakref.finalize(self, _close, detached[2][0], [self._file], None)


_owned: weakref.WeakSet[Segment] = weakref.WeakSet()


def _after_fork() -> None:
    for segment in list(_owned):
        segment._forget_claim()
    _owned.clear()


os.register_at_fork(after_in_child=_after_fork)


def _close(path: Path, files: list[int], owner: int | None) -> None:
    if owner == os.getpid():
        with contextlib.suppress(OSError):
            there, ours = path.lstat(), os.fstat(files[0])
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                path.unlink()
        _track(path.name, False)
    for file in files:
        os.close(file)


def _track(name: str, begin: bool) -> None:
    """Has the standard library's tracker remove the name should this process be killed; or no more."""
    from multiprocessing import resource_tracker  # takes a while, and most buffers need none

    change = resource_tracker.register if begin else resource_tracker.unregister
    change(f"/{name}", "shared_memory")


def _encode(head: dict[str, Any]) -> bytes:
    return json.dumps(head, allow_nan=False).encode()


def _reserve(file: int, parts: list[tuple[int, int]]) -> None:
    about = os.fstatvfs(file)
    if sum(end - start for start, end in parts) > about.f_bavail * about.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # before others find it full for a while
    for start, end in parts:
        for place in range(start, end, _CHUNK):
            os.posix_fallocate(file, place, min(_CHUNK, end - place))


def _is_free(file: int) -> bool:
    """Whether nobody has a claim on this file."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(file, fcntl.LOCK_UN)
    return True


def _read_head(path: Path, file: int, kind: str) -> dict[str, Any]:
    about = os.fstat(file)
    if about.st_uid != os.geteuid():
        raise _foreign(path)
    if not stat.S_ISREG(about.st_mode):
        raise SnapshotError(f"{path}: expected a {kind}, got something that is no file.")
    head = os.pread(file, _HEAD.size, 0)
    if len(head) < _HEAD.size or head[:8] != _MAGIC:
        raise SnapshotError(f"{path}: expected a {kind}, got something else, or one that is being made.")
    _, version, checksum, length = _HEAD.unpack(head)
    if version != FORMAT:
        raise SnapshotError(f"{path}: expected format {FORMAT}, got {version}. Use the relive that made it.")
    text = os.pread(file, min(length, _MAX_TEXT), _HEAD.size)
    if len(text) != length or zlib.crc32(text) != checksum:
        raise SnapshotError(f"{path}: expected the header that was written, got another. The segment is damaged.")
    found: dict[str, Any] = json.loads(text)
    if found["kind"] != kind:
        raise SnapshotError(f"{path}: expected a {kind}, got a {found['kind']}.")
    size = found["offset"] + found["num_bytes"]
    if about.st_size != size:
        raise SnapshotError(f"{path}: expected {size:,} bytes, got {about.st_size:,}. The segment is damaged.")
    return found


def _foreign(path: Path) -> SnapshotError:
    return SnapshotError(
        f"{path}: expected a segment of this user ({os.geteuid()}), got one of another. Processes that share memory "
        "run as one user."
    )


def _taken(path: Path) -> ConfigError:
    """Who has the name."""
    who, free = "something", False
    with contextlib.suppress(OSError):
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            free = _is_free(file)
            head = os.pread(file, _HEAD.size, 0)
            length = _HEAD.unpack(head)[3] if len(head) == _HEAD.size and head[:8] == _MAGIC else 0
            who = f"process {json.loads(os.pread(file, min(length, _MAX_TEXT), _HEAD.size))['pid']}"
        except (ValueError, KeyError, TypeError):
            pass
        finally:
            os.close(file)
    if free:
        return ConfigError(
            f"{path}: expected a new name, there is a stale segment of {who}, which ended without removing it. Remove "
            "the file once its children have ended too (not before: what watches over them removes the name, whoever "
            "has it by then), or take another name."
        )
    return ConfigError(f"{path}: expected a new name, got that of a segment in use by {who}. Take another name.")


def _no_room(path: Path, num_bytes: int, error: Exception) -> ConfigError:
    free = "unknown"
    with contextlib.suppress(OSError):
        about = os.statvfs(path.parent)
        free = f"{about.f_bavail * about.f_frsize:,} bytes"
    return ConfigError(
        f"{path}: expected room for {num_bytes:,} bytes of shared memory, got an error of the system ({error}); free: "
        f"{free}. Choose a smaller capacity, or make {path.parent} larger (docker run --shm-size)."
    )

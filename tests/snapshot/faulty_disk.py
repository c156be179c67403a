"""A disk that stops, breaks, or loses its power, below `relive.disk`; and what may be found on it afterwards."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MUTATING = ("open", "write", "pwrite", "fsync", "rename", "unlink", "mkdir", "close")


class Stopped(BaseException):
    """The process was killed here."""


class FaultyOs:
    """The module `os`, whose calls that change the disk are counted, and recorded, and may go wrong.

    Args:
        at: number of the call that goes wrong; None for none.
        fault: "stop": after this call nothing happens any more, whatever is tried. An errno: this call fails.
        forever: with an errno: later calls of the same name fail too.
        torn: a write that fails has written half of its bytes.
    """

    def __init__(self, at: int | None = None, fault: Any = "stop", *, forever: bool = False, torn: bool = True) -> None:
        self.at, self.fault, self.forever, self.torn = at, fault, forever, torn
        self.count = 0
        self.failed: str | None = None
        self.log: list[tuple[Any, ...]] = []
        self.paths: dict[int, str] = {}
        self.written: set[int] = set()
        self._lock = threading.RLock()  # files are synced by several threads

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name == "fsync":
            real = _no_wait
        return (lambda *args, **options: self._one(name, real, *args, **options)) if name in MUTATING else real

    def _one(self, *args: Any, **options: Any) -> Any:
        with self._lock:
            return self._call(*args, **options)

    def _call(self, name: str, real: Any, *args: Any, **options: Any) -> Any:
        if name == "close" and (self.failed == "stop" or args[0] not in self.written):
            return real(*args)  # of a handle that only reads, or of a process that is no more
        if self.failed == "stop":
            raise Stopped
        if name == "open" and not args[1] & os.O_CREAT:
            handle = real(*args, **options)
            self.paths[handle] = str(args[0])
            return handle
        number, self.count = self.count, self.count + 1
        if isinstance(self.fault, int) and (number == self.at or (self.forever and name == self.failed)):
            self.failed = name
            if name in ("write", "pwrite") and self.torn and len(args[1]) > 1:
                real(args[0], args[1][: len(args[1]) // 2], *args[2:])
            if name == "close":
                real(*args)
                self.written.remove(args[0])
            raise OSError(self.fault, os.strerror(self.fault), *([os.fspath(args[0])] if name == "open" else []))
        result = real(*args, **options)
        self._record(name, result, *args)
        if self.fault == "stop" and number == self.at:
            self.failed = "stop"
            raise Stopped
        return result

    def _record(self, name: str, result: Any, *args: Any) -> None:
        if name == "open":
            self.paths[result] = str(args[0])
            self.written.add(result)
            self.log.append(("create", str(args[0])))
        elif name in ("write", "pwrite"):
            written = bytes(args[1])[:result]
            self.log.append(("write", self.paths[args[0]], None if name == "write" else args[2], written))
        elif name == "fsync":
            self.log.append(("sync", self.paths[args[0]]))
        elif name == "close":
            self.written.remove(args[0])
        else:
            self.log.append((name, *map(str, args)))


def _no_wait(handle: int) -> None:
    os.fstat(handle)


@contextlib.contextmanager
def faulty(fake: FaultyOs) -> Iterator[FaultyOs]:
    """While this lasts, a snapshot's disk is that one."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("disk", "snapshot", "saving"):
            patch.setattr(f"relive.{module}.os", fake)
        yield fake


@dataclass
class _Inode:
    safe: bytes = b""  # what is on the disk for certain
    now: bytearray = field(default_factory=bytearray)
    dirty: bool = False


@dataclass
class Disk:
    """A directory, with what is certain of it and what only the system's memory has."""

    directory: str
    safe_names: dict[str, _Inode] = field(default_factory=dict)
    names: dict[str, _Inode] = field(default_factory=dict)
    pending: list[tuple[str, str, Any]] = field(default_factory=list)  # changes of names, in order
    inodes: list[_Inode] = field(default_factory=list)
    there: bool = True  # the directory itself

    @classmethod
    def of(cls, directory: Path, files: dict[str, bytes] | None) -> Disk:
        """All of it on the disk; None where there is no directory."""
        disk = cls(str(directory), there=files is not None)
        for name, data in (files or {}).items():
            disk.names[name] = _Inode(data, bytearray(data))
        disk.inodes = list(disk.names.values())
        disk.safe_names = dict(disk.names)
        return disk

    def apply(self, call: tuple[Any, ...]) -> None:
        """One call of the log."""
        kind, path, *rest = call
        parent, name = os.path.split(path)
        if kind == "sync" and path == self.directory:
            self.safe_names, self.pending = dict(self.names), []
        elif kind == "sync" and path == os.path.split(self.directory)[0]:
            self.there = True
        elif kind == "mkdir":
            return
        else:
            assert parent == self.directory, call
            getattr(self, f"_{kind}")(name, *rest)

    def _create(self, name: str) -> None:
        if name in self.names:
            inode = self.names[name]
            inode.now, inode.dirty = bytearray(), True
        else:
            inode = self.names[name] = _Inode()
            self.inodes.append(inode)
            self.pending.append(("link", name, inode))
        inode.at = 0  # type: ignore[attr-defined]

    def _write(self, name: str, offset: int | None, data: bytes) -> None:
        inode: Any = self.names[name]
        start = inode.at if offset is None else offset
        inode.now[start : start + len(data)] = data
        inode.dirty = True
        if offset is None:
            inode.at += len(data)

    def _sync(self, name: str) -> None:
        inode = self.names[name]
        inode.safe, inode.dirty = bytes(inode.now), False

    def _rename(self, name: str, to: str) -> None:
        inode = self.names.pop(name)
        self.names[Path(to).name] = inode
        self.pending.append(("rename", name, (Path(to).name, inode)))

    def _unlink(self, name: str) -> None:
        self.pending.append(("unlink", name, self.names.pop(name)))

    def after_power_loss(self, rng: np.random.Generator, wild: int) -> list[dict[str, bytes] | None]:
        """What may be found: every worst case of names with every one of contents, and `wild` mixes of them."""
        found: list[dict[str, bytes] | None] = []
        for names, data in itertools.product(("none", "all", "changes", "removals"), ("safe", "now", "torn", "zeros")):
            found.append(self._one(names, data, rng))
        found += [self._one("some", "some", rng) for _ in range(wild)]
        if not self.there:
            found.append(None)
        return found

    def _one(self, which: str, data: str, rng: np.random.Generator) -> dict[str, bytes]:
        names = dict(self.safe_names)
        for kind, name, inode in self.pending:
            keep = {"none": False, "all": True, "changes": kind != "unlink", "removals": kind == "unlink"}
            if not keep.get(which, rng.random() < 0.5):
                continue
            if kind == "link":
                names[name] = inode
            elif kind == "unlink":
                names.pop(name, None)
            else:
                names.pop(name, None)
                names[inode[0]] = inode[1]
        return {name: self._contents(inode, data, rng) for name, inode in names.items()}

    def _contents(self, inode: _Inode, data: str, rng: np.random.Generator) -> bytes:
        if not inode.dirty or data == "safe":
            return inode.safe
        now = bytes(inode.now)
        how = data if data != "some" else str(rng.choice(["safe", "now", "torn", "zeros"]))
        if how == "torn":
            return now[: int(rng.integers(len(now) + 1))]
        if how == "zeros":  # its length is there, a part of its bytes is not
            start, end = sorted(rng.integers(len(now) + 1, size=2).tolist())
            return now[:start] + bytes(end - start) + now[end:]
        return inode.safe if how == "safe" else now

"""A snapshot is a directory: immutable files, each a plain `.npy`, and a manifest that names those that count.

The manifest appears by one rename, after everything it names is on the disk: at every moment the directory holds one
whole snapshot, the last one, besides files that no manifest names. What a buffer makes of it is in `saving` and
`restoring`; this module knows no buffer.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from relive import disk
from relive.checks import as_path
from relive.disk import File
from relive.errors import ConfigError, SnapshotError

T = TypeVar("T")

MANIFEST = "manifest.json"
FORMAT = "relive snapshot"
VERSION = 1
_ATTEMPTS = 100  # to read what is saved to again and again
_NAMES = re.compile(r"[0-9]{6,18}-(records|finals|((final-)?column|prefix)-[0-9]+|masses|places|uses)\.npy(\.zst)?")
_FRAME = re.compile(
    rb'\{"format": "([^"]*)", "version": (\d+), "crc32": "([0-9a-f]{8})", "content":\n(.*)\n\}\n', re.DOTALL
)


@dataclass(frozen=True)
class Segment:
    """Rows of some lanes, as they were written together.

    Attributes:
        runs: (lane, begin, end), times [begin, end) of a lane; in the order in which their rows lie in the files.
        extent: rows, final observations, stack prefixes.
        files: in the order of `strips.parts_of`; None for an array without entries.
    """

    runs: tuple[tuple[int, int, int], ...]
    extent: tuple[int, int, int]
    files: tuple[File | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        files = [None if file is None else file.to_dict() for file in self.files]
        return {"runs": self.runs, "extent": self.extent, "files": files}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Segment:
        """The inverse of `to_dict`."""
        runs = tuple((int(lane), int(begin), int(end)) for lane, begin, end in data["runs"])
        rows, finals, prefixes = map(int, data["extent"])
        if any(lane < 0 or begin < 0 or end < begin for lane, begin, end in runs) or min(finals, prefixes) < 0:
            raise ValueError("impossible runs")
        files = tuple(None if file is None else File.from_dict(file) for file in data["files"])
        return cls(runs, (rows, finals, prefixes), files)


@dataclass(frozen=True)
class Manifest:
    """What a snapshot says about itself.

    Attributes:
        identity: random, of this one save.
        number: of the next file.
        buffer: capacity, lanes, seed, schema, sampler, view.
        lanes: of each lane: begin, head, open, the oldest time needed.
        selector: the sampler's counters.
        epochs: of each lane: begin and head when the epoch under way began.
        segments: settled transitions, oldest first.
        tail: of each lane whose episode goes on: the newest transition, and a row with the observation that follows.
        values: masses, places in the heap, uses of live transitions; only those that the sampler keeps.
        note: the user's.
    """

    identity: str
    number: int
    buffer: dict[str, Any]
    lanes: tuple[tuple[int, int, int, int], ...]
    selector: dict[str, Any]
    epochs: tuple[tuple[int, int], ...]
    segments: tuple[Segment, ...]
    tail: Segment | None
    values: tuple[File, ...]
    note: Any

    @property
    def files(self) -> list[File]:
        """Every file that counts."""
        return [*(file for segment in self.segments for file in segment.files if file is not None), *self.open_files]

    @property
    def open_files(self) -> list[File]:
        """Those of what is not settled: open ends of episodes, and what the sampler keeps."""
        tail = () if self.tail is None else self.tail.files
        return [*(file for file in tail if file is not None), *self.values]

    def encode(self) -> bytes:
        """As it is written: JSON with a checksum of its own."""
        content = {
            **{"identity": self.identity, "number": self.number, "buffer": self.buffer, "lanes": self.lanes},
            **{"selector": self.selector, "epochs": self.epochs},
            "segments": [segment.to_dict() for segment in self.segments],
            "tail": None if self.tail is None else self.tail.to_dict(),
            "values": [file.to_dict() for file in self.values],
            "note": self.note,
        }
        return frame(FORMAT, content)


def check_note(note: Any) -> None:
    """Refuses a note before anything is written for it.

    Raises:
        ConfigError: JSON cannot hold it.
    """
    try:
        json.dumps(note, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"note: expected what JSON can hold, got a {type(note).__name__} that it cannot ({error})."
        ) from None


def frame(kind: str, content: Any) -> bytes:
    """JSON that says what it is, with a checksum of its own.

    Raises:
        TypeError, ValueError: JSON cannot hold it.
    """
    text = json.dumps(content, allow_nan=False).encode()
    head = f'{{"format": "{kind}", "version": {VERSION}, "crc32": "{zlib.crc32(text):08x}", "content":\n'
    return head.encode() + text + b"\n}\n"


def unframe(path: Path, kind: str) -> Any:
    """The content of a file that `frame` made.

    Raises:
        SnapshotError: it is another one, damaged, or of another version.
        FileNotFoundError: there is none.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise SnapshotError(f"{path}: expected a file, got something else. Use another copy.")  # a pipe has no end
    data = path.read_bytes()
    match = _FRAME.fullmatch(data)
    if match is None or match[1].decode(errors="replace") != kind:
        raise SnapshotError(
            f"{path}: expected a {kind}, got something else or a part of it (damaged between byte 0 and "
            f"{len(data):,}). Use another copy."
        )
    if int(match[2]) != VERSION:
        raise SnapshotError(f"{path}: expected version {VERSION}, got {int(match[2])}. Use the relive that wrote it.")
    if zlib.crc32(match[4]) != int(match[3], 16):
        raise SnapshotError(
            f"{path}: expected the bytes that were written, got others (between byte {match.start(3):,} and "
            f"{match.end(4):,}). The file is damaged; use another copy."
        )
    try:
        return json.loads(match[4])
    except (ValueError, RecursionError) as error:
        raise SnapshotError(f"{path}: expected a {kind}, got another text ({error}).") from None


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a snapshot.

    Raises:
        SnapshotError: there is none, or it is damaged, or of another version.
    """
    path = directory / MANIFEST
    try:
        return _decode(unframe(path, FORMAT))
    except (FileNotFoundError, NotADirectoryError):
        raise SnapshotError(f"{directory}: expected a snapshot, found {_instead(directory)}.") from None
    except IsADirectoryError:
        raise SnapshotError(f"{path}: expected a file, got a directory. Give a directory that `save` made.") from None
    except OSError as error:
        if isinstance(error, SnapshotError):
            raise
        raise SnapshotError(f"{path}: expected to read it, got an error of the system ({error.strerror}).") from error
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        raise SnapshotError(f"{path}: expected the manifest of a snapshot, got another ({error}).") from None


def _instead(directory: Path) -> str:
    """What is there that is no snapshot, and what opens it."""
    if directory.is_file():
        return "a file. Snapshots are directories; relive.interop.read reads datasets"
    if not directory.is_dir():
        return "no such directory. Give one that `save` made"
    for inside, words in {
        "buffer.json": "the directory of a buffer with storage=Mmap(path). Use relive.attach",
        "checkpoint/replay": f"a run. Its buffer is in {directory / 'checkpoint' / 'replay'}",
    }.items():
        if (directory / inside).exists():
            return words
    return f"no {MANIFEST} in it. Give a directory that `save` made"


def _decode(content: dict[str, Any]) -> Manifest:
    lanes = tuple((int(begin), int(head), int(going), int(first)) for begin, head, going, first in content["lanes"])
    if any(not 0 <= first <= begin <= head < 2**62 or going not in (0, 1) for begin, head, going, first in lanes):
        raise ValueError("impossible lanes")
    epochs = tuple((int(begin), int(head)) for begin, head in content["epochs"])
    if any(not 0 <= begin <= head < 2**62 for begin, head in epochs):
        raise ValueError("impossible epochs")
    number = int(content["number"])
    manifest = Manifest(
        str(content["identity"]),
        number,
        dict(content["buffer"]),
        lanes,
        dict(content["selector"]),
        epochs,
        tuple(map(Segment.from_dict, content["segments"])),
        None if content["tail"] is None else Segment.from_dict(content["tail"]),
        tuple(map(File.from_dict, content["values"])),
        content["note"],
    )
    if any(not _NAMES.fullmatch(file.name) or int(file.name.split("-")[0]) >= number for file in manifest.files):
        raise ValueError("impossible files")
    return manifest


def commit(directory: Path, manifest: Manifest) -> None:
    """Makes this the directory's snapshot, whose draft is there, then drops the files that it does not name."""
    disk.publish(directory, MANIFEST)
    drop_others(directory, manifest)


def drop_others(directory: Path, *manifests: Manifest | None) -> None:
    """Removes a snapshot's files that none of them names: of saves that were killed, or that are of no use any more."""
    named = {file.name for manifest in manifests if manifest is not None for file in manifest.files}
    for name in os.listdir(directory):  # noqa: PTH208 - all of a snapshot's disk goes through os
        if _NAMES.fullmatch(name) and name not in named:
            disk.remove(directory / name)


def file_name(number: int, part: str, compressed: bool) -> str:
    """The name of one array's file."""
    return f"{number:06d}-{part}.npy{'.zst' if compressed else ''}"


def npy_head(dtype: np.dtype[Any], shape: Sequence[int]) -> bytes:
    """The head of a `.npy` file. Its length does not depend on the length of the first axis."""
    descr = np.lib.format.dtype_to_descr(dtype)
    sides = ", ".join([f"{shape[0]}", *map(str, shape[1:])]) + ("," if len(shape) == 1 else "")
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': ({sides}), }}"
    longest = len(text.encode()) + 20 - len(str(shape[0]))
    version = 1 if text.isascii() and longest < 65_000 else 3
    before = 10 if version == 1 else 12
    length = -(-(before + longest + 1) // 64) * 64 - before
    body = text.encode()
    return (
        b"\x93NUMPY"
        + bytes((version, 0))
        + length.to_bytes(2 if version == 1 else 4, "little")
        + body
        + b" " * (length - len(body) - 1)
        + b"\n"
    )


def read_note(path: str | os.PathLike[str]) -> Any:
    """What `buffer.save(path, note=...)` was given, None where nothing was.

    Raises:
        SnapshotError: no snapshot, or its manifest is damaged.
    """
    return read_manifest(as_path("read_note", path)).note


def verify(path: str | os.PathLike[str]) -> None:
    """Compares every checksum of a snapshot, which may be saved to meanwhile.

    Raises:
        SnapshotError: something is not as it was written; says which file and where.

    Cost: reads all of it once, in constant memory.
    """
    directory = as_path("verify", path)

    def compare(manifest: Manifest) -> None:
        for file in manifest.files:
            disk.verify(directory, file)

    steadily(directory, compare)


def steadily(directory: Path, work: Callable[[Manifest], T]) -> T:
    """Reads a snapshot; another time where it was saved to meanwhile, and files of the one begun with were dropped.

    Raises:
        SnapshotError: there is none, or it is damaged, or saved to faster than it can be read.
    """
    manifest = read_manifest(directory)
    for _ in range(_ATTEMPTS):
        try:
            return work(manifest)
        except OSError:
            newer = read_manifest(directory)
            if newer.identity == manifest.identity:
                raise
            manifest = newer
    raise SnapshotError(
        f"{directory}: expected a snapshot that stays while it is read, it was saved to {_ATTEMPTS} times meanwhile. "
        "Let its saver pause, or save elsewhere too and read that."
    )

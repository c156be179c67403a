"""What one save writes: files on their way to the disk, and segments while their rows are copied."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive import compression as packing
from relive._core import Core
from relive.disk import File, Sink, draft, sync_directory
from relive.snapshot import Segment, file_name, npy_head
from relive.strips import Extent, Part, Parts, Strips
from relive.workers import Work, Workers

OPEN = 64
"""Files that wait to be on the disk."""


class Writing:
    """What one save writes to its directory. Files are made by a thread of its own: no interrupt comes there."""

    def __init__(self, directory: Path, number: int, compressed: bool) -> None:
        self.directory, self.number, self.compressed = directory, number, compressed
        self.written = 0
        self.worker = Workers(1)
        self._syncing = Workers(8)
        self._files: list[packing.Output | Sink] = []  # still being written, or not on their way to the disk
        self._coming: list[Work[None]] = []  # on their way

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.ExitStack() as stack:
            for file in self._files:
                stack.callback(file.close)
            stack.push(self._syncing)
            stack.push(self.worker)

    def ended(self) -> None:
        """No file is being written: those that were go to the disk, while the next ones are."""
        files, self._files = self._files, []
        self._coming += [self._syncing.submit(file.sync) for file in files]
        if len(self._coming) >= OPEN:
            self._wait()

    def sync(self) -> None:
        """Sees to it that all files are on the disk, and their names: all at once, for one wait."""
        self.ended()
        self._coming.append(self._syncing.submit(sync_directory, self.directory))
        self._wait()

    def _wait(self) -> None:
        coming, self._coming = self._coming, []
        for result in coming:
            result.result()

    def draft(self, name: str, data: bytes) -> None:
        """What will appear under this name."""
        self._files.append(self.worker.submit(draft, self.directory, name, data).result())
        self.written += len(data)

    def next_number(self) -> int:
        self.number += 1
        return self.number - 1

    def file(self, name: str, part: Part, number: int) -> packing.Output:
        """A file for the entries of a part."""
        head = packing.HEAD if self.compressed else len(npy_head(part.dtype, (0, *part.shape)))
        sink = Sink(self.directory, file_name(number, name, self.compressed), head)
        file = packing.Compressed(sink) if self.compressed else sink
        self._files.append(file)
        return file

    def done(self, file: packing.Output, part: Part, count: int) -> File:
        """Ends a file that has so many entries."""
        written = file.finish(npy_head(part.dtype, (count, *part.shape)))
        self.written += written.size
        return written

    def array(self, name: str, part: Part, entries: NDArray[Any], number: int | None = None) -> File:
        """A whole file at once."""
        return self.worker.submit(self._array, name, part, entries, number).result()

    def _array(self, name: str, part: Part, entries: NDArray[Any], number: int | None) -> File:
        file = self.file(name, part, self.next_number() if number is None else number)
        file.write(np.ascontiguousarray(entries).view(np.uint8).reshape(-1).data)
        return self.done(file, part, len(entries))


class Rows:
    """A segment while its rows are copied. A piece is written by a thread while the next one is copied."""

    def __init__(self, out: Writing, parts: Parts) -> None:
        self._out, self._parts = out, parts
        self._strips = [parts.allocate(parts.chunk) for _ in range(2)]  # for the next piece; being written
        self._number = out.next_number()
        self._files: list[packing.Output | None] = [None] * len(tuple(parts))
        self._writing: Work[None] | None = None
        self._runs: list[tuple[int, int, int]] = []
        self.extent: Extent = (0, 0, 0)

    def copy(self, core: Core, lane: int, begin: int, end: int, held: bool) -> bool:
        """Copies transitions [begin, end) of a lane; False if the first of them was overwritten."""
        strips = self._strips[0]
        filled = core.copy_out(lane, begin, end, self.extent, (0, 0, 0), strips, held)
        if filled is None:
            return False
        self._written()
        self._writing = self._out.worker.submit(self._write, strips, filled)
        self._strips.reverse()
        rows, finals, prefixes = (before + now for before, now in zip(self.extent, filled, strict=True))
        self.extent = (rows, finals, prefixes)
        if self._runs and self._runs[-1][0] == lane and self._runs[-1][2] == begin:
            begin = self._runs.pop()[1]
        self._runs.append((lane, begin, end))
        return True

    def finish(self) -> Segment:
        """Ends the files."""
        self._written()
        files = tuple(
            None if file is None else self._out.done(file, part, self.extent[part.per])
            for file, part in zip(self._files, self._parts, strict=True)
        )
        self._out.ended()
        return Segment(tuple(self._runs), self.extent, files)

    def _write(self, strips: Strips, filled: Extent) -> None:
        for place, (part, strip) in enumerate(zip(self._parts, strips, strict=True)):
            if filled[part.per] * part.entry_bytes == 0:
                continue
            file = self._files[place] = self._files[place] or self._out.file(part.name, part, self._number)
            file.write(strip[: filled[part.per]].reshape(-1).data)

    def _written(self) -> None:
        """Waits for the piece that is being written: what it was copied to is used again."""
        if self._writing is not None:
            self._writing.result()

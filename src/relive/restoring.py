"""A snapshot -> a buffer that holds nothing yet. A byte is used only after its checksum was right."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive._core import Core
from relive._core import Reader as Native
from relive.compression import Decompressed, Input
from relive.disk import File, Spring
from relive.errors import SnapshotError
from relive.schema import Schema
from relive.snapshot import MANIFEST, Manifest, Segment, npy_head
from relive.strips import VALUES, Extent, Part, Strips, parts_of
from relive.workers import ahead


@dataclass(frozen=True)
class _Piece:
    """Rows that were read.

    Attributes:
        lane: whose they are.
        begin: time of the first.
        count: of rows.
        before: what of their segment comes before them.
        after: what of it is over with them.
        strips: they themselves, and all that belongs to them.
        is_open: no transition, but the observation that the newest one's episode goes on with.
    """

    lane: int
    begin: int
    count: int
    before: Extent
    after: Extent
    strips: Strips
    is_open: bool = False


class Restorer:
    """Fills one core from one directory."""

    def __init__(self, directory: Path, manifest: Manifest, core: Core, schema: Schema) -> None:
        self._directory, self._manifest, self._core = directory, manifest, core
        self._parts = parts_of(core, schema)
        try:
            self._strips = [self._parts.allocate(self._parts.chunk) for _ in range(2)]  # one in use, one being filled
        except (MemoryError, ValueError) as error:
            raise SnapshotError(
                f"{directory / MANIFEST}: expected transitions that fit in memory, got {self._parts.row_bytes:,} bytes "
                "for one. Load another copy."
            ) from error
        history = core.layout()["rows"] - 1 - manifest.buffer["capacity"] // core.num_lanes
        self._first = [max(first, begin - history) for begin, _, _, first in manifest.lanes]  # of each lane

    @property
    def draws(self) -> int:
        """Batches drawn before the save."""
        return self._number(self._manifest.selector.get("draws"))

    @property
    def readers(self) -> int:
        """Readers made before the save."""
        return self._number(self._manifest.buffer.get("readers"))

    def _number(self, value: Any) -> int:
        if type(value) is not int or not 0 <= value < 2**64:
            raise self._contradiction()
        return value

    def fill(self) -> None:
        """Restores transitions and the open ends of episodes.

        Raises:
            SnapshotError: files that are damaged, or contradict the manifest.
        """
        lanes = self._manifest.lanes
        if len(lanes) != self._core.num_lanes:
            raise self._contradiction()
        tail = () if self._manifest.tail is None else self._manifest.tail.runs
        if sorted(lane for lane, _, _ in tail) != [lane for lane, (_, _, going, _) in enumerate(lanes) if going]:
            raise self._contradiction()
        depth = self._core.layout()["rows"] - 1
        times = list(self._first)  # of the next row of each lane
        for lane, (_, head, _, _) in enumerate(lanes):
            if head - times[lane] > depth:
                raise self._contradiction()
            self._core.begin_lane(lane, times[lane])
        with contextlib.closing(ahead(self._pieces())) as pieces:
            for piece in pieces:
                self._put(piece, times)
        for lane, (begin, head, _, _) in enumerate(lanes):
            if times[lane] != head or not self._core.end_lane(lane, begin):
                raise self._contradiction()

    def select(self, native: Native) -> None:
        """Restores what the sampler keeps, after `fill`.

        Raises:
            SnapshotError: files that are damaged, or contradict the manifest.
        """
        live = sum(head - begin for begin, head, *_ in self._manifest.lanes)
        values: list[NDArray[Any] | None] = [None] * len(VALUES)
        kept = [place for place, keeps in enumerate(native.keeps()) if keeps]
        if len(kept) != len(self._manifest.values) or len(self._manifest.epochs) != self._core.num_lanes:
            raise self._contradiction()
        for place, file in zip(kept, self._manifest.values, strict=True):
            name, dtype = VALUES[place]
            value = values[place] = np.zeros(live, dtype)
            with contextlib.closing(self._open(file, Part(name, 0, dtype), live)) as source:
                self._take(source, file, value.view(np.uint8).data)
                self._end(source, file)
        epochs = np.array(self._manifest.epochs, np.uint64).reshape(-1, 2)
        try:
            good = native.restore(self._manifest.selector, epochs, tuple(values))
        except (KeyError, TypeError, RuntimeError) as error:
            raise self._contradiction() from error
        if not good:
            raise self._contradiction()

    def _pieces(self) -> Generator[_Piece]:
        """Everything that is stored, piece by piece. A piece is good until the one after the next is asked for."""
        strips = itertools.cycle(self._strips)
        for segment in self._manifest.segments:
            yield from self._of_segment(segment, strips, is_tail=False)
        if self._manifest.tail is not None:
            yield from self._of_segment(self._manifest.tail, strips, is_tail=True)

    def _of_segment(self, segment: Segment, strips: Iterator[Strips], *, is_tail: bool) -> Generator[_Piece]:
        if len(segment.files) != len(tuple(self._parts)) or segment.extent[0] != sum(e - b for _, b, e in segment.runs):
            raise self._contradiction()
        with contextlib.ExitStack() as stack:
            sources: list[tuple[Input, File] | None] = []
            for part, file in zip(self._parts, segment.files, strict=True):
                count = segment.extent[part.per]
                if (file is not None) != (count * part.entry_bytes > 0):
                    raise self._contradiction()
                if file is None:
                    sources.append(None)
                    continue
                source = self._open(file, part, count)
                stack.callback(source.close)
                sources.append((source, file))
            before = (0, 0, 0)
            for lane, begin, end in segment.runs:
                if lane >= len(self._first):
                    raise self._contradiction()
                last = end - 1 if is_tail else end
                for time in (*range(begin, last, self._parts.chunk), *range(last, end)):
                    count = 1 if time == last else min(self._parts.chunk, last - time)
                    into = next(strips)
                    after = self._read(sources, into, before, segment.extent, count)
                    yield _Piece(lane, time, count, before, after, into, is_open=time == last)
                    before = after
            if before != segment.extent:
                raise self._contradiction()
            for pair in sources:
                if pair is not None:
                    self._end(*pair)

    def _read(
        self, sources: list[tuple[Input, File] | None], into: Strips, before: Extent, extent: Extent, count: int
    ) -> Extent:
        """Reads the next rows with all that belongs to them; returns how much was read then."""
        for place, (part, strip) in enumerate(zip(self._parts, into, strict=True)):
            if part.per == 0:
                self._fill(sources[place], strip[:count])
        counts = self._core.count_rows(into[0], count)
        after = tuple(start + more for start, more in zip(before, counts, strict=True))
        if any(reached > whole for reached, whole in zip(after, extent, strict=True)):
            raise self._contradiction()
        for place, (part, strip) in enumerate(zip(self._parts, into, strict=True)):
            if part.per != 0:
                self._fill(sources[place], strip[: counts[part.per]])
        return after[0], after[1], after[2]

    def _put(self, piece: _Piece, times: list[int]) -> None:
        """Gives rows to the core, as far as they are needed."""
        lane, begin, count = piece.lane, piece.begin, piece.count
        if piece.is_open:
            if times[lane] != begin or piece.after[1:] != piece.before[1:]:
                raise self._contradiction()
            self._core.copy_open(lane, piece.strips)
            return
        skipped = min(max(times[lane] - begin, 0), count)
        if skipped == count:
            return
        if begin + skipped != times[lane] or begin + count > self._manifest.lanes[lane][1]:
            raise self._contradiction()
        counts = self._core.count_rows(piece.strips[0], skipped)
        passed = tuple(start + more for start, more in zip(piece.before, counts, strict=True))
        arrays = tuple(
            [
                strip[passed[part.per] - piece.before[part.per] :]
                for part, strip in zip(self._parts, piece.strips, strict=True)
            ]
        )
        if not self._core.copy_in(lane, count - skipped, (passed[0], passed[1], passed[2]), piece.after, arrays):
            raise self._contradiction()
        times[lane] = begin + count

    def _open(self, file: File, part: Part, count: int) -> Input:
        """A file of so many entries, after its head."""
        spring = Spring(self._directory, file)
        try:
            source = Decompressed(spring, file.name) if file.name.endswith(".zst") else spring
            if source.head != npy_head(part.dtype, (count, *part.shape)):
                raise SnapshotError(
                    f"{self._directory / file.name}: expected {count:,} entries of {part.dtype} {part.shape}, got "
                    "others. Load another copy."
                )
            return source
        except BaseException:
            spring.close()
            raise

    def _fill(self, source: tuple[Input, File] | None, into: NDArray[np.uint8]) -> None:
        if into.size == 0:
            return
        if source is None:
            raise self._contradiction()
        self._take(*source, into.reshape(-1).data)

    def _take(self, source: Input, file: File, into: memoryview) -> None:
        if source.readinto(into) != len(into):
            raise SnapshotError(f"{self._directory / file.name}: expected more entries. Load another copy.")

    def _end(self, source: Input, file: File) -> None:
        if source.readinto(memoryview(bytearray(1))):
            raise SnapshotError(f"{self._directory / file.name}: expected no more entries. Load another copy.")

    def _contradiction(self) -> SnapshotError:
        return SnapshotError(
            f"{self._directory / MANIFEST}: expected the contents of a buffer, got parts that contradict each other. "
            "Load another copy."
        )

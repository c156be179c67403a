"""Compressed files of a snapshot: Zstandard frames, one for the head, one for the rest.

The head is written last and of no fixed length, the place for it is: a frame that decoders skip fills what is left.
"""

from __future__ import annotations

from typing import Any, Protocol

from relive.disk import File, Sink, Spring
from relive.errors import ConfigError, SnapshotError

HEAD = 4096
_SKIPPED = b"\x50\x2a\x4d\x18"


class Output(Protocol):
    """A file that is written once."""

    def write(self, data: memoryview) -> None:
        """Appends bytes."""

    def finish(self, head: bytes) -> File:
        """Writes the head. `sync` is to follow."""

    def sync(self) -> None:
        """Sees to it that everything is on the disk, and lets go of the file."""

    def close(self) -> None:
        """Lets go of the file."""


class Input(Protocol):
    """A file that is read once."""

    head: bytes

    def readinto(self, into: memoryview) -> int:
        """Fills `into` as far as the file goes; returns how far."""

    def close(self) -> None:
        """Lets go of the file."""


def library() -> Any:
    """The package that compresses.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import zstandard
    except ModuleNotFoundError:
        raise ConfigError(
            "compression: expected the package zstandard, found none. Install it: pip install 'relive[zstd]'"
        ) from None
    return zstandard


class Compressed:
    """Writes a file through a compressor."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._zstd = library()
        self._frame = self._zstd.ZstdCompressor(level=1).compressobj()

    def write(self, data: memoryview) -> None:
        """Appends bytes."""
        self._sink.write(memoryview(self._frame.compress(data)))

    def finish(self, head: bytes) -> File:
        """Ends the frame, and puts the head before it."""
        self._sink.write(memoryview(self._frame.flush()))
        frame = self._zstd.ZstdCompressor(level=19).compress(head)
        filler = HEAD - len(frame) - 8
        if filler < 0:
            raise ConfigError(f"compression: expected fields whose names take less room, got {len(head):,} bytes.")
        return self._sink.finish(frame + _SKIPPED + filler.to_bytes(4, "little") + bytes(filler))

    def sync(self) -> None:
        """Sees to it that everything is on the disk, and lets go of the file."""
        self._sink.sync()

    def close(self) -> None:
        """Lets go of the file."""
        self._sink.close()


class Decompressed:
    """Reads a file through a decompressor. Never more than was asked for is in memory."""

    def __init__(self, spring: Spring, name: str) -> None:
        self._spring, self._name = spring, name
        self._zstd = library()
        try:
            self.head: bytes = self._zstd.ZstdDecompressor().stream_reader(spring.head).read(HEAD)
        except self._zstd.ZstdError as error:
            raise self._bad(error) from None
        self._stream = self._zstd.ZstdDecompressor().stream_reader(spring)

    def readinto(self, into: memoryview) -> int:
        """Fills `into` as far as the file goes; returns how far."""
        done = 0
        try:
            while done < len(into) and (some := self._stream.readinto(into[done:])):
                done += some
        except self._zstd.ZstdError as error:
            raise self._bad(error) from None
        return done

    def close(self) -> None:
        """Lets go of the file."""
        self._spring.close()

    def _bad(self, error: Exception) -> SnapshotError:
        return SnapshotError(f"{self._name}: expected a Zstandard file, got another ({error}). Load another copy.")

"""A learner's weights, where every actor of the host can read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relive.checks import integer
from relive.errors import ConfigError, SchemaError, SnapshotError
from relive.segment import Segment

_KIND = "vector of weights"
_WORDS = 64  # int64 words of the head: two cache lines apart from what is read all the time
_BEGUN, _VERSION = 0, 8  # publications begun, and completed
_SLOTS = (16, 24)  # of either copy: its version, the updates that made it, the XOR of its words
_ATTEMPTS = 1000


@dataclass(frozen=True)
class WeightsHandle:
    """What another process needs to read the weights; small, picklable."""

    name: str
    key: int
    size: int


class Weights:
    """One float32 vector with a version, written by one process and read by many, through shared memory.

    Nobody waits for anybody: there are two copies, the writer writes to the older one and then says that it is the
    newer. A reader whose copy was written to while it read reads again; what it got is also checked against a sum that
    lies with it, so that a torn vector is never returned, on any processor. A writer killed at any instant leaves the
    last vector that was complete.

    Use `create` in the process that writes, `attach` in those that read.
    """

    def __init__(self, segment: Segment, size: int) -> None:
        """Use `create` or `attach`."""
        self._segment = segment
        self._head = np.frombuffer(segment.payload, np.int64, _WORDS)
        stride = _padded(size) // 4
        copies = np.frombuffer(segment.payload, np.float32, 2 * stride, _WORDS * 8)
        self._copies = copies[:stride], copies[stride:]
        self._size = size
        self._open = True

    @classmethod
    def create(cls, size: int, name: str | None = None) -> Weights:
        """New memory for `size` parameters.

        Args:
            size: at least 1.
            name: of the segment; None draws one.

        Raises:
            ConfigError: a size that cannot be, a name that is taken, or no room.

        Cost: 8 bytes a parameter of shared memory, taken at once.
        """
        size = integer("Weights", "size", size, 1, 2**40)
        num_bytes = _WORDS * 8 + 2 * _padded(size)
        return cls(Segment.create(name, _KIND, {"size": size}, num_bytes, [(0, num_bytes)]), size)

    @classmethod
    def attach(cls, handle: WeightsHandle) -> Weights:
        """The weights that another process made.

        Raises:
            SnapshotError: they are gone, not those that the handle is of, or of another size.
        """
        segment = Segment.open(handle.name, _KIND, handle.key)
        size = segment.card.get("size")
        if size != handle.size or len(segment.payload) != _WORDS * 8 + 2 * _padded(size):
            segment.close()
            raise SnapshotError(
                f"{handle.name}: expected weights of size {handle.size}, as the handle says, got {size} "
                f"({len(segment.payload):,} bytes)."
            )
        return cls(segment, size)

    def handle(self) -> WeightsHandle:
        """For `attach`."""
        return WeightsHandle(self._segment.name, self._segment.key, self._size)

    @property
    def size(self) -> int:
        """Parameters."""
        return self._size

    @property
    def version(self) -> int:
        """Vectors published so far. Cost: one read of memory."""
        return int(self._head[_VERSION])

    def publish(self, vector: NDArray[np.float32], updates: int = 0) -> int:
        """Make this the newest vector. By one process, and one thread at a time.

        Args:
            vector: float32 [size]; copied.
            updates: how many updates made it, for the readers' information.

        Returns:
            int: its version.

        Raises:
            SchemaError: another shape or dtype, or no array; nothing was published.
            ConfigError: `updates` is no integer in [0, 2**63), or these were closed; nothing was published.

        Cost: two passes over it.
        """
        self._check(vector)
        updates = integer("weights", "updates", updates, 0, 2**63 - 1)
        head, version = self._head, self.version + 1
        copy, slot = self._copies[version % 2], _SLOTS[version % 2]
        head[_BEGUN] = version
        copy[: self._size] = vector
        head[slot : slot + 3] = version, updates, _sum(copy)
        head[_VERSION] = version
        return version

    def read(self, into: NDArray[np.float32], *, newer_than: int = 0) -> tuple[int, int] | None:
        """Copy the newest vector, whole.

        Args:
            into: float32 [size]; undefined afterwards where None is returned.
            newer_than: a version; the newest must be newer.

        Returns:
            (version, updates) of what was copied; None if there is nothing newer.

        Raises:
            SchemaError: another shape or dtype, or no array.
            ConfigError: these were closed.

        Cost: one read of memory where there is nothing newer, else two passes over the vector. Without a lock.
        """
        self._check(into)
        for _ in range(_ATTEMPTS):
            version = self.version
            if version <= newer_than:
                return None
            if found := self._read(version, into):
                return found
        return None  # published faster than it can be read, again and again: the next call will find one

    def close(self) -> None:
        """Let go of the memory; its maker's call takes the name away. Idempotent."""
        self._open = False
        self._segment.close()

    def _check(self, vector: object) -> None:
        """Refuses whatever can be no vector of these, and all once they are closed."""
        if not self._open:
            raise ConfigError("weights: expected them open, got closed ones. Make or attach to others.")
        if not isinstance(vector, np.ndarray) or vector.shape != (self._size,) or vector.dtype != np.float32:
            got = f"{vector.dtype} {vector.shape}" if isinstance(vector, np.ndarray) else type(vector).__name__
            raise SchemaError(f"weights: expected float32 ({self._size},), got {got}.")

    def _read(self, version: int, into: NDArray[np.float32]) -> tuple[int, int] | None:
        """Copy this version, if it is still there whole."""
        head, copy, slot = self._head, self._copies[version % 2], _SLOTS[version % 2]
        there, updates, total = (int(word) for word in head[slot : slot + 3])
        words = copy.copy()  # summed as it was copied
        # The next but one would be written over this one.
        if there != version or int(head[_BEGUN]) > version + 1 or _sum(words) != total:
            return None
        into[:] = words[: self._size]
        return version, updates


def _padded(size: int) -> int:
    """Bytes of a copy: whole cache lines, so that it is whole words too."""
    return -(-size * 4 // 64) * 64


def _sum(words: NDArray[np.float32]) -> int:
    """XOR of the vector's 64-bit words, as int64."""
    return int(np.bitwise_xor.reduce(words.view(np.int64)))

"""Memory of batches whose rows come from several parts: written to in place, and recycled when nobody holds it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive.batch import Batch
from relive.trees import map_fields

_KEPT = 3  # of each size: a batch in use, one prefetched, one being made
_SIZES = 4
_LARGEST = 64 << 20  # bytes; a larger batch is not kept: its memory would be missed elsewhere


def slices(counts: list[int]) -> Iterator[tuple[int, slice]]:
    """The parts that have rows in a batch, and which: one part's after another's."""
    start = 0
    for part, count in enumerate(counts):
        if count:
            yield part, slice(start, start + count)
        start += count


def joined(n: int, some: Sequence[tuple[Any, Mapping[str, Any]]]) -> dict[str, Any]:
    """One batch of `n` rows out of batches and the rows where each goes; shorter ones are padded with zeros."""

    def join(*arrays: NDArray[Any]) -> NDArray[Any]:
        sides = zip(*(array.shape[1:] for array in arrays), strict=True)
        whole = np.zeros((n, *map(max, sides)), arrays[0].dtype)
        for (rows, _), array in zip(some, arrays, strict=True):
            whole[(rows, *map(slice, array.shape[1:]))] = array
        return whole

    return map_fields(join, *(fields for _, fields in some))


class Memory:
    """One batch's arrays, and the slices of them that the parts write to."""

    def __init__(self, template: Mapping[str, Any], n: int) -> None:
        self._leaves: list[NDArray[Any]] = []
        self._fields = map_fields(lambda leaf: self._allocate(leaf, n), template)
        self._counts: list[int] = []
        self._parts: list[tuple[int, Batch]] = []
        self._alone: list[int] = []

    def _allocate(self, like: NDArray[Any], n: int) -> NDArray[Any]:
        leaf = np.empty((n, *like.shape[1:]), like.dtype)
        self._leaves.append(leaf)
        return leaf

    def parts(self, counts: list[int]) -> list[tuple[int, Batch]]:
        """The parts that have rows, and where they write them."""
        if counts != self._counts:
            self._parts = [
                (part, Batch(map_fields(lambda leaf, rows=rows: leaf[rows], self._fields)))
                for part, rows in slices(counts)
            ]
            self._counts = counts
            self._alone = self._references()
        return self._parts

    def fields(self) -> dict[str, Any]:
        """The batch, as views: whoever gets it may reshape or lock them without doing so to this memory."""
        return map_fields(np.ndarray.view, self._fields)

    @property
    def is_free(self) -> bool:
        """True if nobody holds a view, tensor or buffer made of any array."""
        return self._references() == self._alone

    @property
    def nbytes(self) -> int:
        """Of all arrays."""
        return sum(leaf.nbytes for leaf in self._leaves)

    def _references(self) -> list[int]:
        return list(map(sys.getrefcount, self._leaves))


class Pool:
    """Memory of the last few sizes. Touching fresh memory would cost more than the copy of the rows."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, bool], list[Memory]] = {}

    def take(self, template: Mapping[str, Any], n: int, weighted: bool) -> Memory:
        """Memory for a batch of `n` rows like the template, which nobody else holds."""
        kept = self._kept.get((n, weighted))
        if kept is None:
            if len(self._kept) == _SIZES:
                del self._kept[next(iter(self._kept))]
            kept = self._kept[n, weighted] = []
        for memory in kept:
            if memory.is_free:
                return memory
        memory = Memory(template, n)
        if memory.nbytes <= _LARGEST:
            kept.append(memory)
            del kept[:-_KEPT]
        return memory

"""Transitions that are there more than once."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from relive.audit.continuity import RARE
from relive.audit.report import Check, Finding, Place, share
from relive.audit.rows import Rows, Words
from relive.schema import Schema, leaves

MOST_KEYS = 1 << 21
"""Transitions whose keys are kept, 24 bytes each. Of more, only those with small keys: a fair sample of contents."""

FEW_ELEMENTS = 64


class Repeats:
    """Counts transitions whose obs, action, reward, flags and next_obs are there already, byte for byte.

    Transitions are compared by 128-bit keys, a multilinear hash: two that differ get the same one with a probability of
    at most 2^-66, so that two million of them do with one below 1e-7.

    Args:
        schema: what a transition is.
        most_keys: how many keys are kept.
    """

    rule = "repeats"

    def __init__(self, schema: Schema, most_keys: int = MOST_KEYS) -> None:
        fields = [field for _, field in leaves(schema.obs, "obs")]
        self._are_few_states = (
            all(field.itemdtype.kind in "iub" for field in fields)
            and sum(math.prod(field.shape) for field in fields) < FEW_ELEMENTS
        )
        self._most_keys = most_keys
        self._parts: list[NDArray[np.uint64]] = []  # [N, 3]: key, key, place
        self._held = self._seen = 0
        self._shift = 0  # keys with so many leading zeros are kept
        self._factors: NDArray[np.uint64] | None = None
        self._counted: tuple[int, int, Place | None] | None = None

    def see(self, rows: Rows) -> None:
        """Takes the keys of a chunk."""
        keys = self._keys(rows)
        places = rows.lane + ((rows.start + np.arange(len(rows), dtype=np.uint64)) << np.uint64(20))
        self._counted = None
        self._parts.append(np.column_stack([keys, places.astype(np.uint64)]))
        self._seen += len(rows)
        self._thin(len(self._parts) - 1)
        while self._held > self._most_keys:
            self._shift += 1
            self._held = 0
            self._thin(0)

    def _thin(self, since: int) -> None:
        """Drops the keys that are too large."""
        for number, part in enumerate(self._parts[since:], start=since):
            if self._shift:
                self._parts[number] = part[part[:, 0] >> np.uint64(64 - self._shift) == 0]
            self._held += len(self._parts[number])

    def _keys(self, rows: Rows) -> NDArray[np.uint64]:
        """uint64 [T, 2]: sums of 32-bit words, each times a random 64-bit number of its own, modulo 2^64."""
        parts = [rows.obs, rows.next_obs, rows.rest]
        width = 2 * sum(part.shape[1] for part in parts)
        if self._factors is None or len(self._factors) != width:
            self._factors = np.random.default_rng(0).integers(0, 2**64, (width, 2), np.uint64, endpoint=False)
        keys = np.zeros((len(rows), 2), np.uint64)
        at = 0
        for part in parts:
            keys += _sums(part, self._factors[at : at + 2 * part.shape[1]])
            at += 2 * part.shape[1]
        return keys

    def count(self) -> tuple[int, int, Place | None]:
        """Repeats among the transitions whose keys were kept, the number of these, the place of the first repeat."""
        if self._counted is None:
            self._counted = self._count()
        return self._counted

    def _count(self) -> tuple[int, int, Place | None]:
        table = np.concatenate(self._parts) if self._parts else np.empty((0, 3), np.uint64)
        order = np.lexsort((table[:, 1], table[:, 0]))  # stable: equal keys stay in the order in which they came
        sorted_keys = table[order, :2]
        repeated = order[1:][(sorted_keys[1:] == sorted_keys[:-1]).all(axis=1)]
        if not len(repeated):
            return 0, len(table), None
        place = int(table[repeated.min(), 2])
        return len(repeated), len(table), Place(place & 0xFFFFF, place >> 20)

    def share_of(self, adjacent: int) -> float:
        """Share of all transitions that repeat another, but for so many of which it is known already."""
        count, kept, _ = self.count()
        return count / max(kept, 1) - adjacent / max(self._seen, 1)

    def findings(self, adjacent: int) -> Iterator[Finding]:
        """One, where more than a few repeat. `adjacent`: how many were named already."""
        count, kept, first = self.count()
        if self._are_few_states or self.share_of(adjacent) < RARE:
            return
        words = (
            f"{share(count, kept)} transitions{self._of_a_sample()} are there before, byte for byte: obs, action, "
            "reward, flags and next_obs. Legal where the environment is deterministic or has few states; else "
            "a part was stored twice."
        )
        yield Finding(self.rule, "warning", count, first, words)

    def _of_a_sample(self) -> str:
        return f" (a sample of 1 in {2**self._shift} of {self._seen:,})" if self._shift else ""

    def check(self) -> Check:
        """What was seen."""
        count, kept, _ = self.count()
        why = ", as they do where states are few" if self._are_few_states and count else ""
        return Check(self.rule, f"{share(count, kept)} transitions{self._of_a_sample()} are there before{why}")


def _sums(words: Words, factors: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """[T, W] words as [T, 2 W] halves, times the factors [2 W, 2]."""
    if not words.size:
        return np.zeros((len(words), 2), np.uint64)
    halves = np.ascontiguousarray(words).view(np.uint32).astype(np.uint64)
    sums: NDArray[np.uint64] = halves @ factors
    return sums

"""Are the flags those of episodes?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from relive.audit.continuity import ENOUGH
from relive.audit.pairs import Pairs
from relive.audit.report import Check, Finding
from relive.audit.rows import Rows

LONG = 20
"""Steps from which on a length that many episodes share needs a reason."""


@dataclass
class _Open:
    """The newest episode of a lane."""

    begins: int
    is_whole: bool  # its first transition is there
    newest: int = -1
    kind: str | None = None  # how its newest transition ends it


class Episodes:
    """How many episodes end by which flag, and how long they are.

    Args:
        ring: the oldest episode of a lane may lack its beginning.
    """

    rule = "flags"

    def __init__(self, ring: bool) -> None:
        self._ring = ring
        self._lanes: dict[int, _Open] = {}
        self._lengths: dict[str, Counter[int]] = {kind: Counter() for kind in ("terminated", "truncated", "both")}
        self._ends: Counter[str] = Counter()

    def see(self, rows: Rows, pairs: Pairs) -> None:
        """Looks at a chunk."""
        lane = self._lanes.setdefault(rows.lane, _Open(rows.start, not self._ring))
        new = slice(pairs.fresh, None)
        kinds = pairs.terminated + 2 * pairs.truncated.astype(np.int8)
        breaks = np.flatnonzero(pairs.ended[:-1][new] | pairs.gaps[new])
        at = breaks + pairs.start + pairs.fresh
        lengths = np.diff(at, prepend=lane.begins - 1)
        if len(at):
            first = 0 if lane.is_whole else 1
            for number, kind in enumerate(self._lengths, start=1):
                chosen = kinds[:-1][new][breaks][first:] == number
                values, counts = np.unique(lengths[first:][chosen], return_counts=True)
                self._lengths[kind].update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            lane.begins, lane.is_whole = int(at[-1]) + 1, True
        for number, kind in enumerate(self._lengths, start=1):
            self._ends[kind] += int(np.count_nonzero(kinds[len(kinds) - len(rows) :] == number))
        lane.newest = rows.start + len(rows) - 1
        lane.kind = [None, *self._lengths][int(kinds[-1])]

    def interrupt(self, lane: int, start: int) -> None:
        """Transitions of this lane are passed over; it goes on at `start`."""
        self._lanes[lane] = _Open(start, False)

    def _whole(self) -> dict[str, Counter[int]]:
        """Lengths of all whole episodes by how they ended, those at the end of a lane too."""
        lengths = {kind: Counter(of_kind) for kind, of_kind in self._lengths.items()}
        for lane in self._lanes.values():
            if lane.kind is not None and lane.is_whole:
                lengths[lane.kind][lane.newest + 1 - lane.begins] += 1
        return lengths

    def findings(self) -> Iterator[Finding]:
        """Flags that say less than they should."""
        lengths = self._whole()
        terminated, truncated, both = (self._ends[kind] for kind in lengths)
        if both >= ENOUGH and not terminated and not truncated and len(lengths["both"]) > 1:
            words = (
                f"terminated and truncated are both set at all {both:,} ends, although the episodes' lengths differ: "
                "one `done` seems to be stored as both. Learners take them all as terminated."
            )
            yield Finding(self.rule, "warning", both, None, words)
        if terminated and not truncated and not both:
            yield from _limit(lengths["terminated"])

    def check(self) -> Check:
        """What was seen."""
        parts = [f"{count:,} {kind}" for kind, count in self._ends.items() if count] or ["no end"]
        words = f"{', '.join(parts)} ({sum(self._ends.values()):,} episodes)"
        every = sum(self._whole().values(), Counter[int]())
        if every:
            words += f", {min(every):,} to {max(every):,} steps long"
        return Check(self.rule, words)


def _limit(lengths: Counter[int]) -> Iterator[Finding]:
    """Whether many episodes end, all by termination, at the same longest length."""
    longest = max(lengths, default=0)
    episodes, at_limit = lengths.total(), lengths[longest]
    close = sum(count for length, count in lengths.items() if 0.8 * longest <= length < longest)
    usual = close / (0.2 * longest) if longest else 0.0  # episodes of each length a little shorter
    if longest >= LONG and at_limit >= 5 * max(1.0, usual):
        words = (
            f"{at_limit:,} of {episodes:,} episodes end as terminated after {longest:,} steps exactly, the longest "
            "there is, and none is truncated. If that is a time limit, store it as truncated: else no target "
            "bootstraps there."
        )
        yield Finding("flags", "warning", at_limit, None, words)

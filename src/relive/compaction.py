"""Which segments of a snapshot stay, and which rows are written anew.

However often a buffer is saved, its snapshot has few files, and at least half of what is in them is needed. Rows are
written anew from the buffer, whose own they still are: nothing is read back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from relive.snapshot import Segment

Run = tuple[int, int, int]
"""Lane, and times [begin, end)."""

RUNS = 128
"""Runs a segment, on average, from which on there are too many: the manifest names them all."""


@dataclass(frozen=True)
class Stay:
    """A segment that is good as it is, or the rows of some that are to be one.

    Attributes:
        runs: what is needed of it.
        segment: as it lies there; None: its rows are written anew.
    """

    runs: tuple[Run, ...]
    segment: Segment | None

    @property
    def rows(self) -> int:
        """How many are needed."""
        return count(self.runs)


@dataclass(frozen=True)
class Plan:
    """What becomes of the segments of the last snapshot.

    Attributes:
        stays: in their order: the times of each lane ascend.
        taken_back: what is needed of the newest ones, where these are to be one with what is new.
    """

    stays: list[Stay]
    taken_back: tuple[Run, ...]


def count(runs: Iterable[Run]) -> int:
    """Rows of these runs."""
    return sum(end - begin for _, begin, end in runs)


def make_plan(
    segments: Sequence[Segment],
    first: Sequence[int],
    num_new: int,
    *,
    largest: int,
    most: int,
    is_whole: Callable[[Segment], bool],
) -> Plan:
    """Looks at the segments of the last snapshot.

    Those of which nothing is needed go, and those that are not whole are written anew. With anything new: so are those
    mostly dead, once half of all is; and where there are more than `most`, or many lanes in each, small neighbours
    become one, so that each is more than twice as large as the next, or too large to join it. A row is written a few
    times in its life.

    Args:
        segments: oldest first.
        first: of each lane the oldest time that is needed.
        num_new: rows that come behind them.
        largest: rows of a segment, at most.
        most: segments, about.
        is_whole: whether a segment's files are there.

    Cost: O(runs).
    """
    stays = [Stay(runs, segment) for segment in segments if (runs := _needed(segment, first))]
    kept = sum(stay.segment.extent[0] for stay in stays if stay.segment)
    wasteful = num_new > 0 and kept > 2 * sum(stay.rows for stay in stays)
    checked: list[Stay] = []
    for stay in stays:
        assert stay.segment is not None
        if is_whole(stay.segment) and not (wasteful and 2 * stay.rows < stay.segment.extent[0]):
            checked.append(stay)
        elif checked and checked[-1].segment is None and checked[-1].rows + stay.rows <= largest:
            checked[-1] = _joined(checked[-1], stay)
        else:
            checked.append(Stay(stay.runs, None))
    if num_new == 0 or (len(checked) < most and sum(len(stay.runs) for stay in checked) < RUNS * most):
        return Plan(checked, ())
    return _with_fewer(checked, num_new, largest)


def _with_fewer(stays: list[Stay], num_new: int, largest: int) -> Plan:
    """Joins small neighbours, from what is new on backwards."""
    joined: list[Stay] = []
    taken_back: Stay | None = None
    group, rows = Stay((), None), num_new  # so far what is new
    for stay in reversed(stays):
        if stay.rows <= 2 * rows and rows + stay.rows <= largest:
            group, rows = _joined(stay, group), rows + stay.rows
            continue
        if taken_back is None:
            taken_back = group
        else:
            joined.append(group)
        group, rows = stay, stay.rows
    if taken_back is None:
        taken_back = group
    else:
        joined.append(group)
    return Plan(joined[::-1], taken_back.runs)


def _needed(segment: Segment, first: Sequence[int]) -> tuple[Run, ...]:
    return tuple((lane, max(begin, first[lane]), end) for lane, begin, end in segment.runs if end > first[lane])


def _joined(older: Stay, newer: Stay) -> Stay:
    """The rows of both, lane by lane."""
    runs: list[Run] = []
    for lane, begin, end in sorted((*older.runs, *newer.runs)):
        if runs and runs[-1][0] == lane and runs[-1][2] == begin:
            begin = runs.pop()[1]
        runs.append((lane, begin, end))
    return Stay(tuple(runs), None)

"""A dataset in figures: how many episodes, how long, how good, how they end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from relive.interop.blocks import Rows, checked, follows, goes_on
from relive.interop.source import Source


@dataclass
class Spread:
    """Of numbers that come one after another."""

    count: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, values: NDArray[np.float64]) -> None:
        """Takes some more."""
        if len(values):
            self.count += len(values)
            self.total += float(values.sum())
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    @property
    def mean(self) -> float:
        """NaN of none."""
        return self.total / self.count if self.count else math.nan


@dataclass
class Summary:
    """What `summarise` found.

    Attributes:
        transitions: of all lanes.
        returns: undiscounted, of the episodes that end.
        lengths: in steps, of the same.
        rewards: of single steps.
        terminated: steps with the flag.
        truncated: steps with the flag.
        both: steps with both.
        breaks: episodes that end without a flag, because something else follows.
        open: lanes whose last episode goes on where the data end.
    """

    transitions: int = 0
    returns: Spread = field(default_factory=Spread)
    lengths: Spread = field(default_factory=Spread)
    rewards: Spread = field(default_factory=Spread)
    terminated: int = 0
    truncated: int = 0
    both: int = 0
    breaks: int = 0
    open: int = 0

    @property
    def episodes(self) -> int:
        """Those that end."""
        return self.returns.count


@dataclass
class _Lane:
    """The episode that a lane is in."""

    steps: int = 0
    total: float = 0.0
    last: list[NDArray[np.generic]] = field(default_factory=list)
    flagged: bool = True


def summarise(source: Source) -> Summary:
    """Reads all of a dataset once, in bounded memory.

    Raises:
        DatasetError: it is damaged.
        SchemaError: a block does not fit the schema.
    """
    summary = Summary()
    lanes = [_Lane() for _ in range(source.lanes)]
    for rows, number in checked(source):
        _take(summary, lanes[number], rows)
    summary.open = sum(not lane.flagged for lane in lanes)
    return summary


def _take(summary: Summary, lane: _Lane, rows: Rows) -> None:
    reward = rows.reward.astype(np.float64)
    summary.transitions += len(reward)
    summary.rewards.add(reward)
    summary.terminated += int(np.count_nonzero(rows.terminated))
    summary.truncated += int(np.count_nonzero(rows.truncated))
    summary.both += int(np.count_nonzero(rows.terminated & rows.truncated))
    if not lane.flagged and not follows(rows, lane.last, lane.flagged):
        summary.breaks += 1
        _close(summary, lane)
    flagged = rows.terminated | rows.truncated
    ends = np.append(~goes_on(rows), flagged[-1])
    summary.breaks += int(np.count_nonzero(ends & ~flagged))
    places = np.flatnonzero(ends)
    if len(places):
        starts = np.append(0, places[:-1] + 1)
        returns = np.add.reduceat(reward[: places[-1] + 1], starts)
        lengths = (places + 1 - starts).astype(np.float64)
        returns[0] += lane.total
        lengths[0] += lane.steps
        summary.returns.add(returns)
        summary.lengths.add(lengths)
        lane.steps, lane.total = len(reward) - 1 - int(places[-1]), float(reward[places[-1] + 1 :].sum())
    else:
        lane.steps, lane.total = lane.steps + len(reward), lane.total + float(reward.sum())
    lane.last, lane.flagged = [leaf[-1:].copy() for leaf in rows.next_obs], bool(flagged[-1])


def _close(summary: Summary, lane: _Lane) -> None:
    summary.returns.add(np.array([lane.total]))
    summary.lengths.add(np.array([float(lane.steps)]))
    lane.steps, lane.total = 0, 0.0

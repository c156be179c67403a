"""Transitions and those that follow them in their lane, also across chunks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from relive.audit.rows import Bools, Rows, Words, same


@dataclass(frozen=True)
class Pairs:
    """The pairs (t, t + 1) of a chunk, that of its first transition and the one before it included.

    Attributes:
        lane: which.
        start: number of the t of pair 0 in its lane.
        fresh: pairs before this one were seen with the chunk before; they are here to be looked back at.
        joined: bool [P], next_obs of t is, byte for byte, obs of t + 1.
        repeated: bool [P], t + 1 is, byte for byte, t.
        held: bool [P], obs of t + 1 is, byte for byte, obs of t.
        terminated: bool [P + 1], of each transition.
        truncated: bool [P + 1].
        moving: bool [P + 1], next_obs of the transition differs from its obs.
        zero: bool [P + 1], its reward is 0.
    """

    lane: int
    start: int
    fresh: int
    joined: Bools
    repeated: Bools
    held: Bools
    terminated: Bools
    truncated: Bools
    moving: Bools
    zero: Bools

    @property
    def ended(self) -> Bools:
        """Where a flag ends the episode: bool [P + 1]."""
        return self.terminated | self.truncated

    @property
    def gaps(self) -> Bools:
        """Where t + 1 does not go on from t although no flag ends the episode: bool [P]."""
        return ~self.joined & ~self.ended[:-1]


@dataclass(frozen=True)
class _Last:
    """The newest transition of a lane, and the last pair."""

    obs: Words
    next_obs: Words
    rest: Words
    pairs: Pairs


class Pairing:
    """Makes the pairs, chunk after chunk."""

    def __init__(self) -> None:
        self._last: dict[int, _Last] = {}

    def interrupt(self, lane: int) -> None:
        """The next transition of this lane does not follow the last one that was seen."""
        self._last.pop(lane, None)

    def see(self, rows: Rows) -> Pairs:
        """The pairs of a chunk of at least one transition."""
        last = self._last.get(rows.lane)
        if last is not None and last.obs.shape[1] != rows.obs.shape[1]:
            last = None
        obs, following, rest = rows.obs, rows.next_obs, rows.rest
        at_seam = _pair_of(last, rows) if last is not None else _NO_PAIRS
        inside = (
            same(following[:-1], obs[1:]),
            same(obs[:-1], obs[1:]) & same(following[:-1], following[1:]) & same(rest[:-1], rest[1:]),
            same(obs[:-1], obs[1:]),
        )
        old = last.pairs if last is not None else None
        pair_arrays = [
            np.concatenate([before, seam, new])
            for before, seam, new in zip(_of_pairs(old), at_seam, inside, strict=True)
        ]
        row_arrays = [
            np.concatenate([before, new])
            for before, new in zip(
                _of_rows(old),
                (rows.terminated, rows.truncated, ~same(obs, following), rows.reward == 0),
                strict=True,
            )
        ]
        fresh = len(old.joined) if old is not None else 0
        start = old.start if old is not None else rows.start
        pairs = Pairs(rows.lane, start, fresh, *pair_arrays, *row_arrays)
        self._last[rows.lane] = _Last(obs[-1:], following[-1:], rest[-1:], _tail(pairs))
        return pairs


_EMPTY = np.empty(0, np.bool_)
_NO_PAIRS = (_EMPTY,) * 3


def _pair_of(last: _Last, rows: Rows) -> tuple[Bools, ...]:
    """The pair of the lane's last transition and the first of the chunk."""
    held = same(last.obs, rows.obs[:1])
    repeated = held & same(last.next_obs, rows.next_obs[:1]) & same(last.rest, rows.rest[:1])
    return same(last.next_obs, rows.obs[:1]), repeated, held


def _of_pairs(pairs: Pairs | None) -> tuple[Bools, ...]:
    return _NO_PAIRS if pairs is None else (pairs.joined, pairs.repeated, pairs.held)


def _of_rows(pairs: Pairs | None) -> tuple[Bools, ...]:
    return (_EMPTY,) * 4 if pairs is None else (pairs.terminated, pairs.truncated, pairs.moving, pairs.zero)


def _tail(pairs: Pairs) -> Pairs:
    """The last pair (none of a single transition)."""
    count = min(len(pairs.joined), 1)
    first = len(pairs.joined) - count
    pair_arrays = [array[first:].copy() for array in _of_pairs(pairs)]
    row_arrays = [array[first:].copy() for array in _of_rows(pairs)]
    return Pairs(pairs.lane, pairs.start + first, 0, *pair_arrays, *row_arrays)

"""Does each transition go on where the one before it ended?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from relive.audit.pairs import Pairs
from relive.audit.report import Check, Count, Finding, share
from relive.audit.rows import Bools, Rows, same

ENOUGH = 10
"""Fewer cases than this make no rule."""

NEARLY_ALL = 0.95
RARE = 0.01
MOST_LANES = 64
"""Environments that are looked for where a lane seems to hold several in turn."""


class Continuity:
    """obs of t + 1 is next_obs of t, byte for byte, unless a flag ended the episode."""

    rule = "continuity"

    def __init__(self) -> None:
        self._going = 0  # pairs that no flag parts
        self._gaps = Count()
        self._still = Count()  # gaps at which next_obs is obs, which yet goes on to change
        self._changing = 0  # pairs that no flag parts and over which obs changes
        self._twice = Count()  # gaps at which a transition is stored a second time
        self._adjacent = 0
        self._late = Count()  # gaps whose flag is on the transition after
        self._early = Count()  # gaps whose flag is on the transition before
        self._ends = 0
        self._turns: dict[int, int] = {}  # lane -> environments that it holds in turn
        self._looked_at: set[int] = set()

    def see(self, rows: Rows, pairs: Pairs) -> None:
        """Looks at a chunk."""
        new = slice(pairs.fresh, None)
        start = pairs.start + pairs.fresh
        gaps, ended, moving = pairs.gaps, pairs.ended, pairs.moving
        going, changing = ~ended[:-1][new], ~ended[:-1][new] & ~pairs.held[new]
        self._going += int(np.count_nonzero(going))
        self._changing += int(np.count_nonzero(changing))
        self._ends += int(np.count_nonzero(ended[:-1][new]))
        self._gaps.add(gaps[new], pairs.lane, start)
        self._still.add(changing & ~moving[:-1][new], pairs.lane, start)
        self._twice.add(going & pairs.repeated[new] & moving[:-1][new], pairs.lane, start)
        self._adjacent += int(np.count_nonzero(pairs.repeated[new]))
        wrong = ended[:-1] & pairs.joined  # a flag that parts nothing
        self._late.add(gaps[:-1] & wrong[1:], pairs.lane, pairs.start)  # neighbours of which the second is new
        self._early.add(wrong[:-1] & gaps[1:], pairs.lane, pairs.start)
        if rows.lane not in self._looked_at and len(rows) > 1:
            self._looked_at.add(rows.lane)
            turns = _turns(rows, gaps)
            if turns > 1:
                self._turns[rows.lane] = turns

    @property
    def adjacent(self) -> int:
        """Transitions that equal the one before them, for whatever reason."""
        return self._adjacent

    @property
    def explains_ends(self) -> bool:
        """True where next_obs or the flags are wrong everywhere: then nothing can be said about ends."""
        return self._is_overwritten or self._shift is not None

    @property
    def _shift(self) -> tuple[Count, str] | None:
        for count, word in ((self._late, "after"), (self._early, "before")):
            most = max(self._gaps.count, self._ends)
            if count.count >= ENOUGH and count.count >= NEARLY_ALL * most:
                return count, word
        return None

    def are_stored_twice(self, elsewhere: float) -> bool:
        """True where it is certain that transitions were stored a second time just after the first.

        Not where the order is any order, or where transitions repeat by chance.

        Args:
            elsewhere: share of all transitions that repeat another than the one before them.
        """
        count, others = self._twice.count, self._gaps.count - self._twice.count
        if others == 0 and count >= ENOUGH:
            return True
        return count > 0 and others <= 0.1 * (self._going - count) and elsewhere < RARE

    @property
    def _is_overwritten(self) -> bool:
        return self._still.count >= ENOUGH and self._still.count >= NEARLY_ALL * self._changing

    def findings(self, elsewhere: float) -> Iterator[Finding]:
        """The causes that are certain; the gaps that they leave unexplained. `elsewhere`: see `are_stored_twice`."""
        gaps = self._gaps.count
        if self._is_overwritten:
            words = (
                f"next_obs is obs itself at {share(self._still.count, self._changing)} transitions over which obs "
                "changes: the environment overwrote its array, or the wrong variable was stored. Copy observations "
                "before the next step."
            )
            yield Finding(self.rule, "error", self._still.count, self._still.first, words)
            return
        if self._shift is not None:
            count, word = self._shift
            words = (
                f"the flags are one transition off: at {share(count.count, gaps)} gaps the flag is on the transition "
                f"{word} the one that ended the episode. Targets bootstrap across episodes."
            )
            yield Finding(self.rule, "error", count.count, count.first, words)
            return
        if self.are_stored_twice(elsewhere):
            words = (
                f"{self._twice.count:,} transitions repeat the one before them byte for byte, though that one leads to "
                "another observation: they were stored twice."
            )
            yield Finding(self.rule, "error", self._twice.count, self._twice.first, words)
            gaps -= self._twice.count
        if gaps > 0:
            words = (
                f"{share(gaps, self._going)} transitions are followed by another obs than their next_obs, and no flag "
                f"ends the episode there{self._interleaved()}. Legal: it ends like a truncation; n-step windows and "
                "sequences stop there."
            )
            yield Finding(self.rule, "warning", gaps, self._gaps.first, words)

    def _interleaved(self) -> str:
        if not self._turns:
            return ""
        lane, count = next(iter(self._turns.items()))
        return f"; lane {lane} holds {count} environments in turn, each of which should have a lane of its own"

    def check(self) -> Check:
        """What was seen."""
        return Check(self.rule, f"{self._going:,} transitions go on where the one before them ended")


def _turns(rows: Rows, gaps: Bools) -> int:
    """How many environments the lane holds in turn: next_obs of t is obs of t + k. 1 where this does not show."""
    count = min(len(rows), 4096)
    obs, following = rows.obs[:count], rows.next_obs[:count]
    going = ~rows.ended[:count]
    if np.count_nonzero(gaps) < 0.5 * len(gaps):
        return 1
    for k in range(2, min(MOST_LANES, count - ENOUGH) + 1):
        unflagged = np.flatnonzero(going[: count - k])
        few = unflagged[:ENOUGH]
        if len(few) < ENOUGH or np.count_nonzero(same(following[few], obs[few + k])) < ENOUGH - 2:
            continue
        moving = unflagged[~same(following[unflagged], obs[unflagged])]
        if len(moving) >= ENOUGH and same(following[moving], obs[moving + k]).mean() >= NEARLY_ALL:
            return k
    return 1

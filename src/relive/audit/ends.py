"""What follows the end of an episode: is next_obs there the final observation, and the next transition a real one?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive.audit.continuity import ENOUGH, NEARLY_ALL
from relive.audit.pairs import Pairs
from relive.audit.report import Check, Count, Finding, share
from relive.audit.rows import Bools, Rows
from relive.schema import Schema, flatten, leaves

JUMP = 3.0
"""A change of the observation this many times the usual one is no step of the environment."""

FEW = 3
"""So many ends that go on are worth a warning."""

SAMPLE = 16, 256
"""Transitions of each sort that are measured in a chunk: of large observations, of small ones."""

SAMPLE_ELEMENTS = 1 << 18


class Ends:
    """An episode's last next_obs is not the next episode's first obs, and a reset is not stored as a transition.

    Where it is, byte for byte, three things are possible: the final observation was lost, the reset was stored
    (Gymnasium's NEXT_STEP), or the environment truly goes on after an end. They differ in where the observation jumps.
    """

    rule = "ends"

    def __init__(self, schema: Schema) -> None:
        self._ends = {"terminated": 0, "truncated": 0}  # that lead to another observation and are followed
        self._joined = {"terminated": Count(), "truncated": Count()}
        self._resets = Count()  # joined ends that are followed by a transition of reward 0 without a flag
        self._others = self._zeros = 0  # transitions that follow no end, those of reward 0
        self._usual, self._last, self._first = _Changes(schema), _Changes(schema), _Changes(schema)
        self._start, self._landing = _One(), _One()
        size = sum(math.prod(field.shape) for _, field in leaves(schema.obs, "obs"))
        self._sample = int(np.clip(SAMPLE_ELEMENTS // max(1, size), *SAMPLE))

    def see(self, rows: Rows, pairs: Pairs) -> None:
        """Looks at a chunk."""
        new = slice(pairs.fresh, None)
        start = pairs.start + pairs.fresh
        ended = pairs.ended
        starts = np.concatenate([[pairs.start == 0], (ended[:-1] | pairs.gaps)[:-1]])  # of each pair's t
        bandit = starts[: len(pairs.joined)] & pairs.terminated[:-1]  # one step: its next_obs means nothing
        ends = ended[:-1] & pairs.moving[:-1] & ~bandit
        joined = ends & pairs.joined
        for kind, of_kind in (("terminated", pairs.terminated[:-1]), ("truncated", ~pairs.terminated[:-1])):
            self._ends[kind] += int(np.count_nonzero((ends & of_kind)[new]))
            self._joined[kind].add((joined & of_kind)[new], pairs.lane, start)
        self._resets.add((joined & pairs.zero[1:] & ~ended[1:])[new], pairs.lane, start + 1)
        others = ~ended[:-1][new]
        self._others += int(np.count_nonzero(others))
        self._zeros += int(np.count_nonzero(others & pairs.zero[1:][new]))
        inside = len(rows) - 1
        self._measure(rows, joined[len(joined) - inside :], ended[len(ended) - inside - 1 :])

    def _measure(self, rows: Rows, joined: Bools, ended: Bools) -> None:
        """How far observations move, at joined ends, just after them, and elsewhere. joined: [T - 1], ended: [T]."""
        last = np.flatnonzero(joined)[: self._sample]
        after = np.zeros(len(rows), np.bool_)
        after[1:] = ended[:-1]
        usual = np.flatnonzero(~ended & ~after)
        self._usual.see(rows, usual[:: -(-len(usual) // self._sample) or 1])
        self._last.see(rows, last)
        self._first.see(rows, last + 1)
        self._start.see(rows.obs[last + 1])
        self._landing.see(rows.next_obs[last + 1])

    def findings(self) -> Iterator[Finding]:
        """At most one."""
        total = sum(self._ends.values())
        if self._resets.count >= max(ENOUGH, NEARLY_ALL * total) and self._are_resets:
            words = (
                f"resets are stored as transitions: {share(self._resets.count, total)} ends are followed by one of "
                "reward 0 that leads from the final observation to the next episode's first (Gymnasium's NEXT_STEP "
                "autoreset). Leave the step after an end out."
            )
            yield Finding(self.rule, "error", self._resets.count, self._resets.first, words)
            return
        kinds = [
            kind
            for kind, joined in self._joined.items()
            if joined.count and joined.count >= NEARLY_ALL * self._ends[kind]
        ]
        count = sum(self._joined[kind].count for kind in kinds)
        if count >= FEW:
            yield self._finding(kinds, count)

    def _finding(self, kinds: Sequence[str], count: int) -> Finding:
        """Nearly all ends of these kinds go on; `count` of them."""
        jump = self._last.times(self._usual)
        truncated = self._joined["truncated"].count if "truncated" in kinds else 0
        first = min((place for kind in kinds if (place := self._joined[kind].first)), key=lambda place: place.index)
        these = f"{share(count, sum(self._ends[kind] for kind in kinds))} {' and '.join(kinds)} transitions"
        if count >= ENOUGH and jump >= JUMP and not self._start.is_one:
            use = f"Targets bootstrap from {truncated:,} of them" if truncated else "Targets ignore it, models do not"
            words = (
                f"the final observations are lost: next_obs of {these} is the next episode's first obs, {jump:.3g} "
                f"times as far from obs as usual. {use}. Store the true final observation (Gymnasium's SAME_STEP gives "
                "it in info['final_obs'])."
            )
            return Finding(self.rule, "error", count, first, words)
        if self._start.is_one and jump >= JUMP:
            words = (
                f"next_obs of {these} is the one observation with which all episodes begin, {jump:.3g} times as far "
                "from obs as usual. Right only where an episode truly ends in the state in which they begin; else the "
                "final observations are lost (Gymnasium's SAME_STEP gives them in info['final_obs'])."
            )
            return Finding(self.rule, "warning", count, first, words)
        words = (
            f"next_obs of {these} is the next transition's obs. Right only where the environment goes on after an end "
            "(a life lost); else the final observation was lost, or the reset was stored as a transition."
        )
        return Finding(self.rule, "warning", count, first, words)

    @property
    def _are_resets(self) -> bool:
        before, after = self._last.times(self._usual), self._first.times(self._usual)
        if self._usual.are_known:
            return after >= JUMP and after > before
        lands = self._landing.is_one and not self._start.is_one  # from anywhere in the one and only start
        return lands or self._zeros < 0.01 * self._others

    def check(self) -> Check:
        """What was seen."""
        seen = sum(self._ends.values())
        if not seen:
            return Check(
                self.rule, "none to look at: no end that has a final observation is followed by another episode"
            )
        return Check(self.rule, f"{seen:,} ends of episodes that are followed by another")


class _Changes:
    """How far each element of the observation moves on average. Numbers whose difference means something only."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._chosen = [
            field.itemdtype.kind == "f" or (field.itemdtype == np.uint8 and len(field.shape) > 1)
            for _, field in leaves(schema.obs, "obs")
        ]
        self._sums: list[Any] = [0.0] * len(self._chosen)
        self._count = 0

    def see(self, rows: Rows, chosen: NDArray[np.intp]) -> None:
        """Adds these transitions."""
        if not len(chosen):
            return
        self._count += len(chosen)
        obs = flatten(self._schema.obs, rows.block.obs, "obs")
        following = flatten(self._schema.obs, rows.block.next_obs, "next_obs")
        for number, is_chosen in enumerate(self._chosen):
            if is_chosen:
                with np.errstate(all="ignore"):
                    moved = following[number][chosen].astype(np.float64) - obs[number][chosen]
                moved[~np.isfinite(moved)] = 0.0
                self._sums[number] = self._sums[number] + np.abs(moved).sum(axis=0)

    @property
    def are_known(self) -> bool:
        """True where there is an element that moves."""
        return self._count > 0 and bool((self._means() > 0).any())

    def times(self, usual: _Changes) -> float:
        """How many times as far as `usual`: the median over all elements that move; 0 where nothing is known."""
        if not self._count or not usual.are_known:
            return 0.0
        here, there = self._means(), usual._means()
        moves = (there > 0) & np.isfinite(there) & np.isfinite(here)
        return float(np.median(here[moves] / there[moves])) if moves.any() else 0.0

    def _means(self) -> NDArray[np.float64]:
        """The mean of each element, all fields in a row."""
        return np.concatenate([np.ravel(total) for total in self._sums]) / self._count


class _One:
    """Whether all of many observations are the same, byte for byte."""

    def __init__(self) -> None:
        self._seen = 0
        self._first: NDArray[np.uint64] | None = None
        self._same = True

    def see(self, rows: NDArray[np.uint64]) -> None:
        """Adds observations: uint64 [N, W]."""
        if len(rows):
            self._seen += len(rows)
            self._first = rows[0].copy() if self._first is None else self._first
            self._same = self._same and bool((rows == self._first).all())

    @property
    def is_one(self) -> bool:
        """True where enough were seen and all were the same."""
        return self._same and self._seen >= ENOUGH

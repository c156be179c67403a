"""So many samples an insert: whoever is ahead is held, by counters that lie with the buffer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from relive.buffer import ReplayBuffer
from relive.checks import integer, number
from relive.errors import ConfigError, RateLimitTimeout

_SAMPLED, _INSERT_NS, _SAMPLE_NS, _INSERT_WAITS, _SAMPLE_WAITS = range(1, 6)  # places on the buffer's board

_MOST = 2**40  # transitions of one call

_FIRST_NAP, _LONGEST_NAP = 50e-6, 2e-3  # seconds; from one to the other by halves

Stop = Callable[[], bool]


@dataclass(frozen=True)
class RateLimiter:
    """How many samples are drawn for each insert, within a tolerance.

        balance = inserted * samples_per_insert - sampled
        samples_per_insert * min_size - tolerance  <=  balance  <=  samples_per_insert * min_size + tolerance

    An insert that would take the balance above waits, unless there are no more than `min_size` transitions with it; a
    draw that would take it below waits, and so does every draw before there are `min_size` transitions. Both count
    transitions: a batch of B is B samples. So many are inserted before the first draw that from then on either side
    may be ahead by the tolerance.

    Attributes:
        samples_per_insert: above 0; the replay ratio times the batch size.
        min_size: transitions before the first draw, at least 1.
        tolerance: at least max(1, samples_per_insert). Both sides could wait for each other for ever where one call
            asks for more than it allows: see `check`.

    Raises:
        ConfigError: a value out of range.

    Reference: Cassirer et al. 2021, "Reverb: a framework for experience replay" (arXiv:2102.04736), section 3.4; its
        `SampleToInsertRatio` is this rule.
    """

    samples_per_insert: float
    min_size: int
    tolerance: float

    def __post_init__(self) -> None:
        ratio = number("RateLimiter", "samples_per_insert", self.samples_per_insert, 0, _MOST)
        if ratio == 0:
            raise ConfigError("RateLimiter: expected samples_per_insert above 0, got 0. Leave the limiter away.")
        object.__setattr__(self, "samples_per_insert", ratio)
        object.__setattr__(self, "min_size", integer("RateLimiter", "min_size", self.min_size, 1, 2**62))
        tolerance = number("RateLimiter", "tolerance", self.tolerance, 0, math.inf)
        least = max(1.0, ratio)
        if tolerance < least:
            raise ConfigError(
                f"RateLimiter: expected tolerance of at least max(1, samples_per_insert) = {least:g}, got "
                f"{tolerance:g}. With less, inserts and draws would wait for each other for ever."
            )
        object.__setattr__(self, "tolerance", tolerance)

    def may_insert(self, inserted: int, sampled: int, n: int = 1) -> bool:
        """Whether n more transitions may be inserted now. Exact, whatever the counts: no rounding holds both sides."""
        if inserted + n <= self.min_size:
            return True
        ratio, one, tolerance = self._exact
        return (inserted + n - self.min_size) * ratio - sampled * one <= tolerance

    def may_sample(self, inserted: int, sampled: int, n: int = 1) -> bool:
        """Whether n more transitions may be drawn now. Exact."""
        if inserted < self.min_size:
            return False
        ratio, one, tolerance = self._exact
        return (inserted - self.min_size) * ratio - (sampled + n) * one >= -tolerance

    @cached_property
    def _exact(self) -> tuple[int, int, int]:
        """samples_per_insert, 1 and tolerance, times the smallest power of two that makes them integers."""
        (ratio, per), (tolerance, of) = self.samples_per_insert.as_integer_ratio(), self.tolerance.as_integer_ratio()
        one = max(per, of)
        return ratio * (one // per), one, tolerance * (one // of)

    def check(self, *, block: int, batch: int) -> None:
        """Refuse calls so large that both sides could wait for each other for ever.

        Args:
            block: most transitions of one `Gate.insert`.
            batch: most of one `Gate.sample`.

        Raises:
            ConfigError: the tolerance is too small for them; says what is enough. Or no positive integers.
        """
        block = integer("check", "block", block, 1, _MOST)
        inserts = block * Fraction(self.samples_per_insert)
        enough = max(inserts, (inserts + integer("check", "batch", batch, 1, _MOST)) / 2)
        if self.tolerance < enough:
            raise ConfigError(
                f"RateLimiter: expected tolerance of at least {_at_least(enough)} for blocks of {block} and "
                f"batches of {batch}, got {self.tolerance!r}. With less, inserts and draws would wait for each "
                "other for ever."
            )

    def gate(self, buffer: ReplayBuffer) -> Gate:
        """Where inserters and samplers of this buffer wait."""
        return Gate(self, buffer)


def _at_least(value: Fraction) -> str:
    """Short where that is exact, else a float that is no less."""
    if Fraction(short := f"{float(value):g}") == value:
        return short
    near = float(value)
    return repr(near if near >= value else math.nextafter(near, math.inf))


@dataclass(frozen=True)
class GateStats:
    """What a gate has counted, over all processes that share the buffer."""

    inserted: int
    """Transitions pushed to the buffer."""
    sampled: int
    """Transitions let through to be drawn."""
    insert_waits: int
    """Calls of `Gate.insert` that waited."""
    sample_waits: int
    """Calls of `Gate.sample` that waited."""
    insert_seconds: float
    """Time they waited, summed over the processes."""
    sample_seconds: float
    """The same for samples."""


class Gate:
    """Lets inserts and draws through as a `RateLimiter` says.

    The counters lie with the buffer: with a buffer in shared memory every process that is attached to it may make a
    gate of its own with the same limiter, and all are one. What was inserted is what the buffer holds, so that a
    process killed between its permission and its push holds nobody. What was drawn is counted when it is permitted.

    Inserters that are let through at the same moment do not see each other's push: with k of them the balance may
    exceed the upper bound by up to k - 1 blocks. The lower bound is exact.
    """

    def __init__(self, limiter: RateLimiter, buffer: ReplayBuffer) -> None:
        if buffer.schema is None:
            raise ConfigError("gate: expected a buffer with a schema, got one without. Give it one, or push first.")
        self.limiter = limiter
        self._buffer = buffer
        self._core, self._board = buffer._engine.core, buffer._engine.board

    def insert(self, n: int = 1, *, timeout: float | None = None, stop: Stop | None = None) -> bool:
        """Wait until n transitions may be pushed. Push them then.

        Args:
            n: how many, at least 1.
            timeout: in seconds; None waits as long as it takes.
            stop: asked every two milliseconds or so; True ends the wait.

        Returns:
            bool: False if `stop` ended it; then do not push.

        Raises:
            RateLimitTimeout: the draws did not come.
            ConfigError: n or timeout cannot be.

        Cost: two reads of counters where there is nothing to wait for.
        """
        n, timeout = _checked("insert", n, timeout)
        places = _INSERT_WAITS, _INSERT_NS
        return self._wait(lambda: self._insert_admitted(n), "insert", n, timeout, stop, places)

    def sample(self, n: int, *, timeout: float | None = None, stop: Stop | None = None) -> bool:
        """Wait until n transitions may be drawn, and count them as drawn. Draw them then.

        Args:
            n: batch size, at least 1.
            timeout: in seconds; None waits as long as it takes.
            stop: asked every two milliseconds or so; True ends the wait.

        Returns:
            bool: False if `stop` ended it; then nothing was counted: do not draw.

        Raises:
            RateLimitTimeout: the inserts did not come.
            ConfigError: n or timeout cannot be.

        Cost: two reads of counters and one change where there is nothing to wait for.
        """
        n, timeout = _checked("sample", n, timeout)
        places = _SAMPLE_WAITS, _SAMPLE_NS
        return self._wait(lambda: self._sample_admitted(n), "sample", n, timeout, stop, places)

    def go_on_from(self, sampled: int) -> None:
        """Count from here: so many were drawn, in all, of a buffer that was loaded.

        Raises:
            ConfigError: no integer in [0, 2**62].
        """
        sampled = integer("go_on_from", "sampled", sampled, 0, 2**62)
        was = int(self._board[_SAMPLED])
        while (now := self._core.add(_SAMPLED, sampled - was, was)) != was:
            was = now

    def stats(self) -> GateStats:
        """The counters, as they are now."""
        board = self._board
        return GateStats(
            inserted=self._buffer.num_pushed,
            sampled=int(board[_SAMPLED]),
            insert_waits=int(board[_INSERT_WAITS]),
            sample_waits=int(board[_SAMPLE_WAITS]),
            insert_seconds=int(board[_INSERT_NS]) / 1e9,
            sample_seconds=int(board[_SAMPLE_NS]) / 1e9,
        )

    def _insert_admitted(self, n: int) -> bool:
        return self.limiter.may_insert(self._buffer.num_pushed, int(self._board[_SAMPLED]), n)

    def _sample_admitted(self, n: int) -> bool:
        while True:
            inserted, sampled = self._buffer.num_pushed, int(self._board[_SAMPLED])
            if not self.limiter.may_sample(inserted, sampled, n):
                return False
            if self._core.add(_SAMPLED, n, sampled) == sampled:  # or another one was let through meanwhile
                return True

    def _wait(
        self, admitted: Stop, what: str, n: int, timeout: float | None, stop: Stop | None, places: tuple[int, int]
    ) -> bool:
        if admitted():
            return True
        began, nap = time.monotonic_ns(), _FIRST_NAP
        try:
            while not admitted():
                if stop is not None and stop():
                    return False
                waited = (time.monotonic_ns() - began) / 1e9
                if timeout is not None and waited >= timeout:
                    raise RateLimitTimeout(self._why(what, n, timeout))
                time.sleep(nap if timeout is None else min(nap, timeout - waited))
                nap = min(1.5 * nap, _LONGEST_NAP)
            return True
        finally:
            waits, nanoseconds = places
            self._core.add(waits, 1)
            self._core.add(nanoseconds, time.monotonic_ns() - began)

    def _why(self, what: str, n: int, timeout: float) -> str:
        now, limiter = self.stats(), self.limiter
        so_far = f"{now.inserted:,} inserted, {now.sampled:,} sampled"
        if what == "insert":
            missing = "draws"
        elif now.inserted < limiter.min_size:
            missing = f"inserts up to min_size={limiter.min_size:,}"
        else:
            missing = "inserts"
        return f"{what}({n}): expected {missing} within {timeout:g} s, got none that suffice ({so_far}; {limiter})."


def _checked(call: str, n: int, timeout: float | None) -> tuple[int, float | None]:
    return (
        integer(call, "n", n, 1, _MOST),
        None if timeout is None else number(call, "timeout", timeout, 0, math.inf),
    )

"""Interleaved timing: on a shared machine only ratios taken side by side mean anything."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Mapping

Run = Callable[[int], None]  # does the operation so many times

_SLICE_SECONDS = 0.4e-3  # short beside the scheduler's time slices, long beside the clock's own cost
_MIN_CALLS = 4  # so that a contestant works in the caches it leaves behind, not in its rival's


def calls(operation: Callable[[], object]) -> Run:
    """A run that makes this call again and again."""

    def run(times: int) -> None:
        for _ in itertools.repeat(None, times):
            operation()

    return run


def interleave(contestants: Mapping[str, Run], seconds: float) -> dict[str, list[float]]:
    """Gives every contestant a short slice in turn, round after round.

    Args:
        contestants: by name.
        seconds: how long in all; at least five rounds are made.

    Returns:
        For each contestant, microseconds an operation of every round. CPU time of this thread: on an idle machine that
        is wall time, on a busy one it leaves out the time of others.
    """
    counts = {}
    for name, run in contestants.items():
        run(2)
        took = min(_timed(run, 1) for _ in range(3))
        counts[name] = max(_MIN_CALLS, int(_SLICE_SECONDS / max(took, 1e-8)))
    rounds: dict[str, list[float]] = {name: [] for name in contestants}
    end = time.monotonic() + seconds
    names = list(contestants)
    shuffled = random.Random(0)
    while time.monotonic() < end or len(rounds[names[0]]) < 5:
        shuffled.shuffle(names)  # nobody always follows the same rival
        for name in names:
            rounds[name].append(_timed(contestants[name], counts[name]) / counts[name] * 1e6)
    return rounds


def median(values: list[float]) -> float:
    """Microseconds of the middle round."""
    return statistics.median(values)


def ratio(values: list[float], base: list[float]) -> float:
    """The middle of the ratios of the rounds: what slows a whole round down cancels out.

    Rounds in which the clock did not move (some machines count CPU time in ticks) tell nothing and are left out.
    """
    return statistics.median(value / other for value, other in zip(values, base, strict=True) if other > 0)


def _timed(run: Run, times: int) -> float:
    start = time.thread_time_ns()
    run(times)
    return (time.thread_time_ns() - start) * 1e-9

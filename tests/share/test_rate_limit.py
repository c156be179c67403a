"""The rate limiter: its rule, that nobody waits for ever, and what the gates of several processes count."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import threading
import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import relive
from relive.errors import ConfigError, RateLimitTimeout, ReplayError
from relive.share import Gate, RateLimiter

RATIOS = st.sampled_from([0.25, 0.5, 1.0, 3.0, 8.0, 32.0])


def balance(limiter: RateLimiter, inserted: int, sampled: int) -> float:
    """How far the inserts are ahead, 0 in the middle of what is allowed."""
    return (inserted - limiter.min_size) * limiter.samples_per_insert - sampled


def test_it_decides_as_reverb_does() -> None:
    """Bug: an inequality that is strict, an offset left out, a sample counted as an insert."""
    limiter = RateLimiter(samples_per_insert=2.0, min_size=10, tolerance=4.0)
    assert all(limiter.may_insert(inserted, 0) for inserted in range(12))  # the 12th: (12 - 10) * 2 = 4
    assert not limiter.may_insert(12, 0)
    assert limiter.may_insert(12, 2)
    assert limiter.may_insert(7, 0, n=5)
    assert not limiter.may_insert(7, 0, n=6)
    assert limiter.may_insert(0, 0, n=10)
    assert not any(limiter.may_sample(inserted, 0) for inserted in range(10))
    assert limiter.may_sample(10, 0, n=4)
    assert not limiter.may_sample(10, 0, n=5)
    assert not limiter.may_sample(10, 4)
    assert limiter.may_sample(11, 4, n=2)


@given(
    ratio=RATIOS,
    min_size=st.integers(1, 40),
    block=st.integers(1, 20),
    batch=st.integers(1, 64),
    extra=st.floats(0, 3),
    order=st.lists(st.booleans(), max_size=200),
)
@settings(max_examples=150, deadline=None)
def test_bounds_hold_and_somebody_may_always_go_on(
    ratio: float, min_size: int, block: int, batch: int, extra: float, order: list[bool]
) -> None:
    """Bug: a bound that is passed; both sides held for ever although the tolerance was found enough."""
    enough = max(1.0, ratio * block, (ratio * block + batch) / 2)
    limiter = RateLimiter(ratio, min_size, enough * (1 + extra))
    limiter.check(block=block, batch=batch)
    inserted = sampled = 0
    for insert in order:
        if insert and limiter.may_insert(inserted, sampled, block):
            inserted += block
            assert inserted <= min_size or balance(limiter, inserted, sampled) <= limiter.tolerance
        elif not insert and limiter.may_sample(inserted, sampled, batch):
            sampled += batch
            assert inserted >= min_size
            assert balance(limiter, inserted, sampled) >= -limiter.tolerance
        assert limiter.may_insert(inserted, sampled, block) or limiter.may_sample(inserted, sampled, batch)


def test_a_tolerance_that_is_not_enough_is_refused_and_would_indeed_hold_both() -> None:
    """The broken twin of the above: without the check both sides are held."""
    limiter = RateLimiter(1.0, 10, 8.0)
    with pytest.raises(ConfigError, match="at least 9 for blocks of 2 and batches of 16"):
        limiter.check(block=2, batch=16)
    inserted = sampled = 0
    while limiter.may_insert(inserted, sampled, 2):
        inserted += 2
    assert not limiter.may_sample(inserted - 1, sampled, 16)
    assert not limiter.may_insert(inserted - 1, sampled, 2)
    limiter.check(block=2, batch=14)


@given(
    ratio=st.floats(0.01, 40),
    min_size=st.integers(1, 300),
    block=st.integers(1, 64),
    batch=st.integers(1, 256),
    order=st.lists(st.booleans(), max_size=300),
    started=st.integers(0, 2**40),
)
@example(ratio=0.1, min_size=170, block=34, batch=7, order=[True, False] * 150, started=0)
@settings(max_examples=150, deadline=None)
def test_the_tolerance_that_the_message_names_is_enough_to_the_last_bit(
    ratio: float, min_size: int, block: int, batch: int, order: list[bool], started: int
) -> None:
    """Bug: both sides held by an error of rounding; a message that names less than what is accepted."""
    smallest = RateLimiter(ratio, min_size, max(1.0, ratio))
    try:
        smallest.check(block=block, batch=batch)
    except ConfigError as error:
        words = re.search(r"tolerance of at least ([^ ]+) for", str(error))
        assert words
        smallest = RateLimiter(ratio, min_size, float(words[1]))
        smallest.check(block=block, batch=batch)
    for limiter in (smallest, RateLimiter(ratio, min_size, max(1.0, ratio * block, (ratio * block + batch) / 2))):
        with contextlib.suppress(ConfigError):  # where rounding made it less than enough
            limiter.check(block=block, batch=batch)
            inserted = min_size + started
            sampled = int(Fraction(ratio) * started)
            for insert in order:
                insert_may = limiter.may_insert(inserted, sampled, block)
                sample_may = limiter.may_sample(inserted, sampled, batch)
                assert insert_may or sample_may
                if insert_may and (insert or not sample_may):
                    inserted += block
                else:
                    sampled += batch


@given(
    ratio=RATIOS,
    block=st.integers(1, 8),
    order=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=200),
)
@settings(max_examples=100, deadline=None)
def test_inserters_let_through_at_once_exceed_the_bound_by_a_block_each_at_most(
    ratio: float, block: int, order: list[tuple[int, bool]]
) -> None:
    """Bug: the promise of `Gate`, where permission and push are two moments."""
    limiter = RateLimiter(ratio, 5, max(1.0, 2 * ratio * block))
    permitted = [False] * 3
    inserted = sampled = 0
    for who, push in order:
        if who == 3:
            sampled += limiter.may_sample(inserted, sampled)
        elif permitted[who] and push:
            inserted, permitted[who] = inserted + block, False
        elif not permitted[who]:
            permitted[who] = limiter.may_insert(inserted, sampled, block)
        over = 2 * block * ratio
        assert inserted <= 5 + 2 * block or balance(limiter, inserted, sampled) <= limiter.tolerance + over


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0.0, 1, 5.0), "samples_per_insert above 0"),
        ((-1.0, 1, 5.0), "samples_per_insert to be"),
        ((1.0, 0, 5.0), "min_size"),
        ((1.0, 1.5, 5.0), "min_size"),
        ((8.0, 1, 7.9), "tolerance of at least max"),
        ((0.1, 1, 0.5), "tolerance of at least max"),
        ((1.0, 1, float("nan")), "tolerance"),
        ((10**400, 1, 5.0), "samples_per_insert to be"),
        ((1.0, 1, 10**400), "tolerance to be"),
    ],
)
def test_what_makes_no_limiter_is_refused(arguments: tuple[float, int, float], words: str) -> None:
    """Bug: a limiter that holds everybody, found out an hour later."""
    with pytest.raises(ConfigError, match=words):
        RateLimiter(*arguments)


def small(storage: relive.Memory | relive.SharedMemory | None = None, lanes: int = 1) -> relive.ReplayBuffer:
    schema = relive.Schema(relive.Field("float32"), relive.Field("int64"))
    return relive.ReplayBuffer(1000, schema, lanes=lanes, storage=storage, seed=0)


def push(buffer: relive.ReplayBuffer, count: int, lane: int = 0) -> None:
    obs = np.arange(count + 1, dtype=np.float32)
    flags = np.zeros(count, np.bool_)
    buffer.extend(obs[:-1], np.zeros(count, np.int64), obs[1:], flags, obs[1:], lane=lane)


def test_a_gate_lets_through_waits_times_out_and_stops() -> None:
    """Bug: a wait that nobody can end, a refusal that counts as a draw, a wait that is not counted."""
    buffer = small()
    gate = RateLimiter(1.0, 4, 2.0).gate(buffer)
    with pytest.raises(RateLimitTimeout, match=r"sample\(1\): expected inserts up to min_size=4 within 0.01 s"):
        gate.sample(1, timeout=0.01)
    for _ in range(6):
        assert gate.insert(timeout=1.0)
        push(buffer, 1)
    with pytest.raises(RateLimitTimeout, match=r"insert\(1\): expected draws within 0.01 s") as caught:
        gate.insert(timeout=0.01)
    assert isinstance(caught.value, ReplayError) and isinstance(caught.value, TimeoutError)
    answers = iter([False, False, True])
    assert not gate.insert(stop=lambda: next(answers))
    assert gate.sample(2)
    assert gate.insert(timeout=0.0)
    assert gate.sample(2)
    with pytest.raises(RateLimitTimeout, match=r"sample\(1\): expected inserts within 0 s"):
        gate.sample(1, timeout=0.0)
    stats = gate.stats()
    assert (stats.inserted, stats.sampled, stats.insert_waits, stats.sample_waits) == (6, 4, 2, 2)
    assert stats.insert_seconds >= 0.01 and stats.sample_seconds >= 0.01


def test_counting_goes_on_where_a_loaded_buffer_left_off() -> None:
    """Bug: a resumed run whose actors wait until all that was ever drawn has been drawn again."""
    buffer = small()
    push(buffer, 100)
    gate = RateLimiter(2.0, 10, 8.0).gate(buffer)
    with pytest.raises(RateLimitTimeout):
        gate.insert(timeout=0.0)
    gate.go_on_from(180)
    assert gate.insert(timeout=0.0)
    assert gate.stats().sampled == 180


@pytest.mark.parametrize("call", ["insert", "sample"])
@pytest.mark.parametrize("n", [0, -5, 1.5, float("nan"), 10**30, 2**62, "a", None, True])
def test_counts_that_cannot_be_are_refused(call: str, n: Any) -> None:
    """Bug: a draw counted backwards, a counter that overflows, a wait for ever, a bare TypeError."""
    buffer = small()
    push(buffer, 20)
    gate = RateLimiter(1.0, 4, 1e30).gate(buffer)
    with pytest.raises(ConfigError, match=f"{call}: expected n to be an integer"):
        getattr(gate, call)(n, timeout=0.0)
    assert gate.stats().sampled == 0


@pytest.mark.parametrize("call", ["insert", "sample"])
@pytest.mark.parametrize("timeout", ["x", float("nan"), -1.0, float("inf")])
def test_timeouts_that_cannot_be_are_refused(call: str, timeout: Any) -> None:
    """Bug: nan, which no time is beyond: a wait for ever."""
    gate = RateLimiter(1.0, 4, 1.0).gate(small())
    with pytest.raises(ConfigError, match=f"{call}: expected timeout to be a number"):
        getattr(gate, call)(1, timeout=timeout)


@pytest.mark.parametrize("sampled", [-10, 2**63, 1.5, "a"])
def test_counting_goes_on_from_a_count_alone(sampled: Any) -> None:
    """Bug: a negative count, which lets nobody insert; an OverflowError."""
    gate = RateLimiter(1.0, 4, 1.0).gate(small())
    gate.go_on_from(3)
    with pytest.raises(ConfigError, match="go_on_from: expected sampled to be an integer"):
        gate.go_on_from(sampled)
    assert gate.stats().sampled == 3


def test_a_gate_needs_a_schema() -> None:
    """Bug: an AttributeError."""
    with pytest.raises(ConfigError, match="gate: expected a buffer with a schema"):
        RateLimiter(1.0, 1, 1.0).gate(relive.ReplayBuffer(10))


@pytest.mark.parametrize("ratio", [0.5, 4.0])
def test_threads_on_both_sides_end_with_the_ratio(ratio: float) -> None:
    """Bug: a lost update of a counter; two sides that wait for each other."""
    buffer = small(lanes=2)
    limiter = RateLimiter(ratio, 20, max(1.0, 4 * ratio) + 8)
    gates = [limiter.gate(buffer) for _ in range(4)]
    failed: list[BaseException] = []

    def insert(gate: Gate, lane: int) -> None:
        for _ in range(200):
            gate.insert(2, timeout=30.0)
            push(buffer, 2, lane)

    def sample(gate: Gate) -> None:
        for _ in range(int((800 - 20) * ratio) // 16):
            gate.sample(8, timeout=30.0)
            time.sleep(1e-5)

    def run(function: object, *arguments: object) -> None:
        try:
            function(*arguments)  # type: ignore[operator]
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(insert, gates[lane], lane)) for lane in range(2)]
    threads += [threading.Thread(target=run, args=(sample, gates[2 + who])) for who in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed
    stats = gates[0].stats()
    assert stats.inserted == 800
    assert stats.sampled == int((800 - 20) * ratio) // 16 * 16
    assert balance(limiter, stats.inserted, stats.sampled) >= -limiter.tolerance


def _insert_for_ever(handle: relive.shared.Handle, limiter: RateLimiter) -> None:
    buffer = relive.attach(handle)
    gate = limiter.gate(buffer)
    while gate.insert(3):
        push(buffer, 3)


def test_the_gates_of_processes_are_one_and_a_dead_process_holds_nobody() -> None:
    """Bug: counters of each process's own; a permission that dies with its process and is never given back."""
    buffer = small(relive.SharedMemory())
    limiter = RateLimiter(1.0, 30, 10.0)
    gate = limiter.gate(buffer)
    for round_ in range(3):
        process = multiprocessing.get_context("fork").Process(target=_insert_for_ever, args=(buffer.handle(), limiter))
        process.start()
        assert gate.sample(10, timeout=60.0)  # which needs its inserts
        before = gate.stats().insert_waits
        until = time.monotonic() + 60
        while limiter.may_insert(buffer.num_pushed, gate.stats().sampled, 3) and time.monotonic() < until:
            time.sleep(0.001)
        assert buffer.num_pushed <= 30 + 10 * round_ + 20
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        assert gate.stats().insert_waits >= before
    assert gate.sample(5, timeout=60.0)
    assert gate.insert(3, timeout=60.0)

"""Signals that arrive while a process waits for a shared buffer's lock: nobody is locked out by what they raise."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import relive
from model import marked
from relive import saving
from relive._core import release_all
from relive.share import RateLimiter


def full() -> relive.ReplayBuffer:
    buffer = marked.make(2, 50, storage=relive.SharedMemory(), seed=1)
    for step in range(40):
        buffer.push(**marked.transition(step, 0), lane=0)
    return buffer


def interrupted(buffer: relive.ReplayBuffer, calls: Callable[[relive.ReplayBuffer], Any]) -> int:
    """The code by which a child ends that is interrupted while it waits for the lock, and then pushes; 0 if it can."""
    ready, say = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(30)
            mine = relive.attach(buffer.handle())
            os.write(say, b"x")
            time.sleep(0.2)  # the lock is the parent's by now
            with contextlib.suppress(KeyboardInterrupt):  # which a hook of another library may swallow in a fork
                calls(mine)
            mine.push(**marked.transition(0, 1), lane=1)
            code = 0
        finally:
            os._exit(code)
    held: list[Any] = []
    try:
        os.read(ready, 1)
        buffer._engine.core.hold(held)
        time.sleep(0.6)
        os.kill(child, signal.SIGINT)
        time.sleep(0.2)
    finally:
        release_all(held)
        os.close(ready)
        os.close(say)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_an_interrupted_wait_for_the_lock_of_a_fork_leaves_it_free() -> None:
    """Bug: a lock that is taken and not known to be, once a handler has raised: every process waits for ever."""

    def fork(buffer: relive.ReplayBuffer) -> None:
        if os.fork() == 0:
            os._exit(0)

    buffer = full()
    assert interrupted(buffer, fork) == 0
    assert len(buffer) == 41 and buffer._engine.board[6] == 0  # let go, not found after a death


def test_an_interrupted_wait_for_the_lock_of_a_save_leaves_it_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: the same, where a save that is overtaken again and again keeps others from pushing."""

    class Overtaken:
        """The native reader, always overtaken; it asks for no lock."""

        def __init__(self, native: Any) -> None:
            self.keeps = native.keeps

        def cut(self, *_: Any) -> None:
            return None

    def save(buffer: relive.ReplayBuffer) -> None:
        saver = buffer._engine.saver
        monkeypatch.setattr(saver, "_native", Overtaken(saver._native))
        monkeypatch.setattr(saver, "_copy_new", lambda *_: [])
        buffer.save(tmp_path / "snapshot")

    buffer = full()
    monkeypatch.setattr(saving, "ROUNDS", 0)
    assert interrupted(buffer, save) == 0
    assert len(buffer) == 41 and buffer._engine.board[6] == 0


def test_gates_take_no_lock() -> None:
    """Bug: a gate that waits for whoever holds the lock; a handler that then calls the buffer would wait for itself."""
    buffer = full()
    gate = RateLimiter(1.0, 10, 8.0).gate(buffer)
    held: list[Any] = []
    buffer._engine.core.hold(held)
    try:
        assert gate.sample(2)
        gate.go_on_from(30)
        assert gate.insert()
        assert gate.stats().sampled == 30
    finally:
        release_all(held)


def test_a_handler_that_calls_the_buffer_under_its_own_threads_lock_is_told() -> None:
    """Bug: a process that waits for itself for ever, and all others for it."""
    buffer = full()
    held: list[Any] = []
    buffer._engine.core.hold(held)
    try:
        with pytest.raises(RuntimeError, match="called by what interrupted the same thread"):
            len(buffer)
        with pytest.raises(RuntimeError, match="called by what interrupted the same thread"):
            buffer.sample(4)
    finally:
        release_all(held)
    assert held == [] and len(buffer) == 40
    child = os.fork()  # whose thread looks like the one that held it for the fork
    if child == 0:
        os._exit(len(buffer))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 40


def test_numbers_of_the_board_change_in_one_step_and_only_from_what_was_expected() -> None:
    """Bug: two processes that are both let through for what is there once."""
    engine = full()._engine
    assert engine.core.add(9, 5) == 0 and engine.core.add(9, -2) == 5
    assert engine.core.add(9, 7, 4) == 3 and engine.board[9] == 3
    assert engine.core.add(9, 7, 3) == 3 and engine.board[9] == 10
    with pytest.raises(ValueError, match="no such place"):
        engine.core.add(64, 1)

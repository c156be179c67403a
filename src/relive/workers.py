"""Threads that do work beside the one that wants it done, whoever interrupts that."""

from __future__ import annotations

import _thread
import contextlib
import sys
from collections.abc import Callable, Generator
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class Work(Generic[T]):
    """Something to be done by a thread, and what came of it."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._outcome: T | None = None
        self._error: BaseException | None = None
        self._over = False
        self._begins, self._ends = _thread.allocate_lock(), _thread.allocate_lock()
        self._ends.acquire()

    def do(self) -> None:
        """Does it, unless somebody has begun to."""
        if not self._begins.acquire(blocking=False):
            return
        try:
            self._outcome = self._call()
        except BaseException as error:
            self._error = error
        del self._call
        self._over = True
        self._ends.release()

    @property
    def over(self) -> bool:
        """Whether it was done."""
        return self._over

    def wait(self) -> None:
        """Until it is over. An interrupt leaves nothing behind that others would wait for."""
        if not self._over:
            self._ends.acquire()
            self._ends.release()

    def result(self) -> T:
        """What came of it, once it is over; raises what it raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        return cast(T, self._outcome)


class Workers:
    """Threads that take work over; where there can be no more of them, the caller's own does it.

    Not a `ThreadPoolExecutor`: an interrupt in the midst of its `submit` leaves a lock of it taken for ever.
    """

    def __init__(self, number: int) -> None:
        self._number, self._started = number, 0
        self._queue: SimpleQueue[Work[Any] | None] = SimpleQueue()
        self._given: list[Work[Any]] = []

    def submit(self, call: Callable[..., T], *args: Any) -> Work[T]:
        """Does it some time, or at once; in any case once."""
        work = Work(lambda: call(*args))
        self._given = [*(given for given in self._given if not given.over), work]
        if self._started < self._number and not sys.is_finalizing():
            self._started += 1
            try:
                _thread.start_new_thread(_serve, (self._queue,))
            except RuntimeError:  # the system gives no more threads, and may later
                self._started -= 1
        if self._started and not sys.is_finalizing():
            self._queue.put(work)
        else:
            work.do()
        return work

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        """All of it is done then, whoever interrupts: what it works on is let go of next."""
        interrupt: BaseException | None = None
        while self._given:
            try:
                self._given[-1].do()  # where an interrupt kept it from the threads
                self._given[-1].wait()
                self._given.pop()
            except BaseException as reason:
                interrupt = reason
        for _ in range(self._started):
            self._queue.put(None)
        if interrupt is not None:
            raise interrupt


def _serve(queue: SimpleQueue[Work[Any] | None]) -> None:
    while (work := queue.get()) is not None:
        work.do()
        del work


def ahead(items: Generator[T]) -> Generator[T]:
    """The same items, each made by another thread while the one before it is used."""
    with contextlib.closing(items), Workers(1) as worker:
        end = object()
        coming: Work[Any] = worker.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = worker.submit(next, items, end)
            yield item

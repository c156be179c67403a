"""Batches one after another, drawn ahead in a thread where asked for."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np

from relive.batch import Batch
from relive.errors import ConfigError, ProtocolError
from relive.trees import map_fields

Beta: TypeAlias = "float | Callable[[], float] | None"
Drawn: TypeAlias = tuple[Batch, Callable[[], None] | None]  # a batch, and what its taker has to do first

MAX_AHEAD = 1024
_PATIENCE = 10.0  # seconds that the end of the process waits for a draw of the user's code that does not return


class Batches(Iterator[Batch]):
    """An endless iterator over batches; `close()`, leaving a `with` block or dropping it ends it.

    With `prefetch` a thread of its own draws up to that many batches ahead of the one taken last, in order: batch k is
    the same, byte for byte, as without it, as long as the contents are. A batch shows the contents of the moment it
    was drawn at, so what is pushed meanwhile is seen up to `prefetch` batches later. Batches that were drawn
    and never taken are gone: the generator has moved on past them.

    The thread starts with the first `next()`. An error of a draw comes out of the `next()` whose batch it would have
    been, after the batches drawn before it; the one after that tries again, so an iterator over a buffer that is still
    empty is of use once there is something in it. Any number of threads may call `next()`: each batch goes to one.

    Args:
        draw: called with (beta, device), returns the next batch.
        beta: passed to every draw, or a callable that is asked once a batch, in the thread that draws.
        prefetch: batches to draw ahead, at most 1,024; 0 draws in the thread that calls `next()`.
        output: of the batches, "numpy" or "torch".
        device: of the tensors. To a CUDA device they are copied from pinned memory on a stream of their own, beside the
            computation; the stream that is current where `next()` is called waits for them, the program does not.

    Raises:
        ConfigError: a beta, prefetch or device that cannot be.
    """

    def __init__(
        self,
        draw: Callable[[float | None, Any], Batch],
        beta: Beta = None,
        prefetch: int = 0,
        output: str = "numpy",
        device: Any = None,
    ) -> None:
        if not isinstance(prefetch, int | np.integer) or isinstance(prefetch, bool) or not 0 <= prefetch <= MAX_AHEAD:
            raise ConfigError(f"prefetch: expected an integer in [0, {MAX_AHEAD}], got {prefetch!r}.")
        number = isinstance(beta, int | float | np.floating) and not isinstance(beta, bool)
        if beta is not None and not callable(beta) and not number:
            raise ConfigError(f"beta: expected a number, a callable that returns one, or None, got {beta!r}.")
        self._draw = _drawer(draw, beta, output, device)
        self._prefetch = int(prefetch)
        self._process = os.getpid()
        self._turn = threading.RLock()  # of the threads that call next(); a signal handler may close in the midst of it
        self._closed = threading.Event()
        self._worker: _Worker | None = None

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            StopIteration: closed.
            ProtocolError: in the child of a fork, which has not the thread that draws ahead.
            ReplayError: whatever the draw raises; the iterator stays usable.
        """
        if self._closed.is_set():
            raise StopIteration
        if self._prefetch == 0:
            return _handed_over(self._draw())
        if os.getpid() != self._process:
            raise ProtocolError(
                "batches: expected the process that made this iterator, got the child of a fork, where no thread draws "
                "ahead. Call batches() in the child."
            )
        with self._turn:
            if self._closed.is_set():
                raise StopIteration
            worker = self._worker or self._start()
            if self._closed.is_set():  # since, by a thread that saw no worker
                worker.stop()
            # Room first: an interrupt (Ctrl-C) between the two lines costs a batch more ahead, not one that never
            # comes.
            worker.room.put(None)
            item = worker.drawn.get()
            if isinstance(item, BaseException):
                self._drop()  # its thread has ended; the next call starts another
                try:
                    raise item
                finally:
                    del item, worker  # the traceback refers to this frame
            if item is None or self._closed.is_set():
                worker.drawn.put(None)
                raise StopIteration
            return _handed_over(item)

    def close(self) -> None:
        """Ends the iterator. No draw happens afterwards: one in progress is waited for. Closing again does nothing."""
        self._closed.set()
        worker = self._worker
        if worker is not None:
            worker.stop()
            if self._process != os.getpid() or worker.thread is threading.current_thread():
                return  # nothing to wait for
        with self._turn:
            if self._worker is not None:
                self._worker.thread.join()
                self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Batches(prefetch={self._prefetch}{', closed' if self._closed.is_set() else ''})"

    def _start(self) -> _Worker:
        worker = _Worker(self._draw, self._prefetch)
        self._forgotten = weakref.finalize(self, worker.stop)
        self._forgotten.atexit = False
        try:
            self._worker = worker  # before the thread: a draw may close the iterator
            worker.thread.start()
        except BaseException:  # no more threads, or an interrupt
            worker.stop()
            self._drop()
            raise
        _running.add(worker)
        return worker

    def _drop(self) -> None:
        self._forgotten.detach()
        self._worker = None


class _Worker:
    """The thread that draws ahead. Nothing here refers to the iterator, so dropping that ends this.

    Everything goes through queues that may be put to from a finalizer, at any point of any thread.
    """

    def __init__(self, draw: Callable[[], Drawn], ahead: int) -> None:
        self.room: SimpleQueue[None] = SimpleQueue()  # an item for each batch that may be drawn
        self.drawn: SimpleQueue[Drawn | BaseException | None] = SimpleQueue()  # None is the end
        self._draw = draw
        self._stopped = False
        for _ in range(ahead):
            self.room.put(None)
        self.thread = threading.Thread(target=self._run, name="relive-prefetch", daemon=True)

    def stop(self) -> None:
        """Lets the thread end, without waiting for it."""
        self._stopped = True
        self.room.put(None)

    def _run(self) -> None:
        while True:
            self.room.get()
            if self._stopped:
                break
            try:
                self.drawn.put(self._draw())  # held by no name, so that memory is recycled once the taker lets go
            except BaseException as error:
                self.drawn.put(error)
                break
        self.drawn.put(None)


_running: weakref.WeakSet[_Worker] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Native code must not run in a thread while the interpreter is taken down around it."""
    workers = list(_running)
    for worker in workers:
        worker.stop()
    for worker in workers:
        worker.thread.join(_PATIENCE)


def _drawer(draw: Callable[[float | None, Any], Batch], beta: Beta, output: str, device: Any) -> Callable[[], Drawn]:
    """One draw, to wherever the batches go."""
    copy = None
    if output == "torch" and device is not None:
        from relive.tensors import to_device_pinned

        copy = to_device_pinned(device)

    def drawn() -> Drawn:
        strength = beta() if callable(beta) else beta
        if copy is None:
            return draw(strength, device), None
        fields = vars(draw(strength, None))
        tensors: list[Any] = []

        def collect(leaf: Any) -> Any:
            tensors.append(leaf)
            return leaf

        map_fields(collect, fields)
        copies, wait = copy(tensors)
        moved = iter(copies)
        return Batch(map_fields(lambda leaf: next(moved), fields)), wait

    return drawn


def _handed_over(drawn: Drawn) -> Batch:
    batch, wait = drawn
    if wait is not None:
        wait()
    return batch

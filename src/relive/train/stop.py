"""Ending a run from outside: Ctrl-C and SIGTERM ask, the loop obeys between two steps."""

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h


class StopRequest:
    """While entered, SIGINT and SIGTERM set `signal` instead of ending the process in the middle of an update.

    A second SIGINT raises KeyboardInterrupt at once, for whoever cannot wait. Outside the main thread Python allows no
    signal handlers, and nothing is caught.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The signal that asked, None as long as nobody has."""
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether somebody has asked."""
        return self.signal is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)


@contextmanager
def unwinding() -> Iterator[None]:
    """While entered, SIGTERM and SIGHUP end the process as Ctrl-C does, so that it takes away what it began.

    The exit code is 128 + number. One that the caller ignores or handles stays as it is, and outside the main thread
    nothing is caught. Of several the first counts: `timeout` sends two.
    """
    ours = threading.current_thread() is threading.main_thread()
    caught = [
        number for number in (signal.SIGTERM, signal.SIGHUP) if ours and signal.getsignal(number) is signal.SIG_DFL
    ]

    def end(number: int, frame: FrameType | None) -> None:
        for other in caught:
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in caught:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)


def die_with(parent: int) -> None:
    """Have the system kill this process when its parent is gone, however that ended.

    The system means the thread of the parent that began this process.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before
        os._exit(1)

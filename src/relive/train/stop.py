"""Ending a run from outside: Ctrl-C and SIGTERM ask, the loop obeys between two steps."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


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

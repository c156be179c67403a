"""Ctrl-C while the command `relive` is still being imported: exit code 130, and no traceback. Imports no relive."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn


def is_command() -> bool:
    """Whether this process is the command, as `relive` or `python -m relive`, and not one that imports the library."""
    words = sys.orig_argv[1:3]
    return words == ["-m", "relive"] or bool(words and os.path.basename(words[0]) == "relive")  # noqa: PTH119 - quick


def hush() -> None:
    """In the command, end at once at a Ctrl-C: there is nothing yet to be put in order. Elsewhere nothing changes."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual and is_command() and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _end)


def unhush() -> None:
    """From here on a Ctrl-C is a KeyboardInterrupt again, if `hush` has changed that."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(128 + number)

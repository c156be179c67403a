"""Programs that tests run in processes of their own: `python segment_programs.py ACTION NAME`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from relive.segment import Segment


def main(action: str, name: str) -> None:
    """Makes a segment and ends in one of the ways in which a process does."""
    segment = Segment.create(name, "test", {"a": 1}, 10_000)
    segment.payload[:3] = b"abc"
    print("made", flush=True)
    if action == "crash":
        raise RuntimeError("crash")
    if action == "quit":
        os._exit(3)
    if action == "wait":
        time.sleep(60)
    if action == "spawn":  # a child that outlives this process and knows nothing of the segment
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=subprocess.DEVNULL)
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "fork":
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Who is attached can ask whether the owner lives."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

import relive

OWNER = """
import pickle, sys, time
import relive

schema = relive.Schema(relive.Field("float32", (4,)), relive.Field("int64"))
buffer = relive.ReplayBuffer(10, schema, storage=relive.SharedMemory(), seed=0)
pickle.dump(buffer.handle(), sys.stdout.buffer)
sys.stdout.close()
{end}
"""


@pytest.mark.parametrize("end", ["time.sleep(600)", "sys.stdin.read(); del buffer; time.sleep(600)"])
def test_an_owner_that_ends_or_lets_go_is_noticed(end: str) -> None:
    program = [sys.executable, "-c", OWNER.format(end=end)]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as owner:
        assert owner.stdout is not None and owner.stdin is not None
        buffer = relive.attach(pickle.load(owner.stdout))
        assert buffer.owner_alive
        if "del" in end:
            owner.stdin.close()
            while buffer.owner_alive:  # hangs if it is never noticed
                pass
            assert owner.poll() is None
        owner.kill()
        owner.wait()
        assert not buffer.owner_alive


def test_a_buffer_of_ones_own_has_its_owner() -> None:
    schema = relive.Schema(relive.Field("float32", (4,)), relive.Field("int64"))
    for storage in (relive.Memory(), relive.SharedMemory()):
        assert relive.ReplayBuffer(10, schema, storage=storage).owner_alive
    assert relive.ReplayBuffer(10).owner_alive

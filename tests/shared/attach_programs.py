"""What children do in tests of attaching; importable by those that are spawned."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

import relive
from model import marked
from model.compare import fingerprint
from model.options import Own, reached


def own_axes(card: tuple[bool, bool]) -> dict[str, Any]:
    """What a handle cannot carry: the user's own sampler, and reward functions."""
    axes: dict[str, Any] = {"sampler": Own()} if card[0] else {}
    if card[1]:
        axes["view"] = relive.Hindsight("future", k=4, reward_fn=reached)
    return axes


def look(handle: Any, card: tuple[bool, bool]) -> dict[str, Any]:
    """All that can be read of a buffer, and the next batch of it."""
    buffer = relive.attach(handle, **own_axes(card))
    found: dict[str, Any] = {"prints": fingerprint(buffer), "anchors": buffer.anchors.tolist(), "repr": repr(buffer)}
    batch = buffer.sample(5, beta=0.5)
    found["batch"] = [np.asarray(batch.ids).tolist(), np.asarray(batch.weight).tolist()]
    reader = buffer.reader(view=relive.Transitions(2, 0.5), sampler=relive.Uniform())
    found["seed"] = reader.sample(5).ids.tolist()
    if callable(getattr(buffer.sampler, "draw", None)) or not hasattr(buffer.sampler, "alpha"):
        found["updated"] = -1
    else:
        found["updated"] = buffer.update_priorities(batch.ids, np.arange(1, 6) * 0.5)
    return found


def serve(pipe: Connection) -> None:
    """Answers questions until there are no more."""
    while (question := pipe.recv()) is not None:
        try:
            pipe.send(look(*question))
        except BaseException as error:
            pipe.send(repr(error))


def write(handle: Any, lane: int, steps: int) -> None:
    """An actor: so many marked transitions for one lane, by one or in blocks."""
    buffer = relive.attach(handle)
    rng = np.random.default_rng(lane)
    step = 0
    while step < steps:
        count = min(int(rng.integers(1, 12)), steps - step)
        if count == 1:
            assert buffer.push(**marked.transition(step, lane), lane=lane) == step * buffer.lanes + lane
        else:
            block = marked.transition(np.arange(step, step + count), np.full(count, lane))
            assert buffer.extend(**block, lane=lane)[-1] == (step + count - 1) * buffer.lanes + lane
        step += count


def fork_often(handles: list[Any], times: int) -> None:
    """Has all these buffers and forks."""
    buffers = [relive.attach(handle) for handle in handles]
    for _ in range(times):
        child = os.fork()
        if child == 0:
            os._exit(len(buffers[0]))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def outlive(pipe: Connection) -> None:
    """Makes a buffer and a child that has it, and ends without a word."""
    buffer = marked.make(2, 50, storage=relive.SharedMemory(), seed=1)
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=stay, args=(buffer.handle(), pipe))
    child.start()
    pipe.close()
    os.kill(os.getpid(), signal.SIGKILL)


def stay(handle: Any, pipe: Connection) -> None:
    """Goes on with a buffer whose owner has died."""
    buffer = relive.attach(handle)
    while buffer._engine.segment is not None and buffer._engine.segment.owner_alive:
        time.sleep(0.01)
    for step in range(100):
        buffer.push(**marked.transition(step, 0), lane=0)
    batch = buffer.sample(16)
    marked.check(batch, 2, 3)
    pipe.send((handle.name, len(buffer), buffer.num_pushed))

"""An actor in a process of its own: attached to the learner's buffer, ended when the learner is gone."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import torch

import relive
from relive.errors import ReplayError
from relive.share import Gate, RateLimiter, Weights, WeightsHandle
from relive.shared import Handle
from relive.train.actor import Actor, Block, Role
from relive.train.stop import die_with

_CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Places:
    """Where an actor finds what it shares with the learner; small, picklable."""

    buffer: Handle
    weights: WeightsHandle
    limiter: RateLimiter


@dataclass(frozen=True)
class Failure:
    """The last words of an actor."""

    words: str
    fatal: bool
    """Whether the next one would fail alike: settings or data that are refused."""


@dataclass(frozen=True)
class Life:
    """One process of an actor.

    Attributes:
        process: not to be joined before `connection` was read to its end.
        connection: brings a `Report` a round, and a `Failure` in the end where there is one. The actor ends when it is
            closed, by us or by our death.
    """

    process: SpawnProcess
    connection: Connection


def begin(role: Role, places: Places) -> Life:
    """Start an actor's process.

    It never sees a Ctrl-C, which a terminal sends to every process: whoever started it ends it. A blocked signal is
    inherited, so that none comes in between; one that arrives here meanwhile is seen right after.
    """
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_main, args=(role, places, theirs), name=f"relive-actor-{role.actor}")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()  # or its end would never be seen here
    return Life(process, ours)


def end(lives: dict[int, Life], patience: float) -> None:
    """Have actors end, kill those that have not after so many seconds, and wait for all.

    Who cannot wait for that (a second Ctrl-C) has them killed at once. Whatever interrupts, this may be called again
    until `lives` is empty.
    """
    try:
        for life in lives.values():
            life.connection.close()
        until = time.monotonic() + patience
        for life in lives.values():
            life.process.join(max(0.0, until - time.monotonic()))
    finally:
        for life in lives.values():
            life.process.kill()  # of one that has ended this does nothing
        for life in lives.values():
            life.process.join()
        lives.clear()  # and not closed one by one: what was interrupted in between could not be begun again


class _LearnerGone(Exception):
    """The learner has closed the connection, or is gone."""


def _main(role: Role, places: Places, connection: Connection) -> None:
    """What the process does: play until the learner closes the connection, or is gone."""
    _die_with_the_learner()
    torch.set_num_threads(1)
    try:
        _play(role, places, connection)
    except _LearnerGone:
        return  # nobody is there any more to be told anything
    except ReplayError as error:
        if not connection.poll():  # else what was refused is that the learner took the memory with it
            _tell(connection, Failure(str(error), fatal=True))
            sys.exit(1)
    except Exception as error:
        _tell(connection, Failure("".join(traceback.format_exception_only(error)).strip(), fatal=False))
        if role.life == 0:
            raise  # once with all of its traceback
        sys.exit(1)


def _play(role: Role, places: Places, connection: Connection) -> None:
    buffer = relive.attach(places.buffer)
    weights = Weights.attach(places.weights)
    gate = places.limiter.gate(buffer)
    with closing(Actor(role, weights, lambda blocks: _store(blocks, buffer, gate, connection))) as actor:
        while not connection.poll():
            report = actor.advance()
            try:
                connection.send(report)
            except (BrokenPipeError, ConnectionResetError):  # of this pipe: an environment's own are its failures
                raise _LearnerGone from None


def _store(blocks: Sequence[Block], buffer: relive.ReplayBuffer, gate: Gate, connection: Connection) -> float:
    """Push blocks once the limiter lets them through; returns the seconds until then."""
    began = time.perf_counter()
    if not gate.insert(sum(map(len, blocks)), stop=connection.poll):
        raise _LearnerGone
    waited = time.perf_counter() - began
    for block in blocks:
        buffer.extend(
            block.obs,
            block.action,
            block.reward,
            block.terminated,
            block.next_obs,
            truncated=block.truncated,
            lane=block.lane,
            priority=block.priority,
        )
    return waited


def _tell(connection: Connection, failure: Failure) -> None:
    with suppress(OSError):
        connection.send(failure)


def _die_with_the_learner() -> None:
    """An environment that hangs never looks whether the learner is gone; its thread lasts as long as the training."""
    learner = multiprocessing.parent_process()
    if learner is not None and learner.pid is not None:
        die_with(learner.pid)

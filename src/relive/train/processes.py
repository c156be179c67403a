"""Actors in processes of this host, and the supervisor of them that the learner is."""

from __future__ import annotations

import os
import signal
import time
import weakref
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

import relive
from relive.dqn import DQN, TrainConfig
from relive.errors import ConfigError
from relive.share import Gate, RateLimiter, Weights
from relive.train.acting import make_buffer
from relive.train.actor import Report, stride
from relive.train.actor_process import Failure, Life, Places, begin, end
from relive.train.roster import Roster
from relive.train.state import LoopState

PATIENCE = 2.0
"""Seconds that actors have to end by themselves."""

_LISTEN_SECONDS = 0.005
"""Wall time between two looks at what actors report, as long as there are steps to learn from."""

_WAIT_SECONDS = 0.05
"""The same where there are none: who wants to stop is heard as soon."""


def limiter_for(config: TrainConfig, block: int | None = None) -> RateLimiter:
    """How far actors may be ahead of the learner; they hand over `block` transitions at a time, by default a round's.

    The learner makes exactly the updates that `replay_ratio` owes for the steps it has seen, as in any run. The limiter
    holds the actors to the same ratio. Its tolerance is what they may be ahead by: the steps of one round of updates,
    without which the learner would not begin one; two blocks of every actor, so that the next is played while
    the learner still learns from this one; and, as in Acme (Hoffman et al. 2020, arXiv:2006.00979), at least a
    tenth of `learning_starts`, so that they go on while an evaluation takes a moment. They never depend on speeds.
    """
    batch = config.agent.batch_size
    ratio = config.replay_ratio * batch
    block = stride(config) * config.num_envs if block is None else block
    ahead = max(config.update_every + 2 * config.actors * block, config.learning_starts // 10)
    return RateLimiter(ratio, max(1, config.learning_starts), max(1.0, ratio * ahead) + batch)


class Processes:
    """Steps from `config.actors` processes, each with environments of its own, into one buffer in shared memory.

    A transition counts as a step of the run when it lies in the buffer. Who dies is replaced, by an actor of another
    seed; the episodes it was in the midst of end as truncated, and no transition is lost that it had handed over.

    Args:
        config: of the run; actors >= 1.
        schema: of one transition.
        agent: whose weights are published.
        buffer: that of a checkpoint, in shared memory; None for a new one.
        state: how far the run is.
        run_dir: where actors.csv is written, from the first `advance` on.
        stop: whether somebody asked to stop: then nobody is replaced.
        saved: what `state_dict` gave at the checkpoint.
    """

    def __init__(
        self,
        config: TrainConfig,
        schema: relive.Schema,
        agent: DQN,
        buffer: relive.ReplayBuffer | None,
        state: LoopState,
        run_dir: Path,
        stop: Callable[[], bool],
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        self._config, self._agent, self._stop = config, agent, stop
        self._roster = Roster(config, run_dir, state.step, saved)
        self._buffer = make_buffer(config, schema, relive.SharedMemory()) if buffer is None else buffer
        limiter = limiter_for(config)
        self._gate: Gate = limiter.gate(self._buffer)
        self._weights = Weights.create(agent.num_weights)
        self._places = Places(self._buffer.handle(), self._weights.handle(), limiter)
        self._lives: dict[int, Life] = {}  # actor -> its process
        # Also for who never closes: the interpreter would wait for ever for actors that play on.
        self._learner = os.getpid()
        weakref.finalize(self, _end_all, self._lives, self._learner)
        self._words: dict[int, str] = {}  # actor -> the last words of the one that is about to die
        self._pushed = self._buffer.num_pushed
        self._listened = 0.0
        # A loaded buffer: what was drawn from it is known from the updates; its open episodes will not go on.
        self._gate.go_on_from(state.updates * config.agent.batch_size)
        self._buffer.end_episodes()
        self._publish(state.updates)

    @property
    def buffer(self) -> relive.ReplayBuffer:
        """Where the steps go, in shared memory."""
        return self._buffer

    @property
    def restarts(self) -> int:
        """How often an actor was replaced."""
        return self._roster.restarts

    @property
    def shards(self) -> None:
        """The buffer is one."""

    def advance(self, state: LoopState) -> None:
        """Take in steps that lie in the buffer, at most one for every lane; wait a little where there are none."""
        if not self._roster.begun:
            self._roster.begin()
            for number in range(self._config.actors):
                self._begin(number)
        now = time.perf_counter()
        if now - self._listened >= _LISTEN_SECONDS:
            self._listen(0.0, state)
            self._listened = now
        if self._pushed <= state.step:
            self._pushed = self._buffer.num_pushed
        if self._pushed <= state.step:
            self._listen(_WAIT_SECONDS, state)
            self._pushed = self._buffer.num_pushed
        state.step = min(self._pushed, state.step + self._config.lanes, self._config.steps)

    def admit(self, batch_size: int) -> None:
        """Count the draw; it never waits long, as no update is made that the steps do not owe."""
        self._gate.sample(batch_size, stop=self._stop)

    def learned(self, updates: int) -> None:
        """Publish the weights after the first update and every `publish_every`."""
        if updates == 1 or updates % self._config.publish_every == 0:
            self._publish(updates)

    def epsilon(self, step: int) -> float:
        """The mean of the actors'."""
        return self._roster.epsilon(step)

    def notes(self) -> list[str]:
        """Who died and was replaced."""
        return self._roster.notes()

    def write_row(self, state: LoopState) -> None:
        """One row an actor."""
        self._listen(0.0, state)
        self._roster.write_row(state)

    def begin_episodes(self, state: LoopState) -> None:
        """Nothing ends: actors play on while the buffer is saved."""

    def state_dict(self) -> dict[str, Any]:
        """What actors did so far, and actors.csv."""
        return self._roster.state_dict()

    def close(self) -> None:
        """End all actors, and take the names of the shared memory away."""
        try:
            _end_all(self._lives, self._learner)  # not by the finalizer, which would count as done if interrupted
        finally:
            self._weights.close()
            segment = self._buffer._engine.segment
            if segment is not None:
                segment.close()
            self._roster.close()

    def _begin(self, number: int) -> None:
        self._lives[number] = begin(self._roster.role(number), self._places)

    def _publish(self, updates: int) -> None:
        self._weights.publish(self._agent.vector(), updates)

    def _listen(self, timeout: float, state: LoopState) -> None:
        """Take in what actors report; replace those that died."""
        ears: dict[Any, int] = {}
        for number, life in self._lives.items():
            ears[life.connection] = ears[life.process.sentinel] = number
        for number in dict.fromkeys(ears[ready] for ready in wait(list(ears), timeout)):
            life = self._lives[number]
            dead = not life.process.is_alive()  # asked first: then all that it said is there to be read
            self._hear(number, life.connection, state)
            if dead:
                self._replace(number)

    def _hear(self, number: int, connection: Connection, state: LoopState) -> None:
        try:
            while connection.poll():
                match connection.recv():
                    case Report() as report:
                        self._roster.report(number, report, state)
                    case Failure(words, fatal):
                        if fatal:
                            raise ConfigError(words)
                        self._words[number] = words
        except (EOFError, OSError):
            pass  # it has closed its end, perhaps in the midst of a word: the process ends, or has

    def _replace(self, number: int) -> None:
        """Put another actor in the place of one that died."""
        life = self._lives.pop(number)
        life.process.join()
        how = _how_it_ended(life.process.exitcode, self._words.pop(number, ""))
        life.process.close()
        life.connection.close()
        if self._stop():
            return
        self._roster.died(number, how)
        mask = np.zeros(self._config.lanes, np.bool_)
        first = self._roster.role(number).first_lane
        mask[first : first + self._config.num_envs] = True
        self._buffer.end_episodes(mask)
        self._begin(number)


def _end_all(lives: dict[int, Life], learner: int) -> None:
    if os.getpid() == learner:  # and not the child of a fork, at its end
        end(lives, PATIENCE)


def _how_it_ended(code: int | None, words: str) -> str:
    if words:
        return words
    if code is not None and code < 0:
        try:
            return f"by {signal.Signals(-code).name}"
        except ValueError:  # most real-time signals have no name
            return f"by signal {-code}"
    return f"exit code {code}"

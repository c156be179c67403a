"""A run on many hosts: actors and the shards of the buffer in Ray, one learner that drives them.

Paper: Horgan et al. 2018 (arXiv:1803.00933), distributed prioritized experience replay (Ape-X).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import relive
from relive.dqn import DQN, TrainConfig
from relive.errors import ConfigError, NotEnoughDataError, ReplayError, ShardError
from relive.reading import Output
from relive.share.ray import RayReplay
from relive.share.ray_remote import ray
from relive.train.acting import Shards, make_sampler
from relive.train.checkpoint import REPLAY
from relive.train.processes import limiter_for
from relive.train.ray_player import chunk
from relive.train.ray_players import CALLS, Death, Players
from relive.train.ray_session import connect, unseen
from relive.train.roster import Roster
from relive.train.rundir import CHECKPOINT
from relive.train.state import LoopState

TIMEOUT = 20.0
"""Seconds that anybody waits for a shard."""

_NEVER = 1e9  # seconds between snapshots that shards make by themselves: the run's checkpoints are theirs

_LISTEN_SECONDS = 0.005
"""Wall time between two looks at what actors report, as long as there are steps to learn from."""

_WAIT_SECONDS = 0.05
"""The same where there are none: who wants to stop is heard as soon."""


class RayActing:
    """Steps from `config.actors` Ray actors into `config.shards` shards.

    The learner has every actor play by calls, two under way at a time, and makes no new one while the rate limiter
    forbids it. A transition counts as a step of the run when an actor has reported that its shard has it.

    Args:
        config: of the run; actors >= 1, ray.
        schema: of one transition.
        agent: whose weights are published.
        state: how far the run is.
        run_dir: where actors.csv and the shards' snapshots are written, from the first `advance` on.
        stop: whether somebody asked to stop: then nobody is replaced.
        source: the buffer of a checkpoint; None for a new one.
        saved: what `state_dict` gave at the checkpoint.

    Raises:
        ConfigError: no Ray, or none at that address.
    """

    def __init__(
        self,
        config: TrainConfig,
        schema: relive.Schema,
        agent: DQN,
        state: LoopState,
        run_dir: Path,
        stop: Callable[[], bool],
        source: Path | None = None,
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        assert config.ray is not None
        self._config, self._schema, self._agent, self._state, self._stop = config, schema, agent, state, stop
        self._view = relive.Transitions(n=config.agent.n_step, gamma=config.agent.gamma, stack=config.stack)
        if config.ray == "local":  # all shards lie in the memory of this host
            relive.plan(schema, config.capacity, self._view, sampler=make_sampler(config))
        self._snapshots = run_dir / CHECKPOINT / REPLAY if config.checkpoint_every is not None else None
        self._source = source
        self._roster = Roster(config, run_dir, state.step, saved)
        self._chunk = chunk(config)
        self._limiter = limiter_for(config, self._chunk)
        self._players = Players()
        self._stored: int = saved["stored"] if saved else 0  # transitions that are steps, or will be
        self._shards = Shards(**saved["shards"]) if saved else Shards((0,) * config.shards, 0, 0)
        self._before = (0, 0)  # lost, restarts: of earlier sessions
        self._replay: RayReplay | None = None
        self._heard: list[str] = []
        self._ears = _Ears(self._heard)
        self._listened, self._turn, self._closed = 0.0, 0, False
        self._leave = connect(config.ray)

    @property
    def buffer(self) -> _Union:
        """The shards; they are there from the first `advance` on."""
        return _Union(self)

    @property
    def replay(self) -> RayReplay:
        """The same, with all of its verbs."""
        assert self._replay is not None  # since the first `advance`
        return self._replay

    @property
    def stopping(self) -> bool:
        """Whether somebody asked to stop."""
        return self._stop()

    @property
    def restarts(self) -> int:
        """How often an actor was replaced."""
        return self._roster.restarts

    @property
    def shards(self) -> Shards:
        """As they were at the last row, checkpoint or end."""
        return self._shards

    def advance(self, state: LoopState) -> None:
        """Take in steps that shards have, at most one for every lane; wait a little where there are none."""
        if not self._roster.begun:
            self._begin()
        self.listen()
        if self._stored <= state.step:
            self.listen(_WAIT_SECONDS)
        state.step = min(max(self._stored, state.step), state.step + self._config.lanes, self._config.steps)

    def admit(self, batch_size: int) -> None:
        """Never waits: no update is made that the steps do not owe. Actors are heard meanwhile."""
        self.listen()

    def learned(self, updates: int) -> None:
        """Publish the weights after the first update and every `publish_every`."""
        if updates == 1 or updates % self._config.publish_every == 0:
            self._players.publish(self._agent.vector(), updates)

    def epsilon(self, step: int) -> float:
        """The mean of the actors'."""
        return self._roster.epsilon(step)

    def notes(self) -> list[str]:
        """Who died and was replaced."""
        heard = list(self._heard)
        self._heard.clear()
        return [*self._roster.notes(), *heard]

    def write_row(self, state: LoopState) -> None:
        """One row an actor."""
        self.listen(0.0)
        self._ask_shards()
        self._roster.write_row(state)

    def begin_episodes(self, state: LoopState) -> None:
        """Nothing ends: actors play on while the buffer is saved."""

    def state_dict(self) -> dict[str, Any]:
        """What actors and shards did so far, and actors.csv."""
        self._ask_shards()
        return {**self._roster.state_dict(), "stored": self._stored, "shards": vars(self._shards)}

    def close(self) -> None:
        """End actors and shards, and the Ray, if it was started here."""
        if self._closed:
            return
        self._closed = True
        try:
            self._players.close()
            self._ask_shards()
        finally:
            try:
                if self._replay is not None:
                    self._replay.close()
            finally:
                self._ears.close()
                self._roster.close()
                self._leave()

    def listen(self, timeout: float | None = None) -> None:
        """Take in what actors report, replace those that died, have them play on.

        Args:
            timeout: seconds to wait if there is nothing; None: does not even look if it has a moment ago.
        """
        now = time.perf_counter()
        if timeout is None and now - self._listened < _LISTEN_SECONDS:
            return
        self._listened = now
        for number, answer in self._players.answers(timeout or 0.0):
            if isinstance(answer, Death):
                if not self._stop():
                    self._roster.died(number, answer.how)
                    self._players.begin(number, self._roster.role(number), self.replay.client())
            else:
                self._stored += answer.stored
                self._roster.report(number, answer.report, self._state)
        self._ask_actors()

    def _ask_actors(self) -> None:
        """New calls, as far as the rate limiter lets them; to each in turn, first to those that have none."""
        if self._stop():
            return
        actors, sampled = self._config.actors, self._state.updates * self._config.agent.batch_size
        for calls in range(CALLS):
            for number in range(self._turn, self._turn + actors):
                if self._players.under_way(number % actors) > calls:
                    continue
                coming = self._stored + self._players.under_way() * self._chunk
                if not self._limiter.may_insert(coming, sampled, self._chunk):
                    self._turn = number % actors
                    return
                self._players.ask(number % actors)

    def _begin(self) -> None:
        """Start shards and actors."""
        self._ears.open()
        if self._source is not None:
            saved = self._shards
            self._replay = RayReplay.load(
                self._source,
                snapshots=self._snapshots,
                snapshot_every=_NEVER,
                timeout=TIMEOUT,
            )
            # What snapshots tell of losses is told by the shards again.
            self._before = (saved.lost - self._replay.stats().lost, saved.restarts)
        else:
            self._replay = RayReplay(
                self._config.capacity,
                self._schema,
                shards=self._config.shards,
                sampler=make_sampler(self._config),
                view=self._view,
                seed=self._config.seed,
                snapshots=self._snapshots,
                snapshot_every=_NEVER,
                timeout=TIMEOUT,
            )
        if self._snapshots is not None:
            hosts = unseen(self._snapshots, [shard.host for shard in self._replay.stats().shards])
            if hosts:
                raise ConfigError(
                    f"checkpoint_every: expected a run directory that all hosts of shards see, got {self._snapshots}, "
                    f"which {', '.join(hosts)} do not. Give one on a file system that they share with --out, or make "
                    "no checkpoints."
                )
        self._roster.begin()
        for number in range(self._config.actors):
            self._players.begin(number, self._roster.role(number), self._replay.client())
        self._players.publish(self._agent.vector(), self._state.updates)

    def _ask_shards(self) -> None:
        """How the shards are; as before, where they do not say."""
        if self._replay is None or not ray.is_initialized():
            return
        try:
            stats = self._replay.stats()
        except (ReplayError, ray.exceptions.RayError):
            return
        lost, restarts = self._before
        transitions = tuple(shard.live for shard in stats.shards)
        self._shards = Shards(transitions, lost + stats.lost, restarts + stats.restarts)


class _Union:
    """The shards, as the loop sees them; see `relive.train.acting.Replay`."""

    def __init__(self, acting: RayActing) -> None:
        self._acting = acting

    def sample(self, n: int, *, beta: float | None = None, output: Output = "numpy", device: Any = None) -> Any:
        """Draw a minibatch; where all shards began anew, empty, as soon as there are transitions again."""
        until = time.monotonic() + 10 * TIMEOUT
        while True:
            try:
                return self._acting.replay.sample(n, beta=beta, output=output, device=device)
            except NotEnoughDataError:
                if time.monotonic() > until or self._acting.stopping:
                    raise
                self._acting.listen(_WAIT_SECONDS)

    def update_priorities(self, ids: Any, abs_td: Any) -> int:
        """Give transitions new priorities, with the next draw."""
        return self._acting.replay.update_priorities(ids, abs_td)

    def save(self, path: Path, *, note: Any = None) -> int:
        """Save every shard, then the note; waits a while for one that is away.

        Raises:
            ShardError: it did not come back.
        """
        until = time.monotonic() + TIMEOUT
        while True:
            try:
                return self._acting.replay.save(path, note=note)
            except ShardError:
                if time.monotonic() > until or self._acting.stopping:
                    raise
                self._acting.listen(_WAIT_SECONDS)


class _Ears(logging.Handler):
    """Hears what the replay says of its shards, in place of whoever else would have printed it."""

    def __init__(self, heard: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._heard = heard
        self._log = logging.getLogger("relive.share.ray")
        self._propagate = self._log.propagate

    def open(self) -> None:
        """Begin to listen."""
        self._log.addHandler(self)
        self._log.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """Take a message."""
        self._heard.append(record.getMessage())

    def close(self) -> None:
        """Stop listening."""
        self._log.removeHandler(self)
        self._log.propagate = self._propagate
        super().close()

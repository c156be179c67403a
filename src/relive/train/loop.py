"""The training loop: learn from a dataset, if there is one; act, store, learn; evaluate now and then; write it down."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import relive
from relive.dqn import DQN, TrainConfig
from relive.errors import ConfigError, SchemaError, ShardError
from relive.train.acting import Acting, Local, Shards, Source
from relive.train.checkpoint import Checkpoint, save_checkpoint
from relive.train.environments import Envs
from relive.train.evaluate import EVALUATION_SEED, Evaluation, evaluate, greedy
from relive.train.log import Row, RunLog
from relive.train.offline import Dataset
from relive.train.rundir import save_weights
from relive.train.schedules import beta_at, updates_owed
from relive.train.state import LoopState, LossMeter
from relive.train.stop import StopRequest
from relive.writers import Writer

ROWS = 200
"""Rows that a run writes to its metrics, besides one per evaluation."""

REPORT_SECONDS = 0.25
"""Wall time between two reports of progress."""

METER_EVERY = 8
"""Updates between two whose loss is read, besides the first of a row: reading all takes a twentieth of the time."""

RATE_REPORTS = 40
"""Reports over which the rate of progress is measured: about ten seconds."""


@dataclass(frozen=True)
class Progress:
    """What a spectator is told while the run goes on."""

    step: int
    """Updates from a dataset alone, then environment steps."""
    steps: int
    """The same of the whole run."""
    episodes: int
    return_mean: float
    """Mean return of the last (up to) 100 training episodes, NaN before the first has ended."""
    loss: float
    """Mean loss of the newest updates (every eighth is measured), NaN before the first."""
    steps_per_second: float
    """Over the last seconds, evaluations included: what the time left is reckoned with."""
    evaluation: Evaluation | None
    """The evaluation just made, once; else None."""
    notes: tuple[str, ...] = ()
    """What else happened since the last report, a line each."""


Report = Callable[[Progress], None]


class Trainer:
    """One run: an agent, a buffer, whoever acts, and the loop over them, a step at a time."""

    def __init__(
        self,
        config: TrainConfig,
        envs: Envs,
        run_dir: Path,
        stop: StopRequest,
        report: Report,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Begin, or go on from a checkpoint. Writes nothing."""
        self.config, self.run_dir = config, run_dir
        self._envs, self._stop, self._report = envs, stop, report
        _check_device(config.device)
        self.agent = DQN(
            envs.single_observation_space,
            envs.single_action_space,
            config.agent,
            seed=config.seed,
            device=config.device,
            stack=config.stack,
        )
        self.greedy = greedy(self.agent, envs.single_action_space)
        self._by_priority = config.sampler != "uniform"
        self.state = LoopState(np.zeros(0 if config.actors else envs.num_envs), LossMeter(config.device))
        if checkpoint is not None:
            self.agent.load_state_dict(checkpoint.agent)
            self.state.load_state_dict(checkpoint.loop)
        self._acting = self._begin_acting(envs, checkpoint)
        self.buffer = self._acting.buffer
        self._data: Dataset | None = None
        self._source: Source = self.buffer
        if config.offline is not None:
            assert isinstance(self.buffer, relive.ReplayBuffer)  # no actors then
            self._data = Dataset(config, self.buffer, None if checkpoint is None else checkpoint.data)
            self._source = self._data.beside
        self._reported = time.perf_counter()
        self._began = self._reported - self.state.seconds
        self._cpu_began = time.process_time() - self.state.cpu_seconds
        self._marks = deque([(self._reported, self.place)], maxlen=RATE_REPORTS)
        self._row_every = max(1, config.length // ROWS)
        self._notes: list[str] = []

    def _begin_acting(self, envs: Envs, checkpoint: Checkpoint | None) -> Acting:
        """Whoever brings the steps of this run."""
        config = self.config
        kept = None if checkpoint is None else checkpoint.buffer
        if not config.actors:
            return Local(config, envs, self.agent, kept, self.state)
        saved = None if checkpoint is None else checkpoint.acting
        schema = replace(relive.Schema.from_env(envs), lanes=config.lanes)
        if config.ray is not None:
            from relive.train.ray_acting import RayActing  # needs Ray

            return RayActing(config, schema, self.agent, self.state, self.run_dir, self._stop, kept, saved)
        from relive.train.processes import Processes

        return Processes(config, schema, self.agent, kept, self.state, self.run_dir, self._stop, saved)

    @property
    def done(self) -> bool:
        """Whether the run has all its steps, or an evaluation was good enough to stop, or somebody asked to."""
        return self.place >= self.config.length or self.stopped_early or self._stop()

    @property
    def place(self) -> int:
        """How far the run is, of `config.length`."""
        return min(self.state.updates, self.config.updates_before) + self.state.step

    @property
    def restarts(self) -> int:
        """How often an actor died and was replaced."""
        return self._acting.restarts

    @property
    def shards(self) -> Shards | None:
        """The parts of the buffer, where it has some."""
        return self._acting.shards

    @property
    def stopped_early(self) -> bool:
        """Whether an evaluation reached `stop_return`."""
        return self.config.stop_return is not None and self.state.best_return >= self.config.stop_return

    def advance(self, log: RunLog) -> None:
        """One step of every environment, the updates owed for it, and the row or evaluation that falls due.

        While the run learns from a dataset alone: one update, and the same.
        """
        config, before = self.config, self.place
        if before < config.updates_before:
            self._learn()
            begin, end = 0, config.updates_before
        else:
            self.interact()
            owed = updates_owed(config, self.state.step) - self.state.updates
            while owed > 0 and not self._stop():
                self._learn()
                owed -= 1
            begin, end = config.updates_before, config.length
        place, evaluation = self.place, None
        if _passed(before - begin, place - begin, config.eval_every) or before < end <= place:
            evaluation = self._evaluate()
        if evaluation is not None or _passed(before, place, self._row_every):
            self._write_row(log, evaluation)
        every = config.checkpoint_every
        # Not once somebody asked to stop: updates or an evaluation of this step may have been cut short.
        if every is not None and _passed(before, place, every) and not self._stop():
            self._make_checkpoint(log)
        now, notes = time.perf_counter(), (*self._acting.notes(), *self._notes)
        self._notes.clear()
        if evaluation is not None or notes or now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self._report(self._progress(now, evaluation, notes))

    @property
    def writer(self) -> Writer:
        """Stores the steps of a run without actors."""
        assert isinstance(self._acting, Local)
        return self._acting.writer

    def interact(self) -> None:
        """Steps: one of every environment, or what actors have made."""
        self._acting.advance(self.state)

    def _make_checkpoint(self, log: RunLog) -> None:
        state = self.state
        if state.step:  # what an environment is in the midst of cannot be saved
            self._acting.begin_episodes(state)
        self._read_clocks()
        checkpoint = Checkpoint(
            self.place,
            self.agent.state_dict(),
            state.state_dict(),
            log.text(),
            self.buffer,
            self._acting.state_dict(),
            {} if self._data is None else self._data.state_dict(),
        )
        try:
            save_checkpoint(self.run_dir, self.config, checkpoint)
        except ShardError as error:  # the run goes on without; the checkpoint before still stands
            self._notes.append(f"no checkpoint: {error}")

    def _learn(self) -> None:
        config = self.config
        alone = self.state.updates < config.updates_before  # with the dataset
        source = self._data.alone if self._data is not None and alone else self._source
        by_priority = self._by_priority and not alone
        beta = beta_at(config, self.state.step) if by_priority else None
        self._acting.admit(config.agent.batch_size)
        batch = source.sample(config.agent.batch_size, beta=beta, output="torch", device=config.device)
        update = self.agent.update(batch)
        if by_priority:
            self._prioritize(batch.ids, update.abs_td)
        if self.state.meter.empty or self.state.updates % METER_EVERY == 0:
            self.state.meter.add(update)
        self.state.updates += 1
        self._acting.learned(self.state.updates)

    def _prioritize(self, ids: torch.Tensor, abs_td: torch.Tensor) -> None:
        """Give the transitions of a batch their new priorities. Waits for the device."""
        try:
            self._source.update_priorities(ids, abs_td)
        except SchemaError:
            raise ConfigError(
                f"training: expected finite TD errors, got others (at step {self.state.step:,}). The run has diverged: "
                "use a smaller learning_rate."
            ) from None

    def _evaluate(self) -> Evaluation | None:
        config, state = self.config, self.state
        began = time.perf_counter()
        evaluation = evaluate(
            self.greedy,
            config.env,
            episodes=config.eval_episodes,
            seed=EVALUATION_SEED,
            stack=config.stack,
            stop=self._stop,
        )
        state.eval_seconds += time.perf_counter() - began
        if evaluation is not None and evaluation.mean >= state.best_return:
            state.best_return, state.best_step = evaluation.mean, self.place
            state.best_weights = self.agent.weights()
            save_weights(self.run_dir, "best", state.best_weights)
        return evaluation

    def _read_clocks(self) -> None:
        self.state.seconds = time.perf_counter() - self._began
        self.state.cpu_seconds = time.process_time() - self._cpu_began

    def _write_row(self, log: RunLog, evaluation: Evaluation | None) -> None:
        state = self.state
        self._acting.write_row(state)  # first: it may hear of episodes that belong to this row
        self._read_clocks()
        learning = state.seconds - state.eval_seconds
        loss, q_mean = state.meter.take()
        log.write(
            Row(
                step=state.step,
                updates=state.updates,
                episodes=state.episodes,
                seconds=round(state.seconds, 3),
                steps_per_second=round((self.place - state.row_step) / max(learning - state.row_seconds, 1e-9), 1),
                epsilon=self._acting.epsilon(state.step) if state.step else math.nan,
                loss=loss,
                q_mean=q_mean,
                return_mean=float(np.mean(state.fresh)) if state.fresh else math.nan,
                eval_mean=evaluation.mean if evaluation else math.nan,
                eval_std=evaluation.std if evaluation else math.nan,
                eval_min=min(evaluation.returns) if evaluation else math.nan,
                eval_max=max(evaluation.returns) if evaluation else math.nan,
            )
        )
        state.row_step, state.row_seconds = self.place, learning
        state.fresh.clear()

    def _progress(self, now: float, evaluation: Evaluation | None, notes: tuple[str, ...]) -> Progress:
        state = self.state
        marked, marked_step = self._marks[0]
        self._marks.append((now, self.place))
        return Progress(
            step=min(self.place, self.config.length),
            steps=self.config.length,
            episodes=state.episodes,
            return_mean=float(np.mean(state.recent)) if state.recent else math.nan,
            loss=state.meter.peek()[0],
            steps_per_second=(self.place - marked_step) / max(now - marked, 1e-9),
            evaluation=evaluation,
            notes=notes,
        )

    def finish(self, log: RunLog) -> None:
        """Write what is not written yet, the last row and the last weights; end what plays on."""
        if self.place > self.state.row_step:
            self._write_row(log, None)
        self.close()
        save_weights(self.run_dir, "last", self.agent.weights())

    def close(self) -> None:
        """End what plays on, if a run ends otherwise than by `finish`. Idempotent."""
        self._acting.close()


def _check_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # PyTorch says "not compiled with CUDA" by an assertion
        reason = str(error).split("\n")[0].rstrip(".")
        raise ConfigError(
            f"device: expected one that PyTorch can use here, got {name!r} ({reason}). Use cpu."
        ) from None


def _passed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, now]: steps come in strides of `num_envs`."""
    return now // every > before // every

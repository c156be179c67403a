"""The training loop: act, store, learn; evaluate now and then; write it down."""

import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import relive
from relive.dqn import DQN, TrainConfig
from relive.errors import ConfigError, SchemaError
from relive.samplers import BuiltIn, Prioritized, RankBased, Uniform
from relive.train.environments import Envs, make_training_envs
from relive.train.evaluate import EVALUATION_SEED, FINAL_SEED, Evaluation, evaluate, greedy
from relive.train.log import Row, RunLog
from relive.train.plot import plot_runs
from relive.train.rundir import CURVE, claim_run_dir, load_weights, save_config, save_weights
from relive.train.schedules import beta_at, epsilon_at, updates_owed
from relive.train.state import FrameStack, LoopState, LossMeter
from relive.train.stop import StopRequest
from relive.train.summary import Result, save_result

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
    steps: int
    episodes: int
    return_mean: float
    """Mean return of the last (up to) 100 training episodes, NaN before the first has ended."""
    loss: float
    """Mean loss of the newest updates (every eighth is measured), NaN before the first."""
    steps_per_second: float
    """Over the last seconds, evaluations included: what the time left is reckoned with."""
    evaluation: Evaluation | None
    """The evaluation just made, once; else None."""


Report = Callable[[Progress], None]


class Trainer:
    """One run: an agent, a buffer, environments, and the loop over them, a step at a time."""

    def __init__(self, config: TrainConfig, envs: Envs, run_dir: Path, stop: StopRequest, report: Report) -> None:
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
        schema = relive.Schema.from_env(envs)
        view = relive.Transitions(n=config.agent.n_step, gamma=config.agent.gamma, stack=config.stack)
        sampler = _sampler(config)
        # Refuses a capacity that would run out of memory half way.
        relive.plan(schema, config.capacity, view, sampler=sampler)
        self.buffer = relive.ReplayBuffer(config.capacity, schema, view=view, sampler=sampler, seed=config.seed)
        self._by_priority = config.sampler != "uniform"
        self.state = LoopState(np.zeros(envs.num_envs), LossMeter(config.device))
        self.writer = self.buffer.writer(envs)
        obs, _ = envs.reset(seed=config.seed)
        self.writer.reset(obs)
        self._obs = obs
        self._stack = FrameStack(config.stack, obs) if config.stack > 1 else None
        self._began = self._reported = time.perf_counter()
        self._cpu_began = time.process_time()
        self._marks = deque([(self._began, 0)], maxlen=RATE_REPORTS)
        self._row_every = max(1, config.steps // ROWS)

    @property
    def done(self) -> bool:
        """Whether the run has all its steps, or an evaluation was good enough to stop, or somebody asked to."""
        return self.state.step >= self.config.steps or self.stopped_early or self._stop()

    @property
    def stopped_early(self) -> bool:
        """Whether an evaluation reached `stop_return`."""
        return self.config.stop_return is not None and self.state.best_return >= self.config.stop_return

    def advance(self, log: RunLog) -> None:
        """One step of every environment, the updates owed for it, and the row or evaluation that falls due."""
        before = self.state.step
        self.interact()
        owed = updates_owed(self.config, self.state.step) - self.state.updates
        while owed > 0 and not self._stop():
            self._learn()
            owed -= 1
        step, steps = self.state.step, self.config.steps
        evaluation = None
        if _passed(before, step, self.config.eval_every) or before < steps <= step:
            evaluation = self._evaluate()
        if evaluation is not None or _passed(before, step, self._row_every):
            self._write_row(log, evaluation)
        now = time.perf_counter()
        if evaluation is not None or now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self._report(self._progress(now, evaluation))

    def interact(self) -> None:
        """One step of every environment, stored."""
        state = self.state
        obs = self._obs if self._stack is None else self._stack.obs
        action = self.agent.act(obs, epsilon_at(self.config, state.step))
        self._obs, reward, terminated, truncated, info = self._envs.step(action)
        ids = self.writer.step(action, self._obs, reward, terminated, truncated, info)
        stored = ids >= 0  # bool[lanes]; False where the step was a reset
        state.step += int(np.count_nonzero(stored))
        state.running += reward
        ended = terminated | truncated
        if self._stack is not None:
            # Right in every autoreset mode: the observation after an end either is the next episode's first already,
            # or the step after it is not stored and brings that one; the environment ignores the action in between.
            self._stack.push(self._obs, ended | ~stored)
        if ended.any():
            returns = state.running[ended].tolist()
            state.running[ended] = 0.0
            state.episodes += len(returns)
            state.recent.extend(returns)
            state.fresh.extend(returns)

    def _learn(self) -> None:
        config = self.config
        beta = beta_at(config, self.state.step) if self._by_priority else None
        batch = self.buffer.sample(config.agent.batch_size, beta=beta, output="torch", device=config.device)
        update = self.agent.update(batch)
        if self._by_priority:
            self._prioritize(batch.ids, update.abs_td)
        if self.state.meter.empty or self.state.updates % METER_EVERY == 0:
            self.state.meter.add(update)
        self.state.updates += 1

    def _prioritize(self, ids: torch.Tensor, abs_td: torch.Tensor) -> None:
        """Give the transitions of a batch their new priorities. Waits for the device."""
        try:
            self.buffer.update_priorities(ids, abs_td)
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
            state.best_return, state.best_step = evaluation.mean, state.step
            save_weights(self.run_dir, "best", self.agent)
        return evaluation

    def _write_row(self, log: RunLog, evaluation: Evaluation | None) -> None:
        state = self.state
        state.seconds = time.perf_counter() - self._began
        state.cpu_seconds = time.process_time() - self._cpu_began
        learning = state.seconds - state.eval_seconds
        loss, q_mean = state.meter.take()
        log.write(
            Row(
                step=state.step,
                updates=state.updates,
                episodes=state.episodes,
                seconds=round(state.seconds, 3),
                steps_per_second=round((state.step - state.row_step) / max(learning - state.row_seconds, 1e-9), 1),
                epsilon=epsilon_at(self.config, state.step),
                loss=loss,
                q_mean=q_mean,
                return_mean=float(np.mean(state.fresh)) if state.fresh else math.nan,
                eval_mean=evaluation.mean if evaluation else math.nan,
                eval_std=evaluation.std if evaluation else math.nan,
                eval_min=min(evaluation.returns) if evaluation else math.nan,
                eval_max=max(evaluation.returns) if evaluation else math.nan,
            )
        )
        state.row_step, state.row_seconds = state.step, learning
        state.fresh.clear()

    def _progress(self, now: float, evaluation: Evaluation | None) -> Progress:
        state = self.state
        marked, marked_step = self._marks[0]
        self._marks.append((now, state.step))
        return Progress(
            step=min(state.step, self.config.steps),
            steps=self.config.steps,
            episodes=state.episodes,
            return_mean=float(np.mean(state.recent)) if state.recent else math.nan,
            loss=state.meter.peek()[0],
            steps_per_second=(state.step - marked_step) / max(now - marked, 1e-9),
            evaluation=evaluation,
        )

    def finish(self, log: RunLog) -> None:
        """Write what is not written yet: the last row and the last weights."""
        if self.state.step > self.state.row_step:
            self._write_row(log, None)
        save_weights(self.run_dir, "last", self.agent)


def _sampler(config: TrainConfig) -> BuiltIn:
    """How the run draws its batches."""
    alpha, newest = config.priority_alpha, config.newest
    if config.sampler == "prioritized":
        return Prioritized(alpha, config.priority_eps, newest=newest)
    if config.sampler == "rank-based":
        return RankBased(alpha, newest=newest)
    return Uniform(newest=newest)


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


def train(config: TrainConfig, run_dir: Path, *, report: Report = lambda progress: None) -> Result:
    """Train an agent and leave a run directory behind.

    On the CPU the run is a function of the config: the same seed gives the same metrics (but for wall times) and the
    same weights. SIGINT and SIGTERM end it between two steps, with everything written.

    Args:
        config: all of the run.
        run_dir: new or empty.
        report: told how it goes about four times a second, and of every evaluation.

    Returns:
        Result: what was reached; also in `result.json` and `summary.md`.

    Raises:
        ConfigError: `run_dir` is not empty, no such environment, or settings that it does not allow.
    """
    envs = make_training_envs(config.env, config.num_envs)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        with closing(envs), StopRequest() as stop:
            # First what may be refused, then the directory: a refused run leaves none behind.
            trainer = Trainer(config, envs, run_dir, stop, report)
            claim_run_dir(run_dir)
            save_config(run_dir, config)
            with RunLog(run_dir) as log:
                while not trainer.done:
                    trainer.advance(log)
                trainer.finish(log)
            plot_runs([run_dir], run_dir / CURVE)
            result = _conclude(trainer, stop)
            save_result(run_dir, config, result)
            return result
    finally:
        torch.set_num_threads(threads)


def _conclude(trainer: Trainer, stop: StopRequest) -> Result:
    """Evaluate the weights that are kept, unless the run was interrupted."""
    config, state = trainer.config, trainer.state
    best = state.best_step if config.keep == "best" else None
    if best is not None:
        trainer.agent.load_weights(load_weights(trainer.run_dir, "best"))
    final = evaluate(
        trainer.greedy, config.env, episodes=config.final_eval_episodes, seed=FINAL_SEED, stack=config.stack, stop=stop
    )
    return Result(
        status="interrupted" if stop.signal else "stopped early" if trainer.stopped_early else "finished",
        signal=stop.signal.name if stop.signal else None,
        steps=state.step,
        updates=state.updates,
        episodes=state.episodes,
        seconds=state.seconds,
        cpu_seconds=state.cpu_seconds,
        eval_seconds=state.eval_seconds,
        kept="last" if best is None else "best",
        kept_step=state.step if best is None else best,
        final=final,
        threshold=config.threshold,
    )

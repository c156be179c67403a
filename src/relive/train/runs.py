"""A run from its directory to its summary: begun by `train`, gone on with by `resume`."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import torch

import relive
from relive.dqn import TrainConfig
from relive.train.checkpoint import checkpoint_step, load_checkpoint, roll_back
from relive.train.environments import Envs, make_training_envs
from relive.train.evaluate import FINAL_SEED, evaluate
from relive.train.log import RunLog
from relive.train.loop import Report, Trainer
from relive.train.plot import plot_runs
from relive.train.rundir import (
    CURVE,
    claim_run_dir,
    load_config,
    load_weights,
    lock_run,
    place_in_words,
    refuse_finished,
    save_config,
)
from relive.train.stop import StopRequest
from relive.train.summary import Result, save_result


def train(
    config: TrainConfig,
    run_dir: Path,
    *,
    report: Report = lambda progress: None,
    begun: Callable[[], None] = lambda: None,
) -> Result:
    """Train an agent and leave a run directory behind.

    On the CPU the run is a function of the config: the same seed gives the same metrics (but for wall times) and the
    same weights. Not so with `config.actors`, whose steps come in an order of their own; they are processes that
    import the calling script, which needs `if __name__ == "__main__":` around what it does. With `config.ray` they and
    the parts of the buffer live on the hosts of a Ray, which have to have relive installed.

    SIGINT and SIGTERM end the run between two steps, with everything written. With `checkpoint_every` a run that was
    interrupted or killed goes on by `resume`.

    Args:
        config: all of the run.
        run_dir: new or empty.
        report: told how it goes about four times a second, and of every evaluation.
        begun: called once nothing can be refused any more, before the first step.

    Returns:
        Result: what was reached; also in `result.json` and `summary.md`.

    Raises:
        ConfigError: `run_dir` is not empty, no such environment, or settings that it does not allow.
        ChildProcessError: an actor dies again and again before its first step.
        ShardError: no shard of the buffer answers in time (ray).
    """
    # First what may be refused, then the directory: a refused run leaves none behind.
    with stage(config) as (envs, stop), closing(Trainer(config, envs, run_dir, stop, report)) as trainer:
        claim_run_dir(run_dir)
        with lock_run(run_dir):
            save_config(run_dir, config)
            begun()
            return _run(trainer, RunLog(run_dir, updates_before=config.updates_before), stop)


def resume(
    run_dir: Path, *, report: Report = lambda progress: None, begun: Callable[[], None] = lambda: None
) -> Result:
    """Go on with a run from its last checkpoint, as if it had never stopped.

    On the CPU, with the same versions, it ends bit for bit as it would have: the same weights, metrics (but for wall
    times) and buffer. What came after the checkpoint is dropped and done again. A run with actors goes on from the same
    agent, loop and buffer, but not bit for bit: its actors begin new episodes, with other seeds. One on a Ray connects
    to the same address, or starts one of its own again. A dataset is read again from where it was.

    Args:
        run_dir: a run made with `checkpoint_every` that was interrupted or killed.
        report: as for `train`.
        begun: the same.

    Returns:
        Result: that of the whole run.

    Raises:
        ConfigError: not a run, one that is finished or still running, one without a checkpoint, or other settings or
            another dataset than it was begun with.
        SnapshotError: the checkpoint is damaged.
    """
    config = load_config(run_dir)
    with lock_run(run_dir), stage(config) as (envs, stop):
        refuse_finished(run_dir)
        checkpoint = load_checkpoint(
            run_dir, config, relive.SharedMemory() if config.actors and config.ray is None else None
        )
        with closing(Trainer(config, envs, run_dir, stop, report, checkpoint)) as trainer:
            begun()
            roll_back(run_dir, trainer.state.best_weights)
            log = RunLog(run_dir, checkpoint.metrics, checkpoint.step, config.updates_before)
            return _run(trainer, log, stop, checkpoint.step)


@contextmanager
def stage(config: TrainConfig) -> Iterator[tuple[Envs, StopRequest]]:
    """What lasts as long as a training: its environments, PyTorch's threads, an ear for signals."""
    # Actors make their own: of these only the spaces are looked at.
    envs = make_training_envs(config.env, 1 if config.actors else config.num_envs)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        with closing(envs), StopRequest() as stop:
            yield envs, stop
    finally:
        torch.set_num_threads(threads)


def _run(trainer: Trainer, log: RunLog, stop: StopRequest, resumed_at: int | None = None) -> Result:
    """Train to the end, write everything down."""
    try:
        with log:
            while not trainer.done:
                trainer.advance(log)
            trainer.finish(log)
        plot_runs([trainer.run_dir], trainer.run_dir / CURVE)
        result = replace(_conclude(trainer, stop), resumed_at=resumed_at)
        save_result(trainer.run_dir, trainer.config, result)
        return result
    except OSError as error:
        error.add_note(_how_to_go_on(trainer))
        raise


def _how_to_go_on(trainer: Trainer) -> str:
    """What to say to whoever finds a run that the disk, or another part of the system, has ended."""
    config, run_dir = trainer.config, trainer.run_dir
    stopped = f"The run stopped at {place_in_words(config, trainer.place)}"
    try:
        step = checkpoint_step(run_dir)
    except OSError as error:
        return f"{stopped}, and its checkpoint cannot be read: {error}"
    if step is None:
        return f"{stopped}, without a checkpoint: it cannot be resumed."
    return (
        f"{stopped}. Its checkpoint at {place_in_words(config, step)} is whole: once this is mended, "
        f"`relive train --resume {shlex.quote(str(run_dir))}` goes on."
    )


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
        kept_step=trainer.place if best is None else best,
        final=final,
        threshold=config.threshold,
        restarts=trainer.restarts,
        shards=trainer.shards,
    )

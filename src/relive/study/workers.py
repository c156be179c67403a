"""Many training runs, in processes of their own; what has finished is not repeated."""

import json
import multiprocessing
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from relive.dqn import TrainConfig
from relive.errors import ConfigError, ReplayError
from relive.train import Progress as RunProgress
from relive.train import load_config, train
from relive.train.rundir import CONFIG, RESULT
from relive.train.stop import StopRequest

REPORT_SECONDS = 0.25
"""Wall time between two looks at the workers."""


@dataclass(frozen=True)
class Job:
    """A run to be made, and where."""

    config: TrainConfig
    run_dir: Path

    @property
    def finished(self) -> bool:
        """Whether the run lies there, whole.

        Raises:
            ConfigError: another run lies there.
        """
        if not (self.run_dir / CONFIG).exists():
            return False
        if load_config(self.run_dir) != self.config:
            raise ConfigError(
                f"{self.run_dir}: expected a run with the settings asked for, got one with others (see its {CONFIG}). "
                "Give another directory with --out, or remove it."
            )
        try:
            result = json.loads((self.run_dir / RESULT).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return False
        return isinstance(result, dict) and result.get("status") == "finished"


@dataclass(frozen=True)
class Progress:
    """How far all runs are."""

    finished: int
    """Runs that are there, those found included."""
    total: int
    share: float
    """Part of the steps to be made by this call that are made, in [0, 1]."""
    seconds_left: float
    """If it goes on as it has; infinite at first."""
    ended: Path | None
    """The run that has just finished, told once; else None."""


Report = Callable[[Progress], None]


@dataclass
class _Worker:
    """A process with its run."""

    job: Job
    process: ForkServerProcess
    step: Any
    """Environment steps made so far, in memory that both processes see."""
    complaint: Connection
    """Brings why the run was refused, if it was."""


def run_jobs(jobs: Sequence[Job], workers: int, report: Report) -> signal.Signals | None:
    """Make the runs that have not finished yet, some at a time. To be called from the main thread.

    SIGINT and SIGTERM end it within a second or so; whatever has finished by then stays, the rest is left to the next
    call. A run that an earlier call began but did not finish is removed and made anew.

    Args:
        jobs: each in a directory of its own.
        workers: processes at a time.
        report: told how it goes about four times a second, and of every run that ends.

    Returns:
        The signal that ended it; None if all runs are there.

    Raises:
        ConfigError: a directory holds another run. Nothing was started.
        OSError: a run ended without a result.
    """
    waiting = deque(job for job in jobs if not job.finished)
    clock = _Clock(len(jobs), list(waiting))
    running: list[_Worker] = []
    with StopRequest() as stop:
        if waiting:
            _start_server()
        try:
            while (waiting or running) and not stop():
                while waiting and len(running) < workers:
                    running.append(_start(waiting.popleft()))
                wait([worker.process.sentinel for worker in running], REPORT_SECONDS)
                dead = (worker for worker in running if not worker.process.is_alive())
                ended = None if stop() else next(dead, None)
                if ended is not None:
                    running.remove(ended)
                    _check(ended)
                report(clock.progress(running, ended))
        finally:
            for worker in running:
                worker.process.terminate()  # which a run obeys between two steps
            for worker in running:
                worker.process.join()
    return stop.signal


class _Clock:
    """What is done of what there was to do."""

    def __init__(self, total: int, todo: Sequence[Job]) -> None:
        self._total, self._finished = total, total - len(todo)
        self._steps, self._made = sum(job.config.length for job in todo), 0
        self._began = time.monotonic()

    def progress(self, running: Sequence[_Worker], ended: _Worker | None) -> Progress:
        """How far they are; `ended` is the one that has finished since, if one has."""
        if ended is not None:
            self._finished += 1
            self._made += ended.job.config.length
        made = self._made + sum(int(worker.step.value) for worker in running)
        share = made / self._steps
        left = (time.monotonic() - self._began) * (1 - share) / share if share else float("inf")
        path = None if ended is None else ended.job.run_dir
        return Progress(self._finished, self._total, share, left, path)


_CONTEXT = multiprocessing.get_context("forkserver")


def _start_server() -> None:
    """Start the process that workers are forks of: it imports everything once for all of them.

    It and they are to ignore Ctrl-C, which a terminal sends to every process: this process tells them. An ignored
    signal is inherited; `train` catches it while it runs, and ends as we would have asked it to.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _CONTEXT.set_forkserver_preload([__name__])
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def _start(job: Job) -> _Worker:
    if (job.run_dir / CONFIG).exists():
        shutil.rmtree(job.run_dir)  # begun by an earlier call; anything that is no run `train` refuses to write over
    step = _CONTEXT.Value("q", 0, lock=False)
    complaint, complain = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_work, args=(job, step, complain))
    process.start()
    complain.close()  # the worker's end: once it is gone as well, `complaint` is at its end
    return _Worker(job, process, step, complaint)


def _work(job: Job, step: Any, complain: Connection) -> None:
    """What a worker does."""

    def report(now: RunProgress) -> None:
        step.value = now.step

    try:
        train(job.config, job.run_dir, report=report)
    except (ReplayError, OSError) as error:
        complain.send(str(error))
        sys.exit(2)
    except KeyboardInterrupt:  # a second Ctrl-C
        sys.exit(130)


def _check(worker: _Worker) -> None:
    """Refuse a run that ended by itself without a result."""
    worker.process.join()
    with worker.complaint as complaint:
        try:
            reason = str(complaint.recv())
        except EOFError:
            reason = f"exit code {worker.process.exitcode}"
    if worker.process.exitcode or not worker.job.finished:
        raise OSError(
            f"{worker.job.run_dir}: expected the run to finish, it ended before: {reason.rstrip('.')}. "
            "Call again to go on from there."
        )

"""Proof that a run resumes exactly: trained through, and killed and resumed, it must end the same, bit for bit."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import torch

import relive
from relive.dqn import TrainConfig
from relive.errors import ConfigError
from relive.train.checkpoint import checkpoint_step, load_checkpoint
from relive.train.log import METRICS, RunLog, read_metrics
from relive.train.loop import Trainer
from relive.train.offline import refuse_missing
from relive.train.rundir import WEIGHTS, extent_in_words, load_config, place_in_words
from relive.train.runs import stage
from relive.train.stop import unwinding

WALL_TIMES = frozenset({"seconds", "cpu_seconds", "eval_seconds", "row_seconds", "steps_per_second"})
"""What two runs may differ in."""

BUDGET_SECONDS = 30.0
"""Wall time of the trainings, about, where nobody says how long they are; the start of three processes comes on top."""

PROBE_SECONDS = 2.0
"""Wall time in which the speed is measured that says how far `BUDGET_SECONDS` reach."""

LONGEST = 10_000
"""Most steps of a training (updates from a dataset and steps together) where nobody says how many."""

DRAWS = 8
"""Batches that two buffers must draw alike."""

_CHUNK = 4096
"""Transitions compared in one go."""

_WITH_US = """
import sys
from relive.train.stop import die_with
die_with(int(sys.argv.pop(1)))
"""

_BEGIN = """
import json, pathlib
from relive.dqn import TrainConfig
from relive.train import train
train(TrainConfig.from_dict(json.loads(sys.argv[1])), pathlib.Path(sys.argv[2]))
"""

_RESUME = """
from relive.cli import main
sys.exit(main(["train", "--resume", sys.argv[1]]))
"""

_LAST_WORDS = 4096
"""Bytes at the end of what a process complained of that are looked at for its last line."""


@dataclass(frozen=True)
class Proof:
    """What came of it."""

    config: TrainConfig
    """What was trained: the run's own settings, shortened."""
    resumed_at: int
    """Place of the checkpoint that the killed training went on from; updates from a dataset count before steps."""
    killed_after: float
    """Seconds from the first checkpoint to the kill."""
    updates: int
    """Made by each training; none of so few steps that learning never started."""
    differences: tuple[str, ...]
    """What was not the same in the end, in words; empty where the run resumes exactly."""

    @property
    def passed(self) -> bool:
        """Whether both ended the same."""
        return not self.differences


@unwinding()
def prove_resume(
    run_dir: Path, *, steps: int | None = None, report: Callable[[str], None] = lambda words: None
) -> Proof:
    """Train with a run's settings twice, once killed and resumed, and compare what is left, bit for bit.

    Both trainings are new, in a directory that is removed again; the run itself is only read. They make a checkpoint
    half way and at the end, and with a dataset and steps after it in the midst of both; evaluations and the buffer are
    cut down so that both matter in so few steps. The second is a process of its own, killed by SIGKILL at a random
    instant after its first checkpoint, and goes on by `relive train --resume`. Whatever ends this process ends them
    too; Ctrl-C, SIGTERM and SIGHUP take their directory away as well.

    Args:
        run_dir: whose settings; the run need not have checkpoints of its own.
        steps: of each training; from a dataset alone updates, with steps after it half of them updates. None: as many
            as take half a minute in all, at most 10,000.
        report: told in words what goes on.

    Returns:
        Proof: with every difference between agents, loops, metrics (but for wall times), weights and buffers.

    Raises:
        ConfigError: not a run, one with actors or whose dataset is gone, or fewer steps than two of every environment
            (four, where half of them are updates).
        OSError: a training failed.

    Cost: about 4.5 * steps environment steps with their updates.
    """
    config = load_config(run_dir)
    refuse_missing(config)
    config = shorten(config, steps)
    every = config.checkpoint_every
    assert every is not None
    with TemporaryDirectory(prefix="relive-resume-") as name:
        through, killed = Path(name) / "through", Path(name) / "killed"
        report(f"Training in {config.env} for {extent_in_words(config)}, with a checkpoint every {every:,} of them.")
        with _begin(config, through) as training:
            training.finish()
        after_first = _seconds_after(config, every, through)
        report("The same again, in a process that will be killed.")
        resumed_at, killed_after = _train_and_kill(config, killed, after_first)
        place = place_in_words(config, resumed_at)
        report(f"Killed {killed_after:.2f} s after its first checkpoint. Resuming it from {place}.")
        with _Training(killed.with_name("resumed.err"), _RESUME, str(killed)) as training:
            training.finish()
        updates = int(read_metrics(through)["updates"][-1])
        return Proof(config, resumed_at, killed_after, updates, tuple(differences(through, killed)))


def _seconds_after(config: TrainConfig, place: int, run_dir: Path) -> float:
    """Wall time of a run from this place to its end, about."""
    metrics = read_metrics(run_dir)
    places = np.minimum(metrics["updates"], config.updates_before) + metrics["step"]
    return float(metrics["seconds"][-1] - np.interp(place, places, metrics["seconds"]))


def shorten(config: TrainConfig, steps: int | None) -> TrainConfig:
    """The settings of a run for so few steps that learning, evictions and evaluations still happen in either half.

    Of a run that learns from a dataset and acts after that, one half are updates from the dataset alone; either half
    has a checkpoint in its midst.

    Raises:
        ConfigError: with actors; too few steps for two of every environment.
    """
    if config.actors:
        raise ConfigError(
            f"resuming: expected a run without actors, got one with {config.actors}. Their steps come in an order of "
            "their own: such runs go on from their checkpoint, but two of them never end the same, bit for bit."
        )
    parts = 2 if config.online and config.updates_before else 1
    half = (_affordable(config) if steps is None else steps) // parts // 2
    acting = config.length > config.updates_before
    least = config.num_envs if acting else 1
    if half < least:
        each = ", two of every environment" if acting else ""
        each += " and as many updates" if parts == 2 else ""
        raise ConfigError(f"steps: expected at least {2 * parts * least}{each}, got {steps}. Give more.")
    room = math.ceil(1.5 * half / config.num_envs) * config.num_envs
    return replace(
        config,
        steps=2 * half if acting else config.steps,
        offline_updates=2 * half if config.updates_before else config.offline_updates,
        checkpoint_every=half,
        capacity=min(config.capacity, max(room, 100 * config.num_envs)),
        learning_starts=min(config.learning_starts, half // 4),
        update_every=min(config.update_every, max(1, half // 8)),
        eval_every=max(1, 2 * half // 3),
        eval_episodes=min(config.eval_episodes, 2),
        final_eval_episodes=1,
        stop_return=None,
        threshold=None,
    )


def _affordable(config: TrainConfig) -> int:
    """Steps that a training may take so that four and a half such trainings take `BUDGET_SECONDS`."""
    probe = replace(
        config,
        steps=10**9,
        checkpoint_every=None,
        capacity=min(config.capacity, 1000 * config.num_envs),
        learning_starts=0,
        update_every=1,
        epsilon_start=config.epsilon_end,
        eval_every=10**9,
        stop_return=None,
    )
    probes = [probe]
    if config.updates_before:  # those, and the steps after them if there are any, take the same share of the training
        probes = [replace(probe, offline_updates=updates) for updates in ((10**9, 1) if config.online else (10**9,))]
    seconds = sum(_seconds_each(one) for one in probes) / len(probes)
    return int(np.clip(BUDGET_SECONDS / 4.5 / seconds, 16 * config.num_envs, LONGEST))


def _seconds_each(probe: TrainConfig) -> float:
    """Wall time of a step, or of an update from a dataset alone, with what belongs to it."""
    with TemporaryDirectory(prefix="relive-probe-") as name, stage(probe) as (envs, stop), RunLog(Path(name)) as log:
        trainer = Trainer(probe, envs, Path(name), stop, lambda progress: None)
        began = time.perf_counter()
        while time.perf_counter() - began < PROBE_SECONDS:
            trainer.advance(log)
            if stop.signal is not None:
                raise KeyboardInterrupt if stop.signal is signal.SIGINT else SystemExit(128 + stop.signal)
        return (time.perf_counter() - began) / trainer.place


class _Training:
    """A process that trains, until the block ends. What it complains of goes to a file: a pipe would have an end."""

    def __init__(self, complaints: Path, code: str, *args: str) -> None:
        self._complaints = complaints
        with complaints.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _WITH_US + code, str(os.getpid()), *args],
                stdout=subprocess.DEVNULL,
                stderr=file,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()

    def finish(self) -> None:
        """Wait for it; refuse one that failed."""
        if code := self.process.wait():
            with self._complaints.open("rb") as file:
                file.seek(max(0, self._complaints.stat().st_size - _LAST_WORDS))
                said = file.read().decode(errors="replace").strip()
            last = (said or f"exit code {code}").splitlines()[-1]
            raise OSError(f"training: expected it to succeed, got: {last}")


def _begin(config: TrainConfig, run_dir: Path) -> _Training:
    return _Training(run_dir.with_name(f"{run_dir.name}.err"), _BEGIN, json.dumps(config.to_dict()), str(run_dir))


def _train_and_kill(config: TrainConfig, run_dir: Path, longest: float) -> tuple[int, float]:
    """Leave a run behind that was killed at a random instant after its first checkpoint.

    Returns the place of the checkpoint it goes on from, and the seconds from the first one, at most `longest`, to the
    kill. A process that was quicker than the kill is started again, and killed sooner.
    """
    for attempt in range(8):
        path = run_dir.with_name(f"{run_dir.name}-{attempt}")
        with _begin(config, path) as training:
            while checkpoint_step(path) is None and training.process.poll() is None:
                time.sleep(0.002)
            after = random.uniform(0.0, longest) * 0.5**attempt
            time.sleep(after)
        code, step = training.process.returncode, checkpoint_step(path)
        if code > 0:
            training.finish()
        if code < 0 and step is not None and step < config.length:
            path.rename(run_dir)
            return step, after
    raise OSError(
        f"kill: expected to hit a training of {extent_in_words(config)}, it was always over before. Give more."
    )


def differences(one: Path, other: Path) -> Iterator[str]:
    """What differs between two finished runs of the same settings, each with a checkpoint at its end, in words.

    Wall times are left out.
    """
    config = load_config(one)
    a, b = load_checkpoint(one, config), load_checkpoint(other, config)
    for name in ("step", "agent", "loop", "data"):
        yield from _unlike(name, getattr(a, name), getattr(b, name))
    for file in WEIGHTS.values():
        yield from _unlike(file, *(torch.load(run / file, weights_only=True) for run in (one, other)))
    yield from _unlike(METRICS, read_metrics(one), read_metrics(other))
    yield from _unlike_buffers(config, a.buffer, b.buffer)


COMPARED = "agent, optimiser, loop, both weights, metrics but for wall times, the buffer and its next draws"
"""What `differences` looks at, in words."""


def _unlike_buffers(config: TrainConfig, a: relive.ReplayBuffer, b: relive.ReplayBuffer) -> Iterator[str]:
    """Differences of two buffers: what they are, what they would draw, every transition they hold."""
    for name in ("capacity", "lanes", "schema", "view", "sampler", "seed"):
        yield from _unlike(f"buffer {name}", getattr(a, name), getattr(b, name))
    if len(a) > 0 < len(b):
        beta = None if config.sampler == "uniform" else 0.5
        for number in range(DRAWS):
            one, other = (vars(buffer.sample(config.agent.batch_size, beta=beta)) for buffer in (a, b))
            yield from _unlike(f"buffer batch {number}", one, other)
    if not np.array_equal(a.ids, b.ids):
        yield "buffer: other transitions"
        return
    plain = [buffer.reader(view=relive.Transitions(), seed=0) for buffer in (a, b)]
    for start in range(0, len(a), _CHUNK):
        one, other = (vars(reader.get(a.ids[start : start + _CHUNK])) for reader in plain)
        yield from _unlike(f"buffer transitions from number {start:,}", one, other)


def _unlike(name: str, a: Any, b: Any) -> Iterator[str]:
    """Where two nested values differ, bit for bit; wall times are left out."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in {**a, **b}:
            if key in a and key in b:
                if key not in WALL_TIMES:
                    yield from _unlike(f"{name}.{key}", a[key], b[key])
            else:
                yield f"{name}.{key}: there only once"
    elif isinstance(a, torch.Tensor | np.ndarray) and isinstance(b, torch.Tensor | np.ndarray):
        one, other = np.asarray(a), np.asarray(b)
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            yield f"{name}: {one.dtype} {one.shape} and {other.dtype} {other.shape}"
        elif one.tobytes() != other.tobytes():
            yield f"{name}: {np.count_nonzero(one != other):,} of {one.size:,} values differ"
    elif _is_list(a) and _is_list(b) and len(a) == len(b):
        for place, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from _unlike(f"{name}[{place}]", one, other)
    elif repr(a) != repr(b):  # of floats the shortest text that is exact, and NaN is NaN
        yield f"{name}: {a!r} and {b!r}"


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)

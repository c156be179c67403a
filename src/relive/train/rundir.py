"""A run is a directory: what lies in it, how it is made, how its agent is loaded again."""

import errno
import fcntl
import io
import json
import os
import pickle
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from relive.dqn import DQN, TrainConfig
from relive.errors import ConfigError
from relive.train.environments import make_env
from relive.train.evaluate import Act, greedy

CONFIG = "config.json"
RESULT = "result.json"
SUMMARY = "summary.md"
CURVE = "curve.png"
WEIGHTS = {"best": "best.pt", "last": "last.pt"}
CHECKPOINT = "checkpoint"
ACTORS = "actors.csv"

CONTENTS = {
    SUMMARY: "what the run was and what it reached",
    CURVE: "the learning curve",
    CONFIG: "every setting",
    RESULT: "the outcome, for programs",
    "metrics.csv": "one row per 1/200 of the run and per evaluation",
    ACTORS: "the same of each actor: its steps, returns, restarts, waits, the age of its weights",
    "events.out.tfevents.*": "metrics.csv for TensorBoard",
    WEIGHTS["best"]: "weights of the best evaluation",
    WEIGHTS["last"]: "weights at the end",
    CHECKPOINT: "what `relive train --resume` goes on from; `replay` in it is a snapshot of the buffer",
}
"""File or directory -> what it holds. There is a checkpoint only if the run makes any, actors.csv only with actors."""


def new_run_dir(root: Path, env: str, seed: int) -> Path:
    """Make the first directory `root/ENV-SEED-001`, `-002`, ... that does not exist yet."""
    root.mkdir(parents=True, exist_ok=True)
    stem = f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', env)}-{seed}"
    number = 1
    while True:
        path = root / f"{stem}-{number:03d}"
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def claim_run_dir(path: Path) -> None:
    """Make `path`, or take it if it is an empty directory.

    Raises:
        ConfigError: there is something in it already; a run never writes over another.
        OSError: it cannot be made or written to.
    """
    if path.is_dir() and any(path.iterdir()):
        raise ConfigError(
            f"run directory: expected a new or empty one, got {path} with {len(list(path.iterdir()))} entries. "
            "Give another with --out, leave --out away, or remove it."
        )
    path.mkdir(parents=True, exist_ok=True)


@contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """While entered, no other training runs in this directory; the system unlocks it when the process dies.

    The lock lies on config.json, the one file that is there from first to last. A file system without locks has none.

    Raises:
        ConfigError: a training is running there.
    """
    with (run_dir / CONFIG).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{run_dir}: expected a run that nobody trains, got one whose training goes on. Wait for it or end it."
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS):
                raise
        yield


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """While entered, what the system refuses names `path`: Python names a file that it cannot open, not a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write_file(path: Path, data: bytes) -> None:
    """Write a file, durably; whoever reads it meanwhile, or after a kill, sees the old one or the new one, whole."""
    fresh = path.with_name(path.name + ".new")
    try:
        with naming(path), fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def status_in_words(status: str, config: TrainConfig) -> str:
    """What the `status` of a result means, for people."""
    if status == "stopped early" and config.stop_return is not None:
        return f"finished: an evaluation reached {config.stop_return:g} (stop_return)"
    return status


def extent_in_words(config: TrainConfig) -> str:
    """How long a run is, for people."""
    updates, steps = f"{config.updates_before:,} updates", f"{config.steps:,} steps"
    if config.length == config.updates_before:
        return updates
    return f"{updates} and {steps}" if config.updates_before else steps


def place_in_words(config: TrainConfig, place: int) -> str:
    """A place in a run of `config.length`, for people: its update, while it learns from a dataset alone; its step."""
    alone = config.offline is not None and (place <= config.updates_before or not config.online)
    return f"update {place:,}" if alone else f"step {place - config.updates_before:,}"


def refuse_finished(run_dir: Path) -> None:
    """Refuse a run that has come to its end.

    Raises:
        ConfigError: it has, or nobody can tell: its result is damaged. (An interrupted one has not.)
    """
    path = run_dir / RESULT
    if not path.exists():
        return
    try:
        status = json.loads(path.read_text(encoding="utf-8"))["status"]
    except (ValueError, TypeError, KeyError, IsADirectoryError):
        raise ConfigError(
            f"{path}: expected the result of a run, got something else. Remove it to go on from the last checkpoint."
        ) from None
    if status != "interrupted":
        words = status_in_words(str(status), load_config(run_dir))
        raise ConfigError(
            f"{run_dir}: expected a run that was interrupted or killed, got one that is {words}. "
            f"See it play: relive evaluate {shlex.quote(str(run_dir))}; for more steps train anew."
        )


def save_config(run_dir: Path, config: TrainConfig) -> None:
    """Write config.json."""
    with naming(run_dir / CONFIG), (run_dir / CONFIG).open("w", encoding="utf-8") as file:
        file.write(json.dumps(config.to_dict(), indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())  # a checkpoint is of no use without it


def load_config(run_dir: Path) -> TrainConfig:
    """Read config.json.

    Raises:
        ConfigError: there is none, or it is not a TrainConfig.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        raise ConfigError(
            f"{run_dir}: expected a run directory with {CONFIG} in it, found none. Give one that `relive train` made."
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: expected JSON, got something else ({error}).") from None
    try:
        return TrainConfig.from_dict(data)
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{path}: expected the settings of a run, got others ({error}).") from None


def save_weights(run_dir: Path, which: Literal["best", "last"], weights: dict[str, torch.Tensor]) -> None:
    """Write the weights; whoever reads the file meanwhile sees the old ones or the new ones, whole."""
    data = io.BytesIO()
    torch.save(weights, data)
    write_file(run_dir / WEIGHTS[which], data.getvalue())


def load_weights(run_dir: Path, which: Literal["best", "last"]) -> dict[str, torch.Tensor]:
    """Read the weights. Runs no code that a stranger may have put into the file.

    Raises:
        ConfigError: the run has none (it was stopped before its first evaluation), or they are damaged.
    """
    path = run_dir / WEIGHTS[which]
    if not path.is_file():
        raise ConfigError(
            f"{path}: expected weights, found none. A run has its best after an evaluation, its last at the end."
        )
    try:
        weights: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{path}: expected weights as `relive train` saves them, got others ({reason}).") from None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ConfigError(f"{path}: expected tensors by name, got something else.")
    return weights


def load_policy(run_dir: Path, which: Literal["best", "last"]) -> Act:
    """The greedy policy of a run, as it was when these weights were saved.

    Raises:
        ConfigError: something of it is missing or damaged.
    """
    config = load_config(run_dir)
    env = make_env(config.env)
    agent = DQN(env.observation_space, env.action_space, config.agent, seed=config.seed, stack=config.stack)
    env.close()
    agent.load_weights(load_weights(run_dir, which))
    return greedy(agent, env.action_space)

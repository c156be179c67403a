"""`relive train ENV`: a run from the preset of the environment, edited by options."""

import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from relive.cli.options import parse
from relive.cli.progress import spectator
from relive.dqn import PRESETS, TrainConfig, preset
from relive.errors import ReplayError
from relive.train import Result, new_run_dir, train
from relive.train.environments import make_env
from relive.train.rundir import CONTENTS, claim_run_dir
from relive.train.summary import headline

DESCRIPTION = (
    "Train a DQN. The defaults are those of the environment named: tuned ones for "
    + ", ".join(PRESETS)
    + "; for any other Gymnasium environment with Discrete actions, general ones. "
    "Ends with a greedy evaluation; the exit code is 1 if there is a threshold and it was missed."
)


@dataclass(frozen=True)
class Options:
    """What the command line can say."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: Path | None = None
    """Directory of the run, new or empty. None: the next free of runs/ENV-SEED-001, -002, ..."""


def run(args: Sequence[str]) -> int:
    """Train, tell how it went, and return the exit code."""
    options = _read(args)
    config = options.config
    make_env(config.env).close()  # refuse what cannot be trained before a directory is made
    run_dir = options.out or new_run_dir(Path("runs"), config.env, config.seed)
    claim_run_dir(run_dir)  # here too, so that a directory that cannot be had is the first thing said
    print(f"Training in {config.env}, seed {config.seed}. Ctrl-C ends it early.\nRun: {run_dir}", flush=True)
    try:
        with spectator(config.steps) as report:
            result = train(config, run_dir, report=report)
    except ReplayError:
        with suppress(OSError):  # a run that was refused leaves no empty directory behind; rmdir removes no other
            run_dir.rmdir()
        raise
    print(_report(config, result, run_dir))
    if result.signal:
        return 128 + signal.Signals[result.signal]
    return 1 if result.passed is False else 0


def _read(args: Sequence[str]) -> Options:
    """The preset of whichever environment is named, edited; asking for --help shows its values too."""
    named = next((word for word in args if word in PRESETS), "")
    options = _parse(args, named)
    if options.config.env != named:
        options = _parse(args, options.config.env)
    return options


def _parse(args: Sequence[str], env: str) -> Options:
    default = Options(replace(preset(env or "?"), env=tyro.MISSING))
    return parse(Options, args, prog="relive train", description=DESCRIPTION, default=default)


def _report(config: TrainConfig, result: Result, run_dir: Path) -> str:
    if result.signal:
        outcome = f"Ended by {result.signal} at step {result.steps:,}; everything up to there is written."
    else:
        outcome = headline(result)[0].upper() + headline(result)[1:]
    learning = result.seconds - result.eval_seconds
    width = max(map(len, CONTENTS))
    there = {file: what for file, what in CONTENTS.items() if any(run_dir.glob(file))}
    return "\n".join(
        [
            "",
            outcome,
            f"{_steps(config, result)}, {result.updates:,} updates, {result.episodes:,} episodes in {learning:.1f} s, "
            f"and {result.eval_seconds:.1f} s of evaluations on the way.",
            f"The run lies in {run_dir}:",
            *(f"  {file:<{width}}  {what}" for file, what in there.items()),
            f"Watch it: relive evaluate {run_dir} --video film.gif",
        ]
    )


def _steps(config: TrainConfig, result: Result) -> str:
    if result.status == "stopped early":
        return f"{result.steps:,} of {config.steps:,} steps (an evaluation reached {config.stop_return:g})"
    return f"{result.steps:,} steps"

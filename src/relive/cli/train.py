"""`relive train ENV`: a run from the preset of the environment, edited by options. `--resume RUN` goes on with one."""

import re
import shlex
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
from relive.errors import ConfigError, ReplayError
from relive.train import Result, load_config, new_run_dir, resume, train
from relive.train.actor import in_words
from relive.train.checkpoint import checkpoint_step, other_versions
from relive.train.environments import find_spec, make_env
from relive.train.log import has_diverged, read_metrics
from relive.train.rundir import CHECKPOINT, CONTENTS, claim_run_dir, lock_run, place_in_words, refuse_finished
from relive.train.summary import headline, place_of

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
    resume: Path | None = None
    """Go on with this run from its last checkpoint instead. Takes no environment and no other option."""


def run(args: Sequence[str]) -> int:
    """Train, tell how it went, and return the exit code."""
    if _names_resume(args) and not {"-h", "--help"} & set(args):
        return _resume(_run_to_resume(args))
    options = _read(args)
    config = options.config
    _refuse_unused(args, config)
    make_env(config.env).close()  # refuse what cannot be trained before a directory is made
    run_dir = options.out or new_run_dir(Path("runs"), config.env, config.seed)
    claim_run_dir(run_dir)  # here too, so that a directory that cannot be had is the first thing said

    def announce() -> None:
        print(f"Training in {config.env}, seed {config.seed}. Ctrl-C ends it early.\nRun: {run_dir}", flush=True)
        if config.actors:
            print(f"Actors: {in_words(config)}.", flush=True)
        if note := _cut_short(config):
            print(note, flush=True)

    try:
        with spectator(config) as report:
            result = train(config, run_dir, report=report, begun=announce)
    except ReplayError:
        with suppress(OSError):  # a run that was refused leaves no empty directory behind; rmdir removes no other
            run_dir.rmdir()
        raise
    return _conclude(config, result, run_dir)


def _cut_short(config: TrainConfig) -> str | None:
    """What to say where checkpoints come so often that long episodes are never finished."""
    every, longest = config.checkpoint_every, find_spec(config.env).max_episode_steps
    if config.actors or (config.offline is not None and not config.online):
        return None  # actors play on; who learns from a dataset alone plays nothing
    if every is None or longest is None or every >= longest * config.num_envs:
        return None
    where = f"in each of {config.num_envs} environments" if config.num_envs > 1 else "at most"
    return (
        f"Note: with --checkpoint-every {every} episodes are cut off after {every // config.num_envs:,} steps {where}. "
        f"They may last {longest:,}: longer ones are never finished, and the return shown is that of short ones alone. "
        f"It takes --checkpoint-every {longest * config.num_envs}, better ten times that."
    )


def _refuse_unused(args: Sequence[str], config: TrainConfig) -> None:
    """Refuse options of the other kind of target: here and not in the config, as a preset may set both."""
    if config.actors:
        for name in ("--epsilon-start", "--epsilon-end", "--epsilon-fraction"):
            if _names(args, name):
                raise ConfigError(
                    f"{name}: expected none with --actors, got one. Each actor has an epsilon of its own: "
                    "--actor-epsilon and --actor-alpha say which."
                )
    option, kind = ("--tau", "soft") if config.agent.target == "periodic" else ("--target-every", "periodic")
    if _names(args, option):
        raise ConfigError(
            f"{option}: expected --target {kind} with it, got --target {config.agent.target}, which has no use for it. "
            "Give that, or leave it away."
        )


def _names(args: Sequence[str], option: str) -> bool:
    """Whether the command line gives this option."""
    return any(word.partition("=")[0].replace("_", "-") == option for word in args)


def _resume(run_dir: Path) -> int:
    config = load_config(run_dir)
    with lock_run(run_dir):  # here too, so that a run that cannot be had is the first thing said
        refuse_finished(run_dir)

    def announce() -> None:
        at = place_in_words(config, checkpoint_step(run_dir) or 0)
        print(
            f"Resuming {config.env}, seed {config.seed}, at {at}, its last checkpoint. Ctrl-C ends it early.\n"
            f"Run: {run_dir}",
            flush=True,
        )
        if config.actors:
            print("Its actors begin new episodes, with other seeds: it goes on, but not bit for bit.", flush=True)
        elif others := other_versions(run_dir):
            print(f"Made with {', '.join(others)}: it goes on, but perhaps not bit for bit.", flush=True)

    with spectator(config) as report:
        result = resume(run_dir, report=report, begun=announce)
    return _conclude(config, result, run_dir)


def _conclude(config: TrainConfig, result: Result, run_dir: Path) -> int:
    """Tell how it went, and return the exit code."""
    print(_report(config, result, run_dir))
    if result.signal:
        return 128 + signal.Signals[result.signal]
    return 1 if result.passed is False else 0


def _names_resume(args: Sequence[str]) -> bool:
    return any(word.partition("=")[0] == "--resume" for word in args)


def _run_to_resume(args: Sequence[str]) -> Path:
    """RUN of `--resume RUN`. Settings cannot be changed half way: epsilon, for one, falls over a share of all steps."""
    words = [part for word in args for part in (word.split("=", 1) if word.startswith("--resume=") else [word])]
    if len(words) != 2 or words[0] != "--resume" or words[1].startswith("-"):
        raise ConfigError(
            f"--resume: expected a run directory and nothing else, got {shlex.join(args)!r}. A resumed run keeps the "
            "settings that it was begun with."
        )
    return Path(words[1])


def _read(args: Sequence[str]) -> Options:
    """The preset of whichever environment is named, edited; asking for --help shows its values too."""
    named = next((word for word in args if word in PRESETS), "")
    options = _parse(args, named)
    if options.config.env != named:
        options = _parse(args, options.config.env)
    return options


def _parse(args: Sequence[str], env: str) -> Options:
    default = Options(replace(_fitting(preset(env or "?"), args), env=tyro.MISSING))
    return parse(Options, args, prog="relive train", description=DESCRIPTION, default=default)


def _fitting(config: TrainConfig, args: Sequence[str]) -> TrainConfig:
    """The preset with a capacity that the environments asked for divide; one that is given is taken or refused."""
    text = " ".join(args).replace("_", "-").replace("=", " ")
    asked = {name: re.findall(rf"--{name} +(\d{{1,9}})\b", text) for name in ("actors", "num-envs")}
    actors = int(asked["actors"][-1]) if asked["actors"] else 0
    num_envs = int(asked["num-envs"][-1]) if asked["num-envs"] else config.num_envs
    lanes = max(1, actors) * max(1, num_envs)
    return replace(config, capacity=max(1, config.capacity // lanes) * lanes, num_envs=max(1, num_envs))


def _report(config: TrainConfig, result: Result, run_dir: Path) -> str:
    if result.signal:
        place = place_in_words(config, place_of(config, result))
        outcome = f"Ended by {result.signal} at {place}; everything up to there is written."
        if (step := checkpoint_step(run_dir)) is not None:
            at = place_in_words(config, step)
            left = f"goes on from {at}" if step < config.length else "only its final evaluation is left"
            outcome += f"\nResume: relive train --resume {shlex.quote(str(run_dir))} ({left})"
        elif config.checkpoint_every is not None:
            first = f"its first was due at {place_in_words(config, config.checkpoint_every)}"
            outcome += f"\nIt cannot be resumed: there is no checkpoint yet, {first}. Train it anew."
    else:
        words = headline(config, result)
        outcome = words[0].upper() + words[1:]
    if config.offline is not None and has_diverged(read_metrics(run_dir)):
        outcome += (
            "\nThe loss has grown without bound: the values learned mean nothing. Take a smaller --learning-rate "
            f"(here {config.agent.learning_rate:g}){_or_steadier(config)}."
        )
    learning = result.seconds - result.eval_seconds
    episodes = f", {result.episodes:,} episodes" if result.steps else ""
    width = max(map(len, CONTENTS))
    there = {file: what for file, what in CONTENTS.items() if any(run_dir.glob(file))}
    if checkpoint_step(run_dir) is None:
        there.pop(CHECKPOINT, None)  # only the beginnings of one
    return "\n".join(
        [
            "",
            outcome,
            f"{_steps(config, result)}, {result.updates:,} updates{episodes} in {learning:.1f} s, "
            f"and {result.eval_seconds:.1f} s of evaluations on the way.",
            f"The run lies in {run_dir}:",
            *(f"  {file:<{width}}  {what}" for file, what in there.items()),
            f"Watch it: relive evaluate {run_dir} --video film.gif",
        ]
    )


def _or_steadier(config: TrainConfig) -> str:
    """What else steadies learning from a dataset."""
    agent = config.agent
    options = [f"a larger --target-every (here {agent.target_every:,})"] if agent.target == "periodic" else []
    options += [] if agent.cql_alpha else ["--cql-alpha 1"]
    return "".join(f", {option}" for option in options)


def _steps(config: TrainConfig, result: Result) -> str:
    early = result.status == "stopped early"
    reached = f" (an evaluation reached {config.stop_return:g})" if early else ""
    if config.offline is not None and not config.online:
        return f"From {config.offline} alone{reached}"
    return f"{result.steps:,}{f' of {config.steps:,}' if early else ''} steps{reached}"

"""The command `relive`. Each command is a file of its own, loaded when called: `relive --version` needs NumPy only."""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from relive.early import unhush
from relive.errors import ReplayError

COMMANDS = {
    "train": "train a DQN in an environment and leave a run directory behind",
    "evaluate": "play greedy episodes with a run's weights, film one",
    "plot": "draw the learning curves of one or more runs",
    "collect": "play a random or trained policy and write down every transition",
    "convert": "write a dataset in another format",
    "info": "say what lies in a dataset, snapshot or run directory",
    "check": "say what is wrong in stored transitions, or prove that a run resumes exactly",
    "study": "experiments on replay: buffer capacities, rare successes",
}
"""Command -> what it does; the module of the same name has `run(args) -> exit code`."""

DATA_COMMANDS = ("convert", "info", "check")
"""Commands that need the extra `interop` only, unless they are shown a run."""

USAGE = 2
"""Exit code of a call that could not be obeyed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after `relive`; None: those of the process.

    Returns:
        Exit code: 0; 1 where a threshold was missed; 2 where the call could not be obeyed, said in one line on stderr;
        128 + number where a signal ended it.
    """
    _make_writable()
    try:
        code = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our output has gone: be quiet about it, as `| head` expects, also at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return USAGE


def _main(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if args else USAGE
    if args[0] in ("-V", "--version"):
        print(f"relive {version('relive')}")
        return 0
    if args[0] not in COMMANDS:
        close = difflib.get_close_matches(args[0], COMMANDS, n=1)
        remedy = f"Did you mean {close[0]}?" if close else "See relive --help."
        return _refuse("relive", f"command: expected one of {', '.join(COMMANDS)}, got {args[0]!r}. {remedy}")
    return _run(args[0], args[1:])


def _make_writable() -> None:
    """Sees to it that a run of hours does not end because a line cannot be printed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever called us
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for the whole process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _run(command: str, args: list[str]) -> int:
    name = f"relive {command}"
    try:
        module = importlib.import_module(f"relive.cli.{command}")
        unhush()
        code: int = module.run(args)
        return code
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "relive"):
            raise  # a bug of ours, which a traceback should show
        extra = "interop" if command in DATA_COMMANDS and missing in ("rich", "tyro") else "train"
        remedy = f"Install it: pip install 'relive[{extra}]'"
        return _refuse(name, f"expected the packages of the extra {extra!r}, got no module {missing!r}. {remedy}")
    except BrokenPipeError:
        raise
    except (ReplayError, OSError) as error:
        said = f"{error.filename}: {error.strerror}." if isinstance(error, OSError) and error.filename else str(error)
        return _refuse(name, " ".join([said, *getattr(error, "__notes__", ())]))
    except KeyboardInterrupt:
        return _refuse(name, "interrupted.", 130)


def _refuse(name: str, message: str, code: int = USAGE) -> int:
    print(f"{name}: {message}", file=sys.stderr)
    return code


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return (
        "usage: relive COMMAND ...\n\n"
        "Experience replay for reinforcement learning, and DQN trained with it.\n\n"
        f"commands:\n{commands}\n\n"
        "options:\n  -h, --help     show this text; `relive COMMAND --help` tells about a command\n"
        "  -V, --version  show the version\n\n"
        "examples:\n"
        "  relive train CartPole-v1\n"
        "  relive train LunarLander-v3 --seed 1 --dueling --learning-rate 5e-4\n"
        "  relive train CartPole-v1 --sampler prioritized\n"
        "  relive train LunarLander-v3 --actors 2\n"
        "  relive evaluate runs/CartPole-v1-0-001 --video cartpole.gif\n"
        "  relive plot runs/* --out curves.png\n"
        "  relive study capacity CartPole-v1 --steps 10000"
    )

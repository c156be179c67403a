"""`relive plot RUN...`: learning curves of several runs in one picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from relive.cli.options import parse
from relive.errors import ConfigError
from relive.train import plot_runs


@dataclass(frozen=True)
class Options:
    """What the command line can say."""

    run: Annotated[tuple[Path, ...], tyro.conf.arg(help_behavior_hint="(one or more)")]
    """Directories that `relive train` made; runs in the same environment share a panel."""
    out: Path = Path("curves.png")
    """PNG to write."""


def run(args: Sequence[str]) -> int:
    """Draw; returns the exit code."""
    options = parse(Options, args, prog="relive plot", description="Draw the learning curves of runs over one another.")
    if not options.run:
        raise ConfigError("expected at least one run directory, got none. See relive plot --help.")
    plot_runs(options.run, options.out)
    print(f"{options.out}: {len(options.run)} run{'s' if len(options.run) > 1 else ''}.")
    return 0

"""`relive collect ENV`: transitions of a random policy or of a run's, as a dataset."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from relive.cli.convert import tell
from relive.cli.counting import counted
from relive.cli.options import parse
from relive.errors import ConfigError
from relive.interop import write
from relive.interop.files import WriteFormat, check_target
from relive.train import load_config, load_policy
from relive.train.collect import collect
from relive.train.evaluate import Act
from relive.train.rundir import WEIGHTS

DESCRIPTION = (
    "Play and write down every transition, with its true final observations. The last episode is truncated where the "
    "steps are used up. Nothing is overwritten, and nothing is left behind if it is interrupted."
)


@dataclass(frozen=True)
class Options:
    """What the command line can say."""

    env: str
    """Gymnasium id."""
    out: Path | None = None
    """File or directory to write; needed. Its suffix says the format: .parquet, .npz, .hdf5 or .h5 (D4RL), .snapshot,
    .minari or none (Minari)."""
    policy: str = "random"
    """`random`, or the directory of a run of `relive train` in this environment."""
    steps: int = 10_000
    """Transitions, exactly."""
    num_envs: int = 1
    """Environments stepped together, each a lane of the dataset."""
    seed: int = 0
    """Of the environments and of random actions."""
    epsilon: float = 0.0
    """How often a run's policy takes a random action instead: data of mixed quality."""
    weights: Literal["best", "last"] | None = None
    """Weights of the run. None: those that it kept."""
    format: WriteFormat | None = None
    """Format to write. None: by the suffix."""


def run(args: Sequence[str]) -> int:
    """Play, write, and say what came of it; returns the exit code."""
    options = parse(Options, args, prog="relive collect", description=DESCRIPTION)
    if options.out is None:
        raise ConfigError("--out: expected the file or directory to write, got none.")
    kind = check_target(options.out, options.format)
    act, stack = _policy(options)
    source = collect(
        options.env,
        act,
        steps=options.steps,
        num_envs=options.num_envs,
        seed=options.seed,
        epsilon=options.epsilon,
        stack=stack,
    )
    print(f"Playing {options.steps:,} steps of {options.policy} in {options.env}.", flush=True)
    with counted(source, "steps") as shown:
        lost = write(shown, options.out, format=kind)
    print(f"{options.out} ({kind}): {options.steps:,} transitions of {options.policy} in {options.env}.")
    tell(source.notes, lost, kind)
    print(f"Look at it: relive info {options.out}")
    return 0


def _policy(options: Options) -> tuple[Act | None, int]:
    """The policy, and how many observations it wants stacked."""
    if options.policy == "random":
        if options.epsilon:
            raise ConfigError(f"--epsilon: expected 0 where all actions are random, got {options.epsilon}.")
        return None, 1
    run_dir = Path(options.policy)
    config = load_config(run_dir)
    if config.env != options.env:
        raise ConfigError(f"--policy: expected a run in {options.env}, got one in {config.env} ({run_dir}).")
    kept: Literal["best", "last"] = "best" if config.keep == "best" and (run_dir / WEIGHTS["best"]).exists() else "last"
    return load_policy(run_dir, options.weights or kept), config.stack

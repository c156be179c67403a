"""`relive check PATH`: what is wrong in a snapshot, a dataset, or a run's checkpoint; whether a run resumes exactly."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from relive.audit import check_path
from relive.cli.options import parse
from relive.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """What the command line can say."""

    path: Path
    """Snapshot, dataset (Minari, HDF5, Parquet, NPZ, Stable-Baselines3), or directory of a run."""
    format: str | None = None
    """Format of a dataset, where its looks do not tell."""
    trust_pickle: bool = False
    """Read a pickle of Stable-Baselines3. That runs whatever code its maker put into it."""
    json: bool = False
    """Print the report as JSON."""
    resume: bool = False
    """PATH is a run: prove that it resumes exactly, by training with its settings, killing and resuming."""
    steps: int | None = None
    """With --resume: steps of each training. None: about half a minute of them."""


def run(args: Sequence[str]) -> int:
    """Check and tell; returns 0, or 1 where there is an error."""
    description = (
        "Look for what is wrong in stored transitions: damaged files, NaN, lost final observations, resets stored as "
        "transitions, flags and actions that cannot be. Exit code 1 where an error is found; warnings alone give 0."
    )
    options = parse(Options, args, prog="relive check", description=description)
    if options.resume:
        return _prove(options)
    if options.steps is not None:
        raise ConfigError("--steps: expected --resume with it, got none. Datasets are read whole.")
    report = check_path(_transitions(options.path), format=options.format, trust_pickle=options.trust_pickle)
    print(json.dumps(report.to_dict(), indent=2) if options.json else report)
    return 0 if report.passes else 1


def _transitions(path: Path) -> Path:
    """Where the transitions lie: of a run, the snapshot in its checkpoint."""
    if not (path / "config.json").is_file():
        return path
    from relive.train.checkpoint import REPLAY
    from relive.train.rundir import CHECKPOINT

    snapshot = path / CHECKPOINT / REPLAY
    if not snapshot.is_dir():
        raise ConfigError(
            f"{path}: expected a run with a checkpoint, got one without: it keeps no transitions. Train with "
            "--checkpoint-every, or say --resume to prove that it resumes exactly."
        )
    return snapshot


def _prove(options: Options) -> int:
    from relive.train.prove import prove_resume

    proof = prove_resume(options.path, steps=options.steps, report=_say if not options.json else _be_quiet)
    if options.json:
        print(json.dumps({"passed": proof.passed, "differences": proof.differences}, indent=2))
        return 0 if proof.passed else 1
    for difference in proof.differences:
        print(f"  differs  {difference}")
    outcome = "Resumed exactly" if proof.passed else f"Not resumed exactly: {len(proof.differences)} differences"
    print(f"{outcome}: killed and resumed against trained through, {proof.config.steps:,} steps.")
    return 0 if proof.passed else 1


def _say(words: str) -> None:
    print(words, flush=True)


def _be_quiet(words: str) -> None:
    pass

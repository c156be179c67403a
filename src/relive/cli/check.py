"""`relive check PATH`: what is wrong in a snapshot, a dataset, or a run's checkpoint; whether a run resumes exactly."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from relive.audit import Check, Finding, Report, check_path
from relive.cli.options import parse
from relive.errors import ConfigError, SnapshotError
from relive.interop.files import ReadFormat

SHORTENED = ("steps", "offline_updates", "checkpoint_every", "capacity", "learning_starts", "update_every")
"""Settings of a run that a proof may cut, and that shape what is learned."""

CheckOrFinding = TypeVar("CheckOrFinding", Check, Finding)


@dataclass(frozen=True)
class Options:
    """What the command line can say."""

    path: Path
    """Snapshot, dataset (Minari, HDF5, Parquet, NPZ, Stable-Baselines3), or directory of a run."""
    format: ReadFormat | None = None
    """Format of the dataset. None: what it looks like."""
    trust_pickle: bool = False
    """Read a replay buffer that Stable-Baselines3 pickled. You should know where it comes from."""
    json: bool = False
    """Print the report as JSON."""
    resume: bool = False
    """PATH is a run: prove that it resumes exactly, by training with its settings, killing and resuming."""
    steps: int | None = None
    """With --resume: steps of each training. None: about half a minute of them.
    Of a run that learns from a dataset alone they are updates; where steps follow, half of them are."""


def run(args: Sequence[str]) -> int:
    """Check and tell; returns 0, or 1 where there is an error."""
    description = (
        "Look for what is wrong in stored transitions: damaged files, NaN, lost final observations, resets stored as "
        "transitions, flags and actions that cannot be. Exit code 1 where an error is found; warnings alone give 0. "
        "With --resume: prove that a run, killed at a random instant, would end bit for bit as if it never had been."
    )
    options = parse(Options, args, prog="relive check", description=description)
    if options.resume:
        return _prove(options)
    if options.steps is not None:
        raise ConfigError("--steps: expected --resume with it, got none. Datasets are read whole.")
    if (options.path / "config.json").is_file():
        report = _check_run(options.path)
    else:
        report = check_path(options.path, format=options.format, trust_pickle=options.trust_pickle)
    print(json.dumps(report.to_dict(), indent=2) if options.json else report)
    return 0 if report.passes else 1


def _check_run(path: Path) -> Report:
    """The report of a run's checkpoint: whether it is whole, and the transitions in it."""
    from relive.train.checkpoint import REPLAY, checkpoint_step, load_checkpoint
    from relive.train.rundir import CHECKPOINT, load_config

    config = load_config(path)
    whole = Check("checkpoint", "agent, loop and buffer are, byte for byte, as they were saved")
    try:
        if checkpoint_step(path) is None and not (path / CHECKPOINT).is_dir():
            raise ConfigError(
                f"{path}: expected a run with a checkpoint, got one without: it keeps no transitions. Train with "
                "--checkpoint-every, or say --resume to prove that it would resume exactly."
            )
        load_checkpoint(path, config)
    except SnapshotError as error:
        finding = Finding(whole.rule, "error", 1, None, str(error))
        return Report(f"{path}: checkpoint of a run", 0, (whole,), (finding,))
    replay = path / CHECKPOINT / REPLAY
    if config.ray is None:
        report = check_path(replay)
        notes = report.notes
        if config.offline is not None:
            empty = "" if report.num_transitions else "no step was made yet, the buffer is empty; "
            notes += (f"{empty}the dataset is no part of it: relive check {shlex.quote(config.offline)}",)
        checks = report.checks if report.num_transitions else report.checks[:1]  # of the bytes alone
        return replace(report, checks=(whole, *checks), notes=notes)
    # Each shard is a snapshot, and an episode lies in one of them.
    reports = [check_path(replay / f"shard-{shard:03d}") for shard in range(config.shards)]
    return Report(
        f"{path}: checkpoint of a run, {config.shards} shards",
        sum(one.num_transitions for one in reports),
        (whole, *(_of_shard(check, shard) for shard, one in enumerate(reports) for check in one.checks)),
        tuple(_of_shard(finding, shard) for shard, one in enumerate(reports) for finding in one.findings),
        tuple(dict.fromkeys(note for one in reports for note in one.notes)),
    )


def _of_shard(one: CheckOrFinding, shard: int) -> CheckOrFinding:
    return replace(one, rule=f"{one.rule} (shard {shard})")


def _prove(options: Options) -> int:
    from relive.train.prove import COMPARED, prove_resume
    from relive.train.rundir import extent_in_words, load_config

    proof = prove_resume(options.path, steps=options.steps, report=_say if not options.json else _be_quiet)
    if options.json:
        print(json.dumps({"passed": proof.passed, "differences": proof.differences}, indent=2))
        return 0 if proof.passed else 1
    for difference in proof.differences:
        print(f"  differs  {difference}")
    outcome = "Resumed exactly" if proof.passed else f"Not resumed exactly: {len(proof.differences)} differences"
    print(f"{outcome}: killed and resumed against trained through, {extent_in_words(proof.config)}.")
    ours, runs = proof.config.to_dict(), load_config(options.path).to_dict()
    cut = [name for name in SHORTENED if ours[name] != runs[name]]
    short = ", ".join(
        f"{name} {ours[name]:,} for {'none' if runs[name] is None else f'{runs[name]:,}'}" for name in cut
    )
    print(f"Compared, bit for bit: {COMPARED}.")
    print(f"Trained with the settings of the run{f', cut short: {short}' if short else ''}.")
    if proof.updates:
        print(f"Each training made {proof.updates:,} updates.")
    else:
        print("No update was made in so few steps: nothing was learned, and this proves little. Give more --steps.")
    return 0 if proof.passed else 1


def _say(words: str) -> None:
    print(words, flush=True)


def _be_quiet(words: str) -> None:
    pass

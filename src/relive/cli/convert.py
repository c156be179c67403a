"""`relive convert IN OUT`: a dataset in another format, and what that format has no place for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from relive.cli.counting import counted
from relive.cli.options import parse
from relive.interop import open, write
from relive.interop.files import ReadFormat, WriteFormat, check_target

DESCRIPTION = (
    "Read a dataset and write it in another format: Minari, HDF5 in D4RL's manner, Parquet, NPZ, or a snapshot of "
    "relive. Says what the source lacks and what the new format has no place for. Nothing is overwritten."
)


@dataclass(frozen=True)
class Options:
    """What the command line can say."""

    dataset: Path
    """File or directory to read."""
    out: Path
    """File or directory to write. Its suffix says the format: .parquet, .npz, .hdf5 or .h5 (D4RL), .snapshot, .minari
    or none (Minari)."""
    from_format: Annotated[ReadFormat | None, tyro.conf.arg(name="from")] = None
    """Format of the dataset. None: what it looks like."""
    to: WriteFormat | None = None
    """Format to write. None: by the suffix."""
    trust_pickle: bool = False
    """Read a replay buffer that Stable-Baselines3 pickled. You should know where it comes from."""


def run(args: Sequence[str]) -> int:
    """Convert, and say what was lost; returns the exit code."""
    options = parse(Options, args, prog="relive convert", description=DESCRIPTION)
    kind = check_target(options.out, options.to)
    source = open(options.dataset, format=options.from_format, trust_pickle=options.trust_pickle)
    with counted(source, "transitions") as shown:
        lost = write(shown, options.out, format=kind)
    print(
        f"{options.dataset} ({source.format}) -> {options.out} ({kind}): {source.num_transitions:,} transitions"
        f"{f' in {source.lanes} lanes' if source.lanes > 1 else ''}."
    )
    tell(source.notes, lost, kind)
    return 0


def tell(notes: Sequence[str], lost: Sequence[str], kind: str) -> None:
    """Print what the source lacks and what the format has no place for."""
    for note in notes:
        print(f"  source: {note}.")
    for words in lost:
        print(f"  {kind}: {words}.")

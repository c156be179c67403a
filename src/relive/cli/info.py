"""`relive info PATH`: what lies there: a dataset, a snapshot, or the directory of a run."""

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relive.cli.counting import counted
from relive.cli.options import parse
from relive.errors import ConfigError, SnapshotError
from relive.interop import Source, open
from relive.interop.buffers import PRIORITIES
from relive.interop.files import ReadFormat
from relive.interop.summary import Spread, Summary, summarise
from relive.schema import Field, leaves
from relive.snapshot import read_manifest
from relive.storage import format_bytes

if TYPE_CHECKING:
    from relive.dqn import TrainConfig

MOST_NOTE = 200
"""Characters of a note that are shown."""

DESCRIPTION = (
    "Say what lies at a path: of a dataset or snapshot its fields, transitions, episodes, returns, how episodes end, "
    "and what it lacks; of a run its settings, what it reached, and whether it can go on. A dataset is read once, from "
    "end to end, and so is the checkpoint of a run that has not come to its end."
)


@dataclass(frozen=True)
class Options:
    """What the command line can say."""

    path: Path
    """A dataset, a snapshot, or the directory of a run."""
    format: ReadFormat | None = None
    """Format of the dataset. None: what it looks like."""
    trust_pickle: bool = False
    """Read a replay buffer that Stable-Baselines3 pickled. You should know where it comes from."""


def run(args: Sequence[str]) -> int:
    """Look, and print a table; returns the exit code."""
    options = parse(Options, args, prog="relive info", description=DESCRIPTION)
    if options.format is None and (options.path / "config.json").is_file():
        rows = _of_run(options.path)
    else:
        source = open(options.path, format=options.format, trust_pickle=options.trust_pickle)
        with counted(source, "transitions") as shown:
            summary = summarise(shown)
        rows = _of_dataset(source, summary, options.path)
    width = max(len(name) for name, _ in rows)
    print(options.path)
    for name, words in rows:
        print(f"  {name:<{width}}  {words}")
    return 0


def _of_dataset(source: Source, summary: Summary, path: Path) -> list[tuple[str, str]]:
    size = size_on_disk(path)
    each = f" ({size / source.num_transitions:,.1f} B a transition)" if source.num_transitions else ""
    lanes = f" in {source.lanes} lanes" if source.lanes > 1 else ""
    plain = source.schema
    fields = [*leaves(plain.obs, "obs"), *leaves(plain.action, "action"), *plain.extras.items()]
    return [
        ("format", source.format),
        ("transitions", f"{source.num_transitions:,}{lanes}"),
        ("episodes", _episodes(summary)),
        ("flags", f"{summary.terminated:,} terminated, {summary.truncated:,} truncated, {summary.both:,} both"),
        ("returns", _spread(summary.returns)),
        ("lengths", _spread(summary.lengths)),
        ("rewards", _spread(summary.rewards)),
        *((name, _field(leaf)) for name, leaf in fields),
        *([("stacked", f"observations are stacks of {plain.stacked}")] if plain.stacked > 1 else []),
        ("on disk", format_bytes(size) + each),
        *(_of_snapshot(path) if source.format == "snapshot" else ()),
        *(("note", note) for note in source.notes if source.format != "snapshot" or note != PRIORITIES),
    ]


def _of_snapshot(path: Path) -> list[tuple[str, str]]:
    """What a snapshot holds besides its transitions."""
    manifest = read_manifest(path)
    buffer = manifest.buffer
    rows = [
        ("capacity", f"{buffer['capacity']:,}"),
        ("seed", f"{buffer['seed']}"),
        ("sampler", _axis(buffer["sampler"])),
        ("view", _axis(buffer["view"])),
    ]
    if any("-masses." in file.name for file in manifest.values):
        rows.append(("priorities", "as they were; relive.load brings them back"))
    if manifest.note is not None:
        said = json.dumps(manifest.note)
        rows.append(("saved with", f"note={said if len(said) <= MOST_NOTE else said[:MOST_NOTE] + '...'}"))
    return rows


def _axis(saved: dict[str, Any]) -> str:
    """A sampler or view as one would write it; options that are None are left away."""
    options = {key: value for key, value in saved.items() if key not in ("name", "custom") and value is not None}
    words = (
        f"{key}={_axis({'name': 'Hindsight', **value}) if isinstance(value, dict) else repr(value)}"
        for key, value in options.items()
    )
    return f"{saved['custom']} (code of its user)" if "custom" in saved else f"{saved['name']}({', '.join(words)})"


def _episodes(summary: Summary) -> str:
    said = f"{summary.episodes:,} that end"
    if summary.breaks:
        said += f" ({summary.breaks:,} of them without a flag, where something else follows)"
    if summary.open:
        said += f", {summary.open:,} that go on where the data end"
    return said


def _spread(spread: Spread) -> str:
    if not spread.count:
        return "-"
    return f"mean {spread.mean:.6g}, from {spread.low:.6g} to {spread.high:.6g}"


def _field(leaf: Field) -> str:
    shape = f" {leaf.shape}" if leaf.shape else ""
    low, high = leaf.bounds()
    if not low:
        return f"{leaf.itemdtype}{shape}"
    return f"{leaf.itemdtype}{shape} in [{min(low)}, {max(high)}]"


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files below a directory."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _of_run(path: Path) -> list[tuple[str, str]]:
    from relive.train.rundir import CONTENTS, RESULT, extent_in_words, load_config, status_in_words

    config = load_config(path)
    rows = [("a run", f"{config.env}, seed {config.seed}, {extent_in_words(config)}")]
    result, status = path / RESULT, ""
    if result.is_file():
        try:
            found = json.loads(result.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{result}: expected JSON, got something else ({error}).") from None
        if isinstance(found, dict):
            status = str(found.get("status"))
            found |= {"status": status_in_words(status, config)}
            rows += [(key, _value(value)) for key, value in found.items() if isinstance(value, str | int | float)]
    else:
        rows.append(("status", "no result yet: it is running, or was killed"))
    if status in ("", "interrupted"):
        rows.append(("to resume", _how_to_resume(path, config)))
    for pattern, what in CONTENTS.items():
        there = list(path.glob(pattern))
        if there:
            rows.append((pattern, f"{what}, {format_bytes(sum(map(size_on_disk, there)))}"))
    rows.append(("on disk", format_bytes(size_on_disk(path))))
    return rows


def _how_to_resume(path: Path, config: "TrainConfig") -> str:
    """What to do about a run that has not come to its end."""
    from relive.train.checkpoint import verified_step
    from relive.train.rundir import place_in_words

    try:
        step = verified_step(path, config)
    except SnapshotError as error:
        return f"impossible: {error}"
    if step is not None:
        return f"relive train --resume {shlex.quote(str(path))} (goes on from {place_in_words(config, step)})"
    return "impossible: " + ("no checkpoint yet" if config.checkpoint_every else "it makes no checkpoints")


def _value(value: str | int | float) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

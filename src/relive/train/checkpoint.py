"""What a run goes on from: agent, loop and buffer as they were at one step, committed as one.

The agent and the loop are written first, to a file of a new name; the buffer's snapshot names that file and its
checksum, so that the one rename which commits the snapshot commits both. Killed at any instant, the run has the
checkpoint before or the new one, whole.
"""

import hashlib
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import torch

import relive
from relive.assembly import Storage
from relive.dqn import TrainConfig
from relive.errors import ConfigError, SnapshotError
from relive.share.ray_union import MANIFEST as SHARDS
from relive.share.ray_union import read_note as read_union_note
from relive.snapshot import read_note, verify
from relive.train.rundir import CHECKPOINT, CURVE, RESULT, SUMMARY, WEIGHTS, place_in_words, save_weights, write_file
from relive.train.summary import versions

T = TypeVar("T")

REPLAY = "replay"
"""Snapshot of the buffer, in the directory of the checkpoint."""

FORMAT = 1

_ATTEMPTS = 20
"""How often to read a checkpoint of a run that makes newer ones meanwhile."""


@dataclass(frozen=True)
class Checkpoint:
    """All that a run is between two steps, but for its environments and actors, which begin anew."""

    step: int
    """How far it is: updates from a dataset alone, then environment steps."""
    agent: dict[str, Any]
    """`DQN.state_dict()`."""
    loop: dict[str, Any]
    """`LoopState.state_dict()`."""
    metrics: str
    """metrics.csv."""
    buffer: Any
    """`relive.train.acting.Replay`; of one that was read and lies in shards, the path, as Ray's hosts read it."""
    acting: dict[str, Any] = field(default_factory=dict)
    """`Acting.state_dict()`."""
    data: dict[str, Any] = field(default_factory=dict)
    """`Dataset.state_dict()`, of a run that learns from one."""


def save_checkpoint(run_dir: Path, config: TrainConfig, checkpoint: Checkpoint) -> None:
    """Make this the checkpoint of the run, in place of the one before.

    Raises:
        OSError: the disk refuses; the checkpoint before still stands.

    Cost: the agent whole, of the buffer what is new.
    """
    folder = run_dir / CHECKPOINT
    folder.mkdir(exist_ok=True)
    file = folder / f"agent-{checkpoint.step}.pt"
    state = {"config": config.to_dict(), "agent": checkpoint.agent, "loop": checkpoint.loop}
    state |= {name: some for name in ("acting", "data") if (some := getattr(checkpoint, name))}
    data = io.BytesIO()
    torch.save(state | {"metrics": checkpoint.metrics}, data)
    write_file(file, data.getvalue())
    note = {"relive run": FORMAT, "step": checkpoint.step, "agent": file.name, "sha256": _digest(data.getvalue())}
    checkpoint.buffer.save(folder / REPLAY, note=note | {"versions": versions()})
    for other in folder.glob("agent-*"):
        if other != file:
            other.unlink()


def checkpoint_step(run_dir: Path) -> int | None:
    """How far a run's checkpoint is, see `Checkpoint.step`; None if it has none.

    Raises:
        SnapshotError: it is damaged.
    """
    return _read_note(run_dir)["step"] if _exists(run_dir) else None


def other_versions(run_dir: Path) -> list[str]:
    """What the checkpoint was made with and is not installed here, as `torch 2.4.1 (here 2.5.0)`.

    Raises:
        SnapshotError: the checkpoint is damaged.
    """
    here = versions()
    made_with = _read_note(run_dir)["versions"].items()
    return [f"{name} {made} (here {here.get(name)})" for name, made in made_with if made != here.get(name)]


def load_checkpoint(run_dir: Path, config: TrainConfig, storage: Storage | None = None) -> Checkpoint:
    """Read a run's checkpoint, which may be training meanwhile. Runs no code that a stranger may have put into it.

    Args:
        run_dir: the run.
        config: its settings.
        storage: where the buffer is to live; this process's memory by default.

    Raises:
        ConfigError: there is none, or the settings are not those it was made with.
        SnapshotError: it is damaged, or its manifest is missing; or checkpoints come faster than one can be read.
    """
    if not _exists(run_dir):
        _refuse_none(run_dir, config)
    return _steadily(run_dir, lambda note: _load(run_dir, config, note, storage))


def verified_step(run_dir: Path, config: TrainConfig) -> int | None:
    """How far a run's checkpoint is, as `checkpoint_step`, once it is sure that every byte of it is as it was saved.

    Raises:
        SnapshotError: it is damaged, or its manifest is missing.

    Cost: reads all of it, in the memory that the agent takes.
    """
    if not _exists(run_dir):
        if _is_damaged(run_dir):
            _refuse_none(run_dir, config)
        return None

    def look(note: dict[str, Any]) -> int:
        _read_state(run_dir / CHECKPOINT / note["agent"], note["sha256"])
        replay = run_dir / CHECKPOINT / REPLAY
        for part in sorted(replay.glob("shard-*")) if _in_shards(run_dir) else [replay]:
            verify(part)
        step: int = note["step"]
        return step

    return _steadily(run_dir, look)


def _steadily(run_dir: Path, work: Callable[[dict[str, Any]], T]) -> T:
    """Read a checkpoint by its note; anew where the run made a newer one meanwhile.

    Raises:
        SnapshotError: it is damaged; or checkpoints come faster than one can be read.
    """
    note = _read_note(run_dir)
    for _ in range(_ATTEMPTS):
        found: T | None = None
        failed: SnapshotError | None = None
        try:
            found = work(note)
        except SnapshotError as error:
            failed = error
        newer = _read_note(run_dir)
        if newer == note:  # else a newer checkpoint came: files of ours may be gone, the buffer is perhaps the new one
            if failed is not None:
                raise failed
            return cast("T", found)
        note = newer
    raise SnapshotError(
        f"{run_dir}: expected a checkpoint that stands while it is read, got newer ones {_ATTEMPTS} times. "
        "Wait for the run to end, or copy it."
    )


def _load(run_dir: Path, config: TrainConfig, note: dict[str, Any], storage: Storage | None) -> Checkpoint:
    state = _read_state(run_dir / CHECKPOINT / note["agent"], note["sha256"])
    _check_config(run_dir, config, TrainConfig.from_dict(state["config"]))
    path = run_dir / CHECKPOINT / REPLAY
    buffer = relive.load(path, storage=storage) if config.ray is None else path
    more = {name: state.get(name, {}) for name in ("acting", "data")}
    return Checkpoint(note["step"], state["agent"], state["loop"], state["metrics"], buffer, **more)


def roll_back(run_dir: Path, best: dict[str, torch.Tensor] | None) -> None:
    """Take away what the run wrote after its checkpoint, but for its metrics; put the best weights of then back."""
    half_written = [path.name for path in run_dir.glob("*.new")]
    for name in (RESULT, SUMMARY, CURVE, WEIGHTS["last"], *half_written):
        (run_dir / name).unlink(missing_ok=True)
    if best is None:
        (run_dir / WEIGHTS["best"]).unlink(missing_ok=True)
    else:
        save_weights(run_dir, "best", best)


def _refuse_none(run_dir: Path, config: TrainConfig) -> NoReturn:
    """Say why there is no checkpoint."""
    every = config.checkpoint_every
    if _is_damaged(run_dir):
        raise SnapshotError(
            f"{_manifest(run_dir)}: expected the manifest of the checkpoint, found no such file: it is damaged, "
            "or the run was killed while it wrote its first, or writes it now. Put the file back from a copy, or train "
            "anew."
        )
    if every is None:
        why = f"--checkpoint-every N makes one every N {'updates, then steps' if config.offline else 'steps'}"
    else:
        why = f"its first was due at {place_in_words(config, every)}"
    raise ConfigError(f"{run_dir}: expected a run with a checkpoint, found none ({why}). Train it anew.")


def _is_damaged(run_dir: Path) -> bool:
    """Whether what there is of a checkpoint is more than a run leaves that was due none yet."""
    folder = run_dir / CHECKPOINT
    return folder.is_dir() and not (folder / REPLAY / SHARDS).exists()


def _manifest(run_dir: Path) -> Path:
    return run_dir / CHECKPOINT / REPLAY / "manifest.json"


def _exists(run_dir: Path) -> bool:
    return _manifest(run_dir).exists() or _in_shards(run_dir)


def _in_shards(run_dir: Path) -> bool:
    """Whether there is a checkpoint whose buffer lies in shards, which then have one manifest more."""
    path = run_dir / CHECKPOINT / REPLAY
    return (path / SHARDS).exists() and read_union_note(path) is not None  # None: nothing was saved yet


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read_note(run_dir: Path) -> dict[str, Any]:
    path = run_dir / CHECKPOINT / REPLAY
    note = read_union_note(path) if _in_shards(run_dir) else read_note(path)
    known = {"relive run": int, "step": int, "agent": str, "sha256": str, "versions": dict}
    if not isinstance(note, dict) or not all(isinstance(note.get(name), kind) for name, kind in known.items()):
        raise SnapshotError(
            f"{path}: expected the snapshot of a run's checkpoint, got another. Nothing to resume from."
        )
    if note["relive run"] != FORMAT:
        raise SnapshotError(
            f"{path}: expected a checkpoint of format {FORMAT}, got {note['relive run']}. Use its relive."
        )
    return note


def _read_state(path: Path, digest: str) -> dict[str, Any]:
    """What `save_checkpoint` wrote beside the snapshot, if every byte of it is there."""
    remedy = (
        "Put it back from a copy, or train anew. The transitions lie beside it: "
        f"{path.parent / REPLAY} is a dataset of its own."
    )
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise SnapshotError(f"{path}: expected the agent of the checkpoint, found no such file. {remedy}") from None
    if _digest(data) != digest:
        raise SnapshotError(
            f"{path}: expected the agent of the checkpoint as it was saved, got {len(data):,} bytes with another "
            f"SHA-256. The file was damaged or changed. {remedy}"
        )
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise SnapshotError(
            f"{path}: expected what `relive train` writes, got something else ({reason}). {remedy}"
        ) from None
    return state


def _check_config(run_dir: Path, now: TrainConfig, then: TrainConfig) -> None:
    """Refuse settings that were changed since."""
    if now != then:
        changed = [name for name, value in then.to_dict().items() if now.to_dict()[name] != value]
        raise ConfigError(
            f"{run_dir}: expected the settings of its checkpoint in config.json, got others ({', '.join(changed)}). "
            "Put them back: a run with other settings is another run."
        )

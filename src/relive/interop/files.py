"""Datasets by their path: which format it is, reading, writing without ever leaving half a file."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from relive.buffer import ReplayBuffer
from relive.durable import load
from relive.errors import ConfigError, DatasetError, ReplayError, SnapshotError
from relive.interop.buffers import PRIORITIES, fill, of_buffer
from relive.interop.d4rl import open_d4rl, write_d4rl
from relive.interop.minari import DATA, METADATA, write_minari
from relive.interop.minari_read import open_minari
from relive.interop.npz import open_npz, write_npz
from relive.interop.parquet import open_parquet, write_parquet
from relive.interop.sb3 import open_sb3
from relive.interop.source import Block, Source
from relive.mapped import CARD
from relive.samplers import BuiltIn, Prioritized, RankBased, Sampler, Uniform
from relive.snapshot import MANIFEST, read_manifest
from relive.storage import Memory
from relive.views import Hindsight, Transitions, View

FORMATS = ("minari", "d4rl", "parquet", "npz", "sb3", "snapshot")
"""What `open` reads."""

WRITABLE = ("minari", "d4rl", "parquet", "npz", "snapshot")
"""What `write` writes. Buffers of Stable-Baselines3 are filled by `sb3.to_sb3`."""

ReadFormat = Literal["minari", "d4rl", "hdf5", "parquet", "npz", "sb3", "snapshot"]
"""What a command line can say of a file that is there; `hdf5` is another name of d4rl."""

WriteFormat = Literal["minari", "d4rl", "hdf5", "parquet", "npz", "snapshot"]
"""What a command line can say of a file to be written."""

SUFFIXES = {
    **{".parquet": "parquet", ".npz": "npz", ".hdf5": "d4rl", ".h5": "d4rl"},
    **{".minari": "minari", ".snapshot": "snapshot", ".pkl": "sb3"},
}
"""Suffix -> format. A name without suffix is a directory of Minari's."""

_MAGIC = {b"\x89HDF": "d4rl", b"PAR1": "parquet", b"PK\x03\x04": "npz", b"PK\x05\x06": "npz"}
_PROTOCOLS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # a pickle begins with these


def open(path: str | os.PathLike[str], *, format: str | None = None, trust_pickle: bool = False) -> Source:
    """A dataset, to be read block by block.

    Args:
        path: of a file or directory: Minari's (also the directory above its `data`), HDF5 in D4RL's manner, Parquet,
            NPZ, a replay buffer that Stable-Baselines3 saved, or a snapshot of relive.
        format: one of `FORMATS`; None: what the path looks like from within.
        trust_pickle: whether the file may be a pickle. Only then is one opened, see `unpickle`.

    Returns:
        Source: its `notes` say what the file lacks.

    Raises:
        ConfigError: nothing there, an unknown format, a package that is not installed, a pickle without trust.
        DatasetError: the file is damaged, or no such dataset; names the file and the key.
    """
    place = Path(path)
    if not place.exists():
        raise ConfigError(f"{place}: expected a dataset, got nothing there.")
    _check_kind_of_file(place)
    kind = _known(format, FORMATS) if format is not None else detect(place)
    if kind == "minari":
        return _guarded(open_minari, _minari_dir(place))
    if kind == "snapshot":
        return _open_snapshot(place)
    if place.is_dir():
        raise ConfigError(f"{place}: expected a file of the format {kind}, got a directory.")
    if kind == "sb3":
        if not trust_pickle:
            raise ConfigError(
                f"{place}: expected a format without code, got a pickle. If you know where it comes from, say so: "
                "trust_pickle=True (--trust-pickle)."
            )
        return _guarded(open_sb3, place)
    openers: dict[str, Callable[[Path], Source]] = {"d4rl": open_d4rl, "parquet": open_parquet, "npz": open_npz}
    return _guarded(openers[kind], place)


_DAMAGE = (
    OSError,
    RuntimeError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    EOFError,
    MemoryError,
    zlib.error,
)
"""What the libraries of the formats raise at damaged bytes, where it was not foreseen key by key."""


def _guarded(opener: Callable[[Path], Source], path: Path) -> Source:
    """The source, whose errors name the file whatever library they come from."""
    with _naming(path):
        source = opener(path)

    def read() -> Iterator[Block]:
        blocks = source.blocks()
        while True:
            with _naming(path):
                block = next(blocks, None)
            if block is None:
                return
            yield block

    return replace(source, read=read)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (ReplayError, FileNotFoundError, PermissionError):
        raise
    except _DAMAGE as error:
        said = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise DatasetError(f"{path}: expected a dataset, got what cannot be read ({said}). It is damaged.") from None


def detect(path: Path) -> str:
    """The format of what lies there, by its first bytes or the files in it.

    Raises:
        ConfigError: none that is known.
    """
    if path.is_dir():
        if _is_snapshot(path):
            return "snapshot"
        if (_minari_dir(path) / METADATA).is_file():
            return "minari"
        raise ConfigError(f"{path}: expected a dataset, got {_other_directory(path)}")
    if path.name == DATA and (path.parent / METADATA).is_file():
        return "minari"
    _check_kind_of_file(path)
    with path.open("rb") as file:
        start = file.read(4)
    kind = _MAGIC.get(start) or ("sb3" if start[:2] in _PROTOCOLS else None)
    if kind is None and path.name in (METADATA, MANIFEST):
        raise ConfigError(f"{path}: expected a dataset, got a file that is a part of one. Use {path.parent}")
    if kind is None:
        what = f"a file that begins with {start!r}. It is of another kind, or damaged" if start else "an empty file"
        raise ConfigError(f"{path}: expected a dataset of one of {', '.join(FORMATS)}, got {what}.")
    return kind


def _check_kind_of_file(path: Path) -> None:
    """Refuses pipes, sockets and devices, which may never end and may not even be opened without waiting."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ConfigError(f"{path}: expected a file or directory, got a pipe, socket or device.")


def _other_directory(path: Path) -> str:
    """What a directory is that holds no dataset itself, and what to use instead."""
    replay = "checkpoint/replay" if (path / "config.json").is_file() else "replay"
    is_run = replay != "replay" or path.name == "checkpoint"
    if is_run and (path / replay / MANIFEST).is_file():
        of = "a run" if replay != "replay" else "a run's checkpoint"
        return f"the directory of {of}. The transitions in it are a snapshot: use {path / replay}"
    if is_run:
        return "the directory of a run that keeps no transitions. Train with --checkpoint-every, or use relive collect."
    if (path / CARD).is_file():
        return (
            "a buffer that lives in this directory. Open it in Python, buffer = relive.attach(path): buffer.save makes "
            "a snapshot of it, relive.interop.of_buffer(buffer) is a dataset."
        )
    if any((place / DATA).is_file() for place in (path, path / "data")):
        return (
            f"{DATA} without {METADATA}: Minari before 0.5 wrote such, or the copy is not whole. Load and save it with "
            "Minari 0.5 or later."
        )
    return f"a directory with neither {METADATA} (Minari) nor {MANIFEST} (snapshot)."


def _minari_dir(path: Path) -> Path:
    """Where metadata.json lies: the directory given, its `data`, or that of the file given."""
    if path.is_file():
        path = path.parent
    return path / "data" if not (path / METADATA).is_file() and (path / "data" / METADATA).is_file() else path


def _is_snapshot(path: Path) -> bool:
    manifest = path / "manifest.json"
    if not manifest.is_file():
        return False
    try:
        return bool(json.loads(manifest.read_text(encoding="utf-8"))["format"] == "relive snapshot")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return True  # a damaged one: let `load` say what is wrong with it


def _open_snapshot(path: Path) -> Source:
    """A snapshot is loaded into memory as a whole. Its own view and sampler may be of code that only its user has."""
    saved = read_manifest(path).buffer["sampler"]
    source = of_buffer(load(path, view=Transitions(), sampler=Uniform()), format="snapshot", path=path)
    keeps = "custom" in saved or saved["name"] in (Prioritized.__name__, RankBased.__name__)
    return replace(source, notes=(PRIORITIES,) if keeps else ())


def _known(format: str, choices: tuple[str, ...]) -> str:
    if format == "hdf5":
        return "d4rl"
    if format not in choices:
        raise ConfigError(f"format: expected one of {', '.join(choices)}, got {format!r}.")
    return format


def format_of_name(path: Path) -> str:
    """The format that a path to be written asks for by its suffix; without one, Minari's.

    Raises:
        ConfigError: a suffix of no format.
    """
    kind = SUFFIXES.get(path.suffix.lower()) if path.suffix else "minari"
    if kind is None and path.suffix[1:2].isdigit():  # dataset-v1.0 is no suffix
        kind = "minari"
    if kind is None:
        written = (suffix for suffix, kind in SUFFIXES.items() if kind in WRITABLE)
        raise ConfigError(
            f"{path}: expected a name that ends in one of {', '.join(written)}, or in none for a directory of "
            f"Minari's, got {path.suffix!r}. Or give the format."
        )
    return kind


def check_target(path: str | os.PathLike[str], format: str | None = None) -> str:
    """The format to write, once it is sure that it can be written there.

    Raises:
        ConfigError: something is there already, no such directory, an unknown format or one that is not written.
    """
    place = Path(path)
    kind = format if format is not None else format_of_name(place)
    if kind == "sb3":
        raise ConfigError(
            "format: expected one that is written, got 'sb3': relive writes no pickles. Fill a buffer of "
            "Stable-Baselines3 with relive.interop.to_sb3 and save that."
        )
    kind = _known(kind, WRITABLE)
    if place.exists() or place.is_symlink():
        raise ConfigError(f"{place}: expected a name that is free, got one that exists. Nothing is overwritten.")
    if not place.parent.is_dir():
        raise ConfigError(f"{place}: expected a directory that exists, got {place.parent}. Make it first.")
    return kind


def write(source: Source | ReplayBuffer, path: str | os.PathLike[str], *, format: str | None = None) -> tuple[str, ...]:
    """Writes a dataset, block by block. It appears under its name when it is whole, or not at all.

    Args:
        source: what to write; a buffer as `of_buffer` gives it.
        path: of the file, or of the directory for Minari and snapshots; nothing may be there.
        format: one of `WRITABLE`; None: by the suffix, see `SUFFIXES`.

    Returns:
        What this format has no place for, in words, each with what became of it: kept where relive alone reads it, or
        lost. Empty where any reader of the format gets all. What `source.notes` says is not said again.

    Raises:
        ConfigError: the path is taken, an unknown format, a package that is not installed.
        SchemaError: a dtype or name that the format cannot hold.
        DatasetError: the source is damaged.
        OSError: the disk is full, with the path as `filename`; or broken.

    Cost: one reading of the source; memory for a few blocks (a snapshot: for all of it).
    """
    kind = check_target(path, format)
    final = Path(path)
    source = of_buffer(source) if isinstance(source, ReplayBuffer) else source
    # Beside it, on the same disk: renamed when whole. A killed process leaves at most this directory behind.
    beside = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".partial", dir=final.parent))
    try:
        fresh = beside / final.name
        lost = _write(source, fresh, kind, final)
        for file in [fresh, *fresh.rglob("*")]:
            _sync(file)
        if final.exists():
            raise ConfigError(f"{final}: expected a name that is free, got one that appeared meanwhile.")
        fresh.rename(final)
        _sync(final.parent)
    except OSError as error:
        cause = error.__cause__ if isinstance(error, SnapshotError) else error
        if not isinstance(cause, OSError) or cause.errno not in _FULL:
            raise
        said = f"expected room to write it, got none ({os.strerror(cause.errno)}). Nothing of it is left there"
        raise OSError(cause.errno, f"{said}; make room, or write to another disk", str(final)) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return lost


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _write(source: Source, path: Path, kind: str, final: Path) -> tuple[str, ...]:
    if kind == "minari":
        return write_minari(source, path, final)
    if kind == "snapshot":
        buffer = fill(source)
        buffer.save(path)
        same = buffer.lanes == source.lanes
        return () if same else (f"{source.lanes} lanes of different lengths: they are one lane, one after another",)
    writers: dict[str, Callable[[Source, Path], tuple[str, ...]]] = {
        "d4rl": write_d4rl,
        "parquet": write_parquet,
        "npz": write_npz,
    }
    return writers[kind](source, path)


def _sync(path: Path) -> None:
    """Makes what was written outlast a power loss."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(
    path: str | os.PathLike[str],
    *,
    capacity: int | None = None,
    storage: Memory | None = None,
    view: View | Hindsight | None = None,
    sampler: BuiltIn | Sampler | None = None,
    seed: int | None = None,
    format: str | None = None,
    trust_pickle: bool = False,
) -> ReplayBuffer:
    """A dataset as a buffer.

    Lanes of different lengths become one: their episodes stand one after another. Rewards become float32.

    Args:
        path: see `open`.
        capacity: in transitions; as many as there are, by default. A smaller one keeps the newest.
        storage: of the buffer.
        view: of the buffer.
        sampler: of the buffer.
        seed: of the buffer.
        format: see `open`.
        trust_pickle: see `open`.

    Raises:
        ConfigError, DatasetError: see `open`.
        SchemaError: a value that no buffer may hold, such as an action out of its bounds.
    """
    source = open(path, format=format, trust_pickle=trust_pickle)
    return fill(source, capacity=capacity, storage=storage, view=view, sampler=sampler, seed=seed)

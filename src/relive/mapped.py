"""A buffer in a file: larger than memory, and still there after its process was killed."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import weakref
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive import disk
from relive._core import Core, Found, read_seal, release_all, write_seal
from relive.checks import as_path, integer
from relive.errors import ConfigError, SnapshotError
from relive.forking import Lock
from relive.saves import SAVES, Saves
from relive.snapshot import MANIFEST, frame, unframe

ARENA, CARD, SYNCED = "arena", "buffer.json", "synced.json"
_CARD_KIND, _SYNCED_KIND = "relive buffer", "relive synced lanes"


@dataclass(frozen=True)
class Mmap:
    """A file, mapped into memory: the system keeps what is used in memory and the rest on the disk.

    A new buffer makes the directory; `relive.attach(path)` opens it again, after a crash of the process with everything
    up to the last completed push. The machine's page cache is what makes that so: nothing waits for the disk.
    If the machine itself loses its power, what it had not written yet is lost, anywhere in the file: then only what
    `sync` had seen to is used, and without it nothing is.

    The space for full rings is reserved on the disk when the buffer is made. Final observations, one an ended episode,
    take theirs as they come: a disk that fills up then ends the process (SIGBUS), as with every mapped file.

    One process at a time. See docs/mmap.md for what each kind of crash costs.

    Attributes:
        path: a directory, new or empty.
        sync: at least 2. Everything is written out again and again, so that a power loss costs at most the newest
            `sync` transitions of each lane (or the last `extend`, if that was longer), and up to as many of the oldest
            ones of a full lane; priorities begin anew. A push that is due waits for the disk. None leaves it to the
            system.
    """

    path: str
    sync: int | None = None

    def __post_init__(self) -> None:
        as_path("Mmap", self.path)
        object.__setattr__(self, "path", os.fspath(self.path))
        if self.sync is not None:
            object.__setattr__(self, "sync", integer("Mmap", "sync", self.sync, 2, 2**40))

    def allocate(self, num_bytes: int, busy: Iterable[tuple[int, int]]) -> mmap.mmap:
        """Zeroed memory in a new file.

        Raises:
            ConfigError: there is a buffer already, or no room on the disk.
            SnapshotError: another process has the directory open.
        """
        path = Path(self.path)
        _refuse_another(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            file = _claim(path, os.O_CREAT)
        except SnapshotError:
            raise
        except OSError as error:
            raise ConfigError(
                f"Mmap: expected a directory to write to, got {path} ({error.strerror}). Give another path."
            ) from None
        try:
            _refuse_another(path)  # somebody may have made one, and closed it, before the file was ours
            _refuse_contents(path, file)
            for name in (SYNCED, SAVES):  # of one that was removed otherwise
                disk.remove(path / name)
        except BaseException:
            os.close(file)
            raise
        try:
            os.ftruncate(file, 0)
            os.ftruncate(file, num_bytes)
            for start, end in busy:
                if end > start:
                    os.posix_fallocate(file, start, end - start)
            return _map(file, num_bytes)
        except OSError as error:
            disk.remove(path / ARENA)
            os.close(file)
            raise ConfigError(
                f"Mmap: expected {num_bytes:,} bytes of room in {path}, got an error of the system ({error.strerror}). "
                "Choose a smaller capacity or another disk."
            ) from error

    def describe(self, card: dict[str, Any]) -> None:
        """Writes down what the buffer is: from now on it can be attached to."""
        disk.replace(Path(self.path), CARD, frame(_CARD_KIND, card))

    def discard(self) -> None:
        """Removes what was just allocated: no buffer came of it."""
        for name in (CARD, SYNCED, SAVES, ARENA):
            with contextlib.suppress(OSError):
                disk.remove(Path(self.path) / name)

    def open(self, num_bytes: int) -> mmap.mmap:
        """The memory of the buffer that is there.

        Raises:
            SnapshotError: none is, it is in use, or of another size.
        """
        path = Path(self.path) / ARENA
        try:
            file = _claim(path.parent, 0)
        except SnapshotError:
            raise
        except OSError as error:
            raise SnapshotError(
                f"{path}: expected a file to read and write, got an error of the system ({error.strerror})."
            ) from None
        try:
            size = os.fstat(file).st_size
            if size != num_bytes:
                raise SnapshotError(
                    f"{path}: expected {num_bytes:,} bytes, got {size:,}. The file was cut, or belongs to another "
                    "buffer; load a snapshot."
                )
            return _map(file, num_bytes)
        except SnapshotError:
            os.close(file)
            raise
        except (OSError, ValueError) as error:
            os.close(file)
            raise SnapshotError(
                f"{path}: expected a file that can be mapped, got an error of the system ({error})."
            ) from error


def read_card(path: Path) -> dict[str, Any]:
    """What the buffer of a directory is.

    Raises:
        SnapshotError: there is none, or its description is damaged.
    """
    card = _read(path / CARD, _CARD_KIND)
    if card is None:
        snapshot = os.path.lexists(path / MANIFEST)
        raise SnapshotError(
            f"{path}: expected the directory of a buffer with storage=Mmap(path), found no {CARD} in it. "
            + ("It is a snapshot: use relive.load." if snapshot else "Give the path that the buffer was made with.")
        )
    if not isinstance(card, dict):
        raise SnapshotError(f"{path / CARD}: expected the description of a buffer, got another text.")
    return card


def repair(path: Path, memory: mmap.mmap, core: Core, history: int) -> tuple[Found, int]:
    """Makes the buffer of a file whole, whoever left it. How its sampler's memory is found, and batches drawn if not.

    Raises:
        SnapshotError: the machine lost its power and nothing was synced; or the file is damaged.
    """
    clean, boot, _ = read_seal(memory)
    if clean:
        return Found.WHOLE, 0
    if boot == this_boot():
        good, found, draws = core.repair(), Found.TORN, 0
    else:
        trusted, draws = _trusted(path, core, history)
        Saves(path).forget()  # some of what was saved may be lost here
        good, found = core.keep(trusted), Found.ZEROED
    if not good:
        raise damaged(path)
    return found, draws


def damaged(path: Path) -> SnapshotError:
    """To be raised where the memory of a directory's buffer makes no sense."""
    return SnapshotError(
        f"{path / ARENA}: expected what a buffer leaves behind, got contents that contradict each other. The file is "
        "damaged; load a snapshot."
    )


def _trusted(path: Path, core: Core, history: int) -> tuple[NDArray[np.uint64], int]:
    """Transitions that are whole after a power loss: [lanes, 2], begin and head of each; and the batches drawn."""
    synced = _read(path / SYNCED, _SYNCED_KIND)
    if synced is None or len(synced["lanes"]) != core.num_lanes:
        raise SnapshotError(
            f"{path / ARENA}: expected a buffer that was closed, or synced before the machine went down, got neither. "
            "Any part of it may be lost; load a snapshot. Mmap(path, sync=N) bounds what can be lost."
        )
    rows = core.layout()["rows"]
    trusted = np.zeros((core.num_lanes, 2), np.uint64)
    for lane, (begin, head, going, _) in enumerate(synced["lanes"]):
        # The transition that an episode went on from changes when it ends; of those before it nothing does.
        settled = head - going
        # Time t is written to row t, and what follows it to row t + 1; rows come again after so many times. The last
        # time since was below head + further. The oldest transition needs the frames before it.
        intact = head + synced["further"] + 1 - rows + history
        trusted[lane] = min(settled, max(begin, intact)), settled
    return trusted, int(synced["draws"])


class Synced:
    """A core whose file is written out again and again: no more than `every` transitions of a lane are at stake.

    Stands in for the core where transitions are appended.
    """

    def __init__(self, core: Core, path: Path, every: int, draws: Callable[[], int]) -> None:
        self._core, self._path, self._draws = core, path.absolute(), draws
        self._further = every - 1  # besides those, the newest transition of an episode that goes on is at stake
        self._room = 0  # transitions that a lane may get until the next time
        self._lock = Lock()

    def append_one(self, lane: int, *values: Any) -> int | None:
        """See `Core.append_one`."""
        with self._lock:
            self._make_room(1)
            return self._core.append_one(lane, *values)

    def append_many(self, lane: int, mask: Any, priorities: Any, ids: NDArray[np.int64], *values: Any) -> bool:
        """See `Core.append_many`."""
        with self._lock:
            self._make_room(1 if lane < 0 else len(ids))
            return self._core.append_many(lane, mask, priorities, ids, *values)

    def clear(self) -> None:
        """See `Core.clear`."""
        with self._lock:
            lanes = np.zeros((self._core.num_lanes, 4), np.uint64)
            self._core.lanes(lanes, False)
            lanes[:, 0], lanes[:, 2] = lanes[:, 1], 0
            self._write(lanes, 0, self._draws())  # nothing is to be trusted once rows are being forgotten
            self._room = 0
            self._core.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def write_out(self, further: int = 0) -> None:
        """Writes everything out; then `further` more transitions of a lane may come, or as many as usual.

        Raises:
            SnapshotError: the disk failed.
        """
        lanes = np.zeros((self._core.num_lanes, 4), np.uint64)
        draws = self._draws()
        try:
            self._core.sync(lanes)
        except OSError as error:
            raise SnapshotError(
                f"{self._path / ARENA}: expected to be written out, got an error of the disk ({error.strerror}). "
                "Nothing was pushed."
            ) from error
        further = max(further, self._further)
        self._write(lanes, further, draws)
        self._room = further

    def _make_room(self, count: int) -> None:
        if self._room < count:
            self.write_out(count)
        self._room -= count

    def _write(self, lanes: NDArray[np.uint64], further: int, draws: int) -> None:
        content = {"lanes": lanes.tolist(), "further": further, "draws": draws}
        disk.replace(self._path, SYNCED, frame(_SYNCED_KIND, content))


def open_until_end(core: Core, memory: mmap.mmap) -> None:
    """Marks the file as open now, and as closed, all of it on the disk, when the core is gone or the process ends."""
    write_seal(memory, clean=False, boot=this_boot())
    memory.flush(0, mmap.PAGESIZE)  # or a power loss would find it closed, and any part of it lost
    weakref.finalize(core, _close, weakref.ref(core), memory, os.getpid())


def forget_synced(path: Path) -> None:
    """Whatever was synced will be overwritten without a word."""
    disk.remove(path / SYNCED)
    disk.sync_directory(path)


def _close(reference: weakref.ref[Core], memory: mmap.mmap, process: int) -> None:
    if os.getpid() != process:
        return  # a child of a fork ends; the buffer is its parent's
    core = reference()
    held: list[Core] = []
    try:
        if core is not None:
            core.hold(held)  # the process ends, and threads of it may be drawing yet
        with contextlib.suppress(OSError, ValueError):
            memory.flush()
            write_seal(memory, clean=True, boot=this_boot())
            memory.flush(0, mmap.PAGESIZE)
    finally:
        release_all(held)


def this_boot() -> int:
    """A number that is another one after the machine was started again."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        return 0  # not Linux: every crash is taken for one of the process
    return zlib.crc32(text) + 1


def _refuse_another(path: Path) -> None:
    if os.path.lexists(path / CARD):
        raise ConfigError(
            f"Mmap: expected a new directory, {path} holds a buffer. Open it with relive.attach, or remove it."
        )


def _refuse_contents(path: Path, file: int) -> None:
    """Keeps the memory of a buffer whose description is gone; one that was being made holds nothing yet."""
    size = os.fstat(file).st_size
    if size < mmap.PAGESIZE:
        return
    with contextlib.closing(mmap.mmap(file, size)) as memory:
        pushed = read_seal(memory)[2]
    if pushed:
        raise ConfigError(
            f"Mmap: expected a new directory, {path} holds the memory of a buffer that got {pushed:,} transitions, "
            f"without its {CARD}. Put that back from a copy and use relive.attach, or remove the directory."
        )


def _read(path: Path, kind: str) -> Any:
    """What a file says, None if there is none.

    Raises:
        SnapshotError: it is damaged, or cannot be read.
    """
    try:
        return unframe(path, kind)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except SnapshotError:
        raise
    except OSError as error:
        raise SnapshotError(f"{path}: expected a {kind}, got an error of the system ({error.strerror}).") from None


def _claim(path: Path, flags: int) -> int:
    """Opens the file; until it and its mapping are closed nobody else can.

    Raises:
        SnapshotError: somebody has, or there is none.
    """
    try:
        file = os.open(path / ARENA, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
    except FileNotFoundError:
        raise SnapshotError(f"{path / ARENA}: expected the memory of a buffer, found none. Load a snapshot.") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise SnapshotError(
            f"{path / ARENA}: expected a file that nobody has open, somebody has: another process, or a buffer of this "
            "one that is still referred to. End or drop that one first."
        ) from None
    return file


def _map(file: int, num_bytes: int) -> mmap.mmap:
    memory = mmap.mmap(file, num_bytes, mmap.MAP_SHARED)  # has the file open by itself, and with it the claim
    os.close(file)
    memory.madvise(mmap.MADV_RANDOM)  # a draw reads a page, not the hundred after it
    return memory

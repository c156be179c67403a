"""A buffer that was saved, or lies in a file: made again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from relive._core import Core
from relive.assembly import Spec, Storage
from relive.buffer import ReplayBuffer
from relive.checks import as_path
from relive.engine import check_axes
from relive.errors import ConfigError, SnapshotError
from relive.mapped import CARD, Mmap, read_card
from relive.reading import Reader
from relive.restoring import Restorer
from relive.samplers import BuiltIn, Sampler
from relive.schema import Schema
from relive.shared import Handle, SharedMemory, open_segment
from relive.snapshot import MANIFEST, Manifest, steadily
from relive.specs import sampler_from_dict, sampler_to_dict, view_from_dict, view_to_dict
from relive.storage import Memory, history
from relive.views import Hindsight, View

# What a description that means nothing, or harm, makes of itself.
_CONTRADICTIONS = (
    *(KeyError, IndexError, TypeError, ValueError, AttributeError),
    *(ArithmeticError, RecursionError, SyntaxError, MemoryError),
)


def load(
    path: str | os.PathLike[str],
    *,
    storage: Storage | None = None,
    view: View | Hindsight | None = None,
    sampler: BuiltIn | Sampler | None = None,
) -> ReplayBuffer:
    """A buffer as it was when it was saved: transitions, priorities, generator, counters, open episodes.

    What it does from then on is what the saved one would have done, bit for bit. `save` to the same directory goes on
    there. Nothing that is in the files is run. A directory that another process saves to may be loaded.

    Args:
        path: a directory that `ReplayBuffer.save` made.
        storage: where the bytes are to live; `Memory()` by default.
        view: in place of the saved one; needed if that has a reward function. It may stack no more frames.
        sampler: in place of the saved one; needed if that is the user's own. Another one than the saved one
            begins anew: no priorities, no uses; the generator goes on.

    Raises:
        SnapshotError: there is none, or it is damaged; says which file, and where.
        ConfigError: a view or sampler that cannot be.

    Cost: reads all of it once, in constant memory besides the buffer's own.
    """
    directory = as_path("load", path)
    place = Memory() if storage is None else storage
    return steadily(directory, lambda manifest: _load(directory, manifest, place, view, sampler))


def attach(
    path: str | os.PathLike[str] | Handle,
    *,
    sync: int | None = None,
    view: View | Hindsight | None = None,
    sampler: BuiltIn | Sampler | None = None,
) -> ReplayBuffer:
    """A buffer that is there: the one that another process shares, or the one that lies in a directory.

    By a handle (see `SharedMemory`): the same buffer as in the process that made it, with its transitions, priorities
    and counters, which both change. Batches are numbered across all processes, so that each is drawn once.

    By a path (see `Mmap`): the buffer that lies there, also after its process was killed, at any moment. Everything up
    to the last completed push is there, and priorities; a push that was cut short may have evicted the oldest
    transition of its lane already. After a power loss see `Mmap`. Further readers begin anew.

    Args:
        path: what `buffer.handle()` gave, or the directory of a buffer with `storage=Mmap(path)`.
        sync: see `Mmap`; as little a part of what is stored as it was then. None for a handle.
        view: needed if the buffer's has a reward function; then equal to it otherwise.
        sampler: needed if the buffer's is the user's own.

    Raises:
        SnapshotError: there is none, it is in use (a directory's), another one than the handle is of, another user's,
            or nothing of it can be trusted.
        ConfigError: another view or sampler than the buffer's. Use `reader` for those.

    Cost: by a handle nothing. By a path nothing after a clean end; else O(transitions), for the sums of priorities and
        the free places.
    """
    if isinstance(path, Handle):
        return _attach_shared(path, sync, view, sampler)
    directory = as_path("attach", path)
    storage = Mmap(str(directory), sync)
    spec = _same_spec(directory / CARD, read_card(directory), view, sampler)
    return ReplayBuffer._assembled(spec, storage, attach=True)


def _attach_shared(
    handle: Handle, sync: int | None, view: View | Hindsight | None, sampler: BuiltIn | Sampler | None
) -> ReplayBuffer:
    if sync is not None:
        raise ConfigError(f"attach: expected no sync with a handle, got {sync!r}. Shared memory is not on a disk.")
    segment = open_segment(handle)
    try:
        spec = _same_spec(Path(handle.name), segment.card, view, sampler)
        return ReplayBuffer._assembled(spec, SharedMemory(handle.name), segment=segment)
    except BaseException:
        segment.close()
        raise


def _same_spec(
    file: Path, card: dict[str, Any], view: View | Hindsight | None, sampler: BuiltIn | Sampler | None
) -> Spec:
    """What a buffer is that is to be attached to.

    Raises:
        SnapshotError: nothing that describes one.
        ConfigError: view or sampler are others than the buffer's.
    """
    spec = _spec(file, card, view, sampler)
    for name, there, given in (
        ("sampler", card["sampler"], sampler_to_dict(spec.sampler)),
        ("view", card["view"], view_to_dict(spec.view)),
    ):
        if _comparable(there) != _comparable(given):
            raise ConfigError(
                f"{name}: expected that of the buffer, {there}, got {given}. Use buffer.reader for another."
            )
    return spec


def _load(
    directory: Path,
    manifest: Manifest,
    storage: Storage,
    view: View | Hindsight | None,
    sampler: BuiltIn | Sampler | None,
) -> ReplayBuffer:
    card = manifest.buffer
    spec = _spec(directory / MANIFEST, card, view, sampler)
    kept = max(spec.schema.stacked, int(card["view"]["stack"])) - 1
    if history(spec.schema, spec.view) > kept:
        raise ConfigError(
            f"view: expected a stack of at most {kept + 1}, the frames that were saved before the oldest transition, "
            f"got {spec.view.stack}. Save with such a view."
        )
    anew, readers = not _same_selection(card, spec), 0

    def fill(core: Core, reading: Reader) -> None:
        nonlocal readers
        restorer = Restorer(directory, manifest, core, spec.schema)
        readers = restorer.readers
        restorer.fill()
        if anew:
            reading.resume(spec.seed, restorer.draws)
        else:
            restorer.select(reading.native)

    buffer = ReplayBuffer._assembled(spec, storage, fill=fill)
    buffer._goes_on_from(manifest, readers=readers, anew=anew)
    return buffer


def _spec(file: Path, card: dict[str, Any], view: View | Hindsight | None, sampler: BuiltIn | Sampler | None) -> Spec:
    """What a buffer was, with the user's view and sampler where given."""
    try:
        if view is None:
            view = view_from_dict(card["view"])
        if sampler is None:
            sampler = sampler_from_dict(card["sampler"])
        schema = Schema.from_dict(card["schema"])
        numbers = [card[name] for name in ("capacity", "lanes", "seed")]
        numbers_and_stack = [*numbers, card["view"]["stack"]]
        if not all(type(number) is int for number in numbers_and_stack) or not isinstance(card["sampler"], dict):
            raise TypeError(f"numbers expected, got {numbers}")
    except ConfigError as error:
        if str(error).startswith(("view:", "sampler:")):
            raise
        raise SnapshotError(f"{file}: expected what describes a buffer, got something else ({error}).") from None
    except _CONTRADICTIONS as error:
        raise SnapshotError(f"{file}: expected what describes a buffer, got something else ({error!r}).") from None
    checked = check_axes(view, sampler)
    return Spec(numbers[0], numbers[1], schema, checked[1], checked[0], numbers[2])


def _same_selection(card: dict[str, Any], spec: Spec) -> bool:
    """Whether what the saved sampler kept means the same under this view and sampler."""
    there, here = card["view"], _comparable(view_to_dict(spec.view))
    same_anchors = all(there.get(name) == here.get(name) for name in ("name", "length", "stride"))
    return same_anchors and _comparable(card["sampler"]) == _comparable(sampler_to_dict(spec.sampler))


def _comparable(data: dict[str, Any]) -> dict[str, Any]:
    """As it comes out of JSON; the name of a reward function says too little to be compared."""
    plain: dict[str, Any] = {name: list(value) if isinstance(value, tuple) else value for name, value in data.items()}
    relabel = plain.get("relabel")
    if isinstance(relabel, dict):
        plain["relabel"] = {name: value for name, value in relabel.items() if name != "reward_fn"}
    return plain

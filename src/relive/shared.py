"""A buffer that several processes of one machine have at once, in shared memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from relive.errors import ConfigError, SnapshotError
from relive.segment import FORMAT, Segment, check_name, draw_name

_KIND = "relive buffer"


@dataclass(frozen=True)
class SharedMemory:
    """Memory that other processes of the same user on this machine can attach to.

    The process that makes the buffer owns it: `buffer.handle()` is what others attach by, with `relive.attach`. All
    have the same buffer then: transitions, priorities, counters, one lock. The memory of full rings is taken when the
    buffer is made; final observations, one an ended episode, take theirs as they come. It is given back when the owner
    lets go of the buffer or ends, however it ends, and nobody is attached any more.

    A process may be killed at any moment: what it had pushed is there, what it was pushing is not, and whoever comes
    next goes on. See docs/shared.md.

    Attributes:
        name: at most 100 letters, digits, '-', '_' and '.'. One is drawn where none is given.
    """

    name: str = field(default_factory=draw_name)

    def __post_init__(self) -> None:
        check_name("SharedMemory", self.name)

    def allocate(self, card: dict[str, Any], num_bytes: int, busy: Iterable[tuple[int, int]]) -> Segment:
        """Zeroed memory of that name.

        Raises:
            ConfigError: the name is taken, or there is no room.
        """
        return Segment.create(self.name, _KIND, card, num_bytes, busy)


@dataclass(frozen=True)
class Handle:
    """What another process needs to attach to a buffer: small, to be pickled or passed as text. See `relive.attach`.

    Attributes:
        name: of the shared memory.
        key: of this one buffer; a later one of the same name has another.
        format: version of what lies there.
        schema: digest of the buffer's schema.
    """

    name: str
    key: int
    format: int
    schema: str


def handle_of(segment: Segment) -> Handle:
    """The handle of a buffer."""
    return Handle(segment.name, segment.key, FORMAT, _digest(segment.card))


def open_segment(handle: Handle) -> Segment:
    """The shared memory that a handle is of.

    Raises:
        ConfigError: no handle.
        SnapshotError: it is gone, or another one is in its place; another user's, version's or schema's; damaged.
    """
    if not isinstance(handle.key, int) or not isinstance(handle.schema, str):
        raise ConfigError(f"attach: expected a handle that buffer.handle() gave, got {handle!r}.")
    if handle.format != FORMAT:
        raise SnapshotError(
            f"attach: expected a handle of format {FORMAT}, got {handle.format!r}. All processes that share a buffer "
            "run the same relive."
        )
    segment = Segment.open(handle.name, _KIND, handle.key)
    if _digest(segment.card) != handle.schema:
        segment.close()
        raise SnapshotError(
            f"attach: expected a buffer of schema {handle.schema}, got one of {_digest(segment.card)} "
            f"({handle.name}). Take a new handle from the buffer."
        )
    return segment


def not_whole(name: str) -> SnapshotError:
    """To be raised where the memory of a buffer is not what its description says."""
    return SnapshotError(
        f"{name}: expected the memory of a buffer, got contents that contradict its description. It is damaged, or of "
        "another relive."
    )


def _digest(card: dict[str, Any]) -> str:
    text = json.dumps(card.get("schema"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

"""What a dataset is, whatever file it lies in: blocks of consecutive transitions, read as often as one likes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from relive.schema import Schema


@dataclass(frozen=True)
class Block:
    """Consecutive transitions of one lane, in order of time; a leading axis of T everywhere.

    The data are raw, as the file holds them, including what is wrong in them.

    Attributes:
        obs: arrays [T, *shape], nested as the schema's obs.
        action: likewise.
        reward: float32 or float64 [T].
        terminated: bool [T].
        truncated: bool [T].
        next_obs: as obs.
        extras: arrays [T, *shape] by name.
        lane: which environment.
    """

    obs: Any
    action: Any
    reward: NDArray[Any]
    terminated: NDArray[Any]
    truncated: NDArray[Any]
    next_obs: Any
    extras: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    lane: int = 0


@dataclass(frozen=True)
class Source:
    """A dataset that can be read block by block, as often as one likes, in bounded memory.

    Attributes:
        schema: what a transition is.
        num_transitions: of all lanes together.
        lanes: environments that were recorded side by side.
        format: "minari", "d4rl", "parquet", "npz", "sb3", "snapshot", "buffer".
        path: of the file or directory; None for what lies in memory.
        notes: what the file lacks or what had to be assumed, in words.
        read: makes a new iterator over the blocks; those of a lane come in order of time.
        counts: transitions of each lane; None where nobody has counted.
    """

    schema: Schema
    num_transitions: int
    lanes: int
    format: str
    path: Path | None
    notes: tuple[str, ...]
    read: Callable[[], Iterator[Block]]
    counts: tuple[int, ...] | None = None

    def blocks(self) -> Iterator[Block]:
        """The blocks, from the first."""
        return self.read()

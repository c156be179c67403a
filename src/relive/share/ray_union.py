"""Several buffers sampled as one: which of them gives each row, with what weight, under which id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive.errors import SnapshotError
from relive.samplers import BuiltIn, Prioritized
from relive.snapshot import unframe
from relive.trees import map_tree

MANIFEST = "shards.json"
FORMAT = "relive shards"
MAX_SHARDS = 126
_SHARD, _LIFE = 56, 48  # bits of an id below these numbers
_LOCAL = (1 << _LIFE) - 1
LIVES = 256  # of a shard, after which ids look alike


def choose(masses: NDArray[np.float64], n: int, sampler: BuiltIn, seed: int, number: int) -> NDArray[np.int64]:
    """Which shard gives each row of batch `number`: int64 [n].

    The shards' masses lie one after another. As one buffer would draw: `Prioritized` takes one point from each n-th of
    their sum, others take each point from all of it, independently. So a shard gives n * mass / sum rows on average,
    and what is exact within a shard is exact in the union. A pure function of its arguments.

    Args:
        masses: float64 [M], what draws are in proportion to, at least 0, not all 0.
        n: batch size.
        sampler: the union's.
        seed: of the union.
        number: of the batch.
    """
    fractions = np.random.Generator(np.random.Philox(key=seed, counter=number << 64)).random(n)
    if isinstance(sampler, Prioritized):
        fractions = (np.arange(n) + fractions) / n
    upto = np.cumsum(masses)
    last = int(np.flatnonzero(masses > 0)[-1])  # where rounding may lead beyond
    chosen: NDArray[np.int64] = np.minimum(np.searchsorted(upto, fractions * upto[-1], side="right"), last)
    return chosen


def weigh(likelihood: NDArray[np.float64], least: float, beta: float) -> NDArray[np.float32]:
    """Importance weights (N P(i))^-beta over their largest: float32 [n], never 0.

    Args:
        likelihood: float64 [n], above 0, in proportion to the probabilities that rows were drawn with.
        least: of all that could have been drawn, or of the batch, in the same unit.
        beta: how far they correct.

    Paper: Schaul et al. 2016 (arXiv:1511.05952), section 3.4.
    """
    quotient = least / likelihood
    with np.errstate(under="ignore"):
        if quotient.min() > np.finfo(np.float64).tiny:
            weight = quotient**beta
        else:
            weight = np.exp(beta * (np.log(least) - np.log(likelihood)))
        return np.maximum(weight, np.finfo(np.float32).tiny).astype(np.float32)


def name(ids: NDArray[np.int64], shard: int, life: int) -> NDArray[np.int64]:
    """The union's ids of a shard's own, which stay negative where they are."""
    prefix = ((shard + 1) << _SHARD) | ((life % LIVES) << _LIFE)
    return np.where(ids < 0, ids, ids | np.int64(prefix))


def parts_of(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The shard, its life and the shard's own id of each of the union's ids: int64 [B] each."""
    return (ids >> _SHARD) - 1, (ids >> _LIFE) % LIVES, ids & _LOCAL


def narrow(fields: dict[str, Any], overlaps: bool) -> dict[str, Any]:
    """The fields of a batch as they travel: each byte once.

    Sequences have obs and next_obs in all_obs. Where `overlaps`, the frames of next_obs are those of obs moved up by
    one, and a new one, which alone is kept.
    """
    if "all_obs" in fields:
        return {key: tree for key, tree in fields.items() if key not in ("obs", "next_obs")}
    if overlaps:
        return {**fields, "next_obs": map_tree(lambda leaf: np.ascontiguousarray(leaf[:, -1:]), fields["next_obs"])}
    return fields


def read_card(directory: Path) -> dict[str, Any]:
    """What a directory of shards says about itself.

    Raises:
        SnapshotError: it is none, or damaged.
    """
    try:
        content = unframe(directory / MANIFEST, FORMAT)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise SnapshotError(
            f"{directory}: expected the snapshot of a RayReplay, found no {MANIFEST}. Give a directory that its "
            "save made."
        ) from None
    if not isinstance(content, dict):
        raise SnapshotError(f"{directory / MANIFEST}: expected what describes a replay, got something else.")
    return content


def read_note(directory: Path) -> Any:
    """The note that `RayReplay.save` was given; None before the first."""
    return read_card(directory).get("note")

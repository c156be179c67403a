"""Priorities in a snapshot that nobody ever updated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relive.audit.report import Check, Finding
from relive.compression import library
from relive.disk import File
from relive.snapshot import Manifest

DRAWS = 100
"""Batches from which on a learner should have updated a priority."""

KEEPERS = ("Prioritized", "RankBased")
RULE = "priorities"


def check_priorities(path: Path, manifest: Manifest) -> tuple[tuple[Check, ...], tuple[Finding, ...]]:
    """Whether a sampler that keeps priorities was ever told any.

    Args:
        path: of a snapshot whose checksums are right.
        manifest: of it.

    Returns:
        The check, none for other samplers; at most one finding.

    Raises:
        OSError: its files are gone, because it was saved to meanwhile.
    """
    files = [file for file in manifest.values if "-masses." in file.name]
    if manifest.buffer.get("sampler", {}).get("name") not in KEEPERS or not files:
        return (), ()
    kept = _read(path, files[0])
    masses = kept[kept >= 0]  # below it, or NaN: no anchor of the view
    draws, highest = int(manifest.selector["draws"]), float(manifest.selector["largest"])
    zeros = int(np.count_nonzero(masses == 0))
    words = f"{len(np.unique(masses)):,} different ones of {len(masses):,} transitions, {zeros:,} of them 0"
    if draws < DRAWS or len(masses) < 2 or (masses != highest).any() or highest != 1.0:
        return (Check(RULE, words),), ()
    complaint = (
        f"all {len(masses):,} are those of new transitions, although {draws:,} batches were drawn: draws are uniform. "
        "Right only where nothing was learned from these transitions yet; else call "
        "buffer.update_priorities(batch.ids, abs_td) after each batch."
    )
    return (Check(RULE, words),), (Finding(RULE, "warning", len(masses), None, complaint),)


def _read(path: Path, file: File) -> NDArray[np.float64]:
    """A file of float64, compressed or not."""
    if file.name.endswith(".npy"):
        plain: NDArray[np.float64] = np.load(path / file.name, allow_pickle=False)
        return plain
    data = (path / file.name).read_bytes()[file.head :]
    return np.frombuffer(library().ZstdDecompressor().decompressobj().decompress(data), np.float64)

"""Which ids."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Uniform:
    """Every live transition alike, independently, with replacement (Lin 1992; Mnih et al. 2015, algorithm 1)."""

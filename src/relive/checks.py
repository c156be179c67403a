"""Values that users pass, checked where they are passed."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from relive.errors import ConfigError


def integer(owner: str, name: str, value: Any, low: int, high: int) -> int:
    """The value as an int.

    Raises:
        ConfigError: it is no integer in [low, high].
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{owner}: expected {name} to be an integer in [{low}, {high}], got {value!r}.")
    return int(value)


def number(owner: str, name: str, value: Any, low: float, high: float) -> float:
    """The value as a float.

    Raises:
        ConfigError: it is no number in [low, high], or not finite.
    """
    if value.__class__ is float and low <= value <= high and value < math.inf:
        return float(value)  # nearly always
    if (
        not isinstance(value, int | float | np.integer | np.floating)
        or isinstance(value, bool)
        or not _is_finite(value)
        or not low <= value <= high
    ):
        bounds = f"in [{low:g}, {high:g}]" if math.isfinite(high) else f"of at least {low:g}, finite"
        raise ConfigError(f"{owner}: expected {name} to be a number {bounds}, got {value!r}.")
    return float(value)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def as_path(owner: str, value: Any) -> Path:
    """The value as a path.

    Raises:
        ConfigError: it is none that the system knows.
    """
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise ConfigError(f"{owner}: expected the path of a directory, got {value!r}.")
    return Path(path)


def one_of(owner: str, name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuses another value.

    Raises:
        ConfigError: it is none of the choices.
    """
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{owner}: expected {name} to be one of {', '.join(map(repr, choices))}, got {value!r}.")

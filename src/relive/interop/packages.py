"""Packages of the extra `interop`, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from relive.errors import ConfigError

EXTRAS = {"h5py": "interop", "pyarrow": "interop", "PIL": "train"}
"""Package -> the extra that brings it."""


def require(name: str) -> Any:
    """The module.

    Raises:
        ConfigError: it is not installed; says what to install.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        raise ConfigError(
            f"{package}: expected it to be installed, got no such module ({error}). "
            f"Install it: pip install 'relive[{EXTRAS[package]}]'"
        ) from None

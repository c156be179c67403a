"""What a file of ours says about itself, as JSON: enough to give back the very same schema, lanes and dtypes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from relive.errors import DatasetError, ReplayError
from relive.schema import Schema

FORMAT = "relive dataset"
VERSION = 1


@dataclass(frozen=True)
class About:
    """What cannot be seen in the arrays.

    Attributes:
        schema: with `schema.lanes` lanes.
        reward: float32 or float64.
        rows: transitions in the file; says so a second time, where the format has no checksum for it.
    """

    schema: Schema
    reward: np.dtype[Any]
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "schema": self.schema.to_dict(),
            "reward": self.reward.str,
            "rows": self.rows,
        }

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict())


def from_json(text: Any, path: Path) -> About | None:
    """What `to_json` wrote; None where there is nothing.

    Raises:
        DatasetError: something else, or of a later version.
    """
    if text is None:
        return None
    try:
        return from_dict(json.loads(text), path)
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, ReplayError):
            raise
        raise DatasetError(f"{path}: expected JSON about the dataset, got something else ({error}).") from None


def from_dict(data: Any, path: Path) -> About:
    """What `to_dict` made.

    Raises:
        DatasetError: something else, or of a later version.
    """
    try:
        if data["format"] != FORMAT or data["version"] != VERSION:
            raise DatasetError(
                f"{path}: expected {FORMAT!r} of version {VERSION}, got {data['format']!r} of version "
                f"{data['version']!r}. A newer relive may read it."
            )
        reward = np.dtype(data["reward"])
        if reward not in (np.float32, np.float64):
            raise DatasetError(f"{path}: expected rewards of float32 or float64, got {reward}.")
        return About(Schema.from_dict(data["schema"]), reward, int(data["rows"]))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path}: expected what relive writes about a dataset, got other ({error}).") from None

"""What a replay is, apart from where and how it runs: checked, written down, divided among shards."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from relive import disk
from relive.arguments import check_seed
from relive.checks import integer
from relive.engine import check_axes
from relive.errors import ConfigError, SchemaError, SnapshotError
from relive.samplers import BuiltIn, Prioritized, Uniform
from relive.schema import Schema
from relive.share.ray_shard import Part
from relive.share.ray_union import FORMAT, MANIFEST, MAX_SHARDS, read_card
from relive.snapshot import frame
from relive.specs import sampler_from_dict, sampler_to_dict, view_from_dict, view_to_dict
from relive.storage import divide
from relive.views import Hindsight, View


@dataclass(frozen=True)
class Spec:
    """What a replay is; attributes as the arguments of `RayReplay`."""

    capacity: int
    lanes: int
    shards: int
    schema: Schema
    sampler: BuiltIn
    view: View
    seed: int

    @classmethod
    def checked(
        cls,
        capacity: int,
        schema: Schema,
        shards: int,
        lanes: int | None,
        sampler: BuiltIn | None,
        view: View | Hindsight | None,
        seed: int | None,
    ) -> Self:
        """What was asked for.

        Raises:
            ConfigError: a value or combination that makes no sense.
        """
        checked, axis = _check_axes(view, sampler)
        if not isinstance(schema, Schema):
            raise ConfigError(
                f"schema: expected a Schema, got {schema!r}. Shards have to know it before the first push."
            )
        capacity, lanes = divide(capacity, lanes, schema)
        shards = integer("RayReplay", "shards", shards, 1, min(MAX_SHARDS, lanes))
        seed = check_seed(secrets.randbits(64) if seed is None else seed)
        return cls(capacity, lanes, shards, schema, axis, checked, seed)

    @classmethod
    def read(cls, directory: Path, view: View | Hindsight | None) -> Self:
        """What a directory says that `RayReplay.save` made; the view in place of its own.

        Raises:
            SnapshotError: nothing whole is there.
            ConfigError: a view that cannot be, or is needed.
        """
        card = read_card(directory)
        try:
            schema, sampler = Schema.from_dict(card["schema"]), sampler_from_dict(card["sampler"])
            axis = view_from_dict(card["view"]) if view is None else view
            if card["seed"] is None or card["lanes"] is None:
                raise ValueError("it has no seed or lanes")
            return cls.checked(card["capacity"], schema, card["shards"], card["lanes"], sampler, axis, card["seed"])
        except (ConfigError, SchemaError) as error:
            if str(error).startswith("view:"):
                raise
            raise SnapshotError(f"{directory / MANIFEST}: expected what describes a replay, got {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SnapshotError(f"{directory / MANIFEST}: expected what describes a replay, got {error!r}.") from None

    def card(self) -> dict[str, Any]:
        """What `read` reads, to be framed."""
        return {
            **{"capacity": self.capacity, "lanes": self.lanes, "shards": self.shards, "seed": self.seed},
            "schema": self.schema.to_dict(),
            "sampler": sampler_to_dict(self.sampler),
            "view": view_to_dict(self.view),
        }

    def parts(self, directory: Path | None, every: float, source: Path | None) -> list[Part]:
        """What each shard is; makes the directory of their snapshots, if there is to be one.

        Raises:
            ConfigError: there cannot be one, or another replay has it.
            SnapshotError: what is there is damaged.
        """
        run, parts = secrets.token_hex(16), []
        for shard in range(self.shards):
            lanes = len(range(shard, self.lanes, self.shards))
            seed = int(np.random.SeedSequence([self.seed, shard]).generate_state(1, np.uint64)[0])
            parts.append(
                Part(
                    *(shard, self.capacity // self.lanes * lanes, lanes, replace(self.schema, lanes=lanes)),
                    *(self.sampler, self.view, seed, run),
                    None if source is None else place(source, shard),
                    None if directory is None else place(directory, shard),
                    every,
                )
            )
        if directory is not None:
            card = {**self.card(), "note": None}
            try:
                disk.make_directory(directory)
            except OSError as error:
                raise ConfigError(
                    f"snapshots: expected a directory, or a place for one, got {directory} ({error.strerror})."
                ) from None
            if (directory / MANIFEST).exists():
                there = read_card(directory)
                if source != directory or {**there, "note": None} != card:
                    raise ConfigError(
                        f"snapshots: expected no other replay's in {directory}, found some. Load them, or give another "
                        "directory."
                    )
            else:
                disk.replace(directory, MANIFEST, frame(FORMAT, card))
        return parts


def _check_axes(view: Any, sampler: Any) -> tuple[View, BuiltIn]:
    """The view and the sampler.

    Raises:
        ConfigError: a sampler whose draws from shards are not those of one buffer.
    """
    view, checked = check_axes(view, sampler)
    if not isinstance(checked, Uniform | Prioritized):
        reasons = {
            "RankBased": "a rank among the transitions of one shard is not the rank among all",
            "Shuffled": "each shard would walk epochs of its own",
            "Recent": "the newest of one shard are not the newest of all",
        }
        reason = reasons.get(type(checked).__name__, "it would have to see the anchors of all shards")
        raise ConfigError(f"sampler: expected Uniform or Prioritized, got {checked}; {reason}.")
    if checked.newest or checked.max_uses:
        raise ConfigError(
            f"sampler: expected neither newest nor max_uses, got {checked}; shards know neither what is newest of all, "
            "nor how many draws others have left."
        )
    return view, checked


def place(directory: Path, shard: int) -> Path:
    """Where a shard's snapshot is."""
    return directory / f"shard-{shard:03d}"

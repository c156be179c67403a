"""Unions to test: shards in this process, without Ray; and what a union's ids mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import relive
from model.kinds import Kind
from model.reference import Model, Row
from relive.append import collect, conform_all
from relive.share.ray_blocks import pack
from relive.share.ray_shard import Part, Shard
from relive.share.ray_union import choose, parts_of

SCHEMA = relive.Schema(relive.Field("float32", (1,)), relive.Field("int64"))


def part(number: int, lanes: int, lane_capacity: int, schema: relive.Schema = SCHEMA, **options: Any) -> Part:
    """What a shard is, of a union that is not there."""
    axes = {"sampler": relive.Uniform(), "view": relive.Transitions(), "seed": number, "run": "a run"}
    places = {"source": None, "directory": None, "every": 60.0}
    return Part(number, lanes * lane_capacity, lanes, replace(schema, lanes=lanes), **{**axes, **places, **options})


class Union:
    """Shards of these lengths, a lane each, one endless episode each; drawn from as `Draws` does, without Ray."""

    def __init__(self, lengths: list[int], capacity: int, seed: int = 0, **options: Any) -> None:
        from relive.share.ray_draws import Assembler

        self.shards = [
            Shard(part(number, 1, capacity, seed=1000 * seed + number, **options)) for number in range(len(lengths))
        ]
        self.sampler = self.shards[0]._part.sampler
        self.seed, self.drawn = seed, 0
        self.masses: Any = None  # what shares go by; None for those of the moment
        self.assembler = Assembler(self.shards[0]._part.view)
        for shard, length in enumerate(lengths):
            self.grow(shard, length)

    def grow(self, shard: int, count: int, **options: Any) -> None:
        """Pushes transitions to a shard."""
        if not count:
            return
        zeros = np.zeros((count, 1), np.float32)
        numbers = np.zeros(count, np.int64)
        given = (zeros, numbers, np.zeros(count), np.zeros(count, bool), np.zeros(count, bool), zeros, {})
        values = conform_all(SCHEMA, collect(SCHEMA, *given), count)
        first = self.shards[shard]._received.get(1, 0)
        self.shards[shard].push(1, first, [pack(SCHEMA, values, 0, options.get("priority"))])

    def sample(self, n: int, beta: float | None = None) -> relive.Batch:
        """The next batch of the union."""
        from relive.share.ray_draws import Group

        masses = self.masses
        if masses is None:
            masses = np.array([shard.hello().mass for shard in self.shards])
        chosen = choose(masses, n, self.sampler, self.seed, self.drawn)
        self.drawn += 1
        counts = np.bincount(chosen, minlength=len(self.shards))
        answers = {number: (shard.draw([int(counts[number])], 1.0, []), 0) for number, shard in enumerate(self.shards)}
        group = Group(n, [chosen], counts[None], masses, None, answers)
        return self.assembler.batch(group, 0, self.sampler, beta, "numpy", None)

    def update(self, ids: Any, raw: Any) -> None:
        """New priorities."""
        shard_of, _, own = parts_of(np.asarray(ids))
        for number, shard in enumerate(self.shards):
            rows = shard_of == number
            shard.update([(shard._life, own[rows], np.asarray(raw)[rows])])

    @property
    def ids(self) -> Any:
        """Of all live transitions, shard after shard."""
        return np.concatenate([shard._buffer.ids + ((number + 1) << 56) for number, shard in enumerate(self.shards)])


def rename(ids: Any, shards: int, lanes: int) -> Any:
    """The ids one buffer of so many lanes would have given to the transitions of a union."""
    shard, _, own = parts_of(np.asarray(ids))
    mine = np.array([len(range(number, lanes, shards)) for number in range(shards)])[shard]
    return own // mine * lanes + own % mine * shards + shard


def fields_of(kind: Kind, rows: list[Row]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A block of rows as `extend` takes it: values, and extras."""
    from model.driving import batched

    block = batched(rows)
    extras = {name: block.pop(name) for name in kind.extras}
    return block, extras


def expected(model: Model, ids: Any, view: Any) -> list[Row]:
    """Rows of the model, which keep the union's ids."""
    return [model.row(identity, view) for identity in ids]

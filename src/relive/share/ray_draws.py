"""Batches drawn from shards ahead of time: which shard gives which rows, what came back, and one batch of it all."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive.batch import Batch
from relive.errors import ConfigError, NotEnoughDataError, ShardError
from relive.parted import Pool, joined
from relive.samplers import BuiltIn, Prioritized
from relive.schema import Schema, leaves
from relive.share.ray_remote import Pending, Remote, gather, refresh
from relive.share.ray_shard import Answer
from relive.share.ray_union import choose, name, weigh
from relive.trees import map_fields, map_tree, obs_and_next
from relive.views import Sequences, View

_SIZES = 4  # batch sizes that draws are kept ahead for
_TWICE_BYTES = 1 << 21  # answers of this size are copied twice: that takes less than an operation a shard and column
_AHEAD_BYTES = 1 << 27  # of the object store, for batches of a size
_GROUP_BYTES = 1 << 22  # an answer of this size saves nothing more by being for several batches


@dataclass
class Group:
    """Batches that shards were asked for together.

    Attributes:
        size: rows of each.
        chosen: for each batch, the shard of each row, int64 [size].
        counts: for each batch, rows of each shard, int64 [batches, M].
        masses: of the shards, float64 [M], by which they were chosen.
        asked: the shards and their answers to come; None once they were waited for.
        answers: by shard, with the life it was in.
        place: of the next batch.
        parts: the answers as `Assembler` made them ready.
    """

    size: int
    chosen: list[NDArray[np.int64]]
    counts: NDArray[np.int64]
    masses: NDArray[np.float64]
    asked: list[tuple[Remote, Pending]] | None
    answers: dict[int, tuple[Answer, int]] = field(default_factory=dict)
    place: int = 0
    parts: _Parts | None = None

    @property
    def left(self) -> int:
        """Batches that were not taken."""
        return len(self.chosen) - self.place

    def is_whole(self, place: int) -> bool:
        """Whether all rows of a batch are there."""
        return all(
            count == 0 or (shard in self.answers and self.answers[shard][0].counts[place] == count)
            for shard, count in enumerate(self.counts[place].tolist())
        )


@dataclass
class _Parts:
    """Answers of a group, in the order of shards.

    Attributes:
        shards: which.
        starts: of each, where the rows of each batch begin, int64 [batches].
        before: of each, the rows of those before it.
        fields: of each; ids are the union's.
        likelihoods: of each: P of its rows, but for what all have in common.
        whole: the fields of all, one shard's after another's; None if they are too large to be copied once more.
    """

    shards: list[int]
    starts: list[NDArray[np.int64]]
    before: list[int]
    fields: list[dict[str, Any]]
    likelihoods: list[NDArray[np.float64]]
    whole: dict[str, Any] | None


class Draws:
    """Asks shards for batches, ahead of time where `in_flight` is above 0."""

    def __init__(
        self,
        remotes: Sequence[Remote],
        sampler: BuiltIn,
        view: View,
        seed: int,
        in_flight: int,
        timeout: float,
    ) -> None:
        self._remotes = remotes
        self._sampler, self._seed = sampler, seed
        self._episodic = is_episodic(view)
        self._in_flight, self._timeout = in_flight, timeout
        self._groups: dict[int, deque[Group]] = {}  # by batch size, in the order in which they were asked for
        self._bytes: dict[int, int] = {}  # of a batch, by its size
        self._number = 0  # of the next batch
        self.redrawn = 0

    def next(self, size: int) -> tuple[Group, int]:
        """The next batch: its group and place.

        Raises:
            NotEnoughDataError: no shard has anything that can be drawn.
            ShardError: none is there.
        """
        until = time.monotonic() + 2 * self._timeout  # for shards that do not answer, then for others that do
        groups = self._groups.pop(size, deque())
        self._groups[size] = groups  # the newest
        if len(self._groups) > _SIZES:
            del self._groups[next(iter(self._groups))]
        while True:
            self._ask(size, groups, until)
            group = groups[0]
            try:
                self._await(group)
            except BaseException:
                groups.clear()  # what a shard raised is raised once
                raise
            place, group.place = group.place, group.place + 1
            if not group.left:
                groups.popleft()
            if group.is_whole(place):
                return group, place
            self.redrawn += 1
            if time.monotonic() > until:
                raise ShardError(
                    f"sample({size}): expected shards that stay for as long as a draw, none did so in time."
                )

    def _ask(self, size: int, groups: deque[Group], until: float) -> None:
        """Sees to it that there is a group, and as many as may be ahead."""
        together = self._together(size)
        for remote in self._remotes:
            remote.look_again()
        ahead = min(self._in_flight, max(2, _AHEAD_BYTES // max(1, self._bytes.get(size, 1))))
        while not groups or sum(group.left for group in groups) + together <= ahead:
            masses = self._masses(size, until)
            numbers = range(self._number, self._number + together)
            self._number += together
            chosen = [choose(masses, size, self._sampler, self._seed, number) for number in numbers]
            counts = np.stack([np.bincount(shards, minlength=len(masses)) for shards in chosen])
            largest = max(remote.state.largest for remote in self._remotes if remote.state)
            asked = [
                (remote, remote.call("draw", counts[:, remote.number].tolist(), largest, remote.take_updates()))
                for remote in self._remotes
                # Those that give nothing say how they are, and are asked next time.
                if remote.up and (self._in_flight or counts[:, remote.number].any())
            ]
            groups.append(Group(size, chosen, counts, masses, asked))

    def _together(self, size: int) -> int:
        """Batches for which shards are asked at once: a call costs as much as many rows."""
        known = self._bytes.get(size)
        return (
            1 if known is None or self._episodic else max(1, min(self._in_flight // 2, _GROUP_BYTES // max(known, 1)))
        )

    def _masses(self, size: int, until: float) -> NDArray[np.float64]:
        """Of every shard that is there, float64 [M]; those away have none. Waits for one of them, if all are."""
        if self._in_flight == 0:
            refresh(self._remotes, self._timeout)
        masses = self._known()
        if masses.sum() == 0:
            refresh(self._remotes, self._timeout)
            masses = self._known()
        while not any(remote.up for remote in self._remotes):
            if time.monotonic() > until:
                raise ShardError(f"sample({size}): expected a shard to draw from, all {len(self._remotes)} are away.")
            time.sleep(0.02)
            for remote in self._remotes:
                remote.look_again()
            masses = self._known()
        if masses.sum() == 0:
            live = sum(remote.state.live for remote in self._remotes if remote.up and remote.state)
            away = sum(not remote.up for remote in self._remotes)
            raise NotEnoughDataError(
                f"sample({size}): 0 valid ids, the shards hold {live} transitions"
                + (f" ({away} of {len(self._remotes)} shards are away)." if away else ".")
            )
        return masses

    def _known(self) -> NDArray[np.float64]:
        return np.array([remote.state.mass if remote.up and remote.state else 0.0 for remote in self._remotes])

    def _await(self, group: Group) -> None:
        if group.asked is None:
            return
        asked, group.asked = group.asked, None
        for (remote, pending), answer in zip(asked, gather(asked, self._timeout), strict=True):
            if answer is not None and remote.heard(pending, answer.state):
                group.answers[remote.number] = (answer, remote.lives)
        if group.size not in self._bytes and group.is_whole(0):
            self._bytes[group.size] = sum(num_bytes(answer) for answer, _ in group.answers.values())


class Assembler:
    """Makes batches of shards' rows, in memory that is recycled."""

    def __init__(self, view: View) -> None:
        self._episodic = is_episodic(view)
        self._templates: dict[bool, dict[str, Any]] = {}  # a batch of no rows, without weights and with them
        self._pool = Pool()
        self._devices: set[str] = set()  # that tensors can go to

    def check(self, schema: Schema, output: str, device: Any) -> None:
        """Refuses an output that cannot be, before anything is drawn.

        Raises:
            ConfigError: it cannot.
        """
        if output == "numpy" and device is None:
            return
        if output != "torch":
            raise ConfigError(
                f"output: expected 'numpy', or 'torch' with or without a device, got {output!r}, {device=}."
            )
        if str(device) not in self._devices:
            from relive.tensors import check

            fields = (*leaves(schema.obs, "obs"), *leaves(schema.action, "action"), *schema.extras.items())
            check({leaf.itemdtype for _, leaf in fields}, device)
            self._devices.add(str(device))

    def batch(self, group: Group, place: int, sampler: BuiltIn, beta: float | None, output: str, device: Any) -> Batch:
        """The batch at this place of a group, which is whole."""
        parts = group.parts = group.parts or self._ready(group)
        rows = [np.flatnonzero(group.chosen[place] == shard) for shard in parts.shards]
        fields = self._fields(group.size, parts, place, rows, beta is not None)
        if beta is not None:
            fields["weight"][:] = _weights(group, parts, place, rows, sampler, beta)
        if output == "torch":
            from relive.tensors import to_torch

            fields = map_fields(lambda leaf: to_torch((leaf,), device)[0], fields)
        return Batch(fields)

    def _ready(self, group: Group) -> _Parts:
        parts = _Parts([], [], [], [], [], None)
        total = 0
        for shard, (answer, life) in sorted(group.answers.items()):
            if answer.fields is None:
                continue
            ids: dict[str, Any] = {
                key: name(answer.fields[key], shard, life) for key in ("ids", "goal_ids") if key in answer.fields
            }
            # P(i): the shard's share of the masses when shards were chosen, times the row's share of the shard's.
            shares = [group.masses[shard] / mass if mass else 0.0 for mass, _ in answer.sums]
            parts.shards.append(shard)
            parts.starts.append(np.cumsum([0, *answer.counts[:-1]]))
            parts.before.append(total)
            parts.fields.append({**answer.fields, **ids})
            parts.likelihoods.append(np.repeat(shares, answer.counts) * answer.masses)
            total += len(answer.masses)
        is_small = sum(num_bytes(answer) for answer, _ in group.answers.values()) <= _TWICE_BYTES
        if is_small and len(parts.shards) > 1 and not self._episodic and not _is_narrow(parts.fields[0]):
            parts.whole = {
                key: map_tree(lambda *leaves: np.concatenate(leaves), *(fields[key] for fields in parts.fields))
                for key in parts.fields[0]
            }
        return parts

    def _fields(
        self, size: int, parts: _Parts, place: int, rows: list[NDArray[np.int64]], weighted: bool
    ) -> dict[str, Any]:
        if self._episodic:  # every batch has its own length
            some = [(where, _with_windows(got)) for where, got in zip(rows, parts.fields, strict=True) if len(where)]
            return joined(size, some) | ({"weight": np.empty(size, np.float32)} if weighted else {})
        template = self._templates.get(weighted)
        if template is None:
            template = self._templates[weighted] = _template(parts.fields[0], weighted)
        fields = self._pool.take(template, size, weighted).fields()
        if parts.whole is not None:
            index = np.empty(size, np.int64)
            for where, starts, before in zip(rows, parts.starts, parts.before, strict=True):
                index[where] = np.arange(before + starts[place], before + starts[place] + len(where))
            for key, tree in parts.whole.items():
                map_tree(lambda to, leaf: np.take(leaf, index, axis=0, out=to, mode="clip"), fields[key], tree)
            return fields
        for where, starts, got in zip(rows, parts.starts, parts.fields, strict=True):
            if len(where):
                to_rows: Any = where
                if where[-1] - where[0] == len(where) - 1:
                    to_rows = slice(int(where[0]), int(where[-1]) + 1)
                _copy_rows(fields, to_rows, got, slice(int(starts[place]), int(starts[place]) + len(where)))
        return fields


def is_episodic(view: View) -> bool:
    """Whether every batch has its own length."""
    return isinstance(view, Sequences) and view.length == "episode"


def _is_narrow(fields: dict[str, Any]) -> bool:
    """Whether next_obs are the newest frames alone, see `ray_union.narrow`."""
    if "next_obs" not in fields:
        return False
    shapes: list[bool] = []
    map_tree(lambda obs, after: shapes.append(obs.shape != after.shape), fields["obs"], fields["next_obs"])
    return any(shapes)


def _copy_rows(fields: dict[str, Any], to_rows: Any, got: dict[str, Any], rows: slice) -> None:
    """Copies rows of an answer to where they belong."""
    narrow = _is_narrow(got)

    def put(to: NDArray[Any], leaf: NDArray[Any]) -> None:
        to[to_rows] = leaf[rows]

    def move_up(to: NDArray[Any], newest: NDArray[Any], obs: NDArray[Any]) -> None:
        to[to_rows, :-1] = obs[rows, 1:]
        to[to_rows, -1:] = newest[rows]

    for key, tree in got.items():
        if key == "next_obs" and narrow:
            map_tree(move_up, fields[key], tree, got["obs"])
        else:
            map_tree(put, fields[key], tree)


def _template(fields: dict[str, Any], weighted: bool) -> dict[str, Any]:
    """A batch of no rows."""
    trees = {key: map_tree(lambda leaf: leaf[:0].copy(), tree) for key, tree in fields.items()}
    if "next_obs" in trees:
        trees["next_obs"] = map_tree(np.copy, trees["obs"])
    if weighted:
        trees["weight"] = np.empty(0, np.float32)
    return _with_windows(trees)


def _with_windows(fields: dict[str, Any]) -> dict[str, Any]:
    if "all_obs" not in fields:
        return fields
    obs, next_obs = obs_and_next(fields["all_obs"])
    return {"obs": obs, "next_obs": next_obs, **fields}


def _weights(
    group: Group, parts: _Parts, place: int, rows: list[NDArray[np.int64]], sampler: BuiltIn, beta: float
) -> NDArray[np.float32]:
    """Importance weights of a batch, normalised over the union."""
    likelihood = np.empty(group.size)
    for where, starts, likelihoods in zip(rows, parts.starts, parts.likelihoods, strict=True):
        likelihood[where] = likelihoods[starts[place] : starts[place] + len(where)]
    least = float(likelihood.min())
    if isinstance(sampler, Prioritized) and sampler.normalize == "buffer":
        for shard, (answer, _) in group.answers.items():
            mass, smallest = answer.sums[place]
            if mass > 0 and group.masses[shard] > 0:
                least = min(least, group.masses[shard] / mass * smallest)
    return weigh(likelihood, least, beta)


def num_bytes(answer: Answer) -> int:
    """Of its rows."""
    sizes: list[int] = []
    for tree in (answer.fields or {}).values():
        map_tree(lambda leaf: sizes.append(leaf.nbytes), tree)
    return sum(sizes)

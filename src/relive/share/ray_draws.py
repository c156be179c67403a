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
from relive.share.ray_shard import Answer, Rows
from relive.share.ray_union import choose, name, weigh
from relive.trees import map_fields, map_tree, obs_and_next
from relive.views import Sequences, View

_SIZES = 4  # batch sizes that draws are kept ahead for
_GROUP_BYTES = 1 << 22  # an answer of this size saves nothing more by being for several batches


@dataclass
class Group:
    """Batches that shards were asked for together.

    Attributes:
        size: rows of each.
        chosen: for each batch, the shard of each row, int64 [size].
        masses: of the shards, float64 [M], by which they were chosen.
        asked: the shards and their answers to come; None once they were waited for.
        answers: by shard, with the life it was in.
        place: of the next batch.
    """

    size: int
    chosen: list[NDArray[np.int64]]
    masses: NDArray[np.float64]
    asked: list[tuple[Remote, Pending]] | None
    answers: dict[int, tuple[Answer, int]] = field(default_factory=dict)
    place: int = 0

    @property
    def left(self) -> int:
        """Batches that were not taken."""
        return len(self.chosen) - self.place

    def rows(self, place: int) -> list[tuple[int, NDArray[np.int64], Rows, int]] | None:
        """Of a batch: shards, the rows they give, those rows, and lives; None if some are missing."""
        parts = []
        for shard in np.unique(self.chosen[place]).tolist():
            answer = self.answers.get(shard)
            rows = answer[0].batches[place] if answer else None
            if answer is None or rows is None:
                return None
            parts.append((shard, np.flatnonzero(self.chosen[place] == shard), rows, answer[1]))
        return parts


class Draws:
    """Asks shards for batches, ahead of time where `in_flight` is above 0."""

    def __init__(self, remotes: Sequence[Remote], sampler: BuiltIn, seed: int, in_flight: int, timeout: float) -> None:
        self._remotes = remotes
        self._sampler, self._seed = sampler, seed
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
            if group.rows(place) is not None:
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
        while not groups or sum(group.left for group in groups) + together <= self._in_flight:
            masses = self._masses(size, until)
            numbers = range(self._number, self._number + together)
            self._number += together
            chosen = [choose(masses, size, self._sampler, self._seed, number) for number in numbers]
            counts = np.stack([np.bincount(shards, minlength=len(masses)) for shards in chosen])
            largest = max(remote.state.largest for remote in self._remotes if remote.state)
            asked = [
                (remote, remote.call("draw", counts[:, remote.number].tolist(), largest))
                for remote in self._remotes
                # Those that give nothing say how they are, and are asked next time.
                if remote.up and (self._in_flight or counts[:, remote.number].any())
            ]
            groups.append(Group(size, chosen, masses, asked))

    def _together(self, size: int) -> int:
        """Batches for which shards are asked at once: a call costs as much as many rows."""
        known = self._bytes.get(size)
        return 1 if known is None else max(1, min(self._in_flight // 2, _GROUP_BYTES // max(known, 1)))

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
        if group.size not in self._bytes:
            rows = [batch for answer, _ in group.answers.values() for batch in answer.batches if batch is not None]
            if rows:
                self._bytes[group.size] = sum(map(_num_bytes, rows))


class Assembler:
    """Makes batches of shards' rows, in memory that is recycled."""

    def __init__(self, view: View) -> None:
        self._episodic = isinstance(view, Sequences) and view.length == "episode"
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
        """The batch at this place of a group."""
        parts = group.rows(place)
        assert parts is not None  # `Draws` gives no other
        fields = self._fields(group.size, parts, beta is not None)
        for shard, rows, _, life in parts:
            for key in ("ids", "goal_ids"):
                if key in fields:
                    fields[key][rows] = name(fields[key][rows], shard, life)
        if beta is not None:
            fields["weight"][:] = _weights(group, parts, sampler, beta)
        if output == "torch":
            from relive.tensors import to_torch

            fields = map_fields(lambda leaf: to_torch((leaf,), device)[0], fields)
        return Batch(fields)

    def _fields(
        self, size: int, parts: list[tuple[int, NDArray[np.int64], Rows, int]], weighted: bool
    ) -> dict[str, Any]:
        if self._episodic:  # every batch has its own length
            some = [(rows, _with_windows(got.fields)) for _, rows, got, _ in parts]
            fields = joined(size, some)
            return fields | ({"weight": np.empty(size, np.float32)} if weighted else {})
        template = self._templates.get(weighted)
        if template is None:
            template = self._templates[weighted] = _template(parts[0][2].fields, weighted)
        fields = self._pool.take(template, size, weighted).fields()
        for _, rows, got, _ in parts:
            where: Any = slice(None) if len(rows) == size else rows
            if len(rows) > 1 and rows[-1] - rows[0] == len(rows) - 1:
                where = slice(rows[0], rows[-1] + 1)
            for key, tree in got.fields.items():
                map_tree(lambda to, leaf, where=where: _put(to, where, leaf), fields[key], tree)
            if "next_obs" in got.fields:
                map_tree(
                    lambda to, leaf, obs, where=where: _fill(to, where, leaf, obs),
                    *(fields["next_obs"], got.fields["next_obs"], got.fields["obs"]),
                )
        return fields


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


def _put(to: NDArray[Any], where: Any, leaf: NDArray[Any]) -> None:
    if to.shape[1:] == leaf.shape[1:]:
        to[where] = leaf


def _fill(to: NDArray[Any], where: Any, newest: NDArray[Any], obs: NDArray[Any]) -> None:
    """Frames of next_obs: those of obs moved up, and the newest; where they came so, see `ray_union.narrow`."""
    if to.shape[1:] != newest.shape[1:]:
        to[where, :-1] = obs[:, 1:]
        to[where, -1:] = newest


def _weights(
    group: Group, parts: list[tuple[int, NDArray[np.int64], Rows, int]], sampler: BuiltIn, beta: float
) -> NDArray[np.float32]:
    """P(i): the shard's share of the masses when shards were chosen, times the row's share of the shard's."""
    likelihood = np.empty(group.size)
    for shard, rows, got, _ in parts:
        likelihood[rows] = group.masses[shard] / got.mass * got.masses
    least = float(likelihood.min())
    if isinstance(sampler, Prioritized) and sampler.normalize == "buffer":
        drawn = {shard: (got.mass, got.least) for shard, _, got, _ in parts}
        for remote_number, (answer, _) in group.answers.items():
            mass, smallest = drawn.get(remote_number, (answer.state.mass, answer.state.least))
            if mass > 0 and group.masses[remote_number] > 0:
                least = min(least, group.masses[remote_number] / mass * smallest)
    return weigh(likelihood, least, beta)


def _num_bytes(rows: Rows) -> int:
    total = 0

    def add(leaf: NDArray[Any]) -> None:
        nonlocal total
        total += leaf.nbytes

    for tree in rows.fields.values():
        map_tree(add, tree)
    return total

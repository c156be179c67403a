"""Programs of pushes, ends, clears, draws and updates: the same for a buffer in a file, a twin in memory and the model,
and taken apart into what a kill can leave of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import relive
from model.compare import assert_rows
from model.driving import Step, batched, remember, transition
from model.kinds import KINDS, Kind
from model.reference import Model, Row, View, same_bytes

SHM = "/dev/shm" if Path("/dev/shm").is_dir() else None  # what is synced there costs nothing
LINKS, ENDS = ["continue"] * 14 + ["fresh", "almost"], [""] * 14 + ["terminated", "truncated", "both"]


@dataclass
class Call:
    """One call of a buffer, and the parts of it that the model is told one after the other."""

    name: str
    args: tuple[Any, ...] = ()
    options: Row = field(default_factory=dict)
    parts: list[Callable[[Model], None]] = field(default_factory=list)

    def __call__(self, buffer: Any) -> Any:
        return getattr(buffer, self.name)(*self.args, **self.options)

    def tell(self, model: Model) -> None:
        """All of it."""
        for part in self.parts:
            part(model)


def pusher(kind: Kind, row: Row, lane: int) -> Callable[[Model], None]:
    return lambda model: remember(kind, model, row, lane) and None


def emptier(lane: int) -> Callable[[Model], None]:
    return lambda model: model.history[lane].clear()


def ender(lane: int, lanes: int) -> Callable[[Model], None]:
    return lambda model: model.end_episodes([other == lane for other in range(lanes)]) and None


class Author:
    """Writes programs for one kind of transition, going on from a model."""

    def __init__(self, kind: Kind, sampler: Any, rng: np.random.Generator) -> None:
        self.kind, self.rng = kind, rng
        self.has_priorities = isinstance(sampler, relive.Prioritized | relive.samplers.RankBased)

    def write(self, model: Model, count: int, *, reads: bool = True) -> list[Call]:
        """So many calls; the model comes to know them."""
        calls = []
        for _ in range(count):
            call = self.call(model, reads)
            call.tell(model)
            calls.append(call)
        return calls

    def row(self, before: Any | None) -> Row:
        start, after, action, reward = self.rng.integers([97, 97, 6, 17]).tolist()
        link = LINKS[self.rng.integers(len(LINKS))]
        end = ENDS[self.rng.integers(len(ENDS))]
        row = transition(self.kind, Step(link, 3 + start, 3 + after, action, reward - 8, end), before)
        while link == "fresh" and before is not None and same_bytes(row["obs"], before):
            row = transition(self.kind, Step(link, 3 + int(self.rng.integers(97)), after, action, reward, end), before)
        return row

    def block(self, model: Model, lane: int, count: int) -> list[Row]:
        past = model.history[lane]
        rows: list[Row] = []
        for _ in range(count):
            rows.append(self.row(rows[-1]["next_obs"] if rows else past[-1]["next_obs"] if past else None))
        return rows

    def call(self, model: Model, reads: bool) -> Call:
        lanes, rng = model.lanes, self.rng
        what, lane = rng.random(), int(rng.integers(lanes))
        of_lane = {"lane": lane} if lanes > 1 else {}
        if what < 0.3:
            row = self.block(model, lane, 1)[0]
            return Call("push", (), {**row, **of_lane}, [pusher(self.kind, row, lane)])
        if what < 0.5 and lanes > 1:
            rows = [self.block(model, each, 1)[0] for each in range(lanes)]
            mask = rng.random(lanes) < 0.8
            parts = [pusher(self.kind, row, each) for each, row in enumerate(rows) if mask[each]]
            return Call("push", (), {**batched(rows), "mask": mask}, parts)
        if what < 0.72:
            rows = self.block(model, lane, int(rng.integers(1, 14)))
            return Call("extend", (), {**batched(rows), **of_lane}, [pusher(self.kind, row, lane) for row in rows])
        if what < 0.77:
            mask = rng.random(lanes) < 0.6
            return Call("end_episodes", (mask,), {}, [ender(each, lanes) for each in range(lanes) if mask[each]])
        if what < 0.785:
            return Call("clear", (), {}, [emptier(each) for each in range(lanes)])
        if reads and what < 0.9 and all(model.history):
            return Call("sample", (4,))
        if reads and self.has_priorities and model.ids:
            ids = rng.choice(model.ids, 6)
            return Call("update_priorities", (ids, rng.choice([0.0, 0.5, 1.0, 3.0, 50.0], 6)))
        return Call("push", (), {**(row := self.block(model, lane, 1)[0]), **of_lane}, [pusher(self.kind, row, lane)])


def attempt(call: Call, buffer: Any) -> None:
    """A draw may be refused: nothing is left to be drawn."""
    try:
        call(buffer)
    except relive.NotEnoughDataError:
        assert call.name == "sample"


def cut_off(model: Model, lane: int, head: int) -> None:
    """Forgets the transitions of a lane from time `head` on."""
    past = model.history[lane]
    while past and past[-1]["id"] // model.lanes >= head:
        past.pop()
    model.pushed[lane] = head


def check_rows(buffer: Any, model: Model, ids: list[int], stack: int = 1) -> None:
    """Every one of these transitions reads like the model's, alone and as a window of three."""
    for n in (1, 3):
        view = View(n, 0.5, stack)
        reader = buffer.reader(view=relive.Transitions(n, 0.5, stack), sampler=relive.Uniform())
        assert_rows(reader.get(np.array(ids, np.int64)), [model.row(identity, view) for identity in ids])


def settle(buffer: Any, model: Model) -> None:
    """Ends all episodes in both; a kill may have ended one that the model takes for open."""
    buffer.end_episodes()
    model.end_episodes([True] * model.lanes)
    for lane in range(model.lanes):
        live = [identity for identity in buffer.ids.tolist() if identity % model.lanes == lane]
        if live:
            model.history[lane][-1]["truncated"] = bool(
                buffer.reader(view=relive.Transitions(1), sampler=relive.Uniform()).get([live[-1]]).truncated[0]
            )
        else:
            model.history[lane].clear()


def push_on(author: Author, buffer: Any, model: Model, rounds: int) -> None:
    """New episodes in every lane, then a program; buffer and model agree after it."""
    for lane in range(model.lanes):
        row = author.row(None)
        past = model.history[lane]
        while past and same_bytes(row["obs"], past[-1]["next_obs"]):
            row = author.row(None)
        call = Call(
            "push", (), {**row, **({"lane": lane} if model.lanes > 1 else {})}, [pusher(author.kind, row, lane)]
        )
        call(buffer)
        call.tell(model)
    for call in author.write(model, rounds):
        attempt(call, buffer)


def stripped(model: Model) -> Model:
    """A copy that forgets what nothing can read any more; transitions are the copy's own."""
    result = copy.copy(model)
    result.pushed = list(model.pushed)
    result.history = []
    for past in model.history:
        first = max(0, len(past) - model.depth)
        while first > 0 and not past[first]["first"]:
            first -= 1
        result.history.append([dict(row) for row in past[first:]])
    return result


def kind_of(name: str) -> Kind:
    return KINDS[name]

"""The operations, each with its contestants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import relive
from others import Other
from timing import Run, calls, interleave, median, ratio
from workloads import W1, Workload, fill, lane_steps, pushes, steps

LANES = 16
SIZES = (32, 256, 4096)
MAX_FRAME_BATCH = 256
GROWTH_CAPACITIES = (10_000, 100_000, 1_000_000, 10_000_000)

FLOOR, FLOOR_IN_C, ALLOC, RELIVE = "floor", "floor in C", "floor+alloc", "relive"
_IN_C = 16  # calls without Python in between
FIVE_FRAMES = "floor, five frames"  # each distinct frame once, for two overlapping views: less than relive gives


@dataclass
class Row:
    """One operation.

    Attributes:
        name: workload and operation.
        microseconds: median of the rounds, by contestant.
        times_floor: relive over the floor; the median over rounds of their ratio, as is the next one.
        times_alloc: relive over floor+alloc; None where an operation makes no arrays.
        rounds: how many there were.
        bytes: of a batch, where the operation is mostly copying.
    """

    name: str
    microseconds: dict[str, float]
    times_floor: float
    times_alloc: float | None
    rounds: int
    bytes: int | None = None


@dataclass(frozen=True)
class Bench:
    """How to measure, and what.

    Attributes:
        only: a part of the names wanted; all where it is empty.
        seconds: for each operation.
        floor: makes a floor of (workload, capacity, lanes).
        others: other libraries, by name.
    """

    only: str
    seconds: float
    floor: Callable[[str, int, int], Any]
    others: dict[str, type[Other]]

    def wants(self, name: str) -> bool:
        """True if this operation was asked for."""
        return self.only.lower() in name.lower()

    def others_for(self, workload: Workload) -> dict[str, type[Other]]:
        """Other libraries, where they do the same work."""
        return self.others if workload.is_plain else {}

    def row(self, name: str, contestants: dict[str, Run], in_c: int = 1) -> Row:
        """Measures one operation; a call of "floor in C" does it `in_c` times."""
        rounds = interleave(contestants, self.seconds)
        if FLOOR_IN_C in rounds:
            rounds[FLOOR_IN_C] = [value / in_c for value in rounds[FLOOR_IN_C]]
        return Row(
            name,
            {key: median(values) for key, values in rounds.items()},
            ratio(rounds[RELIVE], rounds[FLOOR]),
            ratio(rounds[RELIVE], rounds[ALLOC]) if ALLOC in rounds else None,
            len(rounds[RELIVE]),
        )


def measure_push(bench: Bench, workload: Workload) -> list[Row]:
    """One transition, then one step of 16 lanes, into buffers that are nearly empty. Nothing but ids is made."""
    rows = []
    name = f"{workload.name} push one"
    if bench.wants(name):
        floor, buffer = bench.floor(workload.name, workload.capacity, 1), workload.buffer(workload.capacity)
        obs, action, reward, terminated, truncated = workload.arrays(256)
        block = (obs[:-1], action, reward, terminated, truncated, obs[1:])
        contestants = {
            FLOOR: pushes(floor.push, steps(workload)),
            FLOOR_IN_C: calls(partial(floor.extend, *block)),
            RELIVE: pushes(buffer.push, steps(workload)),
        }
        for other, make in bench.others_for(workload).items():
            contestants[other] = pushes(make(workload).push, steps(workload))
        rows.append(bench.row(name, contestants, in_c=256))
    name = f"{workload.name} push {LANES} lanes"
    if bench.wants(name):
        capacity = workload.capacity // LANES * LANES
        floor, buffer = bench.floor(workload.name, capacity, LANES), workload.buffer(capacity, LANES)

        def push(obs: Any, action: Any, reward: Any, terminated: Any, next_obs: Any, truncated: Any) -> None:
            buffer.push(obs, action, reward, terminated, next_obs, truncated=truncated)

        contestants = {
            FLOOR: pushes(floor.push_lanes, lane_steps(workload, LANES)),
            RELIVE: pushes(push, lane_steps(workload, LANES)),
        }
        rows.append(bench.row(name, contestants))
    return rows


def measure_samples(bench: Bench, workload: Workload) -> list[Row]:
    """Batches to NumPy and to torch, from full buffers."""
    names = {
        (size, output): f"{workload.name} sample {size} to {output}"
        for size in SIZES
        for output in ("NumPy", "torch")
        if size <= MAX_FRAME_BATCH or not workload.has_frames
    }
    names = {key: name for key, name in names.items() if bench.wants(name)}
    if not names:
        return []
    floors = {name: bench.floor(workload.name, workload.capacity, 1) for name in (FLOOR, FLOOR_IN_C, ALLOC)}
    buffer = workload.buffer(workload.capacity)
    others = {name: make(workload) for name, make in bench.others_for(workload).items()}
    fill([*floors.values(), buffer, *others.values()], workload, workload.capacity)
    rows = []
    for (size, output), name in names.items():
        contestants = sample_contestants(workload, floors, buffer, size, output)
        if output == "torch":
            contestants |= {key: calls(partial(other.sample, size)) for key, other in others.items()}
        rows.append(bench.row(name, contestants, in_c=_IN_C))
    return rows


def sample_contestants(
    workload: Workload, floors: dict[str, Any], buffer: relive.ReplayBuffer, size: int, output: str
) -> dict[str, Run]:
    """The floor writes to the same arrays always; floor+alloc makes new ones, of the same fields as relive's batch.

    Each has records of its own: nobody finds those of a rival in the cache.
    """

    def alloc() -> list[Any]:
        arrays = workload.outputs(size)
        floors[ALLOC].sample_into(size, *arrays)
        return arrays

    floors[FLOOR].bind(*workload.outputs(size))
    contestants = {FLOOR: calls(partial(floors[FLOOR].sample, size))}
    if size == SIZES[0]:
        floors[FLOOR_IN_C].bind(*workload.outputs(size))
        contestants[FLOOR_IN_C] = calls(partial(floors[FLOOR_IN_C].sample_often, size, _IN_C))
    if workload.has_frames:
        five = workload.outputs(size, frames=workload.view.stack + 1)
        five[5] = None
        contestants[FIVE_FRAMES] = calls(partial(floors[FLOOR].sample_into, size, *five))
    if output == "NumPy":
        return contestants | {ALLOC: calls(alloc), RELIVE: calls(partial(buffer.sample, size))}
    return contestants | {
        ALLOC: calls(lambda: [torch.from_numpy(array) for array in alloc()]),
        RELIVE: calls(partial(buffer.sample, size, output="torch")),
    }


def measure_growth(bench: Bench) -> list[dict[str, float]]:
    """A sample of 256 of W1 against the capacity: does relive grow faster than the memory it must touch?"""
    if not bench.wants("growth"):
        return []
    contestants = {}
    for capacity in GROWTH_CAPACITIES:
        floor, buffer = bench.floor(W1.name, capacity, 1), W1.buffer(capacity)
        fill([floor, buffer], W1, capacity)
        floor.bind(*W1.outputs(256))
        contestants[f"{FLOOR} {capacity}"] = calls(partial(floor.sample, 256))
        contestants[f"{RELIVE} {capacity}"] = calls(partial(buffer.sample, 256))
    rounds = interleave(contestants, bench.seconds * len(GROWTH_CAPACITIES))
    smallest = GROWTH_CAPACITIES[0]
    rows = []
    for capacity in GROWTH_CAPACITIES:
        row: dict[str, float] = {"capacity": capacity}
        for name in (FLOOR, RELIVE):
            here, base = rounds[f"{name} {capacity}"], rounds[f"{name} {smallest}"]
            row[name] = median(here)
            row[f"{name} growth"] = ratio(here, base)
            row[f"{name} added"] = median([a - b for a, b in zip(here, base, strict=True)])
        rows.append(row)
    return rows

"""Priorities, sequences, hindsight and the other samplers: against their floors, or beside one another."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

import relive
from measures import ALLOC, FLOOR, RELIVE, Bench, Row
from others import CpprbPrioritized, prioritized_installed
from timing import Run, calls, interleave, median, ratio
from workloads import PRIORITIZED, SEQUENCES, W1, Workload, fill, fill_goals

BATCH = 256
NUM_SEQUENCES = 64
BETA = 0.4
OUTPUTS = ("NumPy", "torch")
UNIFORM, TRANSITIONS, HINDSIGHT, REWARDS = "Uniform()", "Transitions()", "Hindsight", "its reward_fn alone"
_POOL = 1_000  # batches of ids to update, so that their masses are not in the cache


@dataclass
class Comparison:
    """Contestants beside one another, where there is no floor.

    Attributes:
        title: the operation.
        base: whom the others are compared with.
        microseconds: median of the rounds, by contestant.
        times: over the base; the median over rounds of the ratio.
    """

    title: str
    base: str
    microseconds: dict[str, float]
    times: dict[str, float]


def compare(bench: Bench, title: str, contestants: dict[str, Run]) -> Comparison:
    """Measures them; the first one is the base."""
    return _compared(title, interleave(contestants, bench.seconds))


def _compared(title: str, rounds: dict[str, list[float]]) -> Comparison:
    base = next(iter(rounds))
    medians = {name: median(values) for name, values in rounds.items()}
    return Comparison(title, base, medians, {name: ratio(values, rounds[base]) for name, values in rounds.items()})


def measure_prioritized(bench: Bench, workload: Workload) -> list[Row]:
    """Samples with weights, updates, and the cycle of both, at one capacity."""
    prefix = f"{workload.name} {workload.capacity:.0e}".replace("e+0", "e")
    names = {
        (kind, output): f"{prefix} {kind} {BATCH}{f' to {output}' if kind != 'update' else ''}"
        for kind, output in [*itertools.product(("sample", "cycle"), OUTPUTS), ("update", "NumPy")]
    }
    names = {key: name for key, name in names.items() if bench.wants(name)}
    if not names:
        return []
    floors = {name: bench.floor(workload.name, workload.capacity, 1) for name in (FLOOR, ALLOC)}
    buffer = workload.buffer(workload.capacity)
    other = prioritized_installed() if workload.capacity == W1.capacity else {}
    others = {name: make(workload) for name, make in other.items()}
    fill([*floors.values(), buffer, *others.values()], workload, workload.capacity)
    rng = np.random.default_rng(0)
    ids = buffer.anchors
    for some in np.array_split(ids, len(ids) // 1_000):
        abs_td = rng.exponential(size=len(some)).astype(np.float32)
        buffer.update_priorities(some, abs_td)
        for floor in floors.values():
            floor.update(some, abs_td)
        for rival in others.values():
            rival.update({"indexes": some - ids[0]}, abs_td)
    rows = []
    for (kind, output), name in names.items():
        if kind == "sample":
            contestants = _prioritized_samples(workload, floors, buffer, output)
        elif kind == "cycle":
            contestants = _cycles(workload, floors, buffer, output)
        else:
            contestants = _updates(floors, buffer)
        row = bench.row(name, contestants)
        if kind == "cycle" and others:
            # Apart: a call of half a millisecond leaves nothing of anybody else's in the cache.
            rivals = {key: calls(partial(_cycle_of, rival, output)) for key, rival in others.items()}
            row.microseconds |= {key: median(values) for key, values in interleave(rivals, bench.seconds / 4).items()}
        rows.append(row)
    return rows


def _prioritized_samples(
    workload: Workload, floors: dict[str, Any], buffer: relive.ReplayBuffer, output: str
) -> dict[str, Run]:
    floors[FLOOR].bind(*workload.outputs(BATCH))
    return {
        FLOOR: calls(partial(floors[FLOOR].sample, BATCH)),
        ALLOC: calls(partial(_fresh, workload, floors[ALLOC], BATCH, output)),
        RELIVE: calls(partial(buffer.sample, BATCH, beta=BETA, output=output.lower())),
    }


def _updates(floors: dict[str, Any], buffer: relive.ReplayBuffer) -> dict[str, Run]:
    """Of ids that were drawn a while ago."""
    pool = [buffer.sample(BATCH, beta=BETA).ids.copy() for _ in range(_POOL)]
    abs_td = _errors()

    def updates(update: Callable[[Any, Any], object]) -> Run:
        stream = itertools.cycle(pool)

        def run(times: int) -> None:
            for ids in itertools.islice(stream, times):
                update(ids, abs_td)

        return run

    return {FLOOR: updates(floors[FLOOR].update), RELIVE: updates(buffer.update_priorities)}


def _cycles(workload: Workload, floors: dict[str, Any], buffer: relive.ReplayBuffer, output: str) -> dict[str, Run]:
    """A sample, then new priorities for its ids; to torch both are tensors."""
    bound = workload.outputs(BATCH)
    floors[FLOOR].bind(*bound)
    ids, errors = bound[7], _errors()
    abs_td = errors if output == "NumPy" else torch.from_numpy(errors)

    def floor_cycle() -> None:
        floors[FLOOR].sample(BATCH)
        floors[FLOOR].update(ids, errors)

    def alloc_cycle() -> None:
        made = _fresh(workload, floors[ALLOC], BATCH, output)
        if output == "NumPy":
            floors[ALLOC].update(made[7], abs_td)
        else:
            floors[ALLOC].update(made[7].numpy(), abs_td.numpy())

    def cycle() -> None:
        batch = buffer.sample(BATCH, beta=BETA, output=output.lower())  # type: ignore[arg-type]
        buffer.update_priorities(batch.ids, abs_td)

    return {FLOOR: calls(floor_cycle), ALLOC: calls(alloc_cycle), RELIVE: calls(cycle)}


def _cycle_of(rival: CpprbPrioritized, output: str) -> None:
    batch = rival.sample(BATCH, BETA)
    if output == "torch":
        _ = [torch.from_numpy(array) for array in batch.values()]
    rival.update(batch, _ERRORS)


def _errors() -> Any:
    """|delta| of a batch, as learners have it: float32."""
    return np.random.default_rng(1).exponential(size=BATCH).astype(np.float32)


_ERRORS = _errors()


def _fresh(workload: Workload, floor: Any, count: int, output: str) -> list[Any]:
    """A batch of the floor's in new arrays, or tensors over them; for None there is none."""
    arrays = workload.outputs(count)
    floor.sample_into(count, *arrays)
    if output == "NumPy":
        return arrays
    return [None if array is None else torch.from_numpy(array) for array in arrays]


def measure_sequences(bench: Bench, workload: Workload = SEQUENCES) -> list[Row]:
    """Batches of sequences, as NumPy arrays and as tensors."""
    assert isinstance(workload.view, relive.Sequences)
    names = {output: f"{workload.name} {NUM_SEQUENCES} x {workload.view.length} to {output}" for output in OUTPUTS}
    names = {key: name for key, name in names.items() if bench.wants(name)}
    if not names:
        return []
    floors = {name: bench.floor(workload.name, workload.capacity, 1) for name in (FLOOR, ALLOC)}
    buffer = workload.buffer(workload.capacity)
    fill([*floors.values(), buffer], workload, workload.capacity)
    rows = []
    for output, name in names.items():
        bound = workload.outputs(NUM_SEQUENCES)
        floors[FLOOR].bind(*bound)
        contestants = {
            FLOOR: calls(partial(floors[FLOOR].sample, NUM_SEQUENCES)),
            ALLOC: calls(partial(_fresh, workload, floors[ALLOC], NUM_SEQUENCES, output)),
            RELIVE: calls(partial(buffer.sample, NUM_SEQUENCES, output=output.lower())),
        }
        row = bench.row(name, contestants)
        row.bytes = sum(array.nbytes for array in bound if array is not None)
        rows.append(row)
    return rows


def reward_fn(achieved: Any, desired: Any) -> Any:
    """As in Gymnasium-Robotics' Fetch: -1 until the goal is near."""
    return -(np.linalg.norm(achieved - desired, axis=-1) > 0.05).astype(np.float32)


def measure_hindsight(bench: Bench) -> list[Comparison]:
    """Relabelled batches beside plain ones of the same buffer."""
    wanted = {output: f"Hindsight sample {BATCH} to {output}" for output in OUTPUTS}
    wanted = {output: name for output, name in wanted.items() if bench.wants(name)}
    if not wanted:
        return []
    goal = relive.Field("float32", (3,))
    obs = {"observation": relive.Field("float32", (10,)), "achieved_goal": goal, "desired_goal": goal}
    buffer = relive.ReplayBuffer(1_000_000, relive.Schema(obs, relive.Field("float32", (4,))), seed=0)
    fill_goals(buffer, 1_000_000)
    hindsight = buffer.reader(view=relive.Hindsight("future", k=4, reward_fn=reward_fn))
    relabelled = int((hindsight.sample(100_000).goal_ids >= 0).mean() * BATCH)
    goals = np.random.default_rng(0).random((2, relabelled, 3)).astype(np.float32)
    found = []
    for output, name in wanted.items():
        contestants = {
            TRANSITIONS: calls(partial(buffer.sample, BATCH, output=output.lower())),
            HINDSIGHT: calls(partial(hindsight.sample, BATCH, output=output.lower())),
            REWARDS: calls(partial(reward_fn, *goals)),
        }
        rounds = interleave(contestants, bench.seconds)
        own = zip(rounds[HINDSIGHT], rounds[REWARDS], strict=True)
        rounds[f"{HINDSIGHT} without it"] = [whole - rewards for whole, rewards in own]
        found.append(_compared(name, rounds))
    return found


def measure_samplers(bench: Bench) -> list[Comparison]:
    """Every sampler over the same transitions; there is no floor for these."""
    title = f"Samplers, W1 sample {BATCH} to NumPy"
    if not bench.wants(title):
        return []
    buffer = W1.buffer(W1.capacity)
    fill([buffer], W1, W1.capacity)
    samplers = {
        UNIFORM: relive.Uniform(),
        "Uniform(newest=1)": relive.Uniform(newest=1),
        "Uniform(max_uses=1000)": relive.Uniform(max_uses=1_000),
        "Shuffled()": relive.Shuffled(),
        "Recent()": relive.samplers.Recent(),
        "Prioritized()": relive.Prioritized(),
        "RankBased()": relive.samplers.RankBased(),
    }
    readers = {name: buffer.reader(sampler=sampler) for name, sampler in samplers.items()}
    rng = np.random.default_rng(0)
    for name in ("Prioritized()", "RankBased()"):
        readers[name].update_priorities(buffer.anchors, rng.exponential(size=len(buffer)))
    plain = compare(bench, title, {name: calls(partial(reader.sample, BATCH)) for name, reader in readers.items()})

    def cycle(reader: Any) -> None:
        reader.update_priorities(reader.sample(BATCH, beta=BETA).ids, _ERRORS)

    cycles = {name: calls(partial(cycle, readers[name])) for name in ("Prioritized()", "RankBased()")}
    return [plain, compare(bench, title.replace("sample", "cycle"), cycles)]


def measure_all(bench: Bench) -> tuple[dict[str, list[Row]], list[Comparison]]:
    """Everything here: rows by title, and what has no floor."""
    rows = {}
    for workload in PRIORITIZED:
        rows[f"{workload.title}, beta {BETA}"] = measure_prioritized(bench, workload)
    rows[f"{SEQUENCES.title}, {NUM_SEQUENCES} x {SEQUENCES.view}"] = measure_sequences(bench)
    return rows, [*measure_hindsight(bench), *measure_samplers(bench)]

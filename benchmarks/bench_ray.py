"""Shards of a RayReplay against a bare Ray actor that returns ready arrays: `python benchmarks/bench_ray.py`.

Both move the same bytes to the same learner, in slices of a part of a second that take turns; a figure is the median
over rounds, a ratio the median of the ratios within a round. The bare actor has its arrays ready, draws nothing and is
asked eight times ahead. What it returns is read-only and stays in Ray's object store, unread; a third contestant copies
it to memory of the learner's own, as every batch of ours is.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a Ray of this machine alone, for a minute

import numpy as np
import ray

import relive
from relive.share.ray import RayReplay

TARGET = 1.5  # times what the bare actor takes
EPISODE = 500
LANES = 4
AHEAD = 8  # calls to the bare actor


@dataclass(frozen=True)
class Workload:
    """What is drawn, and pushed in blocks."""

    title: str
    obs: relive.Field
    stack: int
    capacity: int
    block: int
    batch: int
    prioritized: bool = False

    @property
    def schema(self) -> relive.Schema:
        """Of its transitions."""
        return relive.Schema(self.obs, relive.Field(np.int64))

    def columns(self, seed: int = 0) -> tuple[Any, ...]:
        """A block of one lane: obs, action, reward, terminated, next_obs."""
        rng = np.random.default_rng(seed)
        obs = rng.integers(0, 256, (self.block + 1, *self.obs.shape)).astype(self.obs.dtype)
        ends = np.arange(self.block) % EPISODE == EPISODE - 1
        return obs[:-1], np.zeros(self.block, np.int64), np.ones(self.block, np.float32), ends, obs[1:]

    def replay(self, shards: int) -> RayReplay:
        """A full one."""
        sampler = relive.Prioritized() if self.prioritized else relive.Uniform()
        view = relive.Transitions(stack=self.stack)
        replay = RayReplay(self.capacity, self.schema, shards=shards, lanes=LANES, sampler=sampler, view=view, seed=0)
        for number in range(self.capacity // self.block):
            replay.extend(*self.columns(number), lane=number % LANES)
        replay.flush()
        return replay


SMALL = relive.Field(np.float32, (4,))
FRAME = relive.Field(np.uint8, (84, 84))
WORKLOADS = (
    Workload("float32 [4], batch 256", SMALL, 1, 400_000, 5_000, 256),
    Workload("float32 [4], batch 4,096", SMALL, 1, 400_000, 5_000, 4_096),
    Workload("float32 [4], batch 256, prioritized with updates", SMALL, 1, 400_000, 5_000, 256, prioritized=True),
    Workload("frames uint8 [84, 84], stack 4, batch 256", FRAME, 4, 20_000, 500, 256),
)


@dataclass
class Row:
    """Medians; `ratio` is bare over ours in time, below 1 where ours is the faster."""

    title: str
    shards: int
    transitions: float
    megabytes: float
    bare_transitions: float
    bare_megabytes: float
    ratio: float
    copied_transitions: float
    copied_ratio: float
    pushed: float


class Bare:
    """The actor that has everything ready."""

    def __init__(self, arrays: dict[str, Any]) -> None:
        self._arrays = {name: np.array(array) for name, array in arrays.items()}

    def get(self) -> dict[str, Any]:
        """The batch."""
        return self._arrays


def rate(work: Callable[[], object], seconds: float) -> float:
    """Calls a second."""
    began = time.perf_counter()
    calls = 0
    while time.perf_counter() - began < seconds:
        work()
        calls += 1
    return calls / (time.perf_counter() - began)


def measure(workload: Workload, shards: int, rounds: int, seconds: float) -> Row:
    """One line."""
    with workload.replay(shards) as replay:
        first = replay.sample(workload.batch, beta=0.4 if workload.prioritized else None)
        num_bytes = sum(array.nbytes for array in vars(first).values())
        errors = np.random.default_rng(0).random(workload.batch, np.float32)
        bare = ray.remote(num_cpus=0)(Bare).remote(vars(first))
        calls = deque(bare.get.remote() for _ in range(AHEAD))
        columns, lane = workload.columns(), 0
        own = {name: np.array(array) for name, array in vars(first).items()}

        def ours() -> None:
            batch = replay.sample(workload.batch, beta=0.4 if workload.prioritized else None)
            if workload.prioritized:
                replay.update_priorities(batch.ids, errors)

        def theirs() -> None:
            ray.get(calls.popleft(), timeout=60)
            calls.append(bare.get.remote())

        def copied() -> None:
            arrays = ray.get(calls.popleft(), timeout=60)
            calls.append(bare.get.remote())
            for name, array in arrays.items():
                np.copyto(own[name], array)

        def push() -> None:
            nonlocal lane
            replay.extend(*columns, lane=lane)
            lane = (lane + 1) % LANES

        rates: list[list[float]] = []
        order = random.Random(0)
        for number in range(rounds + 1):
            turns = list(enumerate((ours, theirs, copied)))
            order.shuffle(turns)
            found = {which: rate(work, seconds) for which, work in turns}
            if number:  # the first warms up
                rates.append([found[which] for which in range(3)])
        ray.get(list(calls), timeout=60)
        pushed = []
        for _ in range(rounds):
            began, count = time.perf_counter(), 0
            while time.perf_counter() - began < seconds:
                push()
                count += workload.block
            replay.flush()
            pushed.append(count / (time.perf_counter() - began))
        ray.kill(bare)
    mine, other, copies = (statistics.median(found) * workload.batch for found in zip(*rates, strict=True))
    ratio, copied_ratio = (statistics.median(found[which] / found[0] for found in rates) for which in (1, 2))
    megabytes = num_bytes / workload.batch / 1e6
    return Row(
        *(workload.title, shards, mine, mine * megabytes, other, other * megabytes, ratio, copies, copied_ratio),
        statistics.median(pushed),
    )


def as_markdown(rows: list[Row]) -> str:
    """The table."""
    head = "| | shards | sampled | bare actor | over its time; target 1.5 | bare, copied out | over its time | pushed |"
    lines = [
        f"| {row.title} | {row.shards} | {row.transitions:,.0f}, {row.megabytes:,.0f} MB | "
        f"{row.bare_transitions:,.0f}, {row.bare_megabytes:,.0f} MB | **{row.ratio:.2f}x** | "
        f"{row.copied_transitions:,.0f} | {row.copied_ratio:.2f}x | {row.pushed:,.0f} |"
        for row in rows
    ]
    return "\n".join([head, "|---|" + "---:|" * 7, *lines])


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a slice")
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--only", default="", help="workloads with this in their title")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    ray.init(
        num_cpus=os.cpu_count(),
        include_dashboard=False,
        object_store_memory=1 << 30,
        log_to_driver=False,
        logging_level="ERROR",
    )
    rows = []
    for workload in WORKLOADS:
        if options.only in workload.title:
            for shards in options.shards:
                print(f"{workload.title}, {shards} shards", file=sys.stderr)
                rows.append(measure(workload, shards, options.rounds, options.seconds))
    ray.shutdown()
    page = as_markdown(rows)
    print(page)
    if options.json:
        about = {"ray": ray.__version__, "numpy": np.__version__, "cores": os.cpu_count()}
        options.json.write_text(json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")
    if options.markdown:
        text = options.markdown.read_text()
        begin, end = "<!-- bench_ray -->\n", "<!-- /bench_ray -->"
        before, after = text.split(begin)[0], text.split(end)[1]
        options.markdown.write_text(f"{before}{begin}\n{page}\n\n{end}{after}")


if __name__ == "__main__":
    main()

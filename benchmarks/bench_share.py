"""Actor processes that write beside a learner that samples, in shared memory: `python benchmarks/bench_share.py`.

Everything takes turns in one run: the learner alone, the actors alone, both at once. An actor pushes as fast as it can,
one transition a call, or blocks as `relive train --actors` does. A figure is the median over rounds. README.md says
more.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import relive

EPISODE = 500
BATCH = 256
REST, WRITE, END = 0, 1, 2
LATENCIES = (50, 99, 99.9, 100)


@dataclass(frozen=True)
class Workload:
    """What is written and read."""

    title: str
    obs: relive.Field
    capacity: int
    block: int = 1  # transitions a call
    prioritized: bool = False
    stack: int = 1

    def schema(self) -> relive.Schema:
        """Of one transition."""
        return relive.Schema(self.obs, relive.Field(np.int64))

    def axes(self) -> dict[str, Any]:
        """Sampler and view."""
        sampler = relive.Prioritized() if self.prioritized else relive.Uniform()
        return {"sampler": sampler, "view": relive.Transitions(stack=self.stack)}

    def observations(self, count: int) -> Any:
        """Random ones."""
        rng = np.random.default_rng(0)
        if self.obs.itemdtype.kind == "f":
            return rng.random((count, *self.obs.shape), np.float32)
        return rng.integers(0, 256, (count, *self.obs.shape), np.uint8)


SMALL, FRAME = relive.Field(np.float32, (4,)), relive.Field(np.uint8, (84, 84))
WORKLOADS = (
    Workload("float32 [4], one push a call", SMALL, 1_000_000),
    Workload("the same, blocks of 50", SMALL, 1_000_000, block=50),
    Workload("the same, prioritized, blocks of 50", SMALL, 1_000_000, block=50, prioritized=True),
    Workload("frames uint8 [84, 84], stack 4, one push a call", FRAME, 50_000, stack=4),
    Workload("frames, blocks of 50", FRAME, 50_000, block=50, stack=4),
)


def write_on(handle: Any, workload: Workload, lane: int, control: Any, counts: Any) -> None:
    """An actor: attaches, and writes to its lane whenever it is told to."""
    buffer = relive.attach(handle)
    obs = workload.observations(EPISODE + 1)
    size = workload.block
    ends = np.arange(EPISODE) == EPISODE - 1
    zeros, ones = np.zeros(size, np.int64), np.ones(size, np.float32)
    counts[lane] = 0
    at = 0
    while control[0] != END:
        if control[0] == REST:
            time.sleep(1e-3)
            continue
        if size == 1:
            buffer.push(obs[at], 0, 1.0, bool(ends[at]), obs[at + 1], lane=lane)
        else:
            part = slice(at, at + size)
            buffer.extend(obs[part], zeros, ones, ends[part], obs[at + 1 : at + size + 1], lane=lane)
        at = (at + size) % EPISODE
        counts[lane] += size


@contextmanager
def actors(buffer: relive.ReplayBuffer, workload: Workload, count: int) -> Iterator[tuple[Any, Any]]:
    """So many actors that rest; what they are told, and how much each has written."""
    context = multiprocessing.get_context("spawn")
    control, counts = context.RawArray("q", 1), context.RawArray("q", [-1] * count)
    processes = [
        context.Process(target=write_on, args=(buffer.handle(), workload, lane, control, counts), daemon=True)
        for lane in range(count)
    ]
    for process in processes:
        process.start()
    try:
        while min(counts) < 0:
            time.sleep(0.01)
            if not all(process.is_alive() for process in processes):
                raise RuntimeError("an actor did not start")
        yield control, counts
    finally:
        control[0] = END
        for process in processes:
            process.join()


def fill(buffer: relive.ReplayBuffer, workload: Workload) -> None:
    """Every lane."""
    obs = workload.observations(1001)
    each = buffer.capacity // buffer.lanes
    for lane in range(buffer.lanes):
        for begin in range(0, each, 1000):
            size = min(1000, each - begin)
            ends = np.arange(size) % EPISODE == EPISODE - 1
            buffer.extend(
                obs[:size], np.zeros(size, np.int64), np.ones(size, np.float32), ends, obs[1 : size + 1], lane=lane
            )


def learn(buffer: relive.ReplayBuffer, workload: Workload, seconds: float) -> list[float]:
    """Samples for so long, and updates priorities; the time each cycle took."""
    took = []
    beta = 0.4 if workload.prioritized else None
    errors = np.random.default_rng(0).random(BATCH)
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        batch = buffer.sample(BATCH, beta=beta)
        if workload.prioritized:
            buffer.update_priorities(batch.ids, errors)
        took.append(time.perf_counter() - began)
    return took


@dataclass
class Turn:
    """What one span of time gave."""

    inserts: float = 0.0  # a second, all actors
    batches: float = 0.0  # a second
    latency: tuple[float, ...] = ()  # microseconds: median, 99 %, 99.9 %, longest


def turn(
    buffer: Any, workload: Workload, control: Any, counts: Any, seconds: float, *, write: bool, read: bool
) -> Turn:
    """One span."""
    before, began = sum(counts), time.perf_counter()
    control[0] = WRITE if write else REST
    took = []
    if read:
        took = learn(buffer, workload, seconds)
    else:
        time.sleep(seconds)
    control[0] = REST
    span = time.perf_counter() - began
    time.sleep(0.01)
    latency = tuple(float(value) * 1e6 for value in np.percentile(took, LATENCIES)) if took else ()
    return Turn((sum(counts) - before) / span, len(took) / span, latency)


@dataclass
class Row:
    """Medians over rounds."""

    title: str
    actors: int
    storage: str
    inserts_alone: float
    inserts: float
    batches_alone: float
    batches: float
    latency_alone: tuple[float, ...]
    latency: tuple[float, ...]


def median(turns: list[Turn]) -> Turn:
    """Of each figure."""
    latency = tuple(np.median([one.latency for one in turns], axis=0).tolist()) if turns[0].latency else ()
    return Turn(
        float(np.median([one.inserts for one in turns])), float(np.median([one.batches for one in turns])), latency
    )


def measure(workload: Workload, count: int, rounds: int, seconds: float) -> Row:
    """With so many actors."""
    lanes = max(count, 1)
    buffer = relive.ReplayBuffer(
        workload.capacity, workload.schema(), lanes=lanes, storage=relive.SharedMemory(), seed=0, **workload.axes()
    )
    fill(buffer, workload)
    spans: dict[str, list[Turn]] = {"write": [], "read": [], "both": []}
    with actors(buffer, workload, count) as (control, counts):
        for _ in range(rounds + 1):
            for name in spans:
                spans[name].append(
                    turn(
                        buffer,
                        workload,
                        control,
                        counts,
                        seconds,
                        write=name != "read",
                        read=name != "write",
                    )
                )
    write, read, both = (median(turns[1:]) for turns in spans.values())
    return Row(
        workload.title,
        count,
        "SharedMemory",
        write.inserts,
        both.inserts,
        read.batches,
        both.batches,
        read.latency,
        both.latency,
    )


def in_memory(workload: Workload, rounds: int, seconds: float) -> float:
    """Batches a second of the same buffer in plain memory, nobody writing."""
    buffer = relive.ReplayBuffer(workload.capacity, workload.schema(), seed=0, **workload.axes())
    fill(buffer, workload)
    return float(np.median([len(learn(buffer, workload, seconds)) / seconds for _ in range(rounds)]))


def as_markdown(rows: list[Row], plain: dict[str, float]) -> str:
    """The page."""
    head = (
        "| transitions | actors | inserts/s, nobody reading | inserts/s beside the learner | batches of 256/s, nobody "
        "writing (in plain memory) | batches/s beside the actors | latency of a batch alone: median, 99 %, 99.9 %, "
        "longest (us) | beside the actors |\n|---|---:|---:|---:|---:|---:|---|---|"
    )

    def times(values: tuple[float, ...]) -> str:
        return " / ".join(f"{value:,.0f}" for value in values)

    return "\n".join(
        [
            head,
            *(
                f"| {row.title} | {row.actors} | {row.inserts_alone:,.0f} | {row.inserts:,.0f} | "
                f"{row.batches_alone:,.0f} ({plain[row.title]:,.0f}) | {row.batches:,.0f} | "
                f"{times(row.latency_alone)} | {times(row.latency)} |"
                for row in rows
            ),
        ]
    )


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a span")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path, help="a page with the marks of this table in it")
    options = parser.parse_args()
    rows, plain = [], {}
    for workload in WORKLOADS:
        print(workload.title, file=sys.stderr)
        plain[workload.title] = in_memory(workload, options.rounds, options.seconds)
        rows += [measure(workload, count, options.rounds, options.seconds) for count in (1, 2)]
    page = as_markdown(rows, plain)
    print(page)
    if options.json:
        found = {"rows": [asdict(row) for row in rows], "plain": plain, "relive": relive.__version__}
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    if options.markdown:
        text = options.markdown.read_text()
        begin, end = "<!-- bench_share -->\n", "<!-- /bench_share -->"
        before, after = text.split(begin)[0], text.split(end)[1]
        options.markdown.write_text(f"{before}{begin}\n{page}\n\n{end}{after}")


if __name__ == "__main__":
    main()

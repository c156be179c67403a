"""Saving and loading against `cp` of the same bytes on the same disk: `python benchmarks/bench_save.py`.

All contestants of a row take turns in one run; a figure is the median over rounds, a ratio the median of the ratios
within a round. `cp + sync` waits until the copy is on the disk, as a save does; `cached` is a save that does not, as
`cp`. README.md says more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

import relive
from relive import snapshot

TARGET = 1.5  # times cp
EPISODE = 500


@dataclass(frozen=True)
class Workload:
    """What is saved."""

    title: str
    obs: relive.Field
    capacity: int
    block: int
    prioritized: bool = False
    stack: int = 1

    def make(self) -> relive.ReplayBuffer:
        """A full buffer."""
        sampler = relive.Prioritized() if self.prioritized else relive.Uniform()
        schema = relive.Schema(self.obs, relive.Field(np.int64))
        view = relive.Transitions(stack=self.stack)
        buffer = relive.ReplayBuffer(self.capacity, schema, sampler=sampler, view=view, seed=0)
        self.push(buffer, self.capacity)
        return buffer

    def push(self, buffer: relive.ReplayBuffer, count: int) -> None:
        """Pushes so many transitions more."""
        rng = np.random.default_rng(len(buffer))
        for begin in range(0, count, self.block):
            size = min(self.block, count - begin)
            if self.obs.itemdtype.kind == "f":
                obs = rng.random((size + 1, *self.obs.shape), np.float32)
            else:
                obs = rng.integers(0, 256, (size + 1, *self.obs.shape), np.uint8)
            ends = np.arange(begin, begin + size) % EPISODE == EPISODE - 1
            buffer.extend(obs[:-1], np.zeros(size, np.int64), np.ones(size, np.float32), ends, obs[1:])


WORKLOADS = (
    Workload("10^6 small transitions (float32 [4])", relive.Field(np.float32, (4,)), 1_000_000, 10_000),
    Workload("the same, prioritized", relive.Field(np.float32, (4,)), 1_000_000, 10_000, prioritized=True),
    Workload("10^5 frames (uint8 [84, 84])", relive.Field(np.uint8, (84, 84)), 100_000, 1_000, stack=4),
)


@dataclass
class Row:
    """Seconds, medians, and ratios to cp and to cp + sync."""

    title: str
    megabytes: float
    cp: float
    cp_sync: float
    save: float
    cached: float
    load: float
    load_first: float
    verify: float
    again: float
    increment: float
    increment_megabytes: float
    values_megabytes: float
    cached_to_cp: float
    save_to_cp: float
    save_to_cp_sync: float
    load_to_cp: float
    increment_to_save: float
    touch: float
    extra_megabytes: float = 0.0
    push_alone_us: tuple[float, float, float] = (0.0, 0.0, 0.0)
    push_saving_us: tuple[float, float, float] = (0.0, 0.0, 0.0)


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def copy(source: Path, target: Path, *, sync: bool) -> None:
    """`cp -r`, and the files on the disk."""
    subprocess.run(["cp", "-r", source, target], check=True)
    if sync:
        for path in [*target.iterdir(), target]:
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)


def touch(num_bytes: int) -> None:
    """Fills fresh memory as a buffer's is made: what no load can do without."""
    memory = relive.Memory().allocate(-(-num_bytes // 2**21) * 2**21, [(0, -(-num_bytes // 2**21) * 2**21)])
    np.frombuffer(memory, np.uint8).fill(1)


@contextlib.contextmanager
def nobody_waits() -> Iterator[None]:
    """Saves leave to the system when their bytes get to the disk: what no save of relive does."""
    fsync, os.fsync = os.fsync, lambda file: None
    try:
        yield
    finally:
        os.fsync = fsync


def save_cached(buffer: relive.ReplayBuffer, directory: Path) -> None:
    """A save as `cp` copies."""
    with nobody_waits():
        buffer.save(directory)


def size(directory: Path, pattern: str = "*") -> float:
    """MB of the files in a directory."""
    return sum(path.stat().st_size for path in directory.glob(pattern)) / 1e6


def measure(workload: Workload, root: Path, rounds: int) -> Row:
    """Times of one workload."""
    buffer = workload.make()
    times: dict[str, list[float]] = {
        name: []
        for name in ("cp", "cp_sync", "save", "cached", "load_first", "load", "verify", "again", "more", "touch")
    }
    megabytes = more_megabytes = values = 0.0
    for turn in range(rounds + 1):  # the first warms up
        saved, copied = root / f"saved-{turn}", root / f"copied-{turn}"
        cached = seconds(lambda copied=copied: save_cached(buffer, copied))
        shutil.rmtree(copied)
        took = {"save": seconds(lambda saved=saved: buffer.save(saved))}
        megabytes, values = size(saved), size(saved, "*-masses.npy")
        took["cached"] = cached
        took["cp"] = seconds(lambda saved=saved, copied=copied: copy(saved, copied, sync=False))
        shutil.rmtree(copied)
        took["cp_sync"] = seconds(lambda saved=saved, copied=copied: copy(saved, copied, sync=True))
        shutil.rmtree(copied)
        # Memory that was free for a while a virtual machine has to get from its host again: not so what was just freed.
        took["load_first"] = seconds(lambda saved=saved: relive.load(saved))
        took["load"] = seconds(lambda saved=saved: relive.load(saved))
        took["touch"] = seconds(lambda size=int(megabytes * 1e6): touch(size))
        took["verify"] = seconds(lambda saved=saved: snapshot.verify(saved))
        took["again"] = seconds(lambda saved=saved: buffer.save(saved))
        workload.push(buffer, workload.capacity // 100)
        written: list[int] = []
        took["more"] = seconds(lambda saved=saved, written=written: written.append(buffer.save(saved)))
        more_megabytes = written[0] / 1e6
        shutil.rmtree(saved)
        if turn:
            for name, value in took.items():
                times[name].append(value)
    median = {name: float(np.median(values)) for name, values in times.items()}

    def ratio(one: str, other: str) -> float:
        return float(np.median(np.array(times[one]) / np.array(times[other])))

    return Row(
        workload.title,
        megabytes,
        median["cp"],
        median["cp_sync"],
        median["save"],
        median["cached"],
        median["load"],
        median["load_first"],
        median["verify"],
        median["again"],
        median["more"],
        more_megabytes,
        values,
        ratio("cached", "cp"),
        ratio("save", "cp"),
        ratio("save", "cp_sync"),
        ratio("load", "cp"),
        ratio("more", "save"),
        median["touch"],
    )


def extra_memory(workload: Workload, root: str) -> float:
    """MB by which the process is larger at its largest during a save than before."""
    buffer = workload.make()

    def resident(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    Path("/proc/self/clear_refs").write_text("5")  # forget the largest size so far
    before = resident("VmRSS")
    buffer.save(Path(root) / "memory")
    return (resident("VmHWM") - before) * 1024 / 1e6


def pauses(workload: Workload, root: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Time of a push in another thread, us: median, 99.9th percentile, largest; alone, and during a save."""
    buffer = workload.make()
    buffer.sample(32)  # priorities are made when they are first looked at
    rng = np.random.default_rng(0)
    if workload.obs.itemdtype.kind == "f":
        obs = rng.random((64, *workload.obs.shape), np.float32)
    else:
        obs = rng.integers(0, 256, (64, *workload.obs.shape), np.uint8)
    results = []
    for saving in (False, True):
        stop, took = threading.Event(), []

        def pusher(stop: threading.Event = stop, took: list[float] = took) -> None:
            step = 0
            while not stop.is_set():
                began = time.perf_counter()
                buffer.push(obs[step % 64], 0, 1.0, False, obs[(step + 1) % 64])
                took.append(time.perf_counter() - began)
                step += 1
                time.sleep(1e-4)  # an environment that steps ten thousand times a second, at most

        thread = threading.Thread(target=pusher)
        thread.start()
        if saving:
            buffer.save(Path(root) / "pauses")
        else:
            time.sleep(1.0)
        stop.set()
        thread.join()
        results.append(tuple(float(value) for value in np.percentile(np.array(took) * 1e6, [50, 99.9, 100])))
    return results[0], results[1]


def apart(work: Callable[..., object], *args: object) -> object:
    """The result of a call in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as processes:
        return processes.submit(work, *args).result()


def as_markdown(rows: list[Row]) -> str:
    """The page."""

    def speed(row: Row, time_: float) -> str:
        return f"{time_ * 1e3:,.0f} ms, {row.megabytes / time_:,.0f} MB/s"

    def percent(value: float) -> str:
        return f"{value * 100:.1f} %"

    lines = [
        ("bytes", lambda row: f"{row.megabytes:,.0f} MB"),
        ("`cp`", lambda row: speed(row, row.cp)),
        ("`cp`, on the disk", lambda row: speed(row, row.cp_sync)),
        ("**save**, on the disk", lambda row: speed(row, row.save)),
        ("over `cp`, which leaves its copy in the page cache; target 1.5", lambda row: f"{row.save_to_cp:.2f}x"),
        ("over `cp`, on the disk", lambda row: f"{row.save_to_cp_sync:.2f}x"),
        ("a save that would not wait for the disk either", lambda row: speed(row, row.cached)),
        ("over `cp`", lambda row: f"{row.cached_to_cp:.2f}x"),
        ("**load**", lambda row: speed(row, row.load)),
        ("over `cp`; target 1.5", lambda row: f"{row.load_to_cp:.2f}x"),
        ("load, where the host has to give the memory first", lambda row: speed(row, row.load_first)),
        ("fresh memory of that size, touched", lambda row: f"{row.touch * 1e3:,.0f} ms"),
        ("verify", lambda row: speed(row, row.verify)),
        (
            "**save of 1 % more**",
            lambda row: (
                f"{row.increment * 1e3:,.1f} ms, {row.increment_megabytes:.1f} MB"
                + (f" ({row.values_megabytes:.0f} MB of them priorities)" if row.values_megabytes else "")
            ),
        ),
        ("over the full save; target 3 % and the small state", lambda row: percent(row.increment_to_save)),
        ("save of nothing new", lambda row: f"{row.again * 1e3:,.1f} ms"),
        ("more memory while saving; target below 64 MB", lambda row: f"{row.extra_megabytes:.0f} MB"),
        (
            "a push meanwhile: median, 99.9 %, longest",
            lambda row: " / ".join(f"{x:,.0f}" for x in row.push_saving_us) + " us",
        ),
        ("the same, nobody saving", lambda row: " / ".join(f"{x:,.0f}" for x in row.push_alone_us) + " us"),
    ]
    header = ["| | " + " | ".join(row.title for row in rows) + " |", "|---|" + "---:|" * len(rows)]
    return "\n".join(header + [f"| {name} | " + " | ".join(map(tell, rows)) + " |" for name, tell in lines])


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dir", type=Path, help="where to save to: the disk that is measured; here by default")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=options.dir or Path.cwd()) as root:
        for workload in WORKLOADS:
            print(workload.title, file=sys.stderr)
            row = measure(workload, Path(root), options.rounds)
            row.extra_megabytes = apart(extra_memory, workload, root)
            row.push_alone_us, row.push_saving_us = apart(pauses, workload, root)
            rows.append(row)
            for path in Path(root).iterdir():
                shutil.rmtree(path)
    page = as_markdown(rows)
    print(page)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    if options.markdown:
        text = options.markdown.read_text()
        begin, end = "<!-- bench_save -->\n", "<!-- /bench_save -->"
        before, after = text.split(begin)[0], text.split(end)[1]
        options.markdown.write_text(f"{before}{begin}\n{page}\n\n{end}{after}")


if __name__ == "__main__":
    main()
